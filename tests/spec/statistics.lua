--- Statistics as files and parts: they add up, refuse to mix, go on where they were stopped; rankings; layers left out; metrics of one's own.

local t = ...
local esp = require "espalier"
local tensor = require "espalier.tensor"
local shapes = require "espalier.models.shape"
local file, process = esp.io.file, esp.io.process

local shape = { hidden = 12, ffn = 10, layers = 4, heads = 4, kv_heads = 2, head_dim = 4, vocab = 23, context = 32, norm_eps = 1e-5,
  rope = { theta = 10000 }, tied = true }

local function model_of(seed) return esp.models.new(shape, { seed = seed or 3, std = 0.4 }) end

-- n rows of 8 tokens, from row `from` on.
local function rows_of(n, from)
  local list = {}
  for r = 1, n do
    list[r] = {}
    for p = 1, 8 do list[r][p] = ((from or 0) + r) * 31 % 23 * p * p % 23 end
  end
  return list
end

local function measure(model, rows, opt)
  local own = { quiet = true, batch = 3 }
  for k, v in pairs(opt or {}) do own[k] = v end
  return esp.importance.measure(model, rows, own)
end

local function axes(stats)
  return { stats:score { axis = "ffn", layer = 1, metric = "flap" }:table(), stats:score({ axis = "hidden" }):table(),
    stats:score({ axis = "layers", metric = "nll" }):table(), stats:score({ axis = "layers", part = "mlp" }):table() }
end

local function axes_of_width(stats)
  return { stats:score { axis = "ffn", layer = 1, metric = "flap" }:table(), stats:score({ axis = "hidden" }):table(),
    stats:score({ axis = "heads", layer = 2, metric = "contribution" }):table(), stats:score({ axis = "layers" }):table() }
end

t.test("shards add up to the whole, whatever the batch; halves too", function()
  local model, opt = model_of(), { depth = true, grads = true }
  local whole = measure(model, rows_of(10), opt)
  local parts = measure(model, rows_of(4), opt):merge(measure(model, rows_of(6, 4), { depth = true, grads = true, batch = 1 }))
  t.equal({ parts:total "rows", parts:total "tokens", parts:total "predictions" }, { 10, 80, 70 })
  t.near(axes(parts), axes(whole), 1e-5)
  t.near(parts:score { axis = "ffn", layer = 0, metric = "taylor_abs" }, whole:score { axis = "ffn", layer = 0, metric = "taylor_abs" }, 1e-6)
  local even, odd = {}, {}
  for i, row in ipairs(rows_of(10)) do table.insert(i % 2 == 1 and even or odd, row) end
  for h, own in ipairs { even, odd } do
    local alone, half = measure(model, own, { depth = true }), whole:half(h - 1)
    t.equal(half:total "rows", 5)
    t.near(axes(half), axes(alone), 1e-5)
  end
  t.ok(measure(model, rows_of(10), opt):hash() == whole:hash(), "the same question has the same hash")
  t.ok(whole:hash() ~= parts:hash(), "another has another")
end)

t.test("a pass in bf16 is one of the same statistics; precision is the model's own where nothing is said", function()
  local model, largest = model_of(), { axes = { "ffn", "heads", "hidden" }, collect = { peak = { of = function(x) return x:abs():max(1):max(0) end,
    merge = "max" } }, score = function(s) return s.peak end }
  local function opt(precision) return { depth = true, grads = true, metrics = { largest }, precision = precision } end
  local f32, bf16 = measure(model, rows_of(10), opt "f32"), measure(model, rows_of(10), opt "bf16")
  t.near(axes(bf16), axes(f32), 0.05)
  for _, metric in ipairs { "wanda", "flap", "taylor_abs", "fisher", "contribution", largest } do
    local a, b = f32:score { axis = "ffn", layer = 1, metric = metric }, bf16:score { axis = "ffn", layer = 1, metric = metric }
    t.near(b, a, 0.03 * a:max(0):item())
  end
  for _, axis in ipairs { "heads", "kv_heads" } do
    local a, b = f32:score { axis = axis, layer = 2, metric = "contribution" }, bf16:score { axis = axis, layer = 2, metric = "contribution" }
    t.near(b, a, 0.03 * a:max(0):item())
  end
  t.ok(f32:hash() ~= bf16:hash(), "it is another question")
  t.equal(measure(model:in_precision "bf16", rows_of(10), opt()):hash(), bf16:hash())
  t.equal(measure(model:in_precision "bf16", rows_of(10), opt "f32"):hash(), f32:hash())
end)

t.test("the sums of activations do not depend on how many rows go at once", function()
  local model = model_of()
  local one = measure(model, rows_of(7), { batch = 1 })
  for _, batch in ipairs { 2, 7, 100 } do t.near(axes_of_width(measure(model, rows_of(7), { batch = batch })), axes_of_width(one), 1e-7) end
  t.near(axes_of_width(esp.importance.measure(model, rows_of(7), { quiet = true })), axes_of_width(one), 1e-7)
  t.fails("batch = 0, want 1 or more rows", measure, model, rows_of(7), { batch = 0 })
end)

t.test("what does not belong together is refused", function()
  local model = model_of()
  local stats = measure(model, rows_of(4))
  t.fails("of different models", stats.merge, stats, measure(model_of(4), rows_of(4, 4)))
  t.fails("both hold the same 4 rows of data", stats.merge, stats, measure(model, rows_of(4)))
  t.fails("measure both with the same options", stats.merge, stats, measure(model, rows_of(4, 4), { grads = true }))
  t.fails("want statistics", stats.merge, stats, { 1 })
  local other = measure(model, rows_of(4, 4))
  other.facts.tokenizer = "another"
  t.fails("of different tokenizers", stats.merge, stats, other)
  local merged = measure(model, rows_of(4), { grads = true }):merge(measure(model, rows_of(4, 4), { grads = true }))
  t.fails("needs the gradient of all data at once", merged.score, merged, { axis = "ffn", layer = 0, metric = "taylor_weight" })
end)

t.test("a file goes on where it was, is extended by more rows, and refuses other data and other questions", function()
  local model, path = model_of(), t.folder() .. "/s.h5"
  local whole = measure(model, rows_of(10), { depth = true })
  measure(model, rows_of(4), { depth = true, out = path })
  local on = measure(model, rows_of(10), { depth = true, out = path, batch = 4 })
  t.equal(on:total "rows", 10)
  -- 4 rows came from a file, to f32.
  t.near(axes(on), axes(whole), 5e-6)
  t.near(axes(esp.importance.load(path)), axes(whole), 5e-6)
  t.equal(measure(model, rows_of(10), { depth = true, out = path }):hash(), on:hash(), "done: nothing runs again")
  t.fails("are of other data", measure, model, rows_of(12, 1), { depth = true, out = path })
  t.fails("holds 10 rows of other data, this has 3", measure, model, rows_of(3), { depth = true, out = path })
  t.fails("of another question", measure, model, rows_of(10), { out = path })
  t.fails("of another model", measure, model_of(5), rows_of(10), { depth = true, out = path })
  -- The weight form needs the gradient of all rows: gone on from a file it is not there.
  local grads = t.folder() .. "/g.h5"
  measure(model, rows_of(4), { grads = true, out = grads })
  t.ok(esp.importance.load(grads):score { axis = "hidden", metric = "taylor_weight" }, "in one go it is")
  local later = measure(model, rows_of(6), { grads = true, out = grads })
  t.fails("needs the gradient of all data at once", later.score, later, { axis = "hidden", metric = "taylor_weight" })
end)

-- Every score of a file is that of what was saved.
local function same_answers(a, b, tolerance)
  local compared = 0
  local function near(opt)
    if opt.metric == "taylor_weight" and not a.outer["hidden.taylor_weight"] then return end
    local x, y = a:score(opt), b:score(opt)
    local most = math.max(x:abs():max(0):item(), 1e-6)
    esp.no_grad(function() t.near((x - y):abs():max(0):item() / most, 0, tolerance, (opt.axis or "") .. " " .. (opt.metric or opt.agg or "")) end)
    compared = compared + x.shape[1]
  end
  for l = 0, a.shape.layers - 1 do
    for _, batch in ipairs { "mean", "l2", "var" } do
      for _, seq in ipairs { "mean", "l2", "var" } do
        for _, site in ipairs { "ffn", "pre", "act" } do near { axis = "ffn", layer = l, site = site, agg = batch .. "," .. seq } end
        for _, axis in ipairs { "heads", "kv_heads", "attention" } do near { axis = axis, layer = l, agg = batch .. "," .. seq } end
      end
    end
    for _, axis in ipairs { "ffn", "heads", "kv_heads" } do
      for _, metric in ipairs { "magnitude", "wanda", "flap", "contribution", "taylor", "taylor_abs", "taylor_second", "fisher", "taylor_weight" } do
        near { axis = axis, layer = l, metric = metric }
      end
    end
  end
  near { axis = "hidden", metric = "flap", norms = { "norm1", "norm2" } }
  near { axis = "hidden", norms = { "norm1", "norm2", "final" }, agg = "var,mean" }
  near { axis = "head_dim" }
  for _, metric in ipairs { "bi", "angular", "nll", "kl", "mse_hidden" } do near { axis = "layers", metric = metric } end
  return compared
end

t.test("a file answers as what was saved did, to f32, and is small", function()
  local model, path = model_of(), t.folder() .. "/s.h5"
  local ragged = rows_of(9)
  ragged[2], ragged[5] = { 1, 2, 3 }, { 4, 5, 6, 7 }
  for _, rows in ipairs { rows_of(9), ragged, rows_of(1) } do
    local stats = measure(model, rows, { depth = true, grads = true })
    stats:save(path)
    local again = esp.importance.load(path)
    t.ok(same_answers(stats, again, 1e-6) > 1000)
    t.equal(again:hash(), stats:hash(), "the hash of what was saved")
    again:save(path)
    t.ok(same_answers(stats, esp.importance.load(path), 1e-6) > 1000, "written again")
    t.equal(esp.importance.load(path):hash(), stats:hash())
    if #rows > 1 then same_answers(stats:half(1), again:half(1), 1e-6) end
  end
  -- Channels whose mean is a hundred times their deviation, that of rows some 400 times theirs: in f32 sums of squares would have lost both.
  local C = esp.ffi.ops
  local stats = require("espalier.importance.statistics").new(shape, { model = "x" })
  for b = 0, 7 do
    local x = tensor.normal({ 1, 16, 10 }, { mean = 30, std = 0.3, seed = b })
    C.channel_stats_acc(stats:slot(0, "ffn", { 2, 8, 10 }).c, x.c, nil, b)
    stats.counts[b % 2 + 1].rows, stats.counts[b % 2 + 1].tokens = stats.counts[b % 2 + 1].rows + 1, stats.counts[b % 2 + 1].tokens + 16
  end
  stats:save(path)
  local again, spread = esp.importance.load(path), { score = function(s) return s.variance end }
  for _, agg in ipairs { "var,mean", "var,l2", "var,var", "l2,l2" } do
    local want = stats:score { axis = "ffn", layer = 0, agg = agg }
    t.near(again:score { axis = "ffn", layer = 0, agg = agg }, want, 1e-5 * want:max(0):item(), agg)
  end
  t.near(again:score { axis = "ffn", layer = 0, metric = spread }, stats:score { axis = "ffn", layer = 0, metric = spread }, 1e-7)
  local f = require("espalier.io.hdf5").open(path)
  t.equal({ f:tensor("layer.0/ffn").shape, f:tensor("layer.0/ffn").dtype }, { { 2, 7, 10 }, "f32" }, "rows of one length: seven numbers a channel")
  f:close()
end)

t.test("statistics of another model of the same shape are refused, and may be taken for its own", function()
  local model, other = model_of(), model_of(4)
  local stats, path = measure(model, rows_of(4)), t.folder() .. "/s.h5"
  stats:save(path)
  for _, own in ipairs { stats, esp.importance.load(path) } do
    t.ok(esp.prune(model, own, { ffn = 4, quiet = true }), "its own")
    for _, call in ipairs { function(s) return esp.prune(other, s, { ffn = 4, quiet = true }) end, function(s) return esp.sort(other, s) end,
      function(s) return esp.sensitivity(other, s, esp.data.of(rows_of(3, 7)), { axes = { "ffn" }, quiet = true }) end,
      function(s) return esp.prune(other, s, { keep = { ffn = { { 0 }, { 0 }, { 0 }, { 0 } } }, compensate = true, quiet = true }) end } do
      t.fails("are of another model of this shape", call, own)
      t.ok(call(own:taken_for(other)), "insisted on")
    end
  end
  local taken = stats:taken_for(other)
  t.equal(taken:score { axis = "ffn", layer = 0 }, stats:score { axis = "ffn", layer = 0 })
  t.ok(taken:hash() ~= stats:hash() and taken.facts.measured_on == stats.facts.model, "and it is told")
  local wide = shapes.copy(shape)
  wide.ffn = 12
  t.fails("the statistics are of a model with hidden 12, ffn 10", stats.taken_for, stats, esp.models.new(wide, { seed = 1 }))
  t.fails("the argument is nil, want a model", stats.taken_for, stats)
  -- A weight that changed in place makes another model.
  model:parameters()["model.norm.weight"]:fill(2)
  t.fails("are of another model", esp.prune, model, stats, { ffn = 4, quiet = true })
end)

t.test("statistics of another version or kind are refused", function()
  local path = t.folder() .. "/s.h5"
  require("espalier.io.hdf5").write(path, { about = '{"kind":"espalier statistics","version":1}' })
  t.fails("is of version 1, this program reads version 3", esp.importance.load, path)
  require("espalier.io.hdf5").write(path, { about = '{"kind":"a run"}' })
  t.fails("holds 'a run', want espalier statistics", esp.importance.load, path)
end)

t.test("a metric of one's own collects its own statistic, in Lua", function()
  local model = model_of()
  local largest = { axes = { "ffn" }, needs = { "peak", "total" },
    collect = { peak = { of = function(x) return (x:abs():max(1)):max(0) end, merge = "max" }, total = function(x) return x:sum(1):sum(0) end },
    score = function(s) return s.peak + s.total * 0 end }
  local stats = measure(model, rows_of(5), { metrics = { largest } })
  local want, sum = {}, 0
  esp.no_grad(function()
    model:forward((require("espalier.models.model").as_ids(rows_of(5))), { observe = function(site, l, x)
      if site == "ffn" and l == 2 then
        for _, row in ipairs(x:table()) do
          for _, token in ipairs(row) do
            for c, v in ipairs(token) do want[c] = math.max(want[c] or 0, math.abs(v)) end
            sum = sum + token[1]
          end
        end
      end
    end })
  end)
  t.near(stats:score { axis = "ffn", layer = 2, metric = largest }, want, 1e-6)
  local total = { score = function(s) return s.total end }
  t.near(stats:score({ axis = "ffn", layer = 2, metric = total }):table()[1], sum, 1e-5)
  local both = measure(model, rows_of(2), { metrics = { largest } }):merge(measure(model, rows_of(3, 2), { metrics = { largest } }))
  t.near(both:score { axis = "ffn", layer = 2, metric = largest }, want, 1e-6)
  t.equal(#stats:rank { ffn = largest }:kept({ ffn = 4 }).ffn[1], 4)
  t.fails("declares no statistic", measure, model, rows_of(2), { metrics = { "wanda" } })
  t.fails("want an f32 tensor [10], one value a channel", measure, model, rows_of(2),
    { metrics = { { axes = { "ffn" }, collect = { bad = function(x) return x end }, score = function(s) return s.bad end } } })
  local plain = measure(model, rows_of(2))
  t.fails("there is no statistic 'peak'", plain.score, plain, { axis = "ffn", layer = 0, metric = largest })
end)

t.test("metrics read weights: norms out of the statistics, all else out of the model", function()
  local model = model_of()
  local stats = measure(model, rows_of(3))
  local down = model:parameters()["model.layers.1.mlp.down_proj.weight"]
  local function norm_of(p, axis) return { score = function(_, w) return w.out:norm(p, axis) end } end
  t.near(stats:score { axis = "ffn", layer = 1, metric = norm_of(1, 0) }, down:norm(1, 0), 1e-6)
  local largest = { score = function(_, w) return (w.out * w.out):max(0) end }
  t.near(stats:score { axis = "ffn", layer = 1, metric = largest }, (down * down):max(0), 1e-6)
  local readers = { score = function(_, w) return w.out:abs():sum(0) end }
  t.near(stats:score { axis = "hidden", layer = 1, site = "norm1", metric = readers },
    stats:score { axis = "hidden", layer = 1, site = "norm1", metric = norm_of(1, 0) }, 1e-5, "of three matrices")
  local path = t.folder() .. "/s.h5"
  stats:save(path)
  local alone = esp.importance.load(path)
  t.near(alone:score { axis = "ffn", layer = 1, metric = norm_of(2, 0) }, down:norm(2, 0), 1e-6, "without the model")
  t.fails("needs the weights themselves", alone.score, alone, { axis = "ffn", layer = 1, metric = largest })
  t.near(alone:score { axis = "ffn", layer = 1, metric = largest, model = model }, (down * down):max(0), 1e-6)
end)

t.test("mistakes in files are told with their reason", function()
  local stats, dir = measure(model_of(), rows_of(2)), t.folder()
  t.fails("/none/s.h5: HDF5: No such file or directory", stats.save, stats, dir .. "/none/s.h5")
  t.fails("did you mean 'exact'?", stats.save, stats, dir .. "/s.h5", { exat = true })
  t.write(dir .. "/text", "no HDF5")
  t.fails("HDF5: file signature not found", esp.importance.load, dir .. "/text")
end)

t.test("mistakes in questions are told", function()
  t.fails("the calibration data has no rows", measure, model_of(), {})
  local stats = measure(model_of(), rows_of(3))
  local function asks(part, opt) t.fails(part, stats.score, stats, opt) end
  asks("metric 'wanda' is of ffn, heads, kv_heads, hidden, attention, not of layers", { axis = "layers", metric = "wanda" })
  asks("measure with { grads = true }", { axis = "ffn", layer = 0, metric = "taylor" })
  asks("measure with { depth = { blocks = { 2 }", { axis = "layers", metric = "nll", block = 2 })
  asks("'layer' is missing", { axis = "ffn" })
  asks("there is no layer 9 (0 to 3)", { axis = "ffn", layer = 9 })
  asks("want two of mean, l2, var", { axis = "ffn", layer = 0, agg = "l1,mean" })
  asks("there is no nonsense.lua", { axis = "ffn", layer = 0, metric = "nonsense" })
  asks("norms names 'norm3'", { axis = "hidden", norms = { "norm3" } })
  t.fails("unknown axis 'vocab'", stats.rank, stats, { vocab = "wanda" })
  t.fails("did you mean 'within'", stats.rank, stats, { ffn = { metric = "wanda", wthin = "network" } })
  t.fails("a block of 4 layers of 4", measure, model_of(), rows_of(2), { depth = { 4 } })
  t.fails("want layer, attention or mlp", measure, model_of(), rows_of(2), { depth = { parts = { "norm" } } })
end)

local function scored(list) return { score = function(_, _, opt) return tensor.of(list[(opt.layer or 0) + 1]) end } end

t.test("layers keep their own, compete over the network, or share one set", function()
  local model = model_of()
  local stats = measure(model, rows_of(3))
  local by = scored { { 9, 1, 1, 1, 1, 1, 1, 1, 1, 2 }, { 5, 6, 7, 8, 5, 6, 7, 8, 5, 6 }, { 0, 0, 0, 0, 0, 0, 0, 0, 0, 1 },
    { 3, 3, 3, 3, 3, 3, 3, 3, 3, 3 } }
  local function kept(opt)
    opt.metric = by
    return stats:rank { ffn = opt }:kept({ ffn = 4 }).ffn
  end
  t.equal(kept {}, { { 0, 1, 2, 9 }, { 2, 3, 6, 7 }, { 0, 1, 2, 9 }, { 0, 1, 2, 3 } }, "ties to the lower index")
  -- 16 of 40: the best of each layer stays, then by score; the 3s of layer 3 fill up.
  t.equal(kept { within = "network" }, { { 0 }, { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 }, { 9 }, { 0, 1, 2, 3 } })
  -- Sums over layers: 17, 10, 11, 12, 9, 10, 11, 12, 9, 12.
  local shared = kept { within = "shared" }
  t.equal(shared[1], { 0, 3, 7, 9 })
  t.equal(shared, { shared[1], shared[1], shared[1], shared[1] })
  local standard = kept { within = "network", normalise = "standard" }
  t.ok(#standard[1] + #standard[2] + #standard[3] + #standard[4] == 16 and #standard[2] < 10, "on one scale no layer takes all")
  local small = esp.prune(model, stats:rank { ffn = { metric = by, within = "network" } }, { ffn = 4, quiet = true })
  t.equal(small.shape.ffn, { 1, 10, 1, 4 })
  t.ok(small:loss { { 1, 2, 3 } } > 0, "it runs")
end)

t.test("neurons taken out in rounds, against sums of their own", function()
  local model, rows = model_of(5), rows_of(5)
  rows[2] = { 3, 1, 4, 1 }
  local found = esp.importance.contribution(model, rows, { rounds = 3, batch = 2, quiet = true })
  local ids, lengths = require("espalier.models.model").as_ids(rows)
  local seen = {}
  esp.no_grad(function()
    model:forward(ids, { observe = function(site, l, x) if site == "ffn" then seen[l] = x:table() end end })
  end)
  for l = 0, 3 do
    local w, gone, order = model:parameters()["model.layers." .. l .. ".mlp.down_proj.weight"]:table(), {}, {}
    -- Mean length over tokens of what the gone and j together add to the output.
    local function wrong(j)
      local sum, tokens = 0, 0
      for b, n in ipairs(lengths) do
        for p = 1, n do
          local square = 0
          for o = 1, 12 do
            local v = seen[l][b][p][j] * w[o][j]
            for i in pairs(gone) do v = v + seen[l][b][p][i] * w[o][i] end
            square = square + v * v
          end
          sum, tokens = sum + math.sqrt(square), tokens + 1
        end
      end
      return sum / tokens
    end
    for _, out in ipairs { 4, 3, 3 } do
      local list = {}
      for j = 1, 10 do if not gone[j] then list[#list + 1] = { wrong(j), j } end end
      table.sort(list, function(a, b) return a[1] < b[1] end)
      for i = 1, out do
        gone[list[i][2]] = true
        order[#order + 1] = list[i][2]
      end
    end
    local want = {}
    for place, j in ipairs(order) do want[j] = (place - 1) / 10 end
    t.near(found.scores[l + 1], want, 1e-9, "layer " .. l)
  end
  local stats = measure(model, rows)
  local small, sets = esp.prune(model, stats:rank { ffn = found }, { ffn = 6, quiet = true })
  t.equal(#sets.ffn[1], 6)
  t.ok(esp.lineage(small).steps[1].by:find("ffn by contribution in rounds", 1, true), esp.lineage(small).steps[1].by)
  t.ok(tostring(stats:show { axis = "ffn", metric = found }):find("ffn by contribution in rounds", 1, true))
  -- One round is the order of the metric that needs none.
  local once, plain = esp.importance.contribution(model, rows, { rounds = 1, quiet = true }), {}
  for l = 0, 3 do plain[l + 1] = require("espalier.importance.choose").order(stats:score { axis = "ffn", layer = l, metric = "contribution" }) end
  for l = 0, 3 do for place, j in ipairs(plain[l + 1]) do t.near(once.scores[l + 1][j + 1], (10 - place) / 10, 1e-9) end end
  t.fails("rounds = 0, want 1 or more", esp.importance.contribution, model, rows, { rounds = 0 })
  t.fails("the calibration data is missing", esp.importance.contribution, model)
  t.fails("the first argument is nil", esp.importance.contribution)
end)

t.test("heads: groups by their own metric, and over the network", function()
  local model = model_of()
  local stats = measure(model, rows_of(3))
  local heads = { axes = { "heads" }, at = { heads = "heads" }, score = function(_, _, opt)
    return tensor.of(({ { 1, 2, 3, 4 }, { 9, 8, 7, 6 }, { 1, 1, 1, 1 }, { 5, 0, 0, 5 } })[opt.layer + 1]) end }
  local own = stats:rank { heads = heads }:kept { heads = 2 }
  t.equal(own.heads, { { 1, 3 }, { 0, 2 }, { 0, 2 }, { 0, 3 } })
  t.equal(own.kv_heads, { { 0, 1 }, { 0, 1 }, { 0, 1 }, { 0, 1 } })
  t.equal(stats:rank { heads = heads }:kept({ kv_heads = 1 }).heads, { { 2, 3 }, { 0, 1 }, { 0, 1 }, { 0, 1 } }, "groups by the sum of their heads")
  local groups = { axes = { "kv_heads" }, at = { kv_heads = "heads" }, score = function() return tensor.of { 0, 1 } end }
  t.equal(stats:rank { heads = heads, kv_heads = groups }:kept({ kv_heads = 1 }).heads, { { 2, 3 }, { 2, 3 }, { 2, 3 }, { 2, 3 } })
  -- First and second best heads of both groups, by layer: 6 4, 16 14, 2 2, 10 0: of eight ranks five.
  local wide = stats:rank { heads = { metric = heads, within = "network" } }:kept { heads = 2.5 }
  t.equal(wide.heads, { { 1, 3 }, { 0, 1, 2, 3 }, { 0, 2 }, { 0, 3 } })
  local orders = stats:rank { heads = heads, kv_heads = groups }:orders()
  t.equal(orders.heads[1], { 3, 2, 1, 0 })
  t.equal(orders.kv_heads[1], { 1, 0 })
  local pairs_of = stats:score({ axis = "head_dim" }):table()
  t.equal(stats:rank {}:kept({ head_dim = 2 }).head_dim, { pairs_of[1] >= pairs_of[2] and 0 or 1 })
  t.fails("head_dim cannot be cut", esp.prune, model, stats, { head_dim = 2 })
end)

t.test("what goes is given back on average, where the architecture has a bias", function()
  local model, rows = model_of(), rows_of(6)
  local stats = measure(model, rows)
  for _, sizes in ipairs { { ffn = 4 }, { heads = 2 }, { ffn = 6, heads = 2, hidden = 8 } } do
    sizes.quiet, sizes.compensate = true, true
    local small, sets = esp.prune(model, stats:rank { ffn = "flap", heads = "flap" }, sizes)
    local p, from = small:parameters(), model:parameters()
    for _, part in ipairs { { "ffn", "mlp.down_proj", 1, "ffn" }, { "heads", "self_attn.o_proj", 4, "attention" } } do
      if sizes[part[1]] then
        local name, kept = "model.layers.1." .. part[2], {}
        for _, u in ipairs(sets[part[1]][2]) do for i = u * part[3], (u + 1) * part[3] - 1 do kept[i + 1] = true end end
        local mean = stats:score({ axis = part[4], layer = 1, metric = { score = function(s) return s.mean end } }):table()
        local w, want = from[name .. ".weight"]:table(), {}
        for i, o in ipairs(sets.hidden or esp.range(0, 11)) do
          want[i] = 0
          for c, v in ipairs(mean) do if not kept[c] then want[i] = want[i] + v * w[o + 1][c] end end
        end
        t.near(p[name .. ".bias"], want, 1e-6, name)
      end
    end
    if sizes.ffn then t.equal(p["model.layers.1.mlp.up_proj.bias"]:table()[1], 0, "the others are 0") end
    local dir = t.folder() .. "/m"
    small:save(dir, { quiet = true })
    t.ok(esp.load(dir).shape.biases, "and it is saved with them")
    t.fails("needs the statistics", function() return esp.lineage(small):replay(model) end)
  end
  -- The mean of the MLP's output over the calibration tokens is what it was.
  local function mean_of(m)
    local sum = tensor.zeros { 12 }
    esp.no_grad(function()
      m:forward((require("espalier.models.model").as_ids(rows)), { observe = function(site, l, x)
        if site == "mlp_out" and l == 0 then sum:copy_from(x:sum(0):sum(0)) end
      end })
    end)
    return sum
  end
  local whole = mean_of(model)
  local plain = esp.prune(model, stats:rank { ffn = "flap" }, { ffn = 4, quiet = true })
  local given_back = esp.prune(model, stats:rank { ffn = "flap" }, { ffn = 4, quiet = true, compensate = true })
  local function distance(a, b) return esp.no_grad(function() return ((a - b):norm(2)):item() end) end
  t.ok(distance(mean_of(given_back), whole) < 1e-4 * distance(mean_of(plain), whole), "the mean comes back")
  t.fails("none are cut", esp.prune, model, stats, { hidden = 8, compensate = true, quiet = true })
  local mistral = esp.models.new(shape, { seed = 3, config = { model_type = "mistral" } })
  t.fails("a mistral has none", esp.prune, mistral, measure(mistral, rows), { ffn = 4, compensate = true, quiet = true })
end)

t.test("layers: protected ends, one block", function()
  local stats = measure(model_of(), rows_of(3), { depth = { 1, 2 } })
  local by = { axes = { "layers" }, score = function(_, _, opt) return tensor.of(opt.block == 2 and { 3, 2, 1 } or { 1, 5, 4, 2 }) end }
  local function kept(opt, n)
    opt.metric = by
    return stats:rank { layers = opt }:kept({ layers = n }).layers
  end
  t.equal(kept({}, 2), { 1, 2 })
  t.equal(kept({ protect = { 1, 0 } }, 2), { 0, 1 })
  t.equal(kept({ contiguous = true }, 2), { 0, 1 })
  t.equal(kept({ contiguous = true, protect = { 0, 1 } }, 2), { 0, 3 })
  t.fails("at most 2 can go", kept, { protect = { 1, 1 } }, 1)
end)

t.test("halves that agree say so, halves that do not too; tables and bars", function()
  local model = model_of()
  local twice = {}
  for _, row in ipairs(rows_of(4)) do twice[#twice + 1], twice[#twice + 2] = row, row end
  local stats = measure(model, twice, { depth = true })
  local same = stats:rank { ffn = "flap" }:stability { ffn = 5, hidden = 6, heads = 2, layers = 2 }
  for _, r in ipairs(same.rows) do t.equal(r.overlap, 1, r.axis) end
  t.equal(#same.rows, 4)
  t.ok(tostring(same):find("more data will hardly change it", 1, true), tostring(same))
  local drawn = measure(model, rows_of(2)):rank {}:stability { ffn = 5 }
  t.ok(drawn.rows[1].overlap >= 0 and drawn.rows[1].chance == 0.5, "of random halves")
  local one = measure(model, rows_of(1))
  t.fails("the statistics hold 1 rows, want two or more", function() return one:rank {}:stability { ffn = 5 } end)
  t.fails("name the sizes", function() return stats:rank {}:stability {} end)
  local text = tostring(stats:show { axis = "layers", metric = "nll" })
  t.ok(text:find("layers by nll, 8 rows", 1, true) and text:find("█", 1, true), text)
  t.equal(select(2, tostring(stats:show { axis = "ffn" }):gsub("\n", "")), 5)
  t.ok(tostring(stats):find("8 rows, 64 tokens", 1, true) and tostring(stats):find("left out layer.1", 1, true), tostring(stats))
end)

-- NLL with a skip table, by brute force.
local function nll(model, rows, skip)
  return (model:loss(rows, { skip = skip }))
end

t.test("layers chosen by leaving them out: at once, one by one, in one block, by a task", function()
  local model, rows = model_of(7), rows_of(4)
  local function leave_out(opt)
    opt.quiet = true
    return esp.importance.leave_out(model, rows, opt)
  end
  local out = {}
  for _ = 1, 2 do
    local best, least
    for l = 0, 3 do
      if not out[l] then
        local skip = { [l] = true }
        for k in pairs(out) do skip[k] = true end
        local v = nll(model, rows, skip)
        if not least or v < least then best, least = l, v end
      end
    end
    out[best] = true
  end
  local want = {}
  for l in pairs(out) do want[#want + 1] = l end
  table.sort(want)
  local one_by_one = leave_out { remove = 2, iterative = true }
  t.equal(one_by_one.drop, want)
  t.near(one_by_one.steps[2].score, nll(model, rows, out), 1e-5)
  local once = leave_out { remove = 1, metric = "nll" }
  for i, v in ipairs(once.scores) do t.near(v, nll(model, rows, { [i - 1] = true }), 1e-5) end
  local block = leave_out { remove = 2, contiguous = true, protect = { 1, 0 } }
  t.equal(#block.scores, 2)
  t.near(block.scores, { nll(model, rows, { [1] = true, [2] = true }), nll(model, rows, { [2] = true, [3] = true }) }, 1e-5)
  local parts = leave_out { remove = 2, part = "mlp", metric = "kl" }
  t.equal(#parts.drop, 2)
  local asked = 0
  local task = leave_out { remove = 1, metric = "task", task = function(m)
    asked = asked + 1
    return -m:loss(rows)
  end }
  t.equal(asked, 4)
  t.equal(task.drop, once.drop)
  t.ok(tostring(task):find("drop: ", 1, true) and tostring(one_by_one):find("step 2: layer", 1, true))
  t.equal(esp.prune(model, nil, { drop = block.drop, quiet = true }).shape.layers, 2)
  t.fails("remove = 4, want 1 to 3", leave_out, { remove = 4 })
  t.fails("go together", leave_out, { remove = 1, metric = "task" })
  t.fails("it gave yes with layer 0 left out, want a number", leave_out, { remove = 1, metric = "task", task = function() return "yes" end })
  local stats = measure(model, rows, { depth = { task = function(m) return -m:loss(rows) end } })
  t.near(stats:score { axis = "layers", metric = "task" }, once.scores, 1e-5)
end)

-- Runs a recipe, which interrupts itself at its STOPth step where STOP is given: what it printed, and its exit code.
local function run_recipe(dir, code, stop)
  local program = t.program() or t.skip "needs the espalier program"
  t.write(dir .. "/recipe.lua", (code:gsub("DIR", dir)))
  file.remove(dir .. "/said")
  local status = process.start({ "/usr/bin/env", "STOP=" .. (stop or 0), program, dir .. "/recipe.lua" }, dir .. "/said"):wait()
  return t.read(dir .. "/said"), status
end

local world = [[local esp = require "espalier"
  local shape = { hidden = 64, ffn = 128, layers = 4, heads = 4, kv_heads = 2, head_dim = 16, vocab = 50, context = 64, norm_eps = 1e-5,
    rope = { theta = 10000 }, tied = true }
  local rows = {}
  for r = 1, 400 do rows[r] = {} for p = 1, 32 do rows[r][p] = r * p % 50 end end
  local model = esp.models.new(shape, { seed = 1 })
  local ffi, steps = require "ffi", 0
  ffi.cdef "int raise(int);"
  -- A step is a forward pass.
  local forward = model.forward
  function model.forward(...)
    steps = steps + 1
    if steps == tonumber(os.getenv "STOP") then ffi.C.raise(2) end
    return forward(...)
  end
]]

t.test("Ctrl-C keeps the rows that were done, and the same call goes on", function()
  local dir = t.folder()
  local recipe = world .. [[local stats = esp.importance.measure(model, rows, { batch = 1, out = "DIR/s.h5", quiet = true,
    metrics = { { axes = { "ffn" }, collect = { seen = function(x) return x:abs():sum(1):sum(0) end }, score = function(s) return s.seen end } } })
    print(stats:total "rows", stats:score { axis = "ffn", layer = 0, metric = { score = function(s) return s.seen end } })]]
  local said, code = run_recipe(dir, recipe, 40)
  t.equal(code, 1)
  t.ok(said:find("stopped after 40 of 400 rows; they are kept in", 1, true), said)
  t.equal(esp.importance.load(dir .. "/s.h5"):total "rows", 40)
  said, code = run_recipe(dir, recipe)
  t.equal(code, 0, "the same call")
  t.ok(said:find("400\ttensor f32 [128]", 1, true), said)
  -- Gone on from what is on disk or run in one go: the same bits.
  local on = esp.importance.load(dir .. "/s.h5"):hash()
  file.remove(dir .. "/s.h5")
  run_recipe(dir, recipe)
  t.equal(esp.importance.load(dir .. "/s.h5"):hash(), on)
end)

t.test("Ctrl-C in a task keeps the pass, and the same call asks the task alone", function()
  local dir = t.folder()
  local recipe = world:gsub("400 do", "8 do") .. [[
    local asked = 0
    local function task(m) asked = asked + 1 return -m:loss { rows[1] } end
    local stats = esp.importance.measure(model, rows, { batch = 4, depth = { task = task }, out = "DIR/s.h5", quiet = true })
    print("asked", asked, #stats:score({ axis = "layers", metric = "task" }):table())]]
  -- Eight rows in two batches, each once and with four layers left out; then the task.
  local said, code = run_recipe(dir, recipe, 11)
  t.equal(code, 1)
  t.ok(said:find("stopped in the task; all 8 rows are done; they are kept in", 1, true), said)
  t.equal(esp.importance.load(dir .. "/s.h5"):total "rows", 8)
  said = run_recipe(dir, recipe)
  t.ok(said:find("asked\t4\t4", 1, true), said)
end)

t.test("Ctrl-C in scans that leave layers out keeps what they know", function()
  local dir = t.folder()
  -- Each row is run once, and with each of four layers left out: the 38th step is in the eighth row.
  local said, code = run_recipe(dir, world .. [[print(esp.importance.leave_out(model, rows, { remove = 2, batch = 1, quiet = true }))]], 38)
  t.equal(code, 130)
  t.ok(said:find("leave_out: stopped; the scores are of 7 of 400 rows (interrupted)", 1, true), said)
  t.ok(said:find("nll with layer left out (7 of 400 rows)", 1, true) and said:find "drop: %d, %d %(stopped early%)", said)
  said = run_recipe(dir, world .. [[print(esp.importance.leave_out(model, rows, { remove = 2, batch = 1, quiet = true }))]], 3)
  t.ok(said:find("leave_out: stopped before any score was done", 1, true), said)
  -- One by one: the first round has 150 steps, and the second round's part of the rows chooses nothing.
  said = run_recipe(dir, world:gsub("400 do", "30 do") .. [[print(esp.importance.leave_out(model, rows, { remove = 3, batch = 1,
    iterative = true, quiet = true }))]], 200)
  t.ok(said:find "leave_out: stopped; 1 of 3 layers were chosen" and said:find "step 1: layer %d goes" and not said:find "step 2", said)
  said = run_recipe(dir, world .. [[print(esp.importance.leave_out(model, nil, { remove = 1, metric = "task", quiet = true,
    task = function(m) return -m:loss { rows[1] } end }))]], 2)
  t.ok(said:find("the scores are of 2 of 4 candidates", 1, true) and said:find("drop: nothing yet", 1, true), said)
end)

t.test("Ctrl-C in sensitivity and in rounds of contribution keeps what is done", function()
  local dir = t.folder()
  -- A pass of two batches; then two forward passes a batch of the model and its teacher, which are one, and one of the teacher for each cut.
  local said, code = run_recipe(dir, world .. [[
    local stats = esp.importance.measure(model, rows, { batch = 200, quiet = true })
    local data = esp.data.of(rows)
    print(esp.sensitivity(model, stats, data, { axes = { "ffn", "layers", "hidden", "heads" }, quiet = true }))]], 2 + 200 + 100 + 50)
  t.equal(code, 130)
  t.ok(said:find("sensitivity: stopped after 2 of 4 cuts (interrupted)", 1, true), said)
  t.ok(said:find("not scored, stopped: hidden; heads", 1, true) and said:find "ffn +ffn %d" and said:find "layers +layers %d", said)
  said = run_recipe(dir, world:gsub("400 do", "20 do") .. [[
    print(esp.importance.contribution(model, rows, { rounds = 40, batch = 1, quiet = true }))]], 70)
  t.ok(said:find("contribution: stopped after 3 of 40 rounds (interrupted)", 1, true), said)
  t.ok(said:find("taken out in 3 of 40 rounds over 20 rows", 1, true), said)
end)

t.test("text with padding: what fills a row does not count", function()
  local model = t.shared "data/models/stories260K/stories260K.bin"
  local story = t.read(t.shared "data/text/tinystories/tinystories_10k.txt"):sub(1, 4000)
  model = esp.load(model)
  t.fails("id 999999 at place 2, want 0 to 511 (the vocabulary)", measure, model, { { 1, 2, 999999 } })
  t.write(t.folder() .. "/x.txt", story)
  local path = t.folder() .. "/stories.txt"
  t.write(path, story)
  local data = esp.data.open(path, { seq = 100, pack = "none" })
  local stats = esp.importance.measure(model, data, { quiet = true })
  t.equal(stats.facts.tokenizer, model:tok():hash())
  t.ok(stats:total "tokens" < stats:total "rows" * 100, "rows end early")
  local tokens = 0
  for r = 0, data:rows() - 1 do tokens = tokens + data:batch(r, 1).positions end
  t.equal(stats:total "tokens", tokens)
  t.equal(shapes.at(stats.shape, "ffn", 0), 172)
end)
