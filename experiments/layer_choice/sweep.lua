--- Which layers: the loss with every set of layers left out, contiguous or not, and what the loss of single layers says about them (2408.11796,
-- Figures 8 and 9).
--
--   build/espalier experiments/layer_choice/sweep.lua model=.../tok105_model5000.bin text=.../tinystories_10k.txt out=runs/layer_choice

package.path = arg[0]:match "^(.*)/" .. "/../?.lua;" .. package.path
local esp = require "espalier"
local stories = require "stories"

local opt = stories.options(..., { drop = { "list", default = { 1, 2, 3 }, help = "how many layers go" } })
local world = stories.open(opt)
local L = world.teacher.shape.layers

-- Every set of n layers, as lists.
local function sets(n, from, list, all)
  all = all or {}
  if #list == n then all[#all + 1] = { unpack(list) } return all end
  for l = from, L - 1 do
    list[#list + 1] = l
    sets(n, l + 1, list, all)
    list[#list] = nil
  end
  return all
end

local function contiguous(list) return list[#list] - list[1] == #list - 1 end

-- A seed scores on a third of the stories of its own.
local function third(seed)
  local n = math.floor(world.held_out:rows() / 3)
  return world.held_out:batch((seed - 1) % 3 * n, n)
end

local sweep = esp.sweep {
  title = "Which layers", axes = { { "drop", opt.drop }, { "seed", opt.seeds } }, out = opt.out, retry = opt.retry,
  run = function(cell)
    local stats = esp.importance.measure(world.teacher, world.train:sample(64, cell.seed), { depth = true, quiet = true })
    local sorted = esp.sort(world.teacher, stats:rank { layers = "nll" })
    world.held_out:use(world.teacher, "layer_choice")
    local batch, out = third(cell.seed), { sets = {}, label = cell.drop .. " layers" }
    for _, list in ipairs(sets(cell.drop, 0, {})) do
      local nll = esp.slice(sorted, { drop = list }):loss(batch)
      local kind = contiguous(list) and "contiguous" or "scattered"
      out.sets[#out.sets + 1] = { drop = list, nll = nll, kind = kind }
      if not out[kind] or nll < out[kind] then out[kind], out[kind .. "_drop"] = nll, table.concat(list, " ") end
    end
    -- What importance says without trying sets: the layers whose single loss is least go together.
    for _, metric in ipairs { "nll", "bi" } do
      local kept = stats:rank({ layers = metric }):kept({ layers = L - cell.drop }, world.teacher).layers
      local stays, list = {}, {}
      for _, l in ipairs(kept) do stays[l] = true end
      for l = 0, L - 1 do if not stays[l] then list[#list + 1] = l end end
      out["by_" .. metric], out["by_" .. metric .. "_drop"] = esp.slice(sorted, { drop = list }):loss(batch), table.concat(list, " ")
    end
    out.nll, out.full = math.min(out.contiguous, out.scattered or math.huge), esp.slice(sorted, {}):loss(batch)
    return out
  end,
}

local order, results = stories.groups(sweep, "drop")
for _, n in ipairs(order) do
  print(string.format("\n%d of %d layers dropped (full model %.4f)", n, L, stories.mean(results[n], "full")))
  for i, set in ipairs(results[n][1].sets) do
    local values, sum = {}, 0
    for s, r in ipairs(results[n]) do
      values[s] = string.format("%.4f", r.sets[i].nll)
      sum = sum + r.sets[i].nll
    end
    print(string.format("  %-8s %-10s %8.4f   by third: %s", table.concat(set.drop, " "), set.kind, sum / #values, table.concat(values, " ")))
  end
  for _, r in ipairs(results[n]) do
    print(string.format("  best contiguous %s: %.4f; best scattered %s: %.4f; by NLL %s: %.4f; by BI %s: %.4f", r.contiguous_drop, r.contiguous,
      r.scattered_drop or "-", r.scattered or 0 / 0, r.by_nll_drop, r.by_nll, r.by_bi_drop, r.by_bi))
  end
end
