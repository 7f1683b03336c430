--- Views and copies of tensors: the same bytes under another shape, or the same numbers in bytes of their own.

local core = require "espalier.ffi"
local tensor = require "espalier.tensor.base"
local fail = require "espalier.fail"

local C, ops = core.C, core.ops
local steps, room, view_of = tensor.steps, tensor.room, tensor.view_of
local M = {}

local function axis_of(t, axis, what)
  local n = #t.shape
  local d = axis
  if type(d) == "number" and d < 0 then d = n + d end
  if type(d) ~= "number" or d ~= math.floor(d) or d < 0 or d >= n then
    fail("%s: axis %s of a tensor %s, want %d to %d", what, tostring(axis), tensor.shape_text(t), -n, n - 1)
  end
  return d
end
M.axis_of = axis_of

--- Any view: shape and strides as lists, offset in elements from the first element of t.
function M.as_strided(t, shape, strides, offset)
  local own = {}
  for d = 1, room(shape, "view") do own[d], steps[d - 1] = tonumber(shape[d]), strides[d] end
  return view_of(t, own, offset)
end

--- The same elements in order under another shape (one entry may be -1); t must be dense.
function M.view(t, shape)
  local count, known, free = t:count(), 1, nil
  local own = {}
  for d, size in ipairs(shape) do
    own[d] = size
    if size == -1 then
      if free then fail("view: two entries of %s are -1", "[" .. table.concat(shape, ", ") .. "]") end
      free = d
    else
      known = known * size
    end
  end
  if free then own[free] = known > 0 and count / known or 0 end
  local product = 1
  for d = room(own, "view"), 1, -1 do
    steps[d - 1] = product
    product = product * own[d]
  end
  if product ~= count or (free and own[free] ~= math.floor(own[free])) then
    fail("view: %s has %d elements, want %s", tensor.shape_text(t), count, "[" .. table.concat(shape, ", ") .. "]")
  end
  if not t:is_dense() then fail("view: the tensor %s is a strided view; make it contiguous first", tensor.shape_text(t)) end
  return view_of(t, own, 0)
end

--- n indices of an axis from start on.
function M.narrow(t, axis, start, n)
  local d = axis_of(t, axis, "narrow")
  local size = t.shape[d + 1]
  if type(start) ~= "number" or type(n) ~= "number" or start < 0 or n < 0 or start + n > size then
    fail("narrow: %s indices from %s on axis %d of %s, which has %d", tostring(n), tostring(start), d, tensor.shape_text(t), size)
  end
  local own, from = {}, C.esp_tensor_stride(t.c)
  for i = 1, #t.shape do own[i], steps[i - 1] = t.shape[i], from[i - 1] end
  own[d + 1] = n
  return view_of(t, own, n > 0 and start * steps[d] or 0)
end

--- One index of an axis; the axis goes.
function M.select(t, axis, index)
  local d = axis_of(t, axis, "select")
  if type(index) ~= "number" or index < 0 or index >= t.shape[d + 1] then
    fail("select: index %s on axis %d of %s", tostring(index), d, tensor.shape_text(t))
  end
  local shape, strides, all = {}, {}, t:strides()
  for i, s in ipairs(t.shape) do
    if i ~= d + 1 then shape[#shape + 1], strides[#strides + 1] = s, all[i] end
  end
  return M.as_strided(t, shape, strides, index * all[d + 1])
end

--- The axes in another order: axes lists the old ones.
function M.permute(t, axes)
  local shape, strides, all, seen = {}, {}, t:strides(), {}
  if #axes ~= #t.shape then fail("permute: %d axes for a tensor %s", #axes, tensor.shape_text(t)) end
  for i, axis in ipairs(axes) do
    local d = axis_of(t, axis, "permute")
    if seen[d] then fail("permute: axis %d stands twice", d) end
    seen[d] = true
    shape[i], strides[i] = t.shape[d + 1], all[d + 1]
  end
  return M.as_strided(t, shape, strides, 0)
end

function M.transpose(t, a, b)
  a, b = axis_of(t, a, "transpose"), axis_of(t, b, "transpose")
  local axes = {}
  for d = 0, #t.shape - 1 do axes[d + 1] = d == a and b or d == b and a or d end
  return M.permute(t, axes)
end

--- Repeats dimensions of size 1 (and new ones in front) without copying.
function M.expand(t, shape)
  local strides, all, extra = {}, t:strides(), #shape - #t.shape
  local bad = extra < 0
  for d = 1, #shape do
    local size = t.shape[d - extra]
    if d <= extra or (size == 1 and shape[d] ~= 1) then strides[d] = 0
    elseif size == shape[d] then strides[d] = all[d - extra]
    else bad = true end
  end
  if bad then fail("expand: %s does not repeat to %s", tensor.shape_text(t), "[" .. table.concat(shape, ", ") .. "]") end
  return M.as_strided(t, shape, strides, 0)
end

-- ---- copies ----

--- The elements dense in a new tensor; t itself where it already is.
function M.contiguous(t)
  return t:is_dense() and t or M.clone(t)
end

function M.clone(t)
  local y = tensor.new(t.shape, t.dtype)
  ops.copy(y.c, t.c)
  return y
end

--- The same numbers in another dtype, rounded to nearest even; t itself where it already has it.
function M.to(t, dtype)
  if t.dtype == dtype then return t end
  local y = tensor.new(t.shape, dtype)
  ops.copy(y.c, t.c)
  return y
end

--- t taken at the indices (i32 tensor or list) along an axis.
function M.index_select(t, axis, index)
  local d = axis_of(t, axis, "index_select")
  if not tensor.is(index) then index = tensor.of(index, { dtype = "i32" }) end
  local shape = {}
  for i, s in ipairs(t.shape) do shape[i] = s end
  shape[d + 1] = index:count()
  local y = tensor.new(shape, t.dtype)
  ops.index_select(y.c, t.c, index.c, d)
  return y
end

return M
