--- Multiple-choice knapsack: one choice from each group, least loss in all, every sum of costs within its limit.
--
-- Three stages. Choices that another one beats in loss and in every cost are dropped. A dynamic programme over one limit, costs rounded up to 1/4096
-- of it, gives a first answer that keeps the limit. Depth-first branch and bound then proves or betters it: the bound of a node is the linear
-- relaxation over each limit alone, whose optimum takes the steps of the groups' lower convex hulls in the order of loss saved a cost.

local fail = require "espalier.fail"

local M = {}

-- ---- choices ----

local function beats(a, b)
  if a.loss > b.loss then return false end
  for j = 1, #a.cost do if a.cost[j] > b.cost[j] then return false end end
  return true
end

-- Choices that nothing beats, by loss; of equal ones the first.
local function worthwhile(group)
  local list = {}
  for i, choice in ipairs(group) do
    local own = { loss = choice.loss, cost = choice.cost, index = i }
    local beaten = false
    for k = #list, 1, -1 do
      if beats(list[k], own) then beaten = true break end
      if beats(own, list[k]) then table.remove(list, k) end
    end
    if not beaten then list[#list + 1] = own end
  end
  table.sort(list, function(a, b) return a.loss < b.loss or (a.loss == b.loss and a.index < b.index) end)
  return list
end

-- Steps { cost, gain } down the lower convex hull of (cost[j], loss), from the cheapest choice on; and that choice's cost and loss.
local function hull(choices, j)
  local points = {}
  for i, c in ipairs(choices) do points[i] = { c.cost[j], c.loss } end
  table.sort(points, function(a, b) return a[1] < b[1] or (a[1] == b[1] and a[2] < b[2]) end)
  local line = {}
  for _, p in ipairs(points) do
    if #line == 0 or p[2] < line[#line][2] then
      while #line >= 2 do
        local a, b = line[#line - 1], line[#line]
        if (p[1] - a[1]) * (a[2] - b[2]) > (b[1] - a[1]) * (a[2] - p[2]) then break end
        line[#line] = nil
      end
      if p[1] > (line[#line] or { -math.huge })[1] then line[#line + 1] = p end
    end
  end
  local steps = {}
  for i = 2, #line do steps[i - 1] = { line[i][1] - line[i - 1][1], line[i - 1][2] - line[i][2] } end
  return steps, line[1][1], line[1][2]
end

-- For the groups from i on and each limit: the steps of all of them in order, and the cost and loss of their cheapest choices.
local function relaxations(groups, limits)
  local all = {}
  for j = 1, #limits do
    local steps, cost, loss = {}, 0, 0
    all[j] = { [#groups + 1] = { steps = {}, cost = 0, loss = 0 } }
    for i = #groups, 1, -1 do
      local own, c, f = hull(groups[i], j)
      local merged = {}
      for _, s in ipairs(steps) do merged[#merged + 1] = s end
      for _, s in ipairs(own) do merged[#merged + 1] = s end
      table.sort(merged, function(a, b) return a[2] * b[1] > b[2] * a[1] end)
      steps, cost, loss = merged, cost + c, loss + f
      all[j][i] = { steps = steps, cost = cost, loss = loss }
    end
  end
  return all
end

-- Least loss of a relaxation within what is left of its limit; infinite where not even the cheapest fit.
local function bound(r, left)
  left = left - r.cost
  if left < 0 then return math.huge end
  local loss = r.loss
  for i = 1, #r.steps do
    local s = r.steps[i]
    if s[1] > left then return loss - s[2] * left / s[1] end
    left, loss = left - s[1], loss - s[2]
  end
  return loss
end

-- ---- the programme over one limit ----

local resolution = 4096

-- The picks (an index a group) of least loss whose rounded-up costs j keep the limit; nil where there are none.
local function programme(groups, limits, j)
  local unit = limits[j] / resolution
  local best, from = { [0] = 0 }, {}
  for i, choices in ipairs(groups) do
    local now, how = {}, {}
    for at, loss in pairs(best) do
      for k, c in ipairs(choices) do
        local to = at + math.ceil(c.cost[j] / unit - 1e-9)
        if to <= resolution and loss + c.loss < (now[to] or math.huge) then now[to], how[to] = loss + c.loss, { at, k } end
      end
    end
    best, from[i] = now, how
  end
  local at, least = nil, math.huge
  for to, loss in pairs(best) do if loss < least or (loss == least and to < at) then at, least = to, loss end end
  if not at then return nil end
  local picks = {}
  for i = #groups, 1, -1 do
    picks[i] = from[i][at][2]
    at = from[i][at][1]
  end
  return picks
end

-- ---- branch and bound ----

local Search = {}
Search.__index = Search

local function within(costs, limits)
  for j = 1, #limits do if not (costs[j] <= limits[j]) then return false end end
  return true
end

function Search:keep(picks, loss)
  if loss < self.loss then self.loss, self.best = loss, { unpack(picks) } end
end

function Search:walk(i, loss, costs)
  self.nodes = self.nodes + 1
  if self.nodes > self.most then return end
  if i > #self.groups then self:keep(self.picks, loss) return end
  for k, choice in ipairs(self.groups[i]) do
    local sums, least = {}, self.least[i + 1]
    for j = 1, #self.limits do
      sums[j] = costs[j] + choice.cost[j]
      least = math.max(least, bound(self.relaxed[j][i + 1], self.limits[j] - sums[j]))
    end
    if loss + choice.loss + least < self.loss then
      self.picks[i] = k
      self:walk(i + 1, loss + choice.loss, sums)
    end
  end
end

-- The groups whose choices differ most are decided first: their mistakes are seen early.
local function by_spread(groups)
  local order = {}
  for i = 1, #groups do order[i] = i end
  local function spread(i) return groups[i][#groups[i]].loss - groups[i][1].loss end
  table.sort(order, function(a, b) return spread(a) > spread(b) or (spread(a) == spread(b) and a < b) end)
  return order
end

local function sums_of(groups, picks, limits)
  local loss, costs = 0, {}
  for j = 1, #limits do costs[j] = 0 end
  for i, k in ipairs(picks) do
    loss = loss + groups[i][k].loss
    for j = 1, #limits do costs[j] = costs[j] + groups[i][k].cost[j] end
  end
  return loss, costs
end

local function checked(groups, limits)
  for i, group in ipairs(groups) do
    if #group == 0 then fail("knapsack: group %d has no choice", i) end
    for k, c in ipairs(group) do
      if not (math.abs(c.loss) < math.huge) then fail("knapsack: the loss of choice %d of group %d is %s", k, i, tostring(c.loss)) end
      for j = 1, #limits do
        if not (c.cost[j] and c.cost[j] >= 0) then fail("knapsack: cost %d of choice %d of group %d is %s", j, k, i, tostring(c.cost[j])) end
      end
    end
  end
end

--- The best choices: solve{ groups, limits, nodes = 200000 } -> { loss, costs, picks, proven, gap }, or nil where no choice keeps every limit.
-- groups: lists of { loss, cost = { one a limit } }; limits: a list of numbers; picks: index of the choice in each group. proven is false where more
-- than `nodes` would have to be looked at; the least loss then lies no more than gap below.
function M.solve(opt)
  checked(opt.groups, opt.limits)
  local limits, kept = opt.limits, {}
  for i, group in ipairs(opt.groups) do kept[i] = worthwhile(group) end
  local order, groups = by_spread(kept), {}
  for i, at in ipairs(order) do groups[i] = kept[at] end
  local search = setmetatable({ groups = groups, limits = limits, relaxed = relaxations(groups, limits), loss = math.huge, nodes = 0,
    most = opt.nodes or 2e5, picks = {}, least = { [#groups + 1] = 0 } }, Search)
  for i = #groups, 1, -1 do search.least[i] = search.least[i + 1] + groups[i][1].loss end
  for j = 1, #limits do
    local picks = programme(groups, limits, j)
    local loss, costs = sums_of(groups, picks or {}, limits)
    if picks and within(costs, limits) then search:keep(picks, loss) end
  end
  local zero, lowest = {}, search.least[1]
  for j = 1, #limits do
    zero[j] = 0
    lowest = math.max(lowest, bound(search.relaxed[j][1], limits[j]))
  end
  search:walk(1, 0, zero)
  if not search.best then return nil end
  local picks, proven = {}, search.nodes <= search.most
  local loss, costs = sums_of(groups, search.best, limits)
  for i, k in ipairs(search.best) do picks[order[i]] = groups[i][k].index end
  return { loss = loss, costs = costs, picks = picks, proven = proven, gap = proven and 0 or loss - lowest }
end

return M
