--- The table of speed and memory: ours beside PyTorch's best mode, in pairs one after the other, medians and spread.
--
--   make bench BENCH_PYTHON=python3      or      build/espalier tests/bench/run.lua shapes=15m works=kd rounds=3 python=python3
--
-- PyTorch's side is the program `torch`. Every mode of it runs once, then its fastest runs beside ours for the other rounds; without a Python that
-- has torch and transformers, ours stands alone. The table, with the machine's description, is kept under tests/bench/results.

local esp = require "espalier"
local file, json, process = esp.io.file, esp.io.json, esp.io.process
local C = esp.ffi.C
local median = require "median"

local opt = esp.options(..., {
  shapes = { "list", default = { "15m", "110m" } }, works = { "list", default = { "kd", "calibrate", "eval" } },
  rounds = { "int", default = 3, help = "pairs" }, steps = { "int", default = 3, help = "measured steps of a process" },
  python = { "string", default = "python3", help = "a Python that has torch and transformers" },
  torch = { "path", default = "../shared/bench/torch_kd.py", help = "the program to run beside" },
  results = { "path", default = "tests/bench/results", help = "folder of the kept table" },
})

local program = file.real "/proc/self/exe"
local lines = {}
local function say(...)
  lines[#lines + 1] = string.format(...)
  print(lines[#lines])
  io.stdout:flush()
end

-- What a process printed as its last JSON object, or nil and its last words.
local function measured(argv)
  local out = os.tmpname()
  local code = process.start(argv, out):wait()
  local printed = file.read(out)
  file.remove(out)
  local line
  for one in printed:gmatch "{[^\n]*}" do line = one end
  if code ~= 0 or not line then return nil, (printed:match "[^\n]*%s*$" or "no words"):sub(1, 200) end
  return json.decode(line, argv[2])
end

local function ours(work, shape, precision, steps)
  local r, why = measured { program, "tests/bench/ours.lua", "work=" .. work, "shape=" .. shape, "precision=" .. precision,
    "steps=" .. (steps or opt.steps) }
  return r or error(why, 0)
end

local function theirs(work, shape, mode)
  if file.kind(opt.torch) ~= "file" then return nil, "there is no " .. opt.torch end
  return measured { "/usr/bin/env", opt.python, opt.torch, "--shape", shape, "--mode", mode, "--work", work, "--steps", tostring(opt.steps),
    "--threads", tostring(C.esp_threads()) }
end

local function spread(list, form)
  local m, least, most = median(list)
  return string.format(form .. " (" .. form .. " to " .. form .. ")", m, least, most)
end

-- All modes once: the fastest mode, what it gave, and the least memory of any.
local function best_mode(work, shape)
  local best, least, first
  for _, mode in ipairs { "f32", "bf16", "bf16c", "chunk", "chunkc" } do
    if work == "kd" or not mode:match "^chunk" then
      local r, why = theirs(work, shape, mode)
      if r then
        say("| %s %s, PyTorch %s %s | %.0f tok/s, %.0f MB |", work, shape, r.torch, mode, r.tokens_per_s, r.peak_mb)
        if not best or r.tokens_per_s > best.tokens_per_s then best = r end
        least = math.min(least or r.peak_mb, r.peak_mb)
        if mode == "f32" then first = r end
      elseif mode == "f32" then
        return nil, why
      end
    end
  end
  return best, least, first
end

-- One figure in `rounds` pairs against a mode; `have` is a measurement of that mode that there is already.
local function pairs_of(work, shape, precision, mode, have, least)
  local own, ratio, memory, share, limit = {}, {}, {}, {}, {}
  for i = 1, opt.rounds do
    local us = ours(work, shape, precision)
    local them = i == 1 and have or (mode and theirs(work, shape, mode))
    own[i], memory[i], limit[i] = us.tokens_per_s, us.peak_mb, ours("peak", shape, precision).best / us.operations
    share[i] = own[i] / limit[i]
    if them then ratio[#ratio + 1] = us.tokens_per_s / them.tokens_per_s end
    if us.planned_mb and i == 1 then
      say("| %s %s %s, memory planned / live / process | %.0f / %.0f / %.0f MB |", work, shape, precision, us.planned_mb, us.live_mb, us.peak_mb)
    end
  end
  say("| %s %s, ours %s | %s tok/s, %.0f MB |", work, shape, precision, spread(own, "%.0f"), median(memory))
  say("| %s %s, ours %s, of what its products alone would take at the speed of a large one | %.0f %% of %.0f tok/s |", work, shape, precision,
    100 * median(share), median(limit))
  if #ratio == 0 then return end
  say("| %s %s, ours %s / PyTorch %s | **%s x speed**%s |", work, shape, precision, mode, spread(ratio, "%.2f"),
    least and string.format(", **%.2f x** the least memory of a mode", median(memory) / least) or "")
end

local function one_work(work, shape)
  local best, least, first = best_mode(work, shape)
  if not best then say("| %s %s, PyTorch | not measured: %s |", work, shape, least) end
  pairs_of(work, shape, "bf16", best and best.mode, best, best and work == "kd" and least)
  pairs_of(work, shape, "f32", best and "f32", first)
end

local function decoding()
  for _, precision in ipairs { "bf16", "f32" } do
    local r = ours("decode", "110m", precision, 9)
    say("| decode 110m, batch 1, %s weights | %.1f tok/s: %.1f GB/s, in turns %.0f %% of what a sum reads (%.1f), %.0f %% of what y += x moves "
      .. "(%.1f) |", precision, r.tokens_per_s, r.tokens_per_s * r.bytes / 1e9, 100 * r.of_read, r.read / 1e9, 100 * r.of_update, r.update / 1e9)
  end
end

local function views(shape)
  for _, precision in ipairs { "bf16", "f32" } do
    local r = ours("views", shape, precision)
    say("| views %s, %s | %.0f %% of the speed of a dense model forward, %.0f %% forward and backward |", shape, precision, 100 * r.of_dense,
      100 * r.of_dense_with_backward)
  end
end

local function profile(shape)
  local out = os.tmpname()
  process.start({ program, "tests/bench/ours.lua", "profile=true", "shape=" .. shape, "steps=" .. opt.steps }, out):wait()
  say("\n```\n%s```", file.read(out))
  file.remove(out)
end

local name = esp.ffi.string(C.esp_cpu_name())
say("# %s, %d threads, %s kernels, %s", name, C.esp_threads(), esp.ffi.string(C.esp_isa_name()), os.date "!%Y-%m-%d")
say("\nBatches of 4,096 tokens, vocabulary 32,000; medians of %d pairs (least to most), %d steps each.\n", opt.rounds, opt.steps)
say "| what | measured |"
say "|---|---|"
for _, shape in ipairs(opt.shapes) do
  for _, work in ipairs(opt.works) do one_work(work, shape) end
end
decoding()
for _, shape in ipairs(opt.shapes) do views(shape) end
for _, shape in ipairs(opt.shapes) do profile(shape) end
file.make(opt.results)
file.write(file.join(opt.results, (name:lower():gsub("%W+", "-")) .. ".md"), table.concat(lines, "\n") .. "\n")
