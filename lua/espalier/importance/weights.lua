--- What metrics ask of the weights, by channel of a site: sums of absolute values and of squares over the matrices that read the channel and
-- over those that make it. Small enough to lie beside the statistics, so that re-ranking reads no weight.

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"
local scope = require "espalier.scope"

local progress = require "espalier.progress"
local fail = require "espalier.fail"

local c = core.ops
local M = {}

-- Those that are there.
local function present(...)
  local own = {}
  for i = 1, select("#", ...) do own[#own + 1] = (select(i, ...)) end
  return own
end

--- The linear layers around a site of a block: { readers, makers }. Readers have the channels as columns, makers as rows; a head's queries count
-- as its maker.
function M.around(block, site)
  local a, m = block.self_attn or {}, block.mlp or {}
  if site == "norm1" then return { readers = present(a.q_proj, a.k_proj, a.v_proj), makers = {} } end
  if site == "norm2" then return { readers = present(m.gate_proj, m.up_proj), makers = {} } end
  if site == "attention" then return { readers = present(a.o_proj), makers = present(a.q_proj) } end
  return { readers = present(m.down_proj), makers = present(m.gate_proj, m.up_proj) }
end

--- Sites of a block whose channels weights read.
function M.sites(block)
  local list = {}
  if block.self_attn then list[1], list[2] = "norm1", "attention" end
  if block.mlp then list[#list + 1], list[#list + 2] = "norm2", "ffn" end
  return list
end

--- Sums [4,n] at a site: readers' |w| and w^2 by column, makers' |w| and w^2 by row. Into stats.sums[l+1]["SITE.weights"].
-- Of a large model that takes a while, which is told unless quiet.
function M.collect(stats, model, quiet)
  local bar = progress.new { label = "weights", total = model.shape.layers, quiet = quiet, after = 2 }
  for l, block in ipairs(model.decoder.model.layers) do
    for _, site in ipairs(M.sites(block)) do
      local around = M.around(block, site)
      local n = around.readers[1].weight.shape[2]
      local sums = stats:slot(l - 1, site .. ".weights", { 4, n })
      for k, list in ipairs { around.readers, around.makers } do
        for _, module in ipairs(list) do
          -- A weight that was not read yet is made when its handle is asked for.
          local w = module.weight
          scope.run(function() c.weight_sums_acc(tensor.narrow(sums, 0, 2 * k - 2, 2).c, w.c, k - 1) end)
        end
      end
    end
    bar:update(l, "layers read")
  end
end

-- ---- what a metric sees ----

local Weight = {}

-- The matrix itself, f32: of several readers or makers, one above the other (readers) or their rows in a line.
local function matrix(modules)
  local list, rows = {}, 0
  for i, module in ipairs(modules) do
    list[i] = tensor.to(module.weight, "f32")
    rows = rows + list[i].shape[1]
  end
  if #list == 1 then return list[1] end
  local all, at = tensor.new { rows, list[1].shape[2] }, 0
  for _, w in ipairs(list) do
    tensor.narrow(all, 0, at, w.shape[1]):copy_from(w)
    at = at + w.shape[1]
  end
  return all
end

--- The matrix as a tensor; reads the model's weights.
function Weight:tensor()
  if not self.modules then fail("metric: needs the weights themselves; give model = to stats:score, or prune with esp.prune") end
  return matrix(self.modules)
end

--- Norm 1 or 2 along the axis that leaves the channels: out of the sums, without the model. All else as of any tensor.
function Weight:norm(p, axis)
  if axis ~= self.axis or (p ~= 1 and p ~= 2) then return self:tensor():norm(p, axis) end
  local n, from = self.sums.shape[2], self.sums:data() + (self.row + p - 1) * self.sums.shape[2]
  local y = tensor.new { n }
  local to = y:data()
  for i = 0, n - 1 do to[i] = p == 1 and from[i] or math.sqrt(from[i]) end
  return y
end

local weight_meta = { __index = function(w, name)
  if Weight[name] then return Weight[name] end
  local method = tensor.Tensor[name] or fail("metric: a weight has no '%s'", tostring(name))
  return function(_, ...) return method(w:tensor(), ...) end
end }
for _, op in ipairs { "__add", "__sub", "__mul", "__div", "__pow", "__unm" } do
  weight_meta[op] = function(a, b)
    local function plain(x) return getmetatable(x) == weight_meta and x:tensor() or x end
    return tensor.Tensor[op](plain(a), plain(b))
  end
end

-- The channels of these sites are those of another.
local channels_of = { pre = "ffn", act = "ffn" }

--- The weights by role at a site of layer l: "out" [outputs, n] reads the channels (of several matrices: one above the other), "in" [n, inputs]
-- makes them ("gate", "up" one alone). model: nil where only norms along the channels are asked for.
function M.view(stats, l, site, model)
  local own = channels_of[site] or site
  return setmetatable({}, { __index = function(_, role)
    local sums = l and stats.sums[l + 1][own .. ".weights"]
    if not sums then fail("metric: no weights are known at '%s'%s", site, l and " of layer " .. l or "") end
    local block = model and model.decoder.model.layers[l + 1]
    local around = block and M.around(block, own)
    local function weight(modules, row, axis)
      return setmetatable({ modules = modules or false, sums = sums, row = row, axis = axis }, weight_meta)
    end
    if role == "out" then return weight(around and around.readers, 0, 0) end
    if role == "in" and own ~= "norm1" and own ~= "norm2" then return weight(around and around.makers, 2, 1) end
    local alone = (role == "gate" or role == "up") and own == "ffn" and block and block.mlp[role .. "_proj"]
    if alone then return weight({ alone }, nil, nil) end
    fail("metric: no weight '%s' at %s%s", tostring(role), site, block and "" or " without the model")
  end })
end

return M
