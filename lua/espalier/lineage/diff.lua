--- What differs between two models, in words: sizes, origin, what was kept, weights.

local store = require "espalier.lineage.store"
local hash = require "espalier.models.hash"
local tensor = require "espalier.tensor"
local tape = require "espalier.tape"
local scope = require "espalier.scope"
local core = require "espalier.ffi"
local shapes = require "espalier.models.shape"
local quantity = require "espalier.quantity"
local fail = require "espalier.fail"

local M = {}
local Diff = {}
Diff.__index = Diff

local function text(v)
  if type(v) == "table" then
    local parts = {}
    for i, x in ipairs(v) do parts[i] = tostring(x) end
    return #parts > 0 and table.concat(parts, ",") or "another"
  end
  return tostring(v)
end

local function shape_lines(a, b, out)
  local names, seen = {}, {}
  for _, s in ipairs { a, b } do
    for name in pairs(s) do if not seen[name] then names[#names + 1], seen[name] = name, true end end
  end
  table.sort(names)
  for _, name in ipairs(names) do
    if not shapes.same(a[name], b[name]) then out[#out + 1] = string.format("%s: %s -> %s", name, text(a[name]), text(b[name])) end
  end
  local p, q = shapes.parameters(a), shapes.parameters(b)
  if p ~= q then
    out[#out + 1] = string.format("parameters: %s -> %s (%+.1f %%)", quantity.show_exact(p), quantity.show_exact(q), 100 * (q / p - 1))
  end
end

-- Number of the step of `lineage` whose parent is the model of a hash.
local function step_from(lineage, of)
  for i, step in ipairs(lineage) do if step.parent_hash == of then return i end end
end

local function words(lineage, from)
  local list = {}
  for i = from, #lineage do list[#list + 1] = lineage[i].step .. (lineage[i].loss and " (" .. lineage[i].loss .. ")" or "") end
  return #list > 0 and table.concat(list, ", then ") or "nothing"
end

local function origin_lines(a, b, ha, hb, out)
  local i, j = step_from(b.lineage, ha), step_from(a.lineage, hb)
  if i then
    out[#out + 1] = "the second was made from the first by " .. words(b.lineage, i)
  elseif j then
    out[#out + 1] = "the first was made from the second by " .. words(a.lineage, j)
  else
    local first, other = a.lineage[1], b.lineage[1]
    if first and other and first.parent_hash and first.parent_hash == other.parent_hash then
      out[#out + 1] = string.format("both come from %s: the first by %s, the second by %s", first.parent or first.parent_hash, words(a.lineage, 1),
        words(b.lineage, 1))
    end
  end
end

local function overlap(x, y)
  local set, n = {}, 0
  for _, i in ipairs(x) do set[i] = true end
  for _, i in ipairs(y) do if set[i] then n = n + 1 end end
  return n
end

-- Where both were pruned first from the same parent: how much of what they kept is the same.
local function kept_lines(a, b, out)
  local first, other = a.lineage[1], b.lineage[1]
  if not (first and other and first.parent_hash and first.parent_hash == other.parent_hash) then return end
  local x, y = store.kept(first) or {}, store.kept(other) or {}
  for _, axis in ipairs { "hidden", "layers", "ffn", "heads", "kv_heads" } do
    if x[axis] and y[axis] then
      local same, of = 0, 0
      local one = axis == "hidden" or axis == "layers"
      for l, set in pairs(one and { x[axis] } or x[axis]) do
        local theirs = one and y[axis] or y[axis][l] or {}
        same, of = same + overlap(set, theirs), of + math.min(#set, #theirs)
      end
      out[#out + 1] = string.format("%s: %d of %d kept by both", axis, same, of)
    end
  end
end

-- |x - y| / |x| over all of a tensor.
local function distance(x, y)
  return tape.no_grad(scope.run, function()
    local x32, y32 = tensor.to(x, "f32"), tensor.to(y, "f32")
    local d, n = tensor.zeros({}, "f64"), tensor.zeros({}, "f64")
    core.ops.sumsq_acc(d.c, tensor.contiguous(x32 - y32).c)
    core.ops.sumsq_acc(n.c, tensor.contiguous(x32).c)
    return math.sqrt(d:item() / n:item()), d:item() == 0
  end)
end

local function weight_lines(a, b, out)
  local x, y = a:parameters(), b:parameters()
  local equal, count, worst, where = 0, 0, 0, nil
  for _, name in ipairs(a:parameter_names()) do
    local d, same = distance(x[name], y[name])
    count, equal = count + 1, equal + (same and 1 or 0)
    if not same and not (d <= worst) then worst, where = d, name end
  end
  if equal == count then out[#out + 1] = "weights: equal numbers, of another dtype or name order" return end
  out[#out + 1] = string.format("weights: %d of %d tensors are the same; the furthest apart is %s, by %.3g of its length", equal, count, where, worst)
end

--- esp.diff(a, b) -> what differs, in words; print it, or read diff.lines (none where the models are the same) and diff.same.
function M.diff(a, b)
  for i, which in ipairs { "first", "second" } do
    local model = (select(i, a, b))
    if type(model) ~= "table" or not model.parameters then fail("esp.diff: want two models, the %s is %s", which, type(model)) end
  end
  local out, ha, hb = {}, hash(a), hash(b)
  shape_lines(shapes.normal(a.shape), shapes.normal(b.shape), out)
  if ha ~= hb then
    origin_lines(a, b, ha, hb, out)
    kept_lines(a, b, out)
  end
  if ha ~= hb and #a:parameter_names() == #b:parameter_names() and shapes.text(a.shape) == shapes.text(b.shape) then weight_lines(a, b, out) end
  return setmetatable({ lines = out, same = ha == hb and #out == 0 }, Diff)
end

function Diff:__tostring()
  return #self.lines == 0 and "the same model" or table.concat(self.lines, "\n")
end

return M
