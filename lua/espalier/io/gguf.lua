--- GGUF files, llama.cpp's format: metadata by key and tensors over the mapped bytes; or written whole.
--
-- The kind of a value is "u32", "f32", "string", "bool" ..., or "[string]", "[i32]" ... for a list.

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"
local named = require "espalier.io.named"
local fail = require "espalier.fail"

local C = core.C
local M = {}
local File = {}
File.__index = File
named(File, { count = C.esp_gguf_count, name = C.esp_gguf_name, ndim = C.esp_gguf_ndim, shape = C.esp_gguf_shape, dtype = C.esp_gguf_type })

local kinds = { [0] = "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64" }
local code_of = {}
for code = 0, 12 do code_of[kinds[code]] = code end
local ctype_of = { u8 = "uint8_t", i8 = "int8_t", u16 = "uint16_t", i16 = "int16_t", u32 = "uint32_t", i32 = "int32_t", f32 = "float",
  bool = "uint8_t", u64 = "uint64_t", i64 = "int64_t", f64 = "double" }

-- ---- in ----

local function read_texts(at, count)
  local list, length = {}, core.new "uint64_t[1]"
  for i = 1, count do
    core.copy(length, at, 8)
    local n = tonumber(length[0])
    list[i] = core.string(at + 8, n)
    at = at + 8 + n
  end
  return list
end

local function read_numbers(at, count, kind)
  local list = {}
  -- Copied, since nothing in the file is aligned.
  local array = core.new(ctype_of[kind] .. "[?]", math.max(count, 1))
  core.copy(array, at, count * core.sizeof(ctype_of[kind]))
  for i = 1, count do list[i] = tonumber(array[i - 1]) end
  if kind == "bool" then
    for i = 1, count do list[i] = list[i] == 1 end
  end
  return list
end

-- The shortest number that is the same f32: 1e-05, not 9.9999997473788e-06.
local function shortest(v)
  local f = core.new "float[1]"
  for digits = 6, 9 do
    local short = tonumber(string.format("%." .. digits .. "g", v))
    f[0] = short
    if f[0] == v then return short end
  end
  return v
end

local function read_value(c, i)
  local kind, is_array, count = core.new "int[1]", core.new "int[1]", core.new "int64_t[1]"
  local at = core.cast("const char *", C.esp_gguf_value(c, i, kind, is_array, count))
  local name, n = kinds[kind[0]], tonumber(count[0])
  local list = name == "string" and read_texts(at, n) or read_numbers(at, n, name)
  if is_array[0] == 1 then return list, "[" .. name .. "]" end
  return name == "f32" and shortest(list[1]) or list[1], name
end

--- Opens a file and checks its whole directory. f.version; f.keys and f.names: lists in the order of the file; f:get(key); f:describe(name);
-- f:tensor(name).
function M.open(path)
  local out = core.new "esp_gguf *[1]"
  core.try(C.esp_gguf_open(out, path))
  local c = core.gc(out[0], C.esp_gguf_close)
  local f = setmetatable({ c = c, path = path, version = C.esp_gguf_version(c), keys = {}, key_index = {} }, File)
  for i = 0, tonumber(C.esp_gguf_key_count(c)) - 1 do
    f.keys[i + 1] = core.string(C.esp_gguf_key(c, i))
    f.key_index[f.keys[i + 1]] = i
  end
  f:list()
  return f
end

--- The value of a key and its kind (false is a value); nil where the file has no such key. u64 beyond 2^53 loses digits.
function File:get(key)
  local i = self.key_index[key]
  if i then return read_value(self.c, i) end
end

--- A tensor: F32, F16, BF16, F64 and I32 view the file, Q8_0 becomes f32.
function File:tensor(name)
  local out = core.new "esp_tensor *[1]"
  core.try(C.esp_gguf_tensor(out, self.c, self:at(name)))
  return tensor.wrap(out[0])
end

-- ---- out ----

local ALIGNMENT = 32
local type_code = { f32 = 0, f16 = 1, q8_0 = 8, bf16 = 30 }
local type_bytes = { f32 = 4, f16 = 2, q8_0 = 34 / 32, bf16 = 2 }

local function bytes_of(ctype, value)
  return core.string(core.new(ctype .. "[1]", value), core.sizeof(ctype))
end

local function u32(n) return bytes_of("uint32_t", n) end
local function u64(n) return bytes_of("uint64_t", n) end
local function text(s) return u64(#s) .. s end

local function put_value(out, key, kind, value)
  local of = kind:match "^%[(.+)%]$"
  local element = of or kind
  if not code_of[element] or element == "array" then fail("gguf: '%s' is of the kind '%s', which is not known", key, kind) end
  out[#out + 1] = u32(code_of[of and "array" or kind]) .. (of and u32(code_of[of]) .. u64(#value) or "")
  for _, v in ipairs(of and value or { value }) do
    if element == "string" then out[#out + 1] = text(v)
    elseif element == "bool" then out[#out + 1] = v and "\1" or "\0"
    else out[#out + 1] = bytes_of(ctype_of[element], v) end
  end
end

local function padding(n)
  return string.rep("\0", -n % ALIGNMENT)
end

local function directory(metadata, tensors)
  local out = { "GGUF", u32(3), u64(#tensors), u64(#metadata) }
  for _, entry in ipairs(metadata) do
    out[#out + 1] = text(entry[1])
    put_value(out, entry[1], entry[2], entry[3])
  end
  local begin = 0
  for _, t in ipairs(tensors) do
    if #t.name > 63 then fail("gguf: the tensor name '%s' has %d bytes, want at most 63", t.name, #t.name) end
    local count = 1
    for _, n in ipairs(t.shape) do count = count * n end
    out[#out + 1] = text(t.name) .. u32(#t.shape)
    for d = #t.shape, 1, -1 do out[#out + 1] = u64(t.shape[d]) end
    out[#out + 1] = u32(type_code[t.type]) .. u64(begin)
    t.bytes = count * type_bytes[t.type]
    begin = begin + t.bytes + -t.bytes % ALIGNMENT
  end
  local head = table.concat(out)
  return head .. padding(#head)
end

-- The tensor in the type of its entry: a dense tensor that is written as it stands.
local function in_type(t, value)
  if t.type ~= "q8_0" then return tensor.contiguous(tensor.to(value, t.type)) end
  local packed = tensor.new({ t.bytes }, "u8")
  core.try(C.esp_q8_pack(packed.c, tensor.contiguous(tensor.to(value, "f32")).c))
  return packed
end

local function append(w, t, value)
  local stored, pad = in_type(t, value), padding(t.bytes)
  core.try(C.esp_writer_write(w, C.esp_tensor_data(stored.c), t.bytes))
  if stored ~= value then stored:free() end
  core.try(C.esp_writer_write(w, pad, #pad))
end

--- Writes a file, whole or not at all. metadata: list of { key, kind, value }; tensors: list of { name, shape, type = "f32", "f16", "bf16" or "q8_0",
-- give = function(use) calls use(tensor) } in the order of the file: each is asked for when its turn comes.
function M.write(path, metadata, tensors)
  local head, w = directory(metadata, tensors), core.new "esp_writer *[1]"
  core.try(C.esp_writer_open(w, path))
  local ok, message = pcall(function()
    core.try(C.esp_writer_write(w[0], head, #head))
    for _, t in ipairs(tensors) do t.give(function(value) append(w[0], t, value) end) end
  end)
  if not ok then
    C.esp_writer_abandon(w[0])
    error(message, 0)
  end
  core.try(C.esp_writer_publish(w[0]))
end

return M
