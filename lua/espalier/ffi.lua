--- The binding of the core, and the only file that requires LuaJIT's ffi.
--
-- The library carries its own preprocessed header; that text is declared here, so nothing is declared twice. Failures of the core become
-- Lua errors with the core's sentence.

local ffi = require "ffi"
local fail = require "espalier.fail"

local M = {}

ffi.cdef "const char *esp_header(void);"

-- The folder that holds espalier/, to find the library beside it: ../build in the source tree, ../../../lib when installed.
local here = debug.getinfo(1, "S").source:match("^@(.*)espalier/ffi%.lua$") or "./"

local function open_library()
  -- The espalier program is linked to the library, so its symbols are already there.
  if pcall(function() return ffi.C.esp_header end) then return ffi.C end
  local tried = {}
  local candidates = { os.getenv "ESPALIER_LIBRARY" or false, here .. "../build/libespalier.so", here .. "../../../lib/libespalier.so" }
  for _, path in ipairs(candidates) do
    local ok, lib = pcall(ffi.load, path)
    if ok then return lib end
    tried[#tried + 1] = path and tostring(lib) or nil
  end
  fail("espalier: the core library could not be opened (%s); build it with 'make'", table.concat(tried, "; "))
end

local C = open_library()
ffi.cdef(ffi.string(C.esp_header()))
M.C = C

local host = package.loaded["espalier.host"]

-- Raises the core's sentence for a status that is not 0.
local function refuse(status)
  if status == C.ESP_ESTOP and host then host.stopped() end
  fail("%s", ffi.string(C.esp_error()))
end

--- Raises the core's sentence where status is not 0.
function M.try(status)
  if status ~= 0 then refuse(status) end
end

--- Raises what esp_error says, for functions that return NULL.
function M.raise()
  fail("%s", ffi.string(C.esp_error()))
end

local h5
--- The HDF5 part of the core, opened when first asked for: HDF5 takes longer to start than all the rest.
function M.h5()
  if h5 then return h5 end
  local path = ffi.string(C.esp_library_path()):gsub("[^/]*$", "") .. "libespalier-hdf5.so"
  local ok, lib = pcall(ffi.load, path)
  if not ok then fail("hdf5: %s could not be opened: %s", path, lib) end
  if ffi.string(lib.esp_h5_checksum()) ~= ffi.string(C.esp_checksum()) then
    fail("hdf5: %s was built from another espalier.h than the core library; run 'make' again", path)
  end
  h5 = lib
  return h5
end

--- Names of all operations of the core, in the header's order.
M.op_names = {}
--- Every operation by name: takes tensor handles (t.c) and numbers, raises on failure.
M.ops = {}

local function operation(name)
  local f = C["esp_" .. name]
  return function(...)
    local status = f(...)
    if status ~= 0 then refuse(status) end
  end
end

for name in ffi.string(C.esp_op_names()):gmatch "[^\n]+" do
  M.op_names[#M.op_names + 1] = name
  M.ops[name] = operation(name)
end

-- What files that wrap objects of the core need of ffi.
M.new, M.cast, M.gc, M.copy, M.sizeof, M.string, M.typeof = ffi.new, ffi.cast, ffi.gc, ffi.copy, ffi.sizeof, ffi.string, ffi.typeof

function M.is_null(pointer)
  return pointer == nil
end

--- A buffer that the core allocated, as a Lua string; the buffer is freed.
function M.buffer(pointer, bytes)
  local text = ffi.string(pointer, tonumber(bytes))
  C.esp_buffer_free(pointer)
  return text
end

--- A list of Lua strings as a NULL-ended `const char *[]`. The second result keeps the strings alive: hold it as long as the array.
function M.strings(list)
  local array, anchor = ffi.new("const char *[?]", #list + 1), {}
  for i, text in ipairs(list) do
    anchor[i] = text
    array[i - 1] = text
  end
  array[#list] = nil
  return array, anchor
end

return M
