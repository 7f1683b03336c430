--- Losses of parts as they are measured: KL from the full model with one part cut and all else whole (the additive score of 2411.19146, section 4.2).
--
-- Each axis is measured at a few sizes and read in straight lines between them: for L layers about 10 L runs, each of which starts at the layer that
-- it cuts.

local slices = require "espalier.prune.slice"
local shapes = require "espalier.models.shape"
local progress = require "espalier.progress"

local M = {}

-- Up to n sizes of a descending list, ends included, ascending.
local function few(list, n)
  local out = {}
  for i = 0, math.min(n, #list) - 1 do
    out[#out + 1] = list[#list - math.floor(i * (#list - 1) / math.max(1, math.min(n, #list) - 1) + 0.5)]
  end
  return out
end

-- Straight lines through { x, y } ascending in x; flat outside.
local function lines(points)
  return function(x)
    local n = #points
    if x <= points[1][1] then return points[1][2] end
    for i = 2, n do
      local a, b = points[i - 1], points[i]
      if x <= b[1] then return a[2] + (b[2] - a[2]) * (x - a[1]) / (b[1] - a[1]) end
    end
    return points[n][2]
  end
end

-- A list by layer of what each layer has, with one layer changed.
local function but(s, axis, l, size)
  local list = {}
  for i = 0, s.layers - 1 do list[i + 1] = i == l and size or shapes.at(s, axis, i) end
  return list
end

-- What has to be run: a list of { part, layer, size, request }, layer by layer, so that streams are shared.
local function jobs(s, grid)
  local list, all = {}, grid.choices
  for _, d in ipairs(few(all.hidden, 5)) do if d < s.hidden then list[#list + 1] = { "hidden", nil, d, { hidden = d } } end end
  for l = 0, s.layers - 1 do
    local f, h, g = shapes.at(s, "ffn", l), shapes.at(s, "heads", l), shapes.at(s, "kv_heads", l)
    if s.layers > 1 then list[#list + 1] = { "layer", l, 0, { drop = { l } } } end
    if f > 0 then
      list[#list + 1] = { "mlp", l, 0, { drop_mlp = { l } } }
      for _, size in ipairs(few(all.ffn, 4)) do if size < f then list[#list + 1] = { "mlp", l, size, { ffn = but(s, "ffn", l, size) } } end end
    end
    if h > 0 then
      list[#list + 1] = { "attention", l, 0, { drop_attention = { l } } }
      for _, size in ipairs(few(all.heads, 4)) do
        for _, groups in ipairs(few(all.kv_heads, 3)) do
          if (size < h or groups < g) and size % groups == 0 and size / groups <= h / g then
            list[#list + 1] = { "attention", l, size, { heads = but(s, "heads", l, size), kv_heads = but(s, "kv_heads", l, groups) }, groups }
          end
        end
      end
    end
  end
  return list
end

local function ascending(points)
  table.sort(points, function(a, b) return a[1] < b[1] end)
  return lines(points)
end

--- Losses of parts of a sorted model, as search/kept.lua gives them: { hidden(d), mlp(l, f), attention(l, h, g), layer(l), name, runs }.
-- grid: whose sizes are asked for; scorer: of search/scorer.lua; opt.late(): true where it is to stop, and then nil is given; opt.quiet.
function M.new(model, grid, scorer, opt)
  local s, list = model.shape, jobs(model.shape, grid)
  local hidden, mlp, attention, layer = { { s.hidden, 0 } }, {}, {}, {}
  for l = 0, s.layers - 1 do
    mlp[l], attention[l], layer[l] = { { shapes.at(s, "ffn", l), 0 } }, {}, math.huge
    attention[l][shapes.at(s, "kv_heads", l)] = { { shapes.at(s, "heads", l), 0 } }
  end
  local bar = progress.new { label = "KL of each part cut", total = #list, quiet = opt.quiet, after = 2 }
  for i, job in ipairs(list) do
    local part, l, size, request, groups = unpack(job, 1, 5)
    local kl = scorer:score(slices.slice(model, request)).kl
    if part == "hidden" then table.insert(hidden, { size, kl })
    elseif part == "layer" then layer[l] = kl
    elseif part == "mlp" then table.insert(mlp[l], { size, kl })
    else
      local g = groups or 0
      attention[l][g] = attention[l][g] or {}
      table.insert(attention[l][g], { size, kl })
    end
    bar:update(i, part .. (l and " of layer " .. l or ""))
    if opt.late and opt.late() then
      bar:stop()
      return nil
    end
  end
  local read_hidden = ascending(hidden)
  for l = 0, s.layers - 1 do
    mlp[l] = ascending(mlp[l])
    for g, points in pairs(attention[l]) do attention[l][g] = ascending(points) end
  end
  -- Groups between measured ones are read from the nearest number that was.
  local function near(l, g)
    local best
    for known in pairs(attention[l]) do
      if known > 0 and (not best or math.abs(known - g) < math.abs(best - g) or (math.abs(known - g) == math.abs(best - g) and known < best)) then
        best = known
      end
    end
    return best
  end
  return { name = "KL of each part, added up", runs = #list, hidden = read_hidden,
    mlp = function(l, f) return mlp[l](f) end,
    attention = function(l, h, g)
      if h == 0 then return attention[l][0] and attention[l][0](0) or 0 end
      return attention[l][near(l, g)](h)
    end,
    layer = function(l) return layer[l] end }
end

return M
