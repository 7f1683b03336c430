--- SmolLM 3: a LLaMA in whose every fourth layer positions do not turn.

local json = require "espalier.io.json"
local shapes = require "espalier.models.shape"
local windows = require "espalier.models.windows"

local M = { class = "SmolLM3ForCausalLM", defaults = { num_key_value_heads = 4, tie_word_embeddings = true, rope_theta = 2000000,
  no_rope_layer_interval = 4 } }

function M.read(r, s)
  s.norm_eps = r:number "rms_norm_eps"
  r:only("hidden_act", { "silu" })
  local interval, turns = r:number "no_rope_layer_interval", r:by_layer("no_rope_layers", s.layers, "number")
  s.rotary = {}
  -- no_rope_layers has 1 where positions turn, in spite of its name.
  for l = 0, s.layers - 1 do
    if turns then s.rotary[l + 1] = turns[l + 1] ~= 0 else s.rotary[l + 1] = (l + 1) % interval ~= 0 end
  end
  r:optional("max_window_layers", "number")
  local size, used = r:optional("sliding_window", "number"), r:flag "use_sliding_window"
  s.window = windows.read(r, s.layers, size, function(l) return used and size ~= nil and not s.rotary[l + 1] end)
  local attention, mlp = r:flag "attention_bias", r:flag "mlp_bias"
  s.biases = { qkv = attention, output = attention, mlp = mlp }
end

function M.write(s, c)
  local biases, turns = s.biases or {}, {}
  for l = 0, s.layers - 1 do turns[l + 1] = shapes.at(s, "rotary", l) == false and 0 or 1 end
  c.rms_norm_eps, c.hidden_act, c.no_rope_layers = s.norm_eps, "silu", json.array(turns)
  c.attention_bias, c.mlp_bias = biases.qkv == true, biases.mlp == true
  c.use_sliding_window = windows.write(s, c) ~= nil
end

return M
