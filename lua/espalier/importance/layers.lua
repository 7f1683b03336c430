--- Scores of layers: what a metric sees of the residual stream's angles and of the losses with layers left out.

local tensor = require "espalier.tensor"
local fail = require "espalier.fail"

local M = {}

-- Numbers by start of the block, i from 0, as an f32 tensor.
local function each(n, f)
  local y = tensor.new { n }
  local p = y:data()
  for i = 0, n - 1 do p[i] = f(i) end
  return y
end

-- Both halves of column k of f64 [2, .., 3 or 7]; at: offset of an entry in a half.
local function column(sums, k, at)
  local p, half = sums:data(), sums:count() / 2
  return p[at + k] + p[half + at + k]
end

-- Sums of an angle's column by start: of blocks of layers, or of a part of each layer.
local function angles(v, k)
  local stats, L, n = v.stats, v.stats.shape.layers, v.block
  if v.part ~= "layer" then
    local sums, part = stats.outer.parts, v.part == "attention" and 0 or 1
    return each(L, function(i) return column(sums, k, (i * 2 + part) * 3) end)
  end
  local sums = stats.outer.angles
  return each(L - n + 1, function(i) return column(sums, k, (i * L + i + n - 1) * 3) end)
end

local named = {}

function named.cosine(v) return angles(v, 0) / v.tokens end
function named.angle(v)
  if v.last then return angles(v, 2) / v.rows end
  return angles(v, 1) / v.tokens
end

--- Columns of left_out sums: see depth.lua.
local columns = { nll = { 0, 1 }, kl = { 2, 3 }, mse_hidden = { 4, 3, "hidden" }, mse_logits = { 5, 3, "vocab" }, nmse_logits = { 5, 6 } }

local function left_out(v, name)
  local key = v.part .. "." .. v.block
  local sums = v.stats.left_out[key .. (name == "task" and ".task" or "")]
  if not sums and name ~= "task" and key == "layer.1" then fail("stats: no %s with a layer left out; measure with { depth = true }", name) end
  if not sums then
    fail("stats: no %s with %s left out; measure with { depth = { blocks = { %d }, parts = { \"%s\" }%s } }", name,
      v.part == "layer" and "a block of " .. v.block or "the " .. v.part .. " of a layer", v.block, v.part, name == "task" and ", task = .." or "")
  end
  if name == "task" then
    local p = sums:data()
    return each(sums.shape[1], function(i) return p[i] end)
  end
  local c = columns[name]
  local width = c[3] and v.stats.shape[c[3]] or 1
  return each(sums.shape[2], function(i) return column(sums, c[1], i * 7) / (column(sums, c[2], i * 7) * width) end)
end

--- Scores f32 [layers - block + 1]: entry i is the block of `block` layers from i on (or a part of layer i).
function M.score(stats, metric, opt)
  local v = { stats = stats, rows = stats:total "rows", tokens = stats:total "tokens", block = opt.block, part = opt.part, last = opt.last }
  local L = stats.shape.layers
  if opt.block < 1 or opt.block > L then fail("stats:score: block = %d, want 1 to %d", opt.block, L) end
  if opt.part ~= "layer" and opt.block ~= 1 then fail("stats:score: part = '%s' is of one layer, not of a block of %d", opt.part, opt.block) end
  setmetatable(v, { __index = function(_, name)
    if named[name] then return named[name](v) end
    if columns[name] or name == "task" then return left_out(v, name) end
    fail("metric: there is no statistic '%s' of layers; there are angle, cosine, kl, mse_hidden, mse_logits, nll, nmse_logits, task", tostring(name))
  end })
  return metric.score(v, nil, opt)
end

return M
