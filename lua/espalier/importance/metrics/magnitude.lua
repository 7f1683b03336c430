--- Length of the weights that carry a channel on: the l2 norm of its column in the matrix that reads it.
return { axes = { "ffn", "heads" }, weights = { "out" }, score = function(_, w) return w.out:norm(2, 0) end }
