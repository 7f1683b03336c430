--- Which engine of GGUF files computes what a shape does. What an engine cannot express is what does not come back from what was written for it.

local shapes = require "espalier.models.shape"
local engines = require "espalier.models.gguf.engines"
local keys = require "espalier.models.gguf.keys"
local fail = require "espalier.fail"

local M = {}

-- The shape as an engine would have it, where that is the same function: windows become a shorter context, and so on. Returns the shape, a list
-- of sentences about it, and a factor for the queries.
local function adapt(s, engine)
  local a, notes, scale = shapes.copy(s), {}, 1
  if a.window and not engine.any.window then
    local narrowest
    for l = 0, a.layers - 1 do
      local w = shapes.at(a, "window", l)
      if w > 0 then narrowest = math.min(narrowest or w, w) end
    end
    a.window = nil
    if narrowest and narrowest < a.context then
      a.context = narrowest
      notes[#notes + 1] = string.format("its context is %d, where the window ends: llama.cpp's %s has no window", narrowest, engine.name)
    end
  end
  if a.rope.scaling and a.rope.scaling.type == "dynamic" then
    a.context, a.rope.scaling = math.min(a.context, a.rope.scaling.original_context), nil
    notes[#notes + 1] = string.format("its context is %d, where the dynamic scaling would begin: llama.cpp has none", a.context)
  end
  if engine.name == "gemma2" then
    -- llama.cpp divides by the root of head_dim, and of hidden/heads in the model of 46 layers, whatever the config says.
    local own = a.layers == 46 and math.floor(a.hidden / a.heads) or a.head_dim
    scale, a.query_scalar = math.sqrt(own / (a.query_scalar or a.head_dim)), nil
  end
  if engine.tied == "never" then a.tied = false end
  return a, notes, scale
end

-- What to_shape would find in a file of these keys.
local function written_file(list, s)
  local values, index = {}, { ["token_embd.weight"] = 0, ["output.weight"] = not s.tied and 1 or nil }
  for _, entry in ipairs(list) do values[entry[1]] = entry[3] end
  for name, tensor in pairs { qkv = "attn_q", output = "attn_output", mlp = "ffn_up" } do
    if (s.biases or {})[name] then index["blk.0." .. tensor .. ".bias"] = 2 end
  end
  local names = {}
  for i, entry in ipairs(list) do names[i] = entry[1] end
  if s.rope.scaling and s.rope.scaling.type == "llama3" then index["rope_freqs.weight"] = 3 end
  return { keys = names, index = index, get = function(_, key) return values[key] end, describe = function() return { s.vocab, s.hidden } end,
    tensor = function() return { table = function() return keys.frequency_factors(s.head_dim, s.rope) end } end }
end

local function express(s, engine)
  local a, notes, scale = adapt(s, engine)
  local uneven
  for _, name in ipairs { "ffn", "heads", "kv_heads" } do uneven = uneven or type(a[name]) == "table" and name end
  if uneven and not engine.lists then return nil, "layers that differ in " .. uneven end
  if uneven and shapes.at(a, "heads", 0) == 0 then return nil, "a first layer without attention" end
  for l = 0, a.layers - 1 do
    local h, f = shapes.at(a, "heads", l), shapes.at(a, "ffn", l)
    if h > 0 and f == 0 then return nil, "a layer with attention and without an MLP" end
    if engine.square and h * a.head_dim ~= a.hidden then
      return nil, string.format("%d heads of %d where hidden is %d (their product must be hidden)", h, a.head_dim, a.hidden)
    end
  end
  if a.rope.scaling and a.rope.scaling.type == "llama3" and not engine.frequencies then return nil, "llama3's rope scaling" end
  local ok, back = pcall(keys.to_shape, written_file(keys.of_shape(a, engine, ""), a), "gguf")
  if not ok then return nil, back end
  local want = shapes.normal(a)
  for name in pairs(want) do if not shapes.same(want[name], back[name]) then return nil, "a " .. name .. " like that of this model" end end
  for name in pairs(back) do if want[name] == nil then return nil, "no choice but a " .. name end end
  return a, notes, scale
end

--- The engine that computes what a shape does: the one named after model_type (or that for layers that differ), else the first that can. Returns
-- it, the shape as it has it, a list of sentences about the difference, and the factor for the queries. Refuses a shape that none can express, with
-- the reason of its own.
function M.choose(s, model_type)
  local reason
  local function try(engine)
    local a, notes, scale = express(s, engine)
    if a then return engine, a, notes, scale end
    reason = reason or string.format("llama.cpp's %s has not %s", engine.name, notes)
  end
  local order, uneven = {}, type(s.ffn) == "table" or type(s.heads) == "table" or type(s.kv_heads) == "table"
  for _, e in ipairs(engines) do if uneven and e.lists or not uneven and e.model_type == model_type then order[1] = e end end
  for _, e in ipairs(engines) do if e ~= order[1] then order[#order + 1] = e end end
  for _, e in ipairs(order) do
    local engine, a, notes, scale = try(e)
    if engine then return engine, a, notes, scale end
  end
  fail("save: no GGUF file can hold this model: %s", reason)
end

return M
