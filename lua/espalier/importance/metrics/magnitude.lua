--- Length of all weights of a channel: the l2 norm over those that make it and those that read it. Of hidden channels: those that read it.
return { axes = { "ffn", "heads", "kv_heads", "hidden", "attention" }, weights = { "out", "in" },
  score = function(_, w, opt)
    local out = w.out:norm(2, 0)
    if opt.axis == "hidden" then return out end
    local made = w["in"]:norm(2, 1)
    return (out * out + made * made):sqrt()
  end }
