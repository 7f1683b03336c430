--- What the model loses with a block of layers left out: NLL, and KL from the full model, over calibration data.
--
-- The residual stream is kept into each layer, so leaving out layers i..i+n-1 runs the layers behind them only: a scan of L layers costs about
-- half of L passes. KL goes through the head in chunks of tokens; no [tokens, vocab] tensor is made.

local tensor = require "espalier.tensor"
local tape = require "espalier.tape"
local core = require "espalier.ffi"
local tokens = require "espalier.eval.tokens"

local M = {}

local function total(x)
  local sum = tensor.zeros({}, "f64")
  core.ops.total_acc(sum.c, x.c)
  return sum:item()
end

--- Adds to sums[n][i+1] = { nll, predictions, kl, positions } for each block of n layers, for one batch.
function M.scan(model, ids, opt, target, blocks, sums)
  tape.no_grad(tape.scope, function()
    local streams = {}
    local full = model:forward(ids, { first = opt.first, observe = function(site, l, t)
      if site == "in" then streams[l] = tape.outside_scopes(tensor.clone, t) end
    end })
    local p, predictions = target:data(), 0
    for i = 0, target:count() - 1 do if p[i] >= 0 then predictions = predictions + 1 end end
    for _, n in ipairs(blocks) do
      sums[n] = sums[n] or {}
      for i = 0, model.shape.layers - n do
        tape.scope(function()
          local other = model:forward(nil, { first = opt.first, from = { layer = i + n, x = streams[i] } })
          local nll, kl = tokens.nll_and_kl(model:states(other), target, model:states(full))
          local sum = sums[n][i + 1] or { 0, 0, 0, 0 }
          sums[n][i + 1] = { sum[1] + total(nll), sum[2] + predictions, sum[3] + total(kl), sum[4] + target:count() }
        end)
      end
    end
    for _, x in pairs(streams) do x:free() end
  end)
end

return M
