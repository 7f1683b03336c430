--- Chance, to compare with: a function of seed, layer and channel.
local tensor = require "espalier.tensor"
return { axes = { "ffn", "heads", "hidden" },
  score = function(s, _, opt) return tensor.uniform(s.mean.shape, { seed = opt.seed, stream = opt.layer }) end }
