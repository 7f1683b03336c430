--- Search: the knapsack against every choice, cheap losses against sums, the walk against a sort, scores against esp.prune, resumption, halving.

local t = ...
local esp = require "espalier"
local file = require "espalier.io.file"
local json = require "espalier.io.json"
local shapes = require "espalier.models.shape"
local grids = require "espalier.plan.grid"
local goals = require "espalier.plan.goals"
local sort = require "espalier.prune.sort"
local knapsack = require "espalier.search.knapsack"
local layerwise = require "espalier.search.layerwise"
local shortlist = require "espalier.search.shortlist"
local kept = require "espalier.search.kept"
local measured = require "espalier.search.measured"
local scorers = require "espalier.search.scorer"
local rows = require "espalier.search.rows"

-- ---- knapsack ----

-- Whole numbers below n, by a linear congruence: the same on every machine.
local state = 12345
local function draw(n)
  state = (state * 1103515245 + 12345) % 2147483648
  return math.floor(state / 65536) % n
end

-- Least loss over every choice of every group.
local function by_hand(groups, limits)
  local best = math.huge
  local function walk(i, loss, costs)
    for j = 1, #limits do if costs[j] > limits[j] then return end end
    if i > #groups then best = math.min(best, loss) return end
    for _, c in ipairs(groups[i]) do
      local sums = {}
      for j = 1, #limits do sums[j] = costs[j] + c.cost[j] end
      walk(i + 1, loss + c.loss, sums)
    end
  end
  local zero = {}
  for j = 1, #limits do zero[j] = 0 end
  walk(1, 0, zero)
  return best
end

t.test("the knapsack finds what trying every choice finds", function()
  local impossible = 0
  for _ = 1, 200 do
    local groups, limits, m = {}, {}, 1 + draw(2)
    for i = 1, 1 + draw(6) do
      groups[i] = {}
      for k = 1, 1 + draw(5) do
        groups[i][k] = { loss = draw(1000) / 100 - 1, cost = {} }
        for j = 1, m do groups[i][k].cost[j] = draw(30) end
      end
    end
    for j = 1, m do limits[j] = 1 + draw(18 * #groups) end
    local want, got = by_hand(groups, limits), knapsack.solve { groups = groups, limits = limits }
    if want == math.huge then
      impossible = impossible + 1
      t.equal(got, nil)
    else
      t.ok(got.proven and got.gap == 0, "proven")
      t.near(got.loss, want, 1e-9)
      local loss, costs = 0, {}
      for i, k in ipairs(got.picks) do
        loss = loss + groups[i][k].loss
        for j = 1, m do costs[j] = (costs[j] or 0) + groups[i][k].cost[j] end
      end
      t.near(loss, want, 1e-9, "the picks are the answer")
      t.equal(costs, got.costs)
      for j = 1, m do t.ok(costs[j] <= limits[j], "within the limit") end
    end
  end
  t.ok(impossible > 0 and impossible < 150, "both kinds were met: " .. impossible)
  t.fails("group 1 has no choice", knapsack.solve, { groups = { {} }, limits = { 1 } })
  t.fails("the loss of choice 1 of group 1 is nan", knapsack.solve, { groups = { { { loss = 0 / 0, cost = { 1 } } } }, limits = { 1 } })
  t.fails("cost 1 of choice 1 of group 1 is nil", knapsack.solve, { groups = { { { loss = 0, cost = {} } } }, limits = { 1 } })
end)

t.test("an answer that is not proven says how far the best can be", function()
  local groups = {}
  for i = 1, 40 do
    groups[i] = {}
    for k = 1, 8 do groups[i][k] = { loss = draw(1000) * math.exp(-k / 2), cost = { 1000 * k + draw(900), 500 * k + draw(900) } } end
  end
  local limits = { 160000, 90000 }
  local quick = knapsack.solve { groups = groups, limits = limits, nodes = 50 }
  local slow = knapsack.solve { groups = groups, limits = limits, nodes = 20000 }
  t.ok(not quick.proven and quick.gap > 0, "not proven")
  t.ok(slow.loss <= quick.loss and slow.loss >= quick.loss - quick.gap, "within the gap")
end)

-- ---- cheap losses ----

local tiny = { hidden = 24, ffn = 20, layers = 3, heads = 8, kv_heads = 4, head_dim = 4, vocab = 50, context = 40, norm_eps = 1e-5,
  rope = { theta = 10000 }, tied = true }

local function ids(n, T, seed)
  local list = {}
  for b = 1, n do
    list[b] = {}
    for i = 1, T do list[b][i] = (b * 31 + i * i * 7 + seed * 13 + i * b) % 50 end
  end
  return list
end

local function world()
  local model = esp.models.new(tiny, { seed = 2, std = 0.3 })
  local stats = esp.importance.measure(model, ids(4, 16, 1), { quiet = true, depth = true })
  local ranking = stats:rank { layers = "kl" }
  return model, ranking, esp.sort(model, ranking), ids(3, 30, 5)
end

local axes = { "layers", hidden = { 24, 16, 8 }, ffn = { 20, 13, 5 }, heads = { 8, 4, 2 }, kv_heads = { 4, 2 } }

t.test("a cell's loss is the sum of its parts, and the walk keeps the least", function()
  local model, ranking, sorted, held_out = world()
  local orders = sort.orders(sorted)
  local grid = grids.new(tiny, { axes = axes, order = orders.layers })
  local scorer = scorers.new(sorted, held_out, {})
  for _, parts in ipairs { kept.new(tiny, ranking, orders, model), measured.new(sorted, grid, scorer, { quiet = true }) } do
    local loss, cells = shortlist.loss(tiny, parts, orders.layers), {}
    local function by_sum(c)
      local sum, stays = parts.hidden(c.hidden), {}
      for n = 1, c.layers do stays[orders.layers[n]] = true end
      for l = 0, 2 do
        sum = sum + (stays[l] and parts.mlp(l, c.ffn) + parts.attention(l, c.heads, c.kv_heads) or parts.layer(l))
      end
      return sum
    end
    for c in grid:each() do
      t.near(loss(c), by_sum(c), 1e-9 * (1 + math.abs(by_sum(c))))
      t.ok(loss(c) >= -1e-6, "no gain by a cut")
      if c.parameters <= 6000 then cells[#cells + 1] = loss(c) end
    end
    t.near(loss { hidden = 24, ffn = 20, heads = 8, kv_heads = 4, layers = 3 }, 0, 1e-6, "nothing is lost where nothing is cut")
    table.sort(cells)
    local budget = goals.of({ params = 6000, batch = 1, length = 8 }, grid)
    local found = shortlist.walk(grid, budget, loss, 10, { quiet = true })
    t.equal(found.fitting, #cells)
    for i = 1, 5 do t.near(found.list[i].cheap, cells[i], 1e-12, "the best half") end
    t.equal(#found.list, 10)
  end
  t.fails("none of", shortlist.walk, grid, goals.of({ params = 10, batch = 1, length = 8 }, grid), function() return 0 end, 4,
    { quiet = true })
end)

t.test("a measured part is the KL of the model with it cut", function()
  local _, _, sorted, held_out = world()
  local grid, scorer = grids.new(tiny, { axes = axes }), scorers.new(sorted, held_out, {})
  local parts = measured.new(sorted, grid, scorer, { quiet = true })
  local function kl(request) return scorer:score(esp.slice(sorted, request)).kl end
  t.equal(parts.hidden(8), kl { hidden = 8 })
  t.equal(parts.mlp(1, 5), kl { ffn = { 20, 5, 20 } })
  t.equal(parts.mlp(2, 0), kl { drop_mlp = { 2 } })
  t.equal(parts.attention(0, 4, 2), kl { heads = { 4, 8, 8 }, kv_heads = { 2, 4, 4 } })
  t.equal(parts.attention(0, 0, 0), kl { drop_attention = { 0 } })
  t.equal(parts.layer(1), kl { drop = { 1 } })
  local a, b = parts.mlp(1, 13), parts.mlp(1, 20)
  t.near(parts.mlp(1, 16.5), (a + b) / 2, 1e-12, "straight lines between")
end)

t.test("shapes by layer are the least of all choices", function()
  local model, ranking, sorted = world()
  local orders = sort.orders(sorted)
  local grid = grids.new(tiny, { axes = { hidden = { 24 }, ffn = { 20, 9 }, heads = { 8, 4 } }, engine = "any" })
  local parts = kept.new(tiny, ranking, orders, model)
  local best, count = math.huge, 0
  local function every(l, request, loss)
    if l == 3 then
      local r = rows.new(tiny, request, loss, { batch = 1, length = 8 })
      if r.parameters <= 4000 then best, count = math.min(best, loss), count + 1 end
      return
    end
    for _, f in ipairs { 20, 9, 0 } do
      for _, h in ipairs { 8, 4, 0 } do
        request.ffn[l + 1], request.heads[l + 1], request.kv_heads[l + 1] = f, h, h > 0 and 4 or 0
        every(l + 1, request, loss + parts.mlp(l, f) + parts.attention(l, h, h > 0 and 4 or 0))
      end
    end
  end
  every(0, { ffn = {}, heads = {}, kv_heads = {} }, 0)
  t.ok(count > 20, "choices within: " .. count)
  local found = layerwise.shapes(grid, parts, goals.of({ params = 4000, batch = 1, length = 8 }, grid),
    { batch = 1, length = 8, quiet = true }, 1)
  t.equal(#found, 1)
  t.near(found[1].cheap, best, 1e-9)
  t.ok(rows.new(tiny, found[1].request, 0, { batch = 1, length = 8 }).parameters <= 4000, "within")
end)

-- ---- the search ----

t.test("a search scores truly, resumes, and leaves its best on disk", function()
  local model, ranking, _, held_out = world()
  local dir = t.folder() .. "/found"
  local request = { model = model, stats = ranking, data = held_out, budget = { params = 6000, memory = "20kB", length = 16 }, axes = axes, top = 8,
    per_layer = true, out = dir, quiet = true }
  local search = esp.search(request)
  t.ok(#search.rows > 8 and search.scored == #search.rows, "all were scored")
  local best = search.rows[1]
  for i, row in ipairs(search.rows) do
    t.ok(row.parameters <= 6000 and row.memory <= 20000, row.name)
    t.ok(best.nll <= row.nll and (i == 1 or search.rows[i - 1].nll <= row.nll), "best first")
    t.equal(row.parameters, shapes.parameters(row.shape))
  end
  t.ok(best.front, "the best is on the front")
  local prune = { quiet = true }
  for k, v in pairs(best.request) do prune[k] = v end
  t.near(best.nll, esp.prune(model, ranking, prune):loss(held_out), 1e-5, "as esp.prune scores")
  t.near(esp.load(dir .. "/best"):loss(held_out), best.nll, 1e-6, "the best lies on disk")
  t.near(search:best():loss(held_out), best.nll, 1e-6)
  t.ok(tostring(search):find("best so far: " .. dir, 1, true), "shown")
  -- Scores that are there are taken: one is changed on disk, and comes back.
  local record = json.read(dir .. "/search.json")
  record.rows[#record.rows].nll = 99
  json.write(dir .. "/search.json", record)
  t.equal(esp.search(request).rows[#search.rows].nll, 99, "taken from disk")
  request.budget = { params = 5000 }
  t.fails("holds a search of another model, statistics, budget or axes", esp.search, request)
end)

t.test("a search that runs out of time has a best, and says what it left", function()
  local model, ranking, _, held_out = world()
  for _, score in ipairs { "kl", "kept" } do
    local dir = t.folder() .. "/late"
    local search = esp.search { model = model, stats = ranking, data = held_out, budget = { params = 6000, time = 1e-9 }, axes = axes, top = 6,
      score = score, out = dir, quiet = true }
    t.equal(search.scored, 1)
    t.ok(search.rows[1].nll and not search.rows[2].nll, "one is scored, and stands first")
    t.ok(tostring(search):find("the time was up: 5 of 6 candidates were not scored", 1, true), tostring(search))
    t.ok(tostring(search):find("ranked by importance kept", 1, true), "nothing was measured")
    t.near(esp.load(dir .. "/best"):loss(held_out), search.rows[1].nll, 1e-6, "the best so far is on disk")
  end
  local own = esp.search { model = model, stats = ranking, data = held_out, axes = axes, top = 3, quiet = true,
    score = function(c) return c.layers end }
  t.equal(own.rows[1].shape.layers, 1, "a loss of one's own")
  t.fails("score is colour", esp.search, { model = model, stats = ranking, data = held_out, score = "colour", quiet = true })
  t.fails("per_layer chooses within a budget", esp.search, { model = model, stats = ranking, data = held_out, per_layer = true, quiet = true })
  t.fails("option 'stats' is missing", esp.search, { model = model, data = held_out })
  t.fails("did you mean 'params'?", esp.search, { model = model, stats = ranking, data = held_out, budget = { parms = 3 } })
  t.fails("data must be a split", esp.search, { model = model, stats = ranking, data = held_out, top = 2, axes = axes, quiet = true,
    out = t.folder() .. "/f", kd = { tokens = 10 } })
end)

t.test("a search in bf16 scores in bf16 and gives a model in f32", function()
  local model, ranking, sorted, held_out = world()
  local search = esp.search { model = model, stats = ranking, data = held_out, budget = { params = 6000 }, axes = axes, top = 3, score = "kept",
    precision = "bf16", quiet = true }
  for _, row in ipairs(search.rows) do
    t.equal(row.nll, (esp.slice(sorted:in_precision "bf16", row.request):loss(held_out)))
    t.ok(row.nll ~= (esp.slice(sorted, row.request):loss(held_out)))
  end
  t.equal(search:best().precision, nil)
  t.ok(tostring(search):find("in bf16", 1, true), tostring(search))
  t.fails("option 'precision' is 'f64'", esp.search, { model = model, stats = ranking, data = held_out, precision = "f64" })
end)

t.test("fronts of loss against parameters, memory and latency, where they are asked for", function()
  local model, ranking, _, held_out = world()
  local search = esp.search { model = model, stats = ranking, data = held_out, axes = axes, top = 12, score = "kept", quiet = true,
    budget = { length = 8 }, fronts = { "parameters", "latency" } }
  for _, measure in ipairs { "parameters", "memory", "latency" } do
    local front, on = search:front(measure), {}
    for _, r in ipairs(front) do on[r] = true end
    t.ok(#front > 0 and front.of == #search.rows, measure)
    for _, a in ipairs(search.rows) do
      local beaten = false
      for _, b in ipairs(search.rows) do
        beaten = beaten or (b.nll <= a.nll and b[measure] <= a[measure] and (b.nll < a.nll or b[measure] < a[measure]))
      end
      t.equal(on[a] or false, not beaten, measure .. " of " .. a.name)
    end
    for i = 2, #front do t.ok(front[i][measure] >= front[i - 1][measure] and front[i].nll <= front[i - 1].nll, "smallest first, best last") end
    t.ok(tostring(front):find("front of NLL against " .. measure, 1, true)
      and tostring(front):find(": " .. #front .. " of 12 candidates", 1, true), tostring(front))
    t.equal(tostring(search):find("front of NLL against " .. measure, 1, true) ~= nil, measure ~= "memory", "printed where asked for")
  end
  local without = esp.search { model = model, stats = ranking, data = held_out, axes = axes, top = 2, score = "kept", quiet = true }
  t.fails("latency was not measured", without.front, without, "latency")
  t.fails("option 'measure' is 'time', want one of parameters, memory, latency", without.front, without, "time")
  t.fails("option 'fronts' is 'time'", esp.search, { model = model, stats = ranking, data = held_out, fronts = { "time" } })
end)

t.test("Ctrl-C ends a search with its best so far, and the same call goes on", function()
  local program = t.program() or t.skip "needs the espalier program"
  local dir = t.folder()
  t.write(dir .. "/recipe.lua", ([[local esp = require "espalier"
    local model = esp.models.new({ hidden = 24, ffn = 20, layers = 3, heads = 8, kv_heads = 4, head_dim = 4, vocab = 50, context = 40,
      norm_eps = 1e-5, rope = { theta = 10000 }, tied = true }, { seed = 2, std = 0.3 })
    local ids = {}
    for b = 1, 3 do ids[b] = {} for i = 1, 16 do ids[b][i] = (b * 31 + i * i * 7 + i * b) % 50 end end
    local ffi, scorers, scored = require "ffi", require "espalier.search.scorer", 0
    ffi.cdef "int raise(int);"
    local new = scorers.new
    function scorers.new(...)
      local scorer = new(...)
      local score = scorer.score
      function scorer.score(...)
        scored = scored + 1
        if scored == tonumber(os.getenv "STOP") then ffi.C.raise(2) end
        return score(...)
      end
      return scorer
    end
    local search = esp.search { model = model, stats = esp.importance.measure(model, ids, { quiet = true }), data = ids, top = 20, score = "kept",
      quiet = true, out = "DIR/found" }
    print("scored " .. scored, search)]]):gsub("DIR", dir))
  local function run(stop)
    file.remove(dir .. "/said")
    local code = esp.io.process.start({ "/usr/bin/env", "STOP=" .. stop, program, dir .. "/recipe.lua" }, dir .. "/said"):wait()
    return t.read(dir .. "/said"), code
  end
  -- The whole model first, then four candidates.
  local said, code = run(5)
  t.equal(code, 130, said)
  t.ok(said:find("esp.search: stopped; the same call goes on from " .. dir .. "/found (interrupted)", 1, true), said)
  t.ok(said:find("interrupted: 16 of 20 candidates were not scored", 1, true), said)
  t.ok(esp.load(dir .. "/found/best"), "the best so far is on disk")
  said, code = run(0)
  t.equal(code, 0, said)
  t.ok(said:find("scored 17", 1, true), "what was scored is not scored again: " .. said)
end)

t.test("rank correlation and the front", function()
  t.near(rows.rank_correlation({ 1, 2, 3, 4 }, { 10, 20, 40, 80 }), 1, 1e-12)
  t.near(rows.rank_correlation({ 1, 2, 3, 4 }, { 4, 3, 2, 1 }), -1, 1e-12)
  t.near(rows.rank_correlation({ 1, 2, 2, 4 }, { 1, 3, 2, 4 }), 0.9486832980505138, 1e-12, "ties share their ranks")
  local list = { { nll = 1, parameters = 10, memory = 5 }, { nll = 2, parameters = 8, memory = 5 }, { nll = 2, parameters = 9, memory = 5 },
    { parameters = 1, memory = 1 } }
  rows.mark_front(list)
  t.equal({ list[1].front, list[2].front, list[3].front, list[4].front }, { true, true, false, false })
end)

local recipe = [[
local esp = require "espalier"
local model = esp.models.new({ hidden = 24, ffn = 20, layers = 3, heads = 8, kv_heads = 4, head_dim = 4, vocab = 50, context = 40, norm_eps = 1e-5,
  rope = { theta = 10000 }, tied = true }, { seed = 2, std = 0.3 })
local function ids(n, seed)
  local list = {}
  for b = 1, n do
    list[b] = {}
    for i = 1, 16 do list[b][i] = (b * 31 + i * i * 7 + seed * 13 + i * b) % 50 end
  end
  return list
end
local data = { train = esp.data.of(ids(12, 1)), held_out = esp.data.of(ids(3, 9)) }
local stats = esp.importance.measure(model, ids(4, 1), { quiet = true })
print(esp.search { model = model, stats = stats, data = data, budget = { params = 6000 }, top = 6, out = "found",
  kd = { tokens = 64, batch = 2, finalists = 4 } })
]]

t.test("finalists are distilled in rounds, the better half for longer, and never again", function()
  local program = t.program() or t.skip "needs the espalier program"
  local dir = t.folder()
  t.write(dir .. "/recipe.lua", recipe)
  local function run()
    local child = esp.io.process.start({ "/bin/sh", "-c", "cd '" .. dir .. "' && '" .. file.real(program) .. "' recipe.lua" }, dir .. "/printed")
    local code, printed = child:wait(), t.read(dir .. "/printed")
    file.remove(dir .. "/printed")
    t.equal(code, 0, printed:sub(-500))
    return printed
  end
  local printed = run()
  t.ok(printed:find("sweep found/round.1: 4 cells, 0 done, 4 to run", 1, true), printed)
  t.ok(printed:find("sweep found/round.2: 2 cells, 0 done, 2 to run", 1, true), printed)
  local found = json.read(dir .. "/found/search.json")
  t.equal({ found.rows[1].round, found.rows[2].round, found.rows[3].round, found.rows[4].round }, { 2, 2, 1, 1 })
  t.ok(found.rows[1].kd_nll <= found.rows[2].kd_nll, "the best first")
  t.near(esp.load(dir .. "/found/best").shape.hidden, rows.new(tiny, found.rows[1].request, 0, { batch = 1, length = 8 }).shape.hidden, 0)
  t.ok(run():find("sweep found/round.2: 2 cells, 2 done, 0 to run", 1, true), "a second start runs nothing again")
end)
