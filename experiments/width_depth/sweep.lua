--- Width or depth at equal parameters: the same number of parameters left by cutting layers, widths, or both, before and after distillation
-- (2407.14679, Table 10 and Figure 6; 2408.11796, Figure 7).
--
--   build/espalier experiments/width_depth/sweep.lua model=.../tok105_model5000.bin text=.../tinystories_10k.txt out=runs/width_depth

package.path = arg[0]:match "^(.*)/" .. "/../?.lua;" .. package.path
local esp = require "espalier"
local stories = require "stories"

local opt = stories.options(..., { steps = { "int", default = 200, help = "of 16 rows of 128 tokens" } })
local world = stories.open(opt)

-- Three of five layers leave 567,296 parameters; the other cuts come as near as their steps allow (564,096 and 561,120).
local cuts = {
  ["depth (NLL)"] = { cut = { layers = 3 }, rank = { layers = "nll" } }, ["depth (BI)"] = { cut = { layers = 3 }, rank = { layers = "bi" } },
  width = { cut = { hidden = 96, ffn = 256 }, rank = {} },
  ["depth and width"] = { cut = { hidden = 112, ffn = 280, layers = 4 }, rank = { layers = "nll" } },
}

local sweep = esp.sweep {
  title = "Width against depth at equal parameters", axes = { { "cut", { "depth (NLL)", "depth (BI)", "width", "depth and width" } },
    { "seed", opt.seeds } }, out = opt.out, retry = opt.retry,
  run = function(cell)
    local how = cuts[cell.cut]
    local stats = esp.importance.measure(world.teacher, world.train:sample(64, cell.seed), { depth = true, quiet = true })
    local request = { quiet = true }
    for k, v in pairs(how.cut) do request[k] = v end
    local student = esp.prune(world.teacher, stats:rank(how.rank), request)
    local before = stories.result(world, student)
    local run = esp.distill { teacher = world.teacher, student = student, data = world.train, batch = 16, steps = opt.steps, seed = cell.seed,
      out = cell.out, schedule = esp.schedule.cosine { peak = 2e-3, min = 2e-4, warmup = 20 } }
    return stories.result(world, run.model, { label = cell.cut, before = before.nll })
  end,
}

local order, results = stories.groups(sweep, "cut")
print(string.format("\n%-16s %10s %8s %10s   %s", "cut", "parameters", "pruned", "distilled", "paired with width"))
for _, cut in ipairs(order) do
  local difference, half = stories.paired(results[cut], results.width)
  print(string.format("%-16s %10d %8.4f %10.4f   %+.4f +- %.4f", cut, results[cut][1].parameters, stories.mean(results[cut], "before"),
    stories.mean(results[cut], "nll"), difference, half))
end
