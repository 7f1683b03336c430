--- Pruning: a smaller model of the rows and columns that a ranking keeps. The model given never changes.

local tensor = require "espalier.tensor"
local lazy = require "espalier.tensor.lazy"
local tape = require "espalier.tape"
local scope = require "espalier.scope"
local models = require "espalier.models.model"
local shapes = require "espalier.models.shape"
local legal = require "espalier.prune.legal"
local hash = require "espalier.models.hash"
local fail = require "espalier.fail"

local M = {}

-- Channels of kept heads: head h owns h*e .. h*e+e-1.
local function channels(heads, e)
  local list = {}
  for _, h in ipairs(heads) do
    for i = 0, e - 1 do list[#list + 1] = h * e + i end
  end
  return list
end

-- What is kept along an axis of a tensor of layer l of the source; nil: all of it.
local function kept_along(axis, l, s, sets)
  if axis == "hidden" then return sets.hidden end
  if axis == "ffn" then return sets.ffn and sets.ffn[l + 1] end
  if axis == "heads" or axis == "kv_heads" then return sets[axis] and channels(sets[axis][l + 1], s.head_dim) end
end

--- Weights of the shape `new`, cut from those of a model of shape s: layer i of it is layer kept_layers[i+1] of the source. The order of a set is the
-- order of what it keeps. Weights of a model that was opened are cut when they are first used, or while they are saved.
function M.cut(new, from, s, sets, kept_layers)
  local weights, index = {}, {}
  -- One tensor of indices for all that are cut by the same list.
  local function indices(list)
    if list and not index[list] then index[list] = tensor.of(list, { dtype = "i32" }) end
    return list and index[list]
  end
  for _, t in ipairs(shapes.tensors(new)) do
    local l = t.layer and kept_layers[t.layer + 1]
    local source = from[l and "model.layers." .. l .. "." .. t.below or t.name]
    local rows, columns = kept_along(t.axes[1], l, s, sets), t.axes[2] and kept_along(t.axes[2], l, s, sets)
    weights[t.name] = lazy.take(source, indices(rows), indices(columns), string.format("esp.prune: '%s'", t.name))
  end
  return weights
end

local function is_statistics(x) return type(x) == "table" and x.sums ~= nil and x.rank ~= nil end

-- Sizes that leave an axis as it is are not ranked at all.
local function changes(s, opt)
  local sizes = {}
  for _, axis in ipairs { "hidden", "layers" } do if opt[axis] and opt[axis] < s[axis] then sizes[axis] = opt[axis] end end
  sizes.ffn, sizes.heads, sizes.kv_heads = opt.ffn, opt.heads, opt.kv_heads
  -- Sets that are given replace the ranking's.
  for axis in pairs(opt.keep or {}) do sizes[axis] = nil end
  return sizes
end

-- The options with the sizes that the sets have: where layers compete over the network each has its own.
local function by_layer(s, opt, sets)
  local own = {}
  for name, value in pairs(opt) do own[name] = value end
  for _, axis in ipairs { "ffn", "heads", "kv_heads" } do
    if sets[axis] then
      own[axis] = {}
      for l = 0, s.layers - 1 do own[axis][l + 1] = sets[axis][l + 1] and #sets[axis][l + 1] or 0 end
    end
  end
  return own
end

-- The sizes and lists of a call, as the lineage keeps them.
local function asked(opt)
  local own = {}
  for name in pairs(legal.options) do own[name] = opt[name] end
  own.compensate = opt.compensate or nil
  own.heads_residual = opt.heads_residual ~= 0 and opt.heads_residual or nil
  return own
end

-- The parameters to cut from: where asked for, with what pruned heads were given to those that stay. Who gave to whom is kept among the sets.
local function with_residual(model, r, ranking, sets)
  if r == 0 or not sets.heads then return model:parameters() end
  local residual = require "espalier.prune.residual"
  if not (sets.partners or ranking and ranking.orders) then fail("esp.prune: heads_residual pairs heads by importance, which needs a ranking") end
  sets.partners = sets.partners or residual.partners(model.shape, ranking:orders(model), sets.heads)
  return residual.apply(model:parameters(), model.shape, sets.partners, r)
end

--- esp.prune(model, statistics or ranking, opt) -> model: width and depth in one call.
-- opt.hidden, ffn, heads, kv_heads, layers: sizes to keep (heads inside each group of key/value heads; layers by the ranking's layer metric); of ffn,
-- heads and kv_heads also lists by layer of the model given, where 0 takes that part of the layer away;
-- opt.drop, drop_attention, drop_mlp: lists of layers, from 0. opt.keep: sets of indices that replace the ranking's, by axis.
-- opt.compensate: what the neurons and heads that go added on average is given back as an output bias (FLAP, 2312.11983); refused where the
-- architecture has no such bias.
-- opt.heads_residual: r (0): heads that stay are paired with heads that go and become head + r (head - partner); 1 is what 2407.14679 prints.
-- Statistics of another model are refused, by the hash of its weights; stats:taken_for(model) insists.
-- Bare statistics rank hidden, ffn and heads by activation (l2, mean) and layers by bi, which is printed. Ties go to the lower index.
function M.prune(model, scores, opt)
  opt = legal.parse("esp.prune", opt, { keep = { "table" }, compensate = { "bool", default = false }, heads_residual = { "number", default = 0 },
    quiet = { "bool", default = false } })
  if type(model) ~= "table" or not model.parameters then fail("esp.prune: the first argument is %s, want a model", type(model)) end
  local s = model.shape
  local lists = legal.check("esp.prune", s, opt)
  local sizes = changes(s, opt)
  local ranking = is_statistics(scores) and scores:rank {} or scores
  local sets, parent_hash = {}, hash(model)
  if next(sizes) then
    if not (ranking and ranking.kept) then fail("esp.prune: the second argument is %s, want statistics or a ranking", type(scores)) end
    ranking.stats:check_model("esp.prune", model, parent_hash)
    if is_statistics(scores) and not opt.quiet then print(tostring(ranking)) end
    sets = ranking:kept(sizes, model)
  end
  for axis, own in pairs(opt.keep or {}) do sets[axis] = own end
  local new, kept_layers = legal.result(s, by_layer(s, opt, sets), lists, sets.layers)
  local weights = tape.no_grad(scope.outside, function()
    return M.cut(new, with_residual(model, opt.heads_residual, ranking, sets), s, sets, kept_layers)
  end)
  if opt.compensate then
    if ranking and ranking.stats then ranking.stats:check_model("esp.prune", model, parent_hash) end
    new = require("espalier.prune.compensate").apply(weights, new, model, ranking and ranking.stats, sets, kept_layers)
  end
  local step = { step = "prune", parent = model.source, parent_hash = parent_hash, by = ranking and ranking.kept and tostring(ranking) or nil,
    statistics_hash = next(sizes) and ranking.stats:hash() or nil, asked = asked(opt), before = shapes.text(s), after = shapes.text(new),
    kept = { hidden = sets.hidden, ffn = sets.ffn, heads = sets.heads, kv_heads = sets.kv_heads, layers = kept_layers, partners = sets.partners } }
  local lineage = { unpack(model.lineage) }
  lineage[#lineage + 1] = step
  return models.new(new, { weights = weights, config = model.config, source = model.source, tokenizer = model.tokenizer, lineage = lineage }), sets
end

return M
