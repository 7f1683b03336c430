--- True scores of candidates on held-out tokens: NLL, and KL from the full model, with the streams of shared first layers kept between candidates.

local streams = require "espalier.prune.streams"
local models = require "espalier.models.model"
local tokens = require "espalier.eval.tokens"
local tensor = require "espalier.tensor"
local tape = require "espalier.tape"
local scope = require "espalier.scope"
local core = require "espalier.ffi"
local fail = require "espalier.fail"

local M = {}
local Scorer = {}
Scorer.__index = Scorer

-- Batches of held-out rows up to `most` tokens: { ids, first, target }.
local function batches(model, data, most, size)
  local list, seen = {}, 0
  if type(data) == "table" and data.held_out then data = data.held_out end
  if not (type(data) == "table" and data.batch and data.rows) then
    local ids, lengths = models.as_ids(data)
    return { { ids = ids, target = models.next_targets(ids, lengths) } }, ids:count()
  end
  data:use(model, "esp.search")
  for at = 0, data:rows() - 1, size do
    if seen >= most then break end
    local b = data:batch(at, math.min(size, data:rows() - at))
    list[#list + 1] = { ids = b.ids, first = b.first, target = b.target }
    seen = seen + b.ids:count()
  end
  if #list == 0 then fail("esp.search: the held-out data has no rows") end
  return list, seen
end

--- A scorer of slices of `model` on data (of esp.data, its split's held_out, ids or rows). opt: tokens (4096 at most), batch (rows at a time, 4).
function M.new(model, data, opt)
  return scope.outside(function()
    local list, seen = batches(model, data, opt.tokens or 4096, opt.batch or 4)
    for _, b in ipairs(list) do
      b.full = tape.no_grad(scope.run, function() return model:forward(b.ids, { first = b.first }) end)
    end
    return setmetatable({ model = model, batches = list, tokens = seen, streams = streams.new() }, Scorer)
  end)
end

local function total(t)
  local sum = tensor.zeros({}, "f64")
  core.ops.total_acc(sum.c, t.c)
  return sum:item()
end

--- Scores of a slice: { nll, kl }, means in nats over the predictions and over all positions.
function Scorer:score(slice)
  local nll, predictions, kl, positions = 0, 0, 0, 0
  for _, b in ipairs(self.batches) do
    tape.no_grad(scope.run, function()
      local h = self.streams:forward(slice, slice.texts, b.ids, b.first)
      local own, from_full = tokens.nll_and_kl(slice:states(h), b.target, self.model:states(b.full))
      local mean, count = models.mean_nll(own, b.target)
      nll, predictions = nll + mean * count, predictions + count
      kl, positions = kl + total(from_full), positions + b.ids:count()
    end)
  end
  return { nll = nll / predictions, kl = kl / positions }
end

function Scorer:free()
  self.streams:free()
  for _, b in ipairs(self.batches) do b.full:free() end
end

return M
