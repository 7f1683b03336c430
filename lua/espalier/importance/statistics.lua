--- Statistics of a calibration pass: sums from which every score is computed without the model's running again (score.lua).
--
-- sums[l+1][NAME]: f64 tensors of layer l, by site ("ffn") and, behind a dot, by what is summed ("ffn.taylor"); outer[NAME]: of the model as a
-- whole. The first dimension of what adds up is the half: even rows of the data, odd rows. Statistics of shards of data add up (merge); they
-- carry hashes of model, tokenizer and data and refuse to mix. They do not grow with tokens. How they lie in a file: stored.lua.

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"
local scope = require "espalier.scope"
local file = require "espalier.io.file"
local options = require "espalier.options"
local hash_of = require "espalier.models.hash"
local shapes = require "espalier.models.shape"
local fail = require "espalier.fail"

local Statistics = {}
Statistics.__index = Statistics

local M = { Statistics = Statistics }

--- An empty one. facts: { model, tokenizer (hashes), data = { { digest, rows } .. }, reductions = { [name] = "sum" or "max" }, grads, depth }.
function M.new(shape, facts)
  local s = { shape = shape, facts = facts or {}, sums = {}, outer = {}, left_out = {},
    counts = { { rows = 0, tokens = 0, predictions = 0 }, { rows = 0, tokens = 0, predictions = 0 } } }
  s.facts.data, s.facts.reductions = s.facts.data or {}, s.facts.reductions or {}
  for l = 1, shape.layers do s.sums[l] = {} end
  return setmetatable(s, Statistics)
end

--- Rows, tokens and predictions of both halves.
function Statistics:total(what)
  return self.counts[1][what] + self.counts[2][what]
end

--- The sums of a name, to add to, made of zeros when first asked for. l: layer, or nil for the model as a whole.
function Statistics:slot(l, name, shape)
  self.known_hash = nil
  local place = l and self.sums[l + 1] or self.outer
  place[name] = place[name] or scope.outside(tensor.zeros, shape, "f64")
  return place[name]
end

-- ---- whose they are ----

--- Refuses a model that these are not statistics of. what: who asks ("esp.prune"); have: the model's hash, where it is known.
function Statistics:check_model(what, model, have)
  if shapes.text(self.shape) ~= shapes.text(model.shape) then
    fail("%s: the statistics are of a model with %s, this one has %s", what, shapes.text(self.shape), shapes.text(model.shape))
  end
  have = have or hash_of(model)
  if self.facts.model ~= have then
    fail("%s: the statistics are of another model of this shape (its weights have the hash %s, this model's %s); measure this one, or "
      .. "insist with stats:taken_for(model)", what, tostring(self.facts.model), have)
  end
end

--- The same statistics, taken for those of another model of the same shape: where a model was trained on, or rounded, since they were measured.
-- Functions that refuse statistics of another model take these; their hash is another, and the lineage of what is cut by them keeps it.
function Statistics:taken_for(model)
  if type(model) ~= "table" or not model.shape then fail("stats:taken_for: the argument is %s, want a model", type(model)) end
  if shapes.text(self.shape) ~= shapes.text(model.shape) then self:check_model("stats:taken_for", model) end
  local own, facts = {}, {}
  for k, v in pairs(self) do own[k] = v end
  for k, v in pairs(self.facts) do facts[k] = v end
  facts.model, facts.measured_on = hash_of(model), facts.measured_on or self.facts.model
  own.facts, own.model, own.known_hash = facts, model, nil
  return setmetatable(own, Statistics)
end

-- ---- parts ----

--- visit(place, at) for every table of sums; at(other): the same place in other statistics.
function M.each_place(stats, visit)
  for l = 1, stats.shape.layers do visit(stats.sums[l], function(s) return s.sums[l] end) end
  visit(stats.outer, function(s) return s.outer end)
  visit(stats.left_out, function(s) return s.left_out end)
end

--- New statistics of both shards of data together. Refuses other models or tokenizers, the same rows twice, and statistics that were asked for
-- different things. The weight form of Taylor needs the gradient of all data at once and does not add up: it is left out.
function Statistics:merge(other)
  return require("espalier.importance.merge").merge(self, other)
end

--- The statistics of one half of the rows alone: 0 the even, 1 the odd ones.
function Statistics:half(h)
  return require("espalier.importance.merge").half(self, h)
end

--- Drops what only all data at once can give: more rows are to come.
function Statistics:forget_wholes()
  require("espalier.importance.merge").forget_wholes(self)
end

-- ---- files ----

--- Writes an HDF5 file, whole or not at all: what metrics need, to f32, or with opt.exact every sum, which takes some three times the bytes.
function Statistics:save(path, opt)
  opt = options.check("stats:save", opt, { exact = { "bool", default = false } })
  require("espalier.importance.stored").save(self, path, opt.exact)
end

--- Reads what save wrote.
function M.load(path)
  return require("espalier.importance.stored").load(path)
end

--- Bytes of all sums.
function Statistics:bytes()
  local total = 0
  M.each_place(self, function(place) for _, t in pairs(place) do total = total + 8 * t:count() end end)
  return total
end

--- 32 hex digits that tell these statistics from others: XXH3 over what they are of and every sum. A file keeps that of what was saved.
function Statistics:hash()
  if self.known_hash then return self.known_hash end
  local parts = { shapes.text(self.shape), self.facts.model, self.facts.tokenizer or "", self.facts.asked or "" }
  M.each_place(self, function(place)
    local names = {}
    for name in pairs(place) do names[#names + 1] = name end
    table.sort(names)
    for _, name in ipairs(names) do
      local hex = core.new "char[33]"
      core.try(core.C.esp_hash(hex, place[name]:data(), 8 * place[name]:count()))
      parts[#parts + 1] = name .. core.string(hex)
    end
  end)
  return file.hash_text(table.concat(parts, " "))
end

--- Scores along an axis, f32 tensor [n]; higher means keep.
-- axis: ffn, heads, kv_heads, hidden, head_dim (pairs of channels that turn together), layers, or attention (channels of o_proj's input).
-- metric: of widths activation, magnitude, wanda, flap, contribution, taylor, taylor_abs, taylor_second, taylor_weight, fisher, random; of layers bi,
-- angular, nll, kl, mse_hidden, mse_logits, nmse_logits, task; a file of yours by its name, or a table with score. agg: "batch,seq", each mean, l2 or
-- var. layer: for ffn, heads, kv_heads, attention. site: another site ("pre" and "act": before and after the activation, "norm1", "norm2", "heads",
-- "final"). heads: "channelwise" or "tokenwise" (2407.14679, section 2.2). norms: which count for hidden ({ "norm1", "norm2" }; "final"). Of layers:
-- block = n, part = "attention" or "mlp", last = true (angular distance at each row's last token). seed. model: for metrics that read the weights.
function Statistics:score(opt)
  return require("espalier.importance.score").score(self, opt)
end

--- A ranking: one metric an axis. spec: { ffn = "wanda", heads = { metric =, agg =, heads = }, kv_heads =, hidden =, head_dim =, layers = "nll" };
-- absent axes get the default (activation l2,mean; bi). An axis may also say within = "network" or "shared", normalise = "standard"; layers
-- contiguous = true, protect = { first, last }. ranking:kept{ ffn = 128 } gives the sets, esp.prune takes the ranking, ranking:stability{ ffn = 128 }
-- tells whether more data would change them.
function Statistics:rank(spec)
  return require("espalier.importance.ranking").new(self, spec or {})
end

--- The scores as a table with bars: stats:show{ axis = "layers", metric = "nll" }; options as stats:score. Without a layer, one line a layer.
function Statistics:show(opt)
  return require("espalier.importance.show").show(self, opt)
end

function Statistics:__tostring()
  return require("espalier.importance.show").summary(self)
end

return M
