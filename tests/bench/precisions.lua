--- Does bf16 train as f32 does? The same distillation in both precisions, on the same data: the losses by step side by side.
--
--   build/espalier tests/bench/precisions.lua model=FOLDER_OR_BIN text=FILE steps=200

local esp = require "espalier"

local opt = esp.options(..., {
  model = { "path", default = "../shared/data/models/babyllama/tok105_model5000.bin" },
  tokenizer = { "path", default = "../shared/data/models/babyllama/tok105.model" },
  text = { "path", default = "../shared/data/text/tinystories/tinystories_10k.txt" },
  steps = { "int", default = 200 }, batch = { "int", default = 8 }, seq = { "int", default = 256 },
  keep = { "number", default = 0.5, help = "share of width kept" },
})

local teacher = esp.load(opt.model, { tokenizer = opt.tokenizer })
local data = esp.data.open(opt.text, { seq = opt.seq, tokenizer = teacher.tokenizer }):split { held_out = "2%" }
local stats = esp.importance.measure(teacher, data.train:sample(16), { quiet = true })
local student = esp.prune(teacher, stats, { hidden = math.floor(teacher.shape.hidden * opt.keep / 8) * 8,
  ffn = math.floor(teacher.shape.ffn * opt.keep / 8) * 8, quiet = true })
local runs = {}
for _, precision in ipairs { "f32", "bf16" } do
  runs[precision] = esp.distill { teacher = teacher, student = student, data = data, batch = opt.batch, steps = opt.steps, precision = precision,
    schedule = esp.schedule.cosine { peak = 1e-3, min = 1e-4, warmup = 10 } }
end

-- Mean loss of the ten steps that end at `step`.
local function loss(run, step)
  local sum = 0
  for i = step - 9, step do sum = sum + run.steps[i].loss end
  return sum / 10
end

print "| step | f32 | bf16 | difference |\n|---|---|---|---|"
for step = 20, opt.steps, 20 do
  local a, b = loss(runs.f32, step), loss(runs.bf16, step)
  print(string.format("| %d | %.5f | %.5f | %+.3f %% |", step, a, b, 100 * (b / a - 1)))
end
local a, b = esp.evaluate { runs.f32.model, data = data.held_out }.nll, esp.evaluate { runs.bf16.model, data = data.held_out }.nll
print(string.format("| held-out NLL | %.5f | %.5f | %+.3f %% |", a, b, 100 * (b / a - 1)))
