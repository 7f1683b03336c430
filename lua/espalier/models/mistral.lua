--- Mistral and Mistral NeMo: no biases, an explicit head_dim, a window over all layers or none.

local json = require "espalier.io.json"

local M = { class = "MistralForCausalLM", defaults = { num_key_value_heads = 8, sliding_window = 4096 } }

function M.read(r, s)
  s.norm_eps = r:number "rms_norm_eps"
  -- Missing it is 4096, null is no window.
  s.window = r:optional("sliding_window", "number")
  r:only("hidden_act", { "silu" })
  for _, name in ipairs { "attention_bias", "mlp_bias" } do r:only(name, { false }) end
end

function M.write(s, c)
  c.rms_norm_eps, c.hidden_act = s.norm_eps, "silu"
  c.sliding_window = s.window or json.null
end

return M
