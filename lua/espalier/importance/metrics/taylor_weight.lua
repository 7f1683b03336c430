--- First order Taylor on weights (1906.10771): sum of |w dL/dw| over all weights of a unit, dL/dw of the mean loss over all data.
return { axes = { "ffn", "heads", "kv_heads", "hidden", "attention" }, at = { heads = "heads", kv_heads = "kv_heads", hidden = "hidden" },
  needs = { "taylor_weight" }, score = function(s) return s.taylor_weight end }
