--- HDF5 files of tensors, texts and numbers by name ("group/name"), written whole or not at all, each dataset checked when read.

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"

local M = {}
local File = {}
File.__index = File

local function write_one(h5, f, name, value, packed)
  if tensor.is(value) then return h5.esp_h5_write(f, name, value.c, packed) end
  if type(value) == "number" then return h5.esp_h5_write(f, name, tensor.scalar(value).c, 0) end
  value = tostring(value)
  return h5.esp_h5_write_text(f, name, value, #value)
end

--- Writes { ["group/name"] = tensor, number or text }. opt.packed: tensors are shuffled and deflated.
function M.write(path, values, opt)
  local h5 = core.h5()
  local out, names = core.new "esp_h5 *[1]", {}
  for name in pairs(values) do names[#names + 1] = name end
  table.sort(names)
  core.try(h5.esp_h5_create(out, path))
  for _, name in ipairs(names) do
    if write_one(h5, out[0], name, values[name], opt and opt.packed and 1 or 0) ~= 0 then
      local message = core.string(core.C.esp_error())
      h5.esp_h5_close(out[0])
      require "espalier.fail"("%s", message)
    end
  end
  core.try(h5.esp_h5_publish(out[0]))
end

local Growing = {}
Growing.__index = Growing

--- A new file of datasets too long for memory: g:grow(name, stored, kind, pointer, count), g:text(name, value), g:integer(name, value) (attributes
-- of the file); it appears at g:publish(), g:abandon() leaves nothing.
function M.create(path)
  local h5, out = core.h5(), core.new "esp_h5 *[1]"
  core.try(h5.esp_h5_create(out, path))
  return setmetatable({ c = core.gc(out[0], h5.esp_h5_close), h5 = h5 }, Growing)
end

--- Appends count numbers of a kind to a dataset whose elements are stored as another (the header of the core lists both).
function Growing:grow(name, stored, kind, from, count)
  core.try(self.h5.esp_h5_grow(self.c, name, stored, kind, from, count))
end

function Growing:text(name, value) core.try(self.h5.esp_h5_set_text(self.c, name, value)) end
function Growing:integer(name, value) core.try(self.h5.esp_h5_set_integer(self.c, name, value)) end

function Growing:publish()
  local c = core.gc(self.c, nil)
  self.c = nil
  core.try(self.h5.esp_h5_publish(c))
end

function Growing:abandon()
  if self.c then self.h5.esp_h5_close(core.gc(self.c, nil)) end
  self.c = nil
end

--- Opens a file: f.names, f:has(name), f:tensor(name), f:number(name), f:text(name), f:close().
function M.open(path)
  local h5 = core.h5()
  local out = core.new "esp_h5 *[1]"
  core.try(h5.esp_h5_open(out, path))
  local f = setmetatable({ c = core.gc(out[0], h5.esp_h5_close), h5 = h5, names = {}, known = {} }, File)
  local data, n = core.new "char *[1]", core.new "int64_t[1]"
  core.try(h5.esp_h5_names(data, n, f.c))
  for name in core.buffer(data[0], n[0]):gmatch "[^\n]+" do
    f.names[#f.names + 1] = name
    f.known[name] = true
  end
  return f
end

function File:has(name)
  return self.known[name] == true
end

function File:tensor(name)
  local out = core.new "esp_tensor *[1]"
  core.try(self.h5.esp_h5_read(out, self.c, name))
  return tensor.wrap(out[0])
end

function File:number(name)
  return self:tensor(name):item()
end

function File:text(name)
  local data, n = core.new "char *[1]", core.new "int64_t[1]"
  core.try(self.h5.esp_h5_read_text(data, n, self.c, name))
  return core.buffer(data[0], n[0])
end

--- Shape (a list) and element type ("u16", "f32") of a dataset, without reading it.
function File:describe(name)
  local ndim, shape, dtype = core.new "int[1]", core.new "int64_t[6]", core.new "char[8]"
  core.try(self.h5.esp_h5_describe(self.c, name, ndim, shape, dtype))
  local list = {}
  for d = 1, ndim[0] do list[d] = tonumber(shape[d - 1]) end
  return list, core.string(dtype)
end

--- An attribute of the file as text, or nil.
function File:attribute(name)
  local text = core.new "char *[1]"
  core.try(self.h5.esp_h5_get(text, self.c, name))
  if core.is_null(text[0]) then return nil end
  local value = core.string(text[0])
  core.C.esp_buffer_free(text[0])
  return value
end

--- Length of a list of integers, nil where there is none of that name.
function File:length(name)
  local n = core.new "int64_t[1]"
  core.try(self.h5.esp_h5_length(self.c, name, n))
  return n[0] >= 0 and tonumber(n[0]) or nil
end

--- Reads count numbers from `at` on into a pointer; kind: "i32", "u8", "u64", "f64".
function File:part(name, kind, at, count, to)
  core.try(self.h5.esp_h5_read_part(self.c, name, kind, at, count, to))
end

function File:close()
  if self.c then self.h5.esp_h5_close(core.gc(self.c, nil)) end
  self.c = nil
end

return M
