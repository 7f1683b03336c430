--- Windows of attention layer by layer: layer_types in config.json, "sliding_attention" or "full_attention" for each.

local json = require "espalier.io.json"
local shapes = require "espalier.models.shape"
local fail = require "espalier.fail"

local M = {}

--- The window option of a shape. size: sliding_window, or nil; default(l): does layer l slide where layer_types is missing?
function M.read(r, layers, size, default)
  local types, list = r:by_layer("layer_types", layers, "string"), {}
  for l = 0, layers - 1 do
    local kind = types and types[l + 1] or default(l) and "sliding_attention" or "full_attention"
    if kind ~= "full_attention" and kind ~= "sliding_attention" then
      fail("%s: layer_types[%d] is '%s', want full_attention or sliding_attention", r.where, l, kind)
    end
    if kind == "sliding_attention" and types and not size then fail("%s: layer_types[%d] slides, but sliding_window is null", r.where, l) end
    list[l + 1] = kind == "sliding_attention" and size or 0
  end
  return list
end

--- Writes layer_types and sliding_window of a shape. off: the sliding_window of a model without windows. Returns the window, or nil.
function M.write(s, c, off)
  local types, size = {}, nil
  for l = 0, s.layers - 1 do
    local window = shapes.at(s, "window", l) or 0
    types[l + 1] = window > 0 and "sliding_attention" or "full_attention"
    if window > 0 then size = window end
  end
  c.layer_types, c.sliding_window = json.array(types), size or off or json.null
  return size
end

return M
