--- Mean next-token loss, nats, with it left out.
return { axes = { "layers" }, needs = { "nll" }, score = function(s) return s.nll end }
