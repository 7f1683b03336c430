--- Statistics of shards of data put together, and taken apart by halves: what may be done with the sums of each name.

local tensor = require "espalier.tensor"
local scope = require "espalier.scope"
local statistics = require "espalier.importance.statistics"
local shapes = require "espalier.models.shape"
local fail = require "espalier.fail"

local M = {}

-- "add", "max" (a user's reduction), "same" (of the weights alone), or "whole" (of all data at once: Taylor's weight form, a task).
local function rule_of(stats, name)
  local own = name:match "%.user%.(.+)$"
  if own then return stats.facts.reductions[own] == "max" and "max" or "add" end
  if name:match "%.weights$" then return "same" end
  if name:match "%.taylor_weight$" or name:match "%.task$" then return "whole" end
  return "add"
end

local function combine(rule, a, b)
  local out, x, y = tensor.new(a.shape, "f64"), a:data(), b:data()
  local p = out:data()
  for i = 0, a:count() - 1 do
    if rule == "max" then p[i] = x[i] >= y[i] and x[i] or y[i] else p[i] = x[i] + y[i] end
  end
  return out
end

-- Names of what adds up.
local function names_of(stats, place)
  local names = {}
  for name in pairs(place) do if rule_of(stats, name) ~= "whole" then names[#names + 1] = name end end
  table.sort(names)
  return table.concat(names, ", ")
end

local function refuse_mixing(a, b)
  local function differ(what, x, y) fail("stats:merge: the statistics are of different %s (%s and %s)", what, tostring(x), tostring(y)) end
  if shapes.text(a.shape) ~= shapes.text(b.shape) then differ("models", shapes.text(a.shape), shapes.text(b.shape)) end
  for _, what in ipairs { "model", "tokenizer" } do
    if a.facts[what] ~= b.facts[what] then differ(what .. "s", a.facts[what], b.facts[what]) end
  end
  for _, x in ipairs(a.facts.data) do
    for _, y in ipairs(b.facts.data) do
      if x.digest == y.digest then fail("stats:merge: both hold the same %d rows of data (hash %s); they would count twice", x.rows, x.digest) end
    end
  end
  statistics.each_place(a, function(place, at)
    local left, right = names_of(a, place), names_of(b, at(b))
    if left ~= right then fail("stats:merge: one holds %s, the other %s; measure both with the same options", left, right) end
  end)
end

--- See stats:merge.
function M.merge(self, other)
  if type(other) ~= "table" or getmetatable(other) ~= statistics.Statistics then
    fail("stats:merge: the argument is %s, want statistics", type(other))
  end
  refuse_mixing(self, other)
  local facts = {}
  for k, v in pairs(self.facts) do facts[k] = v end
  facts.data, facts.merged = {}, true
  for _, from in ipairs { self, other } do for _, d in ipairs(from.facts.data) do facts.data[#facts.data + 1] = d end end
  local both = statistics.new(self.shape, facts)
  both.model = self.model
  for h = 1, 2 do
    for what, n in pairs(self.counts[h]) do both.counts[h][what] = n + other.counts[h][what] end
  end
  scope.outside(statistics.each_place, self, function(place, at)
    for name, a in pairs(place) do
      local rule = rule_of(self, name)
      if rule == "same" then at(both)[name] = a elseif rule ~= "whole" then at(both)[name] = combine(rule, a, at(other)[name]) end
    end
  end)
  return both
end

--- See stats:half.
function M.half(self, h)
  local facts = {}
  for k, v in pairs(self.facts) do facts[k] = v end
  local half = statistics.new(self.shape, facts)
  half.model = self.model
  for what, n in pairs(self.counts[h + 1]) do half.counts[h + 1][what] = n end
  scope.outside(statistics.each_place, self, function(place, at)
    for name, t in pairs(place) do
      local rule = rule_of(self, name)
      if rule == "same" then
        at(half)[name] = t
      elseif rule ~= "whole" then
        local own = tensor.clone(t)
        tensor.select(own, 0, 1 - h):fill(rule == "max" and -math.huge or 0)
        at(half)[name] = own
      end
    end
  end)
  return half
end

--- See stats:forget_wholes.
function M.forget_wholes(self)
  statistics.each_place(self, function(place)
    for name in pairs(place) do if rule_of(self, name) == "whole" then place[name] = nil end end
  end)
end

return M
