--- Gemma: norms times (1 + w), embeddings times the root of hidden, a gate of GELU (tanh), tied.

local M = { class = "GemmaForCausalLM", defaults = { num_key_value_heads = 16, head_dim = 256, tie_word_embeddings = true } }

-- Both names have been in use; the old "gelu" always meant the tanh form in Gemma.
local gelu = { "gelu_pytorch_tanh", "gelu" }

--- Reads what Gemma 1 and 2 share.
function M.read_common(r, s)
  s.norm_eps, s.norm, s.activation, s.embedding_scale = r:number "rms_norm_eps", "rms1p", "gelu_tanh", "root"
  r:only("hidden_act", gelu)
  r:only("hidden_activation", gelu)
  r:only("use_bidirectional_attention", { false })
  local bias = r:flag "attention_bias"
  s.biases = { qkv = bias, output = bias }
end

--- Writes it.
function M.write_common(s, c)
  c.rms_norm_eps, c.hidden_act, c.hidden_activation = s.norm_eps, "gelu_pytorch_tanh", "gelu_pytorch_tanh"
  c.attention_bias = (s.biases or {}).qkv == true
end

M.read, M.write = M.read_common, M.write_common

return M
