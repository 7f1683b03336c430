--- Losses through the LM heads, in chunks of tokens: logits of one chunk exist at a time, forward and backward; no [tokens, vocab] tensor ever.
--
-- The gradients by hidden states and head are made in the forward pass, while a chunk's logits are there, and kept for backward, which scales
-- them by what comes in.

local tensor = require "espalier.tensor"
local tape = require "espalier.tape"
local scope = require "espalier.scope"
local ops = require "espalier.ops"
local core = require "espalier.ffi"
local product = require "espalier.product"
local fail = require "espalier.fail"

local c = core.ops
local M = {}

-- A loss of the user's on one chunk: value added to total, gradient by the logits left in s (in place).
local function token_term(term, s, t, weight, total, ds, first)
  scope.run(function()
    local student = tensor.clone(s):requires_grad_()
    local lt = t and tape.no_grad(ops.log_softmax, t)
    local value = scope.run(function()
      local each = term.token(ops.log_softmax(student), lt, term.opt)
      return (each * weight):sum() * term.scale
    end)
    local v = tensor.scalar(0)
    c.total_acc(v.c, value.c)
    total:fill(total:item() + v:item())
    if not ds then return end
    value:backward()
    if first then ds:copy_from(student.grad) else c.scaled_acc(ds.c, student.grad.c, 1) end
    student.grad:free()
  end)
end

-- Loss terms of one chunk; ds (or nil) receives the gradient by the student's logits s. t: the teacher's logits.
local function chunk_loss(e, part, s, t, ds, loss, total)
  for i, term in ipairs(e.terms) do
    local first = i == 1
    if term.kind == "token" then
      token_term(term, s, t, part(e.valid), total, ds, first)
    else
      local weight = part(term.weight)
      if term.kind == "kl" then
        c[first and "kl" or "kl_acc"](loss.c, ds and ds.c, s.c, t.c, weight.c, term.temperature)
      else
        c[first and "cross_entropy" or "cross_entropy_acc"](loss.c, ds and ds.c, s.c, part(e.target).c, weight.c)
      end
      c.total_acc(total.c, loss.c)
    end
  end
end

local row = { name = "head loss" }

--- Tokens of a chunk and of a group, whole tiles of 12 rows or 32. In bf16 logits of a chunk of both heads stay in the last cache (16 MiB); their
-- gradients are gathered over a group of about 288 tokens and at most 64 MiB, so that the head's gradient is read and written once a group. In f32
-- the head is turned anew for each chunk, which wants long ones: a chunk is a group, of at most 64 MiB.
function M.cut(N, V, precision)
  local bf16 = precision == "bf16"
  local most = bf16 and math.min(192, 2 ^ 24 / (4 * V)) or math.min(288, 2 ^ 26 / (4 * V))
  local tile = most < 96 and 12 or 96
  local chunk = math.max(24, math.floor(most / tile) * tile)
  local groups = bf16 and math.floor(math.min(288, 2 ^ 25 / V) / chunk) or 1
  return math.min(chunk, N), math.min(math.max(1, groups) * chunk, N)
end

--- A buffer of logits, or of gradients by them, [rows, V]. Rows a multiple of 4 KiB apart would meet in the same places of the first cache, and
-- products would copy them.
function M.logits(rows, V, dtype)
  local all = tensor.new({ rows, V + (V % 1024 == 0 and 32 or 0) }, dtype)
  local own = tensor.narrow(all, 1, 0, V)
  all:free()
  return own
end

-- Buffers of logits (s, t), losses and gradients by logits (d). With one fused term the gradient overwrites the logits that it came from; several
-- terms each need the logits, and so does a cap. KL alone, to be learnt from, reads logits in bf16 and writes the bf16 that the products of its
-- gradient would round it to; s then holds the whole group.
local function buffers(e, V, chunk, group, record)
  local fused = #e.terms == 1 and e.terms[1].kind
  local half = record and fused == "kl" and e.precision == "bf16" and not e.cap
  local own = half and not e.teacher_cap and e.teacher_precision == "bf16"
  local b = { s = half and M.logits(group, V, "bf16") or M.logits(chunk, V), loss = tensor.new { chunk },
    t = e.teacher_hidden and M.logits(chunk, V, own and "bf16" or "f32") }
  if record then
    if half or (chunk == group and fused and fused ~= "token" and not e.cap) then b.d = b.s
    else b.d = M.logits(group, V) end
  end
  return b
end

function row.forward(inputs, e, record)
  local h, W = inputs[1], inputs[2]
  local N, C, V = h.shape[1], h.shape[2], W.shape[1]
  local chunk, group = M.cut(N, V, e.precision)
  local total = tensor.zeros({}, "f64")
  local dh = record and h.requires_grad and tensor.new { N, C }
  local dW = record and W.requires_grad and (e.into or tensor.new(W.shape))
  local p, q = product.of(e.precision), product.of(e.teacher_precision)
  local head = e.packed or p.pack(W, { backward = dh })
  local own = e.teacher_hidden and not e.teacher_packed and M.pack_teacher { weight = e.teacher_weight, precision = e.teacher_precision }
  local teacher_head = e.teacher_packed or own or e.teacher_weight
  local b = buffers(e, V, chunk, group, record)
  for start = 0, N - 1, group do
    local count = math.min(group, N - start)
    for at = start, start + count - 1, chunk do
      local n = math.min(chunk, start + count - at)
      local function part(x) return tensor.narrow(x, 0, at, n) end
      local s, t = tensor.narrow(b.s, 0, b.d == b.s and at - start or 0, n), b.t and tensor.narrow(b.t, 0, 0, n)
      p.forward(s, part(h), head)
      if e.cap then c.softcap(s.c, s.c, e.cap) end
      if t then q.forward(t, part(e.teacher_hidden), teacher_head) end
      if t and e.teacher_cap then c.softcap(t.c, t.c, e.teacher_cap) end
      local ds = b.d and tensor.narrow(b.d, 0, at - start, n)
      chunk_loss(e, part, s, t, ds, tensor.narrow(b.loss, 0, 0, n), total)
      if ds and e.cap then c.softcap_backward(ds.c, ds.c, s.c, e.cap) end
    end
    local ds = b.d and tensor.narrow(b.d, 0, 0, count)
    if dh then p.dx(tensor.narrow(dh, 0, start, count), ds, head) end
    if dW then p[start == 0 and not e.into and "dw" or "dw_acc"](dW, ds, tensor.narrow(h, 0, start, count)) end
  end
  if not e.packed then p.unpack(head) end
  if own then own:free() end
  for _, buffer in pairs(b) do buffer:free() end
  local result = tensor.new {}
  result:copy_from(total)
  return result, record and { dh = dh or nil, dW = not e.into and dW or nil }, total
end

function row.backward(dy, node, need, into)
  local by, saved, into_already = dy:item(), node.saved, node.extra.into
  if into_already and by ~= 1 then
    fail("backward: the head's gradient was added already, as that of the loss itself; this loss came in times %g", by)
  end
  local dh, dW = need[1] and saved.dh or nil, need[2] and saved.dW or nil
  if dW and into[2] then
    c.scaled_acc(into[2].c, dW.c, by)
    dW = true
  elseif dW and by ~= 1 then
    c.affine(dW.c, dW.c, by, 0)
  end
  if dh and by ~= 1 then c.affine(dh.c, dh.c, by, 0) end
  -- What goes on to the inputs is theirs now.
  node.saved = { dW = dW == true and saved.dW or nil }
  return dh, dW
end

-- The weight of each token in a fused term: scale / count at the tokens that count, 0 elsewhere.
local function weigh(mask, factor)
  local w = tensor.new(mask.shape)
  c.affine(w.c, mask.c, factor, 0)
  return w
end

--- The head of states packed for both directions, for losses that share it: M.loss{ states = { .., packed = }, teacher = { .., packed = } }; `free`
-- it when its weight changes. nil where the precision packs nothing.
function M.pack(states, backward)
  local packed = product.of(states.precision).pack(states.weight, { backward = backward })
  return packed ~= states.weight and packed or nil
end

--- M.pack for a teacher: nil too where its weight is in bf16. That is turned chunk by chunk in the product, which takes a seventh longer, as a packed
-- one would be as large again.
function M.pack_teacher(states)
  return states.weight.dtype ~= "bf16" and M.pack(states) or nil
end

--- Loss (0-d f32 on the tape) of hidden states [N,C] through a head, and the same in f64. opt: states, of model:states(hidden);
-- target i32 [N] (-1: no prediction);
-- valid f32 [N] (0 at padding); positions, predictions: the counts to average over (kl and own losses over positions, ce over predictions);
-- teacher: the states of the teacher, or nil; loss: of esp.loss. into: a gradient [V,C] to which the head's is added at once, so that none is held;
-- backward is then by 1 alone.
function M.loss(opt)
  local t = opt.teacher
  local e = { terms = {}, target = opt.target, precision = opt.states.precision, teacher_hidden = t and t.hidden, teacher_weight = t and t.weight,
    teacher_precision = t and t.precision, cap = opt.states.cap, teacher_cap = t and t.cap, packed = opt.states.packed,
    teacher_packed = t and t.packed, into = opt.into,
    valid = weigh(opt.valid, 1 / opt.positions) }
  for i, term in ipairs(opt.loss.terms) do
    local own = {}
    for k, v in pairs(term) do own[k] = v end
    -- Rows without a target count nothing in cross-entropy by themselves.
    if term.kind == "kl" then own.weight = weigh(opt.valid, term.scale / opt.positions)
    elseif term.kind == "ce" then own.weight = tensor.full(opt.valid.shape, term.scale / opt.predictions) end
    e.terms[i] = own
  end
  return tape.apply(row, { n = 2, opt.states.hidden, opt.states.weight }, e)
end

return M
