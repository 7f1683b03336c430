--- One row an operation: forward on the core, backward on the core. tape.lua records, ops.lua names them for users.
--
-- forward(inputs, extra, record) -> result, saved tensors, further result. backward(dy, node, need, into) -> one gradient an input (nil: none;
-- true: already added to into[i], the gradient that a leaf has); need[i] tells whether input i wants one.

local rows = {}

for _, part in ipairs { "layers", "small" } do
  for name, row in pairs(require("espalier.grad." .. part)) do
    row.name = name
    rows[name] = row
  end
end

return rows
