--- The training loop that distillation and plain training share: rows in order, loss through the heads, AdamW, checkpoints, resume.
--
-- A step is a function of (parameters, moments, step number): rows follow from the step and the seed, so a run that was killed and goes on from a
-- checkpoint makes the same bits.

local tensor = require "espalier.tensor"
local tape = require "espalier.tape"
local scope = require "espalier.scope"
local core = require "espalier.ffi"
local head = require "espalier.loss.head"
local adamw = require("espalier.optim").adamw
local pass = require "espalier.distill.pass"
local progress = require "espalier.progress"
local budget = require "espalier.budget"
local evaluation = require "espalier.eval"
local quantity = require "espalier.quantity"
local fail = require "espalier.fail"

local C = core.C
local M = {}

-- Rows of step (from 1): the order of each epoch is drawn anew, or is that of the data.
local function rows_of(o, step)
  local count, list = o.batch * o.accumulate, {}
  for i = 1, count do list[i] = o.data:pick((step - 1) * count + i - 1, o.seed, o.order == "sequential") end
  return list
end

-- States (hidden [N,C], and the head as it is packed for this step) of a model at a part of a step's rows.
local function states_of(model, b, packed)
  local h = model:forward(b.ids, { first = b.first })
  return model:states(h:view(h.shape[1] * h.shape[2], h.shape[3]), packed)
end

-- Forward and backward of one part of a step's rows; counts are those of the whole step. Returns the loss's share.
local function micro_step(o, model, b, counts, heads)
  return scope.run(function()
    local teacher = o.teacher and tape.no_grad(scope.run, states_of, o.teacher, b, heads.teacher)
    local states = states_of(model, b, heads.student)
    local loss, exact = head.loss { states = states, target = tensor.view(b.target, { b.target:count() }), valid = b.valid,
      positions = math.max(1, counts.positions), predictions = math.max(1, counts.predictions), loss = o.loss, teacher = teacher,
      into = states.weight.grad }
    local value = exact:item()
    if value == value and math.abs(value) < math.huge then loss:backward() end
    return value
  end)
end

local function one_step(o, model, optimizer, step)
  local rows, parts, counts = rows_of(o, step), {}, { positions = 0, predictions = 0 }
  local size = pass.rows(o.data.seq)
  for from = 1, #rows, size do
    local part = o.data:batch { unpack(rows, from, math.min(from + size - 1, #rows)) }
    parts[#parts + 1] = part
    counts.positions = counts.positions + part.positions
    counts.predictions = counts.predictions + part.predictions
  end
  optimizer:zero_grad()
  local heads = { student = head.pack(model:states(), true), teacher = o.teacher and head.pack_teacher(o.teacher:states()) }
  local loss = 0
  for _, b in ipairs(parts) do loss = loss + micro_step(o, model, b, counts, heads) end
  for _, packed in pairs(heads) do packed:free() end
  local rate = o.schedule.rate(step, o.steps)
  if not (math.abs(loss) < math.huge) then fail("step %d: the loss is %s; the last checkpoint is kept", step, tostring(loss)) end
  local norm = optimizer:step(step, rate)
  if not (norm < math.huge) then fail("step %d: the norm of the gradients is %s; the last checkpoint is kept", step, tostring(norm)) end
  return { step = step, loss = loss, norm = norm, lr = rate, tokens = counts.positions }
end

local function evaluate(o, model, step, store)
  local sums = evaluation.by_document(model, o.held_out, o.batch)
  local nll, interval = evaluation.mean_with_interval(sums.nll, sums.predictions)
  local record = { step = step, nll = nll, interval = interval }
  if store then store:evaluation(record) end
  return record
end

-- In the espalier program the first Ctrl-C is only noted while the loop runs, so that it ends its step and saves before it stops.
local host = package.loaded["espalier.host"]

--- Trains model (its own copy of the student) by the options o; store: the run's folder, or nil. Returns metrics by step and evaluations.
function M.run(o, model, store)
  local optimizer = adamw(model:parameter_names(), model:parameters(), { betas = o.betas, eps = o.eps, decay = o.decay, clip = o.clip })
  local done = store and store:restore(optimizer) or 0
  local metrics, evaluations = store and store.metrics or {}, store and store.evaluations or {}
  local label = o.teacher and "distill" or "train"
  local bar = progress.new { label = label, total = o.steps, done = done, quiet = o.quiet }
  local watch = budget.watch { what = label, steps = o.steps - done, time = o.time, quiet = o.quiet }
  local start, published, saved = C.esp_clock(), C.esp_clock(), C.esp_clock()
  local tokens = 0
  -- What the retraining starts from, so that the result can say what it brought.
  if o.held_out and not evaluations[0] then evaluations[0] = done == 0 and evaluate(o, model, 0, store) or nil end
  if host then host.gentle(true) end
  for step = done + 1, o.steps do
    local ok, record = pcall(scope.run, one_step, o, model, optimizer, step)
    if not ok then
      if host then host.gentle(false) end
      bar:stop()
      if core.C.esp_interrupted() == 0 then error(record, 0) end
      -- Interrupted inside a step: parameters are those of the step before or half new; the last checkpoint counts.
      fail("interrupted in step %d of %d%s", step, o.steps, store and "; the same command goes on from the last checkpoint" or "")
    end
    tokens = tokens + record.tokens
    record.seconds = C.esp_clock() - start
    metrics[step] = record
    if store then store:step(record) end
    bar:update(step, string.format("loss %.4f  %s tok/s", record.loss, quantity.show_count(tokens / record.seconds)))
    local late = C.esp_clock() - saved > 60
    local stop = (host and host.stop_asked()) or C.esp_interrupted() ~= 0 or (o.time and C.esp_clock() - start > o.time)
    if store and (step == o.steps or stop or late or step % o.checkpoint_every == 0) then
      -- An interrupt must not keep the checkpoint from being written.
      if stop then C.esp_interrupt_clear() end
      store:checkpoint(step, optimizer)
      saved = C.esp_clock()
    end
    if stop and step < o.steps then
      bar:stop()
      if host then host.gentle(false) end
      if store then store:publish() end
      fail("stopped at step %d of %d%s", step, o.steps, store and "; the same command goes on from here" or "")
    end
    if o.held_out and o.evaluate_every and step % o.evaluate_every == 0 and step < o.steps then
      evaluations[step] = evaluate(o, model, step, store)
    end
    if store and C.esp_clock() - published > 180 then
      store:publish()
      published = C.esp_clock()
    end
    if step == done + 1 then watch:step(1) end
  end
  if host then host.gentle(false) end
  if o.held_out then evaluations[o.steps] = evaluate(o, model, o.steps, store) end
  for _, p in pairs(model:parameters()) do
    p.requires_grad = nil
    if p.grad then p.grad:free() end
    p.grad = nil
  end
  return metrics, evaluations
end

return M
