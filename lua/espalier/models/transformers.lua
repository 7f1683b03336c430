--- The one rule by which transformers refuses a shape although its weights are right: since version 5 some of its configs want the hidden size to
-- be a multiple of the heads, even where head_dim stands beside them.

local M = {}

-- model_type of the configs that ask.
local divides = { llama = true, gemma2 = true }

--- Does it open a model_type at these sizes, the same in every layer?
function M.takes(kind, hidden, heads)
  return not divides[kind] or heads == 0 or hidden % heads == 0
end

--- The nearest sizes that keep the rule: a list of { axis, size }, hidden below and above, heads below and above (whole in `groups` groups).
-- most: { hidden, heads } that can be had, each absent where there is no limit.
function M.nearest(hidden, heads, groups, most)
  local list, below = {}, math.floor(hidden / heads) * heads
  local function add(axis, size) if size and size > 0 then list[#list + 1] = { axis, size } end end
  add("hidden", below)
  if below + heads <= (most.hidden or math.huge) then add("hidden", below + heads) end
  local low, high
  for h = groups, most.heads or hidden, groups do
    if hidden % h == 0 and h < heads then low = h end
    if hidden % h == 0 and h > heads and not high then high = h end
  end
  add("heads", low)
  add("heads", high)
  return list
end

return M
