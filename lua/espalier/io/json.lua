--- JSON in and out. Arrays and objects stay what they were (also empty ones), keys keep their order, and a number written 8.0 stays 8.0.
--
-- What was read remembers: arrays carry a mark, objects the order of their keys and the digits of numbers that a double would write otherwise.

local core = require "espalier.ffi"
local file = require "espalier.io.file"
local fail = require "espalier.fail"

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

local NULL, BOOL, INT, FLOAT, STRING, KEY, OBJECT, OBJECT_END, ARRAY, ARRAY_END = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9
assert(KEY == 5 and OBJECT_END == 7)

local read

local function remember(t, key, e)
  -- Floats that are whole (8.0) or written in another way keep their text.
  if e.kind == FLOAT then
    digits[t] = digits[t] or {}
    digits[t][key] = core.string(e.text, e.bytes)
  end
end

local function read_object(events, i)
  local t, keys = {}, {}
  while events[i].kind ~= OBJECT_END do
    local key = core.string(events[i].text, events[i].bytes)
    keys[#keys + 1] = key
    remember(t, key, events[i + 1])
    t[key], i = read(events, i + 1)
  end
  order[t] = keys
  return t, i + 1
end

local function read_array(events, i)
  local t, n = setmetatable({}, Array), 0
  while events[i].kind ~= ARRAY_END do
    n = n + 1
    remember(t, n, events[i])
    t[n], i = read(events, i)
  end
  return t, i + 1
end

function read(events, i)
  local e = events[i]
  local kind = e.kind
  if kind == OBJECT then return read_object(events, i + 1) end
  if kind == ARRAY then return read_array(events, i + 1) end
  if kind == STRING then return core.string(e.text, e.bytes), i + 1 end
  if kind == INT or kind == FLOAT then return e.number, i + 1 end
  if kind == BOOL then return e.flag == 1, i + 1 end
  assert(kind == NULL)
  return M.null, i + 1
end

--- The value of a JSON text; name stands in messages.
function M.decode(text, name)
  local out = core.new "esp_json *[1]"
  core.try(C.esp_json_parse(out, text, #text, name or "json"))
  local value = read(C.esp_json_events(out[0]), 0)
  C.esp_json_free(out[0])
  return value
end

--- The value in a JSON file.
function M.read(path)
  return M.decode(file.read(path), path)
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
  if v == math.floor(v) and math.abs(v) < 2 ^ 53 then return string.format("%.0f", v) end
  -- The shortest text that reads back as the same double.
  for precision = 15, 17 do
    local text = string.format("%." .. precision .. "g", v)
    if tonumber(text) == v then return text end
  end
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
