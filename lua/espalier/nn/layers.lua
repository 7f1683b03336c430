--- The leaves: Linear, RMSNorm, LayerNorm, Embedding.
--
-- Each takes its sizes by name and either `weight` (and `bias`) or `seed`, `stream` and `std` for fresh ones.

local Module = require "espalier.nn.module"
local ops = require "espalier.ops"
local tensor = require "espalier.tensor"
local lazy = require "espalier.tensor.lazy"
local fail = require "espalier.fail"

local layers = {}

local function size(opt, class, name)
  local n = opt[name]
  if type(n) ~= "number" or n < 1 or n ~= math.floor(n) then
    fail("nn.%s: '%s' is %s, want a whole number from 1", class, name, tostring(n))
  end
  return n
end

local Linear = Module.class("Linear", { "weight", "bias" })

--- y = x weight^T + bias: nn.Linear{ inputs =, outputs = [, bias = true or a tensor] }; weight [outputs, inputs], bias [outputs] (a fresh one is 0).
-- Its products are f32 unless :products_in says otherwise.
function layers.Linear(opt)
  local inputs, outputs = size(opt, "Linear", "inputs"), size(opt, "Linear", "outputs")
  local bias = opt.bias
  if bias == true then bias = tensor.zeros { outputs } end
  return setmetatable({ inputs = inputs, outputs = outputs, weight = Module.weight(opt, { outputs, inputs }), bias = bias or nil }, Linear)
end

-- dtype: of the result (f32).
function Linear:forward(x, dtype)
  return ops.linear(x, self.weight, self.bias, self.precision, dtype)
end

--- The linear layers of a part: a function linear(name, inputs, outputs, i, bias) that takes weights[name] and weights[name .. ".bias"] of opt where
-- they are, else fresh ones of its stream.
function layers.linears(opt)
  local given = opt.weights or {}
  return function(name, inputs, outputs, i, bias)
    return layers.Linear { inputs = inputs, outputs = outputs, weight = given[name], bias = bias and (given[name .. ".bias"] or true),
      seed = opt.seed, stream = (opt.stream or 0) + i, std = opt.std }
  end
end

local RMSNorm = Module.class("RMSNorm", { "weight" })

--- y = x / sqrt(mean(x^2) + eps) * (weight + offset) (1910.07467): nn.RMSNorm{ size =, eps = 1e-5, offset = 0 }; fresh, weight + offset is 1.
function layers.RMSNorm(opt)
  local n, offset = size(opt, "RMSNorm", "size"), opt.offset or 0
  return setmetatable({ size = n, eps = opt.eps or 1e-5, offset = offset, weight = opt.weight or tensor.full({ n }, 1 - offset) }, RMSNorm)
end

function RMSNorm:forward(x, dtype)
  return ops.rmsnorm(x, self.weight, self.eps, self.offset, dtype)
end

local LayerNorm = Module.class("LayerNorm", { "weight", "bias" })

--- y = (x - mean) / sqrt(variance + eps) * (weight + offset) + bias (1607.06450): nn.LayerNorm{ size =, eps = 1e-5, offset = 0 }; fresh,
-- weight + offset is 1 and bias 0.
function layers.LayerNorm(opt)
  local n, offset = size(opt, "LayerNorm", "size"), opt.offset or 0
  return setmetatable({ size = n, eps = opt.eps or 1e-5, offset = offset, weight = opt.weight or tensor.full({ n }, 1 - offset),
    bias = opt.bias or tensor.zeros { n } }, LayerNorm)
end

function LayerNorm:forward(x, dtype)
  return ops.layernorm(x, self.weight, self.bias, self.eps, self.offset, dtype)
end

local norms = { rms = { "RMSNorm", 0 }, rms1p = { "RMSNorm", 1 }, layernorm = { "LayerNorm", 0 }, layernorm1p = { "LayerNorm", 1 } }

--- The norm of a kind ("rms", "rms1p", "layernorm", "layernorm1p"; nil: "rms") with weights[name] and weights[name .. ".bias"] of opt.weights.
function layers.norm(kind, name, n, opt)
  local given, class = opt.weights or {}, norms[kind or "rms"] or fail("nn: norm is '%s', want rms, rms1p, layernorm or layernorm1p", tostring(kind))
  return layers[class[1]] { size = n, eps = opt.norm_eps, offset = class[2], weight = given[name], bias = given[name .. ".bias"] }
end

local Embedding = Module.class("Embedding", { "weight" })

--- Rows of weight [vocab, size] at ids, times scale: nn.Embedding{ vocab =, size =, scale = 1 }.
function layers.Embedding(opt)
  local vocab, n = size(opt, "Embedding", "vocab"), size(opt, "Embedding", "size")
  return setmetatable({ vocab = vocab, size = n, scale = opt.scale or 1, weight = Module.weight(opt, { vocab, n }) }, Embedding)
end

-- Rows of weight at ids; of a table that was not read yet only those are.
local function table_rows(weight, ids)
  if not lazy.is(weight) or weight.requires_grad then return ops.embedding(weight, ids) end
  local count, shape = ids:count(), { unpack(ids.shape) }
  local list, vocab = tensor.view(tensor.contiguous(ids), { count }), weight.shape[1]
  local p = list:data()
  for i = 0, count - 1 do
    if p[i] < 0 or p[i] >= vocab then fail("embedding: id %d at place %d, want 0 to %d (the vocabulary)", p[i], i, vocab - 1) end
  end
  shape[#shape + 1] = weight.shape[2]
  return tensor.view(lazy.load(lazy.take(weight, list), "f32"), shape)
end

function Embedding:forward(ids)
  local x = table_rows(self.weight, ids)
  return self.scale == 1 and x or x * self.scale
end

return layers
