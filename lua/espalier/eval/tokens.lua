--- NLL of every next token, and KL from a fuller model at every position, from final hidden states: through the heads in chunks of tokens, so that
-- no [tokens, vocab] tensor is made.

local tensor = require "espalier.tensor"
local tape = require "espalier.tape"
local scope = require "espalier.scope"
local core = require "espalier.ffi"
local product = require "espalier.product"
local head = require "espalier.loss.head"

local c = core.ops
local M = {}

-- What writes logits of rows of hidden states, as model:states gives them, into a tensor; and what ends it. A head that is packed already is used as
-- it is.
local function projection(states)
  local p = product.of(states.precision)
  local packed = states.packed or p.pack(states.weight)
  return function(s, hidden)
    p.forward(s, hidden, packed)
    if states.cap then c.softcap(s.c, s.c, states.cap) end
  end, function() if not states.packed then p.unpack(packed) end end
end

-- Logits of one chunk after the other: visit(s, t, part), where part(x) is the chunk of an [N,..] tensor.
local function each_chunk(states, full, count, visit)
  local V = states.weight.shape[1]
  local size = head.cut(count, V, states.precision)
  local function flat(x) return tensor.view(x, { count, x.shape[#x.shape] }) end
  local s, t = head.logits(size, V), full and head.logits(size, V)
  local a, b = flat(states.hidden), full and flat(full.hidden)
  local project, done = projection(states)
  local project_full, full_done
  if full then project_full, full_done = projection(full) end
  for at = 0, count - 1, size do
    local n = math.min(size, count - at)
    local function part(x) return tensor.narrow(x, 0, at, n) end
    local own, other = tensor.narrow(s, 0, 0, n), full and tensor.narrow(t, 0, 0, n)
    project(own, part(a))
    if full then project_full(other, part(b)) end
    visit(own, other, part)
  end
  done()
  if full then full_done() end
end

-- What nll_and_kl and compare share; changes: also the lengths of changes of logits.
local function measure(states, target, full, changes)
  return tape.no_grad(scope.run, function()
    local count = target:count()
    local labels, ones = tensor.view(target, { count }), tensor.full({ count }, 1)
    local v = { nll = tensor.new { count }, kl = full and tensor.new { count }, logits = changes and tensor.new { count },
      full_logits = changes and tensor.new { count } }
    each_chunk(states, full, count, function(s, t, part)
      local one = part(ones)
      c.cross_entropy(part(v.nll).c, nil, s.c, part(labels).c, one.c)
      if full then c.kl(part(v.kl).c, nil, s.c, t.c, one.c, 1) end
      if changes then
        c.norm(part(v.full_logits).c, t.c, 1)
        c.sub(s.c, s.c, t.c)
        c.norm(part(v.logits).c, s.c, 1)
      end
    end)
    return v
  end)
end

--- nll, kl: f32 [N]; kl is nil without `full`. states: of model:states(hidden [B,T,C]) of the model scored; target: i32 [B,T], -1 where there is
-- nothing to predict (nll 0 there); full: the states of the fuller model: kl = KL(full || model), in nats.
function M.nll_and_kl(states, target, full)
  local v = measure(states, target, full)
  return v.nll, v.kl
end

--- As nll_and_kl, in a table, and by token the lengths of the change of the logits (`logits`) and of the full ones (`full_logits`).
function M.compare(states, target, full)
  return measure(states, target, full, true)
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
