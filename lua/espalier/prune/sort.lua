--- Sorting: the same function with every axis in the order of importance, so that what a cut keeps is a prefix and a candidate is a view.
--
-- Hugging Face's order of heads stays, group by group: groups fall in importance, and heads inside each group. What is left of a group is then the
-- front of its block of rows, a view [groups, rows, columns] (prune/slice.lua).

local models = require "espalier.models.model"
local shapes = require "espalier.models.shape"
local hash = require "espalier.models.hash"
local prune = require "espalier.prune"
local tape = require "espalier.tape"
local scope = require "espalier.scope"
local options = require "espalier.options"
local fail = require "espalier.fail"

local M = {}

local function layers_of(s)
  local list = {}
  for l = 0, s.layers - 1 do list[l + 1] = l end
  return list
end

-- A model with its axes in the order of `orders`; facts: further fields of the step.
local function sorted(model, orders, facts)
  local s = model.shape
  local weights = tape.no_grad(scope.outside, prune.cut, s, model:parameters(), s, orders, layers_of(s))
  local step = { step = "sort", parent = model.source, parent_hash = hash(model), before = shapes.text(s), kept = orders }
  for name, value in pairs(facts or {}) do step[name] = value end
  local lineage = { unpack(model.lineage) }
  lineage[#lineage + 1] = step
  return models.new(shapes.copy(s), { weights = weights, config = model.config, source = model.source, tokenizer = model.tokenizer,
    lineage = lineage })
end

--- The model again from orders that a step recorded, for lineage:replay.
function M.by(model, orders)
  return sorted(model, orders)
end

--- esp.sort(model, statistics or ranking [, spec]) -> model: the same function, its hidden channels, neurons, KV groups and heads (in their group)
-- in the order of importance, the highest first; layers stay where they are, their order is remembered. spec: metrics as for stats:rank, where
-- statistics are given; statistics of another model are refused (esp.prune). Candidates are then cut from it by esp.slice, in no time.
function M.sort(model, scores, spec)
  if type(model) ~= "table" or not model.decoder then fail("esp.sort: the first argument is %s, want a model", type(model)) end
  if type(scores) == "table" and scores.rank then scores = scores:rank(spec or {})
  elseif spec then options.check("esp.sort", spec, {}) end
  if type(scores) ~= "table" or not scores.orders then fail("esp.sort: the second argument is %s, want statistics or a ranking", type(scores)) end
  scores.stats:check_model("esp.sort", model)
  return sorted(model, scores:orders(model), { by = tostring(scores), statistics_hash = scores.stats:hash() })
end

--- The orders that a model was sorted by, or nil where it was not: hidden, ffn, heads, kv_heads, layers (by the layers of the model itself).
function M.orders(model)
  for i = #model.lineage, 1, -1 do
    local step = model.lineage[i]
    if step.step == "sort" then return require("espalier.lineage.store").kept(step) end
    if step.step == "prune" then return nil end
  end
end

return M
