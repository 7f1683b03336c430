--- Latency of any shape of a grid, from a few measured layers: attention and MLP apart, each at three widths of two axes, bilinear between them.

local measure = require "espalier.plan.measure"
local progress = require "espalier.progress"
local fail = require "espalier.fail"
local core = require "espalier.ffi"

local M = {}
local Latency = {}
Latency.__index = Latency

-- Smallest, middle and largest of a descending list of sizes, ascending, each once.
local function knots(list)
  local out, n = {}, #list
  for _, i in ipairs { n, math.ceil(n / 2), 1 } do if out[#out] ~= list[i] then out[#out + 1] = list[i] end end
  return out
end

-- Index i and share t so that value = (1-t) xs[i] + t xs[i+1].
local function between(xs, value)
  if #xs == 1 then return 1, 0 end
  local i = 1
  while i < #xs - 1 and value > xs[i + 1] do i = i + 1 end
  return i, (value - xs[i]) / (xs[i + 1] - xs[i])
end

local function bilinear(surface, x, y)
  local i, t = between(surface.xs, x)
  local j, u = between(surface.ys, y)
  local function z(a, b) return (surface[math.min(a, #surface.xs)] or {})[math.min(b, #surface.ys)] end
  return (1 - t) * ((1 - u) * z(i, j) + u * z(i, j + 1)) + t * ((1 - u) * z(i + 1, j) + u * z(i + 1, j + 1))
end

--- Measures the corners of a grid (plan/grid.lua) for [batch, length] tokens. Of heads and kv_heads the widths of Q and K, V together decide, so
-- one axis counts both: heads + 2 kv_heads.
function M.new(grid, batch, length, quiet)
  local s, all = grid.shape, grid.choices
  local self = setmetatable({ batch = batch, length = length, mlp = { xs = knots(all.hidden), ys = knots(all.ffn) },
    attention = { xs = knots(all.hidden), ys = {} } }, Latency)
  local pairs_of, each = {}, all.heads[1] / all.kv_heads[1]
  for _, h in ipairs(knots(all.heads)) do
    local g = all.kv_heads[1]
    if h % g ~= 0 or h / g > each then g = all.kv_heads[#all.kv_heads] end
    if h % g ~= 0 then fail("latency: no number of kv_heads of the grid divides %d heads", h) end
    pairs_of[#pairs_of + 1] = { h, g }
    self.attention.ys[#pairs_of] = h + 2 * g
  end
  local bar = progress.new { label = "measuring layers", total = #self.mlp.xs * (#self.mlp.ys + #pairs_of), quiet = quiet, after = 2 }
  local done = 0
  local function layer(w)
    local t = measure.layer(s, w, batch, length)
    done = done + 1
    bar:update(done, string.format("hidden %d", w.hidden))
    if core.C.esp_interrupted() ~= 0 then fail("interrupted") end
    return t
  end
  for i, d in ipairs(self.mlp.xs) do
    self.mlp[i], self.attention[i] = {}, {}
    for j, f in ipairs(self.mlp.ys) do self.mlp[i][j] = layer { hidden = d, ffn = f, heads = 0, kv_heads = 0 } end
    for j, hg in ipairs(pairs_of) do self.attention[i][j] = layer { hidden = d, ffn = 0, heads = hg[1], kv_heads = hg[2] } end
  end
  return self
end

--- Seconds of one layer's MLP, and of its attention, with their norms; 0 for a part that is not there.
function Latency:parts(d, f, h, g)
  return f > 0 and bilinear(self.mlp, d, f) or 0, h > 0 and bilinear(self.attention, d, h + 2 * g) or 0
end

--- Seconds of a cell of the grid: { hidden, ffn, heads, kv_heads, layers }.
function Latency:of(c)
  local mlp, attention = self:parts(c.hidden, c.ffn, c.heads, c.kv_heads)
  return c.layers * (mlp + attention)
end

return M
