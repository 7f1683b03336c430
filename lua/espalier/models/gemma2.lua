--- Gemma 2: Gemma with norms before and after each part, capped scores and logits, and a window in every other layer.

local json = require "espalier.io.json"
local gemma = require "espalier.models.gemma"
local windows = require "espalier.models.windows"

local M = { class = "Gemma2ForCausalLM", defaults = { num_key_value_heads = 4, head_dim = 256, tie_word_embeddings = true, sliding_window = 4096,
  query_pre_attn_scalar = 256, attn_logit_softcapping = 50, final_logit_softcapping = 30 } }

function M.read(r, s)
  gemma.read_common(r, s)
  s.norms = "both"
  s.query_scalar = r:number "query_pre_attn_scalar"
  s.attention_cap, s.logit_cap = r:optional("attn_logit_softcapping", "number"), r:optional("final_logit_softcapping", "number")
  local size = r:optional("sliding_window", "number")
  -- The first files had both names.
  r:only("sliding_window_size", { size })
  s.window = windows.read(r, s.layers, size, function(l) return size ~= nil and l % 2 == 0 end)
end

function M.write(s, c)
  gemma.write_common(s, c)
  c.query_pre_attn_scalar = s.query_scalar or s.head_dim
  c.attn_logit_softcapping, c.final_logit_softcapping = s.attention_cap or json.null, s.logit_cap or json.null
  windows.write(s, c)
end

return M
