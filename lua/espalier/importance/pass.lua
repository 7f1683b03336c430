--- The pass of measure over the rows: a batch at a time into the statistics, from where a file of an earlier call ended; then what only all rows
-- together can give.
--
-- A job is { model, stats, opt (of measure), depth ({ scans, task } or nil), reductions, resumed }.

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"
local tape = require "espalier.tape"
local scope = require "espalier.scope"
local statistics = require "espalier.importance.statistics"
local batches = require "espalier.importance.batches"
local collect = require "espalier.importance.collect"
local gradients = require "espalier.importance.gradients"
local weight_products = require "espalier.importance.weight_products"
local depth = require "espalier.importance.depth"
local file = require "espalier.io.file"
local budget = require "espalier.budget"
local progress = require "espalier.progress"
local quantity = require "espalier.quantity"
local fail = require "espalier.fail"

local M = {}

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
      sums = scope.outside(tensor.zeros, { 2, #scan.candidates, depth.columns }, "f64")
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

-- ---- all of them ----

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
    digest = scope.run(function() return batches.digest(digest, source.read(at, n)) end)
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

-- What the user's task says with each candidate left out, by scan, where it was not asked yet; true where somebody stopped it.
local function run_task(job, stop)
  local left, total = {}, 0
  for _, scan in ipairs(job.depth and job.depth.task and job.depth.scans or {}) do
    if not job.stats.left_out[scan.key .. ".task"] then left[#left + 1], total = scan, total + #scan.candidates end
  end
  local done, bar = 0, progress.new { label = "task", total = total, quiet = job.opt.quiet, after = 2 }
  for _, scan in ipairs(left) do
    local stopped
    local scores = depth.task(job.model, scan.candidates, job.depth.task, nil, function()
      done, stopped = done + 1, stop()
      bar:update(done, "layers left out")
      return stopped
    end)
    if #scores == #scan.candidates then
      job.stats.left_out[scan.key .. ".task"] = scope.outside(tensor.of, scores, { dtype = "f64" })
      job.stats.known_hash = nil
    end
    if stopped and done < total then
      bar:stop()
      return true
    end
  end
  return false, #left > 0
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
  local bar, stopped = progress.new { label = "measure", total = source.rows, done = at, quiet = opt.quiet, after = 2 }, false
  for step = 1, count do
    local n = math.min(opt.batch, source.rows - at)
    scope.run(function()
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
    bar:update(at, quantity.show_count((stats:total "tokens" - before) / (C.esp_clock() - start)) .. " tok/s")
    if (stopped or late) and at < source.rows then break end
    if opt.out and C.esp_clock() - saved > 60 and at < source.rows then
      stats:save(opt.out, { exact = true })
      saved = C.esp_clock()
    end
  end
  job.collector:close()
  if at < source.rows then bar:stop() end
  return stopped and at < source.rows
end

--- Runs a job over the rows of a source (batches.of), statistics into job.stats and where there is an `out` on disk; true where stop() said so
-- before all was done.
function M.run(job, source, stop)
  local stopped, done = walk(job, source, stop)
  -- Of the rows that were done, where it was stopped.
  if job.opt.grads and not job.resumed and not done then weight_products.collect(job.stats, job.model) end
  local asked
  if not stopped then stopped, asked = run_task(job, stop) end
  if job.opt.out and (asked or not done) then job.stats:save(job.opt.out, { exact = stopped }) end
  return stopped
end

return M
