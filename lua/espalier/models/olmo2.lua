--- OLMo 2: norms after each part, queries and keys normed over all heads at once.

local M = { class = "Olmo2ForCausalLM" }

function M.read(r, s)
  s.norm_eps, s.norms, s.qk_norm = r:number "rms_norm_eps", "post", "whole"
  r:only("hidden_act", { "silu" })
  local bias = r:flag "attention_bias"
  s.biases = { qkv = bias, output = bias }
end

function M.write(s, c)
  c.rms_norm_eps, c.hidden_act = s.norm_eps, "silu"
  c.attention_bias = (s.biases or {}).qkv == true
end

return M
