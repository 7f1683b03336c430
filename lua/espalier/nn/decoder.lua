--- The decoder: embedding, blocks, final norm, head; what it is beyond a LLaMA, its shape says (models/shape.lua). Its parameters have the names of
-- Hugging Face's models.

local Module = require "espalier.nn.module"
local layers = require "espalier.nn.layers"
local blocks = require "espalier.nn.block"
local rope = require "espalier.nn.rope"
local shapes = require "espalier.models.shape"
local tensor = require "espalier.tensor"
local tape = require "espalier.tape"
local scope = require "espalier.scope"
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
  local given = opt.weights or {}
  local stack = setmetatable({ layers = {} }, Stack)
  stack.embed_tokens = layers.Embedding { vocab = shape.vocab, size = shape.hidden, weight = given["model.embed_tokens.weight"],
    scale = shape.embedding_scale == "root" and math.sqrt(shape.hidden) or 1, seed = opt.seed, std = opt.std, stream = 0 }
  for l = 0, shape.layers - 1 do
    local own = { weights = layer_weights(given, l), seed = opt.seed, std = opt.std, stream = 16 * (l + 1) }
    -- Sizes and options of the shape, as this layer has them.
    for name in pairs(shape) do own[name] = shapes.at(shape, name, l) end
    own.biases = shape.biases
    stack.layers[l + 1] = blocks.Block(own)
  end
  stack.norm = layers.norm(shape.norm, "norm", shape.hidden, { norm_eps = shape.norm_eps,
    weights = { norm = given["model.norm.weight"], ["norm.bias"] = given["model.norm.bias"] } })
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

-- Cosines and sines of `count` positions from `from` on; the tables grow by doubling, up to the context. Where they depend on the length of the run
-- (rope.regime) they are those of from + count positions.
function Decoder:positions(from, count)
  local context = self.shape.context
  if from + count > context then
    fail("forward: %d positions asked for, the model's context is %d tokens", from + count, context)
  end
  local length = from + count
  local regime = rope.regime(self.shape.rope, length)
  if not self.cos or self.cos.shape[1] < length or self.regime ~= regime then
    local size = math.min(context, math.max(256, 2 ^ math.ceil(math.log(length) / math.log(2))))
    self.cos, self.sin = scope.outside(rope.tables, size, self.shape.head_dim, self.shape.rope, length)
    self.regime = regime
  end
  return self.cos:narrow(0, from, count), self.sin:narrow(0, from, count)
end

-- First key that each of T queries sees through a window, the first of them at position `from`: i32 [B,T], not below `first` (or nil).
local function windowed(window, from, B, T, first)
  local t, at = tensor.new({ B, T }, "i32"), first and tensor.contiguous(first):data()
  local p = t:data()
  for b = 0, B - 1 do
    for i = 0, T - 1 do p[b * T + i] = math.max(at and at[b * T + i] or 0, from + i - window + 1) end
  end
  return t
end

-- A function that gives opt.first as layer l sees it; windows of one size share one tensor.
function Decoder:firsts(opt, from, B, T)
  local made = {}
  return function(l)
    local window = shapes.at(self.shape, "window", l) or 0
    if window == 0 or window >= from + T then return opt.first end
    made[window] = made[window] or windowed(window, from, B, T, opt.first)
    return made[window]
  end
end

--- Residual stream after the final norm, [B,T,hidden].
-- ids: i32 [B,T] tensor. opt.first: i32 [B,T], where each token's document begins. opt.skip: { [layer] = true | "attention" | "mlp" }.
-- opt.observe(site, layer, tensor) is called, in this order, at "in", "norm1", "q", "k", "attention" (what enters o_proj), "attention_out" (what
-- is added), "mid", "norm2", "pre" (what the activation reads), "ffn" (what enters down_proj), "mlp_out", "out", and at the end at "final" (after
-- the last norm; layer nil). What it keeps it must clone; "mid" is there until "out".
-- opt.bounded: weights that were not read yet are made block by block and do not stay (not recorded).
-- opt.from: { layer =, x = } starts with the residual stream x into that layer. opt.cache: keys and values of earlier positions.
function Decoder:forward(ids, opt)
  opt = opt or {}
  local start = opt.from and opt.from.layer or 0
  local x = opt.from and opt.from.x or self.model.embed_tokens(ids)
  local from = opt.cache and opt.cache.length or 0
  local cos, sin = self:positions(from, x.shape[2])
  local first = self:firsts(opt, from, x.shape[1], x.shape[2])
  local recording = tape.recording()
  for l = start, self.shape.layers - 1 do
    local skip = opt.skip and opt.skip[l]
    if skip ~= true then
      local block = self.model.layers[l + 1]
      local c = { cos = cos, sin = sin, first = first(l), observe = opt.observe, layer = l, skip = skip, cache = opt.cache and opt.cache[l] }
      if recording then
        x = block(x, c)
      else
        -- Nothing is kept for backward, so what a block made goes as soon as it is done.
        local y = scope.run(opt.bounded and block.pass or block.forward, block, x, c)
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
