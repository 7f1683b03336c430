--- The identity of a model's weights: XXH3 over the names and bytes of all of them, in the order of the layers. Bytes are hashed in blocks of rows,
-- and the hashes once more, so that weights that were not read yet are read a block at a time.

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"
local lazy = require "espalier.tensor.lazy"
local file = require "espalier.io.file"

-- Of models whose weights are all mapped from files and so cannot change.
local known = setmetatable({}, { __mode = "k" })

local function fixed(parameters)
  for _, t in pairs(parameters) do if not lazy.is(t) and core.C.esp_tensor_readonly(t.c) ~= 1 then return false end end
  return true
end

-- Elements of a block.
local block = 2 ^ 22

local function hash_of(t)
  local parts, hex = {}, core.new "char[33]"
  for _, rows in lazy.rows(t, math.max(1, math.floor(block / math.max(1, t.shape[2] or 1)))) do
    local dense = tensor.contiguous(rows)
    core.try(core.C.esp_hash(hex, dense:data(), dense:count() * tonumber(core.C.esp_dtype_size(core.C.esp_tensor_dtype(dense.c)))))
    parts[#parts + 1] = core.string(hex)
    if dense ~= rows then dense:free() end
  end
  return table.concat(parts)
end

--- 32 hex digits. The whole of the weights is read; asked again of mapped weights it is remembered.
return function(model)
  if known[model] then return known[model] end
  local parts, all = {}, model:parameters()
  for i, name in ipairs(model:parameter_names()) do
    parts[i] = name .. hash_of(all[name])
  end
  local hash = file.hash_text(table.concat(parts))
  if fixed(all) then known[model] = hash end
  return hash
end
