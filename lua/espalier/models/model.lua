--- A language model: a shape, a decoder, and where both came from.

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"
local lazy = require "espalier.tensor.lazy"
local ops = require "espalier.ops"
local tape = require "espalier.tape"
local scope = require "espalier.scope"
local nn = require "espalier.nn"
local shapes = require "espalier.models.shape"
local quantity = require "espalier.quantity"
local file = require "espalier.io.file"
local fail = require "espalier.fail"

local Model = {}
Model.__index = Model

local M = { Model = Model }

--- A model of a shape. opt.weights: { [hf_name] = tensor } (fresh ones where missing, from opt.seed and opt.std); opt.config: the parsed source
-- config; opt.source: its folder; opt.tokenizer; opt.lineage: list of what was done to it;
-- opt.precision: of products, "f32" (nil) or "bf16".
function M.new(shape, opt)
  opt = opt or {}
  shapes.check(shape, "model")
  local decoder = scope.outside(nn.Decoder, shape, { weights = opt.weights, seed = opt.seed, std = opt.std })
  if opt.precision then decoder:products_in(opt.precision) end
  return setmetatable({ shape = shape, decoder = decoder, precision = opt.precision, config = opt.config, source = opt.source,
    tokenizer = opt.tokenizer, lineage = opt.lineage or {} }, Model)
end

--- { [hf_name] = tensor }: the weights themselves, not copies.
function Model:parameters()
  return self.decoder:parameters()
end

--- Their names in the order of the layers.
function Model:parameter_names()
  return self.decoder:parameter_names()
end

--- A model with weights of its own, f32 unless opt.dtype says otherwise.
function Model:clone(opt)
  local dtype, weights = opt and opt.dtype or "f32", {}
  scope.outside(function()
    for name, t in pairs(self:parameters()) do
      weights[name] = lazy.copy(t, dtype)
    end
  end)
  return M.new(shapes.copy(self.shape), { weights = weights, config = self.config, source = self.source, tokenizer = self.tokenizer,
    lineage = { unpack(self.lineage) } })
end

--- A model of the same weights whose products are made in "f32" or "bf16" (operands rounded to bf16, sums f32); itself where it already is one.
function Model:in_precision(precision)
  if precision == (self.precision or "f32") then return self end
  return M.new(self.shape, { weights = self:parameters(), precision = precision, config = self.config, source = self.source,
    tokenizer = self.tokenizer, lineage = self.lineage })
end

--- The tokenizer, opened from the source folder when first asked for.
function Model:tok()
  if not self.tokenizer then
    if not self.source then fail("this model has no tokenizer") end
    -- A checkpoint in one file has its tokenizer beside it.
    local dir = file.kind(self.source) == "file" and (self.source:match "^(.*)/[^/]*$" or ".") or self.source
    self.tokenizer = require("espalier.tokenizer").load(dir, { vocab = self.shape.vocab })
  end
  return self.tokenizer
end

-- ids as an i32 tensor [B,T], and the lengths of the rows. Rows of a table may differ in length: the rest is filled with 0.
local function as_ids(ids)
  if tensor.is(ids) then
    if ids.dtype ~= "i32" or #ids.shape ~= 2 then fail("model: ids are %s %s, want i32 [batch, positions]", ids.dtype, tensor.shape_text(ids)) end
    local lengths = {}
    for b = 1, ids.shape[1] do lengths[b] = ids.shape[2] end
    return ids, lengths
  end
  if type(ids) ~= "table" or type(ids[1]) ~= "table" then fail("model: ids are %s, want an i32 tensor or a table of rows", type(ids)) end
  local longest, lengths = 0, {}
  for b, row in ipairs(ids) do
    lengths[b] = #row
    longest = math.max(longest, #row)
  end
  local t = tensor.zeros({ #ids, longest }, "i32")
  local p = t:data()
  for b, row in ipairs(ids) do
    for i, id in ipairs(row) do p[(b - 1) * longest + i - 1] = id end
  end
  return t, lengths
end
M.as_ids = as_ids

--- Residual stream after the final norm [B,T,hidden]; options as nn.Decoder's forward. Recorded unless inside esp.no_grad.
function Model:forward(ids, opt)
  return self.decoder:forward(not (opt and opt.from) and as_ids(ids) or ids, opt)
end

--- Weight [vocab, hidden] of the LM head.
function Model:head()
  return self.decoder:head()
end

--- What the chunked losses take: { hidden = states after the final norm, weight = of the head, cap = logit_cap of the shape or nil, precision = of
-- the products, packed = the head as head.pack of loss/head.lua gives it where many calls share it, or nil }.
function Model:states(hidden, packed)
  return { hidden = hidden, weight = self:head(), cap = self.shape.logit_cap, precision = self.precision, packed = packed }
end

--- Logits [..,vocab] of states [..,hidden] after the final norm. Recorded unless inside esp.no_grad. weight: some rows [n, hidden] of the head, for
-- logits [..,n].
function Model:project(hidden, weight)
  local logits = ops.linear(hidden, weight or self:head(), nil, self.precision)
  return self.shape.logit_cap and ops.softcap(logits, self.shape.logit_cap) or logits
end

--- Logits [B,T,vocab], not recorded. For a few rows; training and scoring go through chunks and never make this tensor.
function Model:logits(ids)
  return tape.no_grad(scope.run, function() return self:project(self:forward(ids)) end)
end

--- Residual stream after the final norm; with { layers = true } a list: into each layer, then after the final norm. Not recorded.
function Model:hidden(ids, opt)
  return tape.no_grad(scope.run, function()
    if not (opt and opt.layers) then return self:forward(ids) end
    local list = {}
    local last = self:forward(ids, { observe = function(site, l, t)
      if site == "in" then list[l + 1] = scope.outside(tensor.clone, t) end
    end })
    list[#list + 1] = last
    return list
  end)
end

--- Negative log-likelihood of each next token, f32 [B*T] in nats: entry b*T+t is that of token t+1 given those to t; 0 where target is -1.
-- Through chunks of the head: no [tokens, vocab] tensor. opt.first, opt.target: i32 [B,T] of packed rows; opt.from, opt.skip as forward.
function Model:token_nll(ids, opt)
  opt = opt or {}
  return tape.no_grad(scope.run, function()
    local rows, lengths
    if not opt.target then rows, lengths = as_ids(ids) end
    local target = opt.target or M.next_targets(rows, lengths)
    local h = self:forward(rows or ids, opt)
    local loss = require("espalier.eval.tokens").nll_and_kl(self:states(h), target)
    return loss, target
  end)
end

--- Target i32 [B,T] of each position: the next id of its row, -1 at the end.
function M.next_targets(ids, lengths)
  local B, T = ids.shape[1], ids.shape[2]
  local target = tensor.full({ B, T }, -1, "i32")
  local from, to = tensor.contiguous(ids):data(), target:data()
  for b = 0, B - 1 do
    for t = 0, lengths[b + 1] - 2 do to[b * T + t] = from[b * T + t + 1] end
  end
  return target
end

--- Mean of the values f32 [N] of predictions over the targets i32 that are not -1, and the number of those.
function M.mean_nll(loss, target)
  local p, count = target:data(), 0
  for i = 0, target:count() - 1 do if p[i] >= 0 then count = count + 1 end end
  if count == 0 then fail("loss: rows of one token have nothing to predict") end
  local total = tensor.zeros({}, "f64")
  core.ops.total_acc(total.c, loss.c)
  return total:item() / count, count
end

--- Mean next-token cross-entropy in nats over all predictions of the rows, and their number.
function Model:loss(ids, opt)
  return scope.run(function() return M.mean_nll(self:token_nll(ids, opt)) end)
end

--- Writes a Hugging Face folder, or a GGUF file where the name ends in .gguf: whole or not at all, proven before it appears. See export/init.lua.
function Model:save(path, opt)
  return require("espalier.export").save(self, path, opt)
end

function Model:__tostring()
  return string.format("model: %s, %s parameters%s", shapes.text(self.shape), quantity.show_exact(shapes.parameters(self.shape)),
    self.shape.tied and ", tied embeddings" or "")
end

return M
