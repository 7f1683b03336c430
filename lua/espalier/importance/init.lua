--- Importance: one pass over calibration data collects what every metric needs.

local core = require "espalier.ffi"
local statistics = require "espalier.importance.statistics"
local batches = require "espalier.importance.batches"
local gradients = require "espalier.importance.gradients"
local weights = require "espalier.importance.weights"
local pass = require "espalier.importance.pass"
local asked = require "espalier.importance.asked"
local leave_out = require "espalier.importance.leave_out"
local contribution = require "espalier.importance.contribution"
local gently = require "espalier.importance.gently"
local shapes = require "espalier.models.shape"
local hash_of = require "espalier.models.hash"
local budget = require "espalier.budget"
local product = require "espalier.product"
local options = require "espalier.options"
local fail = require "espalier.fail"

local M = { load = statistics.load, leave_out = leave_out.leave_out, contribution = contribution.contribution }

-- Tokens of a batch where nobody said how many rows: enough that packing the weights for it does not count.
local batch_tokens = 4096

-- Sets the rows of a batch where nobody did, and refuses what does not fit: the weights, what one batch keeps at its widest (all of it where
-- gradients are recorded), the stream into every layer, two chunks of logits.
local function settle_batch(model, source, opt)
  local s, widest, all = model.shape, 0, 0
  for l = 0, s.layers - 1 do
    local own = 4 * shapes.at(s, "ffn", l) + 6 * shapes.at(s, "heads", l) * s.head_dim
    widest, all = math.max(widest, own), all + own + 6 * s.hidden
  end
  local a_row = 4 * source.seq * ((opt.grads and all or widest) + (8 + s.layers) * s.hidden)
  local fixed = 4 * shapes.parameters(s) * (opt.grads and 2 or 1) + 8 * 256 * s.vocab
  local free = tonumber(core.C.esp_memory_available())
  local fits = math.floor((free - fixed) / a_row)
  -- What is free is not known everywhere.
  local most = free > 0 and fits or math.huge
  local batch = opt.batch or math.max(1, math.min(most, math.floor(batch_tokens / math.max(1, source.seq))))
  budget.refuse_if_too_big("measure", fixed + math.min(batch, source.rows) * a_row,
    fits >= 1 and "batch = " .. fits .. " would fit" or "no batch fits beside the model")
  opt.batch = batch
end

local function tell_stop(job, source)
  local rows = job.stats:total "rows"
  local text = rows < source.rows and string.format("measure: stopped after %d of %d rows", rows, source.rows)
    or string.format("measure: stopped in the task; all %d rows are done", rows)
  if job.opt.out then fail("%s; they are kept in %s, and the same call goes on", text, job.opt.out) end
  gently.stopped(text, "with out = \"FILE\" they would be kept")
end

--- One pass over calibration data: esp.importance.measure(model, data [, opt]) -> statistics, from which stats:score, rank, show and esp.prune
-- answer without the model.
-- data: rows of esp.data (64 rows are drawn where no sample was), an i32 tensor [rows, tokens], or a table of rows.
-- grads: true also collects products of activations and gradients (a second pass, backward) for taylor, fisher and their kin. depth: also the
-- losses with layers left out: true (each layer), a list of block sizes, or { blocks = { 1, 2 }, parts = { "layer", "attention", "mlp" },
-- task = function(model) .. end }.
-- metrics: a list of metrics (names or tables) whose own statistics are to be collected. out: a file of the statistics: written when done, every
-- minute and on Ctrl-C; the same call goes on from it, and with more rows of the same data extends it. batch: rows at a time (about 4,096 tokens,
-- fewer where memory is short); time: stop after that long ("10min"); precision of the products (the model's own); quiet. Without out, Ctrl-C at
-- the prompt returns the statistics of the rows that were done.
function M.measure(model, data, opt)
  opt = options.check("esp.importance.measure", opt, { depth = { "any" }, grads = { "bool", default = false }, metrics = { "list" },
    out = { "path" }, batch = { "int" }, time = { "seconds" }, precision = { "string", one_of = product.names },
    quiet = { "bool", default = false } })
  if type(model) ~= "table" or not model.decoder then fail("measure: the first argument is %s, want a model", type(model)) end
  if data == nil then fail("measure: the calibration data is missing") end
  if opt.batch and opt.batch < 1 then fail("measure: batch = %d, want 1 or more rows", opt.batch) end
  data = batches.bind(model, data)
  local source = batches.of(data)
  settle_batch(model, source, opt)
  local job = { model = opt.precision and model:in_precision(opt.precision) or model, opt = opt, depth = asked.depth(opt.depth, model.shape.layers) }
  local facts = { model = hash_of(model), source = model.source, reductions = {}, grads = opt.grads or nil,
    tokenizer = type(data) == "table" and data.tokenizer and data.tokenizer:hash() or nil }
  job.reductions = asked.reductions(opt.metrics, facts)
  local words = { opt.grads and "grads" or "no grads" }
  words[2] = job.model.precision ~= "f32" and job.model.precision or nil
  for _, scan in ipairs(job.depth and job.depth.scans or {}) do words[#words + 1] = scan.key end
  for _, r in ipairs(job.reductions) do words[#words + 1] = r.name end
  facts.asked = table.concat(words, " ")
  job.stats = statistics.new(model.shape, facts)
  job.stats.model = model
  weights.collect(job.stats, model, opt.quiet)
  local unwatch = opt.grads and gradients.watch_weights(model)
  local ok, result = gently.run(function(stop)
    return pass.run(job, source, stop)
  end)
  if unwatch then unwatch() end
  if not ok then error(result, 0) end
  if result then tell_stop(job, source) end
  return job.stats
end

return M
