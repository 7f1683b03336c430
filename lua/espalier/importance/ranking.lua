--- A ranking: a metric for each axis, and the sets of indices it keeps at a size. Ties go to the lower index; kept indices ascend.

local tensor = require "espalier.tensor"
local tape = require "espalier.tape"
local ops = require "espalier.ops"
local choose = require "espalier.importance.choose"
local score = require "espalier.importance.score"
local shapes = require "espalier.models.shape"
local options = require "espalier.options"
local fail = require "espalier.fail"

local M = { best = choose.best, order = choose.order }
local Ranking = {}
Ranking.__index = Ranking

--- What a ranking may say of an axis: the options of stats:score, and
--   within      "layer": each layer keeps its own best; "network": all layers compete, so that their sizes differ; "shared": scores summed over
--               the layers, one set for all (2407.14679 can be read so)
--   normalise   "none", or "standard": each layer's scores to mean 0 and deviation 1 before layers compete (2312.11983)
--   contiguous  layers: the block of layers that goes is one piece;  protect: { first, last }: so many layers at the ends always stay
local spec_options = { within = { "string", default = "layer", one_of = { "layer", "network", "shared" } },
  normalise = { "string", default = "none", one_of = { "none", "standard" } }, contiguous = { "bool", default = false },
  protect = { "list", default = { 0, 0 } } }
for name, rule in pairs(score.options) do spec_options[name] = rule end

local ranked = { "hidden", "ffn", "heads", "kv_heads", "head_dim", "layers" }

local function axis_spec(axis, given)
  local opt = type(given) == "table" and not given.score and given or { metric = given }
  local own = {}
  for k, v in pairs(opt) do own[k] = v end
  own.axis = axis
  own = options.check("stats:rank: " .. axis, own, spec_options)
  if own.metric then score.metric(own.metric, axis) end
  return own
end

--- stats:rank(spec): spec[axis] is the name of a metric, a metric, or a table of the options above.
function M.new(stats, spec)
  local own = {}
  for axis, given in pairs(spec) do
    local known = false
    for _, a in ipairs(ranked) do known = known or a == axis end
    if not known then fail("stats:rank: unknown axis '%s', want %s", tostring(axis), table.concat(ranked, ", ")) end
    own[axis] = axis_spec(axis, given)
  end
  return setmetatable({ stats = stats, spec = own, defaults = {} }, Ranking)
end

function Ranking:of(axis)
  if self.spec[axis] then return self.spec[axis] end
  self.defaults[axis] = self.defaults[axis] or axis_spec(axis, nil)
  return self.defaults[axis]
end

--- The same questions asked of other statistics.
function Ranking:with(stats)
  return setmetatable({ stats = stats, spec = self.spec, defaults = self.defaults }, Ranking)
end

-- What a size says of layer l: itself, or the entry of a list by layer.
local function at(size, l)
  if type(size) == "table" then return size[l + 1] end
  return size
end

local function refuse_nan(x, axis, l)
  local p = x:data()
  for i = 0, x.shape[1] - 1 do
    if p[i] ~= p[i] then
      fail("the score of %s %d%s is NaN; the calibration pass or the weights held NaN", axis, i, l and " in layer " .. l or "")
    end
  end
  return x
end

-- Scores of an axis in a layer.
local function ask(self, axis, l, model)
  local opt = {}
  for name in pairs(score.options) do opt[name] = self:of(axis)[name] end
  opt.layer, opt.model = l, model
  return refuse_nan(score.score(self.stats, opt), axis, l)
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
  if self.spec.kv_heads then return ask(self, "kv_heads", l, model) end
  return ops.sum(ops.view(scores, groups, -1), 1)
end

-- Scores of the heads of each layer that has some: { [l] = f32 [heads] }; the same for all where one set serves all.
local function all_head_scores(self, model)
  local s, scores, sum = self.stats.shape, {}, nil
  for l = 0, s.layers - 1 do
    if shapes.at(s, "heads", l) > 0 then
      scores[l] = ask(self, "heads", l, model)
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
  local ask_opt = {}
  for name in pairs(score.options) do ask_opt[name] = opt[name] end
  ask_opt.block = opt.contiguous and math.max(1, gone) or 1
  local scores = refuse_nan(score.score(self.stats, ask_opt), "layers"):table()
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
  for l = 0, s.layers - 1 do if shapes.at(s, "ffn", l) > 0 then units[l] = ask(self, "ffn", l, model) end end
  return units
end

--- Sets of kept indices at the sizes of opt (numbers; of ffn, heads and kv_heads also lists by layer): { hidden = { .. }, ffn = { [l+1] = { .. } },
-- heads =, kv_heads =, layers = { .. }, head_dim = { pairs } }; only the axes named. opt.layers counts the layers that stay; opt.head_dim channels,
-- so twice the pairs; a size along an axis that competes over the network is the mean of its layers. model: for metrics that read weights.
function Ranking:kept(opt, model)
  return tape.no_grad(tape.scope, function()
    local s, sets = self.stats.shape, {}
    if opt.hidden then sets.hidden = choose.best(ask(self, "hidden", nil, model), opt.hidden) end
    if opt.head_dim then sets.head_dim = choose.best(ask(self, "head_dim", nil, model), opt.head_dim / 2) end
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

--- Scores along an axis (of layer l for ffn and heads), a list of numbers; NaN is an error. model: for metrics that read weights.
function Ranking:scores(axis, l, model)
  return tape.no_grad(tape.scope, function() return ask(self, axis, l, model):table() end)
end

--- Every axis in the order of importance, the highest first: the same sets as kept() gives, before they are cut short. heads stand group by group in
-- the order of kv_heads, the best first inside each group. Layers are ordered one by one, also where `contiguous` is asked for.
function Ranking:orders(model)
  return tape.no_grad(tape.scope, function()
    local s, orders = self.stats.shape, { ffn = {}, heads = {}, kv_heads = {} }
    orders.hidden, orders.layers = choose.order(ask(self, "hidden", nil, model)), choose.order(ask(self, "layers", nil, model))
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

--- Would more data change the answer? Overlap of what the even and the odd rows keep at the sizes of opt: see stability.lua.
function Ranking:stability(opt)
  return require("espalier.importance.stability").of(self, opt)
end

local function say(opt)
  local default = opt.axis == "layers" and "bi" or "activation"
  local name = type(opt.metric) == "string" and opt.metric or opt.metric and (opt.metric.name or "a metric of the recipe") or default
  if name == "activation" then name = name .. " (" .. opt.agg .. ")" end
  if opt.axis == "heads" and name:find "^activation" then name = name .. ", " .. opt.heads end
  if opt.within ~= "layer" then name = name .. ", " .. (opt.within == "network" and "over the network" or "one set for all layers") end
  if opt.contiguous then name = name .. ", one block" end
  return name
end

function Ranking:__tostring()
  local text = string.format("ranking: hidden by %s; ffn by %s; heads by %s inside their group; layers by %s", say(self:of "hidden"),
    say(self:of "ffn"), say(self:of "heads"), say(self:of "layers"))
  return text .. (self.spec.kv_heads and "; kv_heads by " .. say(self.spec.kv_heads) or "")
end

return M
