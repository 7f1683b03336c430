--- Would more data change the answer? The rows of the calibration data fall in two halves; each half alone is asked what to keep.
--
-- What the halves disagree on depends on the data that was drawn. The whole has twice the data of a half, so its own choice is nearer to that of
-- unlimited data than the halves are to each other: agreement of the halves is a lower bound.

local fail = require "espalier.fail"

local M = {}
local Table = {}
Table.__index = Table

-- How many of a are in b.
local function common(a, b)
  local set, n = {}, 0
  for _, i in ipairs(b) do set[i] = true end
  for _, i in ipairs(a) do if set[i] then n = n + 1 end end
  return n
end

local function lists_of(set)
  return type(set[1]) == "table" and set or { set }
end

local function size_of(s, axis, l)
  if axis == "head_dim" then return s.head_dim / 2 end
  return type(s[axis]) == "table" and s[axis][l] or s[axis]
end

--- ranking:stability{ ffn = 128, layers = 4 } -> a table to print, by rows { axis, keep, of, overlap, chance, agreement }: the share of what one
-- half keeps that the other keeps too; what two random choices would share; and agreement = (overlap - chance) / (1 - chance).
function M.of(ranking, sizes)
  local stats = ranking.stats
  for h = 1, 2 do
    if stats.counts[h].rows == 0 then fail("stability: the statistics hold %d rows, want two or more", stats:total "rows") end
  end
  local a, b = ranking:with(stats:half(0)):kept(sizes, stats.model), ranking:with(stats:half(1)):kept(sizes, stats.model)
  local out = setmetatable({ rows = {}, data = stats:total "rows" }, Table)
  for _, axis in ipairs { "hidden", "ffn", "heads", "kv_heads", "head_dim", "layers" } do
    if sizes[axis] and a[axis] then
      local shared, kept, chance, of = 0, 0, 0, 0
      local other = lists_of(b[axis])
      for l, list in pairs(lists_of(a[axis])) do
        local n = size_of(stats.shape, axis, l)
        shared, kept, of = shared + common(list, other[l]), kept + #list, of + n
        -- A random choice of k of n holds k/n of any k.
        chance = chance + #list * #other[l] / n
      end
      local overlap, by_chance = shared / kept, chance / kept
      out.rows[#out.rows + 1] = { axis = axis, keep = sizes[axis], kept = kept, of = of, overlap = overlap, chance = by_chance,
        agreement = by_chance < 1 and (overlap - by_chance) / (1 - by_chance) or 1 }
    end
  end
  if #out.rows == 0 then fail "stability: name the sizes that are to be kept, as in { ffn = 128 }" end
  return out
end

local function verdict(r)
  if r.overlap == 1 then return "the halves agree wholly: more data will hardly change it" end
  if r.agreement >= 0.9 then return string.format("more data may change up to %.1f %% of it", 100 * (1 - r.overlap)) end
  if r.agreement >= 0.5 then return string.format("more data will change it: up to %.0f %%; measure more rows", 100 * (1 - r.overlap)) end
  return "little better than chance: measure many more rows"
end

function Table:__tostring()
  local lines = { string.format("what the halves of %d rows keep", self.data),
    string.format("%-10s %8s  %8s  %8s  %9s", "axis", "keep", "overlap", "chance", "agreement") }
  for _, r in ipairs(self.rows) do
    lines[#lines + 1] = string.format("%-10s %8d  %6.1f %%  %6.1f %%  %9.2f  %s", r.axis, r.keep, 100 * r.overlap, 100 * r.chance, r.agreement,
      verdict(r))
  end
  return table.concat(lines, "\n")
end

return M
