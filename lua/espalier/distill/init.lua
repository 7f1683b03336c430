--- Retraining: esp.distill (teacher and student) and esp.train (cross-entropy alone).

local scope = require "espalier.scope"
local file = require "espalier.io.file"
local loop = require "espalier.distill.loop"
local lazy = require "espalier.tensor.lazy"
local losses = require "espalier.loss"
local certify = require "espalier.loss.certify"
local schedules = require "espalier.schedule"
local shapes = require "espalier.models.shape"
local hash = require "espalier.models.hash"
local options = require "espalier.options"
local budget = require "espalier.budget"
local plan = require "espalier.plan"
local export = require "espalier.export"
local product = require "espalier.product"
local fail = require "espalier.fail"

local C = require("espalier.ffi").C
local M = {}
local Run = {}
Run.__index = Run

local spec = {
  data = { "table", required = true }, loss = { "table" }, schedule = { "table" }, batch = { "int", default = 8 },
  accumulate = { "int", default = 1 }, tokens = { "tokens" }, steps = { "int" }, clip = { "number", default = 1 },
  betas = { "list", default = { 0.9, 0.95 } }, eps = { "number", default = 1e-8 }, decay = { "number", default = 0.1 },
  seed = { "int", default = 0 }, order = { "string", default = "shuffled", one_of = { "shuffled", "sequential" } }, out = { "path" },
  held_out = { "table" }, evaluate_every = { "int" }, checkpoint_every = { "int", default = 1000 }, time = { "seconds" },
  quiet = { "bool", default = false }, in_place = { "bool", default = false }, precision = { "string", default = "f32", one_of = product.names },
}

-- What distinguishes one run from another, as texts and numbers.
local function asked(o, student)
  local a = { loss = o.loss.name, schedule = o.schedule.name, student = hash(student), shape = shapes.text(student.shape),
    teacher = o.teacher and hash(o.teacher) or "none", data = o.data:digest(), seq = o.data.seq, rows = o.data:rows(),
    betas = table.concat(o.betas, ","), held_out = o.held_out and o.held_out:digest() or "none" }
  for _, name in ipairs { "batch", "accumulate", "steps", "clip", "eps", "decay", "seed", "order", "precision" } do a[name] = o[name] end
  return a
end

local function take_split(o)
  if o.data.train then
    o.held_out = o.held_out or o.data.held_out
    o.data = o.data.train
  end
  if not o.data.bind then fail("the data is a table without rows; open it with esp.data.open") end
end

-- Bytes of a model's weights in memory: those that are gathered from files when they are needed are not.
local function held(model)
  local bytes = 0
  for _, t in pairs(model:parameters()) do
    if not lazy.is(t) then bytes = bytes + t:count() * tonumber(C.esp_dtype_size(C.esp_tensor_dtype(t.c))) end
  end
  return bytes
end

-- A student that is to be trained where it stands has f32 weights to train that nobody else reads.
local function check_in_place(what, o, student)
  if o.teacher == student then fail("%s: in_place = true, but the student is the teacher, which must not change", what) end
  for name, t in pairs(student:parameters()) do
    if lazy.is(t) or t.dtype ~= "f32" or C.esp_tensor_readonly(t.c) == 1 or not t:is_dense() then
      fail("%s: in_place = true, but '%s' is no f32 tensor of the student's own; without it a copy is trained", what, name)
    end
  end
end

local function prepare(what, o, student)
  take_split(o)
  o.data:use(student, what)
  if o.held_out then
    o.held_out:bind(o.data.tokenizer):use(student, what)
    require("espalier.data").refuse_overlap(o.data, o.held_out, what)
  end
  if o.data.seq > student.shape.context then fail("%s: rows of %d tokens, the student's context is %d", what, o.data.seq, student.shape.context) end
  if o.steps and o.tokens then fail("%s: both steps and tokens are given; name one", what) end
  if not (o.steps or o.tokens) then fail("%s: option 'tokens' (or 'steps') is missing", what) end
  o.steps = o.steps or math.max(1, math.floor(o.tokens / (o.batch * o.accumulate * o.data.seq) + 0.5))
  o.schedule = o.schedule or schedules.cosine { peak = 1e-3, min = 1e-4, warmup = math.min(100, math.floor(o.steps / 10)) }
  local rows = o.batch * o.accumulate
  if o.in_place then check_in_place(what, o, student) end
  local parts = plan.distillation(o.teacher and o.teacher.shape or student.shape, student.shape, { batch = rows, length = o.data.seq,
    precision = o.precision, teacher = o.teacher and held(o.teacher) or 0, given = o.in_place and 0 or held(student) })
  local need = 0
  for _, bytes in pairs(parts) do need = need + bytes end
  local fits = math.floor(rows * (tonumber(C.esp_memory_available()) - (need - parts.rows)) / parts.rows)
  budget.refuse_if_too_big(what, need, fits >= 1 and "batch = " .. fits .. " would fit" or "no batch fits; prune more, or shorten the rows")
end

-- The result of a run that was done before, as the run itself gave it.
local function finished(dir, o, store, student)
  local model = require("espalier.models.huggingface").load(file.join(dir, "model"))
  model.tokenizer = student.tokenizer or o.data.tokenizer
  model.kept_dtype = export.config_dtype(student.config or {})
  return setmetatable({ model = model, out = dir, done_before = true, steps = store.metrics, evaluations = store.evaluations,
    nll = store.done.nll, interval = store.done.interval }, Run)
end

local function run(what, o, student)
  scope.settle()
  prepare(what, o, student)
  certify(o.loss)
  local store
  if o.out then
    store = require("espalier.run.store").open(o.out, asked(o, student))
    if store.done and file.kind(file.join(o.out, "model/config.json")) then
      store:close()
      if not o.quiet then print(o.out .. ": this run is done") end
      return finished(o.out, o, store, student)
    end
  end
  local parent = hash(student)
  local model = o.in_place and student or student:clone()
  if o.teacher then o.teacher = o.teacher:in_precision(o.precision) end
  local ok, metrics, evaluations = pcall(scope.outside, loop.run, o, model:in_precision(o.precision), store)
  if not ok then
    if store then store:close() end
    error(metrics, 0)
  end
  local first, last = evaluations[0], evaluations[o.steps]
  model.lineage[#model.lineage + 1] = { step = what, parent = student.source, parent_hash = parent, steps = o.steps, loss = o.loss.name,
    teacher = o.teacher and hash(o.teacher) or nil, data = o.data:digest(), schedule = o.schedule.name, seed = o.seed, run = o.out,
    tokens = o.steps * o.batch * o.accumulate * o.data.seq, nll_before = first and first.nll, nll = last and last.nll }
  model.tokenizer = model.tokenizer or o.data.tokenizer
  local result = setmetatable({ model = model, out = o.out, steps = metrics, evaluations = evaluations, nll = last and last.nll,
    interval = last and last.interval }, Run)
  if store then
    -- The bits that were trained, whatever the source was kept in.
    model:save(file.join(o.out, "model"), { dtype = "f32", quiet = o.quiet })
    store:finish { nll = last and last.nll, interval = last and last.interval, loss = metrics[o.steps].loss }
    require("espalier.report").run(o.out)
    store:close()
  end
  return result
end

--- Trains a copy of `student` towards `teacher`: esp.distill{ teacher, student, data, .. } -> run; run.model is the trained student, also where the
-- run was resumed or already done; `student` itself changes only where in_place = true, which saves the memory of a copy.
-- data: of esp.data (or its split, whose held_out is then scored); loss (esp.loss.kl()); schedule (cosine from 1e-3); batch rows, accumulate;
-- tokens or steps; clip 1; betas 0.9 0.95; eps 1e-8; decay 0.1 (matrices only); seed; order "shuffled" or "sequential"; out: folder of the run;
-- precision of the products: "f32", or "bf16" (operands rounded to bf16, sums f32; weights, moments and the saved model stay f32);
-- evaluate_every, checkpoint_every steps; time: cap ("10min"), then stopped as by an interrupt.
-- Errors: what cannot fit in memory, held-out documents in the training data, a NaN loss, other options on a
-- run's folder.
function M.distill(opt)
  local own = { teacher = { "model", required = true }, student = { "model", required = true } }
  for k, v in pairs(spec) do own[k] = v end
  local o = options.check("esp.distill", opt, own)
  if o.teacher.shape.vocab ~= o.student.shape.vocab then
    fail("esp.distill: the teacher's vocabulary has %d entries, the student's %d; they must be the same", o.teacher.shape.vocab,
      o.student.shape.vocab)
  end
  o.loss = o.loss or losses.kl()
  return run("esp.distill", o, o.student)
end

--- The same loop with cross-entropy and no teacher: esp.train{ model, data, .. } -> run.
function M.train(opt)
  local own = { model = { "model" }, [1] = { "model" } }
  for k, v in pairs(spec) do own[k] = v end
  local o = options.check("esp.train", opt, own)
  local model = o.model or o[1] or fail("esp.train: option 'model' is missing")
  o.loss = o.loss or losses.ce()
  if o.loss.teacher then fail("esp.train: the loss %s needs a teacher; use esp.distill", o.loss.name) end
  return run("esp.train", o, model)
end

function Run:__tostring()
  local last, best = nil, -1
  for step, m in pairs(self.steps) do if step > best then last, best = m, step end end
  return string.format("run%s: %d steps, loss %.4f%s", self.out and " " .. self.out or "", best, last and last.loss or 0 / 0,
    self.nll and string.format(", held-out NLL %.4f +- %.4f", self.nll, self.interval) or "")
end

return M
