--- Automatic differentiation: what an operation records, and how backward walks it.
--
-- There is no global tape. A result that needs a gradient carries a node { id, row, inputs, saved }; ids grow, so walking the reachable nodes
-- from the highest id down is an order in which every consumer comes first. Backward frees what it has consumed: the results between the
-- leaves and the root are gone after it, unless t:keep() was called. No second derivatives.

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"
local scope = require "espalier.scope"
local fail = require "espalier.fail"

local cops = core.ops

local tape = {}

local recording = true
local last_id = 0

--- Are operations recorded now?
function tape.recording()
  return recording
end

--- Would an operation on x be recorded now?
function tape.records(x)
  return recording and x.requires_grad
end

local function restore(before, ok, ...)
  recording = before
  if not ok then error((...), 0) end
  return ...
end

local function with_recording(on, fn, ...)
  local before = recording
  recording = on
  return restore(before, pcall(fn, ...))
end

--- Runs fn(...) without recording and returns what it returns.
function tape.no_grad(fn, ...)
  return with_recording(false, fn, ...)
end

-- ---- recording ----

local function needs_grad(inputs)
  for i = 1, inputs.n do
    local x = inputs[i]
    if x and x.requires_grad then return true end
  end
  return false
end

--- Runs an operation: row.forward(inputs, extra, record) -> result, saved. Recorded where an input needs a gradient.
-- inputs: { n =, tensors or false }; extra: constants of the operation.
function tape.apply(row, inputs, extra)
  local record = recording and row.backward ~= nil and needs_grad(inputs)
  local y, saved, more = row.forward(inputs, extra, record)
  if record then
    last_id = last_id + 1
    local versions = {}
    for i = 1, inputs.n do versions[i] = inputs[i] and (inputs[i].version or 0) end
    y.node = { id = last_id, row = row, inputs = inputs, extra = extra, saved = saved, versions = versions, result = y }
    y.requires_grad = true
  end
  return y, more
end

--- Frees a result that is used no more in the forward pass: at once where nothing is recorded; else backward computes it again when one of its
-- operations reads it (a row's `reads` says which inputs those are; without it all). For what is cheap to make: norms, gates, views. What
-- t:keep() marked stays.
function tape.forget(t)
  local node = t.node
  if t.kept or (recording and t.requires_grad and not node) then return end
  if node then t.forgotten = true end
  t:free()
  -- A view's bytes go when its base goes.
  if node and node.row.name == "view" and node.inputs[1].node then tape.forget(node.inputs[1]) end
end

-- ---- backward ----

-- `shared` counts the headers over one gradient's bytes: while another one lives, they must not be added to in place.
local function is_shared(g)
  return g.shared and g.shared.n > 1
end

local function drop(g)
  if g.shared then g.shared.n = g.shared.n - 1 end
  g:free()
end

-- Sum of two gradients in a new tensor; f32 where either is.
local function sum_of(a, b)
  local sum = tensor.to(a, "f32")
  if sum == a then sum = tensor.clone(a) end
  cops.scaled_acc(sum.c, tensor.to(b, "f32").c, 1)
  return sum
end

-- Adds g to what slot.grad holds.
local function accumulate(slot, g, leaf)
  local have = slot.grad
  if not have then
    if leaf and (is_shared(g) or not g:is_dense()) then
      slot.grad = tensor.clone(g)
      drop(g)
    else
      slot.grad = g
    end
  elseif is_shared(have) or have.dtype ~= "f32" or g.dtype ~= "f32" then
    local sum = sum_of(have, g)
    drop(have)
    drop(g)
    slot.grad = sum
  else
    cops.scaled_acc(have.c, g.c, 1)
    drop(g)
  end
  if leaf then slot.grad.kept = true end
end

local function reachable(root)
  local list, seen, stack = {}, {}, { root }
  while #stack > 0 do
    local node = table.remove(stack)
    if not seen[node] then
      seen[node] = true
      list[#list + 1] = node
      for i = 1, node.inputs.n do
        local x = node.inputs[i]
        if x and x.node then stack[#stack + 1] = x.node end
      end
    end
  end
  table.sort(list, function(a, b) return a.id > b.id end)
  return list
end

local function check_unchanged(node)
  for i = 1, node.inputs.n do
    local x = node.inputs[i]
    if x and (x.version or 0) ~= node.versions[i] then
      fail("backward: an input of %s was changed in place after it was recorded", node.row.name)
    end
  end
end

-- A second header over g's bytes, for when one gradient goes to several inputs.
local function alias(g)
  local other = tensor.as_strided(g, g.shape, g:strides(), 0)
  g.shared = g.shared or { n = 1 }
  g.shared.n = g.shared.n + 1
  other.shared = g.shared
  return other
end

-- Computes a forgotten result again, and what it was made of where that was forgotten too.
local function revive(t)
  local node = t.node
  for i = 1, node.inputs.n do
    local x = node.inputs[i]
    if x and x.forgotten then revive(x) end
  end
  t.c = node.row.forward(node.inputs, node.extra, false).c
  t.forgotten = nil
end

-- The gradient that leaves one node goes to its inputs.
local function step(node)
  local dy, inputs = node.grad, node.inputs
  check_unchanged(node)
  local need, into, reads = {}, {}, node.row.reads
  for i = 1, inputs.n do
    local x = inputs[i]
    need[i] = x and x.requires_grad or false
    if x and x.forgotten and (not reads or reads[i]) then revive(x) end
    -- A gradient that is there already lets the kernel add to it.
    local have = need[i] and (x.node or x).grad
    if have and not is_shared(have) and have:is_dense() then into[i] = have end
  end
  local given = { node.row.backward(dy, node, need, into) }
  local used = {}
  for i = 1, inputs.n do
    local g, x = given[i], inputs[i]
    if g and g ~= true then
      if need[i] then
        if used[g] then g = alias(g) end
        used[given[i]] = true
        accumulate(x.node or x, g, not x.node)
      elseif g ~= dy then
        drop(g)
      end
    end
  end
  if not used[dy] then drop(dy) end
end

-- Drops what a node held; its result goes too, unless somebody keeps it.
local function release(node, root)
  local saved, result = node.saved, node.result
  if saved then for _, t in pairs(saved) do if tensor.is(t) then t:free() end end end
  result.node, result.requires_grad = nil, nil
  result.spent = true
  if result ~= root and not result.kept then result:free() end
  node.inputs, node.saved, node.grad = { n = 0 }, nil, nil
end

--- Gradients of root by every leaf that it was made of, added to leaf.grad. dy: gradient of root (1 where root is one number).
function tape.backward(root, dy)
  if not root.node then
    fail(root.spent and "backward: the graph of this tensor was already walked; record it again" or
      "backward: this tensor was not recorded (no leaf with requires_grad, or made inside no_grad)")
  end
  if not dy then
    if root:count() ~= 1 then fail("backward: the tensor is %s; give its gradient, or sum it to one number", tensor.shape_text(root)) end
    dy = tensor.full(root.shape, 1)
  else
    dy = tensor.clone(dy)
  end
  root.node.grad = dy
  with_recording(false, function()
    for _, node in ipairs(reachable(root.node)) do
      if node.grad then
        if node.result.keeps_grad then node.result.grad = tensor.clone(node.grad); node.result.grad.kept = true end
        step(node)
      end
      release(node, root)
    end
  end)
end

--- A tensor with the same bytes and no history.
function tape.detach(t)
  return tensor.as_strided(t, t.shape, t:strides(), 0)
end

-- ---- checkpoint ----

local checkpoint_row = { name = "checkpoint" }

function checkpoint_row.forward(inputs, extra)
  -- Its insides go at once, not when an outer scope ends.
  return with_recording(false, scope.run, extra.fn, inputs[1], unpack(extra.args, 1, extra.args.n))
end

function checkpoint_row.backward(dy, node)
  local x = tape.detach(node.inputs[1])
  x.requires_grad = node.inputs[1].requires_grad
  local y = with_recording(true, node.extra.fn, x, unpack(node.extra.args, 1, node.extra.args.n))
  if y.node then tape.backward(y, dy) end
  return x.grad
end

--- fn(x, ...) with one tensor in and one out, whose insides are not kept but computed again in backward.
function tape.checkpoint(fn, x, ...)
  if not recording then return fn(x, ...) end
  -- Leaves inside fn need their gradient even where x does not.
  local inputs = { n = 1, x }
  local extra = { fn = fn, args = { n = select("#", ...), ... } }
  if x.requires_grad then return (tape.apply(checkpoint_row, inputs, extra)) end
  local root = tape.detach(x)
  root.requires_grad = true
  return (tape.apply(checkpoint_row, { n = 1, root }, extra))
end

-- ---- methods ----

local Tensor = tensor.Tensor

function Tensor:backward(dy) return tape.backward(self, dy) end
function Tensor:detach() return tape.detach(self) end

--- Backward leaves this tensor's gradient in t.grad.
function Tensor:requires_grad_(on)
  self.requires_grad = on ~= false
  return self
end

--- Marks an intermediate result so that backward leaves its gradient in t.grad.
function Tensor:keep_grad()
  self.keeps_grad, self.kept = true, true
  return self
end

--- Neither a scope nor backward frees this tensor.
function Tensor:keep()
  self.kept = true
  return self
end

return tape
