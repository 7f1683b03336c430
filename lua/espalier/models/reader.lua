--- Reads a parsed config.json field by field and remembers which were read, so that the rest can be refused by name.

local json = require "espalier.io.json"
local options = require "espalier.options"
local fail = require "espalier.fail"

local Reader = {}
Reader.__index = Reader

local M = {}

local function say(v)
  return type(v) == "table" and "a list or an object" or tostring(v)
end

--- where names the file in messages; defaults: { [field] = value } of the architecture, for fields that are missing.
function M.new(config, where, defaults)
  if type(config) ~= "table" or config == json.null then fail("%s: holds %s, want an object of fields", where, say(config)) end
  return setmetatable({ config = config, where = where, defaults = defaults or {}, used = {} }, Reader)
end

--- The value of a field, or nil where it is missing or null. kind: type in Lua; a value of another is an error.
function Reader:given(name, kind)
  self.used[name] = true
  local v = self.config[name]
  if v == nil or v == json.null then return nil end
  if type(v) ~= kind then fail("%s: field '%s' is %s, want a %s", self.where, name, say(v), kind) end
  return v
end

--- The same, but the architecture's default where it is missing. (null is nil: there it says "none".)
function Reader:optional(name, kind)
  if self.config[name] == nil then
    self.used[name] = true
    return self.defaults[name]
  end
  return self:given(name, kind)
end

--- A field that must be there (or have a default).
function Reader:required(name, kind)
  local v = self:optional(name, kind)
  if v == nil then fail("%s: field '%s' is missing, want a %s", self.where, name, kind) end
  return v
end

function Reader:number(name) return self:required(name, "number") end

--- true or false; false where missing.
function Reader:flag(name)
  return self:optional(name, "boolean") == true
end

--- The field must be missing or one of the values (a list); others are refused. Returns what it is.
function Reader:only(name, values)
  self.used[name] = true
  local v = self.config[name]
  if v == nil or v == json.null then return nil end
  local words = {}
  for i, one in ipairs(values) do
    if v == one then return v end
    words[i] = tostring(one)
  end
  fail("%s: %s is %s, want %s", self.where, name, say(v), #words > 0 and table.concat(words, " or ") or "no such field")
end

--- A list with one entry a layer, each of the kind; nil where missing.
function Reader:by_layer(name, layers, kind)
  local list = self:optional(name, "table")
  if not list then return nil end
  if #list < layers then fail("%s: %s has %d entries, want one for each of %d layers", self.where, name, #list, layers) end
  for l = 1, layers do
    if type(list[l]) ~= kind then fail("%s: %s[%d] is %s, want a %s", self.where, name, l - 1, tostring(list[l]), kind) end
  end
  return list
end

--- Refuses every field that was not read, is not null and is not in the set `harmless`.
function Reader:refuse_rest(harmless, who)
  local rest, known = {}, {}
  for name, v in pairs(self.config) do
    if not (self.used[name] or harmless[name] or v == json.null) then rest[#rest + 1] = name end
  end
  if #rest == 0 then return end
  table.sort(rest)
  for name in pairs(self.used) do known[#known + 1] = name end
  local near = options.nearest(rest[1], known)
  fail("%s: field '%s' is not known to %s%s; it may change what the model computes, so the model is not opened", self.where, rest[1], who,
    near and " (did you mean '" .. near .. "'?)" or "")
end

return M
