--- Named options: converted and checked, unknown names refused with the nearest known one.
--
-- A specification is { name = { kind, default =, required =, one_of = {..}, help = } }. Kinds: int sizes number string bool path tokens bytes
-- seconds percent table func list model tensor any.

local fail = require "espalier.fail"
local quantity = require "espalier.quantity"

local M = {}

-- Edits (insert, delete, change, swap of neighbours) between two words.
local function distance(a, b)
  local rows = {}
  for i = 0, #a do rows[i] = { [0] = i } end
  for j = 0, #b do rows[0][j] = j end
  for i = 1, #a do
    for j = 1, #b do
      local cost = a:byte(i) == b:byte(j) and 0 or 1
      local best = math.min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + cost)
      if i > 1 and j > 1 and a:byte(i) == b:byte(j - 1) and a:byte(i - 1) == b:byte(j) then best = math.min(best, rows[i - 2][j - 2] + 1) end
      rows[i][j] = best
    end
  end
  return rows[#a][#b]
end

--- The known name nearest to a wrong one, or nil where none is near. names: a list.
function M.nearest(wrong, names)
  local best, least
  for _, name in ipairs(names) do
    local d = distance(wrong, name)
    if not least or d < least or (d == least and name < best) then best, least = name, d end
  end
  return least and least <= math.max(1, math.floor(#wrong / 3)) and best or nil
end

local function sorted(t)
  local names = {}
  for name in pairs(t) do names[#names + 1] = name end
  table.sort(names, function(a, b) return tostring(a) < tostring(b) end)
  return names
end

local function whole(v)
  local n = type(v) == "number" and v or quantity.count(v)
  return n == math.floor(n) and n or nil
end

-- A whole number for all layers, or a list of them by layer ("96,96,0" on the command line).
local function sizes(v)
  if type(v) == "string" and v:find "," then
    local list = {}
    for word in v:gmatch "[^,]+" do list[#list + 1] = word end
    v = list
  end
  if type(v) ~= "table" then return whole(v) end
  local out = {}
  for i, one in ipairs(v) do
    out[i] = whole(one)
    if not out[i] then return nil end
  end
  return out
end

local function of_type(name)
  return function(v) return type(v) == name and v or nil end
end

-- Each gives the converted value, or nil where the value cannot be one.
local kinds = {
  int = whole, sizes = sizes,
  number = function(v) return tonumber(v) end,
  string = function(v) return (type(v) == "string" or type(v) == "number") and tostring(v) or nil end,
  bool = function(v)
    if type(v) == "boolean" then return v end
    local words = { ["true"] = true, yes = true, on = true, ["1"] = true, ["false"] = false, no = false, off = false, ["0"] = false }
    return words[tostring(v)]
  end,
  path = of_type "string",
  tokens = quantity.count, bytes = quantity.bytes, seconds = quantity.seconds, percent = quantity.percent,
  table = of_type "table", func = function(v)
    if type(v) == "function" then return v end
    local meta = getmetatable(v)
    return meta and meta.__call and v or nil
  end,
  model = function(v) return type(v) == "table" and v.shape and v.parameters and v or nil end,
  tensor = function(v) return type(v) == "table" and v.c and v or nil end,
  any = function(v) return v end,
  list = function(v)
    if type(v) == "table" then return v end
    local list = {}
    for word in tostring(v):gmatch "[^,]+" do list[#list + 1] = tonumber(word) or word end
    return list
  end,
}

local articles = { int = "a whole number", sizes = "a whole number, or a list of them by layer",
  number = "a number", string = "a text", bool = "true or false", path = "a path",
  tokens = "a count", func = "a function", list = "a list", model = "a model", tensor = "a tensor", table = "a table" }

local function convert(what, name, value, rule)
  local ok, converted = pcall(kinds[rule[1]], value)
  if not ok then fail("%s: option '%s': %s", what, name, (tostring(converted):gsub("^[^:]*:%d+: ", ""))) end
  if converted == nil or converted ~= converted then
    fail("%s: option '%s' is '%s', want %s", what, name, tostring(value), articles[rule[1]] or rule[1])
  end
  if rule.one_of then
    for _, allowed in ipairs(rule.one_of) do if allowed == converted then return converted end end
    fail("%s: option '%s' is '%s', want one of %s", what, name, tostring(value), table.concat(rule.one_of, ", "))
  end
  return converted
end

--- A new table with every option of the specification, converted. what names the caller in messages ("esp.prune").
function M.check(what, given, spec)
  given = given or {}
  if type(given) ~= "table" then fail("%s: options are %s, want a table of names", what, type(given)) end
  local out = {}
  for _, name in ipairs(sorted(given)) do
    if not spec[name] then
      local names = {}
      for _, known in ipairs(sorted(spec)) do if type(known) == "string" then names[#names + 1] = known end end
      local near = type(name) == "string" and M.nearest(name, names)
      fail("%s: unknown option '%s'%s", what, tostring(name), near and ("; did you mean '" .. near .. "'?")
        or "; the options are " .. table.concat(names, ", "))
    end
    out[name] = convert(what, name, given[name], spec[name])
  end
  for _, name in ipairs(sorted(spec)) do
    local rule = spec[name]
    if out[name] == nil then
      if rule.required then fail("%s: option '%s' is missing; want %s", what, name, articles[rule[1]] or rule[1]) end
      if rule.default ~= nil then out[name] = convert(what, name, rule.default, rule) end
    end
  end
  return out
end

--- A recipe's options, converted and checked: esp.options(..., { ffn = { "int" }, tokens = { "tokens", default = "2M" } }).
-- Takes what the recipe got as `...`: texts "name=value", or one table; the specification comes last.
function M.parse(...)
  local n = select("#", ...)
  local spec = select(n, ...)
  if type(spec) ~= "table" then fail("esp.options: the last argument is %s, want the table of options", type(spec)) end
  if M.collect then M.collect(spec) end
  local given, first, all = {}, ..., rawget(_G, "arg") or {}
  -- Lua cuts `...` to its first value where more follows it; the others stand in `arg`.
  local list = type(first) ~= "table" and first == all[1] and n == 2 and all or { unpack({ ... }, 1, n - 1) }
  for _, one in ipairs(list) do
    if type(one) == "table" then
      for k, v in pairs(one) do given[k] = v end
    else
      local name, value = tostring(one):match "^([%w_]+)=(.*)$"
      if not name then fail("'%s' is no option; write name=value", tostring(one)) end
      if given[name] ~= nil then fail("option '%s' is given twice", name) end
      given[name] = value
    end
  end
  return M.check("options", given, spec)
end

return M
