--- Compress a model of your own: measure, prune by width and depth, retrain by distillation, compare on held-out text.
--
--   build/espalier recipes/minitron.lua teacher=path/to/hf-folder data=stories.txt hidden=48 ffn=128 tokens=2M out=runs/a
--
-- hidden, ffn, heads, kv_heads, layers: sizes to keep; what is not named stays. The result is out/model, a Hugging Face folder;
-- out/statistics.h5 keeps the measurement, so that another size asks it again without a forward pass.

local esp = require "espalier"

local opt = esp.options(..., {
  teacher = { "path", required = true, help = "Hugging Face folder, its name in the local cache, or a llama2.c .bin" },
  data = { "path", required = true, help = "a .txt, a .jsonl, a folder of them, a token file (.h5) or a Megatron pair (.bin)" },
  field = { "string", help = "of a .jsonl: where the text is (text)" },
  prompt = { "string", help = "of a .jsonl: the prompt, on which no loss counts; with completion=" },
  completion = { "string", help = "of a .jsonl: what follows the prompt" },
  messages = { "string", help = "of a .jsonl: a list of { role, content }; the loss counts on the assistant's" },
  hidden = { "int", help = "embedding channels to keep" },
  ffn = { "int", help = "neurons of each MLP to keep" },
  heads = { "int", help = "attention heads of each layer to keep" },
  kv_heads = { "int", help = "key/value heads of each layer to keep" },
  layers = { "int", help = "layers to keep" },
  by = { "string", default = "bi", one_of = { "bi", "nll", "kl" }, help = "which layers go: by bi, nll or kl" },
  tokens = { "tokens", default = "2M", help = "tokens of retraining" },
  seq = { "int", help = "tokens a row; the smaller of 1024 and the context" },
  batch = { "int", default = 8, help = "rows a step" },
  accumulate = { "int", default = 1, help = "parts that a step is cut into" },
  peak = { "number", default = 1e-3, help = "highest learning rate" },
  held_out = { "percent", default = "1%", help = "share of the documents that is only scored" },
  calibration = { "int", default = 64, help = "rows that are measured" },
  seed = { "int", default = 0, help = "of the order and of the sample" },
  time = { "seconds", help = "stop after this long; the same command goes on" },
  out = { "path", default = "runs/minitron", help = "folder of the run" },
})

local sizes = { hidden = opt.hidden, ffn = opt.ffn, heads = opt.heads, kv_heads = opt.kv_heads, layers = opt.layers }
-- Refuses sizes that cannot be before a weight is read.
print(esp.plan(opt.teacher, sizes))
print()

local teacher = esp.load(opt.teacher)
local data = esp.data.open(opt.data, { seq = opt.seq, tokenizer = teacher:tok(), field = opt.field, prompt = opt.prompt, completion = opt.completion,
  messages = opt.messages }):split { held_out = opt.held_out }

esp.io.file.make(opt.out)
local scores_file = opt.out .. "/statistics.h5"
local scores
if esp.io.file.kind(scores_file) then
  scores = esp.importance.load(scores_file)
else
  scores = esp.importance.measure(teacher, data.train:sample(opt.calibration, opt.seed), { depth = opt.layers ~= nil and opt.by ~= "bi" })
  scores:save(scores_file)
end

local student = esp.prune(teacher, scores:rank { layers = opt.by }, sizes)
local run = esp.distill {
  teacher = teacher, student = student, data = data, batch = opt.batch, accumulate = opt.accumulate, tokens = opt.tokens, seed = opt.seed,
  schedule = esp.schedule.cosine { peak = opt.peak, min = opt.peak / 10, warmup = 20 }, time = opt.time, out = opt.out,
}

print()
for _, row in ipairs { { "teacher", teacher }, { "pruned", student }, { "retrained", run.model } } do
  local score = esp.evaluate { row[2], data = data.held_out }
  print(string.format("%-10s %14s parameters   held-out NLL %.4f +- %.4f   perplexity %.3f", row[1],
    esp.quantity.show_exact(esp.plan(row[2]).before.parameters), score.nll, score.interval, score.perplexity))
end
print("\nmodel: " .. opt.out .. "/model   report: " .. opt.out .. "/report.html")
