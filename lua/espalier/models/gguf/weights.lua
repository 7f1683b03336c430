--- Weights between Hugging Face's names and layout and llama.cpp's, both ways.
--
-- Names differ; rows of queries and keys may stand in turning pairs; norms that multiply by 1 + w are stored with the 1; an engine may store several
-- matrices as one; a factor may be folded into the queries.

local tensor = require "espalier.tensor"
local lazy = require "espalier.tensor.lazy"
local shapes = require "espalier.models.shape"
local fail = require "espalier.fail"

local M = {}

local linear = { ["self_attn.q_proj"] = "attn_q", ["self_attn.k_proj"] = "attn_k", ["self_attn.v_proj"] = "attn_v",
  ["self_attn.o_proj"] = "attn_output", ["self_attn.q_norm"] = "attn_q_norm", ["self_attn.k_norm"] = "attn_k_norm",
  ["mlp.gate_proj"] = "ffn_gate", ["mlp.up_proj"] = "ffn_up", ["mlp.down_proj"] = "ffn_down" }
local norms = { before_attention = "attn_norm", after_attention = "post_attention_norm", before_mlp = "ffn_norm", after_mlp = "post_ffw_norm" }
local outer = { ["model.embed_tokens"] = "token_embd", ["model.norm"] = "output_norm", ["lm_head"] = "output" }

-- GGUF's name of each tensor of a shape, without "blk.L." and ".weight".
local function stems(s)
  local map = {}
  for k, v in pairs(linear) do map[k] = v end
  for place, name in pairs(shapes.norms[s.norms or "pre"]) do map[name] = norms[place] end
  return map
end

--- What a GGUF file of a shape holds: a list of { name, shape, parts }, parts being tensors of the shape (shape.tensors) with kind = "q", "k", "norm"
-- or nil, one, or several that the engine stores row upon row.
function M.stored(s, engine)
  local map, out, place, inside = stems(s), {}, {}, {}
  for whole, parts in pairs(engine.fused or {}) do for _, part in ipairs(parts) do inside[part] = whole end end
  for _, t in ipairs(shapes.tensors(s)) do
    local stem, suffix = (t.below or t.name):match "^(.*)(%.%w+)$"
    local own = t.layer and map[stem] or outer[stem]
    local name = (inside[own] or own) .. suffix
    if t.layer then name = "blk." .. t.layer .. "." .. name end
    local entry = place[name]
    if not entry then
      entry = { name = name, shape = { 0, unpack(t.shape, 2) }, parts = {} }
      place[name], out[#out + 1] = entry, entry
    end
    entry.shape[1] = entry.shape[1] + t.shape[1]
    t.kind = own == "attn_q" and "q" or own == "attn_k" and "k" or own:find "norm$" and "norm" or nil
    entry.parts[#entry.parts + 1] = t
  end
  return out
end

-- Rows (head, half, channel) to (head, channel, half), or back.
local function turn_rows(t, head_dim, back)
  local rows, columns = t.shape[1], t.shape[2] or 1
  local split = back and { rows / head_dim, head_dim / 2, 2, columns } or { rows / head_dim, 2, head_dim / 2, columns }
  local turned = tensor.clone(tensor.transpose(tensor.view(tensor.contiguous(t), split), 1, 2))
  return tensor.view(turned, t.shape)
end

local function is_one_more(s, part)
  return part.kind == "norm" and part.name:find "weight$" and (s.norm == "rms1p" or s.norm == "layernorm1p")
end

-- The tensor that GGUF stores for a part.
local function to_gguf(t, part, s, engine, scale)
  if engine.turned and (part.kind == "q" or part.kind == "k") then t = turn_rows(t, s.head_dim) end
  -- Normed queries take the factor in their norm.
  local takes_scale = s.qk_norm and part.below == "self_attn.q_norm.weight" or not s.qk_norm and part.kind == "q"
  if takes_scale and scale ~= 1 then t = tensor.to(t, "f32") * scale end
  if is_one_more(s, part) then t = tensor.to(t, "f32") + 1 end
  return t
end

--- The tensor of an entry of M.stored. scale: factor of the queries; get(name): the weight of that name.
function M.make(want, s, engine, scale, get)
  if #want.parts == 1 then return to_gguf(get(want.parts[1].name), want.parts[1], s, engine, scale) end
  local whole, at = tensor.new(want.shape), 0
  for _, part in ipairs(want.parts) do
    tensor.narrow(whole, 0, at, part.shape[1]):copy_from(to_gguf(get(part.name), part, s, engine, scale))
    at = at + part.shape[1]
  end
  return whole
end

-- The tensor of a part from what GGUF stores for it.
local function from_gguf(t, part, s, engine)
  if engine.turned and (part.kind == "q" or part.kind == "k") then t = turn_rows(t, s.head_dim, true) end
  if is_one_more(s, part) then t = tensor.to(t, "f32") - 1 end
  return t
end

-- Is what is stored for a part what it is?
local function as_it_is(part, s, engine)
  return not is_one_more(s, part) and not (engine.turned and (part.kind == "q" or part.kind == "k"))
end

--- Puts the parts of a stored tensor into `weights` by their names, used in a dtype (nil: as it is stored, f16 as f32). what: whose it is, in the
-- sentence that refuses NaN and infinity. What is stored as it is stays where it is until it is first used.
function M.split(weights, stored, want, s, engine, dtype, what)
  local at = 0
  for _, part in ipairs(want.parts) do
    local own = #want.parts == 1 and stored or tensor.narrow(stored, 0, at, part.shape[1])
    at = at + part.shape[1]
    local t = lazy.of(own, { dtype = dtype, what = what })
    if not as_it_is(part, s, engine) then
      local kept, used = t.stored, t.dtype
      t = tensor.to(from_gguf(lazy.load(t), part, s, engine), used)
      t.stored = kept
    end
    weights[part.name] = t
  end
end

--- { [name] = tensor } of all parts, read from an open file (io/gguf.lua). Refuses a tensor that is missing, of another shape, or that has no place.
function M.read(f, s, engine, dtype)
  local weights, known = {}, { ["rope_freqs.weight"] = true }
  for _, want in ipairs(M.stored(s, engine)) do
    if not f.index[want.name] then fail("%s: the tensor '%s' is missing", f.path, want.name) end
    local shape = f:describe(want.name)
    if not shapes.same(shape, want.shape) then
      fail("%s: '%s' is [%s], want [%s] (from its keys)", f.path, want.name, table.concat(shape, ", "), table.concat(want.shape, ", "))
    end
    M.split(weights, f:tensor(want.name), want, s, engine, dtype, string.format("%s: '%s'", f.path, want.name))
    known[want.name] = true
  end
  for _, name in ipairs(f.names) do
    if not known[name] then fail("%s: the tensor '%s' has no place in a %s of these keys", f.path, name, engine.name) end
  end
  return weights
end

return M
