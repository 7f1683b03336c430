--- Causal attention with grouped queries and rotary positions.

local Module = require "espalier.nn.module"
local layers = require "espalier.nn.layers"
local ops = require "espalier.ops"
local tape = require "espalier.tape"
local product = require "espalier.product"
local fail = require "espalier.fail"

local Attention = Module.class("Attention", {}, { "q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm" })

--- nn.Attention{ hidden =, heads =, kv_heads = heads, head_dim = hidden / heads [, weights = { q_proj = tensor, ["q_proj.bias"] = .. }] }.
-- Head h reads key/value head floor(h / (heads / kv_heads)). Options: bias, output_bias; qk_norm = "head" or "whole" (with norm, norm_eps);
-- rotary = false: positions do not turn; scale (head_dim^-0.5); cap: scores become cap tanh(score / cap).
local function new(opt)
  local heads = opt.heads
  local kv_heads, head_dim = opt.kv_heads or heads, opt.head_dim or opt.hidden / heads
  if heads % kv_heads ~= 0 then fail("nn.Attention: %d heads do not divide among %d kv_heads", heads, kv_heads) end
  if head_dim % 2 ~= 0 then fail("nn.Attention: head_dim is %s, want an even number (channels turn in pairs)", tostring(head_dim)) end
  local linear = layers.linears(opt)
  local attention = {
    heads = heads, kv_heads = kv_heads, head_dim = head_dim, scale = opt.scale or head_dim ^ -0.5, cap = opt.cap, rotary = opt.rotary ~= false,
    qk_norm = opt.qk_norm, q_proj = linear("q_proj", opt.hidden, heads * head_dim, 0, opt.bias),
    k_proj = linear("k_proj", opt.hidden, kv_heads * head_dim, 1, opt.bias), v_proj = linear("v_proj", opt.hidden, kv_heads * head_dim, 2, opt.bias),
    o_proj = linear("o_proj", heads * head_dim, opt.hidden, 3, opt.output_bias),
  }
  if opt.qk_norm then
    local whole = opt.qk_norm == "whole"
    attention.q_norm = layers.norm(opt.norm, "q_norm", whole and heads * head_dim or head_dim, opt)
    attention.k_norm = layers.norm(opt.norm, "k_norm", whole and kv_heads * head_dim or head_dim, opt)
  end
  return setmetatable(attention, Attention)
end

-- Queries or keys as they meet: x [B,T,n*D] normed, by heads, turned.
function Attention:prepare(x, norm, n, c)
  local B, T = x.shape[1], x.shape[2]
  if self.qk_norm == "whole" then x = norm(x, x.dtype) end
  x = x:view(B, T, n, self.head_dim)
  if self.qk_norm == "head" then x = norm(x, x.dtype) end
  if not self.rotary then return x end
  local turned = ops.rope(x, c.cos, c.sin)
  tape.forget(x)
  return turned
end

--- The dtype that its input is best made in.
function Attention:reads()
  return product.stored(self.q_proj.precision)
end

--- x [B,T,hidden] -> [B,T,hidden]. c: cos, sin (rows of these positions), first (i32 [B,T] or nil), cache (of this layer, or nil),
-- observe (or nil): called with queries and keys as they meet ("q", "k": [B,T,H,D]) and what enters o_proj ("attention").
function Attention:forward(x, c)
  local B, T = x.shape[1], x.shape[2]
  local dtype = self:reads()
  local q = self:prepare(self.q_proj(x, dtype), self.q_norm, self.heads, c)
  local k = self:prepare(self.k_proj(x, dtype), self.k_norm, self.kv_heads, c)
  local v = self.v_proj(x, dtype):view(B, T, self.kv_heads, self.head_dim)
  local see = c.observe
  if see then
    see("q", c.layer, q)
    see("k", c.layer, k)
  end
  if c.cache then k, v = c.cache:extend(k, v) end
  local o = ops.attention(q, k, v, { first = c.first, scale = self.scale, cap = self.cap }):view(B, T, self.heads * self.head_dim)
  if see then see("attention", c.layer, o) end
  return self.o_proj(o)
end

return { Attention = new }
