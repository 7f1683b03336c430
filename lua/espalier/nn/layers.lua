--- The leaves: Linear, RMSNorm, Embedding.
--
-- Each takes its sizes by name and either `weight` or `seed`, `stream` and `std` for a fresh one.

local Module = require "espalier.nn.module"
local ops = require "espalier.ops"
local tensor = require "espalier.tensor"
local fail = require "espalier.fail"

local layers = {}

local function size(opt, class, name)
  local n = opt[name]
  if type(n) ~= "number" or n < 1 or n ~= math.floor(n) then
    fail("nn.%s: '%s' is %s, want a whole number from 1", class, name, tostring(n))
  end
  return n
end

local Linear = Module.class("Linear", { "weight" })

--- y = x weight^T without bias: nn.Linear{ inputs =, outputs = }; weight [outputs, inputs].
function layers.Linear(opt)
  local inputs, outputs = size(opt, "Linear", "inputs"), size(opt, "Linear", "outputs")
  return setmetatable({ inputs = inputs, outputs = outputs, weight = Module.weight(opt, { outputs, inputs }) }, Linear)
end

function Linear:forward(x)
  return ops.linear(x, self.weight)
end

local RMSNorm = Module.class("RMSNorm", { "weight" })

--- y = x / sqrt(mean(x^2) + eps) * weight (1910.07467): nn.RMSNorm{ size =, eps = 1e-5 }; a fresh weight is 1.
function layers.RMSNorm(opt)
  local n = size(opt, "RMSNorm", "size")
  return setmetatable({ size = n, eps = opt.eps or 1e-5, weight = opt.weight or tensor.full({ n }, 1) }, RMSNorm)
end

function RMSNorm:forward(x)
  return ops.rmsnorm(x, self.weight, self.eps)
end

local Embedding = Module.class("Embedding", { "weight" })

--- Rows of weight [vocab, size] at ids: nn.Embedding{ vocab =, size = }.
function layers.Embedding(opt)
  local vocab, n = size(opt, "Embedding", "vocab"), size(opt, "Embedding", "size")
  return setmetatable({ vocab = vocab, size = n, weight = Module.weight(opt, { vocab, n }) }, Embedding)
end

function Embedding:forward(ids)
  return ops.embedding(self.weight, ids)
end

return layers
