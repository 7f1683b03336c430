--- Plan before load: what a model has, what would be left of it and what a distillation would take, from config.json and the headers of its weights.

local sources = require "espalier.plan.source"
local engines = require "espalier.plan.engines"
local grids = require "espalier.plan.grid"
local goals = require "espalier.plan.goals"
local runs = require "espalier.plan.run"
local measure = require "espalier.plan.measure"
local shapes = require "espalier.models.shape"
local legal = require "espalier.prune.legal"
local product = require "espalier.product"
local fail = require "espalier.fail"

local M = { distillation = runs.memory }
local Plan = {}
Plan.__index = Plan

local function facts(s, opt)
  return { shape = s, parameters = shapes.parameters(s), non_embedding = shapes.parameters(s) - shapes.embedding_parameters(s),
    kv = shapes.kv_bytes(s, 2) * opt.batch * opt.length, flops = shapes.flops(s, opt.length) }
end

-- The shape with another size along an axis, or nil where no engine or group takes it.
local function moved(s, after, axis, size, opt, source)
  local near = shapes.copy(after)
  near[axis] = size
  if axis == "kv_heads" then near.heads = size * after.heads / after.kv_heads end
  if type(near.heads) == "table" or type(near.kv_heads) == "table" or type(near.ffn) == "table" then return nil end
  local most = grids.largest(s, "heads") / grids.largest(s, "kv_heads")
  local legal_heads = near.heads % near.kv_heads == 0 and near.heads / near.kv_heads <= most
  return legal_heads and engines.takes(opt.engine, source.architecture, near.hidden, near.heads) and near or nil
end

-- The legal sizes next to those of the plan along each axis, in the grid's steps, and the parameters each would leave.
local function neighbours(s, after, opt, source)
  local out = {}
  for _, axis in ipairs(grids.axes) do
    local now, most, step = grids.largest(after, axis), grids.largest(s, axis), grids.step(s, axis)
    for _, way in ipairs { -step, step } do
      local size = way < 0 and (math.ceil(now / step) - 1) * step or (math.floor(now / step) + 1) * step
      local near
      while not near and size >= 1 and size <= most do
        near = moved(s, after, axis, size, opt, source)
        if near then
          out[#out + 1] = { axis = axis, size = size, heads = axis == "kv_heads" and near.heads or nil, parameters = shapes.parameters(near) }
        end
        size = size + way
      end
    end
  end
  return out
end

-- Sizes that are asked for, or nothing.
local function sizes_of(opt)
  local fixed = {}
  for _, axis in ipairs(grids.axes) do fixed[axis] = opt[axis] end
  return fixed
end

-- With budgets: the grid is walked, and the plan goes on with the shape that comes first.
local function choose(opt, source)
  local s, fixed = source.shape, sizes_of(opt)
  for _, name in ipairs { "drop", "drop_attention", "drop_mlp" } do
    if opt[name] then fail("plan: %s and a budget are both given; a budget chooses among sizes", name) end
  end
  local grid = grids.new(s, { axes = opt.axes, fixed = fixed, engine = opt.engine, architecture = source.architecture, what = "plan" })
  local list = goals.of(opt, grid)
  local found = goals.choose(grid, list)
  found.goals, found.grid = list, grid
  -- Nothing is cut where nothing must be. Then hidden and ffn alone where that reaches the budget, as 2408.11796 did; else the most even cut.
  found.pick = found.list[1]
  for _, c in ipairs(found.list) do if c.cut == "hidden, ffn" and found.pick.cut ~= "" then found.pick = c end end
  return found
end

local function refuse_what_engines_refuse(opt, source, after)
  if not (opt.hidden or opt.heads or opt.kv_heads) then return end
  local most = { hidden = source.shape.hidden, heads = grids.largest(source.shape, "heads") }
  local refusal = engines.refusal(opt.engine, source.architecture, after, most)
  if refusal then fail("plan: %s", refusal) end
end

local own = {
  batch = { "int", default = 1, help = "rows, for caches, latency and a distillation step" },
  length = { "int", help = "tokens a row; 2048, at most the context, where not named" },
  engine = { "string", default = "transformers", one_of = engines.names, help = "whose limits a shape must keep" },
  axes = { "list", default = { "hidden", "ffn", "heads", "layers" }, help = "what a budget may cut" },
  precision = { "string", default = "f32", one_of = product.names, help = "of the products of a distillation step" },
  tokens = { "tokens", help = "of a distillation run, for its disk and its time" },
  rate = { "number", help = "tokens a second of that run; measured on this machine where not named" }, quiet = { "bool", default = false },
}
for name, rule in pairs(goals.options) do own[name] = rule end

--- esp.plan(path, name or model, opt) -> plan; print it, or read plan.before, plan.after, plan.memory, plan.disk, plan.time, plan.neighbours,
-- plan.request (what esp.prune takes). No weight is read.
-- opt: what esp.prune takes (hidden, ffn, heads, kv_heads, layers, drop, drop_attention, drop_mlp), batch (1) and length (2048, at most the context)
-- for caches and for a distillation step, precision ("f32") of its products; tokens: of a distillation run, whose disk and time are then told, the
-- time from a rate (tokens a second) that is measured on this machine unless rate names it.
-- Budgets instead of sizes, alone or together: params, non_embedding, memory (weights and KV cache in bf16), latency (one forward pass over batch x
-- length tokens: a few layers are measured and interpolated, the shape that is chosen is measured whole). They walk the grid of axes (hidden, ffn,
-- heads, layers), sizes that are named stay; plan.found holds for each set of axes the most even cut that keeps all of them.
-- Illegal sizes are refused with the nearest legal ones and the rule they break; engine = "any" lifts what transformers demands.
function M.plan(what, opt)
  opt = legal.parse("plan", opt, own)
  local source = sources.open(what)
  local s = source.shape
  opt.length = opt.length or math.min(2048, s.context)
  if opt.length > s.context then fail("plan: length = %d, the model's context is %d tokens", opt.length, s.context) end
  local found
  for name in pairs(goals.options) do if opt[name] then found = found or choose(opt, source) end end
  local request = opt
  if found then
    request = found.grid:request(found.pick)
    if found.goals.latency then found.measured = measure.model(legal.result(s, request, legal.check("plan", s, request)), opt.batch, opt.length) end
  end
  local after = legal.result(s, request, legal.check("plan", s, request))
  refuse_what_engines_refuse(opt, source, after)
  local plan = setmetatable({ where = source.where, stored = source.stored, before = facts(s, opt), after = facts(after, opt), batch = opt.batch,
    length = opt.length, precision = opt.precision, found = found,
    memory = runs.memory(s, after, { batch = opt.batch, length = opt.length, precision = opt.precision }),
    request = found and request or sizes_of(opt),
    neighbours = neighbours(s, after, opt, source) }, Plan)
  if opt.tokens then
    plan.tokens, plan.disk = opt.tokens, runs.disk(s, after, opt.tokens)
    plan.measured_rate = not opt.rate
    plan.rate = opt.rate or runs.rate(s, after, opt.length)
    plan.time = opt.tokens / plan.rate
  end
  return plan
end

function Plan:__tostring()
  return require("espalier.plan.text")(self)
end

return M
