--- What one forward pass adds to the statistics: an observer of the model's sites (nn/decoder.lua names them).

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"
local tape = require "espalier.tape"
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
  return setmetatable({ stats = stats, model = model, grads = opt.grads, reductions = opt.reductions or {} }, Collector)
end

function Collector:add(l, name, x)
  local sums = self.stats:slot(l, name, { 2, 8, x.shape[3] })
  c.channel_stats_acc(sums.c, x.c, self.batch.lengths and self.batch.lengths.c or nil, self.batch.row)
end

-- Length of each head's part of x [B,T,H*width] at each token: [B,T,H].
local function part_lengths(x, width)
  local B, T, n = x.shape[1], x.shape[2], x.shape[3] / width
  local y = tensor.new { B, T, n }
  c.norm(y.c, tensor.view(x, { B, T, n, width }).c, 3)
  return y
end

-- Length of what each `width` neighbouring channels of x add to the output of w: [B,T,n]. That is what goes when they go.
local function added_lengths(x, w, width)
  local n = x.shape[3] / width
  local y, out = tensor.new { x.shape[1], x.shape[2], n }, tensor.new { x.shape[1], x.shape[2], w.shape[1] }
  for i = 0, n - 1 do
    c.linear(out.c, tensor.narrow(x, 2, i * width, width).c, tensor.contiguous(tensor.narrow(w, 1, i * width, width)).c)
    c.norm(tensor.select(y, 2, i).c, out.c, 2)
  end
  return y
end

-- Lengths of the pairs of channels that turn together, x [B,T,H,D]: [B,T,H*D/2]. Channel c turns with c + R/2, R the channels that turn.
local function pair_lengths(x, turning)
  local B, T, H = x.shape[1], x.shape[2], x.shape[3]
  local dense = tensor.contiguous(tensor.narrow(x, 3, 0, turning))
  local y = tensor.new { B, T, H, turning / 2 }
  c.norm(y.c, tensor.view(dense, { B, T, H, 2, turning / 2 }).c, 3)
  return tensor.view(y, { B, T, H * turning / 2 })
end

function Collector:heads(l, x)
  local s, w = self.stats.shape, self.model.decoder.model.layers[l + 1].self_attn.o_proj.weight
  local e, group = s.head_dim, shapes.at(s, "heads", l) / shapes.at(s, "kv_heads", l)
  self:add(l, "heads", part_lengths(x, e))
  self:add(l, "heads.added", added_lengths(x, w, e))
  -- Without sharing a group is its head.
  if group > 1 then self:add(l, "kv_heads.added", added_lengths(x, w, group * e)) end
end

-- A user's reduction over the rows of each half: it sees [rows, positions, channels] of whole rows.
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
          local y = tensor.contiguous(r.of(tensor.narrow(tensor.narrow(x, 0, b, 1), 1, 0, length)))
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

-- sums [2,..,3] of all pairs; this pair's are at the indices given.
function Collector:angle(sums, a, b, ...)
  local one = sums
  for _, i in ipairs { ... } do one = tensor.select(one, 1, i) end
  c.angle_stats_acc(one.c, a.c, b.c, self.batch.lengths and self.batch.lengths.c or nil, self.batch.row)
end

-- The residual stream: kept into each layer until the batch ends, compared within the layer.
function Collector:stream(site, l, x)
  local L = self.stats.shape.layers
  if site == "in" then
    self.streams[l] = tape.outside_scopes(tensor.clone, x)
  elseif site == "mid" then
    self.mid = tape.outside_scopes(tensor.clone, x)
    self:angle(self.stats:slot(nil, "parts", { 2, L, 2, 3 }), self.streams[l], x, l, 0)
  elseif site == "out" then
    self:angle(self.stats:slot(nil, "parts", { 2, L, 2, 3 }), self.mid, x, l, 1)
    self.mid:free()
    if l == L - 1 then self.streams[L] = tape.outside_scopes(tensor.clone, x) end
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
    if s.gated ~= false then self:add(l, "act", ops.gate(x, nil, s.activation or "silu")) end
  elseif (site == "q" or site == "k") and shapes.at(s, "rotary", l) ~= false then
    self:add(l, site, pair_lengths(x, s.head_dim * (s.rope.partial or 1)))
  end
end

--- The observer of one batch { ids, lengths (i32 [B] or nil), row (number of its first row) }.
function Collector:observer(batch)
  self.batch, self.streams, self.watched = batch, {}, {}
  return function(site, l, x)
    -- What a sum reads goes at once; the model's own tensors are not made here.
    tape.no_grad(tape.scope, self.see, self, site, l, x)
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
  local sums = self.stats:slot(nil, "angles", { 2, L, L, 3 })
  tape.scope(function()
    for i = 0, L - 1 do
      for j = i + 1, L do self:angle(sums, self.streams[i], self.streams[j], i, j - 1) end
    end
  end)
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

--- Frees what the batch kept.
function Collector:done()
  for _, x in pairs(self.streams) do x:free() end
  if self.leaf and self.leaf.grad then self.leaf.grad:free() end
  for _, seen in ipairs(self.watched) do
    if seen.x.grad then seen.x.grad:free() end
    seen.x:free()
  end
  self.streams, self.watched, self.leaf = {}, {}, nil
end

return M
