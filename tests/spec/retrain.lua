--- Retraining: against the goldens, resumed, killed, refused.

local t = ...
local esp = require "espalier"
local json = esp.io.json

local function largest(a, b)
  return esp.no_grad(function() return ((a - b):abs():view(-1):max(0)):item() end)
end

for _, name in ipairs { "stories260K", "babyllama" } do
  for _, kind in ipairs { "kl", "ce" } do
    t.test(string.format("20 steps of %s on pruned %s", kind, name), function()
      local dir = t.shared("data/golden/minitron/" .. name)
      local teacher, gold = esp.load(dir .. "/teacher"), esp.io.safetensors.read(dir .. "/golden.safetensors")
      local figures = json.read(dir .. "/golden.json")
      local want, width = figures["retrain_" .. kind], figures.pruned.width
      local student = esp.prune(teacher, nil, { hidden = width.hidden, ffn = width.ffn, quiet = true, keep = width.kept })
      local run = esp.distill { teacher = teacher, student = student, data = esp.data.of(gold.ids), loss = esp.loss[kind](), steps = 20, batch = 8,
        order = "sequential", schedule = esp.schedule.constant { rate = 1e-3 }, quiet = true }
      for i, pair in ipairs(want.steps or want) do
        local m = run.steps[i]
        t.near({ m.loss / pair[1], m.norm / pair[2] }, { 1, 1 }, 1e-4, "step " .. i)
      end
      local compared = 0
      for pname, p in pairs(run.model:parameters()) do
        local final = gold[string.format("retrain.%s.final.%s", kind, pname)]
        if final then
          t.near(largest(p, final) / (final:abs():view(-1):max(0)):item(), 0, 1e-3, pname)
          compared = compared + 1
        end
      end
      t.ok(compared > 0, "no final parameters compared")
    end)
  end
end

local tiny = { hidden = 32, ffn = 48, layers = 2, heads = 4, kv_heads = 2, head_dim = 8, vocab = 64, context = 32, norm_eps = 1e-5,
  rope = { theta = 10000 }, tied = true }

local function rows(n, seed)
  local list = {}
  for r = 1, n do
    list[r] = {}
    for i = 1, 24 do list[r][i] = (r * 31 + i * i * 7 + seed * 13 + i * r) % 64 end
  end
  return list
end

t.test("a run resumes bit-equal, is done once, and refuses other options", function()
  local teacher, student = esp.models.new(tiny, { seed = 1 }), esp.models.new(tiny, { seed = 2 })
  local data = esp.data.of(rows(16, 1))
  local function distill(opt)
    local o = { teacher = teacher, student = student, data = data, steps = 12, batch = 4, quiet = true, checkpoint_every = 5, seed = 3 }
    for k, v in pairs(opt) do o[k] = v end
    return esp.distill(o)
  end
  local before = student:clone()
  local whole = distill {}
  local out = t.folder() .. "/run"
  t.fails("the same command goes on from here", distill, { out = out, time = 1e-9 })
  local resumed = distill { out = out }
  for name, p in pairs(resumed.model:parameters()) do
    t.equal(p, whole.model:parameters()[name], name)
    t.equal(student:parameters()[name], before:parameters()[name], "the student given: " .. name)
  end
  t.equal(resumed.steps[12].loss, whole.steps[12].loss)
  t.equal(distill({ out = out }).done_before, true)
  t.fails("seed was 3, now 4", distill, { out = out, seed = 4 })
  t.ok(esp.io.hdf5.open(out .. "/run.h5"):tensor("metrics/loss"):count() == 12, "run.h5 holds the losses")
  t.fails("unknown option 'temprature'", distill, { temprature = 1 })
end)

t.test("in place, the student itself is trained, to the same bits", function()
  local teacher, student = esp.models.new(tiny, { seed = 1 }), esp.models.new(tiny, { seed = 2 })
  local o = { teacher = teacher, student = student, data = esp.data.of(rows(16, 1)), steps = 3, batch = 4, quiet = true }
  local copy = esp.distill(o).model
  o.in_place = true
  local run = esp.distill(o)
  t.ok(run.model == student, "the student is what was trained")
  for name, p in pairs(student:parameters()) do t.equal(p, copy:parameters()[name], name) end
  t.equal(run.model.lineage[1].parent_hash, copy.lineage[1].parent_hash, "the parent is the student as it was")
  o.student = student:clone { dtype = "bf16" }
  t.fails("is no f32 tensor of the student's own; without it a copy is trained", esp.distill, o)
  o.student = teacher
  t.fails("the student is the teacher", esp.distill, o)
end)

t.test("memory of models that nobody holds goes back before a run, also what compiled traces hold", function()
  -- A process of its own, whose traces are those of this program alone.
  local program, dir = t.program() or t.skip "needs the espalier program", t.folder()
  t.write(dir .. "/models.lua", [[
    local esp = require "espalier"
    local s = { hidden = 96, ffn = 256, layers = 6, heads = 6, kv_heads = 6, head_dim = 16, vocab = 3200, context = 64, norm_eps = 1e-6,
      rope = { theta = 10000 }, tied = true }
    for i = 1, 6 do
      local m = esp.models.new(s, { seed = 1 })
      if i % 2 == 0 then m = m:clone { dtype = "bf16" } end
    end
    require("espalier.scope").settle()
    print(tonumber(esp.ffi.C.esp_memory_live()))]])
  local said = dir .. "/said"
  t.equal(esp.io.process.start({ program, dir .. "/models.lua" }, said):wait(), 0, t.read(said))
  t.equal(tonumber(t.read(said)), 0)
end)

t.test("what would mislead is refused", function()
  local model = esp.models.new(tiny, { seed = 1 })
  local data = esp.data.of(rows(8, 1))
  t.fails("is in the training data", esp.train, { model, data = data, held_out = esp.data.of(rows(8, 1)), steps = 1, quiet = true })
  t.fails("option 'tokens' (or 'steps') is missing", esp.train, { model, data = data })
  t.fails("needs a teacher", esp.train, { model, data = data, steps = 1, loss = esp.loss.kl() })
  t.fails("batch = ", esp.train, { model, data = data, steps = 1, batch = 1e9 })
  model:parameters()["model.norm.weight"]:fill(0 / 0)
  t.fails("step 1: the loss is", esp.train, { model, data = data, steps = 1, quiet = true })
end)

t.test("a loss written in Lua equals the built-in one", function()
  local teacher, student, data = esp.models.new(tiny, { seed = 1 }), esp.models.new(tiny, { seed = 2 }), esp.data.of(rows(8, 1))
  local own = esp.loss.custom { zero_at_teacher = true, token = function(s, te) return (te:exp() * (te - s)):sum(-1) end }
  local a = esp.distill { teacher = teacher, student = student, data = data, steps = 3, batch = 4, loss = own, quiet = true }
  local b = esp.distill { teacher = teacher, student = student, data = data, steps = 3, batch = 4, quiet = true }
  for i = 1, 3 do t.near(a.steps[i].loss, b.steps[i].loss, 1e-5) end
  local sum = esp.loss.sum { { esp.loss.kl(), 0.5 }, { own, 0.5 } }
  local both = esp.distill { teacher = teacher, student = student, data = data, steps = 3, batch = 4, loss = sum, accumulate = 2, quiet = true }
  local plain = esp.distill { teacher = teacher, student = student, data = data, steps = 3, batch = 8, quiet = true }
  t.near(both.steps[3].loss, plain.steps[3].loss, 1e-5)
end)

t.test("a loss of one's own is certified before it trains", function()
  local model, data = esp.models.new(tiny, { seed = 1 }), esp.data.of(rows(8, 1))
  local function with(definition)
    return esp.distill { teacher = model, student = model, data = data, steps = 1, batch = 4, quiet = true, loss = esp.loss.custom(definition) }
  end
  t.fails("it says that it is zero at the teacher", with, { zero_at_teacher = true, token = function(s, te) return (s - te):sum(-1) + 1 end })
  t.fails("want a tensor [n]", with, { token = function(s, te) return s * te end })
  t.fails("is nan", with, { token = function(s) return (s * 0 - 1):log():sum(-1) end })
  t.fails("do not depend on the student", with, { token = function(_, te) return te:sum(-1) end })
  t.fails("differences of its values say", with, { token = function(s) return (s * s:detach()):sum(-1) end })
  with { zero_at_teacher = true, token = function(s, te) return ((s - te) * (s - te)):sum(-1) end }
end)

t.test("kill -9 at random moments loses nothing", function()
  local program = t.program()
  if not program then t.skip "needs the espalier program" end
  local dir = t.folder()
  t.write(dir .. "/train.lua", [[
    local out = ...
    local esp = require "espalier"
    local shape = { hidden = 32, ffn = 48, layers = 2, heads = 4, kv_heads = 2, head_dim = 8, vocab = 64, context = 32, norm_eps = 1e-5,
      rope = { theta = 10000 }, tied = true }
    local rows = {}
    for r = 1, 32 do
      rows[r] = {}
      for i = 1, 24 do rows[r][i] = (r * 31 + i * i * 7 + i * r) % 64 end
    end
    local run = esp.train { esp.models.new(shape, { seed = 1 }), data = esp.data.of(rows), steps = 120, batch = 8, checkpoint_every = 7, out = out,
      quiet = true }
    io.write(string.format("%.17g", run.steps[120].loss))
  ]])
  local process = esp.io.process
  local function go(out) return process.start({ program, dir .. "/train.lua", out }, out .. ".txt") end
  local plain = go(dir .. "/plain")
  local start = esp.ffi.C.esp_clock()
  t.equal(plain:wait(), 0)
  local whole = esp.ffi.C.esp_clock() - start
  local want = t.read(dir .. "/plain.txt"):match "[^%s]+$"
  local killed, finished, moment = 0, 0, 0
  while killed < 30 do
    local child = go(dir .. "/killed")
    -- Moments spread over the start and the whole run by the golden section.
    moment = moment + 1
    process.sleep(whole * (0.05 + 0.8 * (moment * 0.6180339887 % 1)))
    if not child:poll() then
      child:signal(9)
      killed = killed + 1
    end
    if child:wait() == 0 then
      -- It came to its end; the next kills meet a new run.
      t.equal(t.read(dir .. "/killed.txt"):match "[^%s]+$", want)
      esp.io.file.remove(dir .. "/killed")
      finished = finished + 1
    end
    esp.io.file.remove(dir .. "/killed.txt")
  end
  t.equal(go(dir .. "/killed"):wait(), 0)
  t.equal(t.read(dir .. "/killed.txt"):match "[^%s]+$", want, "after " .. killed .. " kills and " .. finished .. " whole runs")
end)
