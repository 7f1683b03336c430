--- Block influence (2403.03853): 1 - mean cosine between the residual stream before and after.
return { axes = { "layers" }, score = function(s) return s.cosine * -1 + 1 end }
