--- Which part should go: every axis cut to the same number of parameters, before retraining or after a short one, in one table.

local core = require "espalier.ffi"
local evaluation = require "espalier.eval"
local shapes = require "espalier.models.shape"
local cuts = require "espalier.sensitivity.cuts"
local predict = require "espalier.sensitivity.predict"
local text = require "espalier.sensitivity.text"
local gently = require "espalier.importance.gently"
local progress = require "espalier.progress"
local options = require "espalier.options"
local product = require "espalier.product"
local budget = require "espalier.budget"
local fail = require "espalier.fail"

local M = {}
local Table = {}
Table.__index = Table

local function score(row, student, model, data, opt)
  local precision = opt.precision or model.precision or "f32"
  local lists, seconds = evaluation.by_document(student:in_precision(precision), data, opt.batch, model:in_precision(precision))
  row.nll, row.interval = evaluation.mean_with_interval(lists.nll, lists.predictions)
  row.kl, row.kl_interval = evaluation.mean_with_interval(lists.kl, lists.positions)
  row.tokens_per_second = data:rows() * data.seq / seconds
  row.documents = #lists.nll
end

local function short_distillation(row, student, model, train, held_out, opt)
  local run = require("espalier.distill").distill { teacher = model, student = student, data = train, batch = opt.batch, tokens = opt.kd,
    seed = opt.seed, quiet = true }
  local lists = evaluation.by_document(run.model, held_out, opt.batch)
  row.kd_nll, row.kd_interval = evaluation.mean_with_interval(lists.nll, lists.predictions)
end

-- Two models, one batch of activations and a chunk of logits of each.
local function refuse_if_too_big(model, data, batch)
  local s = model.shape
  local widest = 0
  for l = 0, s.layers - 1 do widest = math.max(widest, 3 * shapes.at(s, "ffn", l) + 4 * shapes.at(s, "heads", l) * s.head_dim) end
  local a_row = 4 * data.seq * (widest + 6 * s.hidden)
  local models = 8 * shapes.parameters(s) + 8 * 256 * s.vocab
  local free = tonumber(core.C.esp_memory_available())
  local fits = math.floor((free - models) / a_row)
  budget.refuse_if_too_big("esp.sensitivity", models + batch * a_row,
    fits >= 1 and "batch = " .. fits .. " would fit" or "no batch fits beside the model")
end

local function check_axes(list)
  for _, axis in ipairs(list) do
    local known = axis == "random"
    for _, a in ipairs(cuts.axes) do known = known or a == axis end
    if not known then fail("esp.sensitivity: unknown axis '%s', want one of %s, random", tostring(axis), table.concat(cuts.axes, ", ")) end
  end
end

-- One cut, scored and let go.
local function one_row(candidate, model, stats, train, held_out, opt)
  local request = { keep = candidate.keep, quiet = true }
  for k, v in pairs(candidate.request) do request[k] = v end
  local student, sets = require("espalier.prune").prune(model, candidate.scores, request)
  local row = { axis = candidate.axis, metric = candidate.metric, request = candidate.request, parameters = shapes.parameters(student.shape),
    equal = candidate.equal, predicted = predict.change(stats, candidate.request, sets) }
  score(row, student, model, held_out, opt)
  if opt.kd then short_distillation(row, student, model, train, held_out, opt) end
  for _, t in pairs(student:parameters()) do t:free() end
  return row
end

-- Scores the model and every candidate into out.rows; what is left when the time is up or somebody stops goes into out.left_out.
local function walk(out, list, model, stats, train, held_out, opt)
  local watch = budget.watch { what = "sensitivity", steps = #list + 1, time = opt.time, quiet = opt.quiet }
  local bar = progress.new { label = "sensitivity", total = #list + 1, quiet = opt.quiet, after = 2 }
  local ok, problem = gently.run(function(stop)
    local full = { axis = "nothing", request = {}, parameters = shapes.parameters(model.shape), equal = true }
    score(full, model, model, held_out, opt)
    out.rows[1] = full
    local stopped = watch:step(1) or stop()
    for i, candidate in ipairs(list) do
      if stopped then
        out.left_out[#out.left_out + 1] = candidate.axis .. (candidate.metric and " by " .. candidate.metric or "")
      else
        out.rows[#out.rows + 1] = one_row(candidate, model, stats, train, held_out, opt)
        bar:update(i + 1, candidate.axis)
        stopped = watch:step(i + 1) or stop()
      end
    end
    out.stopped = stop()
  end)
  bar:stop()
  if not ok then error(problem, 0) end
  if out.stopped and #out.left_out > 0 then
    gently.stopped(string.format("sensitivity: stopped after %d of %d cuts", #out.rows - 1, #list), tostring(out))
  end
end

--- Cuts each axis to one parameter count and scores what is left: esp.sensitivity(model, stats, data [, opt]) -> table to print, or to read by
-- rows: { axis, metric, request, parameters, nll, interval, kl, kl_interval, tokens_per_second, equal, predicted = { first, second }, kd_nll,
-- kd_interval }.
-- data: held-out rows, or a split (its held_out is scored, its train retrains). opt.remove: share of all parameters to cut (0.2), rounded to
-- what whole layers can reach; opt.axes: of hidden, ffn, heads, kv_heads, layers, attention and mlp (that part of whole layers), random (all;
-- random adds to each axis the same cut drawn at random); opt.metrics: "all" that the statistics can answer, or a list of names or tables, each
-- asked of every axis that it knows (absent: the default of each axis); opt.kd = "200k": tokens of a distillation after the cut; opt.batch rows
-- (4); opt.time: cap, candidates that are left are named; opt.seed; opt.precision of the products that score. Ctrl-C ends it with the rows
-- that were done.
-- nll, kl: means in nats with 95 % intervals over documents; equal: is the count within 1 % of the model's parameters of the goal? predicted: the
-- change of the loss by Taylor's expansion, where the statistics hold gradients (measure with grads = true).
function M.sensitivity(model, stats, data, opt)
  opt = options.check("esp.sensitivity", opt, { remove = { "percent", default = 0.2 }, axes = { "list" }, metrics = { "list" }, kd = { "tokens" },
    batch = { "int", default = 4 }, time = { "seconds" }, seed = { "int", default = 0 },
    precision = { "string", one_of = product.names }, quiet = { "bool", default = false } })
  if type(model) ~= "table" or not model.decoder then fail("esp.sensitivity: the first argument is %s, want a model", type(model)) end
  if type(stats) ~= "table" or not stats.rank then fail("esp.sensitivity: the second argument is %s, want statistics", type(stats)) end
  if type(data) ~= "table" then fail("esp.sensitivity: the third argument is %s, want data", type(data)) end
  if not (opt.remove > 0 and opt.remove < 1) then fail("esp.sensitivity: remove = %g, want a share between 0 and 1", opt.remove) end
  opt.axes = opt.axes or cuts.default_axes(model.shape)
  check_axes(opt.axes)
  stats:check_model("esp.sensitivity", model)
  local train, held_out = data.train, data.held_out or data
  if opt.kd and not train then fail("esp.sensitivity: kd needs data to train on; give a split of esp.data, whose held_out side is scored") end
  held_out:use(model, "esp.sensitivity")
  refuse_if_too_big(model, held_out, opt.batch)
  local list, goal = cuts.candidates(model, stats, opt)
  local out = setmetatable({ rows = {}, left_out = {}, goal = goal, kd = opt.kd, remove = opt.remove }, Table)
  walk(out, list, model, stats, train, held_out, opt)
  return out
end

function Table:__tostring()
  return text.of(self)
end

return M
