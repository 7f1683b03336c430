--- Scores out of statistics: what a metric sees of a site, and how the scores of sites become those of an axis. Higher means keep.

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"
local tape = require "espalier.tape"
local weights = require "espalier.importance.weights"
local layers = require "espalier.importance.layers"
local shapes = require "espalier.models.shape"
local options = require "espalier.options"
local find = require "espalier.find"
local fail = require "espalier.fail"

local M = {}

--- Axes that can be scored. attention: channels of o_proj's input; head_dim: pairs of channels that turn together, over all layers.
M.axes = { "ffn", "heads", "kv_heads", "hidden", "head_dim", "attention", "layers" }
--- Sites that can be asked for by name.
M.sites = { "norm1", "norm2", "attention", "heads", "pre", "act", "ffn", "final" }

-- ---- what a metric sees of a site ----

local row_of = { mean = 0, l2 = 2, var = 4 }

local function parse_agg(agg)
  local batch, seq = tostring(agg):match "^%s*(%w+)%s*,%s*(%w+)%s*$"
  if not (row_of[batch] and row_of[seq]) then
    fail("stats: agg '%s', want two of mean, l2, var as in \"l2,mean\" (batch, then sequence)", tostring(agg))
  end
  return batch, seq
end

-- An f32 tensor [n] of f(i), i from 0.
local function each(n, f)
  local y = tensor.new { n }
  local p = y:data()
  for i = 0, n - 1 do p[i] = f(i) end
  return y
end

-- Row k of both halves of sums [2,K,n] as one f64 array; add: a function of i.
local function row(sums, k)
  local n, K, p = sums.shape[3], sums.shape[2], sums:data()
  local even, odd = k * n, (K + k) * n
  return function(i) return p[even + i] + p[odd + i] end, n
end

-- One of the nine aggregations over the rows' values (2407.14679, section 2.2).
local function aggregate(sums, agg, rows)
  local batch, seq = parse_agg(agg)
  local first, n = row(sums, row_of[seq])
  local second = row(sums, row_of[seq] + 1)
  if batch == "mean" then return each(n, function(i) return first(i) / rows end) end
  if batch == "l2" then return each(n, function(i) return math.sqrt(second(i)) end) end
  return each(n, function(i)
    local mean = first(i) / rows
    local v = second(i) / rows - mean * mean
    -- Rounding may leave a tiny negative; NaN stays NaN.
    return v < 0 and 0 or v
  end)
end

-- The statistics by name; each gives an f32 tensor [n].
local named = {}

local function by_token(k)
  return function(v)
    local f, n = row(v.need "", k)
    return each(n, function(i) return f(i) / v.tokens end)
  end
end
named.mean_square, named.mean, named.mean_abs = by_token(3), by_token(6), by_token(7)

function named.variance(v)
  local sums = v.need ""
  local square, n = row(sums, 3)
  local sum = row(sums, 6)
  return each(n, function(i)
    local mean = sum(i) / v.tokens
    local x = square(i) / v.tokens - mean * mean
    return x < 0 and 0 or x
  end)
end

local function by_prediction(k)
  return function(v)
    local f, n = row(v.need ".taylor", k)
    return each(n, function(i) return f(i) / v.predictions end)
  end
end
named.taylor, named.taylor_abs, named.fisher, named.grad_square = by_prediction(0), by_prediction(1), by_prediction(2), by_prediction(3)

function named.taylor_weight(v)
  local sums = v.need ".taylor_weight"
  local p = sums:data()
  return each(sums.shape[2], function(i) return p[i] / v.predictions end)
end

-- Mean length of what a unit adds to the residual stream: measured for heads and groups; of a channel it is |a| times the length of its column.
function named.added(v)
  if v.has ".added" then
    local f, n = row(v.need ".added", 7)
    return each(n, function(i) return f(i) / v.tokens end)
  end
  return v.mean_abs * v.weights.out:norm(2, 0)
end

local function user_statistic(v, name)
  local sums = v.need(".user." .. name)
  local n, p = sums.shape[2], sums:data()
  local largest = v.stats.facts.reductions[name] == "max"
  return each(n, function(i)
    local a, b = p[i], p[n + i]
    return largest and (a >= b and a or b) or a + b
  end)
end

local missing = {
  [".taylor"] = "gradients were not asked for; measure with { grads = true }",
  [".taylor_weight"] = "the weight form of Taylor needs the gradient of all data at once: measure with { grads = true } in one go; "
    .. "statistics that were merged or gone on from have none",
  [".weights"] = "the weights' sums are not there; measure again",
}

local function where_is(l, site)
  return l and string.format("'%s' of layer %d", site, l) or "'" .. site .. "'"
end

-- A metric's view of the site of a layer (nil: of the model).
local function view(stats, l, site, given)
  local place = stats.outer
  if l then place = stats.sums[l + 1] or fail("stats: there is no layer %s (0 to %d)", tostring(l), stats.shape.layers - 1) end
  local v = { stats = stats, layer = l, site = site }
  for _, what in ipairs { "rows", "tokens", "predictions" } do v[what] = stats:total(what) end
  function v.has(kind) return place[site .. kind] ~= nil end
  function v.need(kind)
    local t = place[site .. kind]
    if t then return t end
    local own = kind:match "^%.user%.(.*)"
    local why = own and "measure with { metrics = { .. } } naming the metric" or missing[kind] or "that layer has no such part"
    fail("stats: no %s%s (%s)", where_is(l, site), own and " " .. own or kind:gsub("%.", " "), why)
  end
  function v.agg(name) return aggregate(v.need "", name or given.agg, v.rows) end
  v.weights = weights.view(stats, l, site, given.model or stats.model)
  return setmetatable(v, { __index = function(_, name)
    if named[name] then return named[name](v) end
    if stats.facts.reductions[name] then return user_statistic(v, name) end
    local known = {}
    for one in pairs(named) do known[#known + 1] = one end
    table.sort(known)
    fail("metric: there is no statistic '%s'; there are agg(..), %s%s", tostring(name), table.concat(known, ", "),
      next(stats.facts.reductions) and " and those that metrics declared" or "")
  end })
end

-- ---- scores of an axis ----

--- The metric that a name or a table means; its axes must hold the axis.
function M.metric(given, axis)
  local metric = type(given) == "table" and given or find("metrics", given, "espalier.importance.metrics.")
  local name = type(given) == "string" and "'" .. given .. "'" or "of the recipe"
  if type(metric) ~= "table" or type(metric.score) ~= "function" then
    fail("metric %s: want a table with a function 'score', got %s", name, type(metric))
  end
  if not axis then return metric end
  for _, own in ipairs(metric.axes or { axis }) do if own == axis then return metric end end
  fail("metric %s is of %s, not of %s", name, table.concat(metric.axes, ", "), axis)
end

-- Scores f32 [n] of one site.
local function site_score(stats, metric, opt, l, site)
  local v = view(stats, l, site, opt)
  local given = { agg = opt.agg, layer = l, axis = opt.axis, site = site, seed = opt.seed }
  local y = metric.score(v, v.weights, given)
  if not tensor.is(y) or #y.shape ~= 1 then
    fail("metric: at %s it gave %s, want a tensor [n]", where_is(l, site), tensor.is(y) and tensor.shape_text(y) or type(y))
  end
  return tensor.contiguous(y)
end

-- f over groups of `width` neighbours of x [n*width].
local function groups(x, width, f)
  local p = x:data()
  return each(x.shape[1] / width, function(g)
    local sum = 0
    for i = g * width, (g + 1) * width - 1 do sum = sum + f(p[i]) end
    return sum
  end)
end

local function same(x) return x end
local function squared(x) return x * x end

local function head_scores(stats, metric, opt, l)
  local at = metric.at and metric.at.heads
  if at then return site_score(stats, metric, opt, l, at) end
  if opt.heads == "tokenwise" then return site_score(stats, metric, opt, l, "heads") end
  return groups(site_score(stats, metric, opt, l, "attention"), stats.shape.head_dim, squared):sqrt()
end

local function group_scores(stats, metric, opt, l)
  local s = stats.shape
  local each_group = shapes.at(s, "heads", l) / shapes.at(s, "kv_heads", l)
  local at = metric.at and metric.at.kv_heads
  -- Without sharing a group is its head.
  if at and (each_group > 1 or not metric.at.heads) then return site_score(stats, metric, opt, l, at) end
  return groups(head_scores(stats, metric, opt, l), each_group, same)
end

-- Sums of the sites' scores over all layers.
local function summed(list)
  local n = list[1].shape[1]
  local total = core.new("double[?]", n)
  for _, x in ipairs(list) do
    local p = x:data()
    for i = 0, n - 1 do total[i] = total[i] + p[i] end
  end
  return each(n, function(i) return total[i] end)
end

local function hidden_scores(stats, metric, opt)
  local at = metric.at and metric.at.hidden
  if at then return site_score(stats, metric, opt, nil, at) end
  local list = {}
  for l = 0, stats.shape.layers - 1 do
    for _, site in ipairs(opt.norms) do
      if stats.sums[l + 1][site] then list[#list + 1] = site_score(stats, metric, opt, l, site) end
    end
  end
  for _, site in ipairs(opt.norms) do if site == "final" then list[#list + 1] = site_score(stats, metric, opt, nil, "final") end end
  if #list == 0 then fail("stats:score: none of the norms %s was measured", table.concat(opt.norms, ", ")) end
  return summed(list)
end

-- A pair matters by the size of the queries times that of the keys: that bounds what it adds to a score. Summed over layers, for one set serves all.
local function pair_scores(stats, metric, opt)
  local list, s = {}, stats.shape
  for l = 0, s.layers - 1 do
    local h, g = shapes.at(s, "heads", l), shapes.at(s, "kv_heads", l)
    if h > 0 and stats.sums[l + 1].q then
      local q, k = site_score(stats, metric, opt, l, "q"), site_score(stats, metric, opt, l, "k")
      local n = q.shape[1] / h
      local p, r = q:data(), k:data()
      list[#list + 1] = each(n, function(i)
        local sum = 0
        for head = 0, h - 1 do sum = sum + p[head * n + i] * r[math.floor(head / (h / g)) * n + i] end
        return sum
      end)
    end
  end
  if #list == 0 then fail("stats:score: no layer has attention") end
  return summed(list)
end

local function compute(stats, metric, opt)
  local axis, l = opt.axis, opt.layer
  if opt.site then
    local outer = opt.site == "final"
    -- Without a gate what the activation makes is what enters down_proj.
    local site = opt.site == "act" and stats.shape.gated == false and "ffn" or opt.site
    return site_score(stats, metric, opt, not outer and (l or fail "stats:score: option 'layer' is missing for a site") or nil, site)
  end
  if axis == "hidden" then return hidden_scores(stats, metric, opt) end
  if axis == "head_dim" then return pair_scores(stats, metric, opt) end
  if not l then fail("stats:score: option 'layer' is missing for axis %s", axis) end
  if axis == "heads" then return head_scores(stats, metric, opt, l) end
  if axis == "kv_heads" then return group_scores(stats, metric, opt, l) end
  return site_score(stats, metric, opt, l, axis)
end

--- The options of stats:score, which a ranking takes an axis too.
M.options = { axis = { "string", required = true, one_of = M.axes }, metric = { "any" }, agg = { "string", default = "l2,mean" }, layer = { "int" },
  site = { "string", one_of = M.sites }, heads = { "string", default = "channelwise", one_of = { "channelwise", "tokenwise" } },
  norms = { "list", default = { "norm1", "norm2" } }, seed = { "int", default = 0 }, model = { "model" }, block = { "int", default = 1 },
  part = { "string", default = "layer", one_of = { "layer", "attention", "mlp" } }, last = { "bool", default = false } }

--- stats:score{ axis =, .. } -> f32 tensor [n], higher means keep.
function M.score(stats, given)
  local opt = options.check("stats:score", given, M.options)
  for _, site in ipairs(opt.norms) do
    if site ~= "norm1" and site ~= "norm2" and site ~= "final" then
      fail("stats:score: norms names '%s', want norm1, norm2 or final", tostring(site))
    end
  end
  return tape.no_grad(tape.scope, function()
    if opt.axis == "layers" then return layers.score(stats, M.metric(opt.metric or "bi", "layers"), opt) end
    return compute(stats, M.metric(opt.metric or "activation", opt.axis), opt)
  end)
end

return M
