--- Rows of the operations that transformer layers and their losses are made of.

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"
local product = require "espalier.product"

local c = core.ops
local new, zeros = tensor.new, tensor.zeros

local rows = {}

local function shape_with(x, last)
  local shape = {}
  for i, n in ipairs(x.shape) do shape[i] = n end
  shape[#shape] = last
  return shape
end

-- A gradient has the dtype of what it is the gradient of.
local function like(x)
  return new(x.shape, x.dtype)
end

-- ---- layers ----

-- Sum over all rows of dy, added to `into` where that is there.
local function column_sum(dy, n, into)
  local flat = tensor.to(tensor.view(tensor.contiguous(dy), { dy:count() / n, n }), "f32")
  local sum = new { n }
  c.sum(sum.c, flat.c, 0)
  if not into then return sum end
  c.scaled_acc(into.c, sum.c, 1)
  sum:free()
  return true
end

-- Inputs: x, w and, or not, a bias.
rows.linear = {
  forward = function(i, extra)
    local y = new(shape_with(i[1], i[2].shape[1] or 0), extra.dtype)
    local p = product.of(extra.precision)
    p.forward(y, i[1], i[2])
    if i[3] then c.bias(y.c, y.c, i[3].c) end
    return y
  end,
  backward = function(dy, node, need, into)
    local x, w, dx, dw, db = node.inputs[1], node.inputs[2], nil, nil, nil
    local p = product.of(node.extra.precision)
    if need[1] and into[1] then
      p.dx_acc(into[1], dy, w)
      dx = true
    elseif need[1] then
      dx = like(x)
      p.dx(dx, dy, w)
    end
    if need[2] and into[2] then
      p.dw_acc(into[2], dy, x)
      dw = true
    elseif need[2] then
      dw = new(w.shape)
      p.dw(dw, dy, x)
    end
    if need[3] then db = column_sum(dy, w.shape[1], into[3]) end
    return dx, dw, db
  end,
}

rows.rmsnorm = {
  forward = function(i, extra, record)
    local x, y = i[1], new(i[1].shape, extra.dtype)
    local count = x.shape[#x.shape]
    local rstd = record and new { count > 0 and x:count() / count or 0 } or nil
    c.rmsnorm(y.c, rstd and rstd.c, x.c, i[2].c, extra.eps, extra.offset)
    return y, rstd and { rstd = rstd }
  end,
  backward = function(dy, node, need)
    local x, w = node.inputs[1], node.inputs[2]
    local dx, dw = like(x), need[2] and new(w.shape) or nil
    c.rmsnorm_backward(dx.c, dw and dw.c, dy.c, x.c, w.c, node.saved.rstd.c, node.extra.offset)
    return dx, dw
  end,
}

rows.layernorm = {
  forward = function(i, extra, record)
    local x, y = i[1], new(i[1].shape, extra.dtype)
    local count = x.shape[#x.shape]
    local n = count > 0 and x:count() / count or 0
    local mean, rstd = record and new { n } or nil, record and new { n } or nil
    c.layernorm(y.c, mean and mean.c, rstd and rstd.c, x.c, i[2].c, i[3].c, extra.eps, extra.offset)
    return y, rstd and { mean = mean, rstd = rstd }
  end,
  backward = function(dy, node, need)
    local x, w, s = node.inputs[1], node.inputs[2], node.saved
    local both = need[2] or need[3]
    local dx, dw, db = like(x), both and new(w.shape) or nil, both and new(w.shape) or nil
    c.layernorm_backward(dx.c, dw and dw.c, db and db.c, dy.c, x.c, w.c, s.mean.c, s.rstd.c, node.extra.offset)
    return dx, dw, db
  end,
}

rows.rope = {
  reads = {},
  forward = function(i, extra)
    local y = like(i[1])
    c.rope(y.c, i[1].c, extra.cos.c, extra.sin.c, 0)
    return y
  end,
  backward = function(dy, node)
    local dx = like(node.inputs[1])
    c.rope(dx.c, dy.c, node.extra.cos.c, node.extra.sin.c, 1)
    return dx
  end,
}

rows.attention = {
  forward = function(i, extra, record)
    local q, o = i[1], like(i[1])
    local lse = record and new { q.shape[1], q.shape[3], q.shape[2] } or nil
    c.attention(o.c, lse and lse.c, q.c, i[2].c, i[3].c, extra.first and extra.first.c, extra.scale, extra.cap)
    -- Backward reads the result; a second header keeps its bytes when the tape frees the first.
    return o, lse and { lse = lse, o = tensor.as_strided(o, o.shape, o:strides(), 0) }
  end,
  backward = function(dy, node)
    local q, k, v, s, e = node.inputs[1], node.inputs[2], node.inputs[3], node.saved, node.extra
    local dq, dk, dv = like(q), like(k), like(v)
    -- Where several readers' gradients were added up they are f32.
    c.attention_backward(dq.c, dk.c, dv.c, tensor.to(dy, q.dtype).c, q.c, k.c, v.c, s.o.c, s.lse.c, e.first and e.first.c, e.scale, e.cap)
    return dq, dk, dv
  end,
}

-- Inputs: gate and up, or gate alone.
rows.gate = {
  forward = function(i, extra)
    local y = like(i[1])
    c.gate(y.c, i[1].c, i[2] and i[2].c, extra.kind)
    return y
  end,
  backward = function(dy, node)
    local gate, up = node.inputs[1], node.inputs[2]
    local dgate, dup = like(gate), up and like(up)
    c.gate_backward(dgate.c, dup and dup.c, dy.c, gate.c, up and up.c, node.extra.kind)
    return dgate, dup
  end,
}

rows.softcap = {
  forward = function(i, extra, record)
    local y = like(i[1])
    c.softcap(y.c, i[1].c, extra.cap)
    return y, record and { y = tensor.as_strided(y, y.shape, y:strides(), 0) }
  end,
  backward = function(dy, node)
    local dx = like(dy)
    c.softcap_backward(dx.c, dy.c, node.saved.y.c, node.extra.cap)
    return dx
  end,
}

rows.embedding = {
  reads = {},
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

return rows
