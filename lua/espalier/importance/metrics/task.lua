--- What a task of the user's loses: minus its score with it left out (2408.11796).
return { axes = { "layers" }, needs = { "task" }, score = function(s) return s.task * -1 end }
