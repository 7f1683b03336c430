--- LLaMA 1 to 3.x, and what calls itself one.

local M = { class = "LlamaForCausalLM" }

function M.read(r, s)
  s.norm_eps = r:number "rms_norm_eps"
  r:only("hidden_act", { "silu" })
  r:only("rope_interleaved", { false })
  r:only("use_sliding_window", { false })
  local attention, mlp = r:flag "attention_bias", r:flag "mlp_bias"
  s.biases = { qkv = attention, output = attention, mlp = mlp }
end

function M.write(s, c)
  local biases = s.biases or {}
  c.rms_norm_eps, c.hidden_act = s.norm_eps, "silu"
  c.attention_bias, c.mlp_bias = biases.qkv == true, biases.mlp == true
end

return M
