--- Bad input gets one sentence that says what came, what was wanted and where.
local t = ...

local esp = require "espalier"
local tensor = require "espalier.tensor"
local file, json, process = esp.io.file, esp.io.json, esp.io.process

local shape = { hidden = 16, ffn = 24, layers = 3, heads = 4, kv_heads = 2, head_dim = 8, vocab = 40, context = 32, norm_eps = 1e-5,
  rope = { theta = 10000 }, tied = true }

local function model(seed) return esp.models.new(shape, { seed = seed or 1 }) end

local function rows(n, seed)
  local list = {}
  for r = 1, n do
    list[r] = {}
    for i = 1, 16 do list[r][i] = (r * 31 + i * i * 7 + seed) % 40 end
  end
  return list
end

local function ids(n) return tensor.of(rows(n, 0), { dtype = "i32" }) end

t.test("config.json: a field that is missing, of the wrong kind or impossible", function()
  local dir = t.folder() .. "/m"
  model():save(dir, { quiet = true })
  local path = dir .. "/config.json"
  local good = t.read(path)
  local function with(change)
    local config = json.decode(good, path)
    change(config)
    json.write(path, config)
    return pcall(esp.load, dir)
  end
  local cases = {}
  for _, name in ipairs { "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "rms_norm_eps", "model_type",
    "max_position_embeddings" } do
    cases["no " .. name] = { name, function(c) c[name] = nil end }
    cases[name .. " is a list"] = { name, function(c) c[name] = json.array {} end }
  end
  cases["heads do not divide"] = { "kv_heads", function(c) c.num_attention_heads = 3 end }
  cases["no heads"] = { "", function(c) c.num_attention_heads = 0 end }
  cases["odd head_dim"] = { "head_dim", function(c) c.head_dim = 7 end }
  cases["a billion layers"] = { "at most 10000", function(c) c.num_hidden_layers = 1e9 end }
  cases["negative layers"] = { "layers", function(c) c.num_hidden_layers = -1 end }
  cases["a vocabulary smaller than the embedding"] = { "embed_tokens", function(c) c.vocab_size = 39 end }
  cases["a wider model than its weights"] = { "[", function(c) c.hidden_size = 32 end }
  cases["a layer too many"] = { "layers.3", function(c) c.num_hidden_layers = 4 end }
  cases["an unknown rope"] = { "rope", function(c) c.rope_parameters.rope_type = "spiral" end }
  cases["biases that the file has not"] = { "q_proj.bias", function(c) c.attention_bias = true end }
  cases["a field that nobody knows"] = { "residual_multiplier", function(c) c.residual_multiplier = 0.5 end }
  cases["another activation"] = { "hidden_act", function(c) c.hidden_act = "gelu" end }
  cases["another architecture"] = { "bert", function(c) c.model_type = "bert" end }
  for what, case in pairs(cases) do
    local ok, message = with(case[2])
    t.ok(not ok, what .. " was accepted")
    t.ok(message:find(case[1], 1, true) and message:find(dir, 1, true), what .. ": " .. tostring(message))
  end
  t.write(path, "7")
  t.fails("holds 7, want an object of fields", esp.load, dir)
  t.write(path, good:sub(1, 50))
  t.fails("config.json", esp.load, dir)
  file.remove(path)
  t.fails("config.json", esp.load, dir)
end)

t.test("esp.load says how a model would be fetched", function()
  t.fails("hf download no-such-org/no-such-model", esp.load, "no-such-org/no-such-model")
  t.fails("there is no './nothing/here'", esp.load, "./nothing/here")
end)

t.test("a tokenizer that does not fit the model is refused", function()
  local tok = esp.tokenizer.load(t.shared "data/models/stories260K/tok512.model")
  local m = model()
  m.tokenizer = tok
  t.fails("512 pieces, the model's vocabulary 40", esp.generate, m, "Once")
  local data = esp.data.open({ "one two three", "four five six" }, { tokenizer = tok, seq = 16 })
  t.fails("512 pieces, the model's vocabulary 40", esp.train, { m, data = data, steps = 1 })
end)

t.test("NaN in weights is named, and nothing is written", function()
  local m, dir = model(), t.folder()
  m:parameters()["model.layers.1.mlp.up_proj.weight"]:data()[5] = 0 / 0
  t.fails("model.layers.1.mlp.up_proj.weight", m.save, m, dir .. "/m", { quiet = true })
  t.equal(file.list(dir), {})
  local stats = esp.importance.measure(m, ids(4), { quiet = true })
  t.fails("NaN", esp.prune, m, stats, { hidden = 8, quiet = true })
end)

t.test("impossible cuts name the nearest legal ones", function()
  local m = model()
  local stats = esp.importance.measure(m, ids(4), { quiet = true })
  local function prune(opt)
    opt.quiet = true
    return esp.prune(m, stats, opt)
  end
  t.fails("the nearest legal are 2 and 4", prune, { heads = 3 })
  t.fails("hidden = 17, want 1 to 16", prune, { hidden = 17 })
  t.fails("ffn = 0, want 1 to 24", prune, { ffn = 0 })
  t.fails("want 0 to 2", prune, { drop = { 3 } })
  t.fails("at least one must stay", prune, { drop = { 0, 1, 2 } })
  t.fails("both layers and drop", prune, { layers = 2, drop = { 0 } })
  local other = esp.models.new(prune({ hidden = 8 }).shape, { seed = 2 })
  t.fails("the statistics are of a model with", esp.prune, other, stats, { ffn = 8, quiet = true })
  t.fails("no nll with a layer left out; measure with { depth = true }", esp.prune, m, stats:rank { layers = "nll" }, { layers = 2, quiet = true })
end)

t.test("a typo in any option names the nearest option", function()
  local m = model()
  local stats, data = esp.importance.measure(m, ids(4), { quiet = true }), esp.data.of(rows(4, 1))
  local function typo(wrong, right, fn, ...)
    t.fails("unknown option '" .. wrong .. "'; did you mean '" .. right .. "'?", fn, ...)
  end
  typo("hiden", "hidden", esp.prune, m, stats, { hiden = 8 })
  typo("temprature", "temperature", esp.generate, m, "a", { temprature = 1 })
  typo("dpeth", "depth", esp.importance.measure, m, ids(4), { dpeth = true })
  typo("seqq", "seq", esp.data.open, { "a" }, { seqq = 3 })
  typo("stpes", "steps", esp.train, { m, data = data, stpes = 1 })
  typo("teacer", "teacher", esp.distill, { teacer = m, student = m, data = data, steps = 1 })
  typo("metrc", "metric", stats.score, stats, { axis = "ffn", layer = 0, metrc = "wanda" })
  typo("remov", "remove", esp.sensitivity, m, stats, data, { remov = 0.1 })
  typo("cels", "cells", esp.sweep, { cels = {}, run = print, out = "x" })
  typo("peek", "peak", esp.schedule.cosine, { peek = 1 })
  typo("fnn", "ffn", esp.plan, m, { fnn = 3 })
  t.fails("there is no activaton.lua", stats.score, stats, { axis = "ffn", layer = 0, metric = "activaton" })
  t.fails("losses: there is no klo.lua", esp.loss.klo)
  t.fails("want a whole number", esp.train, { m, data = data, steps = 1.5 })
end)

t.test("quantities", function()
  local q = esp.quantity
  for text, want in pairs { ["2M"] = 2e6, ["380B"] = 380e9, ["64k"] = 64000, ["1e6"] = 1e6, ["7"] = 7 } do t.equal(q.count(text), want, text) end
  t.equal(q.bytes "24GiB", 24 * 2 ^ 30)
  t.equal(q.bytes "1.5GB", 1.5e9)
  t.equal(q.seconds "10min", 600)
  t.equal(q.percent "1%", 0.01)
  for _, bad in ipairs { "2Q", "M", "", "2 M M", "-", "1.2.3" } do t.fails("'" .. bad .. "' is no count", q.count, bad) end
  t.equal(q.show_exact(12247782400), "12,247,782,400")
end)

t.test("the schedule is what its curve says", function()
  local s = esp.schedule.cosine { peak = 2e-3, min = 2e-4, warmup = 20 }
  t.near(s.rate(1, 400), 1e-4, 1e-12)
  t.near(s.rate(20, 400), 2e-3, 1e-12)
  t.near(s.rate(400, 400), 2e-4, 1e-5)
  local last = 1
  for step = 20, 400 do
    t.ok(s.rate(step, 400) <= last, "it falls")
    last = s.rate(step, 400)
  end
end)

t.test("a split is by document: disjoint, the same every time, equal texts together", function()
  local texts = {}
  for i = 1, 400 do texts[i] = "story number " .. i % 390 end
  local function sides()
    local s = esp.data.open(texts):split { held_out = "10%" }
    return s.train:texts(), s.held_out:texts()
  end
  local train, held = sides()
  local again, held_again = sides()
  t.equal(train, again)
  t.equal(held, held_again)
  t.ok(#held > 15 and #held < 80, #held .. " held out of 400")
  local seen = {}
  for _, x in ipairs(train) do seen[x] = true end
  for _, x in ipairs(held) do t.ok(not seen[x], x .. " is on both sides") end
  t.fails("training side of a split", esp.evaluate, { model(), data = esp.data.open(texts):split { held_out = 0.1 }.train })
end)

t.test("the program says it in one line and ends with 1", function()
  local program = t.program() or t.skip "needs the espalier program"
  local dir = t.folder()
  t.write(dir .. "/typo.lua", "local esp = require 'espalier'\nlocal opt = esp.options(..., { tokens = { 'tokens' } })\nesp.lod('x')\n")
  t.write(dir .. "/syntax.lua", "local x = = 1\n")
  t.write(dir .. "/deep.lua", "local esp = require 'espalier'\n\nesp.load(nil)\n")
  for _, case in ipairs {
    { { "plan", "nowhere" }, "nowhere" }, { { "paln" }, "did you mean 'plan'" }, { { "plan", "nowhere", "hidden" }, "name=value" },
    { { dir .. "/typo.lua", "tokns=3" }, "did you mean 'tokens'" }, { { dir .. "/typo.lua", "tokens=many" }, "'many' is no count" },
    { { dir .. "/typo.lua", "tokens=3" }, "typo.lua:3" }, { { dir .. "/syntax.lua" }, "syntax.lua:1" }, { { dir .. "/deep.lua" }, "deep.lua:3" },
    { { dir .. "/none.lua" }, "none.lua" }, { { "-e", "error 'boom'" }, "boom" }, { { "show", dir .. "/none" }, "none" },
    { { "help", "prun" }, "prun" },
  } do
    local child = process.start({ program, unpack(case[1]) }, dir .. "/out")
    local code, said = child:wait(), t.read(dir .. "/out")
    file.remove(dir .. "/out")
    local what = table.concat(case[1], " ") .. ": " .. said
    t.equal(code, 1, what)
    t.ok(said:find("^espalier: ") and said:find(case[2], 1, true) and select(2, said:gsub("\n", "")) == 1, what)
  end
end)
