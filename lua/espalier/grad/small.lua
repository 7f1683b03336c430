--- Rows of the small operations that users' losses and metrics are written with, and of views.

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"

local c = core.ops
local new, zeros = tensor.new, tensor.zeros

local rows = {}

local function like(x)
  return new(x.shape)
end

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
rows.add.reads = {}
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
  reads = {},
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

return rows
