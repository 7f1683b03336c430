--- Size of the activations under one of the nine batch x sequence aggregations (2407.14679, section 2.2).
return { axes = { "ffn", "heads", "kv_heads", "hidden", "head_dim", "attention" }, score = function(s, _, opt) return s.agg(opt.agg) end }
