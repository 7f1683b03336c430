--- The feed-forward part of a block: down(f(gate(x)) * up(x)) (2002.05202), or without a gate down(f(up(x))).

local Module = require "espalier.nn.module"
local layers = require "espalier.nn.layers"
local ops = require "espalier.ops"
local tape = require "espalier.tape"
local product = require "espalier.product"

local MLP = Module.class("MLP", {}, { "gate_proj", "up_proj", "down_proj" })

--- nn.MLP{ hidden =, ffn =, activation = "silu", gated = true, bias = false [, weights = { gate_proj = tensor, ["gate_proj.bias"] = .. }] }.
local function new(opt)
  local linear = layers.linears(opt)
  return setmetatable({
    activation = opt.activation or "silu", gate_proj = opt.gated ~= false and linear("gate_proj", opt.hidden, opt.ffn, 0, opt.bias) or nil,
    up_proj = linear("up_proj", opt.hidden, opt.ffn, 1, opt.bias), down_proj = linear("down_proj", opt.ffn, opt.hidden, 2, opt.bias),
  }, MLP)
end

--- The dtype that its input is best made in.
function MLP:reads()
  return product.stored(self.up_proj.precision)
end

--- x [B,T,hidden] -> [B,T,hidden]. c.observe (or nil) is called with what the activation reads ("pre") and what enters down_proj ("ffn").
function MLP:forward(x, c)
  local see, dtype = c and c.observe, self:reads()
  local up = self.up_proj(x, dtype)
  local read = self.gate_proj and self.gate_proj(x, dtype) or up
  local y = ops.gate(read, self.gate_proj and up, self.activation)
  if see then
    see("pre", c.layer, read)
    see("ffn", c.layer, y)
  end
  local out = self.down_proj(y)
  tape.forget(y)
  return out
end

return { MLP = new }
