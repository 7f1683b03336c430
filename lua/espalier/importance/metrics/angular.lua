--- Angular distance (2403.17887): mean arccos(cos)/pi between the residual stream before and after a block, over all tokens or each row's last.
return { axes = { "layers" }, score = function(s) return s.angle end }
