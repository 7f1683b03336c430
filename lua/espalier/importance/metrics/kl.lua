--- KL from the whole model to the one without it, nats a token (2504.11409).
return { axes = { "layers" }, needs = { "kl" }, score = function(s) return s.kl end }
