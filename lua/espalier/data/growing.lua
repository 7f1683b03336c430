--- Lists of numbers that grow at the end, outside the reach of the collector and counted as tensor bytes.

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"
local scope = require "espalier.scope"

local Growing = {}
Growing.__index = Growing

local function make(room, dtype)
  return scope.outside(tensor.new, { room }, dtype)
end

--- kind: "i32", "u8", "f64", or "u64" (which no tensor is: it lives in the bytes of an f64 one). g.count, g.p: pointer to the first number.
local function new(kind)
  local self = setmetatable({ kind = kind, dtype = kind == "u64" and "f64" or kind, count = 0, room = 16 }, Growing)
  self.size = ({ i32 = 4, u8 = 1, f64 = 8, u64 = 8 })[kind]
  self:hold(make(self.room, self.dtype))
  return self
end

function Growing:hold(t)
  self.tensor = t
  self.p = self.kind == "u64" and core.cast("uint64_t *", t:data()) or t:data()
end

--- Room for n more; their place is g.p + g.count.
function Growing:reserve(n)
  if self.count + n <= self.room then return end
  self.room = math.max(2 * self.room, self.count + n)
  local old, from = self.tensor, self.p
  self:hold(make(self.room, self.dtype))
  core.copy(self.p, from, self.count * self.size)
  old:free()
end

--- Appends n numbers from a pointer.
function Growing:append(from, n)
  self:reserve(n)
  core.copy(self.p + self.count, from, n * self.size)
  self.count = self.count + n
end

--- Appends one number.
function Growing:push(value)
  self:reserve(1)
  self.p[self.count] = value
  self.count = self.count + 1
end

return new
