--- The harness of operation rows: a row states the maths, the rest is done here.
--
-- op { name, covers = { core ops }, ins = list of { x = shape, .. }, run = function(in) -> tensor, ref = function(in, shapes) -> flat list,
--      grad = { names }, domain = function(u) -> value from u in (-1, 1), nan = false where NaN may vanish, scales = { 1, 30 } }
-- Forward against the reference in Lua doubles; gradients (of a sum with fixed random weights) against central differences of that
-- reference, at every coordinate of small inputs and at sixteen of large ones; NaN in, NaN out.

local esp = require "espalier"
local tensor = require "espalier.tensor"

local M = { covered = {}, count = 0 }

local state = 12345
--- A number in (-1, 1); the same sequence every time.
function M.random()
  state = (state * 48271) % 2147483647
  return state / 2147483647 * 2 - 1
end

function M.size(shape)
  local n = 1
  for _, d in ipairs(shape) do n = n * d end
  return n
end

local function copy(list)
  local c = {}
  for i, v in ipairs(list) do c[i] = v end
  return c
end

--- A flat list as nested tables of a shape.
local function nest(flat, shape)
  local at = 0
  local function build(d)
    if d > #shape then
      at = at + 1
      return flat[at]
    end
    local t = {}
    for i = 1, shape[d] do t[i] = build(d + 1) end
    return t
  end
  return build(1)
end

--- The elements of a tensor in order.
function M.flat(t)
  local c, out = t:contiguous(), {}
  local p = c:data()
  for i = 0, c:count() - 1 do out[i + 1] = tonumber(p[i]) end
  return out
end

local function make(shape, values)
  if #shape == 0 then return tensor.full({}, values[1]) end
  return tensor.of(nest(values, shape))
end

local function largest(list)
  local m = 0
  for _, v in ipairs(list) do m = math.max(m, math.abs(v)) end
  return m
end

local function compare(got, want, tolerance, what, floor)
  if #got ~= #want then error(string.format("%s: %d elements, want %d", what, #got, #want), 0) end
  local limit = tolerance * math.max(largest(want), floor or 1e-6)
  for i = 1, #want do
    if not (got[i] == want[i] or math.abs(got[i] - want[i]) <= limit) then
      error(string.format("%s: element %d is %.9g, want %.9g within %.2g", what, i - 1, got[i], want[i], limit), 0)
    end
  end
end
M.compare = compare

local function weighted(list, r)
  local s = 0
  for i, v in ipairs(list) do s = s + v * r[i] end
  return s
end

local function coordinates(n)
  local list = {}
  if n <= 32 then
    for i = 1, n do list[i] = i end
  else
    for i = 1, 14 do list[i] = math.floor((M.random() + 1) / 2 * n) % n + 1 end
    list[15], list[16] = 1, n
  end
  return list
end

local function values_of(row, shapes, scale)
  local v = {}
  local names = {}
  for name in pairs(shapes) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    v[name] = {}
    local domain = type(row.domain) == "table" and row.domain[name] or type(row.domain) == "function" and row.domain
    for i = 1, M.size(shapes[name]) do
      local x = domain and domain(M.random(), scale) or M.random() * scale
      -- What the core sees is f32.
      v[name][i] = tensor.full({}, x):item()
    end
  end
  return v
end

local function check_gradients(row, shapes, v, leaves, y, want, what)
  local r = {}
  for i = 1, #want do r[i] = tensor.full({}, M.random()):item() end
  y:backward(make(y.shape, r))
  for _, name in ipairs(row.grad) do
    if not leaves[name].grad then error(what .. ": no gradient of " .. name, 0) end
    local got_all = M.flat(leaves[name].grad)
    local got, differences = {}, {}
    for _, i in ipairs(coordinates(#v[name])) do
      local x, h = v[name][i], 1e-5 * math.max(1, math.abs(v[name][i]))
      local moved = {}
      for k, list in pairs(v) do moved[k] = k == name and copy(list) or list end
      moved[name][i] = x + h
      local up = weighted(row.ref(moved, shapes), r)
      moved[name][i] = x - h
      got[#got + 1], differences[#differences + 1] = got_all[i], (up - weighted(row.ref(moved, shapes), r)) / (2 * h)
    end
    -- Small entries are held to the size of the whole gradient, which is what sums in f32 can promise.
    -- A gradient that cancels to nearly nothing is held to row.floor.
    compare(got, differences, 1e-4, what .. ": gradient of " .. name, math.max(largest(got_all), row.floor or 1e-6))
  end
end

local function one_case(row, shapes, scale)
  local what = string.format("%s, scale %g", row[1], scale)
  for name, shape in pairs(shapes) do what = what .. string.format(", %s [%s]", name, table.concat(shape, ",")) end
  local v = values_of(row, shapes, scale)
  local leaves = {}
  for name, shape in pairs(shapes) do leaves[name] = make(shape, v[name]) end
  for _, name in ipairs(row.grad or {}) do leaves[name]:requires_grad_(true) end
  local want = row.ref(v, shapes)
  local y = row.run(leaves, shapes)
  compare(M.flat(y), want, row.tolerance or 2e-5, what)
  if row.grad then check_gradients(row, shapes, v, leaves, y, want, what) end
  if row.nan ~= false then
    for name in pairs(row.domain and type(row.domain) == "table" and shapes or { [next(shapes)] = true }) do
      local bad = {}
      for k, shape in pairs(shapes) do
        local list = copy(v[k])
        if k == name then list[#list] = 0 / 0 end
        bad[k] = make(shape, list)
      end
      local any = false
      for _, x in ipairs(M.flat(row.run(bad, shapes))) do any = any or x ~= x end
      if not any then error(what .. ": NaN in " .. name .. " gives no NaN", 0) end
    end
  end
end

--- Declares and checks a row.
function M.op(t, row)
  for _, name in ipairs(row.covers or { row[1] }) do M.covered[name] = true end
  t.test("op " .. row[1], function()
    for _, shapes in ipairs(row.ins) do
      for _, scale in ipairs(row.scales or { 1, 30 }) do esp.scope(one_case, row, shapes, scale) end
    end
  end)
end

return M
