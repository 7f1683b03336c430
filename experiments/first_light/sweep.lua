--- First light: BabyLlama pruned in width (hidden 96, ffn 256) and trained back by distillation, by cross-entropy, and the same shape from scratch,
-- three seeds each, in one sweep.
--
--   build/espalier experiments/first_light/sweep.lua model=.../tok105_model5000.bin text=.../tinystories_10k.txt out=runs/first_light

local esp = require "espalier"

local opt = esp.options(..., {
  model = { "path", required = true, help = "BabyLlama's llama2.c checkpoint, its tokenizer beside it" },
  text = { "path", required = true, help = "the first ten thousand stories of TinyStories" },
  steps = { "int", default = 400, help = "of 16 rows of 128 tokens" },
  seeds = { "list", default = { 1, 2, 3 }, help = "as 1,2,3" },
  out = { "path", default = "runs/first_light", help = "folder of the sweep" },
  retry = { "string", default = "no", help = "no, failed, stale or all" },
})

local teacher = esp.load(opt.model)
local stories = esp.data.open(opt.text)

-- The first 300 stories with 128 tokens or more, by their first 128 tokens, are only scored; story 300 and all behind it are trained on, less
-- those 300 where a short story pushed one past the mark.
local tok, scored, trained = teacher:tok(), {}, {}
for i, text in ipairs(stories:texts()) do
  if #scored < 300 and #tok:encode(text, { bos = true }) >= 128 then scored[#scored + 1] = text
  elseif i > 300 then trained[#trained + 1] = text end
end
local data = esp.data.open(trained, { seq = 128 })
local held_out = esp.data.open(scored, { seq = 128, pack = "none" })

local scores_file = opt.out .. "/statistics.h5"
local scores
if esp.io.file.kind(scores_file) then
  scores = esp.importance.load(scores_file)
else
  esp.io.file.make(opt.out)
  scores = esp.importance.measure(teacher, data:sample(128))
  scores:save(scores_file)
end
local student = esp.prune(teacher, scores, { hidden = 96, ffn = 256, quiet = true })

local function result(label, model)
  local score = esp.evaluate { model, data = held_out, train = data }
  return { label = label, parameters = esp.plan(model).before.parameters, nll = score.nll, interval = score.interval }
end

local sweep = esp.sweep {
  title = "First light: BabyLlama to hidden 96, ffn 256",
  cells = { { retrain = "distill" }, { retrain = "cross-entropy" }, { retrain = "from scratch" } },
  axes = { { "seed", opt.seeds } }, importance = scores, out = opt.out, retry = opt.retry,
  run = function(cell)
    local how = { data = data, batch = 16, steps = opt.steps, seed = cell.seed, out = cell.out,
      schedule = esp.schedule.cosine { peak = 2e-3, min = 2e-4, warmup = 20 } }
    if cell.retrain == "distill" then
      how.teacher, how.student = teacher, student
      return result(cell.retrain, esp.distill(how).model)
    end
    how.model = cell.retrain == "cross-entropy" and student or esp.models.new(student.shape, { seed = cell.seed, tokenizer = tok })
    return result(cell.retrain, esp.train(how).model)
  end,
}

print()
for _, row in ipairs { { "teacher", teacher }, { "pruned", student } } do
  local r = result(row[1], row[2])
  print(string.format("%-8s NLL %.4f +- %.4f  %d parameters", r.label, r.nll, r.interval, r.parameters))
end
print(sweep)
