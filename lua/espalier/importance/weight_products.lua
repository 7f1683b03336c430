--- Taylor's weight form: products of the weights and their gradients, summed by channel.

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"
local tape = require "espalier.tape"
local scope = require "espalier.scope"
local weights = require "espalier.importance.weights"

local c = core.ops
local M = {}

-- Adds |w dw| of a parameter to [1,n] sums of a name: of a matrix by column (axis 0) or row (axis 1), of a vector as it is.
local function add_product(stats, l, name, w, axis)
  if not w or not w.grad then return end
  tape.no_grad(scope.run, function()
    local g = w.grad
    if #w.shape == 1 then w, g, axis = tensor.view(w, { 1, w.shape[1] }), tensor.view(g, { 1, w.shape[1] }), 0 end
    local n = w.shape[2 - axis]
    c.weight_products_acc(tensor.view(stats:slot(l, name .. ".taylor_weight", { 1, n }), { n }).c, w.c, g.c, axis)
  end)
end

-- Adds the sums of channels, `width` neighbours each, to those of their heads or groups.
local function gather(stats, l, from, to, width)
  local t = stats.sums[l + 1][from .. ".taylor_weight"]
  local n = t.shape[2] / width
  local p, v = stats:slot(l, to .. ".taylor_weight", { 1, n }):data(), t:data()
  for i = 0, n * width - 1 do
    local at = math.floor(i / width)
    p[at] = p[at] + v[i]
  end
end

local function attention_products(stats, l, a)
  gather(stats, l, "attention", "heads", a.head_dim)
  gather(stats, l, "attention", "kv_heads", a.head_dim * a.heads / a.kv_heads)
  for _, module in ipairs { a.k_proj, a.v_proj } do
    add_product(stats, l, "keys", module.weight, 1)
    add_product(stats, l, "keys", module.bias)
  end
  gather(stats, l, "keys", "kv_heads", a.head_dim)
  stats.sums[l + 1]["keys.taylor_weight"] = nil
end

-- How a parameter holds the hidden channels, by its name: columns (0), rows (1), one a channel; nil: not at all.
local function hidden_axis(name)
  if name:find "%.[qkv]_proj%.weight$" or name:find "%.gate_proj%.weight$" or name:find "%.up_proj%.weight$" then return 0 end
  if name == "model.embed_tokens.weight" or name == "lm_head.weight" then return 0 end
  if name:find "o_proj%." or name:find "down_proj%." then return 1 end
  if name:find "norm" and not name:find "[qk]_norm" then return 0 end
  return nil
end

--- Sum of |w dL/dw| over all weights of a channel, dL/dw in each parameter's grad (of the summed loss): Taylor's weight form, for "ffn",
-- "attention", "heads" (queries and outputs), "kv_heads" (keys and values too) of each layer and "hidden" of the model.
function M.collect(stats, model)
  for i, block in ipairs(model.decoder.model.layers) do
    for _, site in ipairs(weights.sites(block)) do
      local around = weights.around(block, site)
      if #around.makers > 0 then
        for _, module in ipairs(around.readers) do add_product(stats, i - 1, site, module.weight, 0) end
        for _, module in ipairs(around.makers) do
          add_product(stats, i - 1, site, module.weight, 1)
          add_product(stats, i - 1, site, module.bias)
        end
      end
    end
    if block.self_attn then attention_products(stats, i - 1, block.self_attn) end
  end
  for _, name in ipairs(model:parameter_names()) do
    local axis = hidden_axis(name)
    if axis then add_product(stats, nil, "hidden", model:parameters()[name], axis) end
  end
end

return M
