--- llama2.c checkpoints, version 0: seven i32 (dim, ffn, layers, heads, kv_heads, vocab, context; vocab negative: head not tied), then f32 weights
-- kind by kind. Their rotary channels are interleaved (0,1 turn together); ours turn with the other half of the head, so rows of q and k move.

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"
local scope = require "espalier.scope"
local file = require "espalier.io.file"
local models = require "espalier.models.model"
local fail = require "espalier.fail"

local M = {}

-- Bytes of a checkpoint of these sizes: weights, and the tables of cosines and sines that older programs read.
local function size_of(s)
  local d, q, kv = s.hidden, s.heads * s.head_dim, s.kv_heads * s.head_dim
  local layer = 2 * d + 2 * d * q + 2 * d * kv + 3 * d * s.ffn
  return 28 + 4 * (s.vocab * d * (s.tied and 1 or 2) + s.layers * layer + d + s.context * s.head_dim)
end

local function header(text, path)
  if #text < 28 then fail("%s: %d bytes are no llama2.c checkpoint (want a header of 28)", path, #text) end
  local h = core.cast("const int32_t *", text)
  local s = { hidden = h[0], ffn = h[1], layers = h[2], heads = h[3], kv_heads = h[4], vocab = math.abs(h[5]), context = h[6], tied = h[5] > 0 }
  for _, name in ipairs { "hidden", "ffn", "layers", "heads", "kv_heads", "vocab", "context" } do
    if s[name] < 1 or s[name] > 2 ^ 24 then fail("%s: %s is %d in the header; this is no llama2.c checkpoint of version 0", path, name, s[name]) end
  end
  if s.hidden % s.heads ~= 0 then fail("%s: hidden %d does not divide among %d heads", path, s.hidden, s.heads) end
  s.head_dim = s.hidden / s.heads
  if #text ~= size_of(s) then
    fail("%s: %d bytes, want %.0f for the sizes in its header; it is cut short, or no llama2.c checkpoint of version 0", path, #text, size_of(s))
  end
  -- What the format leaves to the program that runs it.
  s.norm_eps, s.rope = 1e-5, { theta = 10000 }
  return s
end

-- Rows (head, pair, 2) -> (head, 2, pair).
local function unweave(t, heads, head_dim)
  local hidden = t.shape[2]
  return tensor.view(tensor.clone(tensor.transpose(tensor.view(t, { heads, head_dim / 2, 2, hidden }), 1, 2)), { heads * head_dim, hidden })
end

--- Opens a checkpoint. The tokenizer beside it (tok*.model, tok*.bin) is found by esp.tokenizer.load.
function M.load(path)
  local text = file.read(path, 2 ^ 36)
  local s = header(text, path)
  return scope.outside(function()
    local at, weights = 28, {}
    local function take(...)
      local t = tensor.new { ... }
      local bytes = 4 * t:count()
      core.copy(t:data(), core.cast("const char *", text) + at, bytes)
      at = at + bytes
      return t
    end
    local function by_layer(name, fn, ...)
      for l = 0, s.layers - 1 do
        local t = take(...)
        weights["model.layers." .. l .. "." .. name .. ".weight"] = fn and fn(t) or t
      end
    end
    local d, q, kv = s.hidden, s.heads * s.head_dim, s.kv_heads * s.head_dim
    weights["model.embed_tokens.weight"] = take(s.vocab, d)
    by_layer("input_layernorm", nil, d)
    by_layer("self_attn.q_proj", function(t) return unweave(t, s.heads, s.head_dim) end, q, d)
    by_layer("self_attn.k_proj", function(t) return unweave(t, s.kv_heads, s.head_dim) end, kv, d)
    by_layer("self_attn.v_proj", nil, kv, d)
    by_layer("self_attn.o_proj", nil, d, q)
    by_layer("post_attention_layernorm", nil, d)
    by_layer("mlp.gate_proj", nil, s.ffn, d)
    by_layer("mlp.down_proj", nil, d, s.ffn)
    by_layer("mlp.up_proj", nil, s.ffn, d)
    weights["model.norm.weight"] = take(d)
    at = at + 4 * s.context * s.head_dim
    if not s.tied then weights["lm_head.weight"] = take(s.vocab, d) end
    return models.new(s, { weights = weights, source = path })
  end)
end

return M
