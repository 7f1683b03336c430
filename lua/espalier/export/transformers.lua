--- What transformers refuses to open although the weights are right, and what is done about it.

local configs = require "espalier.models.config"
local shapes = require "espalier.models.shape"

local M = {}

-- Configs that want hidden to be a multiple of the heads, though head_dim stands beside them (transformers 5).
local divides = { llama = true, gemma2 = true }

-- The nearest sizes that divide: hidden for these heads, heads for this hidden.
local function nearest(s)
  local low, parts, legal = math.floor(s.hidden / s.heads) * s.heads, {}, {}
  for h = s.kv_heads, s.hidden, s.kv_heads do if s.hidden % h == 0 then legal[#legal + 1] = h end end
  table.sort(legal, function(a, b)
    local x, y = math.abs(a - s.heads), math.abs(b - s.heads)
    return x < y or x == y and a < b
  end)
  if low > 0 then parts[1] = "hidden " .. low end
  parts[#parts + 1] = "hidden " .. low + s.heads
  if legal[1] then parts[#parts + 1] = "heads " .. legal[1] end
  return table.concat(parts, ", ")
end

--- The model_type to write a model as, and a sentence about it or nil. config: the parsed config of its source, or nil.
function M.kind(s, config)
  local kind = configs.kind(s, config)
  for _, axis in ipairs { "ffn", "heads", "kv_heads" } do
    if type(s[axis]) == "table" then
      return kind, string.format("its layers differ in %s (%s in config.json): only Espalier opens it; padded = true saves a twin that others open",
        axis, configs.layers_key)
    end
  end
  if not divides[kind] or s.hidden % s.heads == 0 then return kind end
  local why = string.format("transformers opens no %s whose hidden size (%d) is no multiple of its heads (%d)", kind, s.hidden, s.heads)
  if kind == "llama" and pcall(configs.to_config, s, nil, nil, { kind = "mistral" }) then
    return "mistral", why .. "; it is written as a mistral, which computes the same"
  end
  return kind, why .. "; the nearest that it opens: " .. nearest(s)
end

--- Does transformers open this shape under this model_type?
function M.opens(s, kind)
  for _, axis in ipairs { "ffn", "heads", "kv_heads" } do if type(s[axis]) == "table" then return false end end
  return not divides[kind] or s.hidden % shapes.at(s, "heads", 0) == 0
end

return M
