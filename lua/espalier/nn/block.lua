--- One layer of a decoder: x + attention(norm(x)), then x + mlp(norm(x)); the norms stand before the parts, after them, or both. A part of size 0
-- is not there, nor are its norms.

local Module = require "espalier.nn.module"
local layers = require "espalier.nn.layers"
local attention = require "espalier.nn.attention"
local mlp = require "espalier.nn.mlp"
local shapes = require "espalier.models.shape"
local tape = require "espalier.tape"

local Block = Module.class("Block", {}, { "input_layernorm", "self_attn", "post_attention_layernorm", "pre_feedforward_layernorm", "mlp",
  "post_feedforward_layernorm" })

-- The weights below a prefix.
local function below(given, prefix)
  local own = {}
  for name, t in pairs(given or {}) do
    local rest = name:match("^" .. prefix .. "%.(.*)$")
    if rest then own[rest] = t end
  end
  return own
end

--- nn.Block{ hidden =, ffn =, heads =, kv_heads =, head_dim =, norm_eps = [, weights = { ["self_attn.q_proj"] = tensor, .. }] }, and the options
-- of a shape (models/shape.lua): norm, norms, qk_norm, activation, gated, biases, rotary, query_scalar, attention_cap.
local function new(opt)
  local stream, biases = opt.stream or 0, opt.biases or {}
  local names = shapes.norms[opt.norms or "pre"]
  local block = { names = names }
  local function norms(...)
    for _, place in ipairs { ... } do
      local name = names[place]
      if name then block[name] = layers.norm(opt.norm, name, opt.hidden, opt) end
    end
  end
  if opt.heads > 0 then
    norms("before_attention", "after_attention")
    block.self_attn = attention.Attention { hidden = opt.hidden, heads = opt.heads, kv_heads = opt.kv_heads, head_dim = opt.head_dim,
      bias = biases.qkv, output_bias = biases.output, qk_norm = opt.qk_norm, norm = opt.norm, norm_eps = opt.norm_eps, rotary = opt.rotary,
      scale = opt.query_scalar and opt.query_scalar ^ -0.5, cap = opt.attention_cap, weights = below(opt.weights, "self_attn"), seed = opt.seed,
      stream = stream, std = opt.std }
  end
  if opt.ffn > 0 then
    norms("before_mlp", "after_mlp")
    block.mlp = mlp.MLP { hidden = opt.hidden, ffn = opt.ffn, activation = opt.activation, gated = opt.gated, bias = biases.mlp,
      weights = below(opt.weights, "mlp"), seed = opt.seed, stream = stream + 4, std = opt.std }
  end
  return setmetatable(block, Block)
end

-- x and what a part adds to it, between the norms before and after it. sites: "norm1", "attention_out" or those of the MLP.
function Block:plus(x, part, before, after, sites, c)
  local see, first, last = c.observe, self[before], self[after]
  local h = first and first(x, part:reads()) or x
  -- Without a norm before it a part reads the stream itself; what watches it sees a tensor, and so a gradient, of its own.
  if see and not first then h = x:view(x.shape) end
  if see then see(sites[1], c.layer, h) end
  local y = part(h, c)
  if last then y = last(y) end
  if see then see(sites[2], c.layer, y) end
  local sum = x + y
  if first then tape.forget(h) end
  tape.forget(y)
  return sum
end

local attention_sites, mlp_sites = { "norm1", "attention_out" }, { "norm2", "mlp_out" }

--- x [B,T,hidden] -> the same shape. c: as for Attention; c.skip: nil, "attention" or "mlp" is left out.
function Block:forward(x, c)
  c = c or {}
  local see, names = c.observe, self.names
  if see then see("in", c.layer, x) end
  if self.self_attn and c.skip ~= "attention" then
    x = self:plus(x, self.self_attn, names.before_attention, names.after_attention, attention_sites, c)
  end
  if see then see("mid", c.layer, x) end
  if self.mlp and c.skip ~= "mlp" then x = self:plus(x, self.mlp, names.before_mlp, names.after_mlp, mlp_sites, c) end
  if see then see("out", c.layer, x) end
  return x
end

return { Block = new }
