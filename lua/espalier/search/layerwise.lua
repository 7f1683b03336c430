--- Shapes whose layers differ: for each hidden size the choice of an MLP width and of heads in every layer, 0 among them, whose additive loss is
-- least within the budgets. A knapsack with two groups a layer (search/knapsack.lua).

local knapsack = require "espalier.search.knapsack"
local grids = require "espalier.plan.grid"
local shapes = require "espalier.models.shape"
local progress = require "espalier.progress"

local M = {}

-- What a part of p parameters, kv cache bytes a token and t seconds takes of each budget; and what is taken outside the layers.
local takes = {
  params = function(p) return p end, non_embedding = function(p) return p end,
  memory = function(p, kv, _, opt) return 2 * p + kv * opt.batch * opt.length end, latency = function(_, _, t) return t end,
}
local outside = {
  params = function(base) return base end, non_embedding = function(base, embedding) return base - embedding end,
  memory = function(base) return 2 * base end, latency = function() return 0 end,
}

local function choice(loss, budget, p, kv, t, opt)
  local cost = {}
  for j, g in ipairs(budget) do cost[j] = takes[g.name](p, kv, t, opt) end
  return { loss = loss, cost = cost }
end

-- Groups of choices at hidden size d: for each layer its MLP, then its attention; and what each choice is.
local function groups_of(grid, parts, budget, d, opt)
  local s, groups, meaning = grid.shape, {}, {}
  local function add(list, means)
    groups[#groups + 1], meaning[#meaning + 1] = list, means
  end
  for l = 0, s.layers - 1 do
    local most_f, most_h, most_g = shapes.at(s, "ffn", l), shapes.at(s, "heads", l), shapes.at(s, "kv_heads", l)
    local list, means = { choice(parts.mlp(l, 0), budget, 0, 0, 0, opt) }, { { l = l, ffn = 0 } }
    for _, f in ipairs(grid.choices.ffn) do
      if most_f > 0 and f <= most_f then
        local p, kv = grids.layer(s, d, f, 0, 0, grid.bytes)
        list[#list + 1] = choice(parts.mlp(l, f), budget, p, kv, budget.latency and budget.latency:parts(d, f, 0, 0), opt)
        means[#means + 1] = { l = l, ffn = f }
      end
    end
    add(list, means)
    list, means = { choice(parts.attention(l, 0, 0), budget, 0, 0, 0, opt) }, { { l = l, heads = 0, kv_heads = 0 } }
    for _, h in ipairs(grid.choices.heads) do
      for _, g in ipairs(grid.choices.kv_heads) do
        if most_h > 0 and h % g == 0 and g <= most_g and h / g <= most_h / most_g then
          local p, kv = grids.layer(s, d, 0, h, g, grid.bytes)
          local _, t = 0, 0
          if budget.latency then _, t = budget.latency:parts(d, 0, h, g) end
          list[#list + 1] = choice(parts.attention(l, h, g), budget, p, kv, t, opt)
          means[#means + 1] = { l = l, heads = h, kv_heads = g }
        end
      end
    end
    add(list, means)
  end
  return groups, meaning
end

-- The request that picks mean; nil where no layer is left.
local function request_of(s, d, meaning, picks)
  local request = { hidden = d < s.hidden and d or nil, ffn = {}, heads = {}, kv_heads = {}, drop = {} }
  for i, k in ipairs(picks) do
    local m = meaning[i][k]
    for _, axis in ipairs { "ffn", "heads", "kv_heads" } do if m[axis] then request[axis][m.l + 1] = m[axis] end end
  end
  for l = 0, s.layers - 1 do
    if request.ffn[l + 1] == 0 and request.heads[l + 1] == 0 then request.drop[#request.drop + 1] = l end
  end
  if #request.drop == s.layers then return nil end
  if #request.drop == 0 then request.drop = nil end
  return request
end

--- The best shape whose layers may differ at each hidden size of the grid (at most `count` of them, spread): a list of { request, cheap, proven }.
-- budget: of plan/goals.lua, at least one; opt: batch, length, quiet; late(), or nil: where it says yes those that are done must do.
function M.shapes(grid, parts, budget, opt, count, late)
  local out, all = {}, grid.choices.hidden
  local n = math.min(count, #all)
  local bar = progress.new { label = "shapes by layer", total = n, quiet = opt.quiet, after = 2 }
  for i = 0, n - 1 do
    local d = all[1 + math.floor(i * (#all - 1) / math.max(1, n - 1) + 0.5)]
    local groups, meaning = groups_of(grid, parts, budget, d, opt)
    local _, _, base, embedding = grids.layer(grid.shape, d, 1, grid.choices.heads[1], grid.choices.kv_heads[1], grid.bytes)
    local limits, possible = {}, true
    for j, g in ipairs(budget) do
      limits[j] = g.limit - outside[g.name](base, embedding)
      possible = possible and limits[j] > 0
    end
    local best = possible and knapsack.solve { groups = groups, limits = limits, nodes = 20000 }
    local request = best and request_of(grid.shape, d, meaning, best.picks)
    bar:update(i + 1, "hidden " .. d)
    if request then out[#out + 1] = { request = request, cheap = parts.hidden(d) + best.loss, proven = best.proven, gap = best.gap } end
    if late and late() and i < n - 1 then
      bar:stop()
      break
    end
  end
  return out
end

return M
