--- Tensors: made, looked into, written. Views and copies are views.lua's; init.lua puts both together.
--
-- A tensor is a Lua table { c = handle of the core, shape, dtype }. Axes and indices count from 0, a negative axis from the end.

local core = require "espalier.ffi"
local fail = require "espalier.fail"

local C, ops = core.C, core.ops

local M = {}
local Tensor = {}
Tensor.__index = Tensor
--- The methods of every tensor; ops.lua adds to it.
M.Tensor = Tensor
--- The metatable of tensors whose bytes are made when first needed (lazy.lua).
M.Lazy = {}
local Lazy = M.Lazy

local code_of = { f32 = 0, bf16 = 1, f16 = 2, i32 = 3, u8 = 4, f64 = 5 }
-- f8 only comes from files: no tensor of it is made.
local name_of = { [0] = "f32", "bf16", "f16", "i32", "u8", "f64", "f8_e4m3", "f8_e5m2" }
local ctype_of = { f32 = "float *", bf16 = "uint16_t *", f16 = "uint16_t *", i32 = "int32_t *", u8 = "uint8_t *", f64 = "double *",
  f8_e4m3 = "uint8_t *", f8_e5m2 = "uint8_t *" }

-- What the core reads while it makes a tensor: two arrays of dimensions and a place for the handle, the same ones each time, as making tensors is
-- most of what Lua does in a small model.
local MOST = tonumber(C.ESP_MAX_DIMS)
local sizes, steps = core.new("int64_t[?]", MOST), core.new("int64_t[?]", MOST)
local out = core.new "esp_tensor *[1]"

--- Called with each new tensor, and true where it has bytes of its own and is no view (set by scope.lua).
M.on_new = nil

function M.is(x)
  local meta = getmetatable(x)
  return meta == Tensor or meta == Lazy
end

local function wrap(c, shape, dtype, own)
  local t = setmetatable({ c = core.gc(c, C.esp_tensor_free), shape = shape, dtype = dtype }, Tensor)
  if M.on_new then M.on_new(t, own) end
  return t
end

--- A tensor around a handle of the core, which it then owns.
function M.wrap(c)
  local shape, from = {}, C.esp_tensor_shape(c)
  for d = 1, C.esp_tensor_ndim(c) do shape[d] = tonumber(from[d - 1]) end
  return wrap(c, shape, name_of[C.esp_tensor_dtype(c)])
end

-- The collector cannot see the bytes of tensors: it is run when they have doubled since it last ran.
local collect_above = 2 ^ 28

local function collected()
  collectgarbage()
  collect_above = math.max(2 ^ 28, 2 * tonumber(C.esp_memory_live()))
end

-- The number of dimensions of a shape; the arrays have room for it.
local function room(shape, what)
  if #shape > MOST then fail("%s: %d dimensions, want at most %d", what, #shape, MOST) end
  return #shape
end

-- Puts a shape into sizes and returns the number of its dimensions.
local function dims_of(shape, what)
  local n = room(shape, what)
  for d = 1, n do
    local size = shape[d]
    if type(size) ~= "number" or size ~= math.floor(size) or size < 0 or size > 2 ^ 52 then
      fail("%s: dimension %d is %s, want a whole number from 0", what, d - 1, tostring(size))
    end
    sizes[d - 1] = size
  end
  return n
end

local function dtype_code(dtype, what)
  return code_of[dtype] or fail("%s: unknown dtype '%s', want f32, bf16, f16, i32, u8 or f64", what, tostring(dtype))
end

--- A dense tensor with undefined contents. shape: list of whole numbers ({} is a scalar); dtype: "f32" unless said.
function M.new(shape, dtype)
  if type(shape) ~= "table" then fail("tensor.new: shape is %s, want a list of numbers", type(shape)) end
  dtype = dtype or "f32"
  local code = dtype_code(dtype, "tensor.new")
  if tonumber(C.esp_memory_live()) > collect_above then collected() end
  local n = dims_of(shape, "tensor.new")
  if C.esp_tensor_new(out, code, n, sizes) ~= 0 then
    collected()
    core.try(C.esp_tensor_new(out, code, n, sizes))
  end
  local own = {}
  for d = 1, n do own[d] = tonumber(shape[d]) end
  return wrap(out[0], own, dtype, true)
end

function M.full(shape, value, dtype)
  local t = M.new(shape, dtype)
  ops.fill(t.c, value)
  return t
end

function M.zeros(shape, dtype)
  return M.full(shape, 0, dtype)
end

--- A 0-d f64 tensor, as the scalars of a training step are.
function M.scalar(value)
  return M.full({}, value, "f64")
end

--- The i32 tensor 0, 1 .. n-1.
function M.arange(n)
  local t = M.new({ n }, "i32")
  local p = t:data()
  for i = 0, n - 1 do p[i] = i end
  return t
end

--- Uniform in [lo, hi) by Philox: element i is a function of (seed, stream, i) alone.
function M.uniform(shape, opt)
  local t = M.new(shape)
  ops.uniform(t.c, opt.lo or 0, opt.hi or 1, opt.seed or 0, opt.stream or 0)
  return t
end

function M.normal(shape, opt)
  local t = M.new(shape)
  ops.normal(t.c, opt.mean or 0, opt.std or 1, opt.seed or 0, opt.stream or 0)
  return t
end

-- Shape of nested lists; the first element of each level decides and the others must agree.
local function shape_of(list)
  local shape = {}
  while type(list) == "table" do
    shape[#shape + 1] = #list
    list = list[1]
  end
  return shape
end

local function fill_from(list, shape, depth, p, at)
  if type(list) ~= "table" or #list ~= shape[depth] then
    fail("tensor.of: lists of different lengths: want %d entries at depth %d, got %s", shape[depth], depth - 1,
      type(list) == "table" and #list or type(list))
  end
  for i = 1, #list do
    if depth < #shape then
      at = fill_from(list[i], shape, depth + 1, p, at)
    else
      local value = list[i]
      if type(value) ~= "number" then fail("tensor.of: entry %d is %s, want a number", at, type(value)) end
      p[at] = value
      at = at + 1
    end
  end
  return at
end

--- A tensor of nested lists of numbers, or of one number. opt.dtype: "f32" unless said.
function M.of(list, opt)
  local dtype = opt and opt.dtype or "f32"
  if type(list) == "number" then return M.full({}, list, dtype) end
  if type(list) ~= "table" then fail("tensor.of: got %s, want a number or nested lists of numbers", type(list)) end
  local shape = shape_of(list)
  local direct = dtype == "f32" or dtype == "i32" or dtype == "f64" or dtype == "u8"
  local t = M.new(shape, direct and dtype or "f32")
  fill_from(list, shape, 1, t:data(), 0)
  return direct and t or t:to(dtype)
end

-- ---- looking in ----

function Tensor:ndim()
  return #self.shape
end

function Tensor:count()
  return tonumber(C.esp_tensor_count(self.c))
end

--- Strides in elements, a list.
function Tensor:strides()
  local list, from = {}, C.esp_tensor_stride(self.c)
  for d = 1, #self.shape do list[d] = tonumber(from[d - 1]) end
  return list
end

function Tensor:is_dense()
  local want, from = 1, C.esp_tensor_stride(self.c)
  for d = #self.shape, 1, -1 do
    if self.shape[d] ~= 1 and from[d - 1] ~= want then return false end
    want = want * self.shape[d]
  end
  return true
end

--- Refuses from now on what would write through this tensor, or through views made of it; returns it.
function Tensor:protect()
  C.esp_tensor_protect(self.c)
  return self
end

--- True where the tensor views a mapped file.
function Tensor:readonly()
  return C.esp_tensor_readonly(self.c) == 1
end

--- Typed pointer to the first element, indexed from 0; dense tensors only. Keep the tensor alive while it is used.
function Tensor:data()
  local p = C.esp_tensor_data(self.c)
  if p == nil then core.raise() end
  if not self:is_dense() then fail("data: the tensor %s is a strided view; make it contiguous first", M.shape_text(self)) end
  return core.cast(ctype_of[self.dtype], p)
end

local function readable(t)
  if ctype_of[t.dtype]:find "^uint" and t.dtype ~= "u8" then t = M.to(t, "f32") end
  return M.contiguous(t)
end

local function nested(p, shape, depth, at)
  local list, n = {}, shape[depth]
  if depth == #shape then
    for i = 1, n do list[i] = tonumber(p[at + i - 1]) end
    return list, at + n
  end
  for i = 1, n do list[i], at = nested(p, shape, depth + 1, at) end
  return list, at
end

-- After reading through a pointer: a mapped file that became shorter meanwhile is an error, not zeros.
local function still_there(t)
  if C.esp_tensor_data(t.c) == nil then core.raise() end
end

--- The numbers as nested lists (a scalar as a number).
function Tensor:table()
  local dense = readable(self)
  local p = dense:data()
  local list = #self.shape == 0 and tonumber(p[0]) or nested(p, self.shape, 1, 0)
  still_there(dense)
  if dense ~= self then dense:free() end
  return list
end

--- The number in a tensor of one element.
function Tensor:item()
  if self:count() ~= 1 then fail("item: the tensor is %s, want one element", M.shape_text(self)) end
  local dense = readable(self)
  local value = tonumber(dense:data()[0])
  still_there(dense)
  return value
end

function M.shape_text(t)
  return "[" .. table.concat(t.shape, ", ") .. "]"
end

function Tensor:__tostring()
  local head = string.format("tensor %s %s", self.dtype, M.shape_text(self))
  if C.esp_tensor_data(self.c) == nil then return head .. " (freed)" end
  local count = self:count()
  local few = readable(M.as_strided(M.contiguous(self), { math.min(count, 6) }, { 1 }, 0)):table()
  for i, value in ipairs(few) do few[i] = string.format("%.6g", value) end
  return string.format("%s: %s%s", head, table.concat(few, " "), count > 6 and " ..." or "")
end

--- Releases the bytes now instead of when the collector comes; may be called twice.
function Tensor:free()
  C.esp_tensor_drop(self.c)
end

-- The bytes of a mapped file are not for writing: the first write gets bytes of its own.
local function own(t)
  if C.esp_tensor_readonly(t.c) == 0 then return t end
  local y = M.clone(t)
  y.kept = true
  t.c = y.c
  return t
end

--- Overwrites every element with value.
function Tensor:fill(value)
  own(self)
  ops.fill(self.c, value)
  self.version = (self.version or 0) + 1
  return self
end

--- Overwrites the elements with those of x (same shape), converting its dtype.
function Tensor:copy_from(x)
  own(self)
  ops.copy(self.c, x.c)
  self.version = (self.version or 0) + 1
  return self
end

--- A view of t; shape: a list that becomes its own; offset in elements; strides are read from `steps`, where the caller left them.
function M.view_of(t, shape, offset)
  local n = dims_of(shape, "view")
  core.try(C.esp_tensor_view(out, t.c, n, sizes, steps, offset))
  return wrap(out[0], shape, t.dtype)
end

M.steps, M.room, M.dtype_code = steps, room, dtype_code

return M
