--- How a distillation step scales: seconds a token against tokens in a row, rows, layers and vocabulary, with the exponents that fit; and memory
-- against the vocabulary, with and without what belongs to the two heads.
--
--   build/espalier tests/bench/scaling.lua [precision=bf16]
--
-- One axis moves at a time; every cell is a process of its own, as memory is the peak of a process.

local esp = require "espalier"
local file, json, process = esp.io.file, esp.io.json, esp.io.process
local C = esp.ffi.C

local opt = esp.options(..., {
  precision = { "string", default = "bf16", one_of = { "f32", "bf16" } }, cell = { "bool", default = false, help = "measure one cell" },
  seq = { "int", default = 512 }, batch = { "int", default = 4 }, layers = { "int", default = 4 }, vocab = { "int", default = 4096 },
})

local function shape(hidden)
  return { hidden = hidden, ffn = hidden * 8 / 3, layers = opt.layers, heads = hidden / 32, kv_heads = hidden / 32, head_dim = 32, vocab = opt.vocab,
    context = opt.seq, norm_eps = 1e-6, rope = { theta = 10000 }, tied = true }
end

-- Seconds a token of the quickest of three steps after one that warms up, live bytes at the peak, and those that vocabulary-sized weights hold: the
-- teacher's head, the student's as given, its copy, gradient and moments, and in bf16 the packed ones.
local function cell()
  local teacher, student, rows = shape(192), shape(96), {}
  for r = 1, opt.batch do
    rows[r] = {}
    for i = 1, opt.seq do rows[r][i] = (r * 7919 + i * 104729 + r * i * 31) % opt.vocab end
  end
  local steps = esp.distill { teacher = esp.models.new(teacher, { seed = 1 }), student = esp.models.new(student, { seed = 2 }),
    data = esp.data.of(rows), batch = opt.batch, precision = opt.precision, steps = 4, quiet = true }.steps
  local best = math.huge
  for i = 2, 4 do best = math.min(best, steps[i].seconds - steps[i - 1].seconds) end
  local packed = opt.precision == "bf16" and 2 * (teacher.hidden + 2 * student.hidden) or 0
  return { seconds = best / (opt.batch * opt.seq), bytes = tonumber(C.esp_memory_peak()),
    heads = opt.vocab * (4 * (teacher.hidden + 5 * student.hidden) + packed) }
end

if opt.cell then return print(json.encode(cell())) end

local function measured(axis, value)
  local out = os.tmpname()
  local code = process.start({ file.real "/proc/self/exe", "tests/bench/scaling.lua", "cell=true", "precision=" .. opt.precision,
    axis .. "=" .. value }, out):wait()
  local said = file.read(out)
  file.remove(out)
  if code ~= 0 then error(said, 0) end
  return json.decode(said, axis)
end

-- Slope of the line through (log x, log y).
local function exponent(points)
  local n, sx, sy, sxx, sxy = #points, 0, 0, 0, 0
  for _, p in ipairs(points) do
    local x, y = math.log(p[1]), math.log(p[2])
    sx, sy, sxx, sxy = sx + x, sy + y, sxx + x * x, sxy + x * y
  end
  return (n * sxy - sx * sy) / (n * sxx - sx * sx)
end

print("# " .. esp.ffi.string(C.esp_cpu_name()) .. ", " .. C.esp_threads() .. " threads, " .. opt.precision .. "\n")
print "| axis | value | us a token | live MB | without heads, MB |\n|---|---|---|---|---|"
for _, axis in ipairs { { "seq", { 256, 512, 1024, 2048, 4096, 8192 } }, { "batch", { 1, 2, 4, 8, 16 } }, { "layers", { 2, 4, 8, 16 } },
  { "vocab", { 512, 2048, 8192, 32768, 131072 } } } do
  local points, memory = {}, {}
  for i, value in ipairs(axis[2]) do
    local m = measured(axis[1], value)
    points[i], memory[i] = { value, m.seconds }, { value, m.bytes - m.heads }
    print(string.format("| %s | %d | %.1f | %.1f | %.1f |", axis[1], value, 1e6 * m.seconds, m.bytes / 1e6, (m.bytes - m.heads) / 1e6))
  end
  print(string.format("| %s | exponent | %.2f | | %.2f |", axis[1], exponent(points), exponent(memory)))
end
