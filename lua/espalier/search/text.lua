--- A search as people read it: what was looked at, the best candidates with a bar for what each loses, and which lie on the front.

local shapes = require "espalier.models.shape"
local quantity = require "espalier.quantity"
local rows = require "espalier.search.rows"

local function span(v)
  if type(v) ~= "table" then return tostring(v) end
  local low, high = math.huge, -math.huge
  for _, x in ipairs(v) do low, high = math.min(low, x), math.max(high, x) end
  return low == high and tostring(low) or low .. ".." .. high
end

local width = 16

-- A bar of the part of `most` that value is, at least one cell where it is anything.
local function bar(value, most)
  if not (value > 0) then return "" end
  return string.rep("#", math.max(1, math.floor(width * value / most + 0.5)))
end

local function head(search)
  local out = { "search of " .. tostring(search.model) }
  out[#out + 1] = string.format("%s legal shapes, %s within the budget%s; ranked by %s; %d re-scored on %s held-out tokens%s",
    quantity.show_exact(search.seen), quantity.show_exact(search.fitting), search.limits ~= "" and " (" .. search.limits .. ")" or "", search.by,
    search.scored, quantity.show_count(search.tokens), search.scoring.precision == "bf16" and " in bf16" or "")
  if search.correlation == search.correlation then
    out[#out + 1] = string.format("rank correlation of the cheap loss with NLL: %.2f", search.correlation)
  end
  if search.stopped then out[#out + 1] = (search.interrupted and "interrupted: " or "the time was up: ") .. search.stopped end
  return out
end

local show = { parameters = quantity.show_exact, memory = quantity.show_bytes, latency = quantity.show_seconds }

local M = {}

--- A front as text: what each candidate on it takes and loses; of: how many were scored.
function M.of_front(front, measure, whole, of)
  local what = measure == "latency" and "latency (from measured layers)" or measure
  local out, most, name = { string.format("front of NLL against %s: %d of %d candidates have nothing below them in both", what, #front, of) }, 0, 0
  for _, r in ipairs(front) do most, name = math.max(most, r.nll - whole), math.max(name, #r.name) end
  for _, r in ipairs(front) do
    out[#out + 1] = string.format("  %14s  %8.4f  %-" .. name .. "s  %s", show[measure](r[measure]), r.nll, r.name, bar(r.nll - whole, most))
  end
  return table.concat(out, "\n")
end

--- A search as text.
function M.of_search(search)
  local out, most, measured, distilled = head(search), 0, false, false
  for _, r in ipairs(search.rows) do
    if r.nll then most = math.max(most, rows.loss(r) - search.nll) end
    measured, distilled = measured or r.latency ~= nil, distilled or r.kd_nll ~= nil
  end
  out[#out + 1] = string.format("%-2s%8s %9s %7s %7s %6s %14s %10s%s %8s %8s%s  above %.4f", "", "hidden", "ffn", "heads", "kv", "layers",
    "parameters", "memory", measured and "    latency" or "", "NLL", "KL", distilled and " distilled" or "", search.nll)
  local shown = 0
  for _, r in ipairs(search.rows) do
    if r.nll then
      shown = shown + 1
      local s = r.shape
      out[#out + 1] = string.format("%-2s%8d %9s %7s %7s %6d %14s %10s%s %8.4f %8.4f%s  %s", r.front and "*" or "", s.hidden, span(s.ffn),
        span(s.heads), span(s.kv_heads), s.layers, quantity.show_exact(shapes.parameters(s)), quantity.show_bytes(r.memory),
        measured and string.format(" %10s", quantity.show_seconds(r.latency)) or "", r.nll, r.kl,
        distilled and (r.kd_nll and string.format(" %9.4f", r.kd_nll) or string.rep(" ", 10)) or "", bar(rows.loss(r) - search.nll, most))
    end
  end
  if shown == 0 then out[#out + 1] = "  nothing was scored yet" end
  out[#out + 1] = "* nothing else has less NLL, parameters, memory" .. (measured and " and latency" or "") .. " at once"
  if search.out then out[#out + 1] = "best so far: " .. search.out .. "/best" end
  for _, measure in ipairs(shown > 0 and search.fronts or {}) do out[#out + 1] = tostring(search:front(measure)) end
  return table.concat(out, "\n")
end

return M
