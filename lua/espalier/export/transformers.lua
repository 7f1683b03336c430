--- What transformers refuses to open although the weights are right, and what is done about it.

local configs = require "espalier.models.config"
local shapes = require "espalier.models.shape"
local rule = require "espalier.models.transformers"

local M = {}

local function nearest(s)
  local parts = {}
  for i, size in ipairs(rule.nearest(s.hidden, s.heads, s.kv_heads, {})) do parts[i] = size[1] .. " " .. size[2] end
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
  if rule.takes(kind, s.hidden, s.heads) then return kind end
  local why = string.format("transformers opens no %s whose hidden size (%d) is no multiple of its heads (%d)", kind, s.hidden, s.heads)
  if kind == "llama" and pcall(configs.to_config, s, nil, nil, { kind = "mistral" }) then
    return "mistral", why .. "; it is written as a mistral, which computes the same"
  end
  return kind, why .. "; the nearest that it opens: " .. nearest(s)
end

--- Does transformers open this shape under this model_type?
function M.opens(s, kind)
  for _, axis in ipairs { "ffn", "heads", "kv_heads" } do if type(s[axis]) == "table" then return false end end
  return rule.takes(kind, s.hidden, shapes.at(s, "heads", 0))
end

return M
