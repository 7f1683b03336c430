--- Seconds of one layer on this machine, of random weights: the time of a matrix product does not depend on what is in it.

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"
local tape = require "espalier.tape"
local scope = require "espalier.scope"
local ops = require "espalier.ops"
local models = require "espalier.models.model"
local shapes = require "espalier.models.shape"

local C = core.C
local M = {}

-- Least time of several runs of fn: at least two after the first, and for a fifth of a second.
local function least(fn)
  fn()
  local best, spent, runs = math.huge, 0, 0
  while runs < 2 or (spent < 0.2 and runs < 50) do
    local start = C.esp_clock()
    fn()
    local t = C.esp_clock() - start
    best, spent, runs = math.min(best, t), spent + t, runs + 1
  end
  return best
end
M.least = least

local function free(model)
  for _, t in pairs(model:parameters()) do t:free() end
end

-- A model of one layer of the widths `w`; its embeddings are too small to matter.
local function one_layer(s, w)
  local one = shapes.copy(s)
  for axis, size in pairs(w) do one[axis] = size end
  for _, axis in ipairs(shapes.by_layer) do if type(one[axis]) == "table" then one[axis] = one[axis][1] end end
  one.layers, one.vocab, one.tied = 1, 8, true
  return models.new(one)
end

--- Seconds of one layer of shape s with the widths w ({ hidden, ffn, heads, kv_heads }; ffn or heads 0 leaves that part out), forward over
-- [batch, length] tokens, or with opt.train forward and backward.
function M.layer(s, w, batch, length, opt)
  local model = one_layer(s, w)
  local x = tensor.normal({ batch, length, model.shape.hidden }, { seed = 1 })
  local function forward() return model:forward(nil, { from = { layer = 0, x = x } }) end
  local seconds
  if opt and opt.train then
    -- The gradient by the layer's input is part of the work too.
    local leaves = { x }
    for _, t in pairs(model:parameters()) do leaves[#leaves + 1] = t end
    for _, t in ipairs(leaves) do t.requires_grad = true end
    local dy = tensor.full({ batch, length, model.shape.hidden }, 1)
    seconds = least(function()
      scope.run(function() tape.backward(forward(), dy) end)
      for _, t in ipairs(leaves) do
        if t.grad then t.grad:free() end
        t.grad = nil
      end
    end)
    dy:free()
  else
    seconds = least(function() tape.no_grad(scope.run, forward) end)
  end
  free(model)
  x:free()
  return seconds
end

--- Seconds of a whole model of shape s, forward over [batch, length] tokens up to the final norm: what M.layer's sums are checked against.
function M.model(s, batch, length)
  local small = shapes.copy(s)
  small.vocab = 8
  local model = models.new(small)
  local x = tensor.normal({ batch, length, s.hidden }, { seed = 1 })
  local seconds = least(function() tape.no_grad(scope.run, function() return model:forward(nil, { from = { layer = 0, x = x } }) end) end)
  free(model)
  x:free()
  return seconds
end

--- Seconds that one token's logits cost in one head of [vocab, hidden]: a 256th of a chunk of 256 tokens, over at most 8,192 rows of the head.
function M.head(hidden, vocab)
  local rows = math.min(vocab, 8192)
  local w, x = tensor.normal({ rows, hidden }, { seed = 2 }), tensor.normal({ 256, hidden }, { seed = 3 })
  local seconds = least(function() tape.no_grad(scope.run, ops.linear, x, w) end)
  w:free()
  x:free()
  return seconds * vocab / rows / 256
end

return M
