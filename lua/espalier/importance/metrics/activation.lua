--- Size of the activations under one of the nine batch x sequence aggregations (2407.14679, section 2.2).
return { axes = { "ffn", "heads", "hidden" }, score = function(s, _, opt) return s.agg(opt.agg) end }
