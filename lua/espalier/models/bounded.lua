--- Forward passes in bounded memory: the weights of one block at a time, and the head in slices, for checking models that are larger than memory.

local lazy = require "espalier.tensor.lazy"
local tape = require "espalier.tape"
local scope = require "espalier.scope"

-- Bytes of the head that are made at a time.
local M = { slice = 2 ^ 26 }

--- Residual stream after the final norm [B,T,hidden]; no weight that was not read yet stays in memory. Not recorded.
function M.hidden(model, ids)
  return tape.no_grad(scope.run, function() return model:forward(ids, { bounded = true }) end)
end

--- for from, weight in bounded.head(model): the LM head in slices, weight [n, hidden]; each is freed when the next is asked for.
function M.head(model)
  return lazy.rows(model:head(), math.max(1, math.floor(M.slice / (4 * model.shape.hidden))))
end

return M
