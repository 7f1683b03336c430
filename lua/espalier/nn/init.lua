--- Transformer layers as modules: Linear, RMSNorm, LayerNorm, Embedding, Attention, MLP, Block, Decoder, and what is needed to write one.
--
--   local block = esp.nn.Block { hidden = 64, ffn = 172, heads = 4, kv_heads = 2, head_dim = 16, seed = 1 }
--   local y = block(x, { cos = cos, sin = sin })          -- esp.nn.rope.tables makes them

local where = {
  Linear = "layers", RMSNorm = "layers", LayerNorm = "layers", Embedding = "layers", Attention = "attention", MLP = "mlp", Block = "block",
  Decoder = "decoder",
}

return setmetatable({}, { __index = function(nn, name)
  local value
  if where[name] then
    value = require("espalier.nn." .. where[name])[name]
  elseif name == "rope" then
    value = require "espalier.nn.rope"
  elseif name == "Module" then
    value = require "espalier.nn.module"
  end
  nn[name] = value
  return value
end })
