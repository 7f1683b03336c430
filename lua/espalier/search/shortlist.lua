--- From all legal shapes to the few that are worth a run: each is given its additive loss (search/kept.lua, search/measured.lua), and the best of the
-- whole grid and of each range of sizes are kept.

local goals = require "espalier.plan.goals"
local shapes = require "espalier.models.shape"
local progress = require "espalier.progress"
local quantity = require "espalier.quantity"
local fail = require "espalier.fail"

local M = {}

-- Sums over the first n layers of an order, for every n: sum[n] = sum of fn(order[i]).
local function prefix(order, fn)
  local sums, sum = { [0] = 0 }, 0
  for n, l in ipairs(order) do
    sum = sum + fn(l)
    sums[n] = sum
  end
  return sums
end

-- A function that remembers what it gave for a key.
local function remembered(fn)
  local known = {}
  return function(key, ...)
    local v = known[key]
    if v == nil then
      v = fn(...)
      known[key] = v
    end
    return v
  end
end

--- The additive loss of cells of a grid: a function of a cell { hidden, ffn, heads, kv_heads, layers }, the layers being the first of the order.
function M.loss(s, parts, order)
  local hidden = remembered(parts.hidden)
  local mlp = remembered(function(f) return prefix(order, function(l) return parts.mlp(l, f) end) end)
  local attention = remembered(function(h, g)
    return prefix(order, function(l) return shapes.at(s, "heads", l) > 0 and parts.attention(l, h, g) or 0 end)
  end)
  local gone = prefix(order, function(l) return s.layers > 1 and parts.layer(l) or 0 end)
  local all = #order
  return function(c)
    local n = c.layers
    return hidden(c.hidden, c.hidden) + mlp(c.ffn, c.ffn)[n] + attention(c.heads * 4096 + c.kv_heads, c.heads, c.kv_heads)[n] + gone[all] - gone[n]
  end
end

-- A list of at most n cells of least loss, best first.
local function keep(list, n, c, loss)
  if #list == n and loss >= list[n].cheap then return end
  local own = { hidden = c.hidden, ffn = c.ffn, heads = c.heads, kv_heads = c.kv_heads, layers = c.layers, parameters = c.parameters,
    non_embedding = c.non_embedding, kv = c.kv, cheap = loss }
  local at = #list + 1
  while at > 1 and list[at - 1].cheap > loss do at = at - 1 end
  table.insert(list, at, own)
  list[n + 1] = nil
end

local ranges = 12

--- Walks a grid and gives { seen, fitting, list }: list holds up to `top` cells with their loss as `cheap`, best first; half of them the best of all,
-- the rest the best of each twelfth of the range of sizes, so that the front of loss against size is there to be scored. opt: quiet, and late(), or
-- nil: where it says yes, what was seen so far must do.
function M.walk(grid, budget, loss, top, opt)
  local best, by_size, seen, fitting = {}, {}, 0, 0
  local largest = shapes.parameters(grid.shape)
  local bar = progress.new { label = "shapes", total = grid:count(), quiet = opt.quiet, after = 2 }
  for c in grid:each() do
    seen = seen + 1
    if seen % 65536 == 0 then
      bar:update(seen, quantity.show_count(fitting) .. " within the budget")
      if opt.late and opt.late() and fitting > 0 then break end
    end
    if goals.fill(budget, c) then
      fitting = fitting + 1
      local value = loss(c)
      keep(best, top, c, value)
      local range = math.min(ranges, math.floor(ranges * c.parameters / largest) + 1)
      by_size[range] = by_size[range] or {}
      keep(by_size[range], math.max(1, math.ceil(top / 2 / ranges)), c, value)
    end
  end
  bar:stop()
  if fitting == 0 then fail("esp.search: none of %d legal shapes keeps the budget; esp.plan with the same budget tells the smallest", seen) end
  return { seen = seen, fitting = fitting, list = M.mix(best, by_size, top) }
end

local function key_of(c)
  return string.format("%d %d %d %d %d", c.hidden, c.ffn, c.heads, c.kv_heads, c.layers)
end

--- Half of `top` from the best of all, then by turns the best of each range of sizes, then the best of all again; each cell once, least loss first.
function M.mix(best, by_size, top)
  local list, has = {}, {}
  local function add(c)
    if c and #list < top and not has[key_of(c)] then list[#list + 1], has[key_of(c)] = c, true end
  end
  for i = 1, math.ceil(top / 2) do add(best[i]) end
  for n = 1, top do
    for range = ranges, 1, -1 do add(by_size[range] and by_size[range][n]) end
  end
  for _, c in ipairs(best) do add(c) end
  table.sort(list, function(a, b) return a.cheap < b.cheap end)
  return list
end

return M
