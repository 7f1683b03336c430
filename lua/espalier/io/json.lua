--- JSON in and out. Arrays and objects stay what they were (also empty ones), keys keep their order, and a number written 8.0 stays 8.0.
--
-- What was read remembers: arrays carry a mark, objects the order of their keys and the digits of numbers that a double would write otherwise.

local core = require "espalier.ffi"
local file = require "espalier.io.file"
local fail = require "espalier.fail"
local new_table = require "table.new"

local C = core.C
local M = {}

--- Stands for null.
M.null = setmetatable({}, { __tostring = function() return "null" end })

local Array = {}
-- order[table] = list of keys; digits[table][key] = text of a number.
local order = setmetatable({}, { __mode = "k" })
local digits = setmetatable({}, { __mode = "k" })

--- Marks a table as an array (only needed where it is empty).
function M.array(t)
  return setmetatable(t or {}, Array)
end

local NULL, BOOL, INT, FLOAT, STRING, OBJECT, ARRAY = 0, 1, 2, 3, 4, 6, 7

-- The shortest text that reads back as the same double.
local function shortest(v)
  if v == math.floor(v) and math.abs(v) < 2 ^ 53 then return string.format("%.0f", v) end
  for precision = 15, 17 do
    local text = string.format("%." .. precision .. "g", v)
    if tonumber(text) == v then return text end
  end
end

-- What is being read: the entries j, and the bytes of memory that its values may still take (sizes are LuaJIT's, rounded up).
local Reading = {}
Reading.__index = Reading
local TABLE, SLOT, FIELD, TEXT = 64, 8, 48, 64
-- No text takes more than eight times its bytes and 16 MiB, of which some are left for the program's own.
local TIMES, SPARE = 8, 10 * 2 ^ 20

function Reading:take(bytes)
  self.left = self.left - bytes
  if self.left < 0 then
    fail("%s: its %d bytes hold so many small values that they would take %d times as much memory; no file of use does", self.name, self.bytes, TIMES)
  end
end

local length = core.new "int64_t[1]"

function Reading:text(i)
  local p = C.esp_json_text(self.j, i, length)
  self:take(TEXT + tonumber(length[0]))
  return core.string(p, length[0])
end

local read

-- Floats that are whole (8.0) or written in another way than ours keep their text.
local function remember(self, t, key, i, value)
  if C.esp_json_kind(self.j, i) ~= FLOAT then return end
  local text = core.string(C.esp_json_text(self.j, i, nil))
  if text == shortest(value) then return end
  self:take((digits[t] and 0 or TABLE) + FIELD + TEXT + #text)
  digits[t] = digits[t] or {}
  digits[t][key] = text
end

local function read_object(self, i, items)
  self:take(TABLE + FIELD * items)
  local t = new_table(0, items)
  if items == 0 then return t end
  self:take(TABLE + SLOT * items + FIELD)
  local keys = new_table(items, 0)
  i = i + 1
  for k = 1, items do
    local key = self:text(i)
    local value, after = read(self, i + 1)
    remember(self, t, key, i + 1, value)
    keys[k], t[key], i = key, value, after
  end
  order[t] = keys
  return t
end

local function read_array(self, i, items)
  self:take(TABLE + SLOT * items)
  local t = setmetatable(new_table(items, 0), Array)
  i = i + 1
  for k = 1, items do
    local value, after = read(self, i)
    remember(self, t, k, i, value)
    t[k], i = value, after
  end
  return t
end

-- The value at entry i, and the entry behind it.
function read(self, i)
  local j, kind = self.j, C.esp_json_kind(self.j, i)
  if kind == INT or kind == FLOAT then return C.esp_json_number(j, i), i + 1 end
  if kind == STRING then return self:text(i), i + 1 end
  if kind == BOOL then return C.esp_json_number(j, i) ~= 0, i + 1 end
  if kind == NULL then return M.null, i + 1 end
  local make = kind == OBJECT and read_object or read_array
  assert(kind == OBJECT or kind == ARRAY)
  return make(self, i, tonumber(C.esp_json_items(j, i))), tonumber(C.esp_json_after(j, i))
end

-- The value of what was parsed, which is then freed.
local function value_of(j, bytes, name)
  j = core.gc(j, C.esp_json_free)
  local reading = setmetatable({ j = j, bytes = bytes, name = name, left = TIMES * bytes + SPARE - tonumber(C.esp_json_bytes(j)) }, Reading)
  local value = read(reading, 0)
  C.esp_json_free(core.gc(j, nil))
  return value
end

--- The value of a JSON text; name stands in messages. One whose values would take more memory than eight times its bytes and 16 MiB is refused.
function M.decode(text, name)
  local out = core.new "esp_json *[1]"
  core.try(C.esp_json_parse(out, text, #text, name or "json"))
  return value_of(out[0], #text, name or "json")
end

--- The value in a JSON file.
function M.read(path)
  local out = core.new "esp_json *[1]"
  core.try(C.esp_json_read(out, path))
  return value_of(out[0], file.size(path), path)
end

--- Keys of an object in the order in which they were read (new ones sorted after them).
function M.keys(t)
  local keys, seen = {}, {}
  for _, k in ipairs(order[t] or {}) do
    if t[k] ~= nil then keys[#keys + 1], seen[k] = k, true end
  end
  local rest = {}
  for k in pairs(t) do if not seen[k] then rest[#rest + 1] = k end end
  table.sort(rest, function(a, b) return tostring(a) < tostring(b) end)
  for _, k in ipairs(rest) do keys[#keys + 1] = k end
  return keys
end

--- A copy of an object (not of what is in it) that remembers its order and digits.
function M.copy(t)
  local copy = {}
  for k, v in pairs(t) do copy[k] = v end
  order[copy] = M.keys(t)
  digits[copy] = digits[t]
  return setmetatable(copy, getmetatable(t))
end

--- Has numbers of an object written as floats: 30.0 where 30 would do. Those that were read as floats keep their digits.
function M.floats(t, keys)
  local own = {}
  for k, text in pairs(digits[t] or {}) do own[k] = text end
  for _, key in ipairs(keys) do
    local v = t[key]
    if type(v) == "number" and v == math.floor(v) and not (own[key] and tonumber(own[key]) == v) then own[key] = string.format("%.1f", v) end
  end
  digits[t] = own
  return t
end

local escapes = { ['"'] = '\\"', ["\\"] = "\\\\", ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t" }

local function quote(text)
  return '"' .. text:gsub('[%c"\\]', function(ch) return escapes[ch] or string.format("\\u%04x", ch:byte()) end) .. '"'
end

local function number(v, kept, where)
  if v ~= v or v == math.huge or v == -math.huge then fail("json: %s at %s cannot be written", tostring(v), where) end
  if kept and tonumber(kept) == v then return kept end
  return shortest(v)
end

local write

local function write_list(out, t, indent, pad, where)
  if #t == 0 then out[#out + 1] = "[]" return end
  out[#out + 1] = "["
  for i, v in ipairs(t) do
    out[#out + 1] = (i > 1 and "," or "") .. (indent and "\n" .. pad .. indent or "")
    write(out, v, indent, pad .. (indent or ""), where .. "[" .. i - 1 .. "]", digits[t] and digits[t][i])
  end
  out[#out + 1] = (indent and "\n" .. pad or "") .. "]"
end

local function write_object(out, t, indent, pad, where)
  local keys = M.keys(t)
  if #keys == 0 then out[#out + 1] = "{}" return end
  out[#out + 1] = "{"
  for i, k in ipairs(keys) do
    if type(k) ~= "string" then fail("json: the key %s at %s is no text", tostring(k), where) end
    out[#out + 1] = (i > 1 and "," or "") .. (indent and "\n" .. pad .. indent or "") .. quote(k) .. (indent and ": " or ":")
    write(out, t[k], indent, pad .. (indent or ""), where .. "." .. k, digits[t] and digits[t][k])
  end
  out[#out + 1] = (indent and "\n" .. pad or "") .. "}"
end

function write(out, v, indent, pad, where, kept)
  local kind = type(v)
  if v == M.null then out[#out + 1] = "null"
  elseif kind == "string" then out[#out + 1] = quote(v)
  elseif kind == "number" then out[#out + 1] = number(v, kept, where)
  elseif kind == "boolean" then out[#out + 1] = tostring(v)
  elseif kind ~= "table" then fail("json: a %s at %s cannot be written", kind, where)
  elseif getmetatable(v) == Array or #v > 0 then write_list(out, v, indent, pad, where)
  else write_object(out, v, indent, pad, where) end
end

--- The JSON text of a value; opt.indent: a text such as "  " for one entry a line.
function M.encode(value, opt)
  local out = {}
  write(out, value, opt and opt.indent, "", "the top")
  return table.concat(out)
end

--- Writes a JSON file, whole or not at all, one entry a line.
function M.write(path, value)
  file.write(path, M.encode(value, { indent = "  " }) .. "\n")
end

return M
