--- Budgets instead of shapes: which shapes of a grid keep all of them, and which of those to look at first.

local grids = require "espalier.plan.grid"
local latency = require "espalier.plan.latency"
local quantity = require "espalier.quantity"
local fail = require "espalier.fail"

local M = {}

--- Budgets that esp.plan and esp.search take. memory: weights and KV cache in bf16; latency: one forward pass over [batch, length] tokens.
M.options = {
  params = { "tokens", help = "most parameters, as 8e9 or 8B" }, non_embedding = { "tokens", help = "most parameters without embeddings" },
  memory = { "bytes", help = "most memory in use, weights and KV cache at batch and length, bf16" },
  latency = { "seconds", help = "longest forward pass over batch x length tokens on this machine" },
}

local order = { "params", "non_embedding", "memory", "latency" }
local show = { params = quantity.show_exact, non_embedding = quantity.show_exact, memory = quantity.show_bytes, latency = quantity.show_seconds }

--- The budgets of opt as a list of { name, limit, value(c), show }; empty where there is none. opt: also batch, length, quiet.
function M.of(opt, grid)
  local value = {
    params = function(c) return c.parameters end, non_embedding = function(c) return c.non_embedding end,
    memory = function(c) return 2 * c.parameters + c.kv * opt.batch * opt.length end,
  }
  local list = {}
  for _, name in ipairs(order) do
    if opt[name] then
      if not (opt[name] > 0) then fail("plan: %s = %s, want more than 0", name, tostring(opt[name])) end
      if name == "latency" then
        local measured = latency.new(grid, opt.batch, opt.length, opt.quiet)
        list.latency = measured
        value.latency = function(c) return measured:of(c) end
      end
      list[#list + 1] = { name = name, limit = opt[name], value = value[name], show = show[name] }
    end
  end
  return list
end

--- How full a cell's fullest budget is, up to 1; nil where it breaks one.
function M.fill(goals, c)
  local most = 0
  for i = 1, #goals do
    local share = goals[i].value(c) / goals[i].limit
    if not (share <= 1) then return nil end
    if share > most then most = share end
  end
  return most
end

-- Sum of squares of the logarithms of what stays of each axis: 0 where nothing is cut, least where several axes share a cut evenly.
local function unevenness(c, most)
  local sum = 0
  for _, axis in ipairs(grids.axes) do sum = sum + math.log(c[axis] / most[axis]) ^ 2 end
  return sum
end

local function which(c, most)
  local names = {}
  for _, axis in ipairs(grids.axes) do if c[axis] < most[axis] then names[#names + 1] = axis end end
  return table.concat(names, ", ")
end

local function copy(c)
  local own = {}
  for k, v in pairs(c) do own[k] = v end
  return own
end

-- Within this share of the fullest, fuller is not better.
local slack = 0.02

--- Walks a grid: { seen, fitting, list }, where list holds for each set of axes that is cut the most even cut among the fullest that keep all goals,
-- the most even first. An error where nothing fits, naming the smallest there is.
function M.choose(grid, goals)
  local most, best, fullest, seen, fitting, least = {}, {}, {}, 0, 0, nil
  for _, axis in ipairs(grids.axes) do most[axis] = grids.largest(grid.shape, axis) end
  -- Two walks: the fullest of each set of axes first, then the most even within reach of it.
  for c in grid:each() do
    seen = seen + 1
    local fill = M.fill(goals, c)
    if fill then
      local cut = which(c, most)
      fitting = fitting + 1
      fullest[cut] = math.max(fullest[cut] or 0, fill)
    elseif not least or c.parameters < least.parameters then
      least = copy(c)
    end
  end
  if fitting == 0 then
    if not least then fail("plan: the grid holds no legal shape") end
    local parts = {}
    for _, g in ipairs(goals) do parts[#parts + 1] = string.format("%s %s (limit %s)", g.name, g.show(g.value(least)), g.show(g.limit)) end
    fail("plan: none of %d legal shapes keeps the budget; the smallest has %s", seen, table.concat(parts, ", "))
  end
  for c in grid:each() do
    local fill = M.fill(goals, c)
    if fill then
      local cut = which(c, most)
      local uneven = unevenness(c, most)
      if fill >= fullest[cut] * (1 - slack) and (not best[cut] or uneven < best[cut].uneven) then
        best[cut] = copy(c)
        best[cut].uneven, best[cut].cut, best[cut].fill = uneven, cut, fill
      end
    end
  end
  local list = {}
  for _, c in pairs(best) do list[#list + 1] = c end
  table.sort(list, function(a, b) return a.uneven < b.uneven or (a.uneven == b.uneven and a.cut < b.cut) end)
  return { seen = seen, fitting = fitting, list = list }
end

return M
