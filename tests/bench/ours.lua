--- One measurement of ours in a process of its own: one JSON line. The bench (run.lua) starts it beside PyTorch's.
--
--   build/espalier tests/bench/ours.lua work=kd shape=15m precision=bf16 steps=3
--
-- The work is that of torch_kd.py: random weights and ids, vocabulary 32,000, tied embeddings, batches of 4,096 tokens. kd: teacher forward,
-- student forward and backward with KL over the whole vocabulary, clipping, AdamW, the student trained in place; the teacher is kept in the
-- precision as one that was opened is (its products round its weights in any case). calibrate: importance.measure with all that it collects. eval:
-- NLL of every next token. decode: greedy, batch 1, with the cache, in turns with what the memory gives: the sum of x over 256 MiB (`read`), as
-- decoding only reads, and y += x over twice as much (`update`). peak: a large matrix product alone, whose FLOP/s bound all the others. views:
-- forward, and forward and backward, through a slice of a sorted teacher, of the student's hidden and ffn, and through the same model materialized,
-- in turns. Two steps warm up; memory is the peak of the process less what it held before the models were made.

local esp = require "espalier"
local C = esp.ffi.C
local median = require "median"

local opt = esp.options(..., {
  work = { "string", default = "kd", one_of = { "kd", "calibrate", "eval", "decode", "peak", "views" } },
  shape = { "string", default = "15m", one_of = { "15m", "110m" } },
  precision = { "string", default = "bf16", one_of = { "f32", "bf16" } },
  steps = { "int", default = 5, help = "measured steps" }, profile = { "bool", default = false, help = "print a profile of kd instead" },
})

local sizes = {
  ["15m"] = { teacher = { 288, 768, 6, 6, 48 }, student = { 192, 512, 6, 6, 48 }, batch = 16, seq = 256 },
  ["110m"] = { teacher = { 768, 2048, 12, 12, 64 }, student = { 576, 1536, 12, 12, 64 }, batch = 4, seq = 1024 },
}
local size, vocab = sizes[opt.shape], 32000
local before = tonumber(C.esp_rss())

local function model(d, seed)
  return esp.models.new({ hidden = d[1], ffn = d[2], layers = d[3], heads = d[4], kv_heads = d[4], head_dim = d[5], vocab = vocab,
    context = size.seq, norm_eps = 1e-6, rope = { theta = 10000 }, tied = true }, { seed = seed })
end

local function ids()
  local rows = {}
  for r = 1, size.batch do
    rows[r] = {}
    for i = 1, size.seq do rows[r][i] = (r * 7919 + i * 104729 + r * i * 31) % vocab end
  end
  return rows
end

-- Seconds of each of opt.steps calls, or what they return, after two that warm up.
local function timed(step)
  local times = {}
  for i = 1, opt.steps + 2 do
    local start = C.esp_clock()
    local own = step()
    times[i - 2] = own or C.esp_clock() - start
  end
  return times
end

-- Floating-point operations of a token forward: products of layers, causal attention, and the head where that is asked for.
local function operations(d, head)
  local hidden, ffn, layers, heads, dim = unpack(d)
  local layer = 2 * hidden * (4 * heads * dim + 3 * ffn) + 2 * size.seq * heads * dim
  return layers * layer + (head and 2 * hidden * vocab or 0)
end

local work = {}

-- Seconds by step, tokens of a step, and further fields of the line.
function work.kd()
  local teacher, student = model(size.teacher, 1):clone { dtype = opt.precision }, model(size.student, 2)
  local run = esp.distill { teacher = teacher, student = student, in_place = true, data = esp.data.of(ids()), batch = size.batch,
    precision = opt.precision, steps = opt.steps + 2, quiet = true, schedule = esp.schedule.cosine { peak = 1e-4, min = 1e-5, warmup = 1 } }
  local times, planned = {}, 0
  for i = 3, opt.steps + 2 do times[#times + 1] = run.steps[i].seconds - run.steps[i - 1].seconds end
  local held = { batch = size.batch, length = size.seq, precision = opt.precision, given = 0,
    teacher = opt.precision == "bf16" and 2 * esp.plan(teacher).before.parameters or nil }
  for _, bytes in pairs(require("espalier.plan").distillation(teacher.shape, student.shape, held)) do
    planned = planned + bytes
  end
  return times, size.batch * size.seq, { planned_mb = planned / 1e6, live_mb = tonumber(C.esp_memory_peak()) / 1e6,
    operations = operations(size.teacher, true) + 3 * operations(size.student, true) }
end

function work.calibrate()
  local m, rows = model(size.teacher, 1):in_precision(opt.precision), ids()
  return timed(function() esp.importance.measure(m, rows, { quiet = true }) end), size.batch * size.seq, { operations = operations(size.teacher) }
end

function work.eval()
  local m, rows = model(size.teacher, 1):in_precision(opt.precision), ids()
  return timed(function() m:loss(rows) end), size.batch * size.seq, { operations = operations(size.teacher, true) }
end

function work.decode()
  local m = model(size.teacher, 1)
  if opt.precision == "bf16" then m = m:clone { dtype = "bf16" } end
  local bytes, tokens, generate = 0, 32, require("espalier.models.generate").ids
  for _, w in pairs(m:parameters()) do bytes = bytes + w:count() * (opt.precision == "bf16" and 2 or 4) end
  local n = 2 ^ 26
  local y, x, total = esp.tensor.zeros { n }, esp.tensor.full({ n }, 1), esp.tensor.zeros({}, "f64")
  local function rate(moved, fn)
    local start = C.esp_clock()
    fn()
    return moved / (C.esp_clock() - start)
  end
  local of_read, of_update, reads, updates = {}, {}, {}, {}
  local times = timed(function()
    local own = rate(tokens * bytes, function() generate(m, { 1 }, { tokens = tokens, temperature = 0 }) end)
    local read = rate(4 * n, function() esp.ffi.ops.total_acc(total.c, x.c) end)
    local update = rate(12 * n, function() esp.ffi.ops.scaled_acc(y.c, x.c, 1) end)
    reads[#reads + 1], updates[#updates + 1], of_read[#of_read + 1], of_update[#of_update + 1] = read, update, own / read, own / update
    return tokens * bytes / own
  end)
  return times, tokens, { bytes = bytes, read = (median(reads)), update = (median(updates)), of_read = (median(of_read)),
    of_update = (median(of_update)) }
end

-- The line counts floating-point operations where others count tokens.
function work.peak()
  local product = require("espalier.product").of(opt.precision)
  local N, I, O = 1024, 1024, 2048
  local x, w, y = esp.tensor.normal({ N, I }, { seed = 1 }), esp.tensor.normal({ O, I }, { seed = 2 }), esp.tensor.new { N, O }
  if opt.precision == "bf16" then x = x:to "bf16" end
  local packed = product.pack(w)
  return timed(function() for _ = 1, 10 do product.forward(y, x, packed) end end), 10 * 2 * N * I * O
end

function work.views()
  local teacher, rows = model(size.teacher, 1), ids()
  local stats = esp.importance.measure(teacher, { rows[1] }, { quiet = true })
  local slice = esp.slice(esp.sort(teacher, stats):in_precision(opt.precision), { hidden = size.student[1], ffn = size.student[2] })
  local dense, batch = slice:materialize(), esp.tensor.of(rows, { dtype = "i32" })
  local both = { slice, dense }
  for _, m in ipairs(both) do for _, p in pairs(m:parameters()) do p:requires_grad_() end end
  -- The decoder itself: slices keep streams of layers that they share. Forward alone, or the gradients of all weights too.
  local function seconds(m, backward)
    local start = C.esp_clock()
    if backward then esp.scope(function() m.decoder:forward(batch):sum():backward() end)
    else esp.no_grad(esp.scope, function() m.decoder:forward(batch) end) end
    return C.esp_clock() - start
  end
  local ratios = { {}, {} }
  local times = timed(function()
    local own
    for i, backward in ipairs { false, true } do
      local time = seconds(slice, backward)
      ratios[i][#ratios[i] + 1] = seconds(dense, backward) / time
      own = own or time
    end
    return own
  end)
  return times, size.batch * size.seq, { of_dense = (median(ratios[1])), of_dense_with_backward = (median(ratios[2])) }
end

if opt.profile then
  print(esp.profile(work.kd))
else
  local times, tokens, more = work[opt.work]()
  local line = more or {}
  local middle, least = median(times)
  line.tokens_per_s, line.best = tokens / middle, tokens / least
  line.peak_mb = (tonumber(C.esp_rss_peak()) - before) / 1e6
  print(esp.io.json.encode(line))
end
