--- The metadata of a GGUF file and a shape, both ways.

local shapes = require "espalier.models.shape"
local engines = require "espalier.models.gguf.engines"
local rope = require "espalier.nn.rope"
local fail = require "espalier.fail"

local M = {}

local MOST_LAYERS = 512                 -- llama.cpp keeps arrays of this length

function M.engine(name, where)
  local names = {}
  for i, e in ipairs(engines) do
    if e.name == name then return e end
    names[i] = e.name
  end
  fail("%s: the architecture '%s' is not known, want one of %s", where, tostring(name), table.concat(names, ", "))
end

-- ---- out ----

-- The number, or the list by layer.
local function put_sizes(out, key, v)
  if type(v) ~= "table" then return out(key, "u32", v) end
  out(key, "[i32]", v)
end

local function put_rope(out, s)
  local scaling = s.rope.scaling
  out("rope.freq_base", "f32", s.rope.theta)
  out("rope.dimension_count", "u32", s.head_dim * (s.rope.partial or 1))
  if not scaling then return end
  if scaling.type == "linear" then
    out("rope.scaling.type", "string", "linear")
    out("rope.scaling.factor", "f32", scaling.factor)
  elseif scaling.type == "llama3" then
    -- The frequencies themselves stand in the tensor rope_freqs.
    out("rope.scaling.original_context_length", "u32", scaling.original_context)
  elseif scaling.type == "yarn" then
    out("rope.scaling.type", "string", "yarn")
    out("rope.scaling.factor", "f32", scaling.factor)
    out("rope.scaling.original_context_length", "u32", scaling.original_context)
    out("rope.scaling.yarn_beta_fast", "f32", scaling.beta_fast or 32)
    out("rope.scaling.yarn_beta_slow", "f32", scaling.beta_slow or 1)
  end
end

local function put_windows(out, s)
  if not s.window then return end
  local largest, list = 0, {}
  for l = 0, s.layers - 1 do
    list[l + 1] = shapes.at(s, "window", l) > 0
    largest = math.max(largest, shapes.at(s, "window", l))
  end
  out("attention.sliding_window", "u32", largest)
  out("attention.sliding_window_pattern", "[bool]", list)
end

--- Keys of a shape for an engine: a list of { key, kind, value }, without the tokenizer's.
function M.of_shape(s, engine, name)
  local list = { { "general.architecture", "string", engine.name }, { "general.name", "string", name } }
  local function out(key, kind, value) list[#list + 1] = { engine.name .. "." .. key, kind, value } end
  out("block_count", "u32", s.layers)
  out("context_length", "u32", s.context)
  out("embedding_length", "u32", s.hidden)
  out("vocab_size", "u32", s.vocab)
  put_sizes(out, "feed_forward_length", s.ffn)
  put_sizes(out, "attention.head_count", s.heads)
  put_sizes(out, "attention.head_count_kv", s.kv_heads)
  out("attention.key_length", "u32", s.head_dim)
  out("attention.value_length", "u32", s.head_dim)
  out(engine.rms and "attention.layer_norm_rms_epsilon" or "attention.layer_norm_epsilon", "f32", s.norm_eps)
  put_rope(out, s)
  put_windows(out, s)
  if s.attention_cap then out("attn_logit_softcapping", "f32", s.attention_cap) end
  if s.logit_cap then out("final_logit_softcapping", "f32", s.logit_cap) end
  return list
end

-- ---- in ----

-- Reads keys below an engine's name and remembers which.
local function getter(f, engine, where)
  local get = { used = {} }
  function get.optional(key, want)
    get.used[key] = true
    local v = f:get(engine.name .. "." .. key)
    if v ~= nil and type(v) ~= want and not (want == "size" and (type(v) == "number" or type(v) == "table")) then
      fail("%s: %s.%s is a %s, want a %s", where, engine.name, key, type(v), want)
    end
    return v
  end
  function get.number(key)
    return get.optional(key, "number") or fail("%s: the key %s.%s is missing", where, engine.name, key)
  end
  return get
end

local function read_size(get, key, s, otherwise, where)
  local v = get.optional(key, "size")
  if v == nil then v = otherwise or fail("%s: the key for %s is missing", where, key) end
  if type(v) == "table" then
    if #v < s.layers then fail("%s: %s lists %d layers, want %d", where, key, #v, s.layers) end
    local list = {}
    for l = 1, s.layers do list[l] = v[l] end
    v = shapes.uniform(list)
  end
  return v
end

-- llama3's scaling from the tensor that holds what it does to each frequency: the published low and high factors (1 and 4) must give it.
local function read_llama3(f, get, s, where)
  local list = f:tensor("rope_freqs.weight"):table()
  local scaling = { type = "llama3", factor = list[#list], low_freq_factor = 1, high_freq_factor = 4,
    original_context = get.optional("rope.scaling.original_context_length", "number") or 8192 }
  local want = M.frequency_factors(s.head_dim, { theta = s.rope.theta, scaling = scaling })
  for i, v in ipairs(want) do
    if not (math.abs(v - (list[i] or 0)) <= 1e-4 * v) then
      fail("%s: rope_freqs is not llama3's scaling with low and high factors of 1 and 4 over %d positions; no other is known", where,
        scaling.original_context)
    end
  end
  return scaling
end

local function read_rope(f, get, s, where)
  s.rope = { theta = get.optional("rope.freq_base", "number") or 10000 }
  local turning = get.optional("rope.dimension_count", "number") or s.head_dim
  if turning ~= s.head_dim then s.rope.partial = turning / s.head_dim end
  local factor = get.optional("rope.scaling.factor", "number") or get.optional("rope.scale_linear", "number")
  local kind = get.optional("rope.scaling.type", "string") or factor and "linear" or "none"
  if kind == "linear" and (factor or 1) ~= 1 then
    s.rope.scaling = { type = "linear", factor = factor }
  elseif kind == "yarn" then
    s.rope.scaling = { type = "yarn", factor = factor, original_context = get.number "rope.scaling.original_context_length" }
    local fast, slow = get.optional("rope.scaling.yarn_beta_fast", "number"), get.optional("rope.scaling.yarn_beta_slow", "number")
    if fast ~= 32 then s.rope.scaling.beta_fast = fast end
    if slow ~= 1 then s.rope.scaling.beta_slow = slow end
  elseif kind ~= "none" and kind ~= "linear" then
    fail("%s: the rope scaling '%s' is not known, want none, linear or yarn", where, kind)
  end
  if f.index["rope_freqs.weight"] then s.rope.scaling = read_llama3(f, get, s, where) end
end

local function read_options(f, get, s, engine)
  for name, v in pairs(engine.has) do s[name] = type(v) == "function" and v(s) or shapes.copy(v) end
  if engine.any.biases then
    local function has(name)
      for l = 0, s.layers - 1 do if f.index["blk." .. l .. "." .. name .. ".bias"] then return true end end
      return false
    end
    s.biases = { qkv = has "attn_q", output = has "attn_output", mlp = has "ffn_up" }
  end
  s.attention_cap = get.optional("attn_logit_softcapping", "number") or engine.any.attention_cap and 50 or nil
  s.logit_cap = get.optional("final_logit_softcapping", "number") or engine.any.logit_cap and 30 or nil
  local window = get.optional("attention.sliding_window", "number")
  local pattern = get.optional("attention.sliding_window_pattern", "table")
  if engine.any.window then
    s.window = {}
    -- Every second layer where the file does not say, 4096 keys wide: Gemma 2.
    for l = 0, s.layers - 1 do
      local on = l % 2 == 0
      if pattern then on = pattern[l + 1] end
      s.window[l + 1] = on and (window or 4096) or 0
    end
  elseif window and window > 0 then
    s.context = math.min(s.context, window)
  end
  s.tied = engine.tied == "always" or not f.index["output.weight"]
end

-- Keys that change nothing here, or that the tokenizer's reader takes.
local harmless = { vocab_size = true, ["rope.scaling.finetuned"] = true, ["attention.causal"] = true, ["tensor_data_layout"] = true,
  ["rope.scaling.original_context_length"] = true }

local function refuse_rest(f, get, engine, where)
  for _, key in ipairs(f.keys) do
    local below = key:match("^" .. engine.name .. "%.(.*)$")
    if below and not (get.used[below] or harmless[below]) then
      fail("%s: the key '%s' is not known; it may change what the model computes, so the model is not opened", where, key)
    end
  end
  if f:get(engine.name .. ".attention.causal") == false then fail("%s: %s.attention.causal is false, want true", where, engine.name) end
end

--- The shape in an open GGUF file, and its engine. f: get, keys, index (names of tensors), tensor (io/gguf.lua).
function M.to_shape(f, where)
  local engine = M.engine(f:get "general.architecture", where)
  local get, s = getter(f, engine, where), {}
  s.layers, s.hidden, s.context = get.number "block_count", get.number "embedding_length", get.number "context_length"
  if s.layers > MOST_LAYERS then fail("%s: %d layers, llama.cpp has at most %d", where, s.layers, MOST_LAYERS) end
  local embedding = f.index["token_embd.weight"] and f:describe "token_embd.weight" or fail("%s: the tensor 'token_embd.weight' is missing", where)
  s.vocab = embedding[1]
  s.heads = read_size(get, "attention.head_count", s, nil, where)
  s.kv_heads = read_size(get, "attention.head_count_kv", s, s.heads, where)
  s.ffn = read_size(get, "feed_forward_length", s, nil, where)
  local heads = shapes.at(s, "heads", 0)
  s.head_dim = get.optional("attention.key_length", "number") or type(heads) == "number" and heads > 0 and s.hidden / heads
  if (get.optional("attention.value_length", "number") or s.head_dim) ~= s.head_dim then
    fail("%s: keys and values of a head differ in length; they are alike here", where)
  end
  s.norm_eps = get.number(engine.rms and "attention.layer_norm_rms_epsilon" or "attention.layer_norm_epsilon")
  read_rope(f, get, s, where)
  read_options(f, get, s, engine)
  refuse_rest(f, get, engine, where)
  return shapes.normal(shapes.check(s, where)), engine
end

--- What llama3's scaling divides each frequency of a head by: the content of rope_freqs.
function M.frequency_factors(head_dim, r)
  local plain, bent, list = rope.frequencies(head_dim, { theta = r.theta }), rope.frequencies(head_dim, r), {}
  for i, f in ipairs(plain) do list[i] = f / bent[i] end
  return list
end

return M
