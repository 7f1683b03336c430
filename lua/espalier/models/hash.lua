--- The identity of a model's weights: XXH3 over the names and bytes of all of them, in the order of the layers.

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"
local file = require "espalier.io.file"

-- Of models whose weights are all mapped from files and so cannot change.
local known = setmetatable({}, { __mode = "k" })

local function fixed(parameters)
  for _, t in pairs(parameters) do if core.C.esp_tensor_readonly(t.c) ~= 1 then return false end end
  return true
end

--- 32 hex digits. The whole of the weights is read; asked again of mapped weights it is remembered.
return function(model)
  if known[model] then return known[model] end
  local parts, all = {}, model:parameters()
  for i, name in ipairs(model:parameter_names()) do
    local t = tensor.contiguous(all[name])
    local hex = core.new "char[33]"
    core.try(core.C.esp_hash(hex, t:data(), t:count() * tonumber(core.C.esp_dtype_size(core.C.esp_tensor_dtype(t.c)))))
    parts[i] = name .. core.string(hex)
    if t ~= all[name] then t:free() end
  end
  local hash = file.hash_text(table.concat(parts))
  if fixed(all) then known[model] = hash end
  return hash
end
