--- Which shapes can be cut from a shape: sizes asked for are checked before anything is touched; a refusal names the nearest legal ones.

local shapes = require "espalier.models.shape"
local options = require "espalier.options"
local fail = require "espalier.fail"

local M = {}

--- The options that say what is to be cut, for esp.prune and esp.plan.
M.options = {
  hidden = { "int", help = "embedding channels to keep" }, ffn = { "sizes", help = "neurons to keep in each MLP" },
  heads = { "sizes", help = "attention heads to keep in each layer" }, kv_heads = { "sizes", help = "key/value heads to keep in each layer" },
  layers = { "int", help = "layers to keep" }, drop = { "list", help = "layers to drop, counted from 0" },
  drop_attention = { "list", help = "layers that lose their attention" }, drop_mlp = { "list", help = "layers that lose their MLP" },
}

function M.merged(more)
  local all = {}
  for k, v in pairs(M.options) do all[k] = v end
  for k, v in pairs(more) do all[k] = v end
  return all
end

local function largest(s, axis)
  local v = s[axis]
  return type(v) == "table" and math.max(unpack(v)) or v
end

--- What a size, a number or a list by layer, says of layer l.
function M.at(size, l)
  if type(size) == "table" then return size[l + 1] end
  return size
end

local function within(what, name, value, most)
  if value < 1 or value > most then fail("%s: %s = %d, want 1 to %d (what the model has)", what, name, value, most) end
end

-- Layers of a list as a set, each inside the model.
local function layer_set(what, name, list, layers)
  local set = {}
  for _, l in ipairs(list or {}) do
    if type(l) ~= "number" or l ~= math.floor(l) or l < 0 or l >= layers then
      fail("%s: %s names layer %s, want 0 to %d", what, name, tostring(l), layers - 1)
    end
    set[l] = true
  end
  return set
end

-- Heads that divide among their groups: of the whole model where l is nil, else of layer l.
local function check_heads(what, s, opt, l)
  local function own(axis) return l and shapes.at(s, axis, l) or largest(s, axis) end
  local each = own "kv_heads" > 0 and own "heads" / own "kv_heads" or 0
  local groups = M.at(opt.kv_heads, l or 0) or own "kv_heads"
  local heads = M.at(opt.heads, l or 0) or each * groups
  if heads == 0 and groups == 0 or (l and heads == 0) then return end
  if groups == 0 or heads == 0 or heads % groups ~= 0 or heads / groups > each then
    groups = math.max(groups, 1)
    local low = math.max(1, math.floor(heads / groups)) * groups
    local high = math.min(math.ceil(heads / groups), each) * groups
    low = math.min(low, high)
    fail("%s: heads = %d with %d kv_heads%s; each group keeps as many heads, at most %d: %s", what, heads, groups, l and " in layer " .. l or "",
      each, low < high and string.format("the nearest legal are %d and %d", low, high) or string.format("the nearest legal is %d", low))
  end
end

-- A list by layer: as long as the model, 0 (the part goes) or what the layer has at most.
local function check_list(what, s, axis, list)
  if #list ~= s.layers then fail("%s: %s lists %d layers, want %d", what, axis, #list, s.layers) end
  for l = 0, s.layers - 1 do
    local most = shapes.at(s, axis, l)
    if list[l + 1] < 0 or list[l + 1] > most then
      fail("%s: %s = %d in layer %d, want 0 to %d (what the layer has)", what, axis, list[l + 1], l, most)
    end
  end
end

--- Checks the sizes against a shape and returns which layers the lists name: { drop, drop_attention, drop_mlp } as sets.
function M.check(what, s, opt)
  for _, axis in ipairs { "hidden", "ffn", "heads", "kv_heads" } do
    if type(opt[axis]) == "table" then check_list(what, s, axis, opt[axis])
    elseif opt[axis] then within(what, axis, opt[axis], largest(s, axis)) end
  end
  if opt.layers and opt.drop then fail("%s: both layers and drop are given; name one", what) end
  if opt.layers then within(what, "layers", opt.layers, s.layers) end
  if type(opt.heads) == "table" or type(opt.kv_heads) == "table" then
    for l = 0, s.layers - 1 do check_heads(what, s, opt, l) end
  elseif opt.heads or opt.kv_heads then
    check_heads(what, s, opt)
  end
  local sets = {}
  for _, name in ipairs { "drop", "drop_attention", "drop_mlp" } do sets[name] = layer_set(what, name, opt[name], s.layers) end
  local dropped = 0
  for _ in pairs(sets.drop) do dropped = dropped + 1 end
  if dropped == s.layers then fail("%s: drop names every layer; at least one must stay", what) end
  return sets
end

--- The shape that is left. kept_layers: the layers that stay, counted from 0 (all where nil).
function M.result(s, opt, sets, kept_layers)
  local new = shapes.copy(s)
  new.hidden = opt.hidden or s.hidden
  if not kept_layers then
    kept_layers = {}
    for l = 0, s.layers - 1 do if not sets.drop[l] then kept_layers[#kept_layers + 1] = l end end
    -- A number of layers without scores: which ones does not matter for a plan of equal layers.
    while opt.layers and #kept_layers > opt.layers do kept_layers[#kept_layers] = nil end
  end
  local lists = { ffn = {}, heads = {}, kv_heads = {} }
  for i, l in ipairs(kept_layers) do
    local f, h, g = shapes.at(s, "ffn", l), shapes.at(s, "heads", l), shapes.at(s, "kv_heads", l)
    if sets.drop_mlp[l] then f = 0 end
    if sets.drop_attention[l] then h, g = 0, 0 end
    local keep_g = g > 0 and (M.at(opt.kv_heads, l) or g) or 0
    local keep_h = h > 0 and (M.at(opt.heads, l) or h / g * keep_g) or 0
    lists.ffn[i] = f > 0 and math.min(M.at(opt.ffn, l) or f, f) or 0
    lists.heads[i] = keep_h
    lists.kv_heads[i] = keep_h > 0 and keep_g or 0
  end
  new.layers = #kept_layers
  for axis, list in pairs(lists) do new[axis] = shapes.uniform(list) end
  -- What the layers that stay had of their own stays theirs.
  for _, name in ipairs { "window", "rotary" } do
    if type(s[name]) == "table" then
      local list = {}
      for i, l in ipairs(kept_layers) do list[i] = s[name][l + 1] end
      new[name] = list
    end
  end
  return shapes.normal(shapes.check(new, "prune")), kept_layers
end

--- Checked options of a call.
function M.parse(what, opt, more)
  if type(opt) == "table" and opt.head_dim then
    fail("%s: head_dim cannot be cut: rotary frequencies follow from it, and no config.json says which pairs of channels stayed", what)
  end
  return options.check(what, opt, M.merged(more or {}))
end

return M
