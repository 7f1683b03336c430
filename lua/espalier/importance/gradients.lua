--- The recorded pass: gradients of the summed next-token loss by every site, and by the weights where their form of Taylor is asked for.

local tensor = require "espalier.tensor"
local head = require "espalier.loss.head"
local losses = require "espalier.loss"

local M = {}

--- Marks the weights so that their gradients add up over the batches; returns a function that takes that back.
function M.watch_weights(model)
  local before = {}
  for name, t in pairs(model:parameters()) do
    before[name] = { t, t.requires_grad, t.grad }
    t.requires_grad, t.grad = true, nil
  end
  return function()
    for _, b in pairs(before) do
      local t = b[1]
      if t.grad then t.grad:free() end
      t.requires_grad, t.grad = b[2], b[3]
    end
  end
end

--- Backward from the sum of the next-token losses of a batch. hidden: what the recorded forward pass gave.
function M.backward(model, hidden, batch)
  local N = batch.target:count()
  local valid = batch.valid or tensor.full({ N }, 1)
  local loss = head.loss { states = model:states(hidden:view(N, model.shape.hidden)),
    target = tensor.view(batch.target, { N }), valid = valid, positions = 1, predictions = 1, loss = losses.ce() }
  loss:backward()
end

return M
