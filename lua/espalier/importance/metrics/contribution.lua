--- Mean length of what a unit adds to the residual stream, which is what goes when it goes (Puzzle, 2411.19146, appendix A): of a neuron |a| times
-- the length of its column, of a head or a group of heads the length of its own output.
return { axes = { "ffn", "heads", "kv_heads", "attention" }, at = { heads = "heads", kv_heads = "kv_heads" }, needs = { "added" },
  weights = { "out" }, score = function(s) return s.added end }
