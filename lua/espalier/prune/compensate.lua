--- FLAP's bias compensation (2312.11983): what removed channels added on average is given back as a bias of the layer that read them.
--
-- It needs an output bias, so an architecture that can have one in every layer (a LLaMA can). The new biases are 0 but for what is given back.

local tensor = require "espalier.tensor"
local tape = require "espalier.tape"
local scope = require "espalier.scope"
local ops = require "espalier.ops"
local configs = require "espalier.models.config"
local shapes = require "espalier.models.shape"
local fail = require "espalier.fail"

local M = {}

-- What gives back what: an axis, the site whose channels go, the layer that reads them, and the biases that come with its own.
local parts = {
  ffn = { site = "ffn", reader = "mlp.down_proj", biases = { "mlp" }, width = function() return 1 end },
  heads = { site = "attention", reader = "self_attn.o_proj", biases = { "qkv", "output" }, width = function(s) return s.head_dim end },
}

-- The shape with the biases that compensation along the cut axes needs; refuses where the model's architecture has none.
local function biased(new, model, sets)
  local s, any = shapes.copy(new), false
  s.biases = s.biases or {}
  for axis, part in pairs(parts) do
    if sets[axis] then
      any = true
      for _, name in ipairs(part.biases) do s.biases[name] = true end
    end
  end
  if not any then fail "esp.prune: compensate gives back what neurons or heads added on average, and none are cut" end
  s = shapes.normal(s)
  local ok = pcall(configs.to_config, s, model.config, "f32")
  if not ok then
    fail("esp.prune: compensate needs an output bias, and a %s has none; retrain instead, or save as an architecture that has one",
      model.config and model.config.model_type or "model of this shape")
  end
  return s
end

-- Mean over all tokens of each channel of a site, 0 at the channels that stay: f32 [1,n].
local function lost(stats, l, part, kept, width)
  local sums = stats.sums[l + 1][part.site]
  if not sums then fail("esp.prune: compensate: the statistics have no '%s' of layer %d", part.site, l) end
  local n, p, tokens = sums.shape[3], sums:data(), stats:total "tokens"
  local mean = tensor.new { 1, n }
  local m = mean:data()
  for i = 0, n - 1 do m[i] = (p[6 * n + i] + p[14 * n + i]) / tokens end
  for _, unit in ipairs(kept) do for i = unit * width, (unit + 1) * width - 1 do m[i] = 0 end end
  return mean
end

--- Puts output biases into the cut weights of shape `new` and returns the shape with them: those that the source had stay, the others are 0; readers
-- of cut channels get what is lost. model: the source; sets, kept_layers: as esp.prune has them.
function M.apply(weights, new, model, stats, sets, kept_layers)
  if not (stats and stats.sums) then
    fail "esp.prune: compensate needs the statistics that hold what the channels are on average; the second argument has none (a replay neither)"
  end
  local from, s, shape = model:parameters(), model.shape, biased(new, model, sets)
  tape.no_grad(scope.outside, function()
    for _, t in ipairs(shapes.tensors(shape)) do weights[t.name] = weights[t.name] or tensor.zeros(t.shape) end
  end)
  for i, l in ipairs(kept_layers) do
    for axis, part in pairs(parts) do
      local kept, bias = sets[axis] and sets[axis][l + 1], weights[string.format("model.layers.%d.%s.bias", i - 1, part.reader)]
      if kept and bias then
        tape.no_grad(scope.run, function()
          local w = tensor.to(from[string.format("model.layers.%d.%s.weight", l, part.reader)], "f32")
          local back = ops.linear(lost(stats, l, part, kept, part.width(s)), w):view(-1)
          if sets.hidden then back = tensor.index_select(back, 0, sets.hidden) end
          bias:copy_from(ops.add(tensor.to(bias, "f32"), back))
        end)
      end
    end
  end
  return shape
end

return M
