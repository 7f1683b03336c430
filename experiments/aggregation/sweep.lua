--- Aggregation functions: which of the nine batch x sequence aggregations of activations prunes best (2407.14679, Table 13)?
--
--   build/espalier experiments/aggregation/sweep.lua model=.../tok105_model5000.bin text=.../tinystories_10k.txt out=runs/aggregation

package.path = arg[0]:match "^(.*)/" .. "/../?.lua;" .. package.path
local esp = require "espalier"
local stories = require "stories"

local opt = stories.options(..., { hidden = { "int", default = 112 }, ffn = { "int", default = 288 } })
local world = stories.open(opt)

local functions = { "l2,l2", "l2,mean", "l2,var", "mean,l2", "mean,mean", "mean,var", "var,l2", "var,mean", "var,var" }

local sweep = esp.sweep {
  title = "Aggregation functions", axes = { { "agg", functions }, { "seed", opt.seeds } }, out = opt.out, retry = opt.retry,
  run = function(cell)
    local stats = esp.importance.measure(world.teacher, world.train:sample(64, cell.seed), { quiet = true })
    local by = { metric = "activation", agg = cell.agg }
    local model = esp.prune(world.teacher, stats:rank { hidden = by, ffn = by }, { hidden = opt.hidden, ffn = opt.ffn, quiet = true })
    return stories.result(world, model, { label = cell.agg })
  end,
}

local order, results = stories.groups(sweep, "agg")
print(string.format("\n%-10s %8s   %s", "batch,seq", "NLL", "less than (l2,mean), paired over stories"))
for _, agg in ipairs(order) do
  local difference, half = stories.paired(results[agg], results["l2,mean"])
  print(string.format("%-10s %8.4f   %+.4f +- %.4f", agg, stories.mean(results[agg], "nll"), difference, half))
end
