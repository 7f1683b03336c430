--- Chance, to compare with: a function of seed, layer and channel.
local tensor = require "espalier.tensor"
return { axes = { "ffn", "heads", "kv_heads", "hidden", "attention" }, at = { heads = "heads" },
  score = function(s, _, opt) return tensor.uniform(s.mean.shape, { seed = opt.seed, stream = opt.layer or 0 }) end }
