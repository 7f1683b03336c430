--- What Taylor's expansion predicts that a cut does to the mean next-token loss, from the sums of activations times gradients that the statistics
-- hold: setting a to 0 changes the loss by -sum a dL/da to first order, and by half the Fisher information of a more to second. Units are taken to
-- act alone: no terms between them.

local shapes = require "espalier.models.shape"

local M = {}

-- Adds the sums of the removed units of a name. kept: list of units that stay, or nil for none.
local function add(total, place, name, kept)
  local sums = place[name .. ".taylor"]
  if not sums then return end
  local n, p, stays = sums.shape[3], sums:data(), {}
  for _, i in ipairs(kept or {}) do stays[i] = true end
  for i = 0, n - 1 do
    if not stays[i] then
      total.signed = total.signed + p[i] + p[4 * n + i]
      total.square = total.square + p[2 * n + i] + p[6 * n + i]
    end
  end
end

local function set_of(list, layers)
  local set = {}
  for _, l in ipairs(list or {}) do set[l] = true end
  return set, layers
end

-- Layers that are wholly gone: named by drop, or not among those that stay.
local function gone_layers(s, request, kept)
  local gone = set_of(request.drop)
  if kept then
    local stays = set_of(kept)
    for l = 0, s.layers - 1 do gone[l] = gone[l] or not stays[l] end
  end
  return gone
end

--- { first, second }: predicted changes of the mean loss in nats; nil where the statistics hold no gradients. request, sets: of esp.prune.
function M.change(stats, request, sets)
  if not stats.facts.grads then return nil end
  local s, total = stats.shape, { signed = 0, square = 0 }
  local gone, no_attention, no_mlp = gone_layers(s, request, sets.layers), set_of(request.drop_attention), set_of(request.drop_mlp)
  for l = 0, s.layers - 1 do
    local place = stats.sums[l + 1]
    local attention, mlp = gone[l] or no_attention[l], gone[l] or no_mlp[l]
    if attention then add(total, place, "attention_out") elseif sets.heads and shapes.at(s, "heads", l) > 0 then
      add(total, place, "heads", sets.heads[l + 1])
    end
    if mlp then add(total, place, "mlp_out") elseif sets.ffn and shapes.at(s, "ffn", l) > 0 then add(total, place, "ffn", sets.ffn[l + 1]) end
    if sets.hidden then
      if not attention then add(total, place, "norm1", sets.hidden) end
      if not mlp then add(total, place, "norm2", sets.hidden) end
    end
  end
  if sets.hidden then add(total, stats.outer, "final", sets.hidden) end
  local n = stats:total "predictions"
  return { first = -total.signed / n, second = (-total.signed + total.square / 2) / n }
end

return M
