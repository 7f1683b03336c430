--- What engines demand of a shape beyond what is possible at all, and the nearest sizes that they take.
--
-- transformers: since version 5 its LlamaConfig refuses a hidden size that the heads do not divide, even where head_dim is written out; its
-- other configurations do not ask. Layers that differ are no matter here: such a model is exported as a zero-padded uniform twin.

local M = {}

--- Names that the option `engine` takes.
M.names = { "transformers", "any" }

local function whole_heads(architecture, hidden, heads)
  return architecture ~= "llama" or heads == 0 or hidden % heads == 0
end

--- Can the engine open a uniform shape of these sizes?
function M.takes(engine, architecture, hidden, heads)
  return engine == "any" or whole_heads(architecture, hidden, heads)
end

-- Numbers of heads, whole in their groups, that divide a hidden size; nearest to the one asked for.
local function near_heads(hidden, heads, groups, most)
  local low, high
  for h = groups, most, groups do
    if hidden % h == 0 and h < heads then low = h end
    if hidden % h == 0 and h > heads and not high then high = h end
  end
  return low, high
end

--- The rule that sizes break, with the nearest ones that keep it; nil where the engine takes them. most: { hidden, heads } that can be asked for.
function M.refusal(engine, architecture, s, most)
  local hidden, heads = s.hidden, type(s.heads) == "table" and math.max(unpack(s.heads)) or s.heads
  if M.takes(engine, architecture, hidden, heads) then return nil end
  local groups = type(s.kv_heads) == "table" and math.max(unpack(s.kv_heads)) or s.kv_heads
  local near, below = {}, math.floor(hidden / heads) * heads
  if below > 0 then near[#near + 1] = "hidden = " .. below end
  if below + heads <= most.hidden then near[#near + 1] = "hidden = " .. below + heads end
  local low, high = near_heads(hidden, heads, groups, most.heads)
  if low then near[#near + 1] = "heads = " .. low end
  if high then near[#near + 1] = "heads = " .. high end
  return string.format("hidden = %d is no multiple of %d heads, which transformers demands of a LLaMA (from version 5 on); the nearest legal are %s; "
    .. "engine = \"any\" lifts the rule", hidden, heads, table.concat(near, ", "))
end

return M
