--- Second order Taylor on activations: |-sum a dL/da + 1/2 sum over rows of (sum over a row's tokens of a dL/da)^2|, with Fisher's estimate of the
-- diagonal of the Hessian from the gradients of rows.
return { axes = { "ffn", "heads", "kv_heads", "hidden", "attention" }, at = { heads = "heads", kv_heads = "kv_heads" },
  needs = { "taylor", "fisher" }, score = function(s) return (s.fisher * 0.5 - s.taylor):abs() end }
