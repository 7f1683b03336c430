--- How fast attention is: GFLOP/s of forward and backward at the shapes of the bench and over a cache, f32 and bf16.
--
--   build/espalier tests/bench/attention.lua [repeat=5]
--
-- Causal products are counted as half of the square; decoding is told as bytes of keys and values read a second, beside a plain sum over as many.

local esp = require "espalier"
local tensor = require "espalier.tensor"
local core = require "espalier.ffi"
local median = require "median"
local c, C = core.ops, core.C

local opt = esp.options(..., { ["repeat"] = { "int", default = 5 }, only = { "string", default = "" } })

-- { name, batch, positions, heads, kv heads, channels, keys }
local shapes = {
  { "15m", 16, 256, 6, 6, 48 }, { "110m", 4, 1024, 12, 12, 64 }, { "110m, one row", 1, 1024, 12, 12, 64 }, { "grouped", 1, 1024, 32, 8, 128 },
  { "few heads", 1, 2048, 2, 2, 64 },
}
local caches = { { "110m", 12, 12, 64, 1024 }, { "110m", 12, 12, 64, 8192 }, { "grouped", 32, 8, 128, 8192 } }

-- The median of the seconds of opt.repeat calls, after one that warms up.
local function seconds(fn)
  local times = {}
  for i = 0, opt["repeat"] do
    local start = C.esp_clock()
    fn()
    if i > 0 then times[i] = C.esp_clock() - start end
  end
  return (median(times))
end

local function normal(dtype, seed, ...)
  return tensor.normal({ ... }, { seed = seed }):to(dtype)
end

local function train(s, dtype)
  local name, B, T, H, G, D = unpack(s)
  local q, k, v = normal(dtype, 1, B, T, H, D), normal(dtype, 2, B, T, G, D), normal(dtype, 3, B, T, G, D)
  local dout, o, lse = normal(dtype, 4, B, T, H, D), tensor.new({ B, T, H, D }, dtype), tensor.new { B, H, T }
  local dq, dk, dv = tensor.new(q.shape, dtype), tensor.new(k.shape, dtype), tensor.new(k.shape, dtype)
  local flops = 2 * B * H * T * T * D
  local forward = seconds(function() c.attention(o.c, lse.c, q.c, k.c, v.c, nil, D ^ -0.5, 0) end)
  local backward = seconds(function() c.attention_backward(dq.c, dk.c, dv.c, dout.c, q.c, k.c, v.c, o.c, lse.c, nil, D ^ -0.5, 0) end)
  print(string.format("%-16s %-5s forward %7.1f GFLOP/s   backward %7.1f GFLOP/s   %6.2f + %6.2f ms", name, dtype, flops / forward / 1e9,
    2.5 * flops / backward / 1e9, forward * 1e3, backward * 1e3))
end

local function decode(s, dtype)
  local name, H, G, D, S = unpack(s)
  local q, k, v = normal(dtype, 1, 1, 1, H, D), normal(dtype, 2, 1, S, G, D), normal(dtype, 3, 1, S, G, D)
  local o = tensor.new(q.shape, dtype)
  -- Many layers' caches, as in a model: none is still in the cache when its turn comes again.
  local layers = math.ceil(2 ^ 28 / (k:count() * 8))
  local ks, vs = {}, {}
  for l = 1, layers do ks[l], vs[l] = k:clone(), v:clone() end
  local spent = seconds(function() for l = 1, layers do c.attention(o.c, nil, q.c, ks[l].c, vs[l].c, nil, D ^ -0.5, 0) end end)
  local bytes = layers * 2 * k:count() * (dtype == "f32" and 4 or 2)
  local n = 2 ^ 24
  local y, x = tensor.zeros { n }, tensor.full({ n }, 1)
  local copy = seconds(function() c.scaled_acc(y.c, x.c, 1) end)
  print(string.format("%-16s %-5s one query, %5d keys: %6.1f GB/s (y += x: %.1f), %.0f us a layer", name, dtype, S, bytes / spent / 1e9,
    12 * n / copy / 1e9, spent / layers * 1e6))
end

for _, dtype in ipairs { "f32", "bf16" } do
  for _, s in ipairs(shapes) do if s[1]:find(opt.only, 1, true) then pcall(esp.scope, train, s, dtype) end end
  for _, s in ipairs(caches) do if ("decode " .. s[1]):find(opt.only, 1, true) then pcall(esp.scope, decode, s, dtype) end end
end
