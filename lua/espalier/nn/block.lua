--- One layer of a decoder: x + attention(norm(x)), then x + mlp(norm(x)). A part of size 0 is not there, nor is its norm.

local Module = require "espalier.nn.module"
local layers = require "espalier.nn.layers"
local attention = require "espalier.nn.attention"
local mlp = require "espalier.nn.mlp"

local Block = Module.class("Block", {}, { "input_layernorm", "self_attn", "post_attention_layernorm", "mlp" })

--- nn.Block{ hidden =, ffn =, heads =, kv_heads =, head_dim =, norm_eps = [, weights = { ["self_attn.q_proj"] = tensor, .. }] }.
local function new(opt)
  local given, stream = opt.weights or {}, opt.stream or 0
  local block = {}
  local function part_weights(prefix)
    local own = {}
    for name, t in pairs(given) do
      local rest = name:match("^" .. prefix .. "%.(.*)$")
      if rest then own[rest] = t end
    end
    return own
  end
  local function norm(name)
    return layers.RMSNorm { size = opt.hidden, eps = opt.norm_eps, weight = given[name] }
  end
  if opt.heads > 0 then
    block.input_layernorm = norm "input_layernorm"
    block.self_attn = attention.Attention { hidden = opt.hidden, heads = opt.heads, kv_heads = opt.kv_heads, head_dim = opt.head_dim,
      weights = part_weights "self_attn", seed = opt.seed, stream = stream, std = opt.std }
  end
  if opt.ffn > 0 then
    block.post_attention_layernorm = norm "post_attention_layernorm"
    block.mlp = mlp.GatedMLP { hidden = opt.hidden, ffn = opt.ffn, weights = part_weights "mlp", seed = opt.seed, stream = stream + 4,
      std = opt.std }
  end
  return setmetatable(block, Block)
end

--- x [B,T,hidden] -> the same shape. c: as for Attention; c.skip: nil, "attention" or "mlp" is left out.
function Block:forward(x, c)
  c = c or {}
  local see = c.observe
  if see then see("in", c.layer, x) end
  if self.self_attn and c.skip ~= "attention" then
    local h = self.input_layernorm(x)
    if see then see("norm1", c.layer, h) end
    local y = self.self_attn(h, c)
    if see then see("attention_out", c.layer, y) end
    x = x + y
  end
  if see then see("mid", c.layer, x) end
  if self.mlp and c.skip ~= "mlp" then
    local h = self.post_attention_layernorm(x)
    if see then see("norm2", c.layer, h) end
    local y = self.mlp(h, c)
    if see then see("mlp_out", c.layer, y) end
    x = x + y
  end
  if see then see("out", c.layer, x) end
  return x
end

return { Block = new }
