--- One shot or in steps: embedding channels pruned at once, or in two or four rounds with importance measured again before each (2407.14679,
-- section 2.2 and Table 14), before and after distillation.
--
--   build/espalier experiments/iterative/sweep.lua model=.../tok105_model5000.bin text=.../tinystories_10k.txt out=runs/iterative

package.path = arg[0]:match "^(.*)/" .. "/../?.lua;" .. package.path
local esp = require "espalier"
local stories = require "stories"

local opt = stories.options(..., { hidden = { "int", default = 96 }, steps = { "int", default = 100, help = "of 16 rows of 128 tokens" },
  rounds = { "list", default = { 1, 2, 4 } } })
local world = stories.open(opt)

-- Round i of T prunes to hidden - i (hidden - target) / T channels.
local function pruned(rounds, seed)
  local model, from = world.teacher, world.teacher.shape.hidden
  for i = 1, rounds do
    local stats = esp.importance.measure(model, world.train:sample(64, seed), { quiet = true })
    model = esp.prune(model, stats, { hidden = from - i * (from - opt.hidden) / rounds, quiet = true })
  end
  return model
end

local sweep = esp.sweep {
  title = "One shot against iterative", axes = { { "rounds", opt.rounds }, { "seed", opt.seeds } }, out = opt.out, retry = opt.retry,
  run = function(cell)
    local student = pruned(cell.rounds, cell.seed)
    local before = stories.result(world, student)
    local run = esp.distill { teacher = world.teacher, student = student, data = world.train, batch = 16, steps = opt.steps, seed = cell.seed,
      out = cell.out, schedule = esp.schedule.cosine { peak = 2e-3, min = 2e-4, warmup = 20 } }
    return stories.result(world, run.model, { label = cell.rounds .. " rounds", before = before.nll, before_stories = before.stories })
  end,
}

local order, results = stories.groups(sweep, "rounds")
print(string.format("\n%-7s %10s   %-22s %10s   %s", "rounds", "pruned", "paired with one shot", "distilled", "paired with one shot"))
for _, rounds in ipairs(order) do
  local a, a_half = stories.paired(results[rounds], results[order[1]], "before_stories")
  local b, b_half = stories.paired(results[rounds], results[order[1]])
  print(string.format("%-7d %10.4f   %+.4f +- %-12.4f %10.4f   %+.4f +- %.4f", rounds, stories.mean(results[rounds], "before"), a, a_half,
    stories.mean(results[rounds], "nll"), b, b_half))
end
