--- The gated feed-forward part of a block (2002.05202): down(silu(gate(x)) * up(x)).

local Module = require "espalier.nn.module"
local layers = require "espalier.nn.layers"
local ops = require "espalier.ops"

local GatedMLP = Module.class("GatedMLP", {}, { "gate_proj", "up_proj", "down_proj" })

--- nn.GatedMLP{ hidden =, ffn = [, weights = { gate_proj = tensor, .. }] }.
local function new(opt)
  local given, stream = opt.weights or {}, opt.stream or 0
  local function linear(name, inputs, outputs, i)
    return layers.Linear { inputs = inputs, outputs = outputs, weight = given[name], seed = opt.seed, stream = stream + i, std = opt.std }
  end
  return setmetatable({
    gate_proj = linear("gate_proj", opt.hidden, opt.ffn, 0), up_proj = linear("up_proj", opt.hidden, opt.ffn, 1),
    down_proj = linear("down_proj", opt.ffn, opt.hidden, 2),
  }, GatedMLP)
end

--- x [B,T,hidden] -> [B,T,hidden]. c.observe (or nil) is called with what leaves gate_proj ("pre") and what enters down_proj ("ffn").
function GatedMLP:forward(x, c)
  local see, gate = c and c.observe, self.gate_proj(x)
  local y = ops.silu_gate(gate, self.up_proj(x))
  if see then
    see("pre", c.layer, gate)
    see("ffn", c.layer, y)
  end
  return self.down_proj(y)
end

return { GatedMLP = new }
