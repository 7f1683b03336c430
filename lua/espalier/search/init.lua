--- Search: from every legal shape within budgets to the best candidate, by cheaper and dearer scores in turn.
--
-- The grid is walked and ranked by an additive loss; the best, and the best of each range of sizes, are scored truly as slices of the sorted model;
-- finalists may then be distilled, the better half of them longer (search/halving.lua). What is known so far lies in OUT/search.json, the best model
-- so far in OUT/best, from the first score on; the same call goes on from there.

local core = require "espalier.ffi"
local file = require "espalier.io.file"
local json = require "espalier.io.json"
local options = require "espalier.options"
local product = require "espalier.product"
local configs = require "espalier.models.config"
local hash = require "espalier.models.hash"
local grids = require "espalier.plan.grid"
local goals = require "espalier.plan.goals"
local latency = require "espalier.plan.latency"
local sort = require "espalier.prune.sort"
local slices = require "espalier.prune.slice"
local found = require "espalier.search.found"
local stages = require "espalier.search.stages"
local scorers = require "espalier.search.scorer"
local halving = require "espalier.search.halving"
local rows = require "espalier.search.rows"
local gently = require "espalier.importance.gently"
local fail = require "espalier.fail"

local M = {}

local spec = {
  model = { "model", required = true }, stats = { "table", required = true }, data = { "any", required = true }, budget = { "table", default = {} },
  axes = { "list", default = { "hidden", "ffn", "heads", "layers" } }, score = { "any", default = "kl" }, top = { "int", default = 24 },
  tokens = { "tokens", default = 4096 }, batch = { "int", default = 4 }, per_layer = { "bool", default = false }, kd = { "table" }, out = { "path" },
  precision = { "string", one_of = product.names },
  fronts = { "list", default = {} },
  engine = { "string", default = "transformers", one_of = require("espalier.plan.engines").names }, quiet = { "bool", default = false },
}

local function budget_options()
  local own = { batch = { "int", default = 1 }, length = { "int" }, time = { "seconds" }, quiet = { "bool" } }
  for name, rule in pairs(goals.options) do own[name] = rule end
  return own
end

-- ---- on disk ----

-- What distinguishes one search from another.
local function key_of(o, ranking)
  local parts = { hash(o.model), ranking.stats:hash(), tostring(ranking), o.engine, tostring(o.score), o.tokens, o.batch, tostring(o.per_layer),
    o.precision or o.model.precision or "f32" }
  local b = {}
  for name, v in pairs(o.budget) do if name ~= "time" and name ~= "quiet" then b[#b + 1] = name .. "=" .. tostring(v) end end
  for k, v in pairs(o.axes) do b[#b + 1] = tostring(k) .. "=" .. (type(v) == "table" and table.concat(v, ",") or tostring(v)) end
  table.sort(b)
  return file.hash_text(table.concat(parts, "\n") .. table.concat(b, "\n"))
end

-- Scores of an earlier start by the name of the candidate.
local function known_scores(o, key)
  local path = o.out and file.join(o.out, "search.json")
  if not path or not file.kind(path) then return {} end
  local record = json.read(path)
  if record.key ~= key then
    fail("esp.search: %s holds a search of another model, statistics, budget or axes; name another folder for out", o.out)
  end
  local known = {}
  for _, r in ipairs(record.rows) do known[r.name] = r end
  return known
end

local function said_limits(budget)
  local parts = {}
  for _, g in ipairs(budget) do parts[#parts + 1] = g.name .. " " .. g.show(g.limit) end
  return table.concat(parts, ", ")
end

local function prepared(o)
  local ranking = o.stats.rank and o.stats:rank {} or o.stats
  if not ranking.orders then fail("esp.search: stats is %s, want statistics or a ranking", type(o.stats)) end
  o.budget = options.check("esp.search: budget", o.budget, budget_options())
  o.budget.length = o.budget.length or math.min(2048, o.model.shape.context)
  o.budget.quiet = o.quiet
  local kd = o.kd and options.check("esp.search: kd", o.kd, halving.options)
  for _, measure in ipairs(o.fronts) do options.check("esp.search", { fronts = measure }, { fronts = { "string", one_of = rows.measures } }) end
  if o.top < 1 then fail("esp.search: top = %d, want at least 1", o.top) end
  if o.out then file.make(o.out) end
  return ranking, kd
end

--- esp.search{ model, stats, data, budget, axes, score, top, .. } -> search: print it, or read search.rows (best first: name, request, shape,
-- parameters, memory, latency, cheap, nll, kl, kd_nll, front), search:best(), search.correlation.
-- stats: statistics or a ranking of the model; data: held-out rows (a split where kd trains); budget: any of params, non_embedding, memory, latency
-- (with batch 1 and length), and time ("20min"): what is not scored then is told, the best so far stands in OUT/best.
-- axes: as esp.plan's grid, names or lists of sizes; score: "kl" (KL of each part cut, measured), "kept" (importance that stays), or a function of a
-- cell (hidden, ffn, heads, kv_heads, layers, parameters ..) giving a loss; top: candidates scored truly (24) on `tokens` (4096) held-out tokens;
-- per_layer: also shapes whose layers differ, by a knapsack; kd = { tokens, finalists = 4, batch, .. }: successive halving, in a recipe, with out.
-- fronts: a list of "parameters", "memory" and "latency" (one forward pass over batch x length tokens on this machine, from measured layers): the
-- fronts of loss against each are printed behind the table; search:front(measure) gives one.
-- precision: of the products that score, the model's unless said: "f32", or "bf16", about twice as fast where the processor has avx512_bf16.
-- out: folder; the same call goes on where it stopped, Ctrl-C keeps what is done. engine: as esp.plan's.
function M.search(opt)
  local o = options.check("esp.search", opt, spec)
  local ranking, kd = prepared(o)
  local start = core.C.esp_clock()
  local self = setmetatable({ model = o.model, data = o.data, out = o.out, quiet = o.quiet, rows = {}, scored = 0, by = "a function",
    fronts = o.fronts }, found)
  self.sorted = sort.sort(o.model, ranking)
  self.scoring = self.sorted:in_precision(o.precision or o.model.precision or "f32")
  self.orders = sort.orders(self.sorted)
  self.key = key_of(o, ranking)
  local known = known_scores(o, self.key)
  local grid = grids.new(o.model.shape, { axes = o.axes, engine = o.engine, architecture = configs.kind(o.model.shape, o.model.config),
    order = self.orders.layers, what = "esp.search" })
  local budget = goals.of(o.budget, grid)
  for _, measure in ipairs(o.fronts) do
    if measure == "latency" then budget.latency = budget.latency or latency.new(grid, o.budget.batch, o.budget.length, o.quiet) end
  end
  self.limits = said_limits(budget)
  self.scorer = scorers.new(self.scoring, o.data, { tokens = o.tokens, batch = o.batch })
  self.tokens, self.nll = self.scorer.tokens, self.scorer:score(slices.slice(self.scoring, {})).nll
  local ok, problem = gently.run(function(stop)
    self.late = function()
      self.interrupted = self.interrupted or stop()
      return self.interrupted or o.budget.time ~= nil and core.C.esp_clock() - start >= o.budget.time
    end
    local parts, loss = stages.losses(o, self, ranking, grid, budget)
    self.by = parts and parts.name or self.by
    stages.shortlist(o, self, grid, parts, loss, budget)
    stages.rescore(o, self, known)
  end)
  if not ok then error(problem, 0) end
  self:summarise()
  self.scorer:free()
  if self.stopped and self.interrupted then
    gently.stopped("esp.search: stopped" .. (o.out and "; the same call goes on from " .. o.out or ""), tostring(self))
    return self
  end
  if kd then
    halving.run(self, kd, function(best)
      self:keep_best(best)
      self:write()
    end)
    rows.sort(self.rows)
    self:keep_best(self.rows[1])
    self:write()
  end
  return self
end

return M
