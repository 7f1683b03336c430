--- What is written appears whole or not at all: JSON, HDF5, the journal, a full disk at any write, a kill in the middle of one.
local t = ...

local esp = require "espalier"
local tensor = require "espalier.tensor"
local file, json, hdf5, process = esp.io.file, esp.io.json, esp.io.hdf5, esp.io.process
local journal = require "espalier.io.journal"

t.test("JSON says what is wrong and where", function()
  local bad = { '{"a":1,"a":2}', '{"a":1', "[1,]", '{"a":NaN}', "", "{} {}", '"\255"', string.rep("[", 300), '{"a":01}', "[1] // c", '"\\ud800"' }
  for _, text in ipairs(bad) do
    local ok, message = pcall(json.decode, text, "x.json")
    t.ok(not ok and message:find("x.json", 1, true), "accepted, or without the name: " .. text:sub(1, 20) .. " " .. tostring(message))
  end
  t.equal(json.decode('{"b":[1,2.5,true,null,"\\u00e9\\ud83d\\ude00"]}').b[5], "é😀")
end)

t.test("JSON keeps numbers and the order of keys as they stood", function()
  local path = t.folder() .. "/a.json"
  t.write(path, '{"z":8.0,"a":1e-05,"m":[3,4.50],"e":{},"l":[]}')
  local value = json.read(path)
  value.m[2] = 7
  json.write(path, value)
  local text = t.read(path):gsub("%s", "")
  t.equal(text, '{"z":8.0,"a":1e-05,"m":[3,7],"e":{},"l":[]}')
end)

t.test("HDF5 comes back; every flipped byte is noticed or harmless", function()
  local path = t.folder() .. "/a.h5"
  local x = tensor.normal({ 5, 7 }, { seed = 1 })
  hdf5.write(path, { ["a/x"] = x, half = x:to "bf16", ids = tensor.of({ 1, 2 }, { dtype = "i32" }), text = "words", step = 7 })
  local f = hdf5.open(path)
  t.equal(f:tensor "a/x", x:table())
  t.equal(f:tensor("half"):to("f32"):table(), x:to("bf16"):to("f32"):table())
  t.equal(f:number "step", 7)
  f:close()
  local bytes = t.read(path)
  local noticed, harmless = 0, 0
  for at = 1, #bytes, math.max(1, math.floor(#bytes / 60)) do
    t.write(path, bytes:sub(1, at - 1) .. string.char((bytes:byte(at) + 85) % 256) .. bytes:sub(at + 1))
    local ok, message = pcall(function()
      local g = hdf5.open(path)
      local y = g:tensor("a/x"):table()
      g:close()
      return y
    end)
    if ok then
      t.equal(message, x:table(), "a flipped byte at " .. at .. " changed the numbers")
      harmless = harmless + 1
    else
      t.ok(tostring(message):find("a.h5", 1, true), tostring(message))
      noticed = noticed + 1
    end
  end
  t.ok(noticed > 10, noticed .. " noticed, " .. harmless .. " harmless")
  for _, n in ipairs { 0, 8, 100, #bytes - 1 } do
    t.write(path, bytes:sub(1, n))
    t.fails("a.h5", hdf5.open, path)
  end
end)

t.test("a journal's torn end is cut off, the rest is kept", function()
  local path = t.folder() .. "/log"
  local j = journal.open(path)
  for i = 1, 3 do j:append({ step = i }, true) end
  t.fails("log", journal.open, path)
  j:close()
  local bytes = t.read(path)
  for cut = 1, 20 do
    t.write(path, bytes:sub(1, #bytes - cut))
    t.equal(#journal.read(path), 2, "cut by " .. cut)
  end
  t.write(path, bytes:sub(1, -3) .. "xx")
  j = journal.open(path)
  j:append { step = 9 }
  j:close()
  local steps = {}
  for i, r in ipairs(journal.read(path)) do steps[i] = r.step end
  t.equal(steps, { 1, 2, 9 })
end)

t.test("a lock is refused with its holder", function()
  local path = t.folder() .. "/lock"
  local lock = file.lock(path)
  t.fails(tostring(process.id()), file.lock, path)
  lock.release()
  file.lock(path).release()
end)

-- A recipe that saves what the first argument says into a folder.
local writer = [[
  local what, dir = ...
  local esp = require "espalier"
  local shape = { hidden = 32, ffn = 48, layers = 2, heads = 4, kv_heads = 2, head_dim = 8, vocab = 64, context = 32, norm_eps = 1e-5,
    rope = { theta = 10000 }, tied = true }
  local model = esp.models.new(shape, { seed = 5 })
  local rows = {}
  for r = 1, 8 do
    rows[r] = {}
    for i = 1, 24 do rows[r][i] = (r * 31 + i * i) % 64 end
  end
  if what == "model" then model:save(dir .. "/result", { quiet = true })
  elseif what == "statistics" then esp.importance.measure(model, esp.tensor.of(rows, { dtype = "i32" }), { quiet = true }):save(dir .. "/result")
  elseif what == "json" then esp.io.json.write(dir .. "/result", { text = string.rep("x", 100000) })
  else esp.train { model, data = esp.data.of(rows), steps = 3, batch = 4, out = dir .. "/result", quiet = true } end
]]

local function bytes_below(path)
  if file.kind(path) ~= "folder" then return file.kind(path) and t.read(path) or nil end
  local all = {}
  for _, name in ipairs(file.list(path)) do all[name] = bytes_below(file.join(path, name)) end
  return all
end

t.test("a full disk at any write: exit code 1, one sentence, nothing half written", function()
  local program = t.program() or t.skip "needs the espalier program"
  program = file.real(program)
  local dir = t.folder()
  t.write(dir .. "/writer.lua", writer)
  local failures = 0
  for _, what in ipairs { "model", "statistics", "json" } do
    local work = file.make(dir .. "/" .. what)
    local function go(limit)
      -- What it says goes through a pipe: the limit is for the files it writes.
      local line = string.format("{ (ulimit -f %s; exec %s %s/writer.lua %s %s); echo $?; } 2>&1 | cat", limit, program, dir, what, work)
      local child = process.start({ "/bin/sh", "-c", line }, dir .. "/out")
      child:wait()
      local said, code = t.read(dir .. "/out"):match "^(.-)(%d+)\n$"
      file.remove(dir .. "/out")
      return tonumber(code), said
    end
    -- The limit is in blocks of 512 bytes, growing until the work fits.
    local blocks, done = 0, false
    while not done do
      local code, said = go(blocks)
      done = code == 0
      if not done then
        failures = failures + 1
        t.equal(code, 1, what .. ": " .. said)
        t.ok(select(2, said:gsub("\n", "")) == 1 and said:find("^espalier: "), "one sentence: " .. said)
        t.equal(file.list(work), {}, what .. " left something behind")
      end
      blocks = math.max(blocks + 1, math.floor(blocks * 1.5))
      t.ok(blocks < 100000, what .. " never fits")
    end
    -- What is there stays when its successor cannot be written.
    local before = bytes_below(work)
    t.equal((go(1)), 1, what)
    t.equal(bytes_below(work), before, what .. ": the old one")
  end
  t.ok(failures >= 20, failures .. " failures")
end)

t.test("a run on a full disk keeps its log whole and goes on", function()
  local program = t.program() or t.skip "needs the espalier program"
  local dir = t.folder()
  t.write(dir .. "/writer.lua", writer)
  local function go(limit)
    local line = string.format("ulimit -f %s; exec %s %s/writer.lua run %s", limit, file.real(program), dir, dir)
    local child = process.start({ "/bin/sh", "-c", line }, dir .. "/out")
    local code = child:wait()
    file.remove(dir .. "/out")
    return code
  end
  local stopped = 0
  for _, blocks in ipairs { 1, 8, 64, 120 } do if go(blocks) == 1 then stopped = stopped + 1 end end
  t.ok(stopped >= 2, "the disk was full " .. stopped .. " times")
  t.equal(go "unlimited", 0)
  local done
  for _, r in ipairs(journal.read(dir .. "/result/log")) do done = done or r.kind == "done" end
  t.ok(done, "the run came to its end")
end)

t.test("a kill in the middle of a save leaves the old or the new", function()
  local program = t.program() or t.skip "needs the espalier program"
  local dir = t.folder()
  t.write(dir .. "/saver.lua", [[
    local dir = ...
    local esp = require "espalier"
    local shape = { hidden = 64, ffn = 96, layers = 2, heads = 4, kv_heads = 2, head_dim = 16, vocab = 64, context = 32, norm_eps = 1e-5,
      rope = { theta = 10000 }, tied = true }
    for seed = 1, 1e9 do esp.models.new(shape, { seed = seed }):save(dir .. "/model", { quiet = true }) end
  ]])
  for i = 1, 12 do
    local child = process.start({ program, dir .. "/saver.lua", dir }, dir .. "/out")
    while not file.kind(dir .. "/model") and not child:poll() do process.sleep(0.002) end
    process.sleep(0.005 + 0.05 * (i * 0.6180339887 % 1))
    child:signal(9)
    child:wait()
    esp.load(dir .. "/model"):logits { { 1, 2, 3 } }
    if i % 3 == 0 then file.remove(dir .. "/model") end
  end
  -- The next save sweeps up what the killed ones left.
  local model = esp.models.new({ hidden = 8, ffn = 8, layers = 1, heads = 1, kv_heads = 1, head_dim = 8, vocab = 8, context = 8, norm_eps = 1e-5,
    rope = { theta = 10000 }, tied = true }, { seed = 1 })
  model:save(dir .. "/model", { quiet = true })
  t.equal(file.list(dir), { "model", "out", "saver.lua" })
end)
