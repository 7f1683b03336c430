--- Scoring a model on held-out text: NLL with an interval over documents.

local tape = require "espalier.tape"
local options = require "espalier.options"
local fail = require "espalier.fail"

local M = {}

--- Sums of NLL and predictions by row of held-out data: two lists. batch: rows at a time.
function M.by_row(model, data, batch)
  data:bind(model:tok(), model.shape.context)
  local nll, count = {}, {}
  for at = 0, data:rows() - 1, batch do
    tape.scope(function()
      local n = math.min(batch, data:rows() - at)
      local b = data:batch(at, n)
      local loss = model:token_nll(b.ids, { first = b.first, target = b.target })
      local p, target, T = loss:data(), b.target:data(), data.seq
      for r = 0, n - 1 do
        local sum, k = 0, 0
        for i = r * T, (r + 1) * T - 1 do
          if target[i] >= 0 then sum, k = sum + p[i], k + 1 end
        end
        nll[#nll + 1], count[#count + 1] = sum, k
      end
    end)
  end
  return nll, count
end

--- Mean of ratios sums/counts and the half width of its 95 % interval over the entries (delta method).
function M.mean_with_interval(sums, counts)
  local total, n, k = 0, 0, #sums
  for i = 1, k do total, n = total + sums[i], n + counts[i] end
  local mean, spread = total / n, 0
  for i = 1, k do spread = spread + (sums[i] - mean * counts[i]) ^ 2 end
  return mean, k > 1 and 1.96 * math.sqrt(spread * k / (k - 1)) / n or 0
end

--- esp.evaluate{ model, data = held-out data, batch = 8, train = data that was trained on } -> { nll, perplexity, interval, predictions }.
-- interval: half width of the 95 % interval over rows. Documents that are in `train` are refused.
function M.evaluate(opt)
  opt = options.check("esp.evaluate", opt, { model = { "model" }, [1] = { "model" }, data = { "table", required = true },
    batch = { "int", default = 8 }, train = { "table" } })
  local model = opt.model or opt[1] or fail("esp.evaluate: option 'model' is missing")
  if opt.data.role == "train" then fail("esp.evaluate: the data is the training side of a split; score on held_out") end
  if opt.train then require("espalier.data").refuse_overlap(opt.train, opt.data, "esp.evaluate") end
  local sums, counts = M.by_row(model, opt.data, opt.batch)
  local nll, interval = M.mean_with_interval(sums, counts)
  local predictions = 0
  for _, c in ipairs(counts) do predictions = predictions + c end
  return { nll = nll, perplexity = math.exp(nll), interval = interval, predictions = predictions, rows = #sums }
end

return M
