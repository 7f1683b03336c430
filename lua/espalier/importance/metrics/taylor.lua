--- First order Taylor on activations (1611.06440): |sum over tokens of a dL/da|, a prediction of how much the mean loss changes.
return { axes = { "ffn", "heads", "kv_heads", "hidden", "attention" }, at = { heads = "heads", kv_heads = "kv_heads" }, needs = { "taylor" },
  score = function(s) return s.taylor:abs() end }
