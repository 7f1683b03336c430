--- FLAP (2312.11983): variance of the activation over all tokens times the squared l2 norm of the weights that read it: what is lost beyond a
-- constant, which a bias can give back (esp.prune's compensate).
return { axes = { "ffn", "heads", "kv_heads", "hidden", "attention" }, needs = { "variance" }, weights = { "out" },
  score = function(s, w)
    local out = w.out:norm(2, 0)
    return s.variance * (out * out)
  end }
