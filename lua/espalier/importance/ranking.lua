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

--- The n best of a list of scores: indices from 0, ascending.
function M.best(scores, n)
  local order = {}
  for i = 1, #scores do order[i] = i end
  table.sort(order, function(a, b) return scores[a] > scores[b] or (scores[a] == scores[b] and a < b) end)
  local kept = {}
  for i = 1, n do kept[i] = order[i] - 1 end
  table.sort(kept)
  return kept
end

-- Groups by the sum of their heads, then inside each kept group the best heads.
local function heads_of(scores, groups, keep_groups, keep_heads)
  local each, sums, kept = #scores / groups, {}, {}
  for g = 0, groups - 1 do
    sums[g + 1] = 0
    for i = 1, each do sums[g + 1] = sums[g + 1] + scores[g * each + i] end
  end
  local best_groups = M.best(sums, keep_groups)
  for _, g in ipairs(best_groups) do
    local own = {}
    for i = 1, each do own[i] = scores[g * each + i] end
    for _, h in ipairs(M.best(own, keep_heads / keep_groups)) do kept[#kept + 1] = g * each + h end
  end
  return kept, best_groups
end

--- Sets of kept indices at the sizes of opt: { hidden = { .. }, ffn = { [l+1] = { .. } }, heads =, kv_heads = (lists by layer), layers = { .. } };
-- only the axes named. opt.layers counts the layers that stay. model: for metrics that read weights.
function Ranking:kept(opt, model)
  local s, sets = self.stats.shape, {}
  if opt.hidden then sets.hidden = M.best(ask(self, "hidden", nil, model), opt.hidden) end
  if opt.layers then sets.layers = M.best(ask(self, "layers", nil, model), opt.layers) end
  for l = 0, s.layers - 1 do
    local f, h = shapes.at(s, "ffn", l), shapes.at(s, "heads", l)
    if opt.ffn and f > 0 then
      sets.ffn = sets.ffn or {}
      sets.ffn[l + 1] = M.best(ask(self, "ffn", l, model), math.min(opt.ffn, f))
    end
    if (opt.heads or opt.kv_heads) and h > 0 then
      sets.heads, sets.kv_heads = sets.heads or {}, sets.kv_heads or {}
      local groups = shapes.at(s, "kv_heads", l)
      local keep_groups = opt.kv_heads or groups
      local keep_heads = opt.heads or h / groups * keep_groups
      sets.heads[l + 1], sets.kv_heads[l + 1] = heads_of(ask(self, "heads", l, model), groups, keep_groups, keep_heads)
    end
  end
  return sets
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
