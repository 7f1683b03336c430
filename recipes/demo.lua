--- The whole way in a minute and a half: a small teacher is trained on a world of stories, measured, pruned by width and by depth to the same
-- number of parameters, and retrained by distillation and by plain cross-entropy, beside the same shape from scratch.
--
--   make demo      or      build/espalier recipes/demo.lua out=runs/demo
--
-- A second start goes on where the first was stopped, or shows what is there. The table is printed; out/report.html holds it with its curves.

local esp = require "espalier"
local stories = require "world.stories"
local vocabulary = require "world.vocabulary"

local opt = esp.options(..., {
  out = { "path", default = "runs/demo", help = "folder of all that is made" },
  teacher_steps = { "int", default = 1200, help = "training steps of the teacher" },
  steps = { "int", default = 150, help = "retraining steps of each student" },
  seed = { "int", default = 1, help = "of the stories and of every drawing" },
  retry = { "string", default = "no", help = "no, failed, stale or all: cells to run again" },
})

-- The text: the first 300 stories are only ever scored.
local texts = stories.stories(12000, opt.seed)
esp.io.file.make(opt.out .. "/vocabulary")
local tok = vocabulary.learn(texts, 768, opt.out .. "/vocabulary")
local data = esp.data.open(texts, { seq = 128, tokenizer = tok }):split { held_out = "3%" }

local teacher = esp.train {
  esp.models.new({ hidden = 128, ffn = 352, layers = 5, heads = 4, kv_heads = 2, head_dim = 32, vocab = tok.vocab, context = 256, norm_eps = 1e-5,
    rope = { theta = 10000 }, tied = true }, { seed = opt.seed, tokenizer = tok }),
  data = data.train, batch = 4, steps = opt.teacher_steps,
  schedule = esp.schedule.cosine { peak = 5e-3, min = 5e-4, warmup = 80 }, betas = { 0.9, 0.99 },
  seed = opt.seed, out = opt.out .. "/teacher", quiet = os.getenv "ESPALIER_CELL" ~= nil,
}.model
teacher.tokenizer = tok

-- One pass over calibration rows; kept, so that a second start and the cells read it.
local scores_file = opt.out .. "/statistics.h5"
local scores
if esp.io.file.kind(scores_file) then
  scores = esp.importance.load(scores_file)
else
  scores = esp.importance.measure(teacher, data.train:sample(64), { depth = true })
  scores:save(scores_file)
end

-- Three of five layers go; and as much in width: channels of the residual stream, and FFN neurons until the counts agree.
local depth = { layers = 2 }
local width = { hidden = 96 }
local goal = esp.plan(teacher, depth).after.parameters
repeat
  width.ffn = (width.ffn or 353) - 1
until width.ffn == 1 or esp.plan(teacher, width).after.parameters <= goal

-- Retraining sees 400 stories over and over: less than the teacher saw, as in life. This is where its distributions teach more than the text.
local little = data.train:range(0, 399)

local ranking = scores:rank { layers = "nll" }

-- Share of the world's facts that a model completes as they are.
local function knows(model)
  local right, facts = 0, stories.facts()
  for _, fact in ipairs(facts) do
    local said = esp.generate(model, fact[1], { tokens = #tok:encode(fact[2]), temperature = 0 })
    if said:sub(-#fact[2]) == fact[2] then right = right + 1 end
  end
  return 100 * right / #facts
end

local function result(label, model)
  local score = esp.evaluate { model, data = data.held_out }
  return { label = label, parameters = esp.plan(model).before.parameters, nll = score.nll, interval = score.interval, ["facts, %"] = knows(model) }
end

local sweep = esp.sweep {
  title = "Espalier demo: width or depth, distillation or cross-entropy",
  cells = {
    { shape = "teacher" },
    { shape = "width", retrain = "no" },
    { shape = "depth", retrain = "no" },
    { shape = "width", retrain = "distill" },
    { shape = "depth", retrain = "distill" },
    { shape = "width", retrain = "cross-entropy" },
    { shape = "width", retrain = "from scratch" },
  },
  importance = scores, out = opt.out .. "/sweep", retry = opt.retry,
  run = function(cell)
    if cell.shape == "teacher" then return result("teacher", teacher) end
    local student = esp.prune(teacher, ranking, cell.shape == "width" and width or depth)
    local label = cell.shape .. ", " .. (cell.retrain == "no" and "pruned only" or cell.retrain)
    if cell.retrain == "no" then return result(label, student) end
    local how = { data = little, batch = 4, steps = opt.steps, seed = opt.seed, out = cell.out, betas = { 0.9, 0.99 },
      schedule = esp.schedule.cosine { peak = 2e-3, min = 2e-4, warmup = 10 } }
    if cell.retrain == "distill" then
      how.teacher, how.student = teacher, student
      return result(label, esp.distill(how).model)
    end
    how.model = cell.retrain == "from scratch" and esp.models.new(student.shape, { seed = opt.seed, tokenizer = tok }) or student
    return result(label, esp.train(how).model)
  end,
}

print()
print(sweep)
print()
print("the teacher tells: " .. esp.generate(teacher, "Greta had", { tokens = 40, temperature = 0.8, seed = opt.seed }))
esp.io.file.copy(opt.out .. "/sweep/report.html", opt.out .. "/report.html")
print("\nreport: " .. opt.out .. "/report.html")
