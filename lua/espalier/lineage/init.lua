--- Where a model comes from: each step that made it, what the step kept and from which parent; shown, replayed and undone.
--
-- A model carries its steps as a list, oldest first. A step is plain data: { step = "prune", parent = path of the parent where it had one,
-- parent_hash (models/hash.lua), statistics_hash, by = the metrics in words, asked = the options, before, after = shapes in words,
-- kept = { hidden, layers, ffn, heads, kv_heads } (lineage/store.lua) }, or a retraining: { step = "esp.distill", loss, steps, tokens, .. }.

local store = require "espalier.lineage.store"
local hash = require "espalier.models.hash"
local shapes = require "espalier.models.shape"
local quantity = require "espalier.quantity"
local options = require "espalier.options"
local fail = require "espalier.fail"

local M = {}
local Lineage = {}
Lineage.__index = Lineage

--- esp.lineage(model) -> lineage: print it; lineage:replay(parent), lineage:undo(), lineage.steps.
function M.lineage(model)
  if type(model) ~= "table" or type(model.lineage) ~= "table" then fail("esp.lineage: the argument is %s, want a model", type(model)) end
  return setmetatable({ model = model, steps = model.lineage }, Lineage)
end

local function cuts(step) return step.step == "prune" or step.step == "sort" end

-- ---- replay ----

local function check_parent(step, parent, i)
  if not step.parent_hash then fail("lineage: step %d was written without its parent's hash; it cannot be replayed", i) end
  local have = hash(parent)
  if have ~= step.parent_hash then
    fail("lineage: step %d was made from weights %s, the model given has %s (%s)", i, step.parent_hash, have, shapes.text(parent.shape))
  end
end

-- The child of one step.
local function again(step, parent, i)
  if not cuts(step) then
    fail("lineage: step %d is %s, a training run, which weights alone do not bring back; replay(parent, { steps = %d }) stops before it", i,
      step.step, i - 1)
  end
  check_parent(step, parent, i)
  local sets = store.kept(step)
  if step.step == "sort" then return require("espalier.prune.sort").by(parent, sets) end
  local request = { keep = sets, quiet = true }
  for name, value in pairs(step.asked) do request[name] = value end
  return (require("espalier.prune").prune(parent, nil, request))
end

--- The model made again from the parent of its first step, with the same bits: lineage:replay(parent [, { steps = 2 }]) -> model.
-- steps: how many from the first on (all). Errors: another parent (by hash), a step that trained.
function Lineage:replay(parent, opt)
  opt = options.check("lineage:replay", opt, { steps = { "int", default = #self.steps } })
  if type(parent) ~= "table" or not parent.parameters then fail("lineage:replay: the argument is %s, want the parent model", type(parent)) end
  if opt.steps < 0 or opt.steps > #self.steps then fail("lineage:replay: steps = %d, want 0 to %d", opt.steps, #self.steps) end
  for i = 1, opt.steps do parent = again(self.steps[i], parent, i) end
  return parent
end

--- The model before its last step: the steps before it are replayed from the first parent, which is opened from where it was (parent: another
-- place, or the model itself). A training step is undone to what it started from.
function Lineage:undo(parent)
  local first = self.steps[1] or fail("lineage: this model has no step to undo")
  if type(parent) ~= "table" then
    local path = parent or first.parent or fail("lineage: where the parent of step 1 lies is not known; give it: lineage:undo(parent)")
    parent = require("espalier.models").load(path)
  end
  if #self.steps == 1 and cuts(first) then check_parent(first, parent, 1) end
  return self:replay(parent, { steps = #self.steps - 1 })
end

-- ---- text ----

local function sizes(step)
  local kept, parts = store.kept(step) or {}, {}
  if kept.hidden then parts[#parts + 1] = "hidden " .. #kept.hidden end
  for _, axis in ipairs { "ffn", "heads", "kv_heads" } do
    local low, high
    for _, set in pairs(kept[axis] or {}) do low, high = math.min(low or #set, #set), math.max(high or #set, #set) end
    if low then parts[#parts + 1] = axis .. " " .. (low == high and low or low .. ".." .. high) end
  end
  if kept.layers then parts[#parts + 1] = "layers " .. table.concat(kept.layers, " ") end
  return #parts > 0 and table.concat(parts, ", ") or "everything"
end

local function facts_of(step)
  local names, parts = {}, {}
  local own = { step = 1, before = 1, after = 1, kept = 1, by = 1, parent = 1, parent_hash = 1, statistics_hash = 1, asked = 1 }
  for name, value in pairs(step) do if not own[name] and type(value) ~= "table" then names[#names + 1] = name end end
  table.sort(names)
  for i, name in ipairs(names) do
    local value = step[name]
    parts[i] = name .. " " .. (name == "tokens" and quantity.show_count(value) or tostring(value))
  end
  return table.concat(parts, ", ")
end

function Lineage:__tostring()
  if #self.steps == 0 then return "lineage: none; this model was not made here" end
  local out = {}
  for i, step in ipairs(self.steps) do
    local facts = facts_of(step)
    out[#out + 1] = string.format("%d %s%s", i, step.step, facts ~= "" and ": " .. facts or "")
    if step.parent or step.parent_hash then
      out[#out + 1] = string.format("    from  %s%s", step.parent or "a model in memory", step.parent_hash and " (" .. step.parent_hash .. ")" or "")
    end
    if step.before then out[#out + 1] = "    had   " .. step.before end
    if cuts(step) then out[#out + 1] = "    kept  " .. sizes(step) end
    if step.by then out[#out + 1] = "    by    " .. step.by .. (step.statistics_hash and " (statistics " .. step.statistics_hash .. ")" or "") end
  end
  return table.concat(out, "\n")
end

return M
