--- Tensors: shapes, views, numbers in and out. No gradients here (tape.lua, grad/, ops.lua add them).

local M = require "espalier.tensor.base"
local views = require "espalier.tensor.views"

local Tensor = M.Tensor

for name, fn in pairs(views) do M[name] = fn end
for _, name in ipairs { "narrow", "select", "permute", "transpose", "expand", "contiguous", "clone", "to", "index_select" } do
  Tensor[name] = M[name]
end

--- t:view(3, 5) or t:view{ 3, 5 }.
function Tensor:view(first, ...)
  return M.view(self, type(first) == "table" and first or { first, ... })
end

return M
