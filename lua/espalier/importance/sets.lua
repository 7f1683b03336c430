--- From the scores of a ranking to what it keeps: the sets of indices at a size, and the orders that they are cut from. self is a ranking.

local tensor = require "espalier.tensor"
local tape = require "espalier.tape"
local scope = require "espalier.scope"
local ops = require "espalier.ops"
local choose = require "espalier.importance.choose"
local shapes = require "espalier.models.shape"
local fail = require "espalier.fail"

local M = {}

-- What a size says of layer l: itself, or the entry of a list by layer.
local function at(size, l)
  if type(size) == "table" then return size[l + 1] end
  return size
end

-- ---- heads ----

local function part(x, from, n)
  return tensor.contiguous(tensor.narrow(x, 0, from, n))
end

-- The best heads of each kept group, so many a group.
local function heads_in(scores, each, kept_groups, n)
  local kept = {}
  for _, g in ipairs(kept_groups) do
    for _, h in ipairs(choose.best(part(scores, g * each, each), n)) do kept[#kept + 1] = g * each + h end
  end
  return kept
end

-- The r-th best heads of all groups together, by r: what competes over the network, for each group keeps as many as any other.
local function ranks(scores, groups)
  local each = scores.shape[1] / groups
  local sums = tensor.zeros { each }
  local q = sums:data()
  for g = 0, groups - 1 do
    local p = choose.descending(part(scores, g * each, each)):data()
    for r = 0, each - 1 do q[r] = q[r] + p[r] end
  end
  return sums
end

-- Scores of the groups of a layer: their own metric, or the sum of their heads'.
local function group_scores(self, l, scores, groups, model)
  if self.spec.kv_heads then return self:ask("kv_heads", l, model) end
  return ops.sum(ops.view(scores, groups, -1), 1)
end

-- Scores of the heads of each layer that has some: { [l] = f32 [heads] }; the same for all where one set serves all.
local function all_head_scores(self, model)
  local s, scores, sum = self.stats.shape, {}, nil
  for l = 0, s.layers - 1 do
    if shapes.at(s, "heads", l) > 0 then
      scores[l] = self:ask("heads", l, model)
      if self:of "heads".within == "shared" then sum = sum and sum + scores[l] or scores[l] end
    end
  end
  if sum then for l in pairs(scores) do scores[l] = sum end end
  return scores
end

local function first_n(n)
  local list = {}
  for g = 1, n do list[g] = g - 1 end
  return list
end

local function keep_heads(self, opt, model, sets)
  local s, rule, scores, many = self.stats.shape, self:of "heads", all_head_scores(self, model), nil
  local function groups_kept(l) return at(opt.heads, l) == 0 and 0 or at(opt.kv_heads, l) or shapes.at(s, "kv_heads", l) end
  local function a_group(l)
    local groups = groups_kept(l)
    if groups == 0 then return 0 end
    return opt.heads and at(opt.heads, l) / groups or scores[l].shape[1] / shapes.at(s, "kv_heads", l)
  end
  if rule.within == "network" then
    local units = {}
    for l, x in pairs(scores) do units[l] = ranks(x, shapes.at(s, "kv_heads", l)) end
    many = choose.spread(rule, units, a_group)
  end
  sets.heads, sets.kv_heads = {}, {}
  for l, x in pairs(scores) do
    local groups, keep = shapes.at(s, "kv_heads", l), groups_kept(l)
    local kept = keep < groups and choose.best(group_scores(self, l, x, groups, model), keep) or first_n(groups)
    sets.heads[l + 1] = heads_in(x, x.shape[1] / groups, kept, many and #many[l] or a_group(l))
    sets.kv_heads[l + 1] = kept
  end
end

-- ---- layers ----

local function keep_layers(self, n)
  local s, opt = self.stats.shape, self:of "layers"
  local gone, first, last = s.layers - n, tonumber(opt.protect[1]) or 0, tonumber(opt.protect[2]) or 0
  if gone > s.layers - first - last then
    fail("stats:rank: layers = %d with the first %d and last %d protected; at most %d can go", n, first, last, s.layers - first - last)
  end
  local scores = self:ask("layers", nil, nil, opt.contiguous and math.max(1, gone) or 1):table()
  if not opt.contiguous then
    for i = 1, s.layers do if i <= first or i > s.layers - last then scores[i] = math.huge end end
    return choose.best(scores, n)
  end
  local start
  for i = first, s.layers - last - gone do
    if not start or scores[i + 1] < scores[start + 1] then start = i end
  end
  local kept = {}
  for l = 0, s.layers - 1 do if l < start or l >= start + gone then kept[#kept + 1] = l end end
  return kept
end

-- Scores of the neurons of each layer that has some.
local function ffn_scores(self, model)
  local s, units = self.stats.shape, {}
  for l = 0, s.layers - 1 do if shapes.at(s, "ffn", l) > 0 then units[l] = self:ask("ffn", l, model) end end
  return units
end

--- The sets at the sizes of opt: see ranking:kept.
function M.kept(self, opt, model)
  return tape.no_grad(scope.run, function()
    local s, sets = self.stats.shape, {}
    if opt.hidden then sets.hidden = choose.best(self:ask("hidden", nil, model), opt.hidden) end
    if opt.head_dim then sets.head_dim = choose.best(self:ask("head_dim", nil, model), opt.head_dim / 2) end
    if opt.layers then sets.layers = keep_layers(self, opt.layers) end
    if opt.ffn then
      sets.ffn = {}
      local function keep(l) return math.min(at(opt.ffn, l), shapes.at(s, "ffn", l)) end
      for l, kept in pairs(choose.spread(self:of "ffn", ffn_scores(self, model), keep)) do sets.ffn[l + 1] = kept end
    end
    if opt.heads or opt.kv_heads then keep_heads(self, opt, model, sets) end
    return sets
  end)
end

--- Every axis in the order of importance: see ranking:orders.
function M.orders(self, model)
  return tape.no_grad(scope.run, function()
    local s, orders = self.stats.shape, { ffn = {}, heads = {}, kv_heads = {} }
    orders.hidden, orders.layers = choose.order(self:ask("hidden", nil, model)), choose.order(self:ask("layers", nil, model))
    for l, x in pairs(ffn_scores(self, model)) do orders.ffn[l + 1] = choose.order(x) end
    for l, x in pairs(all_head_scores(self, model)) do
      local groups, heads = shapes.at(s, "kv_heads", l), {}
      local each = x.shape[1] / groups
      orders.kv_heads[l + 1] = choose.order(group_scores(self, l, x, groups, model))
      for _, g in ipairs(orders.kv_heads[l + 1]) do
        for _, h in ipairs(choose.order(part(x, g * each, each))) do heads[#heads + 1] = g * each + h end
      end
      orders.heads[l + 1] = heads
    end
    return orders
  end)
end

return M
