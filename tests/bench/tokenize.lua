--- espalier tokenize on a long text made by repetition: threads against one thread, in pairs, and peak memory against the length of the input.
--
--   build/espalier tests/bench/tokenize.lua text=stories.txt tokenizer=MODEL [bytes=120MB] [threads=2] [pairs=3]

local esp = require "espalier"
local file, process = esp.io.file, esp.io.process

local opt = esp.options(..., {
  text = { "path", required = true, help = "documents between <|endoftext|>" },
  tokenizer = { "path", required = true, help = "a model's folder or a tokenizer's file" },
  bytes = { "bytes", default = "120MB", help = "of the longest input" },
  threads = { "int", default = 2, help = "compared with one" },
  pairs = { "int", default = 3, help = "of timings" },
})

local dir = (os.getenv "TMPDIR" or "/tmp") .. "/espalier-bench-" .. process.id()
file.make(dir)
local once = file.read(opt.text) .. "<|endoftext|>"

local function input(bytes)
  local path, parts = dir .. "/" .. bytes .. ".txt", {}
  for i = 1, math.max(1, math.floor(bytes / #once)) do parts[i] = once end
  file.write(path, parts)
  return path
end

file.write(dir .. "/run.lua", [[
  local input, out, tokenizer = ...
  local esp = require "espalier"
  local made = esp.data.tokenize { input = input, out = out, tokenizer = tokenizer, quiet = true }
  io.write(string.format("%.6f %d", made.seconds, tonumber(esp.ffi.C.esp_rss_peak())))
]])

-- Seconds and peak bytes of one run.
local function run(path, threads)
  local said = dir .. "/said"
  file.remove(said)
  local line = string.format("ESPALIER_THREADS=%d exec %s %s/run.lua %s %s/out.h5 %s", threads, process.program(), dir, path, dir, opt.tokenizer)
  local code = process.start({ "/bin/sh", "-c", line }, said):wait()
  if code ~= 0 then error(file.read(said), 0) end
  local seconds, peak = file.read(said):match "([%d%.]+) (%d+)"
  return tonumber(seconds), tonumber(peak)
end

local ok, problem = pcall(function()
  local long = input(opt.bytes)
  local megabytes = file.size(long) / 1e6
  for i = 1, opt.pairs do
    local one, several = run(long, 1), run(long, opt.threads)
    print(string.format("pair %d: %.1f MB at %.1f MB/s with one thread, %.1f with %d: %.2f times", i, megabytes, megabytes / one, megabytes / several,
      opt.threads, one / several))
  end
  for _, share in ipairs { 1 / 16, 1 / 4, 1 } do
    local path = input(opt.bytes * share)
    local _, peak = run(path, opt.threads)
    print(string.format("%8.1f MB of text: peak %s", file.size(path) / 1e6, esp.quantity.show_bytes(peak)))
  end
end)
file.remove(dir)
if not ok then error(problem, 0) end
