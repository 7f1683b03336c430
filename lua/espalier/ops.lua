--- Operations for users: kinds are checked here (the core checks shapes), shapes repeated by the usual rules (sizes 1 stretch), results
-- recorded for backward. Installs methods and operators on tensors.

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"
local tape = require "espalier.tape"
local rows = require "espalier.grad"
local fail = require "espalier.fail"

local ops = {}
local apply, Tensor, is = tape.apply, tensor.Tensor, tensor.is

local function need(op, arg, x)
  if is(x) then return x end
  fail("%s: '%s' is %s, want a tensor", op, arg, x == nil and "missing" or type(x) .. " " .. tostring(x))
end

-- ---- layers ----

--- y = x w^T + b; x [..,I], w [O,I], b [O] or nil -> [..,O]. precision: "f32" (nil), or "bf16" (operands rounded to bf16, sums f32), whose x may be
-- bf16, as y is where dtype says so.
function ops.linear(x, w, b, precision, dtype)
  return (apply(rows.linear, { n = 3, need("linear", "x", x), need("linear", "w", w), b and need("linear", "b", b) },
    { precision = precision, dtype = dtype }))
end

--- x / sqrt(mean(x^2) + eps) * (w + offset) over the last dimension (1910.07467). offset: 0, or 1 where the weight is stored less 1 (Gemma). x may
-- be bf16; dtype: of the result (f32).
function ops.rmsnorm(x, w, eps, offset, dtype)
  return (apply(rows.rmsnorm, { n = 2, need("rmsnorm", "x", x), need("rmsnorm", "w", w) },
    { eps = eps or 1e-5, offset = offset or 0, dtype = dtype }))
end

--- (x - mean) / sqrt(variance + eps) * (w + offset) + b over the last dimension (1607.06450). x may be bf16; dtype: of the result (f32).
function ops.layernorm(x, w, b, eps, offset, dtype)
  return (apply(rows.layernorm, { n = 3, need("layernorm", "x", x), need("layernorm", "w", w), need("layernorm", "b", b) },
    { eps = eps or 1e-5, offset = offset or 0, dtype = dtype }))
end

--- x [B,T,H,D], its first R channels turned by rows 0..T-1 of cos and sin [>=T, R/2], rotate-half order.
function ops.rope(x, cos, sin)
  return (apply(rows.rope, { n = 1, need("rope", "x", x) }, { cos = need("rope", "cos", cos), sin = need("rope", "sin", sin) }))
end

--- Causal attention: q [B,T,H,D], k and v [B,S,G,D], G dividing H; opt.first i32 [B,T]: first key that a query sees; opt.scale: 1/sqrt(D);
-- opt.cap: scores become cap tanh(score / cap).
function ops.attention(q, k, v, opt)
  opt = opt or {}
  need("attention", "q", q)
  return (apply(rows.attention, { n = 3, q, need("attention", "k", k), need("attention", "v", v) },
    { first = opt.first, scale = opt.scale or (q.shape[4] or 1) ^ -0.5, cap = opt.cap or 0 }))
end

local activations = { silu = core.C.ESP_SILU, gelu_tanh = core.C.ESP_GELU_TANH, relu2 = core.C.ESP_RELU2 }

--- The core's number of an activation: "silu" (nil too), "gelu_tanh" or "relu2".
function ops.activation(kind)
  return activations[kind or "silu"] or fail("gate: kind is '%s', want silu, gelu_tanh or relu2", tostring(kind))
end

--- f(gate) * up, or f(gate) where up is nil; kind: f is "silu" (the default), "gelu_tanh" or "relu2".
function ops.gate(gate, up, kind)
  local code = ops.activation(kind)
  return (apply(rows.gate, { n = 2, need("gate", "gate", gate), up and need("gate", "up", up) }, { kind = code }))
end

--- cap tanh(x / cap) (2408.00118).
function ops.softcap(x, cap)
  return (apply(rows.softcap, { n = 1, need("softcap", "x", x) }, { cap = cap }))
end

--- Rows of w [V,C] at ids (i32, any shape) -> [..,C].
function ops.embedding(w, ids)
  return (apply(rows.embedding, { n = 1, need("embedding", "w", w) }, { ids = need("embedding", "ids", ids) }))
end

-- ---- losses ----

local function ones(n)
  return tensor.full({ n }, 1)
end

local function row_count(x)
  local last = x.shape[#x.shape]
  return last and last > 0 and x:count() / last or 0
end

--- weight[n] * cross-entropy of logits s [N,V] at target i32 [N] (-1: left out) -> [N]; weight: 1.
function ops.cross_entropy(s, target, weight)
  need("cross_entropy", "s", s)
  return (apply(rows.cross_entropy, { n = 1, s },
    { target = need("cross_entropy", "target", target), weight = weight or ones(row_count(s)) }))
end

--- weight[n] * KL(softmax(t/tau) || softmax(s/tau)) -> [N]; s, t logits [N,V]; no gradient by t. No tau^2 factor (Minitron, 2407.14679).
function ops.kl(s, t, weight, tau)
  need("kl", "s", s)
  return (apply(rows.kl, { n = 1, s }, { teacher = need("kl", "t", t), weight = weight or ones(row_count(s)), tau = tau or 1 }))
end

--- x - log sum exp(x) over the last dimension.
function ops.log_softmax(x)
  return (apply(rows.log_softmax, { n = 1, need("log_softmax", "x", x) }))
end

--- exp of log_softmax.
function ops.softmax(x)
  return ops.exp(ops.log_softmax(x))
end

-- ---- views ----

local function view_op(x, make, back)
  return (apply(rows.view, { n = 1, x }, { view = make, back = back }))
end

--- The same elements under another shape (one entry may be -1).
function ops.view(x, ...)
  local shape = type((...)) == "table" and (...) or { ... }
  if not tape.records(x) then return tensor.view(x, shape) end
  return view_op(x, function(t) return tensor.view(t, shape) end, function(dy)
    return tensor.view(tensor.contiguous(dy), x.shape)
  end)
end

-- Views whose gradient goes to their part of a tensor of zeros.
for _, name in ipairs { "narrow", "select", "permute", "transpose" } do
  local make = tensor[name]
  ops[name] = function(x, a, b, n)
    if not tape.records(x) then return make(x, a, b, n) end
    return view_op(x, function(t) return make(t, a, b, n) end)
  end
end

-- A gradient summed back to the shape that was repeated.
local function unexpand(dy, shape)
  local extra = #dy.shape - #shape
  for d = #dy.shape, 1, -1 do
    local want = d > extra and shape[d - extra] or nil
    if want == nil or (want == 1 and dy.shape[d] ~= 1) then
      local sum = rows.sum.forward({ n = 1, dy }, { axis = d - 1 })
      local kept = {}
      for i, n in ipairs(dy.shape) do if i ~= d then kept[#kept + 1] = n elseif want then kept[#kept + 1] = 1 end end
      dy = tensor.view(sum, kept)
    end
  end
  return dy
end

function ops.expand(x, shape)
  return view_op(x, function(t) return tensor.expand(t, shape) end, function(dy) return unexpand(dy, x.shape) end)
end

--- x taken at indices (i32 tensor or list, each at most once where a gradient is wanted) along an axis.
function ops.index_select(x, axis, index)
  if not is(index) then index = tensor.of(index, { dtype = "i32" }) end
  local d = tensor.axis_of(x, axis, "index_select")
  return view_op(x, function(t) return tensor.index_select(t, d, index) end, function(dy)
    local dx, p = tensor.zeros(x.shape), index:data()
    for i = 0, index:count() - 1 do
      local to, from = tensor.select(dx, d, p[i]), tensor.select(dy, d, i)
      core.ops.scaled_acc(to.c, from.c, 1)
      to:free()
      from:free()
    end
    return dx
  end)
end

function ops.clone(x)
  return (apply(rows.clone, { n = 1, x }))
end

--- x itself where it is dense, else a dense copy.
function ops.contiguous(x)
  return x:is_dense() and x or ops.clone(x)
end

-- ---- element by element ----

local function same_shape(a, b)
  if #a.shape ~= #b.shape then return false end
  for d = 1, #a.shape do if a.shape[d] ~= b.shape[d] then return false end end
  return true
end

local function common(op, a, b)
  if same_shape(a, b) then return a, b end
  local shape, n = {}, math.max(#a.shape, #b.shape)
  for d = 1, n do
    local x, y = a.shape[d - n + #a.shape] or 1, b.shape[d - n + #b.shape] or 1
    if x ~= y and x ~= 1 and y ~= 1 then
      fail("%s: shapes %s and %s do not stretch to one", op, tensor.shape_text(a), tensor.shape_text(b))
    end
    shape[d] = x == 1 and y or x
  end
  return ops.expand(a, shape), ops.expand(b, shape)
end

local function affine(x, alpha, beta)
  return (apply(rows.affine, { n = 1, x }, { alpha = alpha, beta = beta }))
end
--- alpha x + beta.
function ops.affine(x, alpha, beta)
  return affine(need("affine", "x", x), alpha, beta or 0)
end

local function lift(op, arg, x, other)
  if type(x) == "number" and is(other) then return tensor.full({}, x) end
  return need(op, arg, x)
end

local function binary(name)
  ops[name] = function(a, b)
    a, b = common(name, lift(name, "a", a, b), lift(name, "b", b, a))
    return (apply(rows[name], { n = 2, a, b }))
  end
end
for _, name in ipairs { "add", "sub", "mul", "div", "pow", "maximum", "less" } do binary(name) end

-- Numbers take the short way.
local function with_numbers(name, by_right, by_left)
  local general = ops[name]
  ops[name] = function(a, b)
    if type(b) == "number" and is(a) then return by_right(a, b) end
    if type(a) == "number" and is(b) and by_left then return by_left(b, a) end
    return general(a, b)
  end
end
with_numbers("add", function(x, n) return affine(x, 1, n) end, function(x, n) return affine(x, 1, n) end)
with_numbers("sub", function(x, n) return affine(x, 1, -n) end, function(x, n) return affine(x, -1, n) end)
with_numbers("mul", function(x, n) return affine(x, n, 0) end, function(x, n) return affine(x, n, 0) end)
with_numbers("div", function(x, n) return affine(x, 1 / n, 0) end)

--- a where cond is not 0, else b.
function ops.where(cond, a, b)
  need("where", "cond", cond)
  a, b = common("where", lift("where", "a", a, cond), lift("where", "b", b, cond))
  local wide
  wide, a = common("where", cond, a)
  wide, b = common("where", wide, b)
  return (apply(rows.where, { n = 2, a, b }, { cond = wide }))
end

for _, name in ipairs { "exp", "log", "sqrt", "abs" } do
  ops[name] = function(x) return (apply(rows[name], { n = 1, need(name, "x", x) })) end
end

function ops.neg(x) return affine(need("neg", "x", x), -1, 0) end

-- ---- reductions ----

local function flat(x)
  return ops.view(ops.contiguous(x), -1)
end

--- Sum over an axis, or of everything.
function ops.sum(x, axis)
  need("sum", "x", x)
  if axis == nil then x, axis = flat(x), 0 end
  return (apply(rows.sum, { n = 1, x }, { axis = tensor.axis_of(x, axis, "sum") }))
end

function ops.mean(x, axis)
  need("mean", "x", x)
  local n = axis == nil and x:count() or x.shape[tensor.axis_of(x, axis, "mean") + 1]
  return affine(ops.sum(x, axis), 1 / n, 0)
end

--- p-norm over an axis, or of everything: sum |x| for p = 1, root of the sum of squares for p = 2.
function ops.norm(x, p, axis)
  need("norm", "x", x)
  if p == 1 then return ops.sum(ops.abs(x), axis) end
  if p ~= 2 and p ~= nil then fail("norm: p is %s, want 1 or 2", tostring(p)) end
  if axis == nil then x, axis = flat(x), 0 end
  return (apply(rows.norm, { n = 1, x }, { axis = tensor.axis_of(x, axis, "norm") }))
end

--- x at index i32 [..,K] along the last dimension.
function ops.gather(x, index)
  return (apply(rows.gather, { n = 1, need("gather", "x", x) }, { index = need("gather", "index", index) }))
end

--- The largest along an axis, and their indices.
function ops.max(x, axis)
  need("max", "x", x)
  local d = tensor.axis_of(x, axis or -1, "max")
  local axes, n = {}, #x.shape
  for i = 1, n do if i ~= d + 1 then axes[#axes + 1] = i - 1 end end
  local rest = {}
  for i, a in ipairs(axes) do rest[i] = x.shape[a + 1] end
  axes[n] = d
  local turned = ops.contiguous(ops.permute(x, axes))
  local values, index = tensor.new(rest), tensor.new(rest, "i32")
  core.ops.max(values.c, index.c, turned.c, n - 1)
  if not (tape.recording() and x.requires_grad) then return values, index end
  local shape = {}
  for i, s in ipairs(rest) do shape[i] = s end
  shape[n] = 1
  return ops.view(ops.gather(turned, tensor.view(index, shape)), rest), index
end

--- The k largest of the last dimension, descending, and their indices.
function ops.topk(x, k)
  need("topk", "x", x)
  local shape = {}
  for i, s in ipairs(x.shape) do shape[i] = s end
  shape[#shape] = k
  local values, index = tensor.new(shape), tensor.new(shape, "i32")
  core.ops.topk(values.c, index.c, x.c)
  if not (tape.recording() and x.requires_grad) then return values, index end
  return ops.gather(x, index), index
end

--- Indices that sort the last dimension (stable, NaN last); opt.descending. No gradient.
function ops.argsort(x, opt)
  local index = tensor.new(need("argsort", "x", x).shape, "i32")
  core.ops.argsort(index.c, x.c, opt and opt.descending and 1 or 0)
  return index
end

-- ---- methods and operators ----

for _, name in ipairs { "view", "narrow", "select", "permute", "transpose", "expand", "index_select", "clone", "contiguous", "exp", "log", "sqrt",
  "abs", "sum", "mean", "norm", "max", "gather", "topk", "argsort", "log_softmax", "softmax", "pow", "maximum" } do
  Tensor[name] = ops[name]
end

Tensor.__add, Tensor.__sub, Tensor.__mul, Tensor.__div, Tensor.__pow, Tensor.__unm = ops.add, ops.sub, ops.mul, ops.div, ops.pow, ops.neg

return ops
