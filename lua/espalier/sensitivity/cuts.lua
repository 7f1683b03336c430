--- What sensitivity compares: along each axis, and by each metric, the cut whose parameter count is nearest to one goal.

local shapes = require "espalier.models.shape"
local legal = require "espalier.prune.legal"
local ranking = require "espalier.importance.ranking"
local score = require "espalier.importance.score"
local tensor = require "espalier.tensor"
local fail = require "espalier.fail"

local M = {}

--- Axes that can be cut; attention and mlp: that part of whole layers.
M.axes = { "hidden", "ffn", "heads", "kv_heads", "layers", "attention", "mlp" }

local widths = { "activation", "magnitude", "wanda", "flap", "contribution", "taylor", "taylor_abs", "taylor_second", "fisher", "taylor_weight" }
local depths = { "bi", "angular", "nll", "kl", "mse_hidden", "mse_logits", "nmse_logits", "task" }

local function most(s, axis)
  return type(s[axis]) == "table" and math.max(unpack(s[axis])) or s[axis]
end

-- ---- sizes ----

-- Requests along an axis, from the mildest; order: of the layers for a part, the least missed first.
local function requests(s, axis, order)
  local list = {}
  if axis == "attention" or axis == "mlp" then
    local drop = {}
    for i, l in ipairs(order) do
      if shapes.at(s, axis == "mlp" and "ffn" or "heads", l) > 0 then
        drop[#drop + 1] = l
        list[i] = { ["drop_" .. axis] = { unpack(drop) } }
      end
    end
    return list
  end
  local step = axis == "heads" and most(s, "kv_heads") or 1
  for size = most(s, axis) - step, step, -step do list[#list + 1] = { [axis] = size } end
  -- One head in each group left and still too large: whole groups go, with their keys and values.
  if axis == "heads" and step > 1 then
    for groups = step - 1, 1, -1 do list[#list + 1] = { heads = groups * most(s, "heads") / step, kv_heads = groups } end
  end
  return list
end

local function parameters_of(s, request)
  local ok, sets = pcall(legal.check, "sensitivity", s, request)
  return ok and shapes.parameters((legal.result(s, request, sets))) or nil
end

-- The request along an axis whose parameter count is nearest to the goal, and that count.
local function nearest(s, axis, goal, order)
  local best, distance, count
  for _, request in pairs(requests(s, axis, order)) do
    local n = parameters_of(s, request)
    if n and (not distance or math.abs(n - goal) < distance) then best, distance, count = request, math.abs(n - goal), n end
  end
  return best, count
end

-- ---- metrics ----

local function has_axis(metric, axis)
  for _, own in ipairs(metric.axes or { axis }) do if own == axis then return true end end
  return false
end

-- The question that a metric asks of an axis, as stats:score takes it.
local function question(axis, metric)
  if axis == "attention" or axis == "mlp" then return { axis = "layers", part = axis, metric = metric } end
  return { axis = axis, metric = metric, layer = axis ~= "layers" and axis ~= "hidden" and 0 or nil }
end

local function by_depth(axis) return axis == "layers" or axis == "attention" or axis == "mlp" end

-- Metrics that are asked of an axis: what opt.metrics names, all that the statistics can answer, or the default (false).
local function metrics_of(stats, axis, given)
  if not given then return { false } end
  local list = {}
  local all = given == "all" or (type(given) == "table" and given[1] == "all")
  for _, metric in ipairs(all and (by_depth(axis) and depths or widths) or given) do
    local definition = score.metric(metric)
    if has_axis(definition, by_depth(axis) and "layers" or axis) then
      -- With "all" what was not measured is passed over; what was named by hand must be there.
      if not all or pcall(stats.score, stats, question(axis, metric)) then list[#list + 1] = metric end
    end
  end
  return list
end

-- Layers by how little a part of them is missed: by the loss without it where that was measured, else by its block influence.
local function order_of(stats, part, metric)
  local measured = stats.left_out[part .. ".1"] and "nll" or "bi"
  local x = stats:score { axis = "layers", part = part, metric = metric or measured }
  local order, list = ranking.order(x), {}
  for i = #order, 1, -1 do list[#list + 1] = order[i] end
  return list, metric or measured
end

local function random_order(s, seed, stream)
  return ranking.order(tensor.uniform({ s.layers }, { seed = seed, stream = stream }))
end

-- The same sizes with the channels, heads or layers drawn instead of ranked.
local function drawn(s, stats, axis, request, seed)
  if axis == "attention" or axis == "mlp" then
    local best = request["drop_" .. axis]
    local order, list = random_order(s, seed, 78), {}
    for _, l in ipairs(order) do
      if #list < #best and shapes.at(s, axis == "mlp" and "ffn" or "heads", l) > 0 then list[#list + 1] = l end
    end
    table.sort(list)
    return { ["drop_" .. axis] = list }, nil, nil
  end
  local metric = { metric = "random", seed = seed }
  local keep = request.layers and { layers = ranking.best(tensor.uniform({ s.layers }, { seed = seed, stream = 77 }), request.layers) }
  return request, stats:rank { hidden = metric, ffn = metric, heads = metric, kv_heads = metric }, keep
end

local function name_of(metric, i)
  if type(metric) == "string" then return metric end
  return metric and (metric.name or "metric " .. i) or nil
end

-- ---- candidates ----

local function add_axis(list, model, stats, axis, opt, goal, random)
  local s, total = model.shape, shapes.parameters(model.shape)
  for i, metric in ipairs(metrics_of(stats, axis, opt.metrics)) do
    local order, by
    if axis == "attention" or axis == "mlp" then order, by = order_of(stats, axis, metric or nil) end
    local request, count = nearest(s, axis, goal, order)
    if not request then fail("esp.sensitivity: nothing can be cut along %s", axis) end
    local near = math.abs(count - goal) <= 0.01 * total
    list[#list + 1] = { axis = axis, metric = name_of(metric, i) or by, request = request, equal = near,
      scores = not order and stats:rank(metric and { [axis] = metric } or {}) or nil }
    if random and i == 1 then
      local own, scores, keep = drawn(s, stats, axis, request, opt.seed)
      list[#list + 1] = { axis = axis .. ", random", request = own, equal = near, scores = scores, keep = keep }
    end
  end
end

--- Candidates { axis, metric, request, scores (a ranking, or nil), keep, equal } and the goal, a parameter count. opt: remove, axes, metrics, seed.
function M.candidates(model, stats, opt)
  local s, list, random = model.shape, {}, false
  -- Layers come in the coarsest steps: the goal is what whole layers can reach.
  local goal = (1 - opt.remove) * shapes.parameters(s)
  for _, axis in ipairs(opt.axes) do
    random = random or axis == "random"
    if axis == "layers" and s.layers > 1 then
      local _, count = nearest(s, "layers", goal)
      goal = count or goal
    end
  end
  for _, axis in ipairs(opt.axes) do
    if axis ~= "random" then add_axis(list, model, stats, axis, opt, goal, random) end
  end
  return list, goal
end

--- The axes of a model that are worth comparing: all, but for groups where each head has its own.
function M.default_axes(s)
  local list = {}
  for _, axis in ipairs(M.axes) do
    if axis ~= "kv_heads" or most(s, "kv_heads") < most(s, "heads") then list[#list + 1] = axis end
  end
  list[#list + 1] = "random"
  return list
end

return M
