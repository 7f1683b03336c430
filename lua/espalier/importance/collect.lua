--- What one forward pass adds to the statistics: an observer of the model's sites (nn/decoder.lua names them).

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"
local tape = require "espalier.tape"
local scope = require "espalier.scope"
local ops = require "espalier.ops"
local shapes = require "espalier.models.shape"

local c = core.ops
local M = {}
local Collector = {}
Collector.__index = Collector

-- Sites whose channels are counted as they come.
local channels = { norm1 = true, norm2 = true, attention = true, ffn = true, final = true }
-- Sites whose gradients are asked for.
local differentiated = { norm1 = true, norm2 = true, attention = true, ffn = true, attention_out = true, mlp_out = true, final = true }

--- A collector into statistics. opt: grads; metrics: list of { name, site set, of, merge } that users declared.
function M.new(stats, model, opt)
  return setmetatable({ stats = stats, model = model, grads = opt.grads, reductions = opt.reductions or {}, roots = {} }, Collector)
end

-- The eight sums of n channels or units.
function Collector:sums(l, name, n)
  return self.stats:slot(l, name, { 2, 8, n }).c
end

function Collector:add(l, name, x)
  c.channel_stats_acc(self:sums(l, name, x.shape[3]), x.c, self.lengths, self.batch.row)
end

-- For units of `width` columns of the weight w of layer l, small matrices that stretch what enters as w does: the product with all of w for the sake
-- of its length would cost as much as o_proj once more.
function Collector:root(l, w, width)
  local key = l .. "." .. width
  if not self.roots[key] then
    self.roots[key] = scope.outside(tensor.new, { w.shape[2] / width, width, width })
    c.gram_root(self.roots[key].c, w.c, width)
  end
  return self.roots[key].c
end

-- Lengths of what each `width` neighbouring channels of x are, or add to the output of w: that is what goes when they go.
function Collector:units(l, name, x, width, w)
  c.unit_stats_acc(self:sums(l, name, x.shape[3] / width), x.c, w and self:root(l, w, width), width, self.lengths, self.batch.row)
end

function Collector:heads(l, x)
  local s, w = self.stats.shape, self.model.decoder.model.layers[l + 1].self_attn.o_proj.weight
  local e, group = s.head_dim, shapes.at(s, "heads", l) / shapes.at(s, "kv_heads", l)
  self:units(l, "heads", x, e)
  self:units(l, "heads.added", x, e, w)
  -- Without sharing a group is its head.
  if group > 1 then self:units(l, "kv_heads.added", x, group * e, w) end
end

-- Pairs of channels that turn together, of queries or keys [B,T,H,D].
function Collector:pairs(l, site, x)
  local turning = math.floor(self.stats.shape.head_dim * (self.stats.shape.rope.partial or 1))
  c.pair_stats_acc(self:sums(l, site, x.shape[3] * turning / 2), x.c, turning, self.lengths, self.batch.row)
end

-- A user's reduction over the rows of each half: it sees f32 [rows, positions, channels] of whole rows.
function Collector:reduce(l, site, x)
  for _, r in ipairs(self.reductions) do
    if r.sites[site] then
      local n, lengths = x.shape[3], self.batch.lengths and self.batch.lengths:data()
      local sums = self.stats.sums[l + 1][site .. ".user." .. r.name]
      if not sums then
        sums = self.stats:slot(l, site .. ".user." .. r.name, { 2, n })
        if r.merge == "max" then sums:fill(-math.huge) end
      end
      local p = sums:data()
      for b = 0, x.shape[1] - 1 do
        local length = lengths and lengths[b] or x.shape[2]
        if length > 0 then
          local y = tensor.contiguous(r.of(tensor.to(tensor.narrow(tensor.narrow(x, 0, b, 1), 1, 0, length), "f32")))
          if not tensor.is(y) or y.dtype ~= "f32" or #y.shape ~= 1 or y.shape[1] ~= n then
            require "espalier.fail"("measure: '%s' gave %s, want an f32 tensor [%d], one value a channel", r.name,
              tensor.is(y) and y.dtype .. " " .. tensor.shape_text(y) or type(y), n)
          end
          local v, at = y:data(), (self.batch.row + b) % 2 * n
          for i = 0, n - 1 do
            if r.merge == "max" then p[at + i] = p[at + i] >= v[i] and p[at + i] or v[i] else p[at + i] = p[at + i] + v[i] end
          end
        end
      end
    end
  end
end

-- Angle that a part of layer l turns the stream by: 0 attention, 1 the MLP.
function Collector:part(l, part, a, b)
  local sums = self.stats:slot(nil, "parts", { 2, self.stats.shape.layers, 2, 3 })
  c.angle_stats_acc(tensor.select(tensor.select(sums, 1, l), 1, part).c, a.c, b.c, self.lengths, self.batch.row)
end

-- Where the residual stream into layer l (L: out of the last) is kept until the batch ends.
function Collector:keep(l, x)
  local L = self.stats.shape.layers
  self.all = self.all or scope.outside(tensor.new, { L + 1, x.shape[1], x.shape[2], x.shape[3] }, x.dtype)
  self.streams[l] = scope.outside(tensor.select, self.all, 0, l)
  self.streams[l]:copy_from(x)
end

-- The residual stream: kept into each layer, compared within the layer.
function Collector:stream(site, l, x)
  if site == "in" then
    self:keep(l, x)
  elseif site == "mid" then
    self.mid = x
    self:part(l, 0, self.streams[l], x)
  elseif site == "out" then
    self:part(l, 1, self.mid, x)
    if l == self.stats.shape.layers - 1 then self:keep(l + 1, x) end
  end
end

local stream_sites = { ["in"] = true, mid = true, out = true }

function Collector:see(site, l, x)
  local s = self.stats.shape
  if stream_sites[site] then return self:stream(site, l, x) end
  if channels[site] then self:add(l, site, x) end
  if l then self:reduce(l, site, x) end
  if site == "attention" then
    self:heads(l, x)
  elseif site == "pre" then
    self:add(l, "pre", x)
    -- Without a gate what the activation makes is what enters down_proj.
    if s.gated ~= false then
      c.activation_stats_acc(self:sums(l, "act", x.shape[3]), x.c, ops.activation(s.activation), self.lengths, self.batch.row)
    end
  elseif (site == "q" or site == "k") and shapes.at(s, "rotary", l) ~= false then
    self:pairs(l, site, x)
  end
end

--- The observer of one batch { ids, lengths (i32 [B] or nil), row (number of its first row) }.
function Collector:observer(batch)
  self.batch, self.lengths, self.streams, self.watched = batch, batch.lengths and batch.lengths.c or nil, {}, {}
  return function(site, l, x)
    -- What a sum reads goes at once; the model's own tensors are not made here.
    tape.no_grad(scope.run, self.see, self, site, l, x)
    if self.grads then
      -- Every gradient asked for lies behind the stream into the first layer.
      if site == "in" and not x.node then self.leaf = x:requires_grad_() end
      if differentiated[site] then self.watched[#self.watched + 1] = { site = site, layer = l, x = x:keep_grad() } end
    end
  end
end

--- Angles between every two places of the residual stream, once the forward pass is through.
function Collector:angles()
  local L = self.stats.shape.layers
  c.stream_stats_acc(self.stats:slot(nil, "angles", { 2, L, L, 3 }).c, self.all.c, self.lengths, self.batch.row)
end

--- Products of activations and gradients, once backward is through.
function Collector:products()
  local s = self.stats.shape
  for _, seen in ipairs(self.watched) do
    local site, l, x = seen.site, seen.layer, seen.x
    local function add(name, width)
      c.taylor_stats_acc(self.stats:slot(l, name .. ".taylor", { 2, 4, x.shape[3] / width }).c, x.c, x.grad.c, width, self.batch.row)
    end
    if site == "attention_out" or site == "mlp_out" then add(site, s.hidden) else add(site, 1) end
    if site == "attention" then
      add("heads", s.head_dim)
      add("kv_heads", s.head_dim * shapes.at(s, "heads", l) / shapes.at(s, "kv_heads", l))
    end
    x.grad:free()
    x:free()
  end
  self.watched = {}
end

--- Frees what the batch kept; close also what all batches share.
function Collector:done()
  for _, x in pairs(self.streams) do x:free() end
  if self.all then self.all:free() end
  if self.leaf and self.leaf.grad then self.leaf.grad:free() end
  for _, seen in ipairs(self.watched) do
    if seen.x.grad then seen.x.grad:free() end
    seen.x:free()
  end
  self.streams, self.all, self.watched, self.leaf = {}, nil, {}, nil
end

function Collector:close()
  for _, root in pairs(self.roots) do root:free() end
  self.roots = {}
end

return M
