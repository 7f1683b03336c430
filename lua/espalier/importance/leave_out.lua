--- Which layers can go, by running the model without them: one-shot or one after the other.

local tensor = require "espalier.tensor"
local tape = require "espalier.tape"
local scope = require "espalier.scope"
local batches = require "espalier.importance.batches"
local depth = require "espalier.importance.depth"
local show = require "espalier.importance.show"
local gently = require "espalier.importance.gently"
local progress = require "espalier.progress"
local options = require "espalier.options"
local product = require "espalier.product"
local fail = require "espalier.fail"

local M = {}
local Result = {}
Result.__index = Result

-- How bad it is to leave a candidate out, out of its seven sums; and what they are divided by.
local measures = {
  nll = function(s) return s[1] / s[2] end,
  kl = function(s) return s[3] / s[4] end,
  mse_hidden = function(s, shape) return s[5] / s[4] / shape.hidden end,
  mse_logits = function(s, shape) return s[6] / s[4] / shape.vocab end,
  nmse_logits = function(s) return s[6] / s[7] end,
}

-- Residual streams of the model with `out` left out, and the full model's last hidden state.
local function streams_of(model, batch, out)
  local streams = {}
  local function observe(site, l, x) if site == "in" then streams[l] = scope.outside(tensor.clone, x) end end
  local last = model:forward(batch.ids, { first = batch.first, skip = out, observe = observe })
  -- A layer that is out passes its input on.
  for l = model.shape.layers - 1, 0, -1 do streams[l] = streams[l] or streams[l + 1] end
  return streams, next(out) and model:forward(batch.ids, { first = batch.first }) or last
end

local function free(streams)
  for _, x in pairs(streams) do x:free() end
end

-- The task's scores of the candidates, as many as were done: higher is better there, lower here.
local function scan_task(model, opt, list, out, bar, stop)
  local stopped = false
  local scores = depth.task(model, list, opt.task, out, function()
    bar(1)
    stopped = stop()
    return stopped
  end)
  for i, s in ipairs(scores) do scores[i] = -s end
  return { scores = scores, done = #scores, of = #list, whole = #scores == #list, stopped = stopped, unit = "candidates" }
end

-- One scan over the data: the measure of each candidate, over the rows that were done where it was stopped; what a batch had begun does not count.
local function scan(model, data, opt, list, out, bar, stop)
  if opt.metric == "task" then return scan_task(model, opt, list, out, bar, stop) end
  local sums, source, done, stopped = tensor.zeros({ 2, #list, depth.columns }, "f64"), batches.of(data, opt.batch), 0, false
  for batch in source.next do
    local ok, problem = pcall(tape.no_grad, scope.run, function()
      local streams, full = streams_of(model, batch, out)
      local own = tensor.zeros(sums.shape, "f64")
      local fine, why = pcall(depth.scan, model, batch, streams, full, list, own, out, stop)
      free(streams)
      if not fine then error(why, 0) end
      local p, q = sums:data(), own:data()
      for i = 0, sums:count() - 1 do p[i] = p[i] + q[i] end
    end)
    if not ok and problem ~= depth.stopped then error(problem, 0) end
    done = done + (ok and batch.ids.shape[1] or 0)
    stopped = not ok or stop()
    if stopped then break end
    bar(#list * batch.ids.shape[1] / source.rows)
  end
  local scores = {}
  for i, s in ipairs(done > 0 and sums:sum(0):table() or {}) do scores[i] = measures[opt.metric](s, model.shape) end
  return { scores = scores, done = done, of = source.rows, whole = done == source.rows, stopped = stopped, unit = "rows" }
end

-- Candidates that may still go.
local function left(model, opt, out, n)
  local list = {}
  for _, candidate in ipairs(depth.candidates(model.shape.layers, opt.part, n)) do
    local may_go = candidate.first >= opt.protect[1] and candidate.first + n <= model.shape.layers - opt.protect[2]
    for l = candidate.first, candidate.first + n - 1 do may_go = may_go and not out[l] end
    if may_go then list[#list + 1] = candidate end
  end
  return list
end

local function order_of(scores)
  local order = {}
  for i = 1, #scores do order[i] = i end
  table.sort(order, function(a, b) return scores[a] < scores[b] or (scores[a] == scores[b] and a < b) end)
  return order
end

local function take(result, out, candidate, score)
  for l = candidate.first, candidate.first + candidate.n - 1 do
    out[l] = result.part == "layer" and true or result.part
    result.drop[#result.drop + 1] = l
  end
  result.steps[#result.steps + 1] = { first = candidate.first, n = candidate.n, score = score }
end

-- Ends what was stopped: an error where nothing was done yet.
local function tell_stop(result)
  local found = result.scan
  if found.done == 0 then fail "leave_out: stopped before any score was done" end
  local done = found.whole and string.format("%d of %d layers were chosen", #result.drop, result.asked.remove)
    or string.format("the scores are of %d of %d %s", found.done, found.of, found.unit)
  gently.stopped("leave_out: stopped; " .. done, tostring(result))
end

local function check(model, data, opt)
  opt = options.check("esp.importance.leave_out", opt, { remove = { "int", required = true },
    metric = { "string", default = "nll", one_of = { "nll", "kl", "mse_hidden", "mse_logits", "nmse_logits", "task" } },
    part = { "string", default = "layer", one_of = { "layer", "attention", "mlp" } }, contiguous = { "bool", default = false },
    iterative = { "bool", default = false }, protect = { "list", default = { 0, 0 } }, task = { "func" }, batch = { "int", default = 4 },
    precision = { "string", one_of = product.names }, quiet = { "bool", default = false } })
  if type(model) ~= "table" or not model.decoder then fail("leave_out: the first argument is %s, want a model", type(model)) end
  if data == nil and opt.metric ~= "task" then fail("leave_out: the calibration data is missing") end
  if (opt.metric == "task") ~= (opt.task ~= nil) then fail("leave_out: metric = \"task\" and task = function(model) .. end go together") end
  if opt.contiguous and opt.part ~= "layer" then fail("leave_out: contiguous is of whole layers, not of part = '%s'", opt.part) end
  opt.protect = { tonumber(opt.protect[1]) or 0, tonumber(opt.protect[2]) or 0 }
  local most = model.shape.layers - opt.protect[1] - opt.protect[2]
  if opt.part == "layer" then most = math.min(most, model.shape.layers - 1) end
  if opt.remove < 1 or opt.remove > most then fail("leave_out: remove = %d, want 1 to %d", opt.remove, most) end
  return opt
end

--- Leaves layers out and measures what is lost: esp.importance.leave_out(model, data, { remove = 4 [, ..] }) -> result with `drop`, a list
-- for esp.prune (drop, or drop_attention and drop_mlp), `steps` and `scores`; prints as a table.
-- data: as measure's. metric: "nll" (of the model that is left), "kl" (from the full one), "mse_hidden", "mse_logits", "nmse_logits", or "task"
-- with task = function(model) returning a number, higher better, on a model that leaves them out. part: "layer", "attention" or "mlp".
-- contiguous: one block of `remove` layers. iterative: the least missed goes, then the others are measured again without it (2511.16664); else
-- all are measured once. protect = { first, last }: so many layers at the ends stay. batch: rows at a time (4); precision: of the products, the
-- model's unless said. Ctrl-C ends it with what was chosen so far, and the scores of the rows that were done.
function M.leave_out(model, data, opt)
  opt = check(model, data, opt)
  model = opt.precision and model:in_precision(opt.precision) or model
  if data ~= nil then data = batches.bind(model, data) end
  local result = setmetatable({ metric = opt.metric, part = opt.part, drop = {}, steps = {}, asked = opt, layers = model.shape.layers }, Result)
  local out, n = {}, opt.contiguous and opt.remove or 1
  local rounds = opt.iterative and not opt.contiguous and opt.remove or 1
  local total, done = 0, 0
  for r = 1, rounds do total = total + math.max(1, model.shape.layers - (opt.contiguous and n - 1 or r - 1)) end
  local line = progress.new { label = "leave out", total = total, quiet = opt.quiet, after = 2 }
  local function bar(more)
    done = done + more
    line:update(done, string.format("%d of %d chosen", #result.steps, rounds))
  end
  local ok, problem = gently.run(function(stop)
    for _ = 1, rounds do
      local list = left(model, opt, out, n)
      local found = scan(model, data, opt, list, out, bar, stop)
      if #result.steps == 0 then result.scores, result.candidates, result.scan = found.scores, list, found end
      -- Some of the rows may choose, some of the candidates may not; nor may a later round's part of the rows, beside rounds of all.
      if found.whole or (rounds == 1 and found.unit == "rows" and found.done > 0) then
        local order = order_of(found.scores)
        for i = 1, opt.contiguous and 1 or opt.remove / rounds do take(result, out, list[order[i]], found.scores[order[i]]) end
      end
      if found.stopped and not (found.whole and #result.drop == opt.remove) then
        result.stopped = true
        return
      end
    end
  end)
  line:stop()
  if not ok then error(tostring(problem), 0) end
  table.sort(result.drop)
  if result.stopped then tell_stop(result) end
  return result
end

function Result:__tostring()
  local what = self.part == "layer" and "" or "the " .. self.part .. " of "
  local labels, values = {}, {}
  for i in ipairs(self.scores) do
    local candidate = self.candidates[i]
    labels[i] = candidate.n > 1 and string.format("%d..%d", candidate.first, candidate.first + candidate.n - 1) or tostring(candidate.first)
    values[i] = self.metric == "task" and -self.scores[i] or self.scores[i]
  end
  local part = self.scan.whole and "" or string.format(" (%d of %d %s)", self.scan.done, self.scan.of, self.scan.unit)
  local lines = { string.format("%s with %slayer left out%s", self.metric, what, part), show.bars(labels, values) }
  for i, step in ipairs(self.steps) do
    if self.asked.iterative then
      lines[#lines + 1] = string.format("step %d: %slayer %d goes, %s %.6g", i, what, step.first, self.metric, step.score)
    end
  end
  lines[#lines + 1] = "drop: " .. (#self.drop > 0 and table.concat(self.drop, ", ") or "nothing yet") .. (self.stopped and " (stopped early)" or "")
  return table.concat(lines, "\n")
end

return M
