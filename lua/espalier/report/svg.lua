--- Charts as inline SVG: lines, points and bars over two axes. Colours and text follow the page's style sheet.

local M = {}

local W, H, LEFT, RIGHT, TOP, BOTTOM = 640, 320, 62, 16, 14, 40

--- Text made safe for HTML.
function M.escape(text)
  return (tostring(text):gsub("[&<>\"]", { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ["\""] = "&quot;" }))
end

-- Numbers for an axis: about n of them, at 1, 2 or 5 times a power of ten.
local function ticks(low, high, n)
  local raw = (high - low) / n
  local power = 10 ^ math.floor(math.log10(raw))
  local step = power
  for _, k in ipairs { 1, 2, 5, 10 } do
    step = k * power
    if step >= raw then break end
  end
  local list, i = {}, math.ceil(low / step - 1e-9)
  while i * step <= high + step * 1e-9 do
    list[#list + 1] = i * step
    i = i + 1
  end
  return list
end

local function number(v)
  if math.abs(v) < 1e-12 then return "0" end
  if math.abs(v) >= 1e4 then
    for _, unit in ipairs { { 1e9, "B" }, { 1e6, "M" }, { 1e3, "k" } } do
      if math.abs(v) >= unit[1] then return string.format("%.4g%s", v / unit[1], unit[2]) end
    end
  end
  return string.format("%.4g", v)
end

local function extent(series, key, zero)
  local low, high = math.huge, -math.huge
  for _, s in ipairs(series) do
    for _, p in ipairs(s.points) do
      if p[key] == p[key] and math.abs(p[key]) < math.huge then low, high = math.min(low, p[key]), math.max(high, p[key]) end
    end
  end
  if low > high then low, high = 0, 1 end
  if zero then low = math.min(low, 0) end
  local room = high > low and (high - low) * 0.05 or math.max(1e-9, math.abs(high) * 0.1)
  return zero and low or low - room, high + room
end

-- Frame, grid and names of the axes; returns the parts and the two scales.
local function frame(series, opt)
  local x0, x1 = extent(series, 1)
  local y0, y1 = extent(series, 2, opt.zero)
  local function X(v) return LEFT + (v - x0) / (x1 - x0) * (W - LEFT - RIGHT) end
  local function Y(v) return H - BOTTOM - (v - y0) / (y1 - y0) * (H - TOP - BOTTOM) end
  local out = { string.format("<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"%s\">", W, H, M.escape(opt.title or opt.y)) }
  local function add(format, ...) out[#out + 1] = string.format(format, ...) end
  for _, v in ipairs(ticks(y0, y1, 5)) do
    add("<line class=\"grid\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>", LEFT, W - RIGHT, Y(v), Y(v))
    add("<text x=\"%d\" y=\"%.1f\" class=\"end\">%s</text>", LEFT - 6, Y(v) + 4, number(v))
  end
  for _, v in ipairs(ticks(x0, x1, 7)) do
    if not opt.whole or v == math.floor(v) then
      add("<text x=\"%.1f\" y=\"%d\" class=\"mid\">%s</text>", X(v), H - BOTTOM + 16, number(v))
    end
  end
  add("<text x=\"%.1f\" y=\"%d\" class=\"mid\">%s</text>", (LEFT + W - RIGHT) / 2, H - 6, M.escape(opt.x))
  local middle = (H - BOTTOM + TOP) / 2
  add("<text x=\"14\" y=\"%.1f\" class=\"mid\" transform=\"rotate(-90 14 %.1f)\">%s</text>", middle, middle, M.escape(opt.y))
  return out, X, Y
end

local function colour(i)
  return string.format("hsl(%d 65%% 48%%)", (i - 1) * 137.5 % 360)
end

local function finish(out, series)
  out[#out + 1] = "</svg>"
  local keys = {}
  for i, s in ipairs(series) do
    if s.name then keys[#keys + 1] = string.format("<span><i style=\"background:%s\"></i>%s</span>", colour(s.colour or i), M.escape(s.name)) end
  end
  if #keys > 0 then out[#out + 1] = "<div class=\"key\">" .. table.concat(keys) .. "</div>" end
  return table.concat(out, "\n")
end

--- At most n points: means of neighbours. points: list of { x, y }.
function M.thin(points, n)
  if #points <= n then return points end
  local out, each = {}, #points / n
  for i = 0, n - 1 do
    local from, to, x, y = math.floor(i * each) + 1, math.floor((i + 1) * each), 0, 0
    for k = from, to do x, y = x + points[k][1], y + points[k][2] end
    out[#out + 1] = { x / (to - from + 1), y / (to - from + 1) }
  end
  return out
end

--- Curves. series: list of { name, points = { { x, y } .. }, colour = number }; opt.x, opt.y: names of the axes.
function M.lines(series, opt)
  local out, X, Y = frame(series, opt)
  for i, s in ipairs(series) do
    local path = {}
    for _, p in ipairs(s.points) do path[#path + 1] = string.format("%.1f,%.1f", X(p[1]), Y(p[2])) end
    out[#out + 1] = string.format("<polyline points=\"%s\" style=\"stroke:%s\"/>", table.concat(path, " "), colour(s.colour or i))
  end
  return finish(out, series)
end

--- Points with an optional half interval in y: { x, y, interval, label }.
function M.points(series, opt)
  local out, X, Y = frame(series, opt)
  for i, s in ipairs(series) do
    for _, p in ipairs(s.points) do
      if p[3] and p[3] > 0 then
        out[#out + 1] = string.format("<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" style=\"stroke:%s\"/>", X(p[1]), X(p[1]), Y(p[2] - p[3]),
          Y(p[2] + p[3]), colour(s.colour or i))
      end
      out[#out + 1] = string.format("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" style=\"fill:%s\"><title>%s</title></circle>", X(p[1]), Y(p[2]),
        colour(s.colour or i), M.escape(p[4] or s.name or ""))
    end
  end
  return finish(out, series)
end

--- Bars side by side at whole numbers of x, from zero.
function M.bars(series, opt)
  opt.zero, opt.whole = true, true
  local out, X, Y = frame(series, opt)
  local first = series[1].points
  local gap = #first > 1 and X(first[2][1]) - X(first[1][1]) or 40
  local width = gap * 0.8 / #series
  for i, s in ipairs(series) do
    for _, p in ipairs(s.points) do
      local top, bottom = math.min(Y(p[2]), Y(0)), math.max(Y(p[2]), Y(0))
      out[#out + 1] = string.format("<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" style=\"fill:%s\"><title>%s: %s</title></rect>",
        X(p[1]) - gap * 0.4 + (i - 1) * width, top, width, bottom - top, colour(s.colour or i), M.escape(s.name or ""), number(p[2]))
    end
  end
  return finish(out, series)
end

return M
