--- How a step is cut into passes: about 1,024 tokens at a time go forward and backward, enough for products at full speed, so that what is kept
-- between the two does not grow with the batch.

local M = { tokens = 1024 }

--- Rows of `seq` tokens that go through the model at once, at least one.
function M.rows(seq)
  return math.max(1, math.floor(M.tokens / seq))
end

return M
