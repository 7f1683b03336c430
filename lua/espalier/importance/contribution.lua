--- What neurons contribute, found by taking them out in rounds (Puzzle's channel contribution, 2411.19146 appendix A, in its iterative form).
--
-- With the neurons P gone the output of an MLP is wrong by r = sum over P of a_j w_j, w_j their columns of down_proj. In each round a neuron counts
-- by the mean length over tokens of r + a_j w_j, what would be wrong if it went too; the least go, and the next round counts again. So what cancels
-- what is gone goes next, and of two that do the same only one goes early. Activations are those of the whole model.

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"
local tape = require "espalier.tape"
local scope = require "espalier.scope"
local batches = require "espalier.importance.batches"
local choose = require "espalier.importance.choose"
local gently = require "espalier.importance.gently"
local shapes = require "espalier.models.shape"
local progress = require "espalier.progress"
local quantity = require "espalier.quantity"
local options = require "espalier.options"
local product = require "espalier.product"
local fail = require "espalier.fail"

local c, f32 = core.ops, product.of "f32"
local M = {}
local Result = {}
Result.__index = Result

-- ---- one layer ----

-- What is kept of layer l: gone f32 [F], 1 where a neuron is out; order, those that are out, first out first; columns f32 [F], lengths of w_j.
local function layer_of(model, l)
  local w = tensor.to(model.decoder.model.layers[l + 1].mlp.down_proj.weight, "f32")
  local F = w.shape[2]
  local sums = tensor.zeros({ 2, F }, "f64")
  c.weight_sums_acc(sums.c, w.c, 0)
  return { w = w, F = F, columns = tensor.to(sums:select(0, 1), "f32"):sqrt(), order = {}, gone = tensor.zeros { F },
    sums = tensor.zeros({ F }, "f64") }
end

local function observe(layer, x, lengths)
  local B, T, F = unpack(x.shape)
  local out, back, r = tensor.new(x.shape), tensor.new { B, T, layer.w.shape[1] }, tensor.new { B, T }
  c.mul(out.c, tensor.to(x, "f32").c, tensor.expand(layer.gone, { B, T, F }).c)
  f32.forward(back, out, layer.w)
  c.norm(r.c, back.c, 2)
  f32.dx(out, back, layer.w)
  c.contribution_acc(layer.sums.c, x.c, out.c, r.c, layer.columns.c, lengths and lengths.c or nil)
end

-- Scores of those that still stand, as a list by neuron.
local function standing(layer)
  local p, gone, list = layer.sums:data(), layer.gone:data(), {}
  for i = 0, layer.F - 1 do list[i + 1] = gone[i] == 0 and p[i] or math.huge end
  return list
end

-- The neurons that still stand, the least missed first.
local function next_out(layer)
  local order, out = choose.order(standing(layer)), {}
  for i = layer.F, 1, -1 do if layer.gone:data()[order[i]] == 0 then out[#out + 1] = order[i] end end
  return out
end

-- Takes out what a round of `rounds` takes out: even shares, the larger first.
local function take_out(layer, round, rounds)
  local left, upto = next_out(layer), math.ceil(layer.F * round / rounds)
  for i = 1, upto - #layer.order do
    layer.order[#layer.order + 1] = left[i]
    layer.gone:data()[left[i]] = 1
  end
end

-- ---- the rounds ----

-- One round over all rows; true where it was stopped, and how many rows were done.
local function one_round(job, stop, tick)
  local source, done = batches.of(job.data, job.opt.batch), 0
  for _, layer in pairs(job.layers) do layer.sums:fill(0) end
  for batch in source.next do
    tape.no_grad(scope.run, function()
      job.model:forward(batch.ids, { first = batch.first, observe = function(site, l, x)
        if site == "ffn" then scope.run(observe, job.layers[l], x, batch.lengths) end
      end })
    end)
    done = done + batch.ids.shape[1]
    tick(batch.ids.shape[1])
    if stop() and done < source.rows then return true, done end
  end
  return false, done
end

-- Scores by layer: the share of the layer's neurons that went before.
local function scores_of(job)
  local scores = {}
  for l, layer in pairs(job.layers) do
    local list, all = {}, { unpack(layer.order) }
    for _, i in ipairs(next_out(layer)) do all[#all + 1] = i end
    for place, i in ipairs(all) do list[i + 1] = (place - 1) / layer.F end
    scores[l + 1] = list
  end
  return scores
end

local function check(model, data, opt)
  opt = options.check("esp.importance.contribution", opt, { rounds = { "int", default = 8 }, batch = { "int", default = 4 },
    precision = { "string", one_of = product.names }, quiet = { "bool", default = false } })
  if type(model) ~= "table" or not model.decoder then fail("contribution: the first argument is %s, want a model", type(model)) end
  if data == nil then fail "contribution: the calibration data is missing" end
  if opt.rounds < 1 then fail("contribution: rounds = %d, want 1 or more", opt.rounds) end
  if opt.batch < 1 then fail("contribution: batch = %d, want 1 or more rows", opt.batch) end
  return opt
end

--- Which neurons an MLP misses least, taken out in rounds: esp.importance.contribution(model, data [, { rounds = 8, .. }]) -> a metric for the axis
-- ffn: stats:rank { ffn = it }, stats:show { axis = "ffn", metric = it }. A neuron's score is the share of its layer that went before it; rounds = 1
-- is the order of the metric "contribution", which needs no pass of its own. Each round is a pass over the data.
-- data: as measure's. batch: rows at a time (4); precision: of the model's products. Ctrl-C ends it with the rounds that were done.
function M.contribution(model, data, opt)
  opt = check(model, data, opt)
  local job = { model = opt.precision and model:in_precision(opt.precision) or model, data = batches.bind(model, data), opt = opt, layers = {} }
  tape.no_grad(scope.outside, function()
    for l = 0, model.shape.layers - 1 do if shapes.at(model.shape, "ffn", l) > 0 then job.layers[l] = layer_of(model, l) end end
  end)
  if not next(job.layers) then fail "contribution: no layer has an MLP" end
  local rows = batches.of(job.data, opt.batch).rows
  local result = setmetatable({ name = "contribution in rounds", axes = { "ffn" }, rounds = 0, asked = opt.rounds, rows = rows }, Result)
  function result.score(_, _, given) return tensor.of(result.scores[given.layer + 1]) end
  local line, done = progress.new { label = "contribution", total = rows * opt.rounds, quiet = opt.quiet, after = 2 }, 0
  local ok, problem = gently.run(function(stop)
    for round = 1, opt.rounds do
      local stopped, seen = one_round(job, stop, function(n)
        done = done + n
        line:update(done, string.format("round %d of %d", round, opt.rounds))
      end)
      -- What a part of the rows says counts only where there is nothing else.
      if stopped and round > 1 then result.stopped = true return end
      result.scores, result.rounds, result.stopped, result.rows = scores_of(job), round, stopped, seen
      for _, layer in pairs(job.layers) do take_out(layer, round, opt.rounds) end
      if stopped or (stop() and round < opt.rounds) then result.stopped = true return end
    end
  end)
  line:stop()
  if not ok then error(tostring(problem), 0) end
  if result.stopped then gently.stopped(string.format("contribution: stopped after %d of %d rounds", result.rounds, opt.rounds), tostring(result)) end
  return result
end

function Result:__tostring()
  return string.format("contribution of neurons, taken out in %d of %d rounds over %s rows", self.rounds, self.asked, quantity.show_exact(self.rows))
end

return M
