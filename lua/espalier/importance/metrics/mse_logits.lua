--- Mean square change of the logits when it is left out (2508.14444).
return { axes = { "layers" }, needs = { "mse_logits" }, score = function(s) return s.mse_logits end }
