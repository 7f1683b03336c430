--- Forward passes in bounded memory: the weights of one block at a time, and the head in slices, for checking models that are larger than memory.

local lazy = require "espalier.tensor.lazy"
local tape = require "espalier.tape"

-- Bytes of the head that are made at a time.
local M = { slice = 2 ^ 26 }

--- Residual stream after the final norm [B,T,hidden]; no weight that was not read yet stays in memory. Not recorded.
function M.hidden(model, ids)
  return tape.no_grad(tape.scope, function() return model:forward(ids, { bounded = true }) end)
end

-- Rows of the head that are made at a time.
local function rows_of(model)
  return math.max(1, math.floor(M.slice / (4 * model.shape.hidden)))
end

--- for from, weight in bounded.head(model [, n]): the LM head in slices of n rows, weight [n, hidden]; each is freed when the next is asked for.
function M.head(model, n)
  return lazy.rows(model:head(), n or rows_of(model))
end

--- The largest difference of a logit between two models of one vocabulary on ids, block by block and slice by slice.
function M.largest_difference(a, b, ids)
  return tape.no_grad(tape.scope, function()
    local x, y, largest = M.hidden(a, ids), M.hidden(b, ids), 0
    local n = math.min(rows_of(a), rows_of(b))
    local slices = M.head(b, n)
    for _, weight in M.head(a, n) do
      local _, other = slices()
      local d = tape.scope(function()
        return (a:project(x, weight) - b:project(y, other)):abs():view(-1):max(0):item()
      end)
      -- NaN is the largest of all.
      if not (d <= largest) then largest = d end
    end
    return largest
  end)
end

return M
