--- Sweeps survive errors, kills and changes; sensitivity and reports say what they should.
local t = ...

local esp = require "espalier"
local file, json, process = esp.io.file, esp.io.json, esp.io.process

-- A recipe of six cells: one always fails; a cell writes a line into the folder's `ran` each time it runs.
local recipe = [[
local esp = require "espalier"
local opt = esp.options(..., { out = { "path" }, retry = { "string", default = "no" }, slow = { "number", default = 0 },
  parallel = { "int", default = 1 } })
local sweep = esp.sweep {
  axes = { { "seed", { 1, 2 } } }, cells = { { a = 1 }, { a = 2 }, { a = 3 } }, out = opt.out, retry = opt.retry, parallel = opt.parallel,
  run = function(cell)
    local f = io.open(opt.out .. "/ran", "a")
    f:write(cell.a, ".", cell.seed, "\n")
    f:close()
    esp.io.process.sleep(opt.slow)
    if cell.a == 3 and cell.seed == 2 then error("cell <three> broke") end
    return { nll = cell.a + cell.seed / 10, interval = 0.05, parameters = 1000 * cell.a, label = "size " .. cell.a }
  end,
}
print(sweep)
]]

local function setup()
  local program = t.program() or t.skip "needs the espalier program"
  local dir = t.folder()
  t.write(dir .. "/recipe.lua", recipe)
  local function start(...) return process.start({ program, dir .. "/recipe.lua", "out=" .. dir .. "/s", ... }, dir .. "/said") end
  local function run(...)
    local code, said = start(...):wait(), t.read(dir .. "/said")
    file.remove(dir .. "/said")
    return code, said
  end
  local function ran()
    local lines = {}
    for line in t.read(dir .. "/s/ran"):gmatch "[^\n]+" do lines[#lines + 1] = line end
    table.sort(lines)
    return lines
  end
  return dir, run, ran, start
end

t.test("a failed cell keeps its error and stops nothing; finished ones are not run again", function()
  local dir, run, ran = setup()
  local code, said = run()
  t.equal(code, 1, "a failure is visible to a machine")
  t.equal(ran(), { "1.1", "1.2", "2.1", "2.2", "3.1", "3.2" })
  t.ok(said:find("cell <three> broke", 1, true) and said:find("1 of 6 cells failed", 1, true), said)
  -- Groups of seeds: mean 1.15, standard deviation over them 0.0707, interval over documents apart.
  t.ok(said:find("1%.1500%s+0%.0707%s+0%.0500%s+done"), said)
  t.ok(said:find "done; failed", said)
  code, said = run()
  t.equal(code, 1)
  t.equal(#ran(), 6)
  t.ok(said:find("5 done, 0 to run", 1, true), said)
  run "retry=failed"
  t.equal(#ran(), 7, "retry runs the failed one alone")
  -- A changed recipe marks what it did before.
  t.write(dir .. "/recipe.lua", (recipe:gsub("broke", "mended") .. "-- changed\n"))
  code, said = run()
  t.ok(code == 1 and said:find("5 of 6 cells were made by an older version", 1, true) and #ran() == 7, said)
  run "retry=stale"
  t.equal(#ran(), 12)
end)

t.test("the report stands alone", function()
  local dir, run = setup()
  run()
  local html = t.read(dir .. "/s/report.html")
  t.ok(html:find("cell &lt;three&gt; broke", 1, true), "errors are there, and safe")
  t.ok(html:find("<svg", 1, true) and html:find("parameters", 1, true) and html:find("size 2", 1, true), "the chart of size against NLL")
  t.ok(not html:find("http", 1, true) and not html:find("<script", 1, true) and not html:find("src=", 1, true), "no network")
  t.ok(html:find("over seeds", 1, true) and html:find("over documents", 1, true), "two kinds of spread")
  t.ok(html:sub(-8) == "</html>\n", "whole")
end)

t.test("a sweep that is killed goes on; a cell that died twice counts as failed", function()
  local dir, run, ran, start = setup()
  -- Long enough that the cell still runs when the sweep is started again on a busy machine.
  local child = start "slow=1.5"
  while not file.kind(dir .. "/s/ran") do process.sleep(0.005) end
  process.sleep(0.05)
  child:signal(9)
  child:wait()
  -- Its child runs its cell to the end; the next start waits for it.
  local code, said = run "slow=0"
  t.equal(code, 1)
  t.ok(said:find("6 cells", 1, true) and said:find("waiting for it", 1, true), said)
  t.equal(#ran(), 6, "no cell was run twice")
  local once = {}
  for _, line in ipairs(ran()) do once[line] = true end
  for _, name in ipairs { "1.1", "1.2", "2.1", "2.2", "3.1", "3.2" } do t.ok(once[name], name .. " never ran") end
  -- A cell whose process dies each time, without a word.
  local death = "if cell.a == 2 then esp.ffi.C.esp_process_signal(esp.ffi.C.esp_process_id(), 9) end "
  t.write(dir .. "/recipe.lua", (recipe:gsub("local f = io.open", death .. "%0")))
  file.remove(dir .. "/s")
  code, said = run()
  t.equal(code, 1)
  t.ok(said:find("interrupted twice", 1, true), said)
  t.equal(ran(), { "1.1", "1.2", "3.1", "3.2" })
end)

t.test("Ctrl-C stops a sweep between or inside cells, and the same command goes on", function()
  local dir, run, ran, start = setup()
  local child = start "slow=0.4"
  while not file.kind(dir .. "/s/ran") do process.sleep(0.005) end
  process.sleep(0.1)
  child:signal(2)
  t.ok(child:wait() ~= 0, "it ended")
  t.ok(t.read(dir .. "/said"):find("the same command goes on", 1, true), t.read(dir .. "/said"))
  file.remove(dir .. "/said")
  local _, said = run()
  t.ok(said:find("1 of 6 cells failed", 1, true), said)
  for _, name in ipairs(file.list(dir .. "/s/cells")) do
    local state = json.read(dir .. "/s/cells/" .. name .. "/state.json")
    t.ok(state.state == "done" or state.error:find("broke", 1, true), name .. " is " .. state.state)
  end
  t.ok(#ran() <= 8)
end)

t.test("cells side by side give the same", function()
  local _, run, ran = setup()
  local code, said = run("parallel=3", "slow=0.05")
  t.ok(code == 1 and said:find("1%.1500%s+0%.0707"), said)
  t.equal(#ran(), 6)
end)

t.test("what cannot be a sweep is refused", function()
  t.fails("neither axes nor cells", esp.sweep, { run = print, out = "x" })
  local program, dir = t.program() or t.skip "needs the espalier program", t.folder()
  local line = "esp.sweep { cells = { { a = 1 } }, run = print, out = '" .. dir .. "/s' }"
  t.equal(process.start({ program, "-e", line }, dir .. "/said"):wait(), 1)
  t.ok(t.read(dir .. "/said"):find("needs a recipe file", 1, true), t.read(dir .. "/said"))
  file.remove(dir .. "/said")
  for code, part in pairs {
    ["cells = { { a = 1 }, { a = 1 } }"] = "cells 1 and 2 are the same", ["axes = { { 'a', {} } }"] = "axes[1] is no axis",
    ["axes = { { 'a', { 1 } } }, cells = { { a = 2 } }"] = "'a' is an axis and stands in a cell too",
  } do
    t.write(dir .. "/r.lua", "require('espalier').sweep { run = print, out = '" .. dir .. "/s', " .. code .. " }")
    local child = process.start({ program, dir .. "/r.lua" }, dir .. "/said")
    t.equal(child:wait(), 1)
    t.ok(t.read(dir .. "/said"):find(part, 1, true), t.read(dir .. "/said"))
    file.remove(dir .. "/said")
  end
end)

-- ---- sensitivity ----

local shape = { hidden = 24, ffn = 40, layers = 4, heads = 4, kv_heads = 2, head_dim = 6, vocab = 40, context = 32, norm_eps = 1e-5,
  rope = { theta = 10000 }, tied = true }

local function rows(n, seed)
  local list = {}
  for r = 1, n do
    list[r] = {}
    for i = 1, 16 do list[r][i] = (r * 31 + i * i * 7 + seed) % 40 end
  end
  return list
end

t.test("sensitivity cuts every axis to one count and scores it as esp.evaluate does", function()
  local model, data = esp.models.new(shape, { seed = 1 }), esp.data.of(rows(12, 1))
  local stats = esp.importance.measure(model, data, { quiet = true })
  local table_ = esp.sensitivity(model, stats, data, { remove = 0.25, quiet = true })
  t.equal(#table_.rows, 15)
  t.near(table_.rows[1].kl, 0, 1e-7, "the model against itself")
  t.near(table_.rows[1].nll, esp.evaluate({ model, data = data }).nll, 1e-9)
  for i = 2, 15 do
    local r = table_.rows[i]
    t.ok(not r.equal or math.abs(r.parameters - table_.goal) <= 0.01 * table_.rows[1].parameters, r.axis .. ": " .. r.parameters)
    t.ok(r.kl > 0 and r.interval > 0 and r.tokens_per_second > 0, r.axis)
  end
  local ffn
  for _, r in ipairs(table_.rows) do if r.axis == "ffn" then ffn = r end end
  local student = esp.prune(model, stats, { ffn = ffn.request.ffn, quiet = true })
  t.near(ffn.nll, esp.evaluate({ student, data = data }).nll, 1e-9)
  t.ok(tostring(table_):find("Retraining can change this order", 1, true))
  t.fails("kd needs data to train on", esp.sensitivity, model, stats, data, { kd = "1k" })
  t.fails("unknown axis 'width'", esp.sensitivity, model, stats, data, { axes = { "width" } })
  t.fails("want a share between 0 and 1", esp.sensitivity, model, stats, data, { remove = 2 })
  local short = esp.sensitivity(model, stats, { train = esp.data.of(rows(12, 5)), held_out = data }, { axes = { "ffn" }, kd = "1k", quiet = true })
  t.ok(short.rows[2].kd_nll > 0, "a short distillation")
  local capped = esp.sensitivity(model, stats, data, { time = 1e-9, quiet = true })
  t.ok(#capped.rows == 1 and tostring(capped):find("the time was up: hidden", 1, true), tostring(capped))
end)

t.test("sensitivity by every metric, parts of layers, and what Taylor predicted", function()
  local model, data = esp.models.new(shape, { seed = 1, std = 0.3 }), esp.data.of(rows(12, 1))
  local stats = esp.importance.measure(model, data, { quiet = true, grads = true, depth = { parts = { "attention", "mlp" } } })
  local own = { axes = { "ffn" }, name = "own", score = function(s) return s.mean_square end }
  local by_name = esp.sensitivity(model, stats, data, { axes = { "ffn", "mlp" }, metrics = { "wanda", own, "bi" }, quiet = true })
  local names = {}
  for i, r in ipairs(by_name.rows) do names[i] = r.axis .. " by " .. tostring(r.metric) end
  t.equal(names, { "nothing by nil", "ffn by wanda", "ffn by own", "mlp by bi" })
  local all = esp.sensitivity(model, stats, data, { metrics = "all", quiet = true })
  local seen = {}
  for _, r in ipairs(all.rows) do seen[r.axis .. " by " .. tostring(r.metric)] = r end
  for _, want in ipairs { "ffn by taylor_weight", "heads by contribution", "kv_heads by flap", "hidden by wanda", "layers by angular",
    "attention by kl" } do
    t.ok(seen[want], want)
  end
  t.ok(not seen["layers by nll"], "what was not measured is passed over")
  -- First order: minus the sum of what goes.
  local cut = seen["ffn by wanda"]
  local kept, sum = stats:rank { ffn = "wanda" }:kept { ffn = cut.request.ffn }, 0
  local signed, square = { score = function(s) return s.taylor end }, { score = function(s) return s.fisher end }
  local second = 0
  for l = 0, 3 do
    local stays = {}
    for _, c in ipairs(kept.ffn[l + 1]) do stays[c + 1] = true end
    local a, b = stats:score({ axis = "ffn", layer = l, metric = signed }):table(), stats:score({ axis = "ffn", layer = l, metric = square }):table()
    for c, v in ipairs(a) do if not stays[c] then sum, second = sum - v, second - v + b[c] / 2 end end
  end
  t.near({ cut.predicted.first, cut.predicted.second }, { sum, second }, 1e-6)
  t.ok(tostring(all):find("what Taylor's expansion predicted", 1, true), tostring(all))
  t.fails("unknown axis", esp.sensitivity, model, stats, data, { axes = { "head" } })
  t.fails("no nll with a layer left out", esp.sensitivity, model, stats, data, { axes = { "layers" }, metrics = { "nll" }, quiet = true })
  t.fails("option 'precision' is 'half'", esp.sensitivity, model, stats, data, { precision = "half" })
  local half = esp.sensitivity(model, stats, data, { remove = 0.25, axes = { "ffn" }, precision = "bf16", quiet = true })
  local plain = esp.sensitivity(model, stats, data, { remove = 0.25, axes = { "ffn" }, quiet = true })
  for i, row in ipairs(half.rows) do t.ok(row.nll ~= plain.rows[i].nll and math.abs(row.nll - plain.rows[i].nll) < 0.05, "scored in bf16") end
  -- It is the derivative: a channel that shrinks by a thousandth changes the loss by so much.
  local down = model:parameters()["model.layers.2.mlp.down_proj.weight"]
  local before, taylor = esp.evaluate({ model, data = data }).nll, stats:score({ axis = "ffn", layer = 2, metric = signed }):table()
  local largest = 1
  for c, v in ipairs(taylor) do if math.abs(v) > math.abs(taylor[largest]) then largest = c end end
  local column = down:narrow(1, largest - 1, 1)
  column:copy_from(esp.no_grad(function() return column * (1 - 1e-2) end))
  t.near((esp.evaluate({ model, data = data }).nll - before) / 1e-2 / -taylor[largest], 1, 0.05)
end)

t.test("NLL by document: boundaries of packed rows are kept", function()
  local tokens = require "espalier.eval.tokens"
  local function i32(list) return esp.tensor.of(list, { dtype = "i32" }) end
  local lists = { nll = {}, predictions = {}, kl = {}, positions = {} }
  tokens.add_by_document(lists, esp.tensor.of { 1, 2, 0, 4, 0, 9 }, nil, i32 { { 5, 6, -1, 7, -1, -1 } }, i32 { { 0, 0, 0, 3, 3, 5 } })
  t.equal(lists.nll, { 3, 4 })
  t.equal(lists.predictions, { 2, 1 })
  local mean, interval = esp.eval.mean_with_interval({ 3, 4 }, { 2, 1 })
  t.near(mean, 7 / 3, 1e-12)
  t.near(interval, 1.96 * math.sqrt(2 * ((3 - 14 / 3) ^ 2 + (4 - 7 / 3) ^ 2)) / 3, 1e-12)
end)

t.test("a metric and a loss beside the recipe are found by name", function()
  local program, dir = t.program() or t.skip "needs the espalier program", t.folder()
  file.make(dir .. "/metrics")
  file.make(dir .. "/losses")
  t.write(dir .. "/metrics/root.lua", "return { score = function(s) return s.mean_square:sqrt() end }")
  t.write(dir .. "/losses/forward.lua", "return { token = function(s, t) return (t:exp() * (t - s)):sum(-1) end }")
  t.write(dir .. "/r.lua", [[
    local esp = require "espalier"
    local shape = { hidden = 24, ffn = 40, layers = 2, heads = 4, kv_heads = 2, head_dim = 6, vocab = 40, context = 32, norm_eps = 1e-5,
      rope = { theta = 10000 }, tied = true }
    local model, data = esp.models.new(shape, { seed = 1 }), esp.data.of { { 1, 2, 3, 4, 5 }, { 2, 7, 1, 8, 2 } }
    local stats = esp.importance.measure(model, data, { quiet = true })
    local student = esp.prune(model, stats:rank { ffn = "root" }, { ffn = 20, quiet = true })
    local run = esp.distill { teacher = model, student = student, data = data, loss = esp.loss.forward(), steps = 2, batch = 2, quiet = true }
    print(run.steps[2].loss)
  ]])
  local child = process.start({ program, dir .. "/r.lua" }, dir .. "/said")
  t.equal(child:wait(), 0, t.read(dir .. "/said"))
  t.ok(tonumber(t.read(dir .. "/said")) > 0)
end)
