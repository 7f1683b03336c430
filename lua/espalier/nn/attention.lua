--- Causal attention with grouped queries and rotary positions.

local Module = require "espalier.nn.module"
local layers = require "espalier.nn.layers"
local ops = require "espalier.ops"
local fail = require "espalier.fail"

local Attention = Module.class("Attention", {}, { "q_proj", "k_proj", "v_proj", "o_proj" })

--- nn.Attention{ hidden =, heads =, kv_heads = heads, head_dim = hidden / heads [, weights = { q_proj = tensor, .. }] }.
-- Head h reads key/value head floor(h / (heads / kv_heads)).
local function new(opt)
  local heads = opt.heads
  local kv_heads, head_dim = opt.kv_heads or heads, opt.head_dim or opt.hidden / heads
  if heads % kv_heads ~= 0 then fail("nn.Attention: %d heads do not divide among %d kv_heads", heads, kv_heads) end
  if head_dim % 2 ~= 0 then fail("nn.Attention: head_dim is %s, want an even number (channels turn in pairs)", tostring(head_dim)) end
  local given, stream = opt.weights or {}, opt.stream or 0
  local function linear(name, inputs, outputs, i)
    return layers.Linear { inputs = inputs, outputs = outputs, weight = given[name], seed = opt.seed, stream = stream + i, std = opt.std }
  end
  return setmetatable({
    heads = heads, kv_heads = kv_heads, head_dim = head_dim, scale = opt.scale or head_dim ^ -0.5,
    q_proj = linear("q_proj", opt.hidden, heads * head_dim, 0), k_proj = linear("k_proj", opt.hidden, kv_heads * head_dim, 1),
    v_proj = linear("v_proj", opt.hidden, kv_heads * head_dim, 2), o_proj = linear("o_proj", heads * head_dim, opt.hidden, 3),
  }, Attention)
end

--- x [B,T,hidden] -> [B,T,hidden]. c: cos, sin (rows of these positions), first (i32 [B,T] or nil), cache (of this layer, or nil),
-- observe (or nil): called with queries and keys as they meet ("q", "k": [B,T,H,D]) and what enters o_proj ("attention").
function Attention:forward(x, c)
  local B, T = x.shape[1], x.shape[2]
  local q = ops.rope(self.q_proj(x):view(B, T, self.heads, self.head_dim), c.cos, c.sin)
  local k = ops.rope(self.k_proj(x):view(B, T, self.kv_heads, self.head_dim), c.cos, c.sin)
  local v = self.v_proj(x):view(B, T, self.kv_heads, self.head_dim)
  local see = c.observe
  if see then
    see("q", c.layer, q)
    see("k", c.layer, k)
  end
  if c.cache then k, v = c.cache:extend(k, v) end
  local o = ops.attention(q, k, v, { first = c.first, scale = self.scale }):view(B, T, self.heads * self.head_dim)
  if see then see("attention", c.layer, o) end
  return self.o_proj(o)
end

return { Attention = new }
