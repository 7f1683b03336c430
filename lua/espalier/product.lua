--- The products of linear layers at a precision: "f32", or "bf16", where operands are rounded to bf16 on their way in and sums are f32. What is
-- stored keeps its dtype: weights stay f32 masters, gradients f32.
--
-- A weight that many calls share is packed once: product.pack(w, { backward = }) stands for w in forward and dx until it is freed.

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"
local fail = require "espalier.fail"

local c = core.ops
local M = { names = { "f32", "bf16" } }

local Packed = {}
Packed.__index = Packed

function Packed:free()
  if self.outputs then self.outputs:free() end
  if self.inputs then self.inputs:free() end
end

-- The tensor of a weight, and the form of it that the product takes (nil: as it stands).
local function parts(w, form)
  if getmetatable(w) == Packed then return w.w.c, w[form] and w[form].c end
  return w.c, nil
end

-- The products of a precision, the dtype of that name.
local function products(name)
  local p, dtype = { name = name }, tensor.dtype_code(name, "product")
  function p.forward(y, x, w)
    local plain, packed = parts(w, "outputs")
    c.linear(y.c, x.c, plain, packed, dtype)
  end
  function p.dx(dx, dy, w)
    local plain, packed = parts(w, "inputs")
    c.linear_dx(dx.c, dy.c, plain, packed, dtype)
  end
  function p.dx_acc(dx, dy, w)
    local plain, packed = parts(w, "inputs")
    c.linear_dx_acc(dx.c, dy.c, plain, packed, dtype)
  end
  function p.dw(dw, dy, x) c.linear_dw(dw.c, dy.c, x.c, dtype) end
  function p.dw_acc(dw, dy, x) c.linear_dw_acc(dw.c, dy.c, x.c, dtype) end
  return p
end

local f32, bf16 = products "f32", products "bf16"

-- In f32 a weight is read as it stands: a packed one would be as large again.
function f32.pack(w) return w end
function f32.unpack() end

-- Numbers (pairs of bf16) that op(B) [k,n] takes in panels of 32 columns.
local function panel_numbers(k, n)
  return math.ceil(n / 32) * 32 * math.ceil(k / 2)
end

--- w [O,I] packed for forward and, where opt.backward, for dx.
function bf16.pack(w, opt)
  local O, I, dtype = w.shape[1], w.shape[2], tensor.dtype_code("bf16", "product.pack")
  local p = setmetatable({ w = w, shape = w.shape }, Packed)
  p.outputs = tensor.new({ panel_numbers(I, O) }, "i32")
  c.pack(p.outputs.c, w.c, 1, dtype)
  if opt and opt.backward then
    p.inputs = tensor.new({ panel_numbers(O, I) }, "i32")
    c.pack(p.inputs.c, w.c, 0, dtype)
  end
  return p
end
function bf16.unpack(p) p:free() end

local known = { f32 = f32, bf16 = bf16 }

--- The dtype in which the layers of a precision keep what only products and element-wise operations read: norms' outputs, queries, keys, values,
-- attention's output, gates. The residual stream and all sums stay f32.
function M.stored(precision)
  return M.of(precision).name
end

--- The products of a precision (nil: f32); an unknown name is an error.
function M.of(precision)
  return known[precision or "f32"] or fail("precision is '%s', want f32 or bf16", tostring(precision))
end

return M
