--- Qwen 2 and 2.5: biases on queries, keys and values only; windows, where used, from a layer on.

local windows = require "espalier.models.windows"

local M = { class = "Qwen2ForCausalLM", defaults = { num_key_value_heads = 32, sliding_window = 4096, max_window_layers = 28 } }

--- Reads use_sliding_window, sliding_window, max_window_layers and layer_types, as Qwen 2 and 3 have them.
function M.read_windows(r, s)
  local size, from = r:optional("sliding_window", "number"), r:optional("max_window_layers", "number")
  if not r:flag "use_sliding_window" then size = nil end
  s.window = windows.read(r, s.layers, size, function(l) return size ~= nil and l >= from end)
end

--- Writes them.
function M.write_windows(s, c)
  local size = windows.write(s, c)
  c.use_sliding_window = size ~= nil
  c.max_window_layers = s.layers
  for l = s.layers, 1, -1 do
    if c.layer_types[l] == "full_attention" then break end
    c.max_window_layers = l - 1
  end
end

function M.read(r, s)
  s.norm_eps = r:number "rms_norm_eps"
  r:only("hidden_act", { "silu" })
  r:only("use_mrope", { false })
  M.read_windows(r, s)
  s.biases = { qkv = true }
end

function M.write(s, c)
  c.rms_norm_eps, c.hidden_act = s.norm_eps, "silu"
  M.write_windows(s, c)
end

return M
