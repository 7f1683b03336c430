--- What the model loses with a block of layers left out: NLL, and KL from the full model, over calibration data.
--
-- The residual stream is kept into each layer, so leaving out layers i..i+n-1 runs the layers behind them only: a scan of L layers costs about
-- half of L passes. KL goes through the head in chunks of tokens; no [tokens, vocab] tensor is made.

local tensor = require "espalier.tensor"
local tape = require "espalier.tape"
local core = require "espalier.ffi"

local c = core.ops
local M = {}

--- Sums over one batch of NLL (next tokens) and KL(full || other) (all positions), given both final hidden states [B,T,C].
-- target: i32 [B,T]; returns nll sum, number of predictions, kl sum, number of positions. full may be nil: no KL.
function M.compare(model, full, other, target)
  return tape.no_grad(tape.scope, function()
    local count, V, C, chunk = target:count(), model.shape.vocab, model.shape.hidden, 256
    local head = model:head()
    local a, b, labels = full and tensor.view(full, { count, C }), tensor.view(other, { count, C }), tensor.view(target, { count })
    local size = math.min(chunk, count)
    local t, s = full and tensor.new { size, V }, tensor.new { size, V }
    local loss, ones = tensor.new { size }, tensor.full({ size }, 1)
    local nll, kl = tensor.zeros({}, "f64"), tensor.zeros({}, "f64")
    for at = 0, count - 1, chunk do
      local n = math.min(chunk, count - at)
      local function part(x) return tensor.narrow(x, 0, 0, n) end
      c.linear(part(s).c, tensor.narrow(b, 0, at, n).c, head.c)
      c.cross_entropy(part(loss).c, nil, part(s).c, tensor.narrow(labels, 0, at, n).c, part(ones).c)
      c.total_acc(nll.c, part(loss).c)
      if full then
        c.linear(part(t).c, tensor.narrow(a, 0, at, n).c, head.c)
        c.kl(part(loss).c, nil, part(s).c, part(t).c, part(ones).c, 1)
        c.total_acc(kl.c, part(loss).c)
      end
    end
    local p, predictions = labels:data(), 0
    for i = 0, count - 1 do if p[i] >= 0 then predictions = predictions + 1 end end
    return nll:item(), predictions, kl:item(), count
  end)
end

--- Adds to sums[n][i+1] = { nll, predictions, kl, positions } for each block of n layers, for one batch.
function M.scan(model, ids, opt, target, blocks, sums)
  tape.no_grad(tape.scope, function()
    local streams = {}
    local full = model:forward(ids, { first = opt.first, observe = function(site, l, t)
      if site == "in" then streams[l] = tape.outside_scopes(tensor.clone, t) end
    end })
    for _, n in ipairs(blocks) do
      sums[n] = sums[n] or {}
      for i = 0, model.shape.layers - n do
        tape.scope(function()
          local other = model:forward(nil, { first = opt.first, from = { layer = i + n, x = streams[i] } })
          local nll, predictions, kl, positions = M.compare(model, full, other, target)
          local sum = sums[n][i + 1] or { 0, 0, 0, 0 }
          sums[n][i + 1] = { sum[1] + nll, sum[2] + predictions, sum[3] + kl, sum[4] + positions }
        end)
      end
    end
    for _, x in pairs(streams) do x:free() end
  end)
end

return M
