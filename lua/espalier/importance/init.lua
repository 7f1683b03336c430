--- Importance: one pass over calibration data collects what every metric needs.

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"
local tape = require "espalier.tape"
local statistics = require "espalier.importance.statistics"
local depth = require "espalier.importance.depth"
local models = require "espalier.models.model"
local shapes = require "espalier.models.shape"
local budget = require "espalier.budget"
local options = require "espalier.options"
local fail = require "espalier.fail"

local c = core.ops
local M = { load = statistics.load }

-- Sums [2,8,n] of a site, made when first seen.
local function sums_for(stats, l, site, n)
  local layer = stats.sums[l + 1]
  layer[site] = layer[site] or tape.outside_scopes(tensor.zeros, { 2, 8, n }, "f64")
  return layer[site]
end

-- Length of each head's part of x [B,T,H*D] at each token: [B,T,H].
local function head_lengths(x, head_dim)
  local B, T, n = x.shape[1], x.shape[2], x.shape[3] / head_dim
  local y = tensor.new { B, T, n }
  c.norm(y.c, tensor.view(x, { B, T, n, head_dim }).c, 3)
  return y
end

local function observer(stats)
  local input, angles = nil, tape.outside_scopes(tensor.zeros, { 2, 3 }, "f64")
  local counted = { norm1 = true, norm2 = true, attention = true, ffn = true }
  return function(site, l, t)
    if site == "in" then
      input = tape.outside_scopes(tensor.clone, t)
    elseif site == "out" then
      angles:fill(0)
      c.angle_stats_acc(angles.c, input.c, t.c, nil, stats.rows)
      local p = angles:data()
      stats.cosine[l + 1] = (stats.cosine[l + 1] or 0) + p[0] + p[3]
      input:free()
    elseif counted[site] then
      c.channel_stats_acc(sums_for(stats, l, site, t.shape[3]).c, t.c, nil, stats.rows)
      if site == "attention" then
        local lengths = head_lengths(t, stats.shape.head_dim)
        c.channel_stats_acc(sums_for(stats, l, "heads", lengths.shape[3]).c, lengths.c, nil, stats.rows)
      end
    end
  end
end

-- Batches of the calibration data: a function that gives ids, first, target, or nil at the end; and the number of batches.
local function batches(data, size)
  local ids = not (data.batch and data.rows) and (models.as_ids(data))
  local rows = ids and ids.shape[1] or data:rows()
  local at = 0
  return function()
    if at >= rows then return nil end
    local n = math.min(size, rows - at)
    at = at + n
    if not ids then
      local b = data:batch(at - n, n)
      return b.ids, b.first, b.target
    end
    local part, lengths = tensor.contiguous(tensor.narrow(ids, 0, at - n, n)), {}
    for i = 1, n do lengths[i] = ids.shape[2] end
    return part, nil, models.next_targets(part, lengths)
  end, math.ceil(rows / size), rows, ids and ids.shape[2] or data.seq
end

local function blocks_of(opt, layers)
  if not opt.depth then return {} end
  local list = type(opt.depth) == "table" and opt.depth or { 1 }
  for _, n in ipairs(list) do
    if type(n) ~= "number" or n < 1 or n >= layers then fail("measure: depth: a block of %s layers of %d", tostring(n), layers) end
  end
  return list
end

-- The weights, what one batch keeps at its widest, for a scan of depth the stream into every layer, and two chunks of logits.
local function refuse_if_too_big(model, tokens_a_row, batch, scans)
  local s, widest = model.shape, 0
  for l = 0, s.layers - 1 do widest = math.max(widest, 3 * shapes.at(s, "ffn", l) + 4 * shapes.at(s, "heads", l) * s.head_dim) end
  local a_row = 4 * tokens_a_row * (widest + 6 * s.hidden + (scans and s.layers * s.hidden or 0))
  local fixed = 4 * shapes.parameters(s) + 8 * 256 * s.vocab
  local fits = math.floor((tonumber(core.C.esp_memory_available()) - fixed) / a_row)
  budget.refuse_if_too_big("measure", fixed + batch * a_row, fits >= 1 and "batch = " .. fits .. " would fit" or "no batch fits beside the model")
end

--- One forward pass over calibration data: esp.importance.measure(model, data [, opt]) -> statistics.
-- data: rows of esp.data (64 rows of 1,024 tokens are the default size of a sample), an i32 tensor [rows, tokens], or a table of rows of one length.
-- opt.depth: true, or a list of block sizes: also NLL and KL with each block of so many layers left out. opt.batch: rows at a time (4);
-- opt.time: stop after that long ("10min"); opt.quiet. The first batch is timed; then how long it will take is said.
function M.measure(model, data, opt)
  opt = options.check("esp.importance.measure", opt, { depth = { "any" }, batch = { "int", default = 4 }, time = { "seconds" },
    quiet = { "bool", default = false } })
  if type(model) ~= "table" or not model.decoder then fail("measure: the first argument is %s, want a model", type(model)) end
  if data == nil then fail("measure: the calibration data is missing") end
  if data.bind then
    data:use(model, "measure")
    if data:rows() > 64 and not data.taken then data = data:sample(64) end
  end
  local stats = statistics.new(model.shape, { model = model.source, data = type(data) == "table" and data.hash or nil })
  stats.model = model
  for l = 1, model.shape.layers do stats.sums[l] = {} end
  local blocks, sums, observe = blocks_of(opt, model.shape.layers), {}, observer(stats)
  local next_batch, count, rows, tokens_a_row = batches(data, opt.batch)
  refuse_if_too_big(model, tokens_a_row, math.min(opt.batch, rows), opt.depth)
  local watch = budget.watch { what = "measure", steps = count, time = opt.time, quiet = opt.quiet }
  for step = 1, count do
    local done = tape.no_grad(tape.scope, function()
      local ids, first, target = next_batch()
      model:forward(ids, { first = first, observe = observe })
      depth.scan(model, ids, { first = first }, target, blocks, sums)
      stats.rows, stats.tokens = stats.rows + ids.shape[1], stats.tokens + ids:count()
      return watch:step(step)
    end)
    if done then break end
  end
  if rows == 0 then fail("measure: the calibration data has no rows") end
  for n, list in pairs(sums) do
    stats.left_out[n] = {}
    for i, sum in ipairs(list) do stats.left_out[n][i] = { nll = sum[1] / sum[2], kl = sum[3] / sum[4] } end
  end
  return stats
end

return M
