--- Architectures: config.json both ways, what is refused, and every golden of an independent implementation.
local t = ...

local esp = require "espalier"
local tensor = require "espalier.tensor"
local ops = require "espalier.ops"
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
  s.norms, s.qk_norm = "both", "head"
  t.fails("no architecture of", configs.to_config, s)
  t.fails("a shape has no 'windo'; did you mean 'window'?", shapes.check, { windo = 3 }, "model")
  t.fails("norm is 'rsm', want one of rms", esp.models.new, { norm = "rsm" })
end)

t.test("what an architecture says by leaving a field out is what transformers says", function()
  local function of(kind, more)
    local c = llama(more)
    c.model_type = kind
    if kind == "nemotron" then c.rms_norm_eps, c.norm_eps, c.hidden_act = nil, 1e-5, "relu2" end
    if kind:match "^gemma" then c.hidden_act = "gelu" end
    return configs.of_config(c, kind)
  end
  t.equal({ of("mistral").window, of("mistral", { sliding_window = json.null }).window }, { 4096, nil })
  local untied = of("gemma", { tie_word_embeddings = false })
  t.equal({ of("gemma").tied, of("gemma").head_dim, untied.tied, of("llama").tied }, { true, 256, false, false })
  t.equal(of("gemma2").window, { 4096, 0, 4096 })
  t.equal({ of("gemma2").attention_cap, of("gemma2", { attn_logit_softcapping = json.null }).attention_cap, of("gemma2").logit_cap }, { 50, nil, 30 })
  t.equal({ of("nemotron").rope.partial, of("nemotron", { partial_rotary_factor = 1 }).rope.partial }, { 0.5, nil })
  t.equal(of("smollm3", { num_hidden_layers = 5 }).rotary, { true, true, true, false, true })
  t.equal(of("smollm3", { no_rope_layers = { 1, 1, 1 } }).rotary, nil)
  t.equal({ of("smollm3").rope.theta, of("qwen3").head_dim }, { 2000000, 128 })
  -- The windows of Qwen: off unless used, then from a layer on, unless listed.
  t.equal({ of("qwen2", { sliding_window = 8, max_window_layers = 1 }).window }, {})
  t.equal(of("qwen2", { use_sliding_window = true, sliding_window = 8, max_window_layers = 1 }).window, { 0, 8, 8 })
  local listed = of("qwen3", { use_sliding_window = true, sliding_window = 8,
    layer_types = { "sliding_attention", "full_attention", "sliding_attention" } })
  t.equal(listed.window, { 8, 0, 8 })
  t.equal(configs.to_config(listed, nil, "f32", { kind = "qwen3" }).max_window_layers, 2)
  t.fails("layer_types[1] slides, but sliding_window is null", of, "qwen2",
    { layer_types = { "full_attention", "sliding_attention", "full_attention" } })
  t.fails("layer_types[0] is 'chunked_attention', want full_attention or sliding_attention", of, "qwen2",
    { layer_types = { "chunked_attention", "full_attention", "full_attention" } })
  t.fails("layer_types has 2 entries, want one for each of 3 layers", of, "gemma2", { layer_types = { "full_attention", "full_attention" } })
  t.equal(of("gemma2", { sliding_window = 8, sliding_window_size = 8 }).window, { 8, 0, 8 })
  t.fails("sliding_window_size is 4, want 8", of, "gemma2", { sliding_window = 8, sliding_window_size = 4 })
  t.fails("sliding_window_size is 8, want no such field", of, "gemma2", { sliding_window = json.null, sliding_window_size = 8 })
  t.fails("interpolate_factor is 2, want 1", of, "phi3", { full_attn_mod = 1, interpolate_factor = 2 })
  t.fails("rope type 'linear', want default or longrope", of, "phi3", { rope_scaling = { type = "linear", factor = 2 } })
  t.fails("use_bidirectional_attention is true, want false", of, "gemma", { use_bidirectional_attention = true })
  t.fails("turns 3 of 8 channels, want an even number", of, "nemotron", { partial_rotary_factor = 0.4 })
end)

t.test("a layer keeps its own window and rotation when others are dropped", function()
  local s = shapes.copy(read())
  s.layers, s.window, s.rotary = 4, { 8, 0, 8, 0 }, { true, false, true, false }
  local legal = require "espalier.prune.legal"
  local function left(opt) return legal.result(s, opt, legal.check("prune", s, opt)) end
  t.equal({ left { drop = { 0 } }.window, left { drop = { 0 } }.rotary }, { { 0, 8, 0 }, { false, true, false } })
  -- All alike again: one number, or nothing.
  t.equal({ left { drop = { 1, 3 } }.window, left { drop = { 1, 3 } }.rotary }, { 8, nil })
  t.equal({ left { drop = { 0, 2 } }.window, left { drop = { 0, 2 } }.rotary }, { nil, false })
end)

-- ---- goldens: transformers in f32, eager attention ----

local function largest(a, b)
  return esp.no_grad(function()
    if not b then return (a:abs():view(-1):max(0)):item() end
    return ((a - b):abs():view(-1):max(0)):item()
  end)
end

-- 1e-4, or 1e-5 of the largest where that is more.
local function tolerance(want) return math.max(1e-4, 1e-5 * largest(want)) end

-- Logits and mean cross-entropy on the tape.
local function loss_of(model, ids)
  local B, T = ids.shape[1], ids.shape[2]
  local lengths = {}
  for b = 1, B do lengths[b] = T end
  local target = require("espalier.models.model").next_targets(ids, lengths)
  local logits = model:project(model:forward(ids)):view(B * T, model.shape.vocab)
  return ops.cross_entropy(logits, tensor.view(target, { B * T })):sum() / (B * (T - 1))
end

-- The gradient of a stored tensor: that of its parts, row upon row.
local function stored_gradient(want, parameters)
  local all, at = tensor.new(want.shape), 0
  for _, part in ipairs(want.parts) do
    tensor.narrow(all, 0, at, part.shape[1]):copy_from(parameters[part.name].grad)
    at = at + part.shape[1]
  end
  return all
end

local names = { "llama", "llama-tied-bias", "llama-wide-heads", "llama-linear-rope", "llama31-rope", "mistral-nemo", "mistral-window", "qwen2",
  "qwen3", "gemma", "gemma2", "nemotron", "phi3", "smollm3", "olmo2" }

for _, name in ipairs(names) do
  local function open(opt)
    local dir = t.shared("data/golden/hf/" .. name)
    return esp.load(dir, opt), esp.io.safetensors.read(dir .. "/golden.safetensors"), dir
  end

  t.test("logits, states and loss of golden " .. name, function()
    local model, gold, dir = open()
    t.near(largest(model:logits(gold.input_ids), gold.logits), 0, tolerance(gold.logits), "logits")
    t.near(model:loss(gold.input_ids) / gold.loss:item(), 1, 1e-5, "loss")
    local states = model:hidden(gold.input_ids, { layers = true })
    t.equal(#states, model.shape.layers + 1)
    for i, state in ipairs(states) do
      local want = gold["hidden." .. i - 1]
      t.near(largest(state, want), 0, tolerance(want), "hidden " .. i - 1)
    end
    local config = json.read(dir .. "/config.json")
    t.equal(configs.of_config(configs.to_config(model.shape, config), "again"), model.shape)
    t.equal(configs.of_config(configs.to_config(model.shape, nil, "f32", { kind = config.model_type }), "anew"), model.shape)
    local count = 0
    for _, p in pairs(model:parameters()) do count = count + p:count() end
    t.equal(shapes.parameters(model.shape), count)
  end)

  t.test("gradients of golden " .. name, function()
    local model, gold = open()
    model = model:clone()
    model.decoder:requires_grad()
    loss_of(model, gold.input_ids):backward()
    local parameters, compared = model:parameters(), 0
    for _, stored in ipairs(configs.stored(model.shape, model.config.model_type)) do
      local want = gold["grad." .. stored.name]
      t.ok(want, "no golden gradient of " .. stored.name)
      t.near(largest(stored_gradient(stored, parameters), want) / largest(want), 0, 1e-3, stored.name)
      compared = compared + 1
    end
    local golden = 0
    for key in pairs(gold) do if key:match "^grad%." then golden = golden + 1 end end
    t.equal(compared, golden, "gradients compared")
  end)

  t.test("weights of golden " .. name .. " stored in bf16", function()
    local model, gold = open { dtype = "bf16" }
    t.equal(model:parameters()["model.norm.weight"].dtype, "bf16")
    t.near(largest(model:logits(gold.input_ids), gold.logits_bf16_weights), 0, tolerance(gold.logits_bf16_weights), "logits")
  end)

  t.test("products of golden " .. name .. " in bf16", function()
    local model, gold = open()
    local logits = model:in_precision("bf16"):logits(gold.input_ids)
    local difference, most = largest(logits, gold.logits), largest(gold.logits)
    t.ok(difference <= 0.03 * most, string.format("logits differ by %g, the largest is %g", difference, most))
    t.ok(difference > 1e-5 * most, "they are products of rounded numbers")
  end)

  t.test("every axis of golden " .. name .. " can be cut, saved and opened again", function()
    local model, gold = open()
    local stats = esp.importance.measure(model, gold.input_ids, { quiet = true })
    local own = model.shape.kv_heads == model.shape.heads
    local function with_heads(heads, cut)
      cut.heads, cut.kv_heads = heads, own and heads or nil
      return cut
    end
    local cuts = { { hidden = 48 }, { ffn = 70 }, with_heads(4, {}), { kv_heads = 1 }, { drop = { 1 } }, { layers = 2 }, { drop_attention = { 0 } },
      { drop_mlp = { 2 } }, with_heads({ 4, 8, 2 }, { hidden = 56, ffn = { 40, 112, 64 } }),
      with_heads(4, { hidden = 40, ffn = 64, drop = { 0 } }) }
    for i, cut in ipairs(cuts) do
      cut.quiet = true
      local small = esp.prune(model, stats, cut)
      t.equal(small.shape.embedding_scale, model.shape.embedding_scale)
      t.ok(shapes.parameters(small.shape) < shapes.parameters(model.shape), "cut " .. i .. " leaves fewer parameters")
      local dir = t.folder() .. "/m"
      small:save(dir, { quiet = true })
      local again = esp.load(dir)
      t.equal(again.shape, small.shape)
      local logits = small:logits(gold.input_ids)
      t.equal(largest(again:logits(gold.input_ids), logits), 0)
      t.ok(largest(logits, gold.logits) > 1e-3, "cut " .. i .. " changes the function")
    end
  end)

  t.test("a cut of golden " .. name .. " learns from it", function()
    local model = open()
    local rows = {}
    for r = 1, 8 do
      rows[r] = {}
      for i = 1, 16 do rows[r][i] = (r * 31 + i * i * 7) % 157 + 3 end
    end
    local stats = esp.importance.measure(model, rows, { quiet = true })
    local student = esp.prune(model, stats, { hidden = 48, ffn = 80, drop = { 1 }, quiet = true })
    local run = esp.distill { teacher = model, student = student, data = esp.data.of(rows), batch = 8, steps = 8, quiet = true,
      schedule = esp.schedule.cosine { peak = 3e-3, min = 1e-3, warmup = 1 } }
    t.ok(run.steps[8].loss < 0.8 * run.steps[1].loss, "the loss went from " .. run.steps[1].loss .. " to " .. run.steps[8].loss)
  end)

  t.test("golden " .. name .. " goes on from a cache as it goes in one pass", function()
    local model, gold = open()
    local row = gold.input_ids:table()[1]
    local cache, got = require("espalier.models.generate").cache(model, #row), {}
    esp.no_grad(function()
      -- Eleven at once, then one by one, then three.
      local at = 0
      for _, n in ipairs { 11, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 3 } do
        local h = model:forward({ { unpack(row, at + 1, at + n) } }, { cache = cache })
        for _, logits in ipairs(model:project(h):table()[1]) do got[#got + 1] = logits end
        at = at + n
      end
    end)
    t.near(got, gold.logits:table()[1], 2 * tolerance(gold.logits), "logits")
  end)
end

-- ---- capped logits in the chunked losses ----

-- 1024: rows of logits stand a little apart there.
for _, V in ipairs { 33, 1024 } do t.test("losses in chunks see capped logits, forward and backward, as the whole does, vocabulary " .. V, function()
  local head = require "espalier.loss.head"
  local N, C, cap, teacher_cap = 300, 8, 2, 3
  local x, th = tensor.normal({ N, C }, { seed = 1, std = 3 }), tensor.normal({ N, C }, { seed = 2, std = 3 })
  local W, tw = tensor.normal({ V, C }, { seed = 3 }), tensor.normal({ V, C }, { seed = 4 })
  local labels = {}
  for n = 1, N do labels[n] = n * 7 % V end
  local target, valid = tensor.of(labels, { dtype = "i32" }), tensor.full({ N }, 1)
  local own = { token = function(s, teacher) return ((s - teacher) * (s - teacher)):sum(-1) end }
  local cases = { esp.loss.kl { temperature = 2 }, esp.loss.ce(), esp.loss.custom(own),
    esp.loss.sum { { esp.loss.kl(), 0.5 }, { esp.loss.ce(), 2 } } }
  local function whole(i, s, teacher)
    local kl, ce = function(tau) return ops.kl(s, teacher, nil, tau):sum() / N end, function() return ops.cross_entropy(s, target):sum() / N end
    if i == 1 then return kl(2) elseif i == 2 then return ce() elseif i == 4 then return kl(1) * 0.5 + ce() * 2 end
    return own.token(ops.log_softmax(s), ops.log_softmax(teacher)):sum() / N
  end
  for i, loss in ipairs(cases) do
    local a, aw, b, bw = x:clone():requires_grad_(), W:clone():requires_grad_(), x:clone():requires_grad_(), W:clone():requires_grad_()
    local chunked = head.loss { states = { hidden = a, weight = aw, cap = cap }, target = target, valid = valid, positions = N, predictions = N,
      loss = loss, teacher = loss.teacher and { hidden = th, weight = tw, cap = teacher_cap } }
    local direct = whole(i, ops.softcap(ops.linear(b, bw), cap), ops.softcap(ops.linear(th, tw), teacher_cap))
    t.near(chunked:item() / direct:item(), 1, 1e-5, loss.name)
    chunked:backward()
    direct:backward()
    t.near(largest(a.grad, b.grad) / largest(b.grad), 0, 1e-5, loss.name .. " by the states")
    t.near(largest(aw.grad, bw.grad) / largest(bw.grad), 0, 1e-5, loss.name .. " by the head")
  end
end) end
