--- Text from a model, token by token, with a cache of keys and values.

local tensor = require "espalier.tensor"
local tape = require "espalier.tape"
local scope = require "espalier.scope"
local ops = require "espalier.ops"
local core = require "espalier.ffi"
local shapes = require "espalier.models.shape"
local rope = require "espalier.nn.rope"
local product = require "espalier.product"
local options = require "espalier.options"
local fail = require "espalier.fail"

local M = {}

-- Keys and values of one layer: [1, room, kv_heads, head_dim], the first `length` rows filled.
local Layer = {}
Layer.__index = Layer

--- Appends k and v [1,T,G,D] and returns all so far.
function Layer:extend(k, v)
  local from, n = self.cache.length, k.shape[2]
  tensor.narrow(self.k, 1, from, n):copy_from(k)
  tensor.narrow(self.v, 1, from, n):copy_from(v)
  return tensor.narrow(self.k, 1, 0, from + n), tensor.narrow(self.v, 1, 0, from + n)
end

--- An empty cache of `room` positions for a model, in the dtype that its layers keep keys and values in.
function M.cache(model, room)
  local s, dtype = model.shape, product.stored(model.precision)
  local cache = { length = 0 }
  function cache:advance(n) self.length = self.length + n end
  for l = 0, s.layers - 1 do
    local shape = { 1, room, shapes.at(s, "kv_heads", l), s.head_dim }
    cache[l] = setmetatable({ cache = cache, k = tensor.new(shape, dtype), v = tensor.new(shape, dtype) }, Layer)
  end
  return cache
end

-- The next id from logits [V]: the largest where temperature is 0, else drawn from the smallest set that holds top_p of the mass.
local function choose(logits, opt, step)
  if opt.temperature == 0 then
    local _, index = logits:max(0)
    return index:item()
  end
  local p = ops.softmax(tensor.view(logits / opt.temperature, { 1, logits.shape[1] }))
  local order = p:argsort { descending = true }:view(-1)
  local probability, at = p:data(), order:data()
  local n, mass = 0, 0
  repeat
    mass = mass + probability[at[n]]
    n = n + 1
  until mass >= opt.top_p or n == logits.shape[1]
  local u = tensor.uniform({ 1 }, { seed = opt.seed, stream = step }):item() * mass
  for i = 0, n - 1 do
    u = u - probability[at[i]]
    if u < 0 then return at[i] end
  end
  return at[n - 1]
end

--- Continues ids (a list, at least one) and returns the new ones. opt: tokens, temperature, top_p, seed; stops before opt.stop, and at the context.
-- opt.each(id), where given, is called with every new id.
function M.ids(model, ids, opt)
  local room = math.min(model.shape.context, #ids + opt.tokens)
  local new, input = {}, ids
  local scaling = model.shape.rope.scaling
  local longrope = scaling and scaling.type == "longrope"
  tape.no_grad(scope.run, function()
    local cache = M.cache(model, room)
    for step = 1, opt.tokens do
      if cache.length + #input > room then break end
      -- LongRoPE turns every key anew where the run passes the original context.
      local before, after = cache.length, cache.length + #input
      if longrope and rope.regime(model.shape.rope, before) ~= rope.regime(model.shape.rope, after) and before > 0 then
        cache, input = M.cache(model, room), { unpack(ids) }
        for _, id in ipairs(new) do input[#input + 1] = id end
      end
      local id = scope.run(function()
        local h = model:forward({ input }, { cache = cache })
        local last = tensor.view(tensor.clone(tensor.narrow(h, 1, #input - 1, 1)), { 1, model.shape.hidden })
        return choose(tensor.view(model:project(last), { model.shape.vocab }), opt, step)
      end)
      if id == opt.stop or core.C.esp_interrupted() ~= 0 then break end
      new[#new + 1] = id
      if opt.each then opt.each(id) end
      input = { id }
    end
  end)
  return new
end

--- The prompt and its continuation as text. opt: tokens (256), temperature (0: the likeliest each time), top_p (1), seed (0).
function M.generate(model, prompt, opt)
  opt = options.check("esp.generate", opt, { tokens = { "int", default = 256 }, temperature = { "number", default = 0 },
    top_p = { "number", default = 1 }, seed = { "int", default = 0 } })
  if type(prompt) ~= "string" then fail("esp.generate: the prompt is %s, want a text", type(prompt)) end
  local tok = model:tok()
  if tok.vocab > model.shape.vocab then
    fail("esp.generate: the tokenizer has %d pieces, the model's vocabulary %d", tok.vocab, model.shape.vocab)
  end
  local ids = tok:encode(prompt, { bos = tok.add_bos })
  if #ids == 0 then fail("esp.generate: the prompt is empty and the tokenizer has no token to begin with") end
  opt.stop = tok.eos
  local new = M.ids(model, ids, opt)
  local all = { unpack(ids) }
  for _, id in ipairs(new) do all[#all + 1] = id end
  return tok:decode(all)
end

return M
