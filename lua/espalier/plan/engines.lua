--- What engines demand of a shape beyond what is possible at all, and the nearest sizes that they take.
--
-- Layers that differ are no matter here: such a model is exported as a zero-padded uniform twin.

local transformers = require "espalier.models.transformers"

local M = {}

--- Names that the option `engine` takes.
M.names = { "transformers", "any" }

--- Can the engine open a uniform shape of these sizes?
function M.takes(engine, architecture, hidden, heads)
  return engine == "any" or transformers.takes(architecture, hidden, heads)
end

--- The rule that sizes break, with the nearest ones that keep it; nil where the engine takes them. most: { hidden, heads } that can be asked for.
function M.refusal(engine, architecture, s, most)
  local hidden, heads = s.hidden, type(s.heads) == "table" and math.max(unpack(s.heads)) or s.heads
  if M.takes(engine, architecture, hidden, heads) then return nil end
  local groups = type(s.kv_heads) == "table" and math.max(unpack(s.kv_heads)) or s.kv_heads
  local near = {}
  for i, size in ipairs(transformers.nearest(hidden, heads, groups, most)) do near[i] = size[1] .. " = " .. size[2] end
  return string.format("hidden = %d is no multiple of %d heads, which transformers demands of a %s (from version 5 on); the nearest legal are %s; "
    .. "engine = \"any\" lifts the rule", hidden, heads, architecture, table.concat(near, ", "))
end

return M
