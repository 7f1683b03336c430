--- What pruned heads were, given to those that stay (2407.14679, section 2.3): in each group of q heads of which K stay, sorted by importance, the
-- i-th becomes head_i + r (head_i - head_(2K-i+1)), for i from 2K-q+1 (at least 1) to K: the K-th is paired with the best that goes, and so on.
--
-- Only query heads, as the paper has it for grouped queries: rows (and biases) of W_Q. The paper prints r = 1; the difference that its source adds
-- (2402.11187) would be r = -1. Neither came with a figure, so nothing of the kind is done unless it is asked for.

local tensor = require "espalier.tensor"
local shapes = require "espalier.models.shape"
local core = require "espalier.ffi"

local M = {}

--- For each layer with heads: the partner of every head of the source (itself where it has none), lists by layer. orders: of a ranking, heads group
-- by group from the best; kept: lists by layer of the heads that stay.
function M.partners(s, orders, kept)
  local all = {}
  for l = 0, s.layers - 1 do
    if kept[l + 1] and orders.heads[l + 1] then
      local count, own = {}, {}
      local each = shapes.at(s, "heads", l) / shapes.at(s, "kv_heads", l)
      for _, h in ipairs(kept[l + 1]) do
        local g = math.floor(h / each)
        count[g] = (count[g] or 0) + 1
      end
      for h = 0, shapes.at(s, "heads", l) - 1 do own[h + 1] = h end
      -- Heads stand group by group in the order, so each run of `each` is one group.
      for at = 0, #orders.heads[l + 1] - 1, each do
        local function head(rank) return orders.heads[l + 1][at + rank] end
        local K = count[math.floor(head(1) / each)] or 0
        for i = math.max(1, 2 * K - each + 1), K do own[head(i) + 1] = head(2 * K - i + 1) end
      end
      all[l + 1] = own
    end
  end
  return all
end

--- A model's parameters with those of W_Q changed; the others are the same tensors. partners: as above; r: the factor.
function M.apply(from, s, partners, r)
  local out = {}
  for name, t in pairs(from) do out[name] = t end
  for l, own in pairs(partners) do
    local index = tensor.new({ #own * s.head_dim }, "i32")
    local p = index:data()
    for i = 0, index.shape[1] - 1 do p[i] = own[math.floor(i / s.head_dim) + 1] * s.head_dim + i % s.head_dim end
    for _, kind in ipairs { "weight", "bias" } do
      local name = "model.layers." .. l - 1 .. ".self_attn.q_proj." .. kind
      local t = from[name]
      if t then
        -- Heads without a partner stay the same bits: their difference is 0.
        local f = tensor.to(t, "f32")
        local changed, difference = tensor.clone(f), tensor.index_select(f, 0, index)
        core.ops.sub(difference.c, f.c, difference.c)
        core.ops.scaled_acc(changed.c, difference.c, r)
        out[name] = tensor.to(changed, t.dtype)
      end
    end
  end
  return out
end

return M
