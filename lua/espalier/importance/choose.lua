--- Choosing among scores: the best of a list, and of several layers that keep their own, compete, or share one set.

local tensor = require "espalier.tensor"
local tape = require "espalier.tape"
local scope = require "espalier.scope"
local ops = require "espalier.ops"
local core = require "espalier.ffi"
local fail = require "espalier.fail"

local M = {}

-- A list of the indices whose mark is set, ascending, from 0.
local function marked(mark, n)
  local kept, count = {}, 0
  for i = 0, n - 1 do
    if mark[i] ~= 0 then
      count = count + 1
      kept[count] = i
    end
  end
  return kept
end

-- i32 pointer to the indices of scores (a tensor or a list) from the highest on, ties by the index; the tensor that holds them; how many.
local function ordered(scores)
  local x = tensor.is(scores) and scores or tensor.of(scores)
  local index = ops.argsort(x, { descending = true })
  return index:data(), index, x.shape[1]
end

--- Indices of scores (a tensor or a list), from 0, from the highest score; ties by the index.
function M.order(scores)
  return tape.no_grad(scope.run, function()
    local _, index = ordered(scores)
    return index:table()
  end)
end

--- The n best of scores: indices from 0, ascending.
function M.best(scores, n)
  return tape.no_grad(scope.run, function()
    local p, _, count = ordered(scores)
    local mark = core.new("uint8_t[?]", count)
    for i = 0, n - 1 do mark[p[i]] = 1 end
    return marked(mark, count)
  end)
end

local function standardise(x)
  local p, n, sum, square = x:data(), x.shape[1], 0, 0
  for i = 0, n - 1 do sum, square = sum + p[i], square + p[i] * p[i] end
  local mean = sum / n
  local deviation = math.sqrt(math.max(0, square / n - mean * mean))
  return ops.affine(x, deviation > 0 and 1 / deviation or 1, deviation > 0 and -mean / deviation or -mean)
end

-- The best `total` of all layers' units, at least one of each layer: { [l] = kept }. units: { [l] = scores }.
local function best_of_all(units, total)
  local layers, count, first = {}, 0, {}
  for l in pairs(units) do layers[#layers + 1] = l end
  table.sort(layers)
  for _, l in ipairs(layers) do
    first[l] = count
    count = count + units[l].shape[1]
  end
  local all, mark = tensor.new { count }, core.new("uint8_t[?]", count)
  local p = all:data()
  for _, l in ipairs(layers) do
    local x, n, best = units[l]:data(), units[l].shape[1], 0
    for i = 0, n - 1 do
      p[first[l] + i] = x[i]
      if x[i] > x[best] then best = i end
    end
    -- The best of a layer stays whatever the others have.
    p[first[l] + best] = math.huge
  end
  local order, kept = ops.argsort(all, { descending = true }):data(), {}
  for i = 0, math.min(total, count) - 1 do mark[order[i]] = 1 end
  for _, l in ipairs(layers) do kept[l] = marked(mark + first[l], units[l].shape[1]) end
  return kept
end

--- x from the highest on.
function M.descending(x)
  local order, y = ops.argsort(x, { descending = true }):data(), tensor.new(x.shape)
  local p, q = x:data(), y:data()
  for i = 0, x.shape[1] - 1 do q[i] = p[order[i]] end
  return y
end

--- Units of layers by the rule of `within`: units[l] = scores; keep(l): how many stay in layer l where each layer keeps its own.
function M.spread(opt, units, keep)
  local kept = {}
  if opt.within == "layer" then
    for l, x in pairs(units) do kept[l] = M.best(x, keep(l)) end
    return kept
  end
  for l, x in pairs(units) do if opt.normalise == "standard" then units[l] = standardise(x) end end
  if opt.within == "shared" then
    local sum
    for l, x in pairs(units) do
      if sum and sum.shape[1] ~= x.shape[1] then fail("stats:rank: within = \"shared\" wants layers of one size; layer %d has %d", l, x.shape[1]) end
      sum = sum and sum + x or x
    end
    for l in pairs(units) do kept[l] = M.best(sum, keep(l)) end
    return kept
  end
  local total = 0
  for l in pairs(units) do total = total + keep(l) end
  return best_of_all(units, total)
end

return M
