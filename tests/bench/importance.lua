--- How long questions of statistics take, and what a pass over calibration data costs.
--
--   build/espalier tests/bench/importance.lua            re-ranking at the shapes of a 110M and a 12B model, random statistics
--   build/espalier tests/bench/importance.lua measure    also a pass of 64 x 1,024 tokens through random weights of the 110M shape; minutes

local esp = require "espalier"
local tensor = require "espalier.tensor"
local statistics = require "espalier.importance.statistics"
local C = esp.ffi.C

local shapes = {
  { "110M", { hidden = 768, ffn = 2048, layers = 12, heads = 12, kv_heads = 12, head_dim = 64, vocab = 32000, context = 1024, norm_eps = 1e-5,
    rope = { theta = 10000 }, tied = true } },
  { "12B", { hidden = 5120, ffn = 14336, layers = 40, heads = 32, kv_heads = 8, head_dim = 128, vocab = 131072, context = 8192, norm_eps = 1e-5,
    rope = { theta = 1000000 }, tied = false } },
}

local function filled(shape, seed)
  local t, u = tensor.new(shape, "f64"), tensor.uniform({ 1024 }, { lo = 0.1, hi = 1, seed = seed })
  local p, q = t:data(), u:data()
  for i = 0, t:count() - 1 do p[i] = q[(i * 7 + math.floor(i / 1024)) % 1024] end
  return t
end

-- Statistics of random numbers as measure with gradients leaves them.
local function random(s)
  local stats = statistics.new(s, { model = "random", grads = true })
  for h = 1, 2 do stats.counts[h] = { rows = 32, tokens = 32 * 1024, predictions = 32 * 1023 } end
  local sizes = { norm1 = s.hidden, norm2 = s.hidden, attention = s.heads * s.head_dim, ffn = s.ffn, pre = s.ffn, act = s.ffn, heads = s.heads,
    q = s.heads * s.head_dim / 2, k = s.kv_heads * s.head_dim / 2, ["heads.added"] = s.heads, ["kv_heads.added"] = s.kv_heads }
  for l = 0, s.layers - 1 do
    for name, n in pairs(sizes) do stats.sums[l + 1][name] = filled({ 2, 8, n }, l) end
    for _, name in ipairs { "norm1", "norm2", "attention", "ffn", "heads" } do
      stats.sums[l + 1][name .. ".taylor"] = filled({ 2, 4, sizes[name] }, l)
    end
    stats.sums[l + 1]["kv_heads.taylor"] = filled({ 2, 4, s.kv_heads }, l)
    for _, name in ipairs { "norm1", "norm2", "attention", "ffn" } do stats.sums[l + 1][name .. ".weights"] = filled({ 4, sizes[name] }, l) end
    for _, name in ipairs { "ffn", "heads", "kv_heads" } do
      stats.sums[l + 1][name .. ".taylor_weight"] = filled({ 1, name == "kv_heads" and s.kv_heads or sizes[name] }, l)
    end
  end
  stats.outer["hidden.taylor_weight"] = filled({ 1, s.hidden }, 1)
  stats.outer.angles, stats.outer.parts = filled({ 2, s.layers, s.layers, 3 }, 1), filled({ 2, s.layers, 2, 3 }, 2)
  return stats
end

local metrics = { "activation", "magnitude", "wanda", "flap", "contribution", "taylor", "taylor_abs", "taylor_second", "fisher", "taylor_weight",
  "random" }

local function rerank(name, s)
  local path = os.tmpname()
  random(s):save(path)
  local start = C.esp_clock()
  local stats = esp.importance.load(path)
  print(string.format("%s: %.1f MB of sums, read in %.0f ms", name, stats:bytes() / 1e6, 1e3 * (C.esp_clock() - start)))
  os.remove(path)
  local sizes = { hidden = math.floor(s.hidden * 0.8), ffn = math.floor(s.ffn * 0.8), heads = s.heads - s.kv_heads, kv_heads = s.kv_heads / 2,
    layers = math.floor(s.layers * 0.8) }
  if s.kv_heads == s.heads then sizes.heads = nil end
  for _, axis in ipairs { "ffn", "hidden", "heads", "kv_heads", "layers" } do
    local worst = { 0 }
    for _, metric in ipairs(axis == "layers" and { "bi", "angular" } or metrics) do
      for _, within in ipairs(axis == "ffn" and { "layer", "network" } or { "layer" }) do
        local ok, ranking = pcall(stats.rank, stats, { [axis] = { metric = metric, within = within } })
        if ok and sizes[axis] then
          local ms = math.huge
          for _ = 1, 3 do
            local at = C.esp_clock()
            ranking:kept { [axis] = sizes[axis] }
            ms = math.min(ms, 1e3 * (C.esp_clock() - at))
          end
          if ms > worst[1] then worst = { ms, metric, within } end
        end
      end
    end
    if worst[2] then print(string.format("  %-9s slowest %6.1f ms (%s, %s; best of three)", axis, worst[1], worst[2], worst[3])) end
  end
end

for _, shape in ipairs(shapes) do rerank(unpack(shape)) end
if ... == "measure" then
  local s = shapes[1][2]
  local model, rows = esp.models.new(s, { seed = 1 }), {}
  for r = 1, 64 do
    rows[r] = {}
    for p = 1, 1024 do rows[r][p] = (r * 7919 + p * p * 31 + p) % s.vocab end
  end
  local ids = tensor.of(rows, { dtype = "i32" })
  local start = C.esp_clock()
  esp.no_grad(function() for r = 0, 15 do esp.scope(model.forward, model, ids:narrow(0, 4 * r, 4):contiguous()) end end)
  local forward = C.esp_clock() - start
  local path = os.tmpname()
  start = C.esp_clock()
  local stats = esp.importance.measure(model, ids)
  print(string.format("one pass: %.1f s, %.2f times a forward pass alone", C.esp_clock() - start, (C.esp_clock() - start) / forward))
  stats:save(path)
  local f = assert(io.open(path))
  print(string.format("file: %.1f MB", f:seek "end" / 1e6))
  f:close()
  os.remove(path)
end
