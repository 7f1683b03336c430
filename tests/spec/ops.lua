--- Every operation with a gradient, against its formula in Lua doubles.
local t = ...

local esp = require "espalier"
local tensor = require "espalier.tensor"
local ops = require "espalier.ops"
local rows = require "oprows"

local function op(row) rows.op(t, row) end

-- Shapes that enter each branch: one element, odd, the vector path, its tail.
local plain = { { 1, 1 }, { 3, 5 }, { 2, 1024 }, { 2, 1025 } }
local function ins(...)
  local names, list = { ... }, {}
  for i, shape in ipairs(plain) do
    list[i] = {}
    for _, name in ipairs(names) do list[i][name] = shape end
  end
  return list
end

local function map(fn)
  return function(v)
    local y = {}
    for i, x in ipairs(v.x or v.a) do y[i] = fn(x, v.b and v.b[i]) end
    return y
  end
end

-- ---- element by element ----

local function positive(u, scale) return (u * 0.49 + 0.51) * scale end
local function away(u, scale) return (u < 0 and -0.2 or 0.2) * scale + u * 0.8 * scale end

op { "exp", ins = ins "x", scales = { 1, 8 }, grad = { "x" }, run = function(i) return i.x:exp() end, ref = map(math.exp) }
op { "log", ins = ins "x", domain = positive, grad = { "x" }, run = function(i) return i.x:log() end, ref = map(function(x) return math.log(x) end) }
op { "sqrt", ins = ins "x", domain = positive, grad = { "x" }, run = function(i) return i.x:sqrt() end, ref = map(math.sqrt) }
op { "abs", ins = ins "x", domain = away, grad = { "x" }, run = function(i) return i.x:abs() end, ref = map(math.abs) }
op { "affine", ins = ins "x", grad = { "x" }, run = function(i) return i.x * 3 - 2 end, ref = map(function(x) return 3 * x - 2 end) }
op { "add", ins = ins("a", "b"), grad = { "a", "b" }, run = function(i) return i.a + i.b end, ref = map(function(a, b) return a + b end) }
op { "sub", ins = ins("a", "b"), grad = { "a", "b" }, run = function(i) return i.a - i.b end, ref = map(function(a, b) return a - b end) }
op { "mul", ins = ins("a", "b"), grad = { "a", "b" }, run = function(i) return i.a * i.b end, ref = map(function(a, b) return a * b end) }
op { "div", ins = ins("a", "b"), domain = away, grad = { "a", "b" }, run = function(i) return i.a / i.b end,
  ref = map(function(a, b) return a / b end) }
op { "pow", ins = ins("a", "b"), domain = { a = positive, b = function(u) return u * 2 end }, grad = { "a", "b" },
  run = function(i) return i.a ^ i.b end, ref = map(function(a, b) return a ^ b end) }
op { "maximum", ins = ins("a", "b"), grad = { "a", "b" }, run = function(i) return i.a:maximum(i.b) end, ref = map(math.max) }
op { "less", ins = ins("a", "b"), nan = false, run = function(i) return ops.less(i.a, i.b) end,
  ref = map(function(a, b) return a < b and 1 or 0 end) }
op { "where", ins = ins("a", "b"), grad = { "a", "b" }, nan = false, covers = { "where", "copy" },
  run = function(i)
    local cond = tensor.zeros(i.a.shape)
    for k = 0, cond:count() - 1, 2 do cond:data()[k] = 1 end
    return ops.where(cond, i.a, i.b)
  end,
  ref = function(v)
    local y = {}
    for i = 1, #v.a do y[i] = i % 2 == 1 and v.a[i] or v.b[i] end
    return y
  end }

-- ---- shapes that stretch, views ----

op { "add of [3,1] and [5]", ins = { { a = { 3, 1 }, b = { 5 } } }, covers = {}, grad = { "a", "b" }, run = function(i) return i.a + i.b end,
  ref = function(v)
    local y = {}
    for r = 1, 3 do for c = 1, 5 do y[#y + 1] = v.a[r] + v.b[c] end end
    return y
  end }
op { "mul of a transposed and a narrowed view", ins = { { a = { 4, 3 }, b = { 5, 4 } } }, covers = {}, grad = { "a", "b" }, nan = false,
  run = function(i) return i.a:transpose(0, 1) * i.b:narrow(0, 1, 3) end,
  ref = function(v)
    local y = {}
    for r = 1, 3 do for c = 1, 4 do y[#y + 1] = v.a[(c - 1) * 3 + r] * v.b[r * 4 + c] end end
    return y
  end }
op { "index_select", ins = { { x = { 4, 6 } } }, grad = { "x" }, nan = false, run = function(i) return i.x:index_select(1, { 5, 0, 2 }) end,
  ref = function(v)
    local y = {}
    for r = 0, 3 do for _, c in ipairs { 5, 0, 2 } do y[#y + 1] = v.x[r * 6 + c + 1] end end
    return y
  end }

-- ---- reductions and picking ----

local function by_row(fn)
  return function(v, shapes)
    local x, y = v.x, {}
    local C = shapes.x[#shapes.x]
    for r = 0, #x / C - 1 do
      local row = {}
      for c = 1, C do row[c] = x[r * C + c] end
      local out = fn(row)
      if type(out) == "table" then for _, one in ipairs(out) do y[#y + 1] = one end else y[#y + 1] = out end
    end
    return y
  end
end

local function total(row)
  local s = 0
  for _, x in ipairs(row) do s = s + x end
  return s
end

local function squares(row)
  local s = 0
  for _, x in ipairs(row) do s = s + x * x end
  return s
end

op { "sum", ins = ins "x", grad = { "x" }, run = function(i) return i.x:sum(-1) end, ref = by_row(total) }
op { "sum over the first axis", ins = ins "x", covers = {}, grad = { "x" }, run = function(i) return i.x:sum(0) end,
  ref = function(v, shapes)
    local y, C = {}, shapes.x[2]
    for i, x in ipairs(v.x) do y[(i - 1) % C + 1] = (y[(i - 1) % C + 1] or 0) + x end
    return y
  end }
op { "mean", ins = ins "x", covers = {}, grad = { "x" }, run = function(i) return i.x:mean(-1) end,
  ref = by_row(function(row) return total(row) / #row end) }
op { "norm", ins = ins "x", covers = { "norm", "norm_backward" }, grad = { "x" }, run = function(i) return i.x:norm(2, -1) end,
  ref = by_row(function(row) return math.sqrt(squares(row)) end) }
op { "max", ins = ins "x", grad = { "x" }, run = function(i) return (i.x:max(-1)) end, ref = by_row(function(row)
  local m = row[1]
  for _, x in ipairs(row) do m = math.max(m, x) end
  return m
end) }
op { "topk", ins = { { x = { 3, 5 } }, { x = { 2, 1025 } } }, covers = { "topk", "scatter_acc" }, grad = { "x" }, nan = false,
  run = function(i) return (i.x:topk(3)) end,
  ref = by_row(function(row)
    table.sort(row, function(a, b) return a > b end)
    return { row[1], row[2], row[3] }
  end) }
op { "gather", ins = { { x = { 3, 5 } } }, grad = { "x" }, nan = false,
  run = function(i) return i.x:gather(tensor.of({ { 4, 0 }, { 1, 1 }, { 2, 3 } }, { dtype = "i32" })) end,
  ref = function(v) return { v.x[5], v.x[1], v.x[7], v.x[7], v.x[13], v.x[14] } end }

-- ---- softmax and losses ----

local function log_softmax(row)
  local m, s, y = -math.huge, 0, {}
  for _, x in ipairs(row) do m = math.max(m, x) end
  for _, x in ipairs(row) do s = s + math.exp(x - m) end
  for i, x in ipairs(row) do y[i] = x - m - math.log(s) end
  return y
end

op { "log_softmax", ins = ins "x", covers = { "log_softmax", "log_softmax_backward" }, grad = { "x" }, run = function(i) return i.x:log_softmax() end,
  ref = by_row(log_softmax) }
op { "softmax", ins = ins "x", covers = {}, grad = { "x" }, run = function(i) return i.x:softmax() end, ref = by_row(function(row)
  local y = log_softmax(row)
  for i, x in ipairs(y) do y[i] = math.exp(x) end
  return y
end) }

-- Targets of N rows over V: spread, the second left out.
local function targets(N, V)
  local list = {}
  for n = 1, N do list[n] = n == 2 and -1 or (n * 7) % V end
  return list
end

op { "cross_entropy", ins = ins "s", covers = { "cross_entropy", "cross_entropy_acc" }, grad = { "s" }, nan = false,
  run = function(i, shapes)
    local weight = tensor.of { 0.5, 2, 1.5 }
    return ops.cross_entropy(i.s, tensor.of(targets(shapes.s[1], shapes.s[2]), { dtype = "i32" }), weight:narrow(0, 0, shapes.s[1]))
  end,
  ref = function(v, shapes)
    local y, C = {}, shapes.s[2]
    for n, target in ipairs(targets(shapes.s[1], C)) do
      y[n] = target < 0 and 0 or ({ 0.5, 2, 1.5 })[n] * -log_softmax({ unpack(v.s, (n - 1) * C + 1, n * C) })[target + 1]
    end
    return y
  end }

for _, tau in ipairs { 1, 2.5 } do
  op { "kl at temperature " .. tau, ins = ins("s", "t"), covers = { "kl", "kl_acc" }, grad = { "s" }, scales = { 1, 12 },
    run = function(i, shapes) return ops.kl(i.s, i.t, tensor.full({ shapes.s[1] }, 0.75), tau) end,
    ref = function(v, shapes)
      local y, C = {}, shapes.s[2]
      for n = 1, shapes.s[1] do
        local a, b = {}, {}
        for c = 1, C do a[c], b[c] = v.s[(n - 1) * C + c] / tau, v.t[(n - 1) * C + c] / tau end
        a, b, y[n] = log_softmax(a), log_softmax(b), 0
        for c = 1, C do y[n] = y[n] + 0.75 * math.exp(b[c]) * (b[c] - a[c]) end
      end
      return y
    end }
end

t.test("what cannot be is one sentence", function()
  local a, b = tensor.zeros { 2, 3 }, tensor.zeros { 4 }
  t.fails("add: shapes [2, 3] and [4] do not stretch to one", function() return a + b end)
  t.fails("linear: 'w' is", ops.linear, a, tensor.zeros { 5, 4 })
  t.fails("rmsnorm: 'w' is", ops.rmsnorm, a, b)
  t.fails("linear: 'w' is missing, want a tensor", ops.linear, a)
  t.fails("exp: 'x' is string", ops.exp, "a")
  t.fails("gather: ", ops.gather, a, tensor.of({ { 3 }, { 0 } }, { dtype = "i32" }))
  t.fails("embedding: ", ops.embedding, a, tensor.of({ 2 }, { dtype = "i32" }))
  b:free()
  b:free()
  t.fails("'x' was freed", ops.exp, b)
  t.fails("tensor", tensor.new, { 2 ^ 40, 2 ^ 40 })
  t.fails("i32", ops.exp, tensor.zeros({ 2 }, "i32"))
  t.ok(esp.ffi ~= nil)
end)
