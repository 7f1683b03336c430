--- Lazy tensors: rows and columns of a mapped tensor, gathered when first needed. A model that was opened, or pruned from one that was opened,
-- is made of them, so that neither is held in memory until it is used, and saving one goes from file to file.
--
-- A lazy tensor has a shape and a dtype like any other; whatever asks for its bytes (every operation does) has them made then, once, and from
-- then on it is an ordinary tensor. Its source is a mapped file, which nobody can change.

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"
local fail = require "espalier.fail"

local take = core.ops.take
local M = {}
local Lazy, Tensor = tensor.Lazy, tensor.Tensor

--- Is t a tensor whose bytes were not made yet?
function M.is(t)
  return getmetatable(t) == Lazy
end

-- What a stored dtype is used as, and written as: bf16 and f32 are computed with; f8 fits in bf16 exactly.
local used = { f32 = "f32", bf16 = "bf16", f16 = "f32", f64 = "f32", f8_e4m3 = "bf16", f8_e5m2 = "bf16" }
local written = { f32 = "f32", bf16 = "bf16", f16 = "f16", f64 = "f32", f8_e4m3 = "bf16", f8_e5m2 = "bf16" }

local function index(list)
  if not list or tensor.is(list) then return list end
  local t = tensor.of(list, { dtype = "i32" })
  t.kept = true
  return t
end

-- outer[inner[i]], either nil for all.
local function composed(outer, inner)
  if not (outer and inner) then return outer or inner end
  local both = tensor.new(inner.shape, "i32")
  local to, o, i = both:data(), outer:data(), inner:data()
  for k = 0, inner:count() - 1 do
    if i[k] < 0 or i[k] >= outer.shape[1] then fail("take: index %d at place %d, want 0 to %d", i[k], k, outer.shape[1] - 1) end
    to[k] = o[i[k]]
  end
  both.kept = true
  return both
end

-- A header of its own over the same bytes, that no scope frees.
local function alias(t)
  local view = tensor.as_strided(t, t.shape, t:strides(), 0)
  view.kept = true
  return view
end

local function make(recipe, dtype, stored)
  local s = recipe.source.shape
  local rows = recipe.rows and recipe.rows:count() or s[1]
  local shape = #s == 1 and { recipe.columns and recipe.columns:count() or s[1] } or { rows, recipe.columns and recipe.columns:count() or s[2] }
  return setmetatable({ recipe = recipe, shape = shape, dtype = dtype, stored = stored }, Lazy)
end

--- The parameter that a mapped tensor of one or two dimensions is. opt.dtype: what it is used as ("f32" or "bf16"; bf16 stays bf16, f16 and f64
-- widen to f32, f8 to bf16 otherwise); opt.what: whose it is, in the sentence that refuses NaN and infinity when it is first used.
function M.of(source, opt)
  local own = used[source.dtype] or fail("%s is %s, want f64, f32, f16, bf16 or f8", opt.what, source.dtype)
  return make({ source = alias(source), what = opt.what, through = opt.dtype }, opt.dtype or own, opt.dtype or written[source.dtype])
end

-- Is what t views a file?
local function mapped(t)
  return core.C.esp_tensor_readonly(t.c) == 1
end

--- t at rows (axis 0) and columns (last axis), lists or i32 tensors, nil for all. Lazy where t is or views a file, else gathered at once: a tensor in
-- memory may change. Never t itself. what: as for of.
function M.take(t, rows, columns, what)
  if #t.shape == 1 and rows then rows, columns = nil, rows end
  rows, columns = index(rows), index(columns)
  local r = M.is(t) and t.recipe
  local recipe
  if r then
    recipe = { source = r.source, rows = composed(r.rows, rows), columns = composed(r.columns, columns), through = r.through, what = what or r.what }
  else
    recipe = { source = alias(t), rows = rows, columns = columns, what = what }
  end
  local lazy = make(recipe, t.dtype, t.stored or t.dtype)
  if not r and not mapped(t) then M.settle(lazy) end
  return lazy
end

--- t as it would be after it was written in a dtype and read again. t must not change while the result is in use.
function M.rounded(t, dtype)
  -- A lazy tensor rounds once: what is rounded already is made first.
  if M.is(t) and t.recipe.through and t.recipe.through ~= dtype then M.settle(t) end
  local r = M.is(t) and t.recipe or { source = t }
  return make({ source = r.source, rows = r.rows, columns = r.columns, through = dtype, what = r.what }, used[dtype], dtype)
end

--- The dtype in which a tensor is written: what is asked for, else the one it was read in. Whole numbers stay what they are.
function M.stored(t, asked)
  if t.dtype == "i32" or t.dtype == "u8" then return t.dtype end
  return asked or t.stored or t.dtype
end

-- Are the bytes of the source what the tensor is?
local function as_it_is(t)
  local r = t.recipe
  return not r.rows and not r.columns and (r.through or t.dtype) == t.dtype and r.source.dtype == t.dtype
    and core.C.esp_tensor_aligned(r.source.c) == 1
end

local function gathered(r, dtype)
  local shape = make(r, dtype).shape
  local y = tensor.new(shape, dtype)
  take(y.c, r.source.c, r.rows and r.rows.c, r.columns and r.columns.c)
  return y
end

-- t in a dtype; t itself goes where it has another.
local function converted(t, dtype)
  local y = tensor.to(t, dtype)
  if y ~= t then t:free() end
  return y
end

local function check_finite(t, r)
  local yes = core.new "int[1]"
  core.try(core.C.esp_tensor_finite(yes, t.c))
  if yes[0] == 0 then fail("%s holds NaN or infinity", r.what or "a tensor") end
end

--- A new ordinary tensor with what t is; t stays lazy. dtype: another one to convert to.
function M.load(t, dtype)
  if not M.is(t) then fail("lazy.load: the tensor %s is not lazy", tensor.shape_text(t)) end
  local r = t.recipe or fail("a tensor %s that was freed is used", tensor.shape_text(t))
  local y
  if as_it_is(t) then
    y = tensor.as_strided(r.source, r.source.shape, r.source:strides(), 0)
  else
    y = converted(gathered(r, r.through or t.dtype), t.dtype)
  end
  check_finite(y, r)
  return converted(y, dtype or t.dtype)
end

--- A new tensor in memory of its own, f32 unless said, of any tensor; a lazy one stays lazy.
function M.copy(t, dtype)
  dtype = dtype or "f32"
  if not M.is(t) then return tensor.new(t.shape, dtype):copy_from(t) end
  local y = M.load(t, dtype)
  return mapped(y) and tensor.clone(y) or y
end

-- n rows (of a vector: elements) of a lazy tensor from one on, lazy.
local function part(t, from, n)
  local r, at = t.recipe, #t.shape == 1 and "columns" or "rows"
  local one = { source = r.source, rows = r.rows, columns = r.columns, through = r.through, what = r.what }
  if one[at] then one[at] = tensor.narrow(one[at], 0, from, n) else one.source = alias(tensor.narrow(r.source, 0, from, n)) end
  return make(one, t.dtype, t.stored)
end

--- for from, rows in lazy.rows(t, n): all of any tensor, n rows at a time, as ordinary tensors; a lazy one stays lazy.
function M.rows(t, n)
  local at, last = 0, nil
  return function()
    if last then last:free() end
    if at >= t.shape[1] then return nil end
    local from, count = at, math.min(n, t.shape[1] - at)
    at = at + count
    last = M.is(t) and M.load(part(t, from, count)) or tensor.narrow(t, 0, from, count)
    return from, last
  end
end

--- Makes t an ordinary tensor, now.
function M.settle(t)
  local y = M.load(t)
  -- The handle goes over to t, which no scope frees.
  y.kept = true
  t.c, t.recipe = y.c, nil
  return setmetatable(t, Tensor)
end

--- What the writer gathers to write t in a dtype: source, rows, columns.
function M.parts(t, dtype)
  if not M.is(t) then return t end
  local r = t.recipe or fail("a tensor %s that was freed is used", tensor.shape_text(t))
  if r.through and r.through ~= dtype then return M.settle(t) end
  return r.source, r.rows, r.columns
end

-- ---- what is known without the bytes ----

local methods = {}

function methods:count()
  local n = 1
  for _, size in ipairs(self.shape) do n = n * size end
  return n
end

function methods.is_dense() return true end

--- Gives up the source; the tensor cannot be used any more.
function methods:free()
  self.recipe = nil
end

Lazy.__index = function(t, key)
  if key == "c" then return M.settle(t).c end
  return methods[key] or Tensor[key]
end

Lazy.__tostring = function(t)
  return string.format("tensor %s %s (not read yet)", t.dtype, tensor.shape_text(t))
end

-- Operators are looked up in the metatable itself.
for _, event in ipairs { "__add", "__sub", "__mul", "__div", "__pow", "__unm" } do
  Lazy[event] = function(a, b) return Tensor[event](a, b) end
end

return M
