--- The shape of a model: plain data read from config.json, and what follows from it without a weight: parameters, bytes, legality.
--
-- shape = { hidden, ffn, layers, heads, kv_heads, head_dim, vocab, context, norm_eps, rope = { theta, scaling }, tied }. ffn, heads and kv_heads
-- are numbers, or lists (entry l+1 is layer l) where layers differ; heads = 0: no attention in that layer, ffn = 0: no MLP.

local fail = require "espalier.fail"
local json = require "espalier.io.json"

local M = {}

--- Key of config.json under which per-layer sizes stand: { ffn = [..], heads = [..], kv_heads = [..] }.
M.layers_key = "espalier_layers"

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

function M.copy(s)
  local c = {}
  for k, v in pairs(s) do
    if type(v) == "table" then
      local list = {}
      for i, x in pairs(v) do list[i] = x end
      v = list
    end
    c[k] = v
  end
  return c
end

--- Exact number of parameters: a layer has 2 d h e + 2 d g e with attention, 3 d f with an MLP, and a norm d for each of the two parts.
function M.parameters(s)
  local d, e, total = s.hidden, s.head_dim, s.hidden
  for l = 0, s.layers - 1 do
    local h, g, f = M.at(s, "heads", l), M.at(s, "kv_heads", l), M.at(s, "ffn", l)
    if h > 0 then total = total + 2 * d * h * e + 2 * d * g * e + d end
    if f > 0 then total = total + 3 * d * f + d end
  end
  return total + M.embedding_parameters(s)
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
  for l = 0, s.layers - 1 do total = total + 4 * M.at(s, "heads", l) * s.head_dim * length end
  return total
end

-- ---- legality ----

local function whole(v)
  return type(v) == "number" and v == math.floor(v) and v == v
end

--- Refuses a shape that cannot be, naming the rule. what names the speaker ("prune").
function M.check(s, what)
  for _, name in ipairs { "hidden", "layers", "head_dim", "vocab", "context" } do
    if not whole(s[name]) or s[name] < 1 then fail("%s: %s is %s, want a whole number from 1", what, name, tostring(s[name])) end
  end
  if s.head_dim % 2 ~= 0 then fail("%s: head_dim is %d, want an even number (rotary channels turn in pairs)", what, s.head_dim) end
  for l = 0, s.layers - 1 do
    for _, name in ipairs { "ffn", "heads", "kv_heads" } do
      local v = M.at(s, name, l)
      if not whole(v) or v < 0 then fail("%s: %s of layer %d is %s, want a whole number from 0", what, name, l, tostring(v)) end
    end
    local h, g = M.at(s, "heads", l), M.at(s, "kv_heads", l)
    if h > 0 and (g < 1 or h % g ~= 0) then
      local low, high = g > 0 and math.floor(h / g) * g or 0, g > 0 and math.ceil(h / g) * g or 0
      fail("%s: %d heads do not divide among %d kv_heads in layer %d; the nearest legal are %d and %d heads", what, h, g, l, math.max(low, g), high)
    end
  end
  return s
end

-- ---- config.json ----

local function field(config, name, where, kind)
  local v = config[name]
  if v == nil or v == json.null then fail("%s: field '%s' is missing, want a %s", where, name, kind or "number") end
  if type(v) ~= (kind or "number") then fail("%s: field '%s' is %s, want a %s", where, name, tostring(v), kind or "number") end
  return v
end

local function optional(v)
  if v == json.null then return nil end
  return v
end

-- Both spellings: rope_theta with rope_scaling (before transformers 5), rope_parameters (since).
local function rope_of(config, where)
  local p = optional(config.rope_parameters)
  local scaling = p or optional(config.rope_scaling)
  local theta = p and p.rope_theta or optional(config.rope_theta) or 10000
  local kind = scaling and (scaling.rope_type or scaling.type) or "default"
  if kind == "default" then return { theta = theta } end
  if kind == "linear" then return { theta = theta, scaling = { type = "linear", factor = field(scaling, "factor", where) } } end
  if kind == "llama3" then
    return { theta = theta, scaling = { type = "llama3", factor = field(scaling, "factor", where),
      low_freq_factor = field(scaling, "low_freq_factor", where), high_freq_factor = field(scaling, "high_freq_factor", where),
      original_context = field(scaling, "original_max_position_embeddings", where) } }
  end
  fail("%s: rope type '%s' is not known, want default, linear or llama3", where, tostring(kind))
end

local function refuse_foreign(config, where)
  local kind = field(config, "model_type", where, "string")
  if kind ~= "llama" and kind ~= "mistral" then fail("%s: model_type '%s' is not known, want llama or mistral", where, kind) end
  local act = optional(config.hidden_act) or "silu"
  if act ~= "silu" then fail("%s: hidden_act is '%s', want silu", where, tostring(act)) end
  for _, name in ipairs { "attention_bias", "mlp_bias" } do
    if config[name] == true then fail("%s: %s is true, want false (layers with biases are not known)", where, name) end
  end
end

--- The shape that a parsed config.json describes; where names the file in messages.
function M.of_config(config, where)
  refuse_foreign(config, where)
  local heads, hidden = field(config, "num_attention_heads", where), field(config, "hidden_size", where)
  local context = field(config, "max_position_embeddings", where)
  local window = optional(config.sliding_window)
  local s = {
    hidden = hidden, ffn = field(config, "intermediate_size", where), layers = field(config, "num_hidden_layers", where), heads = heads,
    kv_heads = optional(config.num_key_value_heads) or heads, head_dim = optional(config.head_dim) or hidden / heads,
    vocab = field(config, "vocab_size", where), context = window and math.min(window, context) or context,
    norm_eps = field(config, "rms_norm_eps", where), rope = rope_of(config, where), tied = config.tie_word_embeddings == true,
  }
  local lists = optional(config[M.layers_key])
  for name, list in pairs(lists or {}) do
    if type(list) ~= "table" or #list ~= s.layers then fail("%s: %s.%s wants %d numbers, one a layer", where, M.layers_key, name, s.layers) end
    s[name] = M.uniform(list)
  end
  return M.check(s, where)
end

local function rope_config(rope)
  local p = { rope_type = "default" }
  if rope.scaling then
    p = { rope_type = rope.scaling.type, factor = rope.scaling.factor, low_freq_factor = rope.scaling.low_freq_factor,
      high_freq_factor = rope.scaling.high_freq_factor, original_max_position_embeddings = rope.scaling.original_context }
  end
  return p
end

--- config.json of a shape: the source's other fields stay; both rope spellings, head_dim and the dtype are always written.
function M.to_config(s, source, dtype)
  local c = source and json.copy(source) or { model_type = "llama", hidden_act = "silu", attention_bias = false, mlp_bias = false }
  local names = { f32 = "float32", bf16 = "bfloat16", f16 = "float16" }
  c.architectures = json.array { c.model_type == "mistral" and "MistralForCausalLM" or "LlamaForCausalLM" }
  c.hidden_size, c.num_hidden_layers, c.head_dim, c.vocab_size = s.hidden, s.layers, s.head_dim, s.vocab
  c.max_position_embeddings, c.rms_norm_eps, c.tie_word_embeddings = s.context, s.norm_eps, s.tied
  if c.sliding_window and c.sliding_window ~= json.null then c.max_position_embeddings = source.max_position_embeddings end
  local lists
  for key, name in pairs { intermediate_size = "ffn", num_attention_heads = "heads", num_key_value_heads = "kv_heads" } do
    c[key] = type(s[name]) == "table" and math.max(unpack(s[name])) or s[name]
    if type(s[name]) == "table" then
      lists = lists or {}
      lists[name] = json.array(s[name])
    end
  end
  c[M.layers_key] = lists
  c.rope_theta = s.rope.theta
  c.rope_scaling = s.rope.scaling and rope_config(s.rope) or json.null
  c.rope_parameters = rope_config(s.rope)
  c.rope_parameters.rope_theta = s.rope.theta
  c.dtype, c.torch_dtype = names[dtype or "f32"], names[dtype or "f32"]
  return c
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
