--- Threads, memory, the tape, and who may know whom.
local t = ...

local esp = require "espalier"
local tensor = require "espalier.tensor"
local ops = require "espalier.ops"
local core = require "espalier.ffi"
local file, process = esp.io.file, esp.io.process

local C = core.C

-- ---- the same bits with any number of threads ----

t.test("a step makes the same bits with 1, 2, 3 and 5 threads", function()
  t.same_with_threads([[
    local esp = require "espalier"
    local core, tensor = require "espalier.ffi", require "espalier.tensor"
    local function shape(hidden, ffn)
      return { hidden = hidden, ffn = ffn, layers = 2, heads = 4, kv_heads = 2, head_dim = 16, vocab = 500, context = 160, norm_eps = 1e-5,
        rope = { theta = 10000 }, tied = true }
    end
    local rows = {}
    for r = 1, 4 do
      rows[r] = {}
      for i = 1, 150 do rows[r][i] = (r * 31 + i * i * 7 + i * r) % 500 end
    end
    local teacher, student = esp.models.new(shape(64, 172), { seed = 1 }), esp.models.new(shape(48, 100), { seed = 2 })
    local texts = {}
    for _, precision in ipairs { "f32", "bf16" } do
      local run = esp.distill { teacher = teacher, student = student, data = esp.data.of(rows), batch = 4, steps = 2, precision = precision,
        quiet = true }
      local stats = esp.importance.measure(run.model, esp.data.of(rows), { depth = true, grads = true, precision = precision, quiet = true })
      for _, name in ipairs(run.model:parameter_names()) do
        for _, v in ipairs(run.model:parameters()[name]:view(-1):table()) do texts[#texts + 1] = string.format("%a", v) end
      end
      for _, v in ipairs(stats:score({ axis = "hidden" }):table()) do texts[#texts + 1] = string.format("%a", v) end
      texts[#texts + 1] = string.format("%a %s", run.steps[2].loss, stats:hash())
    end
    print(esp.io.file.hash_text(table.concat(texts, " ")))
  ]], { 1, 2, 3, 5 })
end)

-- ---- memory ----

local shape = { hidden = 24, ffn = 40, layers = 2, heads = 4, kv_heads = 2, head_dim = 6, vocab = 40, context = 32, norm_eps = 1e-5,
  rope = { theta = 10000 }, tied = true }

-- `copies`: of the row of ids (1).
local function step(model, copies)
  esp.scope(function()
    local rows, targets = {}, {}
    for r = 1, copies or 1 do
      rows[r] = { 1, 2, 3, 4, 5, 6 }
      for i = 2, 7 do targets[#targets + 1] = i < 7 and i or -1 end
    end
    local h = model:forward(tensor.of(rows, { dtype = "i32" }))
    local logits = ops.linear(h, model:head()):view(#targets, 40)
    local loss = ops.cross_entropy(logits, tensor.of(targets, { dtype = "i32" })):sum()
    loss:backward()
  end)
end

-- Live bytes once the collector has had its say.
local function live_bytes()
  -- Compiled traces hold what they were recorded on.
  jit.flush()
  -- Finalisers run in one cycle, what they held goes in the next.
  for _ = 1, 3 do collectgarbage() end
  return tonumber(C.esp_memory_live())
end

local function drop_gradients(model)
  for _, p in pairs(model:parameters()) do
    if p.grad then p.grad:free() end
    p.grad = nil
  end
end

local function trainable()
  local model = esp.models.new(shape, { seed = 1 })
  for _, p in pairs(model:parameters()) do p:requires_grad_(true) end
  -- Long enough that every thread takes its part, and with it the scratch that it keeps.
  step(model, 2000)
  drop_gradients(model)
  C.esp_memory_trim()
  return model
end

t.test("wherever memory ends, it is one sentence, nothing leaks, and the next step works", function()
  local model = trainable()
  local live, failures, room = live_bytes(), 0, 0
  repeat
    C.esp_memory_budget(live + room)
    local ok, message = pcall(step, model)
    C.esp_memory_budget(0)
    drop_gradients(model)
    if not ok then
      failures = failures + 1
      t.ok(tostring(message):find("memory", 1, true), tostring(message))
      t.ok(live_bytes() <= live + 2 ^ 17, "live bytes after a failure with room for " .. room .. ", more than scratch")
    end
    room = room + 1024
  until ok or room > 2 ^ 22
  t.ok(failures > 50 and room < 2 ^ 22, failures .. " failures")
  step(model)
end)

t.test("an allocation that fails once is tried again after a collection, or is one sentence", function()
  local model = trainable()
  local function each_fails_once()
    local live = live_bytes()
    for n = 1, 200 do
      C.esp_memory_fail_at(n)
      local ok, message = pcall(step, model)
      C.esp_memory_fail_at(0)
      drop_gradients(model)
      t.ok(ok or tostring(message):find("memory", 1, true), tostring(message))
    end
    return live_bytes() - live
  end
  -- Each thread's scratch grows once, when it first meets its largest block; a leak would grow every time.
  local grown
  for _ = 1, 6 do
    grown = each_fails_once()
    if grown <= 0 then break end
  end
  t.ok(grown <= 0, "live bytes grow by " .. grown .. " each time")
end)

t.test("a budget is kept where a larger free block is at hand", function()
  local size = 2 ^ 20
  tensor.new { size * 11 / 32 }:free()
  local limit = live_bytes() + size * 5 / 4
  C.esp_memory_budget(limit)
  local ok, x = pcall(tensor.new, { size / 4 })
  local used = live_bytes()
  C.esp_memory_budget(0)
  t.ok(ok, tostring(x))
  t.ok(used <= limit, "more is in use than the budget allows")
  x:free()
end)

t.test("a budget is kept, and the sentence names it", function()
  local live = live_bytes()
  C.esp_memory_budget(live + 2 ^ 20)
  local ok, message = pcall(tensor.zeros, { 2 ^ 20 })
  C.esp_memory_budget(0)
  t.ok(not ok and message:find("budget", 1, true), tostring(message))
  local x = tensor.zeros { 2 ^ 20 }
  t.ok(live_bytes() >= live + 2 ^ 22, "four bytes an element")
  x:free()
  x:free()
  t.ok(live_bytes() <= live + 256, "all but x's header is gone")
end)

t.test("a steady step calls malloc no more", function()
  local model = trainable()
  local function steps()
    for _ = 1, 4 do
      step(model)
      drop_gradients(model)
      live_bytes()
    end
  end
  steps()
  local before = tonumber(C.esp_memory_mallocs())
  steps()
  t.equal(tonumber(C.esp_memory_mallocs()) - before, 0)
end)

-- ---- the tape ----

t.test("a scope frees what was made and not returned", function()
  local a, inner, other
  local kept, more = esp.scope(function()
    a = tensor.zeros { 1000 }
    inner, other = a * 2, a * 3
    return a + 1, { inner = inner }
  end)
  t.equal(kept:table()[1], 1)
  t.equal(more.inner:table()[1], 0)
  t.fails("freed", function() return a + 1 end)
  t.fails("freed", function() return other + 1 end)
  local leaked
  pcall(esp.scope, function()
    leaked = tensor.zeros { 1000 }
    error "x"
  end)
  t.fails("freed", function() return leaked + 1 end)
end)

t.test("checkpoint recomputes: the same gradients, fewer bytes", function()
  local x, w = tensor.normal({ 64, 32 }, { seed = 1 }), tensor.normal({ 32, 32 }, { seed = 2, std = 0.2 }):requires_grad_(true)
  local function deep(h)
    for _ = 1, 6 do h = ops.linear(h, w) * 0.5 + h end
    return h
  end
  local function gradient(fn)
    local peak
    esp.scope(function()
      local y = fn(x)
      peak = live_bytes()
      local loss = (y * y):sum()
      loss:backward()
    end)
    local g = w.grad:table()
    w.grad:free()
    w.grad = nil
    return g, peak
  end
  local plain, plain_bytes = gradient(deep)
  local again, fewer = gradient(function(h) return esp.checkpoint(deep, h) end)
  t.near(again, plain, 1e-4)
  t.ok(fewer < plain_bytes, fewer .. " bytes with, " .. plain_bytes .. " without")
end)

t.test("gradients add up where a tensor is used twice, and stay off under no_grad", function()
  local x = tensor.of({ 2, 3 }):requires_grad_(true)
  local y = (x * x + x * 3):sum()
  y:backward()
  t.equal(x.grad, { 7, 9 })
  t.equal(esp.no_grad(function() return (x * x).requires_grad end), nil)
  local z = tensor.of({ 1 }):requires_grad_(true)
  local mid = (z * 2):keep()
  mid:sum():backward()
  t.equal(mid:table(), { 2 })
end)

-- ---- who may know whom ----

t.test("the core's folders include downwards only, and nothing of Lua outside the host", function()
  local rank = { base = 0, tensor = 1, ops = 2, io = 2, text = 3, host = 4 }
  local count = 0
  for folder, level in pairs(rank) do
    for _, name in ipairs(file.list(t.root .. "core/" .. folder)) do
      for line in t.read(t.root .. "core/" .. folder .. "/" .. name):gmatch "[^\n]+" do
        local what = line:match "^#include%s+[<\"]([^>\"]+)"
        local other = what and what:match "%.%./(%l+)/"
        if what then count = count + 1 end
        t.ok(not what or folder == "host" or not what:match "^lua", folder .. "/" .. name .. " includes " .. tostring(what))
        t.ok(not other or rank[other] <= level, folder .. "/" .. name .. " includes " .. tostring(what))
      end
    end
  end
  t.ok(count > 50, count .. " includes were seen")
end)

t.test("the C tests pass", function()
  local program = t.program() or t.skip "needs the espalier program"
  local tests = file.real(program):match "^(.*)/" .. "/tests"
  local names = file.kind(tests) == "folder" and file.list(tests) or {}
  local out, ran = t.folder() .. "/said", 0
  for _, name in ipairs(names) do
    if not name:find(".", 1, true) then
      local code = process.start({ tests .. "/" .. name }, out):wait()
      t.equal(code, 0, name .. ": " .. t.read(out))
      file.remove(out)
      ran = ran + 1
    end
  end
  t.ok(ran >= 2, ran .. " C tests are built")
end)
