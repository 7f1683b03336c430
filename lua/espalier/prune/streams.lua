--- Scores of candidates that share their first layers: the residual stream into every layer is kept from one candidate to the next, and a candidate
-- runs from the first layer on in which it differs.
--
-- A candidate says by a text a layer what that layer is ("widths, which layer of the source"); equal texts from the first layer on make equal
-- streams. One set of streams is kept for each batch of tokens, as long as they take less than a quarter of the memory that is free.

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"
local tape = require "espalier.tape"
local scope = require "espalier.scope"
local models = require "espalier.models.model"
local tokens = require "espalier.eval.tokens"
local options = require "espalier.options"

local M = {}
local Streams = {}
Streams.__index = Streams

--- An empty store; streams:free() gives its memory back.
function M.new()
  return setmetatable({ batches = {} }, Streams)
end

local function hash_of(t)
  local dense, hex = tensor.contiguous(t), core.new "char[33]"
  core.try(core.C.esp_hash(hex, dense:data(), 4 * dense:count()))
  return core.string(hex)
end

-- How many layers from the first on are the same.
local function shared(a, b)
  local n = 0
  while a[n + 1] and a[n + 1] == b[n + 1] do n = n + 1 end
  return n
end

local function drop(list, from)
  for i = from, #list do
    list[i]:free()
    list[i] = nil
  end
end

-- Room for one more stream of that size?
local function room(x, layers)
  return 4 * x:count() * layers < tonumber(core.C.esp_memory_available()) / 4
end

--- The residual stream of a candidate after its final norm, [B,T,hidden]. texts: of its layers; ids i32 [B,T]; first as of Model:forward.
function Streams:forward(model, texts, ids, first)
  local key = hash_of(ids) .. (first and hash_of(first) or "")
  local kept = self.batches[key] or { texts = {}, x = {} }
  self.batches[key] = kept
  -- x[n] goes into layer n (from 0), so that many layers are behind it.
  local n = math.min(shared(kept.texts, texts), #texts, #kept.x)
  drop(kept.x, n + 1)
  kept.texts = texts
  local from = n > 0 and { layer = n, x = kept.x[n] } or nil
  return tape.no_grad(function()
    return model:forward(ids, { first = first, from = from, observe = function(site, l, x)
      if site == "in" and l > n and l == #kept.x + 1 and room(x, l) then kept.x[l] = scope.outside(tensor.clone, x) end
    end })
  end)
end

--- Mean next-token cross-entropy in nats, and the number of predictions, as Model:loss gives them. batch: i32 [B,T], a table of rows, or a batch of
-- esp.data ({ ids, first, target }); opt.first, opt.target for the first two.
function Streams:loss(model, texts, batch, opt)
  opt = options.check("loss", opt, { first = { "tensor" }, target = { "tensor" } })
  return scope.run(function()
    local ids, first, target = batch, opt.first, opt.target
    if type(batch) == "table" and batch.ids then ids, first, target = batch.ids, batch.first, batch.target end
    local lengths
    ids, lengths = models.as_ids(ids)
    target = target or models.next_targets(ids, lengths)
    local hidden = self:forward(model, texts, ids, first)
    return models.mean_nll((tokens.nll_and_kl(model:states(hidden), target)), target)
  end)
end

function Streams:free()
  for _, kept in pairs(self.batches) do drop(kept.x, 1) end
  self.batches = {}
end

return M
