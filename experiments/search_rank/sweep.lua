--- Does a cheap loss foresee the true one? The rank correlation of importance kept, and of measured KL of each part added up, with the NLL of random
-- shapes that keep at least three fifths of every axis, and among those of about one size.
--
--   build/espalier experiments/search_rank/sweep.lua model=.../tok105_model5000.bin small=.../stories260K.bin text=.../tinystories_10k.txt
--     out=runs/search_rank

package.path = arg[0]:match "^(.*)/" .. "/../?.lua;" .. package.path
local esp = require "espalier"
local stories = require "stories"
local grids = require "espalier.plan.grid"
local rows = require "espalier.search.rows"
local shortlist = require "espalier.search.shortlist"
local kept = require "espalier.search.kept"
local measured = require "espalier.search.measured"
local scorers = require "espalier.search.scorer"
local orders_of = require("espalier.prune.sort").orders

local opt = stories.options(..., { small = { "path", required = true, help = "stories260K's checkpoint, its tokenizer beside it" },
  shapes = { "int", default = 250, help = "random shapes a cell" } })

-- Sizes of an axis from its largest down to three fifths, in steps.
local function sizes(most, step)
  local list = {}
  for size = most, 0.6 * most, -step do list[#list + 1] = size end
  return list
end

-- n cells of a grid drawn without replacement, each as likely: one pass, by the order of random numbers.
local function drawn(grid, n, seed)
  local all = {}
  for c in grid:each() do
    local own = {}
    for k, v in pairs(c) do own[k] = v end
    all[#all + 1] = own
  end
  local numbers = esp.tensor.uniform({ #all }, { seed = seed, stream = 5 }):table()
  local order = {}
  for i = 1, #all do order[i] = i end
  table.sort(order, function(a, b) return numbers[a] < numbers[b] end)
  local list = {}
  for i = 1, math.min(n, #all) do list[i] = all[order[i]] end
  return list
end

local function correlation(list, name, keep)
  local x, y = {}, {}
  for _, c in ipairs(list) do if not keep or keep(c) then x[#x + 1], y[#y + 1] = c[name], c.nll end end
  return rows.rank_correlation(x, y), #x
end

local sweep = esp.sweep {
  title = "Cheap losses against true ones", axes = { { "of", { "BabyLlama", "stories260K" } }, { "seed", opt.seeds } }, out = opt.out,
  retry = opt.retry,
  run = function(cell)
    local world = stories.open { model = cell.of == "BabyLlama" and opt.model or opt.small, text = opt.text }
    local model = world.teacher
    local ranking = esp.importance.measure(model, world.train:sample(64, cell.seed), { depth = true, quiet = true }):rank { layers = "kl" }
    local sorted = esp.sort(model, ranking)
    local orders, s = orders_of(sorted), model.shape
    local grid = grids.new(s, { order = orders.layers, engine = "any", axes = { hidden = sizes(s.hidden, s.hidden / 32), layers = sizes(s.layers, 1),
      ffn = sizes(s.ffn, 4), heads = sizes(s.heads, s.kv_heads) } })
    local scorer = scorers.new(sorted, world.held_out, { tokens = 4096, batch = 8 })
    local losses = { kept = shortlist.loss(s, kept.new(s, ranking, orders, model), orders.layers),
      kl = shortlist.loss(s, measured.new(sorted, grid, scorer, true), orders.layers) }
    local list, full = drawn(grid, opt.shapes, cell.seed), esp.plan(model).before.parameters
    for _, c in ipairs(list) do
      c.kept, c.kl, c.size = losses.kept(c), losses.kl(c), -c.parameters
      c.nll = scorer:score(esp.slice(sorted, grid:request(c))).nll
    end
    local out = { label = cell.of, shapes = #list }
    for _, name in ipairs { "kept", "kl", "size" } do
      out[name] = correlation(list, name)
      out[name .. "_near"], out.near = correlation(list, name, function(c) return c.parameters > 0.55 * full and c.parameters < 0.65 * full end)
    end
    return out
  end,
}

local order, results = stories.groups(sweep, "of")
print(string.format("\n%-12s %-6s %-25s %s", "model", "loss", "all", "55-65 % of the parameters"))
for _, of in ipairs(order) do
  for _, name in ipairs { "kept", "kl", "size" } do
    local parts = {}
    for i, part in ipairs { "", "_near" } do
      local values = {}
      for s, r in ipairs(results[of]) do values[s] = string.format("%.2f", r[name .. part]) end
      parts[i] = string.format("%.2f (%s)", stories.mean(results[of], name .. part), table.concat(values, " "))
    end
    print(string.format("%-12s %-6s %-25s %s", of, name, parts[1], parts[2]))
  end
  local near = {}
  for s, r in ipairs(results[of]) do near[s] = r.near end
  print(string.format("  %d shapes a seed, of which %s have 55-65 %% of the parameters", results[of][1].shapes, table.concat(near, ", ")))
end
