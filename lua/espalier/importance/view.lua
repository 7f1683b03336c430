--- What a metric sees of a site: aggregations and moments of its activations, products with its gradients, what users' metrics collected, and the
-- weights around it. Each is an f32 tensor [n], one number a channel or unit.

local tensor = require "espalier.tensor"
local weights = require "espalier.importance.weights"
local fail = require "espalier.fail"

local M = {}

local row_of = { mean = 0, l2 = 2, var = 4 }

local function parse_agg(agg)
  local batch, seq = tostring(agg):match "^%s*(%w+)%s*,%s*(%w+)%s*$"
  if not (row_of[batch] and row_of[seq]) then
    fail("stats: agg '%s', want two of mean, l2, var as in \"l2,mean\" (batch, then sequence)", tostring(agg))
  end
  return batch, seq
end

--- An f32 tensor [n] of f(i), i from 0.
function M.each(n, f)
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
  if batch == "mean" then return M.each(n, function(i) return first(i) / rows end) end
  if batch == "l2" then return M.each(n, function(i) return math.sqrt(second(i)) end) end
  return M.each(n, function(i)
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
    return M.each(n, function(i) return f(i) / v.tokens end)
  end
end
named.mean_square, named.mean, named.mean_abs = by_token(3), by_token(6), by_token(7)

function named.variance(v)
  local sums = v.need ""
  local square, n = row(sums, 3)
  local sum = row(sums, 6)
  return M.each(n, function(i)
    local mean = sum(i) / v.tokens
    local x = square(i) / v.tokens - mean * mean
    return x < 0 and 0 or x
  end)
end

local function by_prediction(k)
  return function(v)
    local f, n = row(v.need ".taylor", k)
    return M.each(n, function(i) return f(i) / v.predictions end)
  end
end
named.taylor, named.taylor_abs, named.fisher, named.grad_square = by_prediction(0), by_prediction(1), by_prediction(2), by_prediction(3)

function named.taylor_weight(v)
  local sums = v.need ".taylor_weight"
  local p = sums:data()
  return M.each(sums.shape[2], function(i) return p[i] / v.predictions end)
end

-- Mean length of what a unit adds to the residual stream: measured for heads and groups; of a channel it is |a| times the length of its column.
function named.added(v)
  if v.has ".added" then
    local f, n = row(v.need ".added", 7)
    return M.each(n, function(i) return f(i) / v.tokens end)
  end
  return v.mean_abs * v.weights.out:norm(2, 0)
end

local function user_statistic(v, name)
  local sums = v.need(".user." .. name)
  local n, p = sums.shape[2], sums:data()
  local largest = v.stats.facts.reductions[name] == "max"
  return M.each(n, function(i)
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

--- A site in words.
function M.where(l, site)
  return l and string.format("'%s' of layer %d", site, l) or "'" .. site .. "'"
end

--- A metric's view of the site of a layer (nil: of the model); given: the options of stats:score.
function M.of(stats, l, site, given)
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
    fail("stats: no %s%s (%s)", M.where(l, site), own and " " .. own or kind:gsub("%.", " "), why)
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

return M
