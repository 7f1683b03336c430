--- Pruning: a smaller model of the rows and columns that a ranking keeps. The model given never changes.

local tensor = require "espalier.tensor"
local tape = require "espalier.tape"
local models = require "espalier.models.model"
local shapes = require "espalier.models.shape"
local legal = require "espalier.prune.legal"
local huggingface = require "espalier.models.huggingface"
local json = require "espalier.io.json"
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

-- t with only the kept rows (axis 0) and columns (axis 1); nil keeps all. Always a new tensor.
local function cut(t, rows, columns)
  if rows then t = tensor.index_select(t, 0, rows) end
  if columns then t = tensor.index_select(t, #t.shape - 1, columns) end
  return (rows or columns) and t or tensor.clone(t)
end

-- Weights of layer l of the source, cut, under the names of layer i.
local function cut_layer(out, from, l, i, s, sets, parts)
  local e, hidden = s.head_dim, sets.hidden
  local function put(name, rows, columns)
    local t = from["model.layers." .. l .. "." .. name .. ".weight"]
    out["model.layers." .. i .. "." .. name .. ".weight"] = cut(t, rows, columns)
  end
  if parts.attention then
    local q = sets.heads and channels(sets.heads[l + 1], e)
    local kv = sets.kv_heads and channels(sets.kv_heads[l + 1], e)
    put("input_layernorm", nil, hidden)
    put("self_attn.q_proj", q, hidden)
    put("self_attn.k_proj", kv, hidden)
    put("self_attn.v_proj", kv, hidden)
    put("self_attn.o_proj", hidden, q)
  end
  if parts.mlp then
    local f = sets.ffn and sets.ffn[l + 1]
    put("post_attention_layernorm", nil, hidden)
    put("mlp.gate_proj", f, hidden)
    put("mlp.up_proj", f, hidden)
    put("mlp.down_proj", hidden, f)
  end
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

--- esp.prune(model, statistics or ranking, opt) -> model: width and depth in one call.
-- opt.hidden, ffn, heads, kv_heads, layers: sizes to keep (heads inside each group of key/value heads; layers by the ranking's layer metric);
-- opt.drop, drop_attention, drop_mlp: lists of layers, from 0. opt.keep: sets of indices that replace the ranking's, by axis.
-- Bare statistics rank hidden, ffn and heads by activation (l2, mean) and layers by bi, which is printed. Ties go to the lower index.
function M.prune(model, scores, opt)
  opt = legal.parse("esp.prune", opt, { keep = { "table" }, quiet = { "bool", default = false } })
  local s = model.shape
  local lists = legal.check("esp.prune", s, opt)
  local sizes = changes(s, opt)
  local ranking = is_statistics(scores) and scores:rank {} or scores
  local sets = {}
  if next(sizes) then
    if not (ranking and ranking.kept) then fail("esp.prune: the second argument is %s, want statistics or a ranking", type(scores)) end
    if shapes.text(ranking.stats.shape) ~= shapes.text(s) then
      fail("esp.prune: the statistics are of a model with %s, this one has %s", shapes.text(ranking.stats.shape), shapes.text(s))
    end
    if is_statistics(scores) and not opt.quiet then print(tostring(ranking)) end
    sets = ranking:kept(sizes, model)
  end
  for axis, own in pairs(opt.keep or {}) do sets[axis] = own end
  local new, kept_layers = legal.result(s, opt, lists, sets.layers)
  local weights, from = {}, model:parameters()
  tape.no_grad(tape.outside_scopes, function()
    for i, l in ipairs(kept_layers) do
      cut_layer(weights, from, l, i - 1, s, sets, { attention = shapes.at(new, "heads", i - 1) > 0, mlp = shapes.at(new, "ffn", i - 1) > 0 })
    end
    for _, name in ipairs { "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight" } do
      if from[name] then weights[name] = cut(from[name], nil, sets.hidden) end
    end
    for name, t in pairs(weights) do huggingface.check_finite(name, t, "esp.prune") end
  end)
  local lineage = { unpack(model.lineage) }
  local function array(list) return list and json.array { unpack(list) } end
  lineage[#lineage + 1] = { step = "prune", parent = model.source, by = ranking and tostring(ranking) or nil, before = shapes.text(s),
    after = shapes.text(new), layers = array(kept_layers), hidden = array(sets.hidden) }
  return models.new(new, { weights = weights, config = model.config, source = model.source, tokenizer = model.tokenizer, lineage = lineage }), sets
end

return M
