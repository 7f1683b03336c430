--- GGUF files as models, in and out.

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"
local lazy = require "espalier.tensor.lazy"
local tape = require "espalier.tape"
local scope = require "espalier.scope"
local gguf = require "espalier.io.gguf"
local keys = require "espalier.models.gguf.keys"
local choose = require "espalier.models.gguf.choose"
local weights = require "espalier.models.gguf.weights"
local tokens = require "espalier.models.gguf.tokens"
local configs = require "espalier.models.config"
local models = require "espalier.models.model"
local options = require "espalier.options"

local M = {}

--- Opens a file of F32, F16, BF16 and Q8_0 tensors; F16 and Q8_0 become f32. opt.dtype: "f32" or "bf16" converts. The tokenizer comes with it where
-- it is of a known kind.
function M.load(path, opt)
  opt = options.check("esp.load", opt, { dtype = { "string", one_of = { "f32", "bf16" } } })
  local f = gguf.open(path)
  local s, engine = keys.to_shape(f, path)
  return scope.outside(function()
    local all = weights.read(f, s, engine, opt.dtype)
    local config = { model_type = configs.kind(s, engine.model_type and { model_type = engine.model_type }) }
    for name, key in pairs { bos_token_id = "bos", eos_token_id = "eos", pad_token_id = "padding" } do
      config[name] = f:get("tokenizer.ggml." .. key .. "_token_id")
    end
    return models.new(s, { weights = all, config = config, source = path, tokenizer = tokens.read(f) })
  end)
end

-- ---- out ----

local file_types = { f32 = 0, f16 = 1, q8_0 = 7, bf16 = 32 }

-- Type of a tensor in a file of a type: vectors stay f32, rows that are no whole blocks of 32 are f16 where the file is q8_0.
local function type_of(shape, dtype)
  if #shape == 1 then return "f32" end
  if dtype == "q8_0" and shape[#shape] % 32 ~= 0 then return "f16" end
  return dtype
end

-- What is left of a tensor that is stored in a type.
local function through(t, kind)
  if kind == "f32" then return tensor.to(t, "f32") end
  if kind ~= "q8_0" then return tensor.to(tensor.to(t, kind), "f32") end
  local numbers = tensor.contiguous(tensor.to(t, "f32"))
  local blocks, back = tensor.new({ numbers:count() / 32 * 34 }, "u8"), tensor.new(numbers.shape)
  core.try(core.C.esp_q8_pack(blocks.c, numbers.c))
  core.try(core.C.esp_q8_unpack(back.c, blocks.c))
  return back
end

--- How a model becomes a file of a dtype ("f32", "f16", "bf16" or "q8_0"): a plan with
--   plan.notes: sentences on what is not as it was: a shorter context, another architecture of the same function, matrices that cannot be q8_0;
--   plan:write(path): the file, whole or not at all;
--   plan:rounded(): the model of the numbers that the file holds, in memory.
-- Errors: no architecture of llama.cpp computes what the model does (with the reason), a tokenizer that it has no name for.
function M.plan(model, dtype)
  local kind = configs.kind(model.shape, model.config)
  local engine, s, notes, scale = choose.choose(model.shape, kind)
  local own, stored, left_out = model:parameters(), weights.stored(s, engine), 0
  -- What was not read yet is read for the moment only. A head that llama.cpp wants of its own is the embedding again.
  local function get(name)
    local t = own[name] or own["model.embed_tokens.weight"]
    return lazy.is(t) and lazy.load(t) or t
  end
  for _, want in ipairs(stored) do if #want.shape > 1 and type_of(want.shape, dtype) ~= dtype then left_out = left_out + 1 end end
  if engine.name ~= kind and engine.model_type ~= kind then
    notes[#notes + 1] = string.format("llama.cpp runs it as %s, which computes the same", engine.name)
  end
  if left_out > 0 then notes[#notes + 1] = string.format("%d matrices are f16: their rows are no multiple of 32", left_out) end
  local vocabulary = tokens.write(model, notes)
  local plan = { notes = notes, shape = s }

  function plan.write(_, path)
    local metadata, list = keys.of_shape(s, engine, "espalier"), {}
    metadata[#metadata + 1] = { "general.file_type", "u32", file_types[dtype] }
    for _, entry in ipairs(vocabulary) do metadata[#metadata + 1] = entry end
    local function add(name, shape, make)
      list[#list + 1] = { name = name, shape = shape, type = type_of(shape, dtype), give = function(use)
        tape.no_grad(scope.run, function() use(make()) end)
      end }
    end
    if s.rope.scaling and s.rope.scaling.type == "llama3" then
      local factors = keys.frequency_factors(s.head_dim, s.rope)
      add("rope_freqs.weight", { #factors }, function() return tensor.of(factors) end)
    end
    for _, want in ipairs(stored) do add(want.name, want.shape, function() return weights.make(want, s, engine, scale, get) end) end
    gguf.write(path, metadata, list)
  end

  function plan.rounded()
    local all = {}
    tape.no_grad(scope.outside, function()
      for _, want in ipairs(stored) do
        local t = through(weights.make(want, s, engine, scale, get), type_of(want.shape, dtype))
        weights.split(all, t, want, s, engine, "f32", "save")
      end
    end)
    return models.new(s, { weights = all, config = model.config, tokenizer = model.tokenizer })
  end

  return plan
end

return M
