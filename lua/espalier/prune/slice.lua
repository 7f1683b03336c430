--- Candidates of a sorted model as views of it: prefixes of its tensors and a list of its layers. Nothing is copied until a slice is materialized.

local tensor = require "espalier.tensor"
local scope = require "espalier.scope"
local models = require "espalier.models.model"
local shapes = require "espalier.models.shape"
local legal = require "espalier.prune.legal"
local sort = require "espalier.prune.sort"
local views = require "espalier.prune.views"
local streams = require "espalier.prune.streams"
local hash = require "espalier.models.hash"
local fail = require "espalier.fail"

local M = {}
local Slice = {}
local Model = models.Model

-- What a slice makes when it is first asked for it: a search asks thousands of candidates for their shape and few for their logits.
local when_asked = {}
Slice.__index = function(self, name)
  local make = when_asked[name]
  if not make then return Slice[name] or Model[name] end
  self[name] = make(self)
  return self[name]
end

-- The stores of streams, one a sorted model, and its twins whose products have another precision; they go with it.
local stores, twins = setmetatable({}, { __mode = "k" }), setmetatable({}, { __mode = "k" })

-- ---- what is made when it is asked for ----

-- The views as weights of the shape, and the shapes of those of blocks as a folder has them.
function when_asked.views(self)
  return scope.outside(function()
    local weights, flat_shapes = views.of(self.of:parameters(), self.of.shape, self.shape, self.layers)
    return { weights = weights, flat_shapes = flat_shapes }
  end)
end

function when_asked.decoder(self)
  return views.gather_when_run(models.new(self.shape, { weights = self.views.weights, precision = self.precision }).decoder)
end

-- What each layer is, for the streams that candidates share.
function when_asked.texts(self)
  local list, new = {}, self.shape
  for i, l in ipairs(self.layers) do
    list[i] = string.format("%d %d %d %d %d", new.hidden, l, shapes.at(new, "ffn", i - 1), shapes.at(new, "heads", i - 1),
      shapes.at(new, "kv_heads", i - 1))
  end
  return list
end

-- ---- slices ----

-- Layers by importance cut to a number; the lists of the request otherwise.
local function kept_layers(orders, request)
  if not request.layers then return nil end
  local list = {}
  for i = 1, request.layers do list[i] = orders.layers[i] end
  table.sort(list)
  return list
end

--- esp.slice(sorted, { hidden =, ffn =, heads =, kv_heads =, layers =, drop =, drop_attention =, drop_mlp = }) -> slice: a candidate of a sorted
-- model as a view: its shape is checked at once, in microseconds, its views are made when it first runs. It runs as a model does (logits, hidden,
-- loss, generate), and refuses to be written to.
-- ffn, heads and kv_heads may be lists by layer of the sorted model; layers keeps so many by the order that esp.sort remembered.
-- slice:loss(batch) scores it and starts at the first layer that differs from the slice scored before on the same batch; slice:materialize() is
-- a model of its own; slice:save(dir) saves that.
function M.slice(model, request)
  if type(model) ~= "table" or not model.decoder then fail("esp.slice: the first argument is %s, want a sorted model", type(model)) end
  local orders = sort.orders(model) or fail("esp.slice: this model is not sorted, so what a cut keeps is no prefix; esp.sort(model, stats) sorts it")
  request = legal.parse("esp.slice", request)
  local s = model.shape
  local new, layers = legal.result(s, request, legal.check("esp.slice", s, request), kept_layers(orders, request))
  return setmetatable({ of = model, request = request, shape = new, layers = layers, config = model.config, source = model.source,
    tokenizer = model.tokenizer, lineage = model.lineage, precision = model.precision }, Slice)
end

--- { [hf_name] = tensor }: the views, and for those of blocks what they hold, gathered.
function Slice:parameters()
  local all = Model.parameters(self)
  for name, shape in pairs(self.views.flat_shapes) do all[name] = views.flat(all[name], shape) end
  return all
end

--- Mean next-token cross-entropy in nats, and the number of predictions. batch: ids, rows, or a batch of esp.data. The stream before the first layer
-- that differs from the slice scored last on this batch is taken from there.
function Slice:loss(batch, opt)
  stores[self.of] = stores[self.of] or streams.new()
  return stores[self.of]:loss(self, self.texts, batch, opt)
end

--- The same slice with its products in "f32" or "bf16" (operands rounded to bf16, sums f32). Scores of the one do not compare with the other's.
function Slice:in_precision(precision)
  if precision == (self.precision or "f32") then return self end
  local own = twins[self.of] or {}
  twins[self.of] = own
  own[precision] = own[precision] or self.of:in_precision(precision)
  return M.slice(own[precision], self.request)
end

--- Gives back the memory of the streams that the slices of a sorted model keep between scores.
function M.forget(model)
  if stores[model] then stores[model]:free() end
end

-- The indices that stay, as a prune keeps them.
local function sets_of(self)
  local s, new, sets = self.of.shape, self.shape, { layers = self.layers }
  local function first(n)
    local list = {}
    for i = 1, n do list[i] = i - 1 end
    return list
  end
  sets.hidden = first(new.hidden)
  sets.ffn, sets.heads, sets.kv_heads = {}, {}, {}
  for i, l in ipairs(self.layers) do
    local h, g = shapes.at(new, "heads", i - 1), shapes.at(new, "kv_heads", i - 1)
    sets.ffn[l + 1], sets.kv_heads[l + 1], sets.heads[l + 1] = first(shapes.at(new, "ffn", i - 1)), first(g), {}
    local each = h > 0 and shapes.at(s, "heads", l) / shapes.at(s, "kv_heads", l) or 0
    for b = 0, g - 1 do
      for r = 0, h / g - 1 do table.insert(sets.heads[l + 1], b * each + r) end
    end
  end
  return sets
end

--- A model of its own with copies of what stays, products as here; opt.dtype: "f32" or "bf16" converts. Its lineage is the sorted model's and a
-- prune of it.
function Slice:materialize(opt)
  local weights, model, flat_shapes = {}, self.of, self.views.flat_shapes
  scope.outside(function()
    for name, t in pairs(self.views.weights) do
      local copy = tensor.clone(t)
      weights[name] = tensor.to(flat_shapes[name] and tensor.view(copy, flat_shapes[name]) or copy, opt and opt.dtype or t.dtype)
    end
  end)
  local lineage = { unpack(model.lineage) }
  lineage[#lineage + 1] = { step = "prune", parent = model.source, parent_hash = hash(model), asked = self.request, before = shapes.text(model.shape),
    after = shapes.text(self.shape), kept = sets_of(self) }
  return models.new(shapes.copy(self.shape), { weights = weights, config = model.config, source = model.source, tokenizer = model.tokenizer,
    lineage = lineage, precision = self.precision })
end

Slice.clone = Slice.materialize

--- Materializes and saves.
function Slice:save(dir, opt)
  return self:materialize():save(dir, opt)
end

function Slice:__tostring()
  return "slice of a sorted " .. tostring(self.of) .. "\n  " .. Model.__tostring(self)
end

return M
