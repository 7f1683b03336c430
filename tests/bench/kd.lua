--- A distillation step at a real shape: tokens a second and peak memory, beside PyTorch's where that is installed.
--
--   make bench      or      build/espalier tests/bench/kd.lua shape=15m python=python3
--
-- The work is that of torch_kd.py in the folder `torch`: teacher forward, student forward and backward with KL over the whole vocabulary, clipping,
-- AdamW; random weights and ids, tied embeddings. Two steps warm up; the median of the others counts. Memory is the peak of the
-- process less what it held before the models were made.

local esp = require "espalier"
local file = esp.io.file
local C = esp.ffi.C

local opt = esp.options(..., {
  shape = { "string", default = "15m", one_of = { "15m", "110m" }, help = "15m or 110m" },
  precision = { "string", default = "bf16", one_of = { "f32", "bf16" }, help = "of our products" },
  steps = { "int", default = 8, help = "measured steps" },
  python = { "string", default = "python3", help = "a Python that has torch and transformers" },
  torch = { "path", default = "../shared/bench/torch_kd.py", help = "the program to run beside" },
})

local sizes = {
  ["15m"] = { teacher = { 288, 768, 6, 6, 48 }, student = { 192, 512, 6, 6, 48 }, batch = 16, seq = 256 },
  ["110m"] = { teacher = { 768, 2048, 12, 12, 64 }, student = { 576, 1536, 12, 12, 64 }, batch = 4, seq = 1024 },
}
local size, vocab = sizes[opt.shape], 32000

local function model(d, seed)
  return esp.models.new({ hidden = d[1], ffn = d[2], layers = d[3], heads = d[4], kv_heads = d[4], head_dim = d[5], vocab = vocab,
    context = size.seq, norm_eps = 1e-6, rope = { theta = 10000 }, tied = true }, { seed = seed })
end

local function ours()
  local before = tonumber(C.esp_rss())
  local rows = {}
  for r = 1, size.batch do
    rows[r] = {}
    for i = 1, size.seq do rows[r][i] = (r * 7919 + i * 104729 + r * i * 31) % vocab end
  end
  local run = esp.distill { teacher = model(size.teacher, 1), student = model(size.student, 2), data = esp.data.of(rows),
    batch = size.batch, precision = opt.precision, steps = opt.steps + 2, quiet = true,
    schedule = esp.schedule.cosine { peak = 1e-4, min = 1e-5, warmup = 1 } }
  local times = {}
  for i = 3, opt.steps + 2 do times[#times + 1] = run.steps[i].seconds - run.steps[i - 1].seconds end
  table.sort(times)
  local tokens = size.batch * size.seq
  return { tokens_per_s = tokens / times[math.floor(#times / 2) + 1],
    best = tokens / times[1], peak_mb = (tonumber(C.esp_rss_peak()) - before) / 1e6 }
end

-- PyTorch's figures, or nil and why not.
local function theirs(mode)
  if file.kind(opt.torch) ~= "file" then return nil, "there is no " .. opt.torch end
  local out = os.tmpname()
  local child = esp.io.process.start({ "/usr/bin/env", opt.python, opt.torch, "--shape", opt.shape, "--mode", mode, "--work", "kd", "--steps",
    tostring(opt.steps), "--threads", tostring(C.esp_threads()) }, out)
  local code, printed = child:wait(), file.read(out)
  file.remove(out)
  local line = printed:match "{[^\n]*}"
  if code ~= 0 or not line then return nil, "its last words: " .. (printed:match "[^\n]*%s*$" or "none"):sub(1, 200) end
  return esp.io.json.decode(line, "torch_kd.py")
end

local function show(name, r)
  print(string.format("%-22s %8.0f tok/s (best %.0f)   peak %6.0f MB", name, r.tokens_per_s, r.best, r.peak_mb))
end

print(string.format("KD step, %s, %d x %d tokens, %d threads, %s",
  opt.shape, size.batch, size.seq, C.esp_threads(), esp.ffi.string(C.esp_cpu_name())))
local us = ours()
show("espalier " .. opt.precision, us)
local them, why = theirs(opt.precision)
if them then
  show("PyTorch " .. tostring(them.torch) .. " " .. opt.precision, them)
  print(string.format("%-22s %8.2f x speed              %6.2f x memory", "ratio", us.tokens_per_s / them.tokens_per_s, us.peak_mb / them.peak_mb))
else
  print("PyTorch was not measured: " .. why)
end
