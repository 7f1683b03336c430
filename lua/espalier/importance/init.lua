--- Importance: one pass over calibration data collects what every metric needs.

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"
local tape = require "espalier.tape"
local statistics = require "espalier.importance.statistics"
local batches = require "espalier.importance.batches"
local collect = require "espalier.importance.collect"
local gradients = require "espalier.importance.gradients"
local weights = require "espalier.importance.weights"
local weight_products = require "espalier.importance.weight_products"
local depth = require "espalier.importance.depth"
local asked = require "espalier.importance.asked"
local gently = require "espalier.importance.gently"
local shapes = require "espalier.models.shape"
local hash_of = require "espalier.models.hash"
local file = require "espalier.io.file"
local budget = require "espalier.budget"
local progress = require "espalier.progress"
local quantity = require "espalier.quantity"
local product = require "espalier.product"
local options = require "espalier.options"
local fail = require "espalier.fail"

local M = { load = statistics.load }

--- Which layers can go, by running the model without them; see leave_out.lua.
function M.leave_out(model, data, opt)
  return require("espalier.importance.leave_out").leave_out(model, data, opt)
end

-- The weights, what one batch keeps at its widest (all of it where gradients are recorded), the stream into every layer, two chunks of logits.
local function refuse_if_too_big(model, source, opt)
  local s, widest, all = model.shape, 0, 0
  for l = 0, s.layers - 1 do
    local own = 4 * shapes.at(s, "ffn", l) + 6 * shapes.at(s, "heads", l) * s.head_dim
    widest, all = math.max(widest, own), all + own + 6 * s.hidden
  end
  local a_row = 4 * source.seq * ((opt.grads and all or widest) + (8 + s.layers) * s.hidden)
  local fixed = 4 * shapes.parameters(s) * (opt.grads and 2 or 1) + 8 * 256 * s.vocab
  local fits = math.floor((tonumber(core.C.esp_memory_available()) - fixed) / a_row)
  budget.refuse_if_too_big("measure", fixed + math.min(opt.batch, source.rows) * a_row,
    fits >= 1 and "batch = " .. fits .. " would fit" or "no batch fits beside the model")
end

-- ---- one batch ----

local function add_counts(stats, batch)
  local target, T = batch.target:data(), batch.ids.shape[2]
  for b, n in ipairs(batch.counts) do
    local half = stats.counts[(batch.row + b - 1) % 2 + 1]
    if n > 0 then half.rows, half.tokens = half.rows + 1, half.tokens + n end
    for t = (b - 1) * T, (b - 1) * T + n - 1 do if target[t] >= 0 then half.predictions = half.predictions + 1 end end
  end
end

local function one_batch(job, batch)
  local model, stats, collector = job.model, job.stats, job.collector
  local forward = { first = batch.first, observe = collector:observer(batch) }
  local hidden
  if job.opt.grads then hidden = model:forward(batch.ids, forward)
  else hidden = tape.no_grad(model.forward, model, batch.ids, forward) end
  collector:angles()
  for _, scan in ipairs(job.depth and job.depth.scans or {}) do
    local sums = stats.left_out[scan.key]
    if not sums then
      sums = tape.outside_scopes(tensor.zeros, { 2, #scan.candidates, depth.columns }, "f64")
      stats.left_out[scan.key] = sums
    end
    depth.scan(model, batch, collector.streams, hidden, scan.candidates, sums)
  end
  if job.opt.grads then
    gradients.backward(model, hidden, batch)
    collector:products()
  end
  add_counts(stats, batch)
end

-- ---- the pass ----

-- Statistics of the same question in opt.out whose rows are the first of this data: they are gone on from.
local function go_on(job, source)
  local out, stats = job.opt.out, job.stats
  if not out or not file.kind(out) then return 0, "" end
  local old = statistics.load(out)
  for _, what in ipairs { "model", "tokenizer", "asked" } do
    if old.facts[what] ~= stats.facts[what] then
      fail("measure: %s holds statistics of another %s (%s, here %s); name another file or remove it", out, what == "asked" and "question" or what,
        tostring(old.facts[what]), tostring(stats.facts[what]))
    end
  end
  local known = old.facts.data
  if #known ~= 1 or known[1].rows > source.rows then
    fail("measure: %s holds %d rows of other data, this has %d", out, old:total "rows", source.rows)
  end
  local digest, at = "", 0
  while at < known[1].rows do
    local n = math.min(64, known[1].rows - at)
    digest = tape.scope(function() return batches.digest(digest, source.read(at, n)) end)
    at = at + n
  end
  if digest ~= known[1].digest then fail("measure: the first %d rows of %s are of other data; name another file or remove it", at, out) end
  old.model = stats.model
  job.stats = old
  if at > 0 and at < source.rows then
    job.resumed = true
    old:forget_wholes()
    if not job.opt.quiet then print(string.format("measure: %s has %d of %d rows; it goes on from there", out, at, source.rows)) end
  end
  return at, digest
end

-- What the user's task says with each candidate left out, by scan.
local function run_task(job)
  local total, start = 0, core.C.esp_clock()
  for _, scan in ipairs(job.depth.scans) do total = total + #scan.candidates end
  local done, bar = 0, progress.new { label = "task", total = total, quiet = job.opt.quiet }
  for _, scan in ipairs(job.depth.scans) do
    local scores = depth.task(job.model, scan.candidates, job.depth.task, nil, function()
      done = done + 1
      if core.C.esp_clock() - start > 2 then bar:update(done, "layers left out") end
    end)
    job.stats.left_out[scan.key .. ".task"] = tape.outside_scopes(tensor.of, scores, { dtype = "f64" })
  end
end

local function finish(job)
  local stats = job.stats
  if job.opt.grads and not job.resumed then weight_products.collect(stats, job.model) end
  if job.depth and job.depth.task then run_task(job) end
  if job.opt.out then stats:save(job.opt.out) end
end

-- Walks through the data; true where somebody stopped it.
local function walk(job, source, stop)
  local opt, C = job.opt, core.C
  local at, digest = go_on(job, source)
  local stats = job.stats
  if at == source.rows then return false, true end
  job.collector = collect.new(stats, job.model, { grads = opt.grads, reductions = job.reductions })
  local count, start, saved = math.ceil((source.rows - at) / opt.batch), C.esp_clock(), C.esp_clock()
  local before = stats:total "tokens"
  local watch = budget.watch { what = "measure", steps = count, time = opt.time, quiet = opt.quiet }
  local bar, stopped = progress.new { label = "measure", total = source.rows, done = at, quiet = opt.quiet }, false
  for step = 1, count do
    local n = math.min(opt.batch, source.rows - at)
    tape.scope(function()
      local batch = source.read(at, n)
      local ok, problem = pcall(one_batch, job, batch)
      job.collector:done()
      if not ok then error(problem, 0) end
      digest = batches.digest(digest, batch)
    end)
    at = at + n
    stats.facts.data = { { digest = digest, rows = at } }
    stopped = stop()
    local late = watch:step(step)
    if C.esp_clock() - start > 2 then
      bar:update(at, quantity.show_count((stats:total "tokens" - before) / (C.esp_clock() - start)) .. " tok/s")
    end
    if (stopped or late) and at < source.rows then break end
    if opt.out and C.esp_clock() - saved > 60 and at < source.rows then
      stats:save(opt.out)
      saved = C.esp_clock()
    end
  end
  if at < source.rows then bar:stop() end
  return stopped and at < source.rows
end

local function tell_stop(job, source)
  local text = string.format("measure: stopped after %d of %d rows", job.stats:total "rows", source.rows)
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
-- minute and on Ctrl-C; the same call goes on from it, and with more rows of the same data extends it. batch: rows at a time (4); time: stop
-- after that long ("10min"); precision ("f32") of the products; quiet. Without out, Ctrl-C at the prompt returns the statistics of the rows that
-- were done.
function M.measure(model, data, opt)
  opt = options.check("esp.importance.measure", opt, { depth = { "any" }, grads = { "bool", default = false }, metrics = { "list" },
    out = { "path" }, batch = { "int", default = 4 }, time = { "seconds" }, precision = { "string", default = "f32", one_of = product.names },
    quiet = { "bool", default = false } })
  if type(model) ~= "table" or not model.decoder then fail("measure: the first argument is %s, want a model", type(model)) end
  if data == nil then fail("measure: the calibration data is missing") end
  if opt.batch < 1 then fail("measure: batch = %d, want 1 or more rows", opt.batch) end
  data = batches.bind(model, data)
  local source = batches.of(data, opt.batch)
  refuse_if_too_big(model, source, opt)
  local job = { model = model:in_precision(opt.precision), opt = opt, depth = asked.depth(opt.depth, model.shape.layers) }
  local facts = { model = hash_of(model), source = model.source, reductions = {}, grads = opt.grads or nil,
    tokenizer = type(data) == "table" and data.tokenizer and data.tokenizer:hash() or nil }
  job.reductions = asked.reductions(opt.metrics, facts)
  local words = { opt.grads and "grads" or "no grads" }
  if opt.precision ~= "f32" then words[2] = opt.precision end
  for _, scan in ipairs(job.depth and job.depth.scans or {}) do words[#words + 1] = scan.key end
  for _, r in ipairs(job.reductions) do words[#words + 1] = r.name end
  facts.asked = table.concat(words, " ")
  job.stats = statistics.new(model.shape, facts)
  job.stats.model = model
  weights.collect(job.stats, model)
  local unwatch = opt.grads and gradients.watch_weights(model)
  local ok, result = gently.run(function(stop)
    local stopped, done_before = walk(job, source, stop)
    if not done_before then finish(job) end
    return stopped
  end)
  if unwatch then unwatch() end
  if not ok then error(result, 0) end
  if result then tell_stop(job, source) end
  return job.stats
end

return M
