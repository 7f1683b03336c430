--- The table of a sensitivity as text.

local show = require "espalier.importance.show"
local quantity = require "espalier.quantity"

local M = {}

local function say_request(r)
  local parts = {}
  for _, name in ipairs { "hidden", "ffn", "heads", "kv_heads", "layers" } do
    if r[name] then parts[#parts + 1] = name .. " " .. r[name] end
  end
  for _, name in ipairs { "drop_attention", "drop_mlp" } do
    if r[name] then parts[#parts + 1] = "without " .. name:sub(6) .. " of " .. table.concat(r[name], " ") end
  end
  local text = table.concat(parts, ", ")
  return #text > 30 and text:sub(1, 28) .. ".." or text
end

local function predicted(r, full)
  return string.format("  %8.4f  %8.4f  %8.4f", r.nll - full, r.predicted.first, r.predicted.second)
end

local function longest(rows, text, least)
  local n = least
  for _, r in ipairs(rows) do n = math.max(n, #text(r)) end
  return n
end

local function say_axis(r) return r.axis .. (r.metric and " by " .. r.metric or "") end
local function say_kept(r) return say_request(r.request) end

--- Lines of a table { rows, goal, kd, left_out }.
function M.of(self)
  local largest, any, unequal, full = 0, false, false, self.rows[1].nll
  for _, r in ipairs(self.rows) do largest, any, unequal = math.max(largest, r.nll - full), any or r.predicted, unequal or not r.equal end
  local lines = { string.format("cut to about %s parameters%s. Retraining can change this order%s.", quantity.show_exact(self.goal),
    self.kd and ", then distilled for " .. quantity.show_count(self.kd) .. " tokens" or ", not retrained",
    self.kd and "; so can a longer one" or ": ask with kd = \"200k\" before you trust it") }
  local first = string.format("%%-%ds  %%-%ds  %%14s  ", longest(self.rows, say_axis, 4), longest(self.rows, say_kept, 4))
  lines[2] = string.format(first .. "%-17s  %-17s  %7s%s%s", "axis", "kept", "parameters", "NLL", "KL to the model", "tok/s",
    any and "  measured     first    second" or "", self.kd and "  NLL distilled" or "")
  for _, r in ipairs(self.rows) do
    local line = string.format(first .. "%7.4f +- %-6.4f  %7.4f +- %-6.4f  %7s", say_axis(r), say_kept(r),
      quantity.show_exact(r.parameters) .. (r.equal and "" or " *"), r.nll, r.interval, r.kl, r.kl_interval, quantity.show_count(r.tokens_per_second))
    if any then line = line .. (r.predicted and predicted(r, full) or string.rep(" ", 30)) end
    if r.kd_nll then line = line .. string.format("  %7.4f +- %.4f", r.kd_nll, r.kd_interval) end
    lines[#lines + 1] = (line .. "  " .. show.bar(largest > 0 and (r.nll - full) / largest or 0, 12)):gsub("%s+$", "")
  end
  if any then lines[#lines + 1] = "measured: the change of NLL; first, second: what Taylor's expansion predicted from the calibration data" end
  if unequal then lines[#lines + 1] = "* this axis alone cannot reach that count; the row is no fair comparison" end
  if #self.left_out > 0 then
    lines[#lines + 1] = "not scored, " .. (self.stopped and "stopped" or "the time was up") .. ": " .. table.concat(self.left_out, "; ")
  end
  lines[#lines + 1] = "intervals: 95 % over documents; bars: how much the loss grows"
  return table.concat(lines, "\n")
end

return M
