--- Safetensors files: opened as a map of read-only tensors over the mapped bytes, or written whole.

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"
local fail = require "espalier.fail"

local C = core.C
local M = {}
local File = {}
File.__index = File

--- Opens a file and checks its whole header. f.names: list in the order of the bytes; f:tensor(name); f:describe(name); f.metadata.
function M.open(path)
  local out = core.new "esp_safetensors *[1]"
  core.try(C.esp_safetensors_open(out, path))
  local c = core.gc(out[0], C.esp_safetensors_close)
  local f = setmetatable({ c = c, path = path, names = {}, index = {}, metadata = {} }, File)
  for i = 0, tonumber(C.esp_safetensors_count(c)) - 1 do
    local name = core.string(C.esp_safetensors_name(c, i))
    f.names[i + 1] = name
    f.index[name] = i
  end
  local key, value = core.new "const char *[1]", core.new "const char *[1]"
  for i = 0, tonumber(C.esp_safetensors_metadata_count(c)) - 1 do
    core.try(C.esp_safetensors_metadata(c, i, key, value))
    f.metadata[core.string(key[0])] = core.string(value[0])
  end
  return f
end

local function at(f, name)
  return f.index[name] or fail("%s: there is no tensor '%s' in it", f.path, tostring(name))
end

--- Shape (list) and dtype (as in the file) of a tensor, without reading it.
function File:describe(name)
  local i, shape = at(self, name), {}
  local from = C.esp_safetensors_shape(self.c, i)
  for d = 1, C.esp_safetensors_ndim(self.c, i) do shape[d] = tonumber(from[d - 1]) end
  return shape, core.string(C.esp_safetensors_dtype(self.c, i))
end

--- A tensor; read-only where it views the file. I64 reads as i32 where every value fits.
function File:tensor(name)
  local out = core.new "esp_tensor *[1]"
  core.try(C.esp_safetensors_tensor(out, self.c, at(self, name)))
  return tensor.wrap(out[0])
end

--- { [name] = tensor } of a whole file.
function M.read(path)
  local f, all = M.open(path), {}
  for _, name in ipairs(f.names) do all[name] = f:tensor(name) end
  return all
end

--- Writes { [name] = tensor }, whole or not at all. opt.order: list of names (sorted otherwise); opt.metadata: { [text] = text }.
function M.write(path, tensors, opt)
  opt = opt or {}
  local names = {}
  if opt.order then
    for i, name in ipairs(opt.order) do names[i] = name end
  else
    for name in pairs(tensors) do names[#names + 1] = name end
    table.sort(names)
  end
  local handles = core.new("const esp_tensor *[?]", #names + 1)
  for i, name in ipairs(names) do
    local t = tensors[name]
    if not tensor.is(t) then fail("safetensors.write: '%s' is %s, want a tensor", name, type(t)) end
    handles[i - 1] = t.c
  end
  local meta, keys = {}, {}
  for k in pairs(opt.metadata or {}) do keys[#keys + 1] = k end
  table.sort(keys)
  for _, k in ipairs(keys) do
    meta[#meta + 1] = k
    meta[#meta + 1] = opt.metadata[k]
  end
  local name_array, keep_names = core.strings(names)
  local meta_array, keep_meta = core.strings(meta)
  core.try(C.esp_safetensors_write(path, #names, name_array, handles, #keys, meta_array))
  -- Held until here: the arrays point into these strings.
  assert(keep_names and keep_meta)
end

return M
