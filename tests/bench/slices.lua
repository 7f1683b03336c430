--- How long candidates of a sorted model take at the 110M shape: made, scored on 4,096 held-out tokens afresh, and scored after one that shares its
-- first layers; products in f32 and in bf16, in pairs.
--
--   build/espalier tests/bench/slices.lua [rounds=3]

local esp = require "espalier"
local slices = require "espalier.prune.slice"
local C = esp.ffi.C
local median = require "median"

local opt = esp.options(..., { rounds = { "int", default = 3 } })
local shape = { hidden = 768, ffn = 2048, layers = 12, heads = 12, kv_heads = 12, head_dim = 64, vocab = 32000, context = 1024, norm_eps = 1e-5,
  rope = { theta = 10000 }, tied = true }

local function ids(n, T, seed)
  local list = {}
  for r = 1, n do
    list[r] = {}
    for p = 1, T do list[r][p] = (r * 7919 + p * p * 31 + p * seed) % shape.vocab end
  end
  return esp.tensor.of(list, { dtype = "i32" })
end

local model = esp.models.new(shape, { seed = 1 })
local sorted = esp.sort(model, esp.importance.measure(model, ids(2, 64, 1), { quiet = true }))
local held_out = ids(4, 1024, 3)
local cuts = { { "whole", {} }, { "hidden 576, ffn 1536", { hidden = 576, ffn = 1536 } }, { "ffn 1536, a layer less", { ffn = 1536, drop = { 9 } } } }

local function seconds(fn)
  local start = C.esp_clock()
  fn()
  return C.esp_clock() - start
end

for _, cut in ipairs(cuts) do
  local made = {}
  for i = 1, 200 do made[i] = 1e6 * seconds(function() esp.slice(sorted, cut[2]) end) end
  local times = { f32 = {}, bf16 = {} }
  for _ = 1, opt.rounds do
    for precision, list in pairs(times) do
      local candidate = esp.slice(sorted, cut[2]):in_precision(precision)
      slices.forget(candidate.of)
      list[#list + 1] = seconds(function() candidate:loss(held_out) end)
    end
  end
  local f32, bf16 = median(times.f32), median(times.bf16)
  print(string.format("%-24s made in %.0f us; scored in %.2f s f32, %.2f s bf16 (%.2f times)", cut[1], median(made), f32, bf16, f32 / bf16))
end
for _, precision in ipairs { "f32", "bf16" } do
  local function loss(l) esp.slice(sorted, { drop = { l } }):in_precision(precision):loss(held_out) end
  slices.forget(esp.slice(sorted, {}):in_precision(precision).of)
  loss(11)
  print(string.format("drop of layer 11, then 8, %s: %.2f s", precision, seconds(function() loss(8) end)))
end
