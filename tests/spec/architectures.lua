--- Architectures: config.json both ways, what is refused, and every golden of an independent implementation.
local t = ...

local esp = require "espalier"
local shapes = require "espalier.models.shape"
local configs = require "espalier.models.config"
local json = esp.io.json

local function llama(more)
  local c = { model_type = "llama", hidden_size = 64, intermediate_size = 112, num_hidden_layers = 3, num_attention_heads = 8,
    num_key_value_heads = 2, vocab_size = 160, max_position_embeddings = 64, rms_norm_eps = 1e-6, hidden_act = "silu" }
  for k, v in pairs(more or {}) do c[k] = v end
  return c
end

local function read(more) return configs.of_config(llama(more), "config.json") end

-- ---- config.json in ----

t.test("both spellings of rotary positions are read, and must agree", function()
  local scaling = { factor = 8, low_freq_factor = 1, high_freq_factor = 4, original_max_position_embeddings = 16 }
  local function with(more)
    local all = {}
    for k, v in pairs(scaling) do all[k] = v end
    for k, v in pairs(more) do all[k] = v end
    return all
  end
  local old = read { rope_theta = 500000, rope_scaling = with { rope_type = "llama3" } }
  local new = read { rope_parameters = with { rope_type = "llama3", rope_theta = 500000 } }
  t.equal(old, new)
  t.equal(old.rope, { theta = 500000, scaling = { type = "llama3", factor = 8, low_freq_factor = 1, high_freq_factor = 4, original_context = 16 } })
  t.equal(read { rope_theta = 500000, rope_scaling = json.null }.rope, { theta = 500000 })
  t.equal(read({}).rope, { theta = 10000 })
  t.equal(read { rope_scaling = { type = "linear", factor = 2 } }.rope.scaling, { type = "linear", factor = 2 })
  local dynamic = read { rope_scaling = { type = "dynamic", factor = 2 } }
  t.equal({ dynamic.context, dynamic.rope.scaling }, { 128, { type = "dynamic", factor = 2, original_context = 64 } })
  -- The field beside the object wins, as in transformers; without either it is the context.
  t.equal(read { rope_scaling = { type = "yarn", factor = 4 }, original_max_position_embeddings = 16 }.rope.scaling.original_context, 16)
  t.equal(read { rope_scaling = { type = "yarn", factor = 4 } }.rope.scaling.original_context, 64)
  t.fails("disagree on rope_theta", read, { rope_theta = 10000, rope_parameters = { rope_type = "default", rope_theta = 500000 } })
  t.fails("disagree on the scaling", read, { rope_scaling = { type = "linear", factor = 2 }, rope_parameters = { rope_type = "default" } })
  t.fails("rope type 'spiral' is not known", read, { rope_scaling = { type = "spiral" } })
  t.fails("field 'factor' is missing", read, { rope_scaling = { type = "linear" } })
  t.fails("field 'mrope_section' is not known", read, { rope_scaling = { type = "default", mrope_section = { 1, 2 } } })
  t.fails("partial_rotary_factor is 0.5, want 1", read, { rope_parameters = { rope_type = "default", partial_rotary_factor = 0.5 } })
end)

t.test("a field that is not known is refused, one that changes nothing is not", function()
  t.fails("field 'layer_scale' is not known to model_type llama", read, { layer_scale = 1.5 })
  t.fails("did you mean 'attention_bias'", read, { atention_bias = true })
  t.fails("field 'quantization_config' is not known", read, { quantization_config = { bits = 4 } })
  t.fails("is_encoder_decoder is true, want false", read, { is_encoder_decoder = true })
  t.fails("field 'attention_bias' is 1, want a boolean", read, { attention_bias = 1 })
  t.fails("hidden_act is gelu, want silu", read, { hidden_act = "gelu" })
  t.equal(read { pad_token_id = 3, torch_dtype = "bfloat16", pretraining_tp = 2, some_null = json.null }, read())
end)

t.test("a shape goes to config.json and comes back, in the architecture that can express it", function()
  local s = read { attention_bias = true }
  local c = configs.to_config(s, llama { pad_token_id = 7 })
  t.equal({ c.pad_token_id, c.attention_bias, c.architectures[1], c.head_dim }, { 7, true, "LlamaForCausalLM", 8 })
  t.equal(configs.of_config(c, "config.json"), s)
  t.equal(configs.kind(s), "llama")
  s = shapes.copy(read())
  s.window = 16
  t.equal(configs.kind(s), "mistral")
  t.fails("model_type 'llama' cannot express this shape: it has no window like that of this model", configs.to_config, s, llama())
  t.equal(configs.to_config(s, llama(), "f32", { kind = "mistral" }).sliding_window, 16)
  s.biases = { mlp = true }
  t.fails("no architecture of", configs.to_config, s)
  t.fails("a shape has no 'windo'; did you mean 'window'?", shapes.check, { windo = 3 }, "model")
  t.fails("norm is 'rsm', want one of rms", esp.models.new, { norm = "rsm" })
end)
