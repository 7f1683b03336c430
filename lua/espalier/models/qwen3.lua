--- Qwen 3: queries and keys normed head by head, an explicit head_dim, no biases unless asked for.

local qwen2 = require "espalier.models.qwen2"

local M = { class = "Qwen3ForCausalLM", defaults = { num_key_value_heads = 32, head_dim = 128, sliding_window = 4096, max_window_layers = 28 } }

function M.read(r, s)
  s.norm_eps, s.qk_norm = r:number "rms_norm_eps", "head"
  r:only("hidden_act", { "silu" })
  qwen2.read_windows(r, s)
  local bias = r:flag "attention_bias"
  s.biases = { qkv = bias, output = bias }
end

function M.write(s, c)
  c.rms_norm_eps, c.hidden_act = s.norm_eps, "silu"
  c.attention_bias = (s.biases or {}).qkv == true
  qwen2.write_windows(s, c)
end

return M
