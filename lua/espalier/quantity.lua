--- Quantities as people write them: "380B" tokens, "24GiB", "10min", "1%"; and back.

local fail = require "espalier.fail"

local M = {}

local counts = { [""] = 1, k = 1e3, K = 1e3, M = 1e6, m = 1e6, B = 1e9, b = 1e9, G = 1e9, T = 1e12 }
local bytes = { [""] = 1, B = 1, kB = 1e3, KB = 1e3, MB = 1e6, GB = 1e9, TB = 1e12,
  KiB = 2 ^ 10, MiB = 2 ^ 20, GiB = 2 ^ 30, TiB = 2 ^ 40 }
local seconds = { [""] = 1, ms = 1e-3, s = 1, sec = 1, min = 60, h = 3600, d = 86400 }
local percent = { [""] = 1, ["%"] = 0.01 }

local function reader(what, units, example)
  return function(value)
    if type(value) == "number" then return value end
    local number, unit = tostring(value):match "^%s*([%d%.eE%+%-]+)%s*([%a%%]*)%s*$"
    -- "1e6" ends in digits, but "2E" would be read as a number with an exponent that is not there.
    local n = tonumber(number)
    if not n or not units[unit] then fail("'%s' is no %s; write it as in %s", tostring(value), what, example) end
    return n * units[unit]
  end
end

--- "2M" -> 2e6 (k, M, B, T).
M.count = reader("count", counts, "\"380B\", \"2M\" or \"64k\"")
--- "24GiB" -> bytes.
M.bytes = reader("size", bytes, "\"24GiB\" or \"800MB\"")
--- "10min" -> seconds.
M.seconds = reader("time", seconds, "\"90s\", \"10min\" or \"2h\"")
--- "1%" -> 0.01; a bare number is the share itself.
M.percent = reader("share", percent, "\"1%\" or 0.01")

local function scaled(n, steps, format)
  for _, step in ipairs(steps) do
    if math.abs(n) >= step[1] then
      local x = n / step[1]
      return string.format(x < 10 and "%.2f%s" or x < 100 and "%.1f%s" or "%.0f%s", x, step[2])
    end
  end
  return string.format(format, n)
end

--- 2100000 -> "2.10M".
function M.show_count(n)
  return scaled(n, { { 1e12, "T" }, { 1e9, "B" }, { 1e6, "M" }, { 1e3, "k" } }, "%d")
end

--- 1288490189 -> "1.20 GiB".
function M.show_bytes(n)
  return scaled(n, { { 2 ^ 40, " TiB" }, { 2 ^ 30, " GiB" }, { 2 ^ 20, " MiB" }, { 2 ^ 10, " KiB" } }, "%d B")
end

--- 80 -> "1 min 20 s"; 0.0123 -> "12.30 ms".
function M.show_seconds(s)
  if s > 0 and s < 0.1 then return string.format("%.2f ms", 1000 * s) end
  if s < 10 then return string.format("%.1f s", s) end
  s = math.floor(s + 0.5)
  if s < 60 then return string.format("%d s", s) end
  if s < 3600 then return string.format("%d min %02d s", math.floor(s / 60), s % 60) end
  return string.format("%d h %02d min", math.floor(s / 3600), math.floor(s % 3600 / 60))
end

--- 12247782400 -> "12,247,782,400".
function M.show_exact(n)
  local text = string.format("%.0f", n)
  local sign, digits = text:match "^(%-?)(%d+)$"
  return sign .. digits:reverse():gsub("(%d%d%d)", "%1,"):reverse():gsub("^,", "")
end

return M
