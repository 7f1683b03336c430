--- What is written for other programs: the folder and its contract, the GGUF file, the padded twin, shapes that transformers refuses.
local t = ...

local esp = require "espalier"
local tensor = require "espalier.tensor"
local shapes = require "espalier.models.shape"
local file, json = esp.io.file, esp.io.json

local function shape(change)
  local s = { hidden = 32, ffn = 64, layers = 3, heads = 4, kv_heads = 2, head_dim = 8, vocab = 96, context = 64, norm_eps = 1e-5,
    rope = { theta = 10000 }, tied = false }
  for k, v in pairs(change or {}) do s[k] = v end
  return s
end

local rows = { { 1, 2, 3, 4, 5, 6, 7, 8, 90, 10, 11, 12 }, { 95, 0, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22 } }

local function difference(a, b)
  local got, want = a:logits(rows), b:logits(rows)
  return esp.no_grad(function() return ((got - want):abs():view(-1):max(0)):item() end)
end

-- { name = bytes } of a folder.
local function contents(dir)
  local all = {}
  for _, name in ipairs(file.list(dir)) do all[name] = t.read(dir .. "/" .. name) end
  return all
end

local function same_files(a, b)
  local x, y = contents(a), contents(b)
  for name in pairs(x) do t.ok(x[name] == y[name], name .. " differs") end
  for name in pairs(y) do t.ok(x[name], name .. " is only in the second") end
end

t.test("a folder holds the model, its card, the probe and what was found", function()
  local dir = t.folder()
  local model = esp.models.new(shape(), { seed = 3, std = 0.3 })
  local _, facts = model:save(dir .. "/m", { dtype = "bf16", quiet = true })
  t.equal(file.list(dir), { "m" })
  t.equal(file.list(dir .. "/m"), { "README.md", "config.json", "espalier.json", "generation_config.json", "model.safetensors", "probe.safetensors" })
  local record = json.read(dir .. "/m/espalier.json")
  t.equal(record.contract.difference, facts.difference)
  t.equal(record.dtype, "bf16")
  t.ok(facts.difference == 0 and facts.largest > 0.1 and facts.batch == "ids")
  -- Rounding was measured, not assumed: it is what the two models differ by on the batch.
  local probe = esp.io.safetensors.read(dir .. "/m/probe.safetensors")
  local ids = probe.ids:table()
  t.near(facts.rounding, (esp.load(dir .. "/m"):loss(ids)) - (model:loss(ids)), 1e-6)
  t.ok(facts.rounding ~= 0)
  t.near(probe.logits, esp.load(dir .. "/m"):logits(ids), 0)
  for name, hash in pairs(record.files) do t.equal(file.hash(dir .. "/m/" .. name), hash, name) end
  local text = t.read(dir .. "/m/README.md")
  for _, part in ipairs { "LlamaForCausalLM", "from_pretrained", "vllm serve", "llama-cli", "bfloat16", "probe.safetensors" } do
    t.ok(text:find(part, 1, true), "no " .. part .. " in " .. text)
  end
end)

t.test("the source's dtype is kept; out, in and out again is the same, byte for byte", function()
  local dir = t.folder()
  for _, dtype in ipairs { "f32", "bf16", "f16" } do
    esp.models.new(shape { tied = true }, { seed = 3, std = 0.3 }):save(dir .. "/" .. dtype, { dtype = dtype, quiet = true, shard = "20KB" })
    t.ok(file.kind(dir .. "/" .. dtype .. "/model.safetensors.index.json"), "shards")
    local first = esp.load(dir .. "/" .. dtype)
    first:save(dir .. "/again", { quiet = true, shard = "20KB" })
    same_files(dir .. "/" .. dtype, dir .. "/again")
    first:clone():save(dir .. "/clone", { quiet = true })
    t.equal(json.read(dir .. "/clone/config.json").dtype, ({ f32 = "float32", bf16 = "bfloat16", f16 = "float16" })[dtype])
  end
end)

t.test("files of the source go along byte for byte", function()
  local dir = t.folder()
  esp.models.new(shape(), { seed = 3 }):save(dir .. "/a", { quiet = true })
  local along = { ["tokenizer_config.json"] = '{"bos_token": "<s>"}', ["LICENSE.txt"] = "terms", ["chat_template.jinja"] = "{{ x }}",
    ["merges.txt"] = "a b\n", ["generation_config.json"] = '{ "temperature": 0.60 }' }
  for name, text in pairs(along) do t.write(dir .. "/a/" .. name, text) end
  t.write(dir .. "/a/training_args.bin", "no")
  esp.load(dir .. "/a"):save(dir .. "/b", { quiet = true })
  local got = contents(dir .. "/b")
  for name, text in pairs(along) do t.equal(got[name], text, name) end
  t.equal(got["training_args.bin"], nil)
end)

t.test("where the reopened model disagrees nothing is put in place", function()
  local dir, huggingface = t.folder(), require "espalier.models.huggingface"
  local model, load = esp.models.new(shape(), { seed = 3, std = 0.3 }), huggingface.load
  huggingface.load = function(path)
    local other = load(path):clone()
    other:parameters()["model.layers.1.mlp.up_proj.weight"]:fill(0)
    return other
  end
  local ok, message = pcall(model.save, model, dir .. "/m", { quiet = true })
  huggingface.load = load
  t.ok(not ok and message:find("nothing was put in place", 1, true), tostring(message))
  t.equal(file.list(dir), {})
end)

-- Layers that differ along every axis at once, groups of different sizes among them.
local uneven = { ffn = { 64, 24, 40 }, heads = { 4, 2, 6 }, kv_heads = { 2, 2, 1 } }

t.test("layers that differ in width: true size, and a twin with zeros that computes the same", function()
  local dir = t.folder()
  for i, change in ipairs { uneven, { ffn = { 64, 0, 40 } }, { heads = { 4, 0, 2 }, kv_heads = { 2, 0, 2 } },
    { heads = { 0, 4, 4 }, kv_heads = { 0, 2, 2 }, ffn = { 64, 64, 0 } } } do
    local model = esp.models.new(shape(change), { seed = i, std = 0.3 })
    model:save(dir .. "/true", { quiet = true })
    t.equal(shapes.normal(esp.load(dir .. "/true").shape), shapes.normal(model.shape))
    t.equal(difference(esp.load(dir .. "/true"), model), 0)
    t.ok(t.read(dir .. "/true/README.md"):find("Other programs do not", 1, true))
    model:save(dir .. "/twin", { padded = true, quiet = true })
    local twin = esp.load(dir .. "/twin")
    for _, axis in ipairs { "ffn", "heads", "kv_heads" } do t.equal(type(twin.shape[axis]), "number", axis) end
    t.equal(json.read(dir .. "/twin/config.json").espalier_layers, nil)
    t.near(difference(twin, model), 0, 1e-5)
  end
  t.fails("all layers of this model are of one width", function() esp.models.new(shape()):save(dir .. "/x", { padded = true }) end)
  t.equal(file.kind(dir .. "/x"), nil)
end)

t.test("a llama that transformers would refuse becomes a mistral, or the nearest shapes are named", function()
  local dir = t.folder()
  local model = esp.models.new(shape { hidden = 36, heads = 8, kv_heads = 2 }, { seed = 3, std = 0.3 })
  model:save(dir .. "/m", { quiet = true })
  local config = json.read(dir .. "/m/config.json")
  t.equal(config.architectures, { "MistralForCausalLM" })
  t.equal(config.sliding_window, json.null)
  t.equal(difference(esp.load(dir .. "/m"), model), 0)
  t.ok(t.read(dir .. "/m/README.md"):find("written as a mistral, which computes the same", 1, true))
  local kind, note = require("espalier.export.transformers").kind(shape { hidden = 36, heads = 8, biases = { qkv = true, output = true } },
    { model_type = "llama" })
  t.equal(kind, "llama")
  t.ok(note:find("the nearest that it opens: hidden 32, hidden 40, heads 6", 1, true), note)
end)

-- ---- GGUF ----

local function folder_with_gguf(change, dtype)
  local dir = t.folder()
  local model = esp.models.new(shape(change), { seed = 3, std = 0.3 })
  local _, facts = model:save(dir .. "/m.gguf", { dtype = dtype, quiet = true })
  t.equal(file.list(dir), { "m.gguf" })
  return model, esp.load(dir .. "/m.gguf"), facts, dir .. "/m.gguf"
end

t.test("a GGUF file is the same model: four types, tied, wide heads, long ropes, a window", function()
  local limits = { f32 = 0, bf16 = 0.2, f16 = 0.05, q8_0 = 0.6 }
  for dtype, limit in pairs(limits) do
    local model, back, facts, path = folder_with_gguf(nil, dtype)
    t.near(difference(back, model), 0, limit, dtype)
    t.near(facts.difference, 0, 1e-4, dtype)
    t.equal(shapes.normal(back.shape), shapes.normal(model.shape), dtype)
    back:save(path .. ".again.gguf", { dtype = dtype, quiet = true })
    t.ok(t.read(path) == t.read(path .. ".again.gguf"), dtype .. ": the second file is another")
  end
  local llama3 = { type = "llama3", factor = 8, low_freq_factor = 1, high_freq_factor = 4, original_context = 16 }
  for _, change in ipairs { { tied = true }, { head_dim = 16 }, { rope = { theta = 500000, scaling = { type = "linear", factor = 2 } } },
    { rope = { theta = 10000, scaling = llama3 } } } do
    local model, back = folder_with_gguf(change, "f32")
    t.equal(shapes.normal(back.shape), shapes.normal(model.shape))
    t.equal(difference(back, model), 0)
  end
end)

t.test("layers that differ go into a GGUF file as deci; what llama.cpp has not is refused with the reason", function()
  local model, back, _, path = folder_with_gguf(uneven, "f32")
  t.equal(require("espalier.io.gguf").open(path):get "general.architecture", "deci")
  t.equal(shapes.normal(back.shape), shapes.normal(model.shape))
  t.equal(difference(back, model), 0)
  local choose = require("espalier.models.gguf.choose").choose
  local function refused(part, change, kind) t.fails(part, choose, shape(change), kind or "llama") end
  refused("attention and without an MLP", { ffn = { 64, 0, 64 } })
  refused("their product must be hidden", { biases = { qkv = true }, qk_norm = "whole", norms = "post", head_dim = 16 }, "olmo2")
  refused("like that of this model", { qk_norm = "head", norm = "layernorm" })
  local engine, adapted, notes = choose(shape { window = 16 }, "mistral")
  t.equal(engine.name, "llama")
  t.equal(adapted.context, 16)
  t.ok(notes[1]:find("its context is 16", 1, true))
end)

-- Every architecture that llama.cpp has, at a shape that it opens: the options of the shape, and the engine that runs it.
local architectures = {
  { "qwen2", { biases = { qkv = true } } }, { "qwen3", { qk_norm = "head", head_dim = 16 } },
  { "gemma", { norm = "rms1p", activation = "gelu_tanh", embedding_scale = "root", tied = true } },
  { "gemma2", { norm = "rms1p", norms = "both", activation = "gelu_tanh", embedding_scale = "root", tied = true, attention_cap = 50, logit_cap = 30,
    window = { 8, 0, 8 }, query_scalar = 20 } },
  { "nemotron", { norm = "layernorm1p", activation = "relu2", gated = false, rope = { theta = 10000, partial = 0.5 },
    biases = { qkv = true, output = true, mlp = true } } },
  { "smollm3", { layers = 4, rotary = { true, true, true, false } } }, { "olmo2", { norms = "post", qk_norm = "whole" } },
  { "phi3", {} }, { "llama", { biases = { qkv = true, output = true, mlp = true } } },
  { "llama", { rope = { theta = 10000, scaling = { type = "yarn", factor = 4, original_context = 16 } } } },
}

-- A model in which every weight matters, norms and biases included.
local function random(change, kind)
  local model = esp.models.new(shape(change), { seed = 5, std = 0.3 })
  for name, w in pairs(model:parameters()) do
    if #w.shape == 1 then w:copy_from(w + tensor.normal(w.shape, { std = 0.2, seed = #name })) end
  end
  model.config = { model_type = kind }
  return model
end

t.test("a GGUF file of every architecture is the same model, for the engine of its name", function()
  for _, case in ipairs(architectures) do
    local name, model, dir = case[1], random(case[2], case[1]), t.folder()
    model:save(dir .. "/a.gguf", { quiet = true })
    local back = esp.load(dir .. "/a.gguf")
    t.equal(require("espalier.io.gguf").open(dir .. "/a.gguf"):get "general.architecture", name)
    local want = shapes.normal(model.shape)
    -- The scale of Gemma 2's queries is folded into their weights.
    want.query_scalar = nil
    t.equal(shapes.normal(back.shape), want, name)
    t.near(difference(back, model), 0, 1e-5, name)
    -- Adding 1 to a norm's weight and taking it off again rounds once; from then on nothing changes.
    back:save(dir .. "/b.gguf", { quiet = true })
    esp.load(dir .. "/b.gguf"):save(dir .. "/c.gguf", { quiet = true })
    t.ok(t.read(dir .. "/b.gguf") == t.read(dir .. "/c.gguf"), name .. ": another file")
  end
end)

t.test("what an engine does not compute under its own name another does", function()
  local function engine(change, kind)
    local dir = t.folder()
    random(change, kind):save(dir .. "/a.gguf", { quiet = true })
    return require("espalier.io.gguf").open(dir .. "/a.gguf"):get "general.architecture"
  end
  -- Heads times head_dim is not hidden: llama.cpp's qwen2 and phi3 want that, its llama does not, and computes the same.
  t.equal(engine({ biases = { qkv = true }, hidden = 24 }, "qwen2"), "llama")
  t.equal(engine({ head_dim = 16 }, "phi3"), "llama")
  t.fails("their product must be hidden", engine, { norm = "layernorm1p", activation = "relu2", gated = false, hidden = 24 }, "nemotron")
  t.fails("a rotary like that", engine, { rotary = { true, false, true } }, "smollm3")
end)

t.test("twins of other architectures; a norm over all heads has none", function()
  local dir = t.folder()
  for kind, change in pairs { qwen3 = { qk_norm = "head" }, qwen2 = { biases = { qkv = true } },
    gemma2 = { norm = "rms1p", norms = "both", activation = "gelu_tanh", embedding_scale = "root", tied = true, attention_cap = 50, logit_cap = 30,
      window = { 8, 0, 8 }, query_scalar = 20 },
    nemotron = { norm = "layernorm1p", activation = "relu2", gated = false } } do
    for name, sizes in pairs(uneven) do change[name] = sizes end
    local model = random(change, kind)
    model:save(dir .. "/twin", { padded = true, quiet = true })
    t.near(difference(esp.load(dir .. "/twin"), model), 0, 1e-5, kind)
  end
  local olmo = { norms = "post", qk_norm = "whole", heads = { 4, 2, 4 }, kv_heads = 2 }
  t.fails("norms queries and keys over all heads at once", function() random(olmo, "olmo2"):save(dir .. "/x", { padded = true }) end)
  olmo.heads, olmo.ffn = 4, { 64, 24, 40 }
  local model = random(olmo, "olmo2")
  model:save(dir .. "/twin", { padded = true, quiet = true })
  t.near(difference(esp.load(dir .. "/twin"), model), 0, 1e-5, "olmo2, MLPs alone")
end)

t.test("floats of config.json are written as floats, since transformers checks their types", function()
  local dir = t.folder()
  random(architectures[4][2], "gemma2"):save(dir .. "/m", { quiet = true })
  local text = t.read(dir .. "/m/config.json")
  for _, part in ipairs { '"attn_logit_softcapping": 50.0', '"final_logit_softcapping": 30.0', '"rope_theta": 10000.0', '"pad_token_id": null' } do
    t.ok(text:find(part, 1, true), "no " .. part .. " in " .. text)
  end
end)

t.test("a tokenizer goes into a GGUF file and comes out as the file it was", function()
  for _, name in ipairs { "stories260K/stories260K.bin", "babyllama/tok105_model5000.bin" } do
    local model, path = esp.load(t.shared("data/models/" .. name)), t.folder() .. "/m.gguf"
    model:save(path, { quiet = true })
    local back = esp.load(path)
    local tok, want = back:tok(), model:tok()
    for _, text in ipairs { "Once upon a time", " two  spaces ", "caf\195\169\n", "" } do
      t.equal(tok:encode(text, { bos = true }), want:encode(text, { bos = true }), text)
      -- GGUF does not carry how a sentencepiece model spells what it does not know.
      if not text:find "\195" then t.equal(tok:decode(tok:encode(text)), want:decode(want:encode(text)), text) end
    end
    t.equal({ tok.bos, tok.eos, tok.unk, tok.add_bos }, { want.bos, want.eos, want.unk, want.add_bos })
    -- ... and into a folder, as a sentencepiece model.
    back:save(path .. "-folder", { quiet = true })
    t.equal(esp.load(path .. "-folder"):tok():encode "Once upon a time", want:encode "Once upon a time")
    t.equal(esp.generate(back, "Once", { tokens = 30 }), esp.generate(model, "Once", { tokens = 30 }))
  end
end)

t.test("a GGUF file that is no model of ours is refused with a sentence", function()
  local _, _, _, path = folder_with_gguf(nil, "f32")
  local gguf = require "espalier.io.gguf"
  -- The file again, with other keys or tensors.
  local function with(change)
    local f, metadata, list = gguf.open(path), {}, {}
    for _, key in ipairs(f.keys) do
      local value, kind = f:get(key)
      if change[key] ~= nil then value = change[key] end
      if value ~= "none" then metadata[#metadata + 1] = { key, kind, value } end
    end
    for _, entry in ipairs(change.more or {}) do metadata[#metadata + 1] = entry end
    for _, name in ipairs(f.names) do
      local x = f:tensor(name)
      list[#list + 1] = { name = (change.rename or {})[name] or name, shape = x.shape, type = "f32", give = function(use) use(x) end }
    end
    gguf.write(path .. ".other.gguf", metadata, list)
    return path .. ".other.gguf"
  end
  for part, change in pairs {
    ["the architecture 'bloom' is not known"] = { ["general.architecture"] = "bloom" },
    ["the key llama.block_count is missing"] = { ["llama.block_count"] = "none" },
    ["513 layers"] = { ["llama.block_count"] = 513 }, ["'blk.0.attn_q.weight' is [32, 32], want [16, 32]"] = { ["llama.attention.head_count"] = 2 },
    ["want a whole number from 1"] = { ["llama.embedding_length"] = 0 }, ["differ in length"] = { ["llama.attention.value_length"] = 16 },
    ["the key 'llama.expert_count' is not known"] = { more = { { "llama.expert_count", "u32", 8 } } },
    ["the rope scaling 'longrope' is not known"] = { more = { { "llama.rope.scaling.type", "string", "longrope" } } },
    ["the tensor 'blk.1.ffn_up.weight' is missing"] = { rename = { ["blk.1.ffn_up.weight"] = "blk.1.ffn_upp.weight" } },
    ["lists 2 layers"] = { ["llama.attention.head_count_kv"] = "none", more = { { "llama.attention.head_count_kv", "[i32]", { 2, 2 } } } },
  } do t.fails(part, esp.load, with(change)) end
end)

t.test("q8_0 is for GGUF, and a path is wanted", function()
  local model = esp.models.new(shape(), { seed = 3 })
  t.fails("q8_0 is a type of GGUF", model.save, model, t.folder() .. "/m", { dtype = "q8_0" })
  t.fails("want a text", model.save, model, nil)
  t.fails("did you mean 'padded'", model.save, model, t.folder() .. "/m", { paded = true })
  t.ok(tensor.is(model:head()))
end)

-- ---- espalier check ----

t.test("check finds what is wrong in a folder, and says what others will do", function()
  local check, dir = require("espalier.export.check").check, t.folder()
  local model = esp.models.new(shape(), { seed = 3, std = 0.3 })
  local function report(change)
    model:save(dir .. "/m", { quiet = true })
    if change then change(dir .. "/m/") end
    return check(dir .. "/m")
  end
  -- The line of a check.
  local function line(r, what)
    for _, one in ipairs(r) do if one.what == what then return one.mark .. " " .. one.text end end
    error("no line about " .. what .. " in " .. tostring(r))
  end
  local whole = report()
  t.ok(whole.ok, tostring(whole))
  t.ok(line(whole, "files"):find("ok 5 files", 1, true) and line(whole, "logits"):find("ok no logit", 1, true))
  t.ok(line(whole, "transformers"):find("LlamaForCausalLM", 1, true) and line(whole, "tokenizer"):find("note there is none", 1, true))
  local function wrong(what, part, change)
    local r = report(change)
    t.ok(not r.ok and line(r, what):find("FAILED", 1, true) and line(r, what):find(part, 1, true), tostring(r))
  end
  wrong("files", "is not what was written", function(d) t.write(d .. "README.md", "mine") end)
  wrong("files", "is missing", function(d) file.remove(d .. "generation_config.json") end)
  wrong("opens", "no config.json", function(d) file.remove(d .. "config.json") end)
  wrong("ids", "eos_token_id is 96, want 0 to 95", function(d) t.write(d .. "generation_config.json", '{ "eos_token_id": [2, 96] }') end)
  local function other_weights(d, value)
    local f = esp.io.safetensors.read(d .. "model.safetensors")
    f["model.norm.weight"] = tensor.full({ 32 }, value)
    esp.io.safetensors.write(d .. "model.safetensors", f)
  end
  wrong("logits", "logits differ", function(d) other_weights(d, 2) end)
  local nan = report(function(d) other_weights(d, 0 / 0) end)
  t.ok(not nan.ok and tostring(nan):find("model.norm.weight' holds NaN", 1, true), tostring(nan))
  -- A folder of others: nothing to compare with is no mistake.
  local foreign = report(function(d) for _, name in ipairs { "espalier.json", "probe.safetensors", "README.md" } do file.remove(d .. name) end end)
  t.ok(foreign.ok and line(foreign, "files"):find("note", 1, true), tostring(foreign))
  t.ok(line(foreign, "logits"):find("note no probe.safetensors: that others compute these logits was not compared", 1, true), tostring(foreign))
  t.ok(line(foreign, "again"):find("ok opened again, with its weights in f32: no logit differs by more than 0 ", 1, true), tostring(foreign))
  t.ok(line(foreign, "rounding"):find("note to bf16 would change a logit by", 1, true), tostring(foreign))
  local facts = foreign.contract
  local bf16 = esp.load(dir .. "/m", { dtype = "bf16" })
  local batch = require("espalier.export.contract").batch(model)
  t.near(facts.nll, model:loss(batch), 1e-5)
  t.near(facts.rounding, bf16:loss(batch) - model:loss(batch), 1e-5)
  t.ok(facts.rounding_difference > 0 and facts.batch == "ids" and facts.largest > facts.rounding_difference)
  -- Weights that are in bf16 lose nothing, and give the same logits widened.
  model:save(dir .. "/short", { dtype = "bf16", quiet = true })
  local short = check(dir .. "/short")
  t.ok(short.ok and line(short, "rounding"):find("to bf16 changes nothing", 1, true) and short.contract.difference <= 1e-4, tostring(short))
  model:save(dir .. "/m.gguf", { quiet = true })
  t.ok(check(dir .. "/m.gguf").ok)
end)

t.test("espalier check ends with 1 where something is wrong", function()
  local program, dir = t.program() or t.skip "needs the espalier program", t.folder()
  esp.models.new(shape(), { seed = 3 }):save(dir .. "/m", { quiet = true })
  local function run(...) return esp.io.process.start({ program, "check", ... }, dir .. "/out"):wait() end
  t.equal(run(dir .. "/m"), 0)
  t.write(dir .. "/m/README.md", "mine")
  t.equal(run(dir .. "/m"), 1)
  t.equal(run(dir .. "/none"), 1)
  t.equal(run(), 1)
end)

t.test("a byte-level tokenizer goes into a GGUF file and comes out as a tokenizer.json", function()
  for path, pre in pairs { ["gpt2/hf_tokenizer.json"] = "gpt-2", ["others/smollm_tokenizer.json"] = "smollm" } do
    local tok, dir = esp.tokenizer.load(t.shared("data/tokenizers/" .. path)), t.folder()
    local model = esp.models.new(shape { layers = 1, hidden = 8, heads = 1, kv_heads = 1, ffn = 8, vocab = tok.vocab + 5, tied = true }, { seed = 1 })
    model.tokenizer = tok
    model:save(dir .. "/m.gguf", { dtype = "bf16", quiet = true })
    t.equal(require("espalier.io.gguf").open(dir .. "/m.gguf"):get "tokenizer.ggml.pre", pre)
    local back = esp.load(dir .. "/m.gguf"):tok()
    for _, text in ipairs { "Hello world 12345 it's  fine\n\n  x", "caf\195\169 \240\159\152\128", "  lead", "a<|endoftext|>b" } do
      for _, special in ipairs { true, false } do
        t.equal(back:encode(text, { special = special }), tok:encode(text, { special = special }), text)
      end
    end
    t.equal({ back.bos, back.eos, back.add_bos }, { tok.bos, tok.eos, tok.add_bos })
  end
end)
