--- Phi 3 and 4 (mini): a LLaMA whose file stores queries, keys and values as one weight, gate and up as another; parts of a head may turn.

local json = require "espalier.io.json"
local fail = require "espalier.fail"

local M = { class = "Phi3ForCausalLM", defaults = { original_max_position_embeddings = 4096 }, partial = true,
  fused = { ["self_attn.qkv_proj"] = { "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj" },
    ["mlp.gate_up_proj"] = { "mlp.gate_proj", "mlp.up_proj" } } }

function M.read(r, s)
  local scaling = s.rope.scaling
  if scaling and scaling.type ~= "longrope" then fail("%s: rope type '%s', want default or longrope for phi3", r.where, scaling.type) end
  s.norm_eps, s.window = r:number "rms_norm_eps", r:optional("sliding_window", "number")
  r:only("hidden_act", { "silu" })
  -- Phi 4 mini writes these; no other value of them is known.
  for _, name in ipairs { "full_attn_mod", "interpolate_factor" } do r:only(name, { 1 }) end
  for _, name in ipairs { "attention_bias", "mlp_bias", "lm_head_bias" } do r:only(name, { false }) end
end

function M.write(s, c)
  c.rms_norm_eps, c.hidden_act = s.norm_eps, "silu"
  c.sliding_window = s.window or json.null
  local scaling = s.rope.scaling
  if not scaling then return end
  c.original_max_position_embeddings = scaling.original_context
  -- transformers 4 wants these three and no other; the factor follows from the contexts.
  local old = { type = "longrope", short_factor = c.rope_scaling.short_factor, long_factor = c.rope_scaling.long_factor }
  old.attention_factor = scaling.attention_factor
  if scaling.factor ~= s.context / scaling.original_context then old.factor = scaling.factor end
  c.rope_scaling = old
end

return M
