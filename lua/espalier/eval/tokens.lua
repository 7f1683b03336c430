--- NLL of every next token, and KL from a fuller model at every position, from final hidden states: through the heads in chunks of tokens, so that
-- no [tokens, vocab] tensor is made.

local tensor = require "espalier.tensor"
local tape = require "espalier.tape"
local core = require "espalier.ffi"

local c = core.ops
local M = { chunk = 256 }

-- Logits of rows of hidden states, as model:states gives them, into s.
local function project(s, hidden, states)
  c.linear(s.c, hidden.c, states.weight.c)
  if states.cap then c.softcap(s.c, s.c, states.cap) end
end

--- nll, kl: f32 [N]; kl is nil without `full`. states: { hidden [B,T,C], weight [V,C], cap } (model:states) of the model scored;
-- target: i32 [B,T], -1 where there is
-- nothing to predict (nll 0 there); full: the states of the fuller model: kl = KL(full || model), in nats.
function M.nll_and_kl(states, target, full)
  return tape.no_grad(tape.scope, function()
    local count, V = target:count(), states.weight.shape[1]
    local size = math.min(M.chunk, count)
    local function flat(x) return tensor.view(x, { count, x.shape[#x.shape] }) end
    local s, t = tensor.new { size, V }, full and tensor.new { size, V }
    local a, b, labels, ones = flat(states.hidden), full and flat(full.hidden), tensor.view(target, { count }), tensor.full({ size }, 1)
    local nll, kl = tensor.new { count }, full and tensor.new { count }
    for at = 0, count - 1, size do
      local n = math.min(size, count - at)
      local function first(x) return tensor.narrow(x, 0, 0, n) end
      local function part(x) return tensor.narrow(x, 0, at, n) end
      project(first(s), part(a), states)
      c.cross_entropy(part(nll).c, nil, first(s).c, part(labels).c, first(ones).c)
      if full then
        project(first(t), part(b), full)
        c.kl(part(kl).c, nil, first(s).c, first(t).c, first(ones).c, 1)
      end
    end
    return nll, kl
  end)
end

--- Sums over the documents of rows, appended to lists: by the boundaries of `first` (i32 [B,T], where a token's document begins in its row).
-- lists: { nll, predictions, kl, positions }; kl may be nil. A document that goes on in the next row counts there again.
function M.add_by_document(lists, nll, kl, target, first)
  local B, T = target.shape[1], target.shape[2]
  local p, q, label, from = nll:data(), kl and kl:data(), target:data(), first:data()
  local function close(sum, predictions, kl_sum, positions)
    if predictions == 0 then return end
    local i = #lists.nll + 1
    lists.nll[i], lists.predictions[i], lists.kl[i], lists.positions[i] = sum, predictions, kl_sum, positions
  end
  for b = 0, B - 1 do
    local sum, predictions, kl_sum, positions = 0, 0, 0, 0
    for t = 0, T - 1 do
      local i = b * T + t
      if from[i] == t and t > 0 then
        close(sum, predictions, kl_sum, positions)
        sum, predictions, kl_sum, positions = 0, 0, 0, 0
      end
      if label[i] >= 0 then
        sum, predictions = sum + p[i], predictions + 1
        -- KL where there is a next token: what fills a row's end is nobody's document.
        if q then kl_sum, positions = kl_sum + q[i], positions + 1 end
      end
    end
    close(sum, predictions, kl_sum, positions)
  end
end

return M
