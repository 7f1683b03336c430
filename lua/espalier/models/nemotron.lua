--- Nemotron and Minitron: LayerNorm times (1 + w) with a bias, relu^2 without a gate, half of each head turns.

local M = { class = "NemotronForCausalLM", defaults = { partial_rotary_factor = 0.5 }, partial = true }

function M.read(r, s)
  s.norm_eps, s.norm = r:number "norm_eps", "layernorm1p"
  s.activation, s.gated = "relu2", false
  r:only("hidden_act", { "relu2" })
  -- Names of the same in the files of NeMo.
  r:only("rope_percent", { s.rope.partial or 1 })
  r:only("kv_channels", { s.head_dim })
  local attention, mlp = r:flag "attention_bias", r:flag "mlp_bias"
  s.biases = { qkv = attention, output = attention, mlp = mlp }
end

function M.write(s, c)
  local biases = s.biases or {}
  c.norm_eps, c.hidden_act = s.norm_eps, "relu2"
  c.attention_bias, c.mlp_bias = biases.qkv == true, biases.mlp == true
end

return M
