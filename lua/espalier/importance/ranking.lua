--- A ranking: a metric for each axis, and the sets of indices it keeps at a size. Ties go to the lower index; kept indices ascend.

local shapes = require "espalier.models.shape"
local fail = require "espalier.fail"

local M = {}
local Ranking = {}
Ranking.__index = Ranking

function M.new(stats, spec)
  for axis in pairs(spec) do
    if not ({ ffn = 1, heads = 1, hidden = 1, layers = 1 })[axis] then
      fail("stats:rank: unknown axis '%s', want ffn, heads, hidden or layers", tostring(axis))
    end
  end
  return setmetatable({ stats = stats, spec = spec }, Ranking)
end

local function ask(self, axis, l, model)
  local given = self.spec[axis]
  local opt = { axis = axis, layer = l, model = model }
  if type(given) == "table" and given.score then opt.metric = given
  elseif type(given) == "table" then for k, v in pairs(given) do opt[k] = v end
  else opt.metric = given end
  local scores = self.stats:score(opt):table()
  for i, s in ipairs(scores) do
    if s ~= s then fail("the score of %s %d%s is NaN; the calibration pass or the weights held NaN", axis, i - 1, l and " in layer " .. l or "") end
  end
  return scores
end

--- Indices of a list of scores, from 0, from the highest score; ties by the index.
function M.order(scores)
  local order = {}
  for i = 1, #scores do order[i] = i - 1 end
  table.sort(order, function(a, b) return scores[a + 1] > scores[b + 1] or (scores[a + 1] == scores[b + 1] and a < b) end)
  return order
end

--- The n best of a list of scores: indices from 0, ascending.
function M.best(scores, n)
  local order, kept = M.order(scores), {}
  for i = 1, n do kept[i] = order[i] end
  table.sort(kept)
  return kept
end

local function sum_of(scores, from, n)
  local sum = 0
  for i = from + 1, from + n do sum = sum + scores[i] end
  return sum
end

-- Groups by the sum of their heads, then inside each kept group the best heads.
local function heads_of(scores, groups, keep_groups, keep_heads)
  local each, sums, kept = #scores / groups, {}, {}
  for g = 0, groups - 1 do sums[g + 1] = sum_of(scores, g * each, each) end
  local best_groups = M.best(sums, keep_groups)
  for _, g in ipairs(best_groups) do
    local own = {}
    for i = 1, each do own[i] = scores[g * each + i] end
    for _, h in ipairs(M.best(own, keep_heads / keep_groups)) do kept[#kept + 1] = g * each + h end
  end
  return kept, best_groups
end

-- What a size says of layer l: itself, or the entry of a list by layer.
local function at(size, l)
  if type(size) == "table" then return size[l + 1] end
  return size
end

--- Sets of kept indices at the sizes of opt (numbers; of ffn, heads and kv_heads also lists by layer):
-- { hidden = { .. }, ffn = { [l+1] = { .. } }, heads =, kv_heads =,
-- layers = { .. } }; only the axes named. opt.layers counts the layers that stay. model: for metrics that read weights.
function Ranking:kept(opt, model)
  local s, sets = self.stats.shape, {}
  if opt.hidden then sets.hidden = M.best(ask(self, "hidden", nil, model), opt.hidden) end
  if opt.layers then sets.layers = M.best(ask(self, "layers", nil, model), opt.layers) end
  for l = 0, s.layers - 1 do
    local f, h = shapes.at(s, "ffn", l), shapes.at(s, "heads", l)
    if opt.ffn and f > 0 then
      sets.ffn = sets.ffn or {}
      sets.ffn[l + 1] = M.best(ask(self, "ffn", l, model), math.min(at(opt.ffn, l), f))
    end
    if (opt.heads or opt.kv_heads) and h > 0 then
      sets.heads, sets.kv_heads = sets.heads or {}, sets.kv_heads or {}
      local groups = shapes.at(s, "kv_heads", l)
      local keep_heads = at(opt.heads, l)
      local keep_groups = keep_heads == 0 and 0 or at(opt.kv_heads, l) or groups
      keep_heads = keep_heads or h / groups * keep_groups
      sets.heads[l + 1], sets.kv_heads[l + 1] = heads_of(ask(self, "heads", l, model), groups, keep_groups, keep_heads)
    end
  end
  return sets
end

--- Every axis in the order of importance, the highest first: the same sets as kept() gives, before they are cut short. heads stand group by group in
-- the order of kv_heads, the best first inside each group.
function Ranking:orders(model)
  local s, orders = self.stats.shape, { ffn = {}, heads = {}, kv_heads = {} }
  orders.hidden, orders.layers = M.order(ask(self, "hidden", nil, model)), M.order(ask(self, "layers", nil, model))
  for l = 0, s.layers - 1 do
    local groups = shapes.at(s, "kv_heads", l)
    if shapes.at(s, "ffn", l) > 0 then orders.ffn[l + 1] = M.order(ask(self, "ffn", l, model)) end
    if groups > 0 then
      local scores, sums, heads = ask(self, "heads", l, model), {}, {}
      local each = #scores / groups
      for g = 0, groups - 1 do sums[g + 1] = sum_of(scores, g * each, each) end
      orders.kv_heads[l + 1] = M.order(sums)
      for _, g in ipairs(orders.kv_heads[l + 1]) do
        for _, h in ipairs(M.order { unpack(scores, g * each + 1, (g + 1) * each) }) do heads[#heads + 1] = g * each + h end
      end
      orders.heads[l + 1] = heads
    end
  end
  return orders
end

local function say(spec, default)
  if spec == nil then return default end
  if type(spec) == "string" then return spec end
  local name = type(spec.metric) == "string" and spec.metric or spec.score and "a metric of the recipe" or "activation"
  return name .. (spec.agg and " (" .. spec.agg .. ")" or "")
end

function Ranking:__tostring()
  local s = self.spec
  return string.format("ranking: hidden by %s; ffn by %s; heads by %s inside their group; layers by %s", say(s.hidden, "activation (l2,mean)"),
    say(s.ffn, "activation (l2,mean)"), say(s.heads, "activation (l2,mean), channelwise"), say(s.layers, "bi"))
end

return M
