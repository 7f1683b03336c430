--- config.json and shapes, both ways, through one file an architecture: models/NAME.lua for model_type NAME.
--
-- Such a file returns { class = "LlamaForCausalLM", defaults = { field = what its absence says }, partial = may only a part of a head turn?,
--   fused = { ["self_attn.qkv_proj"] = { "self_attn.q_proj", .. } } (weights that the file stores as one, row upon row),
--   read = function(r, s) puts the options of the shape s, read by r (models/reader.lua), into s,
--   write = function(s, c) puts them into the config c }. A shape that an architecture cannot express is one that does not come back from what
-- it wrote.

local json = require "espalier.io.json"
local reader = require "espalier.models.reader"
local positions = require "espalier.models.positions"
local harmless = require "espalier.models.harmless"
local shapes = require "espalier.models.shape"
local fail = require "espalier.fail"

local M = {}

--- Known model types, in the order in which one is looked for that can express a shape.
M.architectures = { "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "nemotron", "phi3", "smollm3", "olmo2" }

--- Key of config.json under which per-layer sizes stand: { ffn = [..], heads = [..], kv_heads = [..] }.
M.layers_key = "espalier_layers"

--- The architecture of a model_type.
function M.architecture(kind, where)
  for _, name in ipairs(M.architectures) do if name == kind then return require("espalier.models." .. name) end end
  fail("%s: model_type '%s' is not known, want one of %s", where, tostring(kind), table.concat(M.architectures, ", "))
end

-- ---- in ----

local function read_layers(r, s)
  for name, list in pairs(r:optional(M.layers_key, "table") or {}) do
    if not ({ ffn = 1, heads = 1, kv_heads = 1 })[name] then
      fail("%s: %s holds '%s', want ffn, heads or kv_heads", r.where, M.layers_key, tostring(name))
    end
    if type(list) ~= "table" or #list ~= s.layers then fail("%s: %s.%s wants %d numbers, one a layer", r.where, M.layers_key, name, s.layers) end
    s[name] = { unpack(list) }
  end
end

--- The shape that a parsed config.json describes; where names the file in messages.
function M.of_config(config, where)
  local kind = reader.new(config, where):required("model_type", "string")
  local architecture = M.architecture(kind, where)
  local r = reader.new(config, where, architecture.defaults)
  local heads, hidden = r:number "num_attention_heads", r:number "hidden_size"
  local s = { hidden = hidden, ffn = r:number "intermediate_size", layers = r:number "num_hidden_layers", heads = heads,
    kv_heads = r:optional("num_key_value_heads", "number") or heads, head_dim = r:optional("head_dim", "number") or hidden / heads,
    vocab = r:number "vocab_size", tied = r:flag "tie_word_embeddings" }
  s.rope, s.context = positions.read(r, architecture.partial)
  r:only("is_encoder_decoder", { false })
  r:only("add_cross_attention", { false })
  architecture.read(r, s)
  read_layers(r, s)
  r:refuse_rest(harmless, "model_type " .. kind)
  return shapes.normal(shapes.check(s, where))
end

-- ---- out ----

local function write_sizes(s, c)
  local lists
  c.hidden_size, c.num_hidden_layers, c.head_dim, c.vocab_size, c.tie_word_embeddings = s.hidden, s.layers, s.head_dim, s.vocab, s.tied
  for key, name in pairs { intermediate_size = "ffn", num_attention_heads = "heads", num_key_value_heads = "kv_heads" } do
    c[key] = type(s[name]) == "table" and math.max(unpack(s[name])) or s[name]
    if type(s[name]) == "table" then
      lists = lists or {}
      lists[name] = json.array { unpack(s[name]) }
    end
  end
  c[M.layers_key] = lists
end

-- transformers checks types: these are floats also where they are whole.
local floats = { "rope_theta", "partial_rotary_factor", "rms_norm_eps", "norm_eps", "layer_norm_eps", "attn_logit_softcapping",
  "final_logit_softcapping", "factor", "low_freq_factor", "high_freq_factor", "attention_factor", "beta_fast", "beta_slow", "mscale",
  "mscale_all_dim" }

local function write(s, kind, source, dtype)
  local architecture = M.architecture(kind, "save")
  local c = source and json.copy(source) or {}
  local names = { f32 = "float32", bf16 = "bfloat16", f16 = "float16" }
  c.model_type, c.architectures = kind, json.array { architecture.class }
  write_sizes(s, c)
  positions.write(s, c, architecture.partial)
  architecture.write(s, c)
  c.dtype, c.torch_dtype = names[dtype or "f32"], names[dtype or "f32"]
  for _, object in ipairs { c, c.rope_parameters, c.rope_scaling ~= json.null and c.rope_scaling or nil } do json.floats(object, floats) end
  return c
end

-- The config by which an architecture expresses a shape; nil and the reason where it cannot.
local function express(s, kind, source, dtype)
  local c = write(s, kind, source, dtype)
  local ok, back = pcall(M.of_config, c, "save")
  if not ok then return nil, back end
  local want = shapes.normal(s)
  for name in pairs(want) do if not shapes.same(want[name], back[name]) then return nil, "it has no " .. name .. " like that of this model" end end
  for name in pairs(back) do if want[name] == nil then return nil, "it always has a " .. name end end
  return c
end

--- The model_type of a shape: that of its source's config, else the first architecture that can express it.
function M.kind(s, source)
  if source and source.model_type then return source.model_type end
  for _, kind in ipairs(M.architectures) do if express(s, kind) then return kind end end
  fail("save: no architecture of %s can express this shape", table.concat(M.architectures, ", "))
end

--- config.json of a shape: the source's other fields stay; both rope spellings, head_dim and the dtype are always written. opt.kind: another
-- model_type than the source's. Errors: the architecture cannot express the shape.
function M.to_config(s, source, dtype, opt)
  local kind = opt and opt.kind or M.kind(s, source)
  local c, why = express(s, kind, source, dtype)
  return c or fail("save: a model of model_type '%s' cannot express this shape: %s", kind, why)
end

-- ---- weights ----

--- What the files of a model hold: a list of { name, shape, parts }, parts being tensors of the shape (shape.tensors), one, or several that the
-- file stores row upon row under a name of its own.
function M.stored(s, kind)
  local fused, out, inside = M.architecture(kind, "weights").fused or {}, {}, {}
  local place = {}
  for name, parts in pairs(fused) do for _, part in ipairs(parts) do inside[part] = name end end
  for _, t in ipairs(shapes.tensors(s)) do
    local stem, suffix = (t.below or ""):match "^(.*)(%.%w+)$"
    local whole = inside[stem]
    local name = whole and "model.layers." .. t.layer .. "." .. whole .. suffix or t.name
    local entry = place[name]
    if not entry then
      entry = { name = name, shape = { 0, unpack(t.shape, 2) }, parts = {} }
      place[name], out[#out + 1] = entry, entry
    end
    entry.shape[1] = entry.shape[1] + t.shape[1]
    entry.parts[#entry.parts + 1] = t
  end
  return out
end

return M
