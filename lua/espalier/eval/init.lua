--- Scoring a model on held-out text: NLL with an interval over documents.

local tape = require "espalier.tape"
local scope = require "espalier.scope"
local core = require "espalier.ffi"
local tokens = require "espalier.eval.tokens"
local product = require "espalier.product"
local progress = require "espalier.progress"
local head = require "espalier.loss.head"
local options = require "espalier.options"
local fail = require "espalier.fail"

local C = core.C
local M = {}

--- Sums by document of held-out data: { nll, predictions, kl, positions }, lists; and the seconds that the model's own forward passes took.
-- batch: rows at a time. teacher: a model of the same vocabulary, for KL(teacher || model); nil: no KL. after(rows), or nil: called when so many are
-- done.
function M.by_document(model, data, batch, teacher, after)
  data:use(model, "esp.evaluate")
  local lists, seconds = { nll = {}, predictions = {}, kl = {}, positions = {} }, 0
  local packed, teacher_packed = head.pack(model:states()), teacher and head.pack(teacher:states())
  for at = 0, data:rows() - 1, batch do
    tape.no_grad(scope.run, function()
      local b = data:batch(at, math.min(batch, data:rows() - at))
      local start = C.esp_clock()
      local h = model:forward(b.ids, { first = b.first })
      seconds = seconds + C.esp_clock() - start
      local full = teacher and teacher:states(teacher:forward(b.ids, { first = b.first }), teacher_packed)
      local nll, kl = tokens.nll_and_kl(model:states(h, packed), b.target, full)
      tokens.add_by_document(lists, nll, kl, b.target, b.first)
    end)
    if after then after(math.min(at + batch, data:rows())) end
  end
  if packed then packed:free() end
  if teacher_packed then teacher_packed:free() end
  return lists, seconds
end

--- Mean of ratios sums/counts and the half width of its 95 % interval over the entries (delta method).
function M.mean_with_interval(sums, counts)
  local total, n, k = 0, 0, #sums
  for i = 1, k do total, n = total + sums[i], n + counts[i] end
  local mean, spread = total / n, 0
  for i = 1, k do spread = spread + (sums[i] - mean * counts[i]) ^ 2 end
  return mean, k > 1 and 1.96 * math.sqrt(spread * k / (k - 1)) / n or 0
end

--- esp.evaluate{ model, data = held-out data, batch = 8, train = data that was trained on, precision = "f32" or "bf16", quiet } -> { nll, perplexity,
-- interval, predictions, documents }.
-- interval: half width of the 95 % interval over documents. Documents that are in `train` are refused.
function M.evaluate(opt)
  opt = options.check("esp.evaluate", opt, { model = { "model" }, [1] = { "model" }, data = { "table", required = true },
    batch = { "int", default = 8 }, train = { "table" }, precision = { "string", one_of = product.names },
    quiet = { "bool", default = false } })
  local model = opt.model or opt[1] or fail("esp.evaluate: option 'model' is missing")
  if opt.data.role == "train" then fail("esp.evaluate: the data is the training side of a split; score on held_out") end
  if opt.train then require("espalier.data").refuse_overlap(opt.train, opt.data, "esp.evaluate") end
  if opt.precision then model = model:in_precision(opt.precision) end
  opt.data:use(model, "esp.evaluate")
  local bar = progress.new { label = "evaluate", total = opt.data:rows(), quiet = opt.quiet, after = 2 }
  local lists = M.by_document(model, opt.data, opt.batch, nil, function(rows) bar:update(rows, "rows") end)
  local nll, interval = M.mean_with_interval(lists.nll, lists.predictions)
  local predictions = 0
  for _, n in ipairs(lists.predictions) do predictions = predictions + n end
  return { nll = nll, perplexity = math.exp(nll), interval = interval, predictions = predictions, documents = #lists.nll }
end

return M
