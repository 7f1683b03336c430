--- Statistics and scores as tables and small bars for people.

local shapes = require "espalier.models.shape"
local quantity = require "espalier.quantity"

local M = {}

local eighths = { "▏", "▎", "▍", "▌", "▋", "▊", "▉" }

--- A bar of at most `width` cells; share from 0 to 1.
function M.bar(share, width)
  if not (share > 0) then return "" end
  local cells = math.min(1, share) * width
  local whole = math.floor(cells)
  local rest = math.floor((cells - whole) * 8)
  return string.rep("█", whole) .. (rest > 0 and eighths[rest] or "")
end

local function largest_of(list)
  local most = 0
  for _, v in ipairs(list) do if v > most and v < math.huge then most = v end end
  return most
end

--- Lines "label value bar" of a list of numbers; bars start at 0, or at the smallest where all are far from it.
function M.bars(labels, values, format)
  local most, least, lines = largest_of(values), math.huge, {}
  for _, v in ipairs(values) do least = math.min(least, v) end
  local from = least > 0.5 * most and least - (most - least) / 8 or math.min(0, least)
  for i, v in ipairs(values) do
    lines[i] = string.format("%-12s %" .. (format or "12.6g") .. "  %s", labels[i], v, M.bar(most > from and (v - from) / (most - from) or 0, 24))
  end
  return table.concat(lines, "\n")
end

-- Mean, least and largest score of a layer, and where its scores lie: a histogram in one line.
local blocks = { "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█" }

local function spread(list)
  local lo, hi, sum = math.huge, -math.huge, 0
  for _, v in ipairs(list) do lo, hi, sum = math.min(lo, v), math.max(hi, v), sum + v end
  local bins, most = {}, 0
  for i = 1, 16 do bins[i] = 0 end
  for _, v in ipairs(list) do
    local b = hi > lo and math.min(16, math.floor((v - lo) / (hi - lo) * 16) + 1) or 1
    bins[b] = bins[b] + 1
    most = math.max(most, bins[b])
  end
  for i = 1, 16 do bins[i] = bins[i] == 0 and " " or blocks[math.max(1, math.ceil(bins[i] / most * 8))] end
  return sum / #list, lo, hi, table.concat(bins)
end

local Table = {}
Table.__index = Table
function Table:__tostring() return self.text end

local function by_layer(stats, opt)
  local lines = { string.format("%-8s %12s %12s %12s  %s", "layer", "mean", "least", "largest", "from least to largest, how many") }
  for l = 0, stats.shape.layers - 1 do
    if shapes.at(stats.shape, opt.axis, l) > 0 then
      local own = {}
      for k, v in pairs(opt) do own[k] = v end
      own.layer = l
      local mean, lo, hi, picture = spread(stats:score(own):table())
      lines[#lines + 1] = string.format("%-8d %12.6g %12.6g %12.6g  %s", l, mean, lo, hi, picture)
    end
  end
  return table.concat(lines, "\n")
end

--- stats:show{ axis =, metric =, .. as stats:score }: the scores as a table to print: one bar a unit; of an axis with many units a layer and no
-- layer named, one line a layer.
function M.show(stats, opt)
  local given = {}
  for k, v in pairs(opt or {}) do given[k] = v end
  given.axis = given.axis or "layers"
  local default = given.axis == "layers" and "bi" or "activation"
  local name = type(given.metric) == "string" and given.metric or given.metric and (given.metric.name or "the recipe's metric") or default
  local head = string.format("%s by %s, %d rows; higher means keep", given.axis, name, stats:total "rows")
  if (given.axis == "ffn" or given.axis == "heads" or given.axis == "kv_heads") and not given.layer then
    return setmetatable({ text = head .. "\n" .. by_layer(stats, given) }, Table)
  end
  local values, labels = stats:score(given):table(), {}
  for i = 1, #values do
    local n = given.axis == "layers" and (given.block or 1) or 1
    labels[i] = n > 1 and string.format("%d..%d", i - 1, i + n - 2) or tostring(i - 1)
  end
  if #values > 64 then
    local mean, lo, hi, picture = spread(values)
    return setmetatable({ text = string.format("%s\nmean %.6g, least %.6g, largest %.6g  %s", head, mean, lo, hi, picture) }, Table)
  end
  return setmetatable({ text = head .. "\n" .. M.bars(labels, values) }, Table)
end

--- What statistics hold, and the block influence of each layer.
function M.summary(stats)
  local s, has = stats.shape, {}
  if stats.facts.grads then has[#has + 1] = "gradients" end
  local left = {}
  for name in pairs(stats.left_out) do left[#left + 1] = name end
  table.sort(left)
  for _, name in ipairs(left) do has[#has + 1] = "left out " .. name end
  for name in pairs(stats.facts.reductions) do has[#has + 1] = name end
  local lines = { string.format("statistics: %d rows, %s tokens, %s; %s%s", stats:total "rows", quantity.show_exact(stats:total "tokens"),
    quantity.show_bytes(stats:bytes()), shapes.text(s), #has > 0 and "; with " .. table.concat(has, ", ") or "") }
  if stats.outer.angles and stats:total "tokens" > 0 then
    lines[#lines + 1] = "block influence by layer"
    local values, labels = stats:score({ axis = "layers", metric = "bi" }):table(), {}
    for i = 1, #values do labels[i] = tostring(i - 1) end
    lines[#lines + 1] = M.bars(labels, values, "9.4f")
  end
  return table.concat(lines, "\n")
end

return M
