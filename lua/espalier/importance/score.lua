--- Scores out of statistics: a metric at each site (view.lua), and how the scores of sites become those of an axis. Higher means keep.

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"
local tape = require "espalier.tape"
local scope = require "espalier.scope"
local view = require "espalier.importance.view"
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
  local v = view.of(stats, l, site, opt)
  local given = { agg = opt.agg, layer = l, axis = opt.axis, site = site, seed = opt.seed }
  local y = metric.score(v, v.weights, given)
  if not tensor.is(y) or #y.shape ~= 1 then
    fail("metric: at %s it gave %s, want a tensor [n]", view.where(l, site), tensor.is(y) and tensor.shape_text(y) or type(y))
  end
  return tensor.contiguous(y)
end

-- f over groups of `width` neighbours of x [n*width].
local function groups(x, width, f)
  local p = x:data()
  return view.each(x.shape[1] / width, function(g)
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
  return view.each(n, function(i) return total[i] end)
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
      list[#list + 1] = view.each(n, function(i)
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
  return tape.no_grad(scope.run, function()
    if opt.axis == "layers" then return layers.score(stats, M.metric(opt.metric or "bi", "layers"), opt) end
    return compute(stats, M.metric(opt.metric or "activation", opt.axis), opt)
  end)
end

return M
