--- One row an operation: forward on the core, backward on the core. tape.lua records, ops.lua names them for users.
--
-- forward(inputs, extra, record) -> result, saved tensors, further result. backward(dy, node, need, into) -> one gradient an input (nil: none;
-- true: already added to into[i], the gradient that a leaf has); need[i] tells whether input i wants one.

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"

local c = core.ops
local new, zeros = tensor.new, tensor.zeros

local rows = {}

local function shape_with(x, last)
  local shape = {}
  for i, n in ipairs(x.shape) do shape[i] = n end
  shape[#shape] = last
  return shape
end

local function like(x)
  return new(x.shape)
end

-- ---- layers ----

rows.linear = {
  forward = function(i)
    local y = new(shape_with(i[1], i[2].shape[1] or 0))
    c.linear(y.c, i[1].c, i[2].c)
    return y
  end,
  backward = function(dy, node, need, into)
    local x, w, dx, dw = node.inputs[1], node.inputs[2], nil, nil
    if need[1] then
      dx = like(x)
      c.linear_dx(dx.c, dy.c, w.c)
    end
    if need[2] and into[2] then
      c.linear_dw_acc(into[2].c, dy.c, x.c)
      dw = true
    elseif need[2] then
      dw = like(w)
      c.linear_dw(dw.c, dy.c, x.c)
    end
    return dx, dw
  end,
}

rows.rmsnorm = {
  forward = function(i, extra, record)
    local x, y = i[1], like(i[1])
    local count = x.shape[#x.shape]
    local rstd = record and new { count > 0 and x:count() / count or 0 } or nil
    c.rmsnorm(y.c, rstd and rstd.c, x.c, i[2].c, extra.eps)
    return y, rstd and { rstd = rstd }
  end,
  backward = function(dy, node, need)
    local x, w = node.inputs[1], node.inputs[2]
    local dx, dw = like(x), need[2] and like(w) or nil
    c.rmsnorm_backward(dx.c, dw and dw.c, dy.c, x.c, w.c, node.saved.rstd.c)
    return dx, dw
  end,
}

rows.rope = {
  forward = function(i, extra)
    local y = like(i[1])
    c.rope(y.c, i[1].c, extra.cos.c, extra.sin.c, 0)
    return y
  end,
  backward = function(dy, node)
    local dx = like(dy)
    c.rope(dx.c, dy.c, node.extra.cos.c, node.extra.sin.c, 1)
    return dx
  end,
}

rows.attention = {
  forward = function(i, extra, record)
    local q, o = i[1], like(i[1])
    local lse = record and new { q.shape[1], q.shape[3], q.shape[2] } or nil
    c.attention(o.c, lse and lse.c, q.c, i[2].c, i[3].c, extra.first and extra.first.c, extra.scale)
    -- Backward reads the result; a second header keeps its bytes when the tape frees the first.
    return o, lse and { lse = lse, o = tensor.as_strided(o, o.shape, o:strides(), 0) }
  end,
  backward = function(dy, node)
    local q, k, v, s, e = node.inputs[1], node.inputs[2], node.inputs[3], node.saved, node.extra
    local dq, dk, dv = like(q), like(k), like(v)
    c.attention_backward(dq.c, dk.c, dv.c, dy.c, q.c, k.c, v.c, s.o.c, s.lse.c, e.first and e.first.c, e.scale)
    return dq, dk, dv
  end,
}

rows.silu_gate = {
  forward = function(i)
    local y = like(i[1])
    c.silu_gate(y.c, i[1].c, i[2].c)
    return y
  end,
  backward = function(dy, node)
    local gate, up = node.inputs[1], node.inputs[2]
    local dgate, dup = like(gate), like(up)
    c.silu_gate_backward(dgate.c, dup.c, dy.c, gate.c, up.c)
    return dgate, dup
  end,
}

rows.embedding = {
  forward = function(i, extra)
    local shape = {}
    for d, n in ipairs(extra.ids.shape) do shape[d] = n end
    shape[#shape + 1] = i[1].shape[2] or 0
    local y = new(shape)
    c.embedding(y.c, i[1].c, extra.ids.c)
    return y
  end,
  backward = function(dy, node, _, into)
    local dw = into[1] or zeros(node.inputs[1].shape)
    c.embedding_dw_acc(dw.c, dy.c, node.extra.ids.c)
    return into[1] and true or dw
  end,
}

-- ---- losses by token ----

local function weighted(dy, weight)
  local w = like(weight)
  c.mul(w.c, dy.c, weight.c)
  return w
end

rows.cross_entropy = {
  forward = function(i, extra)
    local loss = new(extra.weight.shape)
    c.cross_entropy(loss.c, nil, i[1].c, extra.target.c, extra.weight.c)
    return loss
  end,
  backward = function(dy, node)
    local s, w = node.inputs[1], weighted(dy, node.extra.weight)
    local ds, loss = like(s), like(w)
    c.cross_entropy(loss.c, ds.c, s.c, node.extra.target.c, w.c)
    w:free()
    loss:free()
    return ds
  end,
}

rows.kl = {
  forward = function(i, extra)
    local loss = new(extra.weight.shape)
    c.kl(loss.c, nil, i[1].c, extra.teacher.c, extra.weight.c, extra.tau)
    return loss
  end,
  backward = function(dy, node)
    local s, w = node.inputs[1], weighted(dy, node.extra.weight)
    local ds, loss = like(s), like(w)
    c.kl(loss.c, ds.c, s.c, node.extra.teacher.c, w.c, node.extra.tau)
    w:free()
    loss:free()
    return ds
  end,
}

rows.log_softmax = {
  forward = function(i, _, record)
    local y = like(i[1])
    c.log_softmax(y.c, i[1].c)
    return y, record and { y = tensor.as_strided(y, y.shape, y:strides(), 0) }
  end,
  backward = function(dy, node)
    local dx = like(dy)
    c.log_softmax_backward(dx.c, dy.c, node.saved.y.c)
    return dx
  end,
}

-- ---- small ones: inputs of binary rows already have one shape (ops.lua repeats them) ----

local function unary(name, backward)
  rows[name] = {
    forward = function(i, _, record)
      local y = like(i[1])
      c[name](y.c, i[1].c)
      return y, record and { y = tensor.as_strided(y, y.shape, y:strides(), 0) }
    end,
    backward = function(dy, node)
      local dx = like(dy)
      backward(dx, dy, node.inputs[1], node.saved.y)
      return dx
    end,
  }
end

unary("exp", function(dx, dy, _, y) c.mul(dx.c, dy.c, y.c) end)
unary("log", function(dx, dy, x) c.div(dx.c, dy.c, x.c) end)
unary("sqrt", function(dx, dy, _, y) c.div(dx.c, dy.c, y.c) c.affine(dx.c, dx.c, 0.5, 0) end)
unary("abs", function(dx, dy, x, y)
  -- sign(x) = x / |x|, and 0 at 0, where the quotient is not a number
  local zero = zeros(y.shape)
  c.div(dx.c, x.c, y.c)
  c.where(dx.c, y.c, dx.c, zero.c)
  c.mul(dx.c, dx.c, dy.c)
  zero:free()
end)

rows.affine = {
  forward = function(i, extra)
    local y = like(i[1])
    c.affine(y.c, i[1].c, extra.alpha, extra.beta)
    return y
  end,
  backward = function(dy, node)
    local dx = like(dy)
    c.affine(dx.c, dy.c, node.extra.alpha, 0)
    return dx
  end,
}

local function binary(name, backward)
  rows[name] = {
    forward = function(i)
      local y = like(i[1])
      c[name](y.c, i[1].c, i[2].c)
      return y
    end,
    backward = backward,
  }
end

local function call(op, a, b)
  local y = like(a)
  c[op](y.c, a.c, b.c)
  return y
end

local function scaled(x, alpha)
  local y = like(x)
  c.affine(y.c, x.c, alpha, 0)
  return y
end

binary("add", function(dy) return dy, dy end)
binary("sub", function(dy, _, need) return dy, need[2] and scaled(dy, -1) or nil end)
binary("mul", function(dy, node, need)
  local a, b = node.inputs[1], node.inputs[2]
  return need[1] and call("mul", dy, b) or nil, need[2] and call("mul", dy, a) or nil
end)
binary("div", function(dy, node, need)
  local a, b = node.inputs[1], node.inputs[2]
  local da = call("div", dy, b)
  if not need[2] then return da end
  -- db = -dy a / b^2
  local db = call("mul", da, a)
  c.div(db.c, db.c, b.c)
  c.affine(db.c, db.c, -1, 0)
  return da, db
end)
binary("pow", function(dy, node, need)
  local a, b, da, db = node.inputs[1], node.inputs[2], nil, nil
  if need[1] then
    -- da = dy b a^(b-1)
    local less_one = like(b)
    c.affine(less_one.c, b.c, 1, -1)
    da = call("pow", a, less_one)
    c.mul(da.c, da.c, b.c)
    c.mul(da.c, da.c, dy.c)
    less_one:free()
  end
  if need[2] then
    -- db = dy a^b log a
    db = like(a)
    c.log(db.c, a.c)
    local power = call("pow", a, b)
    c.mul(db.c, db.c, power.c)
    c.mul(db.c, db.c, dy.c)
    power:free()
  end
  return da, db
end)
-- The larger one gets the gradient; a tie gives it to the first.
binary("maximum", function(dy, node)
  local a, b = node.inputs[1], node.inputs[2]
  local second = call("less", a, b)
  local db = call("mul", dy, second)
  local da = call("sub", dy, db)
  second:free()
  return da, db
end)
binary("less", nil)

rows.where = {
  forward = function(i, extra)
    local y = like(i[1])
    c.where(y.c, extra.cond.c, i[1].c, i[2].c)
    return y
  end,
  backward = function(dy, node)
    local zero, cond = zeros(dy.shape), node.extra.cond
    local da, db = like(dy), like(dy)
    c.where(da.c, cond.c, dy.c, zero.c)
    c.where(db.c, cond.c, zero.c, dy.c)
    zero:free()
    return da, db
  end,
}

-- ---- reductions and picking ----

local function without(shape, axis)
  local rest = {}
  for d, n in ipairs(shape) do if d ~= axis + 1 then rest[#rest + 1] = n end end
  return rest
end

-- g with a dimension of size 1 at the axis, repeated to the shape.
local function along(g, axis, shape)
  local one, strides, all = {}, {}, g:strides()
  for d = 1, #shape do
    one[d] = shape[d]
    strides[d] = d == axis + 1 and 0 or all[d <= axis and d or d - 1]
  end
  return tensor.as_strided(g, one, strides, 0)
end

rows.sum = {
  forward = function(i, extra)
    local y = new(without(i[1].shape, extra.axis), i[1].dtype)
    c.sum(y.c, i[1].c, extra.axis)
    return y
  end,
  backward = function(dy, node)
    local wide = along(dy, node.extra.axis, node.inputs[1].shape)
    local dx = tensor.clone(wide)
    wide:free()
    return dx
  end,
}

rows.norm = {
  forward = function(i, extra, record)
    local y = new(without(i[1].shape, extra.axis))
    c.norm(y.c, i[1].c, extra.axis)
    return y, record and { y = tensor.as_strided(y, y.shape, y:strides(), 0) }
  end,
  backward = function(dy, node)
    local dx = like(node.inputs[1])
    c.norm_backward(dx.c, dy.c, node.inputs[1].c, node.saved.y.c, node.extra.axis)
    return dx
  end,
}

rows.gather = {
  forward = function(i, extra)
    local y = new(extra.index.shape)
    c.gather(y.c, i[1].c, extra.index.c)
    return y
  end,
  backward = function(dy, node)
    local dx = zeros(node.inputs[1].shape)
    c.scatter_acc(dx.c, dy.c, node.extra.index.c)
    return dx
  end,
}

-- ---- views: extra.view(x) makes the same view of any tensor of x's shape; its gradient is written through that view ----

rows.view = {
  forward = function(i, extra)
    return extra.view(i[1])
  end,
  backward = function(dy, node)
    local extra = node.extra
    if extra.back then return extra.back(dy) end
    local dx = zeros(node.inputs[1].shape)
    local part = extra.view(dx)
    c.copy(part.c, dy.c)
    part:free()
    return dx
  end,
}

rows.clone = {
  forward = function(i) return tensor.clone(i[1]) end,
  backward = function(dy) return dy end,
}

for name, row in pairs(rows) do row.name = name end

return rows
