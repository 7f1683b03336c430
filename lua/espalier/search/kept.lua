--- The cheapest loss of a candidate: how much importance its cuts give up, from the ranking alone, without a run of the model.
--
-- A cut that keeps the share K of an axis' scores costs -log K: of the neurons and heads of each layer once, of the hidden channels, which every
-- layer reads, once a layer. A layer that goes costs -2 log(1 - its share of the layers' scores) times the number of layers, as much as its two
-- parts would if layers were alike. What search/measured.lua gives instead is measured; both are sums over parts, as search/knapsack.lua wants them.

local shapes = require "espalier.models.shape"

local M = {}

-- Shares kept by the first n of a list of scores in an order, n from 0; a half of the first where none is kept.
local function shares(scores, order)
  local total, sum, out = 0, 0, {}
  for _, s in ipairs(scores) do total = total + math.max(s, 0) end
  if not (total > 0) then total = 1 end
  for n, i in ipairs(order) do
    sum = sum + math.max(scores[i + 1], 0)
    out[n] = math.max(sum / total, 1e-9)
  end
  out[0] = (out[1] or 1) / 2
  return out
end

local function each_layer(s, axis, fn)
  local out = {}
  for l = 0, s.layers - 1 do if shapes.at(s, axis, l) > 0 then out[l] = fn(l) end end
  return out
end

-- Share of a layer's head scores kept by the first h/g heads of each of the first g groups.
local function heads_share(scores, order, groups, h, g)
  local total, sum, each = 0, 0, #order / groups
  for _, s in ipairs(scores) do total = total + math.max(s, 0) end
  for b = 0, g - 1 do
    for r = 1, h / g do sum = sum + math.max(scores[order[b * each + r] + 1], 0) end
  end
  return math.max(total > 0 and sum / total or 0, 1e-9)
end

--- Losses of parts: { hidden(d), mlp(l, f), attention(l, h, g), layer(l), name }. ranking: of the model of shape s; orders: what it sorts by.
function M.new(s, ranking, orders, model)
  local L = s.layers
  local hidden = shares(ranking:scores("hidden", nil, model), orders.hidden)
  local layers = shares(ranking:scores("layers", nil, model), orders.layers)
  local place = {}
  for n, l in ipairs(orders.layers) do place[l] = n end
  local ffn = each_layer(s, "ffn", function(l) return shares(ranking:scores("ffn", l, model), orders.ffn[l + 1]) end)
  local heads = each_layer(s, "heads", function(l) return ranking:scores("heads", l, model) end)
  local known = {}
  local function attention(l, h, g)
    if not heads[l] then return 0 end
    local key = l * 2 ^ 26 + h * 2 ^ 13 + g
    if not known[key] then
      local groups = shapes.at(s, "kv_heads", l)
      local share = h > 0 and heads_share(heads[l], orders.heads[l + 1], groups, h, g)
        or heads_share(heads[l], orders.heads[l + 1], groups, 1, 1) / 2
      known[key] = -math.log(share)
    end
    return known[key]
  end
  return { name = "importance kept",
    hidden = function(d) return -L * math.log(hidden[d]) end,
    mlp = function(l, f) return ffn[l] and -math.log(ffn[l][math.min(f, #ffn[l])]) or 0 end,
    attention = attention,
    layer = function(l)
      local n = place[l]
      local share = layers[n] - (n > 1 and layers[n - 1] or 0)
      return -2 * L * math.log(math.max(1 - share, 1e-9))
    end }
end

return M
