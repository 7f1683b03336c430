--- Safetensors files: opened as a map of read-only tensors over the mapped bytes, or written whole, tensor by tensor, in bounded memory.

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"
local lazy = require "espalier.tensor.lazy"
local named = require "espalier.io.named"
local fail = require "espalier.fail"

local C = core.C
local M = {}
local File = {}
File.__index = File
named(File, { count = C.esp_safetensors_count, name = C.esp_safetensors_name, ndim = C.esp_safetensors_ndim, shape = C.esp_safetensors_shape,
  dtype = C.esp_safetensors_dtype })

--- Opens a file and checks its whole header. f.names: list in the order of the bytes; f:tensor(name); f:describe(name); f.metadata; f.bytes: of all
-- tensors.
function M.open(path)
  local out = core.new "esp_safetensors *[1]"
  core.try(C.esp_safetensors_open(out, path))
  local c = core.gc(out[0], C.esp_safetensors_close)
  local f = setmetatable({ c = c, path = path, metadata = {}, bytes = tonumber(C.esp_safetensors_bytes(c)) }, File)
  f:list()
  local key, value = core.new "const char *[1]", core.new "const char *[1]"
  for i = 0, tonumber(C.esp_safetensors_metadata_count(c)) - 1 do
    core.try(C.esp_safetensors_metadata(c, i, key, value))
    f.metadata[core.string(key[0])] = core.string(value[0])
  end
  return f
end

--- A read-only view of a tensor's bytes, which may be unaligned: what espalier.tensor.lazy takes from. Whole numbers become i32.
function File:view(name)
  local out = core.new "esp_tensor *[1]"
  core.try(C.esp_safetensors_tensor(out, self.c, self:at(name)))
  return tensor.wrap(out[0])
end

--- A tensor; read-only where it views the file (a copy where its bytes are unaligned). I64 and other whole numbers read as i32 where every value
-- fits; F8 as "f8_e4m3" or "f8_e5m2", which t:to "f32" or t:to "bf16" converts exactly.
function File:tensor(name)
  local t = self:view(name)
  if C.esp_tensor_aligned(t.c) == 1 then return t end
  local copy = tensor.new(t.shape, t.dtype)
  core.copy(C.esp_tensor_data(copy.c), C.esp_tensor_data(t.c), t:count() * C.esp_dtype_size(C.esp_tensor_dtype(t.c)))
  return copy
end

--- { [name] = tensor } of a whole file.
function M.read(path)
  local f, all = M.open(path), {}
  for _, name in ipairs(f.names) do all[name] = f:tensor(name) end
  return all
end

-- ---- writing ----

local Writer = {}
Writer.__index = Writer

-- The pieces of one entry as a list, and the shape that they make one below the other.
local function stacked(name, entry)
  local pieces = tensor.is(entry) and { entry } or entry
  if type(pieces) ~= "table" or #pieces == 0 then fail("safetensors: '%s' is %s, want a tensor or a list of them", name, type(entry)) end
  local shape
  for _, t in ipairs(pieces) do
    if not tensor.is(t) then fail("safetensors: '%s' is %s, want a tensor", name, type(t)) end
    if not shape then
      shape = { unpack(t.shape) }
    else
      local rest = #shape == #t.shape and #shape > 0
      for d = 2, #shape do rest = rest and shape[d] == t.shape[d] end
      if not rest then fail("safetensors: the pieces of '%s' are %s and %s; one goes below the other", name, tensor.shape_text(pieces[1]),
        tensor.shape_text(t)) end
      shape[1] = shape[1] + t.shape[1]
    end
  end
  return pieces, shape
end

--- The header of a file, and then its bytes: w:append(name, tensor) in the order of the list, w:publish() or w:abandon().
-- list: of { name, dtype, shape }. opt.metadata: { [text] = text }; opt.finite: NaN and infinity are refused.
function M.create(path, list, opt)
  opt = opt or {}
  local n, total = #list, 0
  for _, e in ipairs(list) do total = total + #e.shape end
  local dtypes, ndims, shapes = core.new("int[?]", n + 1), core.new("int[?]", n + 1), core.new("int64_t[?]", total + 1)
  local names, index, put = {}, {}, 0
  for i, e in ipairs(list) do
    names[i], index[e.name] = e.name, i - 1
    dtypes[i - 1], ndims[i - 1] = tensor.dtype_code(e.dtype, "safetensors: '" .. e.name .. "'"), #e.shape
    for _, size in ipairs(e.shape) do
      shapes[put] = size
      put = put + 1
    end
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
  local out = core.new "esp_safetensors_writer *[1]"
  core.try(C.esp_safetensors_create(out, path, n, name_array, dtypes, ndims, shapes, #keys, meta_array))
  -- Held until here: the arrays point into these strings.
  assert(keep_names and keep_meta)
  return setmetatable({ c = core.gc(out[0], C.esp_safetensors_abandon), index = index, list = list, finite = opt.finite and 1 or 0 }, Writer)
end

--- The next rows of a tensor; a lazy one is gathered from its source straight into the file, at most 16 MiB at a time.
function Writer:append(name, t)
  local i = self.index[name] or fail("safetensors: '%s' is not in the header", tostring(name))
  local source, rows, columns = lazy.parts(t, self.list[i + 1].dtype)
  core.try(C.esp_safetensors_append(self.c, i, source.c, rows and rows.c, columns and columns.c, self.finite))
end

function Writer:publish()
  core.try(C.esp_safetensors_publish(core.gc(self.c, nil)))
end

function Writer:abandon()
  C.esp_safetensors_abandon(core.gc(self.c, nil))
end

--- Writes { [name] = tensor, or a list of tensors one below the other }, whole or not at all. opt.order: list of names (sorted otherwise);
-- opt.dtype: what float tensors become (their own dtype otherwise); opt.metadata, opt.finite: as create.
function M.write(path, tensors, opt)
  opt = opt or {}
  local names = {}
  if opt.order then
    for i, name in ipairs(opt.order) do names[i] = name end
  else
    for name in pairs(tensors) do names[#names + 1] = name end
    table.sort(names)
  end
  local list, pieces = {}, {}
  for i, name in ipairs(names) do
    local shape
    pieces[i], shape = stacked(name, tensors[name])
    list[i] = { name = name, shape = shape, dtype = lazy.stored(pieces[i][1], opt.dtype) }
  end
  local w = M.create(path, list, opt)
  local ok, message = pcall(function()
    for i, name in ipairs(names) do
      for _, t in ipairs(pieces[i]) do w:append(name, t) end
    end
  end)
  if not ok then
    w:abandon()
    error(message, 0)
  end
  w:publish()
end

return M
