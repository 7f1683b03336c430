--- Masks: any set of channels, neurons, heads, KV groups or layers weakened or silenced, without cutting. A mask of zeros and ones computes what a
-- cut of the ones computes, to the rounding of the sums; between 0 and 1 it weakens.
--
-- What a mask multiplies is folded into the weights behind it: neurons into the columns of down_proj, heads into those of o_proj, hidden channels
-- into all that writes to the residual stream, layers into what their parts add. Only tensors that a mask touches are copied.
--
-- An RMS norm divides by the mean over all channels, a cut model by that over the kept ones. With n channels and k the sum of the mask,
-- x / sqrt(sum(x^2)/k + eps) = sqrt(k/n) x / sqrt(sum(x^2)/n + eps k/n): the norm's weight is scaled by sqrt(k/n), its eps by k/n.

local tensor = require "espalier.tensor"
local tape = require "espalier.tape"
local scope = require "espalier.scope"
local models = require "espalier.models.model"
local shapes = require "espalier.models.shape"
local options = require "espalier.options"
local streams = require "espalier.prune.streams"
local core = require "espalier.ffi"
local fail = require "espalier.fail"

local M = {}
local Masked = {}
local Model = models.Model
Masked.__index = function(_, name) return Masked[name] or Model[name] end
Masked.__tostring = Model.__tostring

local stores = setmetatable({}, { __mode = "k" })

-- ---- what is asked for ----

-- A mask f32 [n] from a tensor of weights or a list of indices that stay.
local function mask_of(what, given, n)
  if tensor.is(given) then
    if #given.shape ~= 1 or given.shape[1] ~= n then fail("esp.mask: %s is %s, want [%d]", what, tensor.shape_text(given), n) end
    for i, v in ipairs(given:table()) do
      if not (v >= 0 and v <= 1) then fail("esp.mask: %s holds %s at %d, want 0 to 1", what, tostring(v), i - 1) end
    end
    return tensor.to(given, "f32")
  end
  if type(given) ~= "table" then fail("esp.mask: %s is %s, want a list of indices that stay, or a tensor of weights 0 to 1", what, type(given)) end
  local mask = tensor.zeros { n }
  local p = mask:data()
  for _, i in ipairs(given) do
    if type(i) ~= "number" or i ~= math.floor(i) or i < 0 or i >= n then
      fail("esp.mask: %s names %s, want whole numbers from 0 to %d", what, tostring(i), n - 1)
    end
    p[i] = 1
  end
  return mask
end

-- Each entry of a mask [n] for `each` channels.
local function spread(mask, each)
  local out = tensor.new { mask.shape[1] * each }
  local p, q = out:data(), mask:data()
  for i = 0, out.shape[1] - 1 do p[i] = q[math.floor(i / each)] end
  return out
end

local function times(a, b)
  if not (a and b) then return a or b end
  return a * b
end

-- Masks of a layer by axis of its tensors: { ffn = [F], heads = [H*D] }; nil where nothing is masked.
local function layer_masks(s, l, opt)
  local masks = {}
  local function given(axis) return opt[axis] and opt[axis][l + 1] end
  local function name(axis) return axis .. "[" .. l + 1 .. "] (layer " .. l .. ")" end
  if given "ffn" then masks.ffn = mask_of(name "ffn", given "ffn", shapes.at(s, "ffn", l)) end
  local h, g = shapes.at(s, "heads", l), shapes.at(s, "kv_heads", l)
  if given "heads" then masks.heads = spread(mask_of(name "heads", given "heads", h), s.head_dim) end
  if given "kv_heads" then
    masks.heads = times(masks.heads, spread(mask_of(name "kv_heads", given "kv_heads", g), h / g * s.head_dim))
  end
  return masks
end

local function refuse(s, opt)
  if opt.hidden and (s.norm == "layernorm" or s.norm == "layernorm1p") then
    fail("esp.mask: hidden channels of a model with LayerNorm cannot be masked: the mean is taken over all channels; cut them with esp.prune")
  end
  if opt.hidden and s.embedding_scale then
    fail("esp.mask: hidden channels of a model that scales its embeddings by their number cannot be masked; cut them with esp.prune")
  end
  if (opt.heads or opt.kv_heads) and s.qk_norm == "whole" then
    fail("esp.mask: heads of a model that norms queries over all heads cannot be masked; cut them with esp.prune")
  end
  for _, axis in ipairs { "ffn", "heads", "kv_heads" } do
    if opt[axis] and #opt[axis] > s.layers then fail("esp.mask: %s lists %d layers, want at most %d", axis, #opt[axis], s.layers) end
  end
end

-- ---- folding ----

local function rows_of(t, mask)
  return #t.shape == 1 and t * mask or t * mask:view(mask.shape[1], 1)
end

local outputs = { ["self_attn.o_proj.weight"] = true, ["self_attn.o_proj.bias"] = true, ["mlp.down_proj.weight"] = true,
  ["mlp.down_proj.bias"] = true }

-- A norm's weight times a factor; rms1p stores it less 1.
local function scaled_norm(t, s, factor)
  return s.norm == "rms1p" and (t + 1) * factor - 1 or t * factor
end

-- A tensor with what masks multiply folded in; the tensor itself where none does. m: { hidden, share, ffn, heads, layer } of its layer.
local function folded(t, info, s, m)
  local names = shapes.norms[s.norms or "pre"]
  local place = info.below and info.below:match "^(.*)%.%a+$"
  local output = outputs[info.below or ""]
  local norm = #info.axes == 1 and info.axes[1] == "hidden" and not output
  if m.ffn and place == "mlp.down_proj" and #info.axes == 2 then t = t * m.ffn end
  if m.heads and place == "self_attn.o_proj" and #info.axes == 2 then t = t * m.heads end
  if m.hidden and output then t = rows_of(t, m.hidden) end
  if m.hidden and info.name == "model.embed_tokens.weight" then t = t * m.hidden end
  if m.hidden and norm then t = scaled_norm(t, s, math.sqrt(m.share)) end
  if m.layer and m.layer ~= 1 then
    -- What a layer adds comes out of its norms where these stand behind its parts, else out of the parts themselves.
    if names.after_mlp and (place == names.after_mlp or place == names.after_attention) then t = scaled_norm(t, s, m.layer)
    elseif not names.after_mlp and output then t = t * m.layer end
  end
  return t
end

local function scale_eps(model, share)
  local decoder, names = model.decoder, shapes.norms[model.shape.norms or "pre"]
  decoder.model.norm.eps = decoder.model.norm.eps * share
  for _, block in ipairs(decoder.model.layers) do
    for _, name in pairs(names) do if block[name] then block[name].eps = block[name].eps * share end end
  end
end

local function texts_of(model, weights, from)
  local list = {}
  for l = 0, model.shape.layers - 1 do list[l + 1] = "" end
  local outer = ""
  for _, info in ipairs(shapes.tensors(model.shape)) do
    local t = weights[info.name]
    if t ~= from[info.name] then
      local hex, dense = core.new "char[33]", tensor.contiguous(t)
      core.try(core.C.esp_hash(hex, dense:data(), 4 * dense:count()))
      if info.layer then list[info.layer + 1] = list[info.layer + 1] .. core.string(hex) else outer = outer .. core.string(hex) end
    end
  end
  for l = 1, #list do list[l] = l .. outer .. list[l] end
  return list
end

--- esp.mask(model, { hidden = M, ffn = { [l+1] = M }, heads = { [l+1] = M }, kv_heads = { [l+1] = M }, layers = M }) -> model: the model with parts
-- of it silenced or weakened. Each M is a list of the indices that stay, or a tensor of weights from 0 to 1; absent ones stay whole.
-- A layer's weight multiplies what its attention and its MLP add. masked:loss(batch) takes the stream before the first layer that is masked
-- differently from the score before. Errors: hidden channels where a norm takes means or embeddings are scaled; heads normed as a whole.
function M.mask(model, opt)
  if type(model) ~= "table" or not model.decoder then fail("esp.mask: the first argument is %s, want a model", type(model)) end
  opt = options.check("esp.mask", opt, { hidden = { "table" }, ffn = { "table" }, heads = { "table" }, kv_heads = { "table" }, layers = { "table" } })
  local s, from, weights, share = model.shape, model:parameters(), {}, 1
  refuse(s, opt)
  tape.no_grad(scope.outside, function()
    local hidden = opt.hidden and mask_of("hidden", opt.hidden, s.hidden)
    local layers = opt.layers and mask_of("layers", opt.layers, s.layers):table()
    if hidden then share = hidden:sum(0):item() / s.hidden end
    if share == 0 then fail("esp.mask: hidden keeps no channel") end
    local of_layer = {}
    for l = 0, s.layers - 1 do
      of_layer[l] = layer_masks(s, l, opt)
      of_layer[l].hidden, of_layer[l].share, of_layer[l].layer = hidden, share, layers and layers[l + 1]
    end
    for _, info in ipairs(shapes.tensors(s)) do
      weights[info.name] = folded(tensor.to(from[info.name], "f32"), info, s, of_layer[info.layer] or { hidden = hidden, share = share })
    end
  end)
  local masked = models.new(shapes.copy(s), { weights = weights, config = model.config, source = model.source, tokenizer = model.tokenizer,
    lineage = model.lineage, precision = model.precision })
  if opt.hidden then scale_eps(masked, share) end
  masked.of, masked.texts = model, texts_of(masked, weights, from)
  return setmetatable(masked, Masked)
end

--- Mean next-token cross-entropy in nats, and the number of predictions; batch as of slice:loss.
function Masked:loss(batch, opt)
  stores[self.of] = stores[self.of] or streams.new()
  return stores[self.of]:loss(self, self.texts, batch, opt)
end

return M
