--- The weights of a candidate as views of a sorted model's.
--
-- Heads stay in Hugging Face's order, so where heads are cut inside their groups the rows of W_Q and the columns of W_O that stay are the fronts of
-- equal blocks: views [groups, rows, columns] and [rows, groups, columns]. A product gathers such a view into scratch that goes right after it: the
-- sums then run in the order of the folder that the slice would be saved as, and the results are its bits.

local tensor = require "espalier.tensor"
local shapes = require "espalier.models.shape"

local M = {}

-- What stays along an axis of a tensor of layer l, as { groups, each } blocks of `own` elements: each of the first groups keeps its first `each`.
local function extent(s, l, new, i, axis)
  if axis == "heads" and shapes.at(s, "heads", l) > 0 then
    local g, e = shapes.at(new, "kv_heads", i), s.head_dim
    return { g, shapes.at(new, "heads", i) / g * e, own = shapes.at(s, "heads", l) / shapes.at(s, "kv_heads", l) * e }
  end
  return { 1, shapes.extent(new, axis, i), own = shapes.extent(s, axis, l) }
end

-- A view of the blocks; the dimension of a block that stays whole is no dimension of its own.
local function view(t, parts)
  local shape, strides, all = {}, {}, t:strides()
  for d, p in ipairs(parts) do
    if p[1] == 1 or p[2] == p.own then
      shape[#shape + 1], strides[#strides + 1] = p[1] * p[2], all[d]
    else
      shape[#shape + 1], strides[#strides + 1] = p[1], p.own * all[d]
      shape[#shape + 1], strides[#strides + 1] = p[2], all[d]
    end
  end
  return tensor.as_strided(t, shape, strides, 0)
end

--- The weights of shape `new` as views of those of a model of shape s, { [hf_name] = tensor }: layer i of it is layer kept_layers[i+1] of the source.
-- Then by name the shapes, as a folder has them, of those that are views of blocks. Vectors with blocks are gathered at once: they are a few hundred
-- numbers, and no operation reads them in parts.
function M.of(from, s, new, kept_layers)
  local weights, shape_of = {}, {}
  for _, t in ipairs(shapes.tensors(new)) do
    local l = t.layer and kept_layers[t.layer + 1]
    local parts = {}
    for d, axis in ipairs(t.axes) do parts[d] = extent(s, l or 0, new, t.layer or 0, axis) end
    local v = view(from[l and "model.layers." .. l .. "." .. t.below or t.name], parts)
    if #v.shape > #t.axes and #t.axes == 1 then v = tensor.view(tensor.clone(v), t.shape) end
    if #v.shape > #t.axes then shape_of[t.name] = t.shape end
    weights[t.name] = v:protect()
  end
  return weights, shape_of
end

--- A view of blocks gathered into a tensor of the shape that a folder has.
function M.flat(v, shape)
  return tensor.view(tensor.clone(v), shape)
end

--- Makes linear layers over a view of blocks gather it when they run; returns the decoder.
function M.gather_when_run(decoder)
  for _, block in ipairs(decoder.model.layers) do
    for _, linear in ipairs { block.self_attn and block.self_attn.q_proj or false, block.self_attn and block.self_attn.o_proj or false } do
      if linear and #linear.weight.shape == 3 then
        local blocks, run = linear.weight, linear.forward
        linear.forward = function(self, ...)
          self.weight = M.flat(blocks, { self.outputs, self.inputs })
          local y = run(self, ...)
          self.weight = blocks
          return y
        end
      end
    end
  end
  return decoder
end

return M
