--- How long tensors live: what a function made and did not return goes when it ends, as the collector cannot see the bytes of tensors.

local tensor = require "espalier.tensor"

local C = require("espalier.ffi").C
local M = {}

local scopes = {}

tensor.on_new = function(t)
  local top = scopes[#scopes]
  if top then top[#top + 1] = t end
end

-- Everything that the results stand on: tensors in tables to depth 3, and the graphs behind them.
local function mark(value, keep, depth)
  if type(value) ~= "table" or keep[value] then return end
  keep[value] = true
  if tensor.is(value) then
    if value.grad then keep[value.grad] = true end
    local node = value.node
    if node then
      for i = 1, node.inputs.n do mark(node.inputs[i], keep, depth) end
      for _, t in pairs(node.saved or {}) do mark(t, keep, depth) end
    end
  elseif depth < 3 then
    for _, v in pairs(value) do mark(v, keep, depth + 1) end
  end
end

local function leave(height, ok, ...)
  local own = scopes[height]
  for i = #scopes, height, -1 do scopes[i] = nil end
  local keep = {}
  if ok then for i = 1, select("#", ...) do mark((select(i, ...)), keep, 0) end end
  local outer = scopes[height - 1]
  for _, t in ipairs(own) do
    if t.kept or keep[t] then
      if outer and not t.kept then outer[#outer + 1] = t end
    else
      t:free()
    end
  end
  if not ok then error((...), 0) end
  return ...
end

--- Runs fn(...) and frees every tensor that it made and did not return (directly or in tables, with the graphs behind them); gradients of
-- leaves and what t:keep() marked stay. Also where fn fails.
function M.run(fn, ...)
  local height = #scopes + 1
  scopes[height] = {}
  return leave(height, pcall(fn, ...))
end

local function put_back(saved, ok, ...)
  scopes = saved
  if not ok then error((...), 0) end
  return ...
end

--- Runs fn(...) as if no scope were open: what it makes belongs to its holder.
function M.outside(fn, ...)
  local saved = scopes
  scopes = {}
  return put_back(saved, pcall(fn, ...))
end

--- Gives what nobody holds any more back to the system, before work that needs much memory. Compiled traces hold the closures that they were recorded
-- in, and through them whole models; they are made anew.
function M.settle()
  jit.flush()
  -- The first round finds the finalizers' tensors, the second their tables.
  for _ = 1, 2 do collectgarbage() end
  C.esp_memory_trim()
end

return M
