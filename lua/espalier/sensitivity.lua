--- Which part should go: every axis cut to the same number of parameters, before retraining or after a short one, in one table.

local core = require "espalier.ffi"
local evaluation = require "espalier.eval"
local shapes = require "espalier.models.shape"
local legal = require "espalier.prune.legal"
local ranking = require "espalier.importance.ranking"
local tensor = require "espalier.tensor"
local options = require "espalier.options"
local quantity = require "espalier.quantity"
local budget = require "espalier.budget"
local fail = require "espalier.fail"

local M = {}
local Table = {}
Table.__index = Table

local axes = { "hidden", "ffn", "heads", "layers" }

-- Sizes that an axis can be cut to, from the largest: numbers of heads divide among their groups.
local function sizes_of(s, axis)
  local step = axis == "heads" and (type(s.kv_heads) == "table" and math.max(unpack(s.kv_heads)) or s.kv_heads) or 1
  local most = type(s[axis]) == "table" and math.max(unpack(s[axis])) or s[axis]
  local list = {}
  for size = most - step, step, -step do list[#list + 1] = size end
  -- One head in each group left and still too large: whole groups go, with their keys and values.
  if axis == "heads" and step > 1 then
    for groups = step - 1, 1, -1 do list[#list + 1] = { groups = groups, heads = groups * most / step } end
  end
  return list
end

local function request_of(axis, size)
  if type(size) == "table" then return { heads = size.heads, kv_heads = size.groups } end
  return { [axis] = size }
end

local function parameters_of(s, request)
  local ok, sets = pcall(legal.check, "sensitivity", s, request)
  return ok and shapes.parameters((legal.result(s, request, sets))) or nil
end

-- The request along an axis whose parameter count is nearest to the goal.
local function nearest(s, axis, goal)
  local best, distance, count
  for _, size in ipairs(sizes_of(s, axis)) do
    local request = request_of(axis, size)
    local n = parameters_of(s, request)
    if n and (not distance or math.abs(n - goal) < distance) then best, distance, count = request, math.abs(n - goal), n end
  end
  return best, count
end

-- The same sizes with the channels, heads or layers drawn instead of ranked.
local function random_ranking(stats, seed)
  local drawn = { metric = "random", seed = seed }
  return stats:rank { hidden = drawn, ffn = drawn, heads = drawn }
end

local function random_layers(s, request, seed)
  if not request.layers then return nil end
  return { layers = ranking.best(tensor.uniform({ s.layers }, { seed = seed, stream = 77 }):table(), request.layers) }
end

local function candidates(model, stats, opt)
  local s, list = model.shape, {}
  local total = shapes.parameters(s)
  -- Layers come in the coarsest steps: the goal is what whole layers can reach.
  local goal = (1 - opt.remove) * total
  for _, axis in ipairs(opt.axes) do
    if axis == "layers" then
      local _, count = nearest(s, "layers", goal)
      goal = count or goal
    end
  end
  local random
  for _, axis in ipairs(opt.axes) do random = random or axis == "random" end
  for _, axis in ipairs(opt.axes) do
    if axis ~= "random" then
      local request, count = nearest(s, axis, goal)
      if not request then fail("esp.sensitivity: nothing can be cut along %s", axis) end
      local near = math.abs(count - goal) <= 0.01 * total
      list[#list + 1] = { axis = axis, request = request, scores = stats, equal = near }
      if random then
        list[#list + 1] = { axis = axis .. ", random", request = request, scores = random_ranking(stats, opt.seed), equal = near,
          keep = random_layers(s, request, opt.seed) }
      end
    end
  end
  return list, goal
end

local function say_request(r)
  local parts = {}
  for _, name in ipairs { "hidden", "ffn", "heads", "kv_heads", "layers" } do
    if r[name] then parts[#parts + 1] = name .. " " .. r[name] end
  end
  return table.concat(parts, ", ")
end

local function score(row, student, model, data, batch)
  local lists, seconds = evaluation.by_document(student, data, batch, model)
  row.nll, row.interval = evaluation.mean_with_interval(lists.nll, lists.predictions)
  row.kl, row.kl_interval = evaluation.mean_with_interval(lists.kl, lists.positions)
  row.tokens_per_second = data:rows() * data.seq / seconds
  row.documents = #lists.nll
end

local function short_distillation(row, student, model, train, held_out, opt)
  local run = require("espalier.distill").distill { teacher = model, student = student, data = train, batch = opt.batch, tokens = opt.kd,
    seed = opt.seed, quiet = true }
  local lists = evaluation.by_document(run.model, held_out, opt.batch)
  row.kd_nll, row.kd_interval = evaluation.mean_with_interval(lists.nll, lists.predictions)
end

-- Two models, one batch of activations and a chunk of logits of each.
local function refuse_if_too_big(model, data, batch)
  local s = model.shape
  local widest = 0
  for l = 0, s.layers - 1 do widest = math.max(widest, 3 * shapes.at(s, "ffn", l) + 4 * shapes.at(s, "heads", l) * s.head_dim) end
  local a_row = 4 * data.seq * (widest + 6 * s.hidden)
  local models = 8 * shapes.parameters(s) + 8 * 256 * s.vocab
  local free = tonumber(core.C.esp_memory_available())
  local fits = math.floor((free - models) / a_row)
  budget.refuse_if_too_big("esp.sensitivity", models + batch * a_row,
    fits >= 1 and "batch = " .. fits .. " would fit" or "no batch fits beside the model")
end

--- Cuts each axis to one parameter count and scores what is left: esp.sensitivity(model, stats, data [, opt]) -> table to print, or to read by rows:
-- { axis, request, parameters, nll, interval, kl, kl_interval, tokens_per_second, equal, kd_nll, kd_interval }.
-- data: held-out rows, or a split (its held_out is scored, its train retrains). opt.remove: share of all parameters to cut (0.2), rounded to
-- what whole layers can reach; opt.axes: of hidden, ffn, heads, layers, random (all; random adds to each axis the same cut drawn at random);
-- opt.kd = "200k": tokens of a distillation after the cut; opt.batch rows (4); opt.time: cap, candidates that are left are named; opt.seed.
-- nll, kl: means in nats with 95 % intervals over documents; equal: is the count within 1 % of the model's parameters of the goal?
function M.sensitivity(model, stats, data, opt)
  opt = options.check("esp.sensitivity", opt, { remove = { "percent", default = 0.2 }, axes = { "list" }, kd = { "tokens" },
    batch = { "int", default = 4 }, time = { "seconds" }, seed = { "int", default = 0 }, quiet = { "bool", default = false } })
  if type(model) ~= "table" or not model.decoder then fail("esp.sensitivity: the first argument is %s, want a model", type(model)) end
  if type(stats) ~= "table" or not stats.rank then fail("esp.sensitivity: the second argument is %s, want statistics", type(stats)) end
  if type(data) ~= "table" then fail("esp.sensitivity: the third argument is %s, want data", type(data)) end
  if not (opt.remove > 0 and opt.remove < 1) then fail("esp.sensitivity: remove = %g, want a share between 0 and 1", opt.remove) end
  opt.axes = opt.axes or { "hidden", "ffn", "heads", "layers", "random" }
  for _, axis in ipairs(opt.axes) do
    local known = axis == "random"
    for _, a in ipairs(axes) do known = known or a == axis end
    if not known then fail("esp.sensitivity: unknown axis '%s', want hidden, ffn, heads, layers or random", tostring(axis)) end
  end
  local train, held_out = data.train, data.held_out or data
  if opt.kd and not train then fail("esp.sensitivity: kd needs data to train on; give a split of esp.data, whose held_out side is scored") end
  held_out:use(model, "esp.sensitivity")
  refuse_if_too_big(model, held_out, opt.batch)
  local list, goal = candidates(model, stats, opt)
  local out = setmetatable({ rows = {}, left_out = {}, goal = goal, kd = opt.kd, remove = opt.remove }, Table)
  local watch = budget.watch { what = "sensitivity", steps = #list + 1, time = opt.time, quiet = opt.quiet }
  local full = { axis = "nothing", request = {}, parameters = shapes.parameters(model.shape), equal = true }
  score(full, model, model, held_out, opt.batch)
  out.rows[1] = full
  local stopped = watch:step(1)
  for i, c in ipairs(list) do
    if stopped then
      out.left_out[#out.left_out + 1] = c.axis
    else
      local request = { keep = c.keep, quiet = true }
      for k, v in pairs(c.request) do request[k] = v end
      local student = require("espalier.prune").prune(model, c.scores, request)
      local row = { axis = c.axis, request = c.request, parameters = shapes.parameters(student.shape), equal = c.equal }
      score(row, student, model, held_out, opt.batch)
      if opt.kd then short_distillation(row, student, model, train, held_out, opt) end
      out.rows[#out.rows + 1] = row
      for _, t in pairs(student:parameters()) do t:free() end
      stopped = watch:step(i + 1)
    end
  end
  return out
end

function Table:__tostring()
  local lines = { string.format("cut to about %s parameters%s. Retraining can change this order%s.", quantity.show_exact(self.goal),
    self.kd and ", then distilled for " .. quantity.show_count(self.kd) .. " tokens" or ", not retrained",
    self.kd and "; so can a longer one" or ": ask with kd = \"200k\" before you trust it") }
  lines[#lines + 1] = string.format("%-16s %-22s %14s  %-17s  %-17s  %8s%s", "axis", "kept", "parameters", "NLL", "KL to the model", "tok/s",
    self.kd and "  NLL distilled" or "")
  for _, r in ipairs(self.rows) do
    lines[#lines + 1] = string.format("%-16s %-22s %14s  %7.4f +- %-6.4f  %7.4f +- %-6.4f  %8s%s", r.axis, say_request(r.request),
      quantity.show_exact(r.parameters) .. (r.equal and "" or " *"), r.nll, r.interval, r.kl, r.kl_interval, quantity.show_count(r.tokens_per_second),
      r.kd_nll and string.format("  %7.4f +- %.4f", r.kd_nll, r.kd_interval) or "")
    if not r.equal then self.unequal = true end
  end
  if self.unequal then lines[#lines + 1] = "* this axis alone cannot reach that count; the row is no fair comparison" end
  if #self.left_out > 0 then lines[#lines + 1] = "not scored, the time was up: " .. table.concat(self.left_out, "; ") end
  lines[#lines + 1] = "intervals: 95 % over documents"
  return table.concat(lines, "\n")
end

return M
