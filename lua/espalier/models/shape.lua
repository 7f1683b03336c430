--- The shape of a model: plain data, and what follows from it without a weight: its tensors, parameters, bytes, legality.
--
-- Sizes: hidden, ffn, layers, heads, kv_heads, head_dim, vocab, context; norm_eps; tied (is the head the embedding?). ffn, heads and kv_heads are
-- numbers, or lists (entry l+1 is layer l) where layers differ; heads = 0: no attention in that layer, ffn = 0: no MLP.
-- Rotary positions: rope = { theta, scaling = { type = "linear" | "dynamic" | "llama3" | "yarn" | "longrope", .. }, partial = 1 } (nn/rope.lua).
-- Options, each absent where a plain LLaMA has nothing of the kind:
--   norm            "rms" (absent), "rms1p": times (1 + w), "layernorm", "layernorm1p": with a bias, the latter times (1 + w)
--   norms           "pre" (absent): before each part, "post": after it, before it is added, "both"
--   qk_norm         "head": queries and keys normed head by head, "whole": over all heads at once; before they turn
--   activation      "silu" (absent), "gelu_tanh", "relu2"
--   gated           false: the MLP is down(act(up(x))), without a gate
--   biases          { qkv = true, output = true, mlp = true }: which linear layers have one
--   window          keys that a query sees, itself among them: a number, or a list by layer with 0 where there is no window
--   rotary          list by layer: false where queries and keys do not turn
--   query_scalar    attention scores are q.k / sqrt(query_scalar); absent: head_dim
--   attention_cap, logit_cap   scores, or logits, become cap tanh(x / cap)
--   embedding_scale "root": embeddings are multiplied by sqrt(hidden), of this shape, whatever it was cut from

local options = require "espalier.options"
local fail = require "espalier.fail"

local M = {}

--- What each option may be; true: checked elsewhere. The names are all that a shape may hold.
local known = {
  hidden = true, ffn = true, layers = true, heads = true, kv_heads = true, head_dim = true, vocab = true, context = true, norm_eps = true,
  tied = true, rope = true, biases = true, window = true, rotary = true, query_scalar = true, attention_cap = true, logit_cap = true,
  norm = { "rms", "rms1p", "layernorm", "layernorm1p" }, norms = { "pre", "post", "both" }, qk_norm = { "head", "whole" },
  activation = { "silu", "gelu_tanh", "relu2" }, gated = { true, false }, embedding_scale = { "root" },
}

--- Names of the norms of a block by place, for each layout; as Hugging Face has them.
M.norms = {
  pre = { before_attention = "input_layernorm", before_mlp = "post_attention_layernorm" },
  post = { after_attention = "post_attention_layernorm", after_mlp = "post_feedforward_layernorm" },
  both = { before_attention = "input_layernorm", after_attention = "post_attention_layernorm", before_mlp = "pre_feedforward_layernorm",
    after_mlp = "post_feedforward_layernorm" },
}

--- Fields that may be lists by layer.
M.by_layer = { "ffn", "heads", "kv_heads", "window", "rotary" }

--- shape.at(s, "ffn", l): the size of one layer.
function M.at(s, axis, l)
  local v = s[axis]
  if type(v) == "table" then return v[l + 1] end
  return v
end

--- A number where all layers agree, else the list.
function M.uniform(list)
  for _, v in ipairs(list) do if v ~= list[1] then return list end end
  return list[1]
end

local function copy(v)
  if type(v) ~= "table" then return v end
  local c = {}
  for k, x in pairs(v) do c[k] = copy(x) end
  return c
end
M.copy = copy

--- Deep equality of plain data.
function M.same(a, b)
  if type(a) ~= "table" or type(b) ~= "table" then return a == b end
  for k, v in pairs(a) do if not M.same(v, b[k]) then return false end end
  for k in pairs(b) do if a[k] == nil then return false end end
  return true
end

local defaults = { norm = "rms", norms = "pre", activation = "silu", gated = true, rotary = true, window = 0 }

--- A copy in which every option that says what its absence says is absent: two shapes are the same where their normal forms are.
function M.normal(s)
  local n = M.copy(s)
  for _, name in ipairs(M.by_layer) do if type(n[name]) == "table" then n[name] = M.uniform(n[name]) end end
  for name, v in pairs(defaults) do if n[name] == v then n[name] = nil end end
  if n.query_scalar == n.head_dim then n.query_scalar = nil end
  for name, on in pairs(n.biases or {}) do if not on then n.biases[name] = nil end end
  if n.biases and not next(n.biases) then n.biases = nil end
  if n.rope and n.rope.partial == 1 then n.rope.partial = nil end
  n.tied = n.tied or false
  return n
end

-- ---- tensors ----

local function norm_tensors(list, s, name, axis)
  list[#list + 1] = { name .. ".weight", axis }
  if s.norm == "layernorm" or s.norm == "layernorm1p" then list[#list + 1] = { name .. ".bias", axis } end
end

local function linear_tensors(list, name, rows, columns, bias)
  list[#list + 1] = { name .. ".weight", rows, columns }
  if bias then list[#list + 1] = { name .. ".bias", rows } end
end

local function attention_tensors(list, s, names)
  local biases, q_axis, k_axis = s.biases or {}, "head_dim", "head_dim"
  if s.qk_norm == "whole" then q_axis, k_axis = "heads", "kv_heads" end
  if names.before_attention then norm_tensors(list, s, names.before_attention, "hidden") end
  linear_tensors(list, "self_attn.q_proj", "heads", "hidden", biases.qkv)
  linear_tensors(list, "self_attn.k_proj", "kv_heads", "hidden", biases.qkv)
  linear_tensors(list, "self_attn.v_proj", "kv_heads", "hidden", biases.qkv)
  linear_tensors(list, "self_attn.o_proj", "hidden", "heads", biases.output)
  if s.qk_norm then
    norm_tensors(list, s, "self_attn.q_norm", q_axis)
    norm_tensors(list, s, "self_attn.k_norm", k_axis)
  end
  if names.after_attention then norm_tensors(list, s, names.after_attention, "hidden") end
end

local function mlp_tensors(list, s, names)
  local bias = (s.biases or {}).mlp
  if names.before_mlp then norm_tensors(list, s, names.before_mlp, "hidden") end
  if s.gated ~= false then linear_tensors(list, "mlp.gate_proj", "ffn", "hidden", bias) end
  linear_tensors(list, "mlp.up_proj", "ffn", "hidden", bias)
  linear_tensors(list, "mlp.down_proj", "hidden", "ffn", bias)
  if names.after_mlp then norm_tensors(list, s, names.after_mlp, "hidden") end
end

-- Tensors of a layer as { name below "model.layers.L.", axis of its rows [, axis of its columns] }.
local function layer_tensors(s, l)
  local list, names = {}, M.norms[s.norms or "pre"]
  if M.at(s, "heads", l) > 0 then attention_tensors(list, s, names) end
  if M.at(s, "ffn", l) > 0 then mlp_tensors(list, s, names) end
  return list
end

local function outer_tensors(s)
  local list = { { "model.embed_tokens.weight", "vocab", "hidden" } }
  norm_tensors(list, s, "model.norm", "hidden")
  if not s.tied then list[#list + 1] = { "lm_head.weight", "vocab", "hidden" } end
  return list
end

--- Channels along an axis of a tensor of layer l: "heads" and "kv_heads" count channels (heads times head_dim) here.
function M.extent(s, axis, l)
  if axis == "heads" or axis == "kv_heads" then return M.at(s, axis, l) * s.head_dim end
  return M.at(s, axis, l)
end

--- Every tensor of a shape, layer by layer: a list of { name, layer (nil outside the layers), below (its name in the layer), axes, shape }.
-- axes says what each dimension counts: hidden, ffn, heads, kv_heads (both times head_dim), head_dim, vocab. Loading, counting, cutting and
-- saving all walk this list.
function M.tensors(s)
  local out = {}
  local function add(t, l)
    local axes, shape = { t[2], t[3] }, {}
    for d, axis in ipairs(axes) do shape[d] = M.extent(s, axis, l or 0) end
    out[#out + 1] = { name = l and "model.layers." .. l .. "." .. t[1] or t[1], layer = l, below = l and t[1] or nil, axes = axes, shape = shape }
  end
  local outer = outer_tensors(s)
  add(outer[1])
  for l = 0, s.layers - 1 do for _, t in ipairs(layer_tensors(s, l)) do add(t, l) end end
  for i = 2, #outer do add(outer[i]) end
  return out
end

-- ---- counts ----

local function elements(s, list, l)
  local total = 0
  for _, t in ipairs(list) do total = total + M.extent(s, t[2], l) * (t[3] and M.extent(s, t[3], l) or 1) end
  return total
end

--- Exact number of parameters.
function M.parameters(s)
  local total, counted = elements(s, outer_tensors(s), 0), {}
  for l = 0, s.layers - 1 do
    -- Layers of one size have one count.
    local key = M.at(s, "heads", l) .. " " .. M.at(s, "kv_heads", l) .. " " .. M.at(s, "ffn", l)
    counted[key] = counted[key] or elements(s, layer_tensors(s, l), l)
    total = total + counted[key]
  end
  return total
end

function M.embedding_parameters(s)
  return (s.tied and 1 or 2) * s.vocab * s.hidden
end

--- Bytes of keys and values of one token in a dtype of `bytes` bytes.
function M.kv_bytes(s, bytes)
  local total = 0
  for l = 0, s.layers - 1 do if M.at(s, "heads", l) > 0 then total = total + 2 * M.at(s, "kv_heads", l) * s.head_dim * bytes end end
  return total
end

--- Floating point operations of one token forward, with `length` tokens before it.
function M.flops(s, length)
  local total = 2 * (M.parameters(s) - (s.tied and 0 or s.vocab * s.hidden))
  for l = 0, s.layers - 1 do
    local window = M.at(s, "window", l) or 0
    local seen = window > 0 and math.min(window, length) or length
    total = total + 4 * M.at(s, "heads", l) * s.head_dim * seen
  end
  return total
end

-- ---- legality ----

local function whole(v)
  return type(v) == "number" and v == math.floor(v) and v == v
end

local function check_options(s, what)
  for name, v in pairs(s) do
    local allowed = known[name]
    if not allowed then
      local names = {}
      for one in pairs(known) do names[#names + 1] = one end
      local near = options.nearest(tostring(name), names)
      fail("%s: a shape has no '%s'%s", what, tostring(name), near and "; did you mean '" .. near .. "'?" or "")
    end
    if allowed ~= true then
      local ok = false
      local words = {}
      for i, one in ipairs(allowed) do ok, words[i] = ok or one == v, tostring(one) end
      if not ok then fail("%s: %s is '%s', want one of %s", what, name, tostring(v), table.concat(words, ", ")) end
    end
  end
  for _, name in ipairs { "query_scalar", "attention_cap", "logit_cap" } do
    if s[name] and not (type(s[name]) == "number" and s[name] > 0) then fail("%s: %s is %s, want a number above 0", what, name, tostring(s[name])) end
  end
end

local function check_layer(s, l, what)
  for _, name in ipairs { "ffn", "heads", "kv_heads", "window" } do
    local v = M.at(s, name, l)
    if v == nil and name == "window" then v = 0 end
    if not whole(v) or v < 0 then fail("%s: %s of layer %d is %s, want a whole number from 0", what, name, l, tostring(v)) end
  end
  local h, g = M.at(s, "heads", l), M.at(s, "kv_heads", l)
  if h > 0 and (g < 1 or h % g ~= 0) then
    local low, high = g > 0 and math.floor(h / g) * g or 0, g > 0 and math.ceil(h / g) * g or 0
    fail("%s: %d heads do not divide among %d kv_heads in layer %d; the nearest legal are %d and %d heads", what, h, g, l, math.max(low, g), high)
  end
end

local most_layers = 10000

--- Refuses a shape that cannot be, naming the rule. what names the speaker ("prune").
function M.check(s, what)
  check_options(s, what)
  for _, name in ipairs { "hidden", "layers", "head_dim", "vocab", "context" } do
    if not whole(s[name]) or s[name] < 1 then fail("%s: %s is %s, want a whole number from 1", what, name, tostring(s[name])) end
  end
  -- Sizes are walked layer by layer: a config that lies must not take hours to be refused.
  if s.layers > most_layers then fail("%s: layers is %.0f, want at most %d", what, s.layers, most_layers) end
  if s.head_dim % 2 ~= 0 then fail("%s: head_dim is %d, want an even number (rotary channels turn in pairs)", what, s.head_dim) end
  local turning = math.floor(s.head_dim * (s.rope and s.rope.partial or 1))
  if turning < 2 or turning > s.head_dim or turning % 2 ~= 0 then
    fail("%s: rope.partial is %g, which turns %d of %d channels, want an even number from 2", what, s.rope.partial, turning, s.head_dim)
  end
  for _, name in ipairs(M.by_layer) do
    local list = s[name]
    if type(list) == "table" and #list ~= s.layers then fail("%s: %s lists %d layers, want %d", what, name, #list, s.layers) end
  end
  for l = 0, s.layers - 1 do check_layer(s, l, what) end
  return s
end

local function span(v)
  if type(v) ~= "table" then return tostring(v) end
  return string.format("%d..%d", math.min(unpack(v)), math.max(unpack(v)))
end

--- One line for people.
function M.text(s)
  return string.format("hidden %d, ffn %s, layers %d, heads %s, kv_heads %s, head_dim %d, vocab %d", s.hidden, span(s.ffn), s.layers,
    span(s.heads), span(s.kv_heads), s.head_dim, s.vocab)
end

return M
