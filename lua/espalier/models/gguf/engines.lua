--- What llama.cpp's architectures compute: data from which keys.lua and weights.lua make a file, and read one.
--
-- An engine: name (general.architecture); model_type: the one it is named after; has: options of the shape that it always has (shape.lua);
-- any: options that may be as they like, told by the keys or tensors of the file; lists: may sizes differ by layer?; square: heads times head_dim
-- must be hidden, since its output projection is read as [hidden, hidden]; tied: "always" or "never", where it has no choice; turned: rows of
-- queries and keys stand in pairs that turn together (0 with 1) instead of halves (0 with head_dim/2); frequencies: does it read rope_freqs?;
-- rms: is the norm's epsilon that of an RMS norm?; fused: tensors that stand row upon row in one.

-- SmolLM3 turns all layers but every fourth.
local function all_but_fourth(s)
  local list = {}
  for l = 0, s.layers - 1 do list[l + 1] = (l + 1) % 4 ~= 0 end
  return list
end

--- In the order in which one is looked for that can express a shape; the one named after the model's own model_type comes first.
return {
  { name = "llama", model_type = "llama", has = {}, any = { biases = true }, turned = true, frequencies = true, rms = true },
  { name = "deci", has = {}, any = { biases = true }, lists = true, turned = true, frequencies = true, rms = true },
  { name = "qwen2", model_type = "qwen2", has = { biases = { qkv = true } }, any = {}, square = true, rms = true },
  { name = "qwen3", model_type = "qwen3", has = { qk_norm = "head" }, any = {}, rms = true },
  { name = "gemma", model_type = "gemma", has = { norm = "rms1p", activation = "gelu_tanh", embedding_scale = "root" }, any = {}, tied = "always",
    rms = true },
  { name = "gemma2", model_type = "gemma2", has = { norm = "rms1p", norms = "both", activation = "gelu_tanh", embedding_scale = "root" },
    any = { window = true, attention_cap = true, logit_cap = true }, tied = "always", rms = true },
  { name = "nemotron", model_type = "nemotron", has = { norm = "layernorm1p", activation = "relu2", gated = false },
    any = { biases = true, partial = true }, square = true, tied = "never" },
  { name = "smollm3", model_type = "smollm3", has = { rotary = all_but_fourth }, any = {}, turned = true, rms = true },
  { name = "olmo2", model_type = "olmo2", has = { norms = "post", qk_norm = "whole" }, any = {}, square = true, tied = "never", rms = true },
  { name = "phi3", model_type = "phi3", has = {}, any = { partial = true }, square = true, rms = true,
    fused = { attn_qkv = { "attn_q", "attn_k", "attn_v" }, ffn_up = { "ffn_gate", "ffn_up" } } },
}
