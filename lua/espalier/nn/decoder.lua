--- The decoder: embedding, blocks, final norm, head. Its parameters have the names of Hugging Face's LLaMA.

local Module = require "espalier.nn.module"
local layers = require "espalier.nn.layers"
local blocks = require "espalier.nn.block"
local rope = require "espalier.nn.rope"
local shapes = require "espalier.models.shape"
local tape = require "espalier.tape"
local fail = require "espalier.fail"

local Stack = Module.class("Stack", {}, { "embed_tokens", "layers", "norm" })
local Decoder = Module.class("Decoder", {}, { "model", "lm_head" })

-- The weights below "model.layers.L." by the rest of their name without ".weight".
local function layer_weights(given, l)
  local own, prefix = {}, "model.layers." .. l .. "."
  for name, t in pairs(given) do
    if name:sub(1, #prefix) == prefix then own[name:sub(#prefix + 1):gsub("%.weight$", "")] = t end
  end
  return own
end

--- nn.Decoder(shape [, { weights = { [hf_name] = tensor }, seed =, std = }]): weights that are not given are fresh.
local function new(shape, opt)
  opt = opt or {}
  for _, name in ipairs { "norm", "norms", "qk_norm", "activation", "gated", "biases", "window", "rotary", "query_scalar", "attention_cap",
    "logit_cap", "embedding_scale" } do
    if shapes.normal(shape)[name] ~= nil then fail("model: the decoder has no %s; it is a plain LLaMA", name) end
  end
  local given = opt.weights or {}
  local stack = setmetatable({ layers = {} }, Stack)
  stack.embed_tokens = layers.Embedding { vocab = shape.vocab, size = shape.hidden, weight = given["model.embed_tokens.weight"],
    seed = opt.seed, std = opt.std, stream = 0 }
  for l = 0, shape.layers - 1 do
    stack.layers[l + 1] = blocks.Block { hidden = shape.hidden, ffn = shapes.at(shape, "ffn", l), heads = shapes.at(shape, "heads", l),
      kv_heads = shapes.at(shape, "kv_heads", l), head_dim = shape.head_dim, norm_eps = shape.norm_eps, weights = layer_weights(given, l),
      seed = opt.seed, std = opt.std, stream = 16 * (l + 1) }
  end
  stack.norm = layers.RMSNorm { size = shape.hidden, eps = shape.norm_eps, weight = given["model.norm.weight"] }
  local decoder = setmetatable({ shape = shape, model = stack }, Decoder)
  if not shape.tied then
    decoder.lm_head = layers.Linear { inputs = shape.hidden, outputs = shape.vocab, weight = given["lm_head.weight"], seed = opt.seed,
      std = opt.std, stream = 1 }
  end
  return decoder
end

--- Weight [vocab, hidden] of the LM head: the embedding's where they are tied.
function Decoder:head()
  return self.lm_head and self.lm_head.weight or self.model.embed_tokens.weight
end

-- Cosines and sines of `count` positions from `from` on; the tables grow by doubling, up to the context.
function Decoder:positions(from, count)
  local context = self.shape.context
  if from + count > context then
    fail("forward: %d positions asked for, the model's context is %d tokens", from + count, context)
  end
  if not self.cos or self.cos.shape[1] < from + count then
    local size = math.min(context, math.max(256, 2 ^ math.ceil(math.log(from + count) / math.log(2))))
    self.cos, self.sin = tape.outside_scopes(rope.tables, size, self.shape.head_dim, self.shape.rope)
  end
  return self.cos:narrow(0, from, count), self.sin:narrow(0, from, count)
end

--- Residual stream after the final norm, [B,T,hidden].
-- ids: i32 [B,T] tensor. opt.first: i32 [B,T], where each token's document begins. opt.skip: { [layer] = true | "attention" | "mlp" }.
-- opt.observe(site, layer, tensor) is called, in this order, at "in", "norm1", "q", "k", "attention" (what enters o_proj), "attention_out" (what
-- is added), "mid", "norm2", "pre" (what the activation reads), "ffn" (what enters down_proj), "mlp_out", "out", and at the end at "final" (after
-- the last norm; layer nil). What it keeps it must clone.
-- opt.from: { layer =, x = } starts with the residual stream x into that layer. opt.cache: keys and values of earlier positions.
function Decoder:forward(ids, opt)
  opt = opt or {}
  local start = opt.from and opt.from.layer or 0
  local x = opt.from and opt.from.x or self.model.embed_tokens(ids)
  local cos, sin = self:positions(opt.cache and opt.cache.length or 0, x.shape[2])
  local recording = tape.recording()
  for l = start, self.shape.layers - 1 do
    local skip = opt.skip and opt.skip[l]
    if skip ~= true then
      local block = self.model.layers[l + 1]
      local c = { cos = cos, sin = sin, first = opt.first, observe = opt.observe, layer = l, skip = skip, cache = opt.cache and opt.cache[l] }
      if recording then
        x = block(x, c)
      else
        -- Nothing is kept for backward, so what a block made goes as soon as it is done.
        local y = tape.scope(block.forward, block, x, c)
        if y ~= x and not (opt.from and x == opt.from.x) then x:free() end
        x = y
      end
    end
  end
  if opt.cache then opt.cache:advance(x.shape[2]) end
  local y = self.model.norm(x)
  if opt.observe then opt.observe("final", nil, y) end
  return y
end

return { Decoder = new }
