--- How a mistake is reported: one sentence, with the user's file and line in front.

local here = debug.getinfo(1, "S").source:match("^@(.*)fail%.lua$") or "@"

-- "recipe.lua:12: " of the innermost function that is not ours; "" where there is none.
local function place()
  for level = 3, 60 do
    local info = debug.getinfo(level, "Sl")
    if not info then return "" end
    local source = info.source
    if info.currentline > 0 and source:sub(1, 1) == "@" and source:sub(2, #here + 1) ~= here then
      return info.short_src .. ":" .. info.currentline .. ": "
    end
  end
  return ""
end

--- fail("prune: %s is ...", x) raises the sentence.
local function fail(format, ...)
  error(place() .. (select("#", ...) > 0 and string.format(format, ...) or format), 0)
end

return setmetatable({
  --- Says on stderr what is odd, but does no harm.
  warn = function(text) io.stderr:write("espalier: warning: ", text, "\n") end,
  --- Exit code of the program where no error ends it: 1 once something failed beside what went on (a cell of a sweep).
  status = 0,
  --- Raises the sentence unless condition holds; else returns the condition.
  check = function(condition, format, ...)
    if not condition then fail(format, ...) end
    return condition
  end,
}, { __call = function(_, ...) return fail(...) end })
