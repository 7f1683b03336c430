--- First order Taylor token by token: sum over tokens of |a dL/da|; effects of different tokens do not cancel.
return { axes = { "ffn", "heads", "kv_heads", "hidden", "attention" }, at = { heads = "heads", kv_heads = "kv_heads" }, needs = { "taylor_abs" },
  score = function(s) return s.taylor_abs end }
