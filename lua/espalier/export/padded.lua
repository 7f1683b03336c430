--- The twin of a model whose layers differ in width: every layer as wide as the widest, with zeros where a layer has nothing. It computes the same,
-- and programs that know one width for all layers open it.
--
-- A neuron with weights of zero adds nothing. A head with an output projection of zero adds nothing. A layer without attention or MLP becomes one
-- whose part adds nothing. Query heads stay with their key/value heads: the j-th of a layer becomes the j-th of the twin, its query heads the first
-- of that group.

local tensor = require "espalier.tensor"
local lazy = require "espalier.tensor.lazy"
local tape = require "espalier.tape"
local scope = require "espalier.scope"
local shapes = require "espalier.models.shape"
local models = require "espalier.models.model"
local fail = require "espalier.fail"

local M = {}

local function largest_over(s, of)
  local most = 0
  for l = 0, s.layers - 1 do most = math.max(most, of(l)) end
  return most
end

--- The shape of the twin: sizes that differ by layer at their largest, as many query heads to a group as the layer with the most has.
function M.shape(s)
  local u = shapes.copy(s)
  u.ffn = largest_over(s, function(l) return shapes.at(s, "ffn", l) end)
  u.kv_heads = largest_over(s, function(l) return shapes.at(s, "heads", l) > 0 and shapes.at(s, "kv_heads", l) or 0 end)
  local group = largest_over(s, function(l)
    local h = shapes.at(s, "heads", l)
    return h > 0 and h / shapes.at(s, "kv_heads", l) or 0
  end)
  u.heads = u.kv_heads * group
  return u
end

-- Where channel c of an axis of layer l goes in the twin.
local function places(axis, s, u, l)
  if axis ~= "heads" then return function(c) return c end end
  local e, group, wide = s.head_dim, shapes.at(s, "heads", l) / shapes.at(s, "kv_heads", l), u.heads / u.kv_heads
  return function(c)
    local h = math.floor(c / e)
    return (math.floor(h / group) * wide + h % group) * e + c % e
  end
end

-- A norm that is not there in the layer works on what is zero or is multiplied by it, so any weight will do: that of no scaling.
local function fresh(want, s)
  local one = want.name:find "norm%.weight$" and not (s.norm == "rms1p" or s.norm == "layernorm1p")
  return tensor.full(want.shape, one and 1 or 0)
end

-- Rows of a matrix or entries of a vector, each to its place.
local function spread(t, want, s, u)
  local wide, source = tensor.zeros(want.shape), tensor.contiguous(tensor.to(t, "f32"))
  local row, column = places(want.axes[1], s, u, want.layer), want.axes[2] and places(want.axes[2], s, u, want.layer) or function() return 0 end
  local to, from, columns, width = wide:data(), source:data(), t.shape[2] or 1, want.shape[2] or 1
  local target = {}
  for j = 0, columns - 1 do target[j] = column(j) end
  for i = 0, t.shape[1] - 1 do
    local a, b = row(i) * width, i * columns
    for j = 0, columns - 1 do to[a + target[j]] = from[b + j] end
  end
  return wide
end

--- The twin of a model: a model of its own, f32. Errors: layers that do not differ, or a norm over all heads at once, which zeros would change.
function M.twin(model)
  local s = model.shape
  local u = M.shape(s)
  if shapes.same(shapes.normal(s), shapes.normal(u)) then fail("save: padded = true, but all layers of this model are of one width") end
  if u.ffn == 0 or u.heads == 0 then
    fail("save: no layer of this model has %s; there is no width to pad to", u.ffn == 0 and "an MLP" or "attention")
  end
  if s.qk_norm == "whole" and not (shapes.same(s.heads, u.heads) and shapes.same(s.kv_heads, u.kv_heads)) then
    fail("save: this model norms queries and keys over all heads at once, so that heads of zeros change what it computes; it has no padded twin")
  end
  local weights, own = {}, model:parameters()
  tape.no_grad(scope.outside, function()
    for _, want in ipairs(shapes.tensors(u)) do
      local t = own[want.name]
      if lazy.is(t) then t = lazy.load(t) end
      weights[want.name] = not t and fresh(want, s) or shapes.same(t.shape, want.shape) and tensor.to(tensor.clone(t), "f32") or spread(t, want, s, u)
    end
  end)
  return models.new(u, { weights = weights, config = model.config, source = model.source, tokenizer = model.tokenizer,
    lineage = { unpack(model.lineage) } })
end

return M
