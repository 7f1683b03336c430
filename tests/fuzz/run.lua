--- Fuzzes every parser: espalier tests/fuzz/run.lua HARNESS FOLDER RUNS [TARGET ...]. Exit code 1 where something was found.
--
-- The corpus of a target is FOLDER/TARGET: the cases of seeds.lua, what was found and mended (tests/fuzz/found/TARGET), and what libFuzzer adds.
-- All of it is replayed, then RUNS new inputs follow from a fixed seed; more time finds more.

local esp = require "espalier"
local file, process = esp.io.file, esp.io.process

local args = { ... }
local harness, folder, runs = args[1], args[2], tonumber(args[3])
package.path = "tests/fuzz/?.lua;" .. package.path
local seeds, targets = require "seeds", require "targets"

local names = { unpack(args, 4) }
if #names == 0 then
  for name in pairs(targets) do names[#names + 1] = name end
  table.sort(names)
end

local function prepare(name)
  local corpus = file.make(file.join(folder, name))
  local work = file.make(folder .. "/work")
  local make = seeds[name] or error("tests/fuzz/seeds.lua has no cases for " .. name)
  for i, text in ipairs(make(work)) do file.write(string.format("%s/seed-%03d", corpus, i), text) end
  file.remove(work)
  local found = "tests/fuzz/found/" .. name
  for _, case in ipairs(file.kind(found) and file.list(found) or {}) do file.write(corpus .. "/" .. case, file.read(found .. "/" .. case)) end
  return corpus
end

-- Inputs are files of a moment: in memory where the system has such a folder.
local memory = file.kind "/dev/shm" and "/dev/shm" or folder
local findings, cases = 0, 0
for _, name in ipairs(names) do
  local corpus, log = prepare(name), file.join(folder, name .. ".log")
  file.remove(log)
  local have, work = #file.list(corpus), file.make(memory .. "/espalier-fuzz-" .. process.id())
  local child = process.start({ "/usr/bin/env", "ESPALIER_FUZZ=" .. name, "ESPALIER_FUZZ_FOLDER=" .. work,
    "ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1", harness, "-runs=" .. have + runs, "-seed=1", "-timeout=5", "-rss_limit_mb=4096",
    "-max_len=4096", "-artifact_prefix=" .. folder .. "/" .. name .. "-", corpus }, log)
  local code, said = child:wait(), file.read(log)
  file.remove(work)
  local done = tonumber(said:match "Done (%d+) runs") or 0
  cases = cases + done
  if code ~= 0 then findings = findings + 1 end
  print(string.format("%-20s %9d cases  %s", name, done, code == 0 and "nothing found" or "FOUND, see " .. log))
  if code ~= 0 then print((said:match "finding: [^\n]*" or said:match "SUMMARY: [^\n]*" or said:sub(-400))) end
end
print(string.format("fuzz: %d targets, %d cases, %d findings", #names, cases, findings))
os.exit(findings == 0 and 0 or 1)
