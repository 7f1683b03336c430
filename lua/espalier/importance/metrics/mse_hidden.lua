--- Mean square change of what enters the head when it is left out (2504.03624).
return { axes = { "layers" }, needs = { "mse_hidden" }, score = function(s) return s.mse_hidden end }
