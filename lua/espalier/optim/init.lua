--- AdamW over named parameters (1711.05101): f32 master and moments, decay on matrices only, gradients clipped by their common norm.

local tensor = require "espalier.tensor"
local scope = require "espalier.scope"
local core = require "espalier.ffi"

local c = core.ops
local M = {}
local AdamW = {}
AdamW.__index = AdamW

--- names: list, in the order of the update; parameters: { [name] = f32 tensor }. opt: betas, eps, decay, clip (0: none).
function M.adamw(names, parameters, opt)
  return scope.outside(function()
    local o = setmetatable({ names = names, parameters = parameters, opt = opt, m = {}, v = {}, lr = tensor.scalar(0), count = tensor.scalar(0),
      sumsq = tensor.scalar(0), factor = tensor.scalar(1) }, AdamW)
    for _, name in ipairs(names) do
      local p = parameters[name]
      p.requires_grad = true
      o.m[name], o.v[name] = tensor.zeros(p.shape), tensor.zeros(p.shape)
      p.grad = tensor.zeros(p.shape):keep()
    end
    return o
  end)
end

function AdamW:zero_grad()
  for _, name in ipairs(self.names) do self.parameters[name].grad:fill(0) end
end

--- One update at rate lr; step counts from 1. Returns the norm of the gradients before clipping.
function AdamW:step(step, lr)
  local opt = self.opt
  self.lr:fill(lr)
  self.count:fill(step)
  self.sumsq:fill(0)
  for _, name in ipairs(self.names) do c.sumsq_acc(self.sumsq.c, self.parameters[name].grad.c) end
  c.clip_factor(self.factor.c, self.sumsq.c, opt.clip)
  local norm = math.sqrt(self.sumsq:item())
  if not (norm < math.huge) then return norm end
  for _, name in ipairs(self.names) do
    local p = self.parameters[name]
    c.adamw(p.c, self.m[name].c, self.v[name].c, p.grad.c, self.lr.c, self.count.c, self.factor.c, opt.betas[1], opt.betas[2], opt.eps,
      #p.shape >= 2 and opt.decay or 0)
  end
  return norm
end

return M
