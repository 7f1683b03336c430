--- Lineage: kept through save and load, replayed to the same bits, undone, shown; models told apart in words; sorting.

local t = ...
local esp = require "espalier"
local hash = require "espalier.models.hash"
local shapes = require "espalier.models.shape"
local sort = require "espalier.prune.sort"

local tiny = { hidden = 16, ffn = 24, layers = 3, heads = 8, kv_heads = 4, head_dim = 4, vocab = 30, context = 32, norm_eps = 1e-5,
  rope = { theta = 10000 }, tied = true }
local rows = { { 1, 2, 3, 4, 9, 20 }, { 5, 6, 7, 8, 1, 29 }, { 11, 12, 3, 8, 1, 2 } }

-- A model on disk and its statistics.
local function parent(shape)
  local dir = t.folder() .. "/parent"
  esp.models.new(shape or tiny, { seed = 3, std = 0.3 }):save(dir, { quiet = true })
  local model = esp.load(dir)
  return model, esp.importance.measure(model, rows, { quiet = true, depth = true }), dir
end

local function largest(a, b)
  return (a - b):abs():view(-1):max(0):item()
end

local function same(a, b)
  return hash(a) == hash(b)
end

t.test("a prune is recorded, kept on disk, replayed and undone", function()
  local model, stats, dir = parent()
  local first = esp.prune(model, stats:rank { ffn = "wanda", layers = "kl" }, { hidden = 12, ffn = 16, layers = 2, quiet = true })
  local child = esp.prune(first, esp.importance.measure(first, rows, { quiet = true }), { heads = 4, kv_heads = 2, drop_mlp = { 1 }, quiet = true })
  child:save(dir .. "-child", { quiet = true })
  t.ok(esp.io.file.kind(dir .. "-child/kept.h5") == "file", "the kept sets lie beside the model")
  local loaded = esp.load(dir .. "-child")
  local step = loaded.lineage[1]
  t.equal({ step.step, step.parent, step.parent_hash, step.statistics_hash }, { "prune", dir, hash(model), stats:hash() })
  t.ok(not step.kept, "read when asked for")
  local lineage = esp.lineage(loaded)
  t.equal(#lineage.steps, 2)
  local again = lineage:replay(model)
  t.ok(same(again, child) and same(again, loaded), "the same bits")
  t.equal(again.shape, child.shape)
  t.ok(same(lineage:undo(), first), "undone to the model between, from the parent's own place")
  t.ok(same(esp.lineage(first):undo(), model), "undone to the parent")
  t.ok(same(lineage:replay(model, { steps = 1 }), first), "one step")
  local text = tostring(lineage)
  for _, part in ipairs { "1 prune", hash(model), "hidden 12", "ffn 16", "ffn by wanda", stats:hash(), "2 prune", "heads 4", "kv_heads 2" } do
    t.ok(text:find(part, 1, true), "shows " .. part .. ": " .. text)
  end
  t.fails("the model given has " .. hash(first), lineage.replay, lineage, first)
  t.fails("steps = 3, want 0 to 2", lineage.replay, lineage, model, { steps = 3 })
  t.fails("the argument is nil, want the parent model", lineage.replay, lineage)
  t.fails("no step to undo", esp.lineage(model).undo, esp.lineage(model))
  t.ok(tostring(esp.lineage(model)):find "none", "nothing was done")
end)

t.test("a training step is told, and stops a replay", function()
  local model, stats = parent()
  local student = esp.prune(model, stats, { ffn = 12, quiet = true })
  local run = esp.distill { teacher = model, student = student, data = esp.data.of(rows), steps = 2, batch = 1, quiet = true }
  local lineage = esp.lineage(run.model)
  t.equal(lineage.steps[2].parent_hash, hash(student))
  t.ok(tostring(lineage):find("2 esp.distill: ", 1, true), "told: " .. tostring(lineage))
  t.fails("step 2 is esp.distill, a training run", lineage.replay, lineage, model)
  t.ok(same(lineage:undo(model), student), "undone to what it began from")
end)

t.test("two models told apart in words", function()
  local model, stats = parent()
  local a = esp.prune(model, stats, { hidden = 12, ffn = 16, quiet = true })
  local b = esp.prune(model, stats:rank { hidden = "random" }, { hidden = 12, ffn = 12, drop = { 0 }, quiet = true })
  local d = esp.diff(a, b)
  local text = tostring(d)
  t.ok(not d.same, "not the same")
  for _, part in ipairs { "ffn: 16 -> 12", "layers: 3 -> 2", "parameters: ", "both come from ", "of 12 kept by both", "2 of 2 kept by both" } do
    t.ok(text:find(part, 1, true), "says " .. part .. ": " .. text)
  end
  t.ok(esp.diff(model, a).lines[1] ~= nil and tostring(esp.diff(model, a)):find "the second was made from the first by prune", "from the first")
  t.ok(tostring(esp.diff(a, model)):find "the first was made from the second by prune", "from the second")
  t.equal(tostring(esp.diff(a, a:clone())), "the same model")
  t.ok(esp.diff(a, a:clone()).same, "and says so")
  local other = a:clone()
  other:parameters()["model.norm.weight"]:fill(2)
  t.ok(tostring(esp.diff(a, other)):find("tensors are the same; the furthest apart is model.norm.weight, by 1 of its length", 1, true), "weights")
  t.fails("want two models, the second is nil", esp.diff, a)
end)

t.test("sizes by layer, where 0 takes a part away", function()
  local model, stats = parent()
  local child = esp.prune(model, stats, { ffn = { 24, 0, 10 }, heads = { 8, 4, 0 }, kv_heads = { 4, 2, 0 }, quiet = true })
  t.equal({ child.shape.ffn, child.shape.heads, child.shape.kv_heads }, { { 24, 0, 10 }, { 8, 4, 0 }, { 4, 2, 0 } })
  -- The same as cutting each layer by itself.
  local twin = esp.prune(model, stats, { drop_mlp = { 1 }, drop_attention = { 2 }, quiet = true })
  local ranking = stats:rank {}
  local kept = ranking:kept({ ffn = 10, heads = 4, kv_heads = 2 }, model)
  local all8, all4, all24 = esp.range(0, 7), esp.range(0, 3), esp.range(0, 23)
  local by_hand = esp.prune(twin, nil, { ffn = { 24, 0, 10 }, heads = { 8, 4, 0 }, kv_heads = { 4, 2, 0 }, quiet = true,
    keep = { ffn = { all24, {}, kept.ffn[3] }, heads = { all8, kept.heads[2], {} }, kv_heads = { all4, kept.kv_heads[2], {} } } })
  t.ok(same(child, by_hand), "the same bits")
  t.ok(same(esp.lineage(child):replay(model), child), "replayed")
  t.fails("ffn lists 2 layers, want 3", esp.prune, model, stats, { ffn = { 24, 24 } })
  t.fails("ffn = 25 in layer 1, want 0 to 24", esp.prune, model, stats, { ffn = { 24, 25, 24 } })
  t.fails("heads = 3 with 4 kv_heads in layer 1", esp.prune, model, stats, { heads = { 8, 3, 8 } })
  t.fails("want a whole number, or a list of them by layer", esp.prune, model, stats, { ffn = { 1.5, 2, 3 } })
  t.equal(esp.plan(model, { ffn = "24,0,10" }).after.shape.ffn, { 24, 0, 10 })
end)

t.test("what pruned heads were is given to those that stay, where it is asked for", function()
  local shape = shapes.copy(tiny)
  shape.kv_heads = 2
  local model, stats, dir = parent(shape)
  local ranking = stats:rank {}
  local order, e = ranking:orders(model).heads[2], shape.head_dim
  local plain = esp.prune(model, ranking, { heads = 6, quiet = true })
  local q = model:parameters()["model.layers.1.self_attn.q_proj.weight"]
  for _, r in ipairs { 1, -1, 0.25 } do
    local child = esp.prune(model, ranking, { heads = 6, heads_residual = r, quiet = true })
    local got, before = child:parameters()["model.layers.1.self_attn.q_proj.weight"], plain:parameters()["model.layers.1.self_attn.q_proj.weight"]
    local kept = child.lineage[1].kept.heads[2]
    for group = 0, 1 do
      -- Three of four stay: the third takes from the fourth.
      local third, fourth = order[group * 4 + 3], order[group * 4 + 4]
      for i, h in ipairs(kept) do
        local now = got:narrow(0, (i - 1) * e, e)
        if h == third then
          local a, b = q:narrow(0, h * e, e), q:narrow(0, fourth * e, e)
          t.near(largest(now, a + (a - b) * r), 0, 1e-6, "paired")
        elseif math.floor(h / 4) == math.floor(third / 4) then
          t.equal(largest(now, before:narrow(0, (i - 1) * e, e)), 0, "as it was")
        end
      end
    end
    child:save(dir .. "/residual", { quiet = true })
    t.ok(same(esp.lineage(esp.load(dir .. "/residual")):replay(model), child), "replayed")
  end
  t.ok(same(esp.prune(model, ranking, { heads = 6, heads_residual = 0, quiet = true }), plain), "off by default")
  t.fails("needs a ranking", esp.prune, model, nil, { heads = 6, heads_residual = 1, quiet = true, keep = plain.lineage[1].kept })
end)

t.test("a sorted model is the same function, and its prefixes are what a prune keeps", function()
  local other = shapes.copy(tiny)
  other.layers, other.tied, other.kv_heads = 2, false, 8
  for _, shape in ipairs { tiny, other } do
    local model, stats = parent(shape)
    local ranking = stats:rank { layers = "nll" }
    local sorted = esp.sort(model, ranking)
    local want = model:logits(rows)
    t.ok(largest(want, sorted:logits(rows)) <= 1e-5 * want:abs():view(-1):max(0):item(), "the same logits")
    local each = shape.heads / shape.kv_heads
    local orders, kept = sort.orders(sorted), ranking:kept({ hidden = 10, ffn = 7, heads = 3 * each, kv_heads = 3, layers = 1 }, model)
    local function prefix(list, n)
      local own = { unpack(list, 1, n) }
      table.sort(own)
      return own
    end
    t.equal(prefix(orders.hidden, 10), kept.hidden)
    t.equal(prefix(orders.layers, 1), kept.layers)
    for l = 1, shape.layers do
      t.equal(prefix(orders.ffn[l], 7), kept.ffn[l])
      t.equal(prefix(orders.kv_heads[l], 3), kept.kv_heads[l])
      t.equal(prefix(orders.heads[l], 3 * each), kept.heads[l], "three whole groups")
    end
    t.ok(same(esp.lineage(sorted):replay(model), sorted), "replayed")
    local dir = t.folder() .. "/sorted"
    sorted:save(dir, { quiet = true })
    t.equal(sort.orders(esp.load(dir)), orders, "the orders are kept on disk")
    t.equal(sort.orders(model), nil)
  end
  local model, stats = parent()
  t.fails("want statistics or a ranking", esp.sort, model)
  t.fails("the statistics are of a model with", esp.sort, esp.models.new(other), stats)
  t.fails("unknown option 'fnn'", esp.sort, model, stats:rank {}, { fnn = "wanda" })
end)
