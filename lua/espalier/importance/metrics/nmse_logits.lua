--- Square change of the logits when it is left out, as a share of their squares (2511.16664, equation 5).
return { axes = { "layers" }, needs = { "nmse_logits" }, score = function(s) return s.nmse_logits end }
