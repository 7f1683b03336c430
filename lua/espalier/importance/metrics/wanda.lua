--- Wanda (2306.11695): root mean square of the activation times the l1 norm of the weights that read it.
return { axes = { "ffn", "heads", "kv_heads", "hidden", "attention" }, needs = { "mean_square" }, weights = { "out" },
  score = function(s, w) return s.mean_square:sqrt() * w.out:norm(1, 0) end }
