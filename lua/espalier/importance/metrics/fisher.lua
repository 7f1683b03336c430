--- Fisher: 1/2 sum over rows of (sum over a row's tokens of a dL/da)^2, the second order term of the change of the loss alone (1801.05787).
return { axes = { "ffn", "heads", "kv_heads", "hidden", "attention" }, at = { heads = "heads", kv_heads = "kv_heads" }, needs = { "fisher" },
  score = function(s) return s.fisher * 0.5 end }
