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
local progress = require "espalier.progress"
local configs = require "espalier.models.config"
local hash = require "espalier.models.hash"
local grids = require "espalier.plan.grid"
local goals = require "espalier.plan.goals"
local sort = require "espalier.prune.sort"
local slices = require "espalier.prune.slice"
local shortlist = require "espalier.search.shortlist"
local layerwise = require "espalier.search.layerwise"
local scorers = require "espalier.search.scorer"
local halving = require "espalier.search.halving"
local rows = require "espalier.search.rows"
local fail = require "espalier.fail"

local M = {}
local Search = {}
Search.__index = Search

local spec = {
  model = { "model", required = true }, stats = { "table", required = true }, data = { "any", required = true }, budget = { "table", default = {} },
  axes = { "list", default = { "hidden", "ffn", "heads", "layers" } }, score = { "any", default = "kl" }, top = { "int", default = 24 },
  tokens = { "tokens", default = 4096 }, batch = { "int", default = 4 }, per_layer = { "bool", default = false }, kd = { "table" }, out = { "path" },
  precision = { "string", one_of = product.names },
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

function Search:write()
  if not self.out then return end
  local list = {}
  for i, r in ipairs(self.rows) do
    list[i] = { name = r.name, request = r.request, parameters = r.parameters, memory = r.memory, latency = r.latency, cheap = r.cheap, nll = r.nll,
      kl = r.kl, round = r.round, kd_nll = r.kd_nll, kd_interval = r.kd_interval, front = r.front }
  end
  json.write(file.join(self.out, "search.json"), { key = self.key, nll = self.nll, seen = self.seen, fitting = self.fitting,
    rows = json.array(list) })
end

-- Puts a row's model in OUT/best.
function Search:keep_best(row)
  if not self.out or not row or self.saved == row then return end
  local model = row.kd_model and require("espalier.models").load(row.kd_model) or self:model_of(row)
  model:save(file.join(self.out, "best"), { quiet = true })
  self.saved = row
end

-- ---- stages ----

-- Losses of parts. Measuring them takes a while, so the best by importance is scored before: there is a best from the first run on.
local function parts_of(o, self, grid, budget, kept)
  if o.score == "kept" then return kept end
  local first = shortlist.walk(grid, budget, shortlist.loss(self.model.shape, kept, self.orders.layers), 1).list[1]
  local row = rows.new(self.model.shape, grid:request(first), first.cheap, o.budget, budget.latency)
  local score = self.scorer:score(slices.slice(self.scoring, row.request))
  row.nll, row.kl = score.nll, score.kl
  self.rows, self.scored = { row }, 1
  self:keep_best(row)
  self:write()
  local parts = require("espalier.search.measured").new(self.scoring, grid, self.scorer, { quiet = o.quiet, late = self.late })
  if not parts then self.stopped = "the parts were not all measured; candidates are ranked by importance kept" end
  return parts or kept
end

local function losses(o, self, ranking, grid, budget)
  if type(o.score) == "function" then return nil, o.score end
  if o.score ~= "kept" and o.score ~= "kl" then fail("esp.search: score is %s, want \"kept\", \"kl\" or a function of a cell", tostring(o.score)) end
  local s, order = self.model.shape, self.orders.layers
  local parts = parts_of(o, self, grid, budget, require("espalier.search.kept").new(s, ranking, self.orders, self.model))
  return parts, shortlist.loss(s, parts, order)
end

local function shortlisted(o, self, grid, parts, loss, budget)
  local found = shortlist.walk(grid, budget, loss, o.top)
  self.seen, self.fitting = found.seen, found.fitting
  local first = self.rows[1]
  self.rows = {}
  for _, c in ipairs(found.list) do
    local row = rows.new(self.model.shape, grid:request(c), c.cheap, o.budget, budget.latency)
    if first and first.name == row.name then row.nll, row.kl, first = first.nll, first.kl, nil end
    self.rows[#self.rows + 1] = row
  end
  if first then
    first.cheap = loss(grid:cell(first.request))
    self.rows[#self.rows + 1] = first
  end
  if not o.per_layer then return end
  if #budget == 0 then fail("esp.search: per_layer chooses within a budget; give one of params, non_embedding, memory, latency") end
  if not parts then fail("esp.search: per_layer needs losses of parts; score must be \"kept\" or \"kl\"") end
  for _, f in ipairs(layerwise.shapes(grid, parts, budget, o.budget, math.max(1, math.floor(o.top / 3)))) do
    self.rows[#self.rows + 1] = rows.new(self.model.shape, f.request, f.cheap, o.budget, budget.latency)
  end
end

-- True scores, the most promising first; stops where the time is up, keeps what is done where interrupted.
local function rescore(o, self, known)
  local bar = progress.new { label = "re-scoring", total = #self.rows, quiet = o.quiet }
  local best
  table.sort(self.rows, function(a, b) return a.cheap < b.cheap or (a.cheap == b.cheap and a.name < b.name) end)
  for i, row in ipairs(self.rows) do
    local before = row.nll and row or known[row.name]
    if before and before.nll then
      row.nll, row.kl = before.nll, before.kl
    elseif i > 1 and self.late() then
      self.stopped = string.format("%d of %d candidates were not scored", #self.rows - i + 1, #self.rows)
      break
    else
      local score = self.scorer:score(slices.slice(self.scoring, row.request))
      row.nll, row.kl = score.nll, score.kl
    end
    self.scored = i
    if not best or row.nll < best.nll then
      best = row
      self:keep_best(row)
    end
    self:write()
    bar:update(i, string.format("best NLL %.4f", best.nll))
    if core.C.esp_interrupted() ~= 0 then
      fail("interrupted; %s", o.out and "the same call goes on from " .. o.out or "nothing was kept: give out")
    end
  end
  bar:stop()
end

local function summarise(self)
  local cheap, nll = {}, {}
  for _, r in ipairs(self.rows) do if r.nll then cheap[#cheap + 1], nll[#nll + 1] = r.cheap, r.nll end end
  self.correlation = rows.rank_correlation(cheap, nll)
  rows.mark_front(self.rows)
  rows.sort(self.rows)
  self:write()
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
-- precision: of the products that score, the model's unless said: "f32", or "bf16", about twice as fast where the processor has avx512_bf16.
-- out: folder; the same call goes on where it stopped, Ctrl-C keeps what is done. engine: as esp.plan's.
function M.search(opt)
  local o = options.check("esp.search", opt, spec)
  local ranking, kd = prepared(o)
  local start = core.C.esp_clock()
  local self = setmetatable({ model = o.model, data = o.data, out = o.out, quiet = o.quiet, rows = {}, scored = 0, by = "a function" }, Search)
  self.late = function() return o.budget.time ~= nil and core.C.esp_clock() - start >= o.budget.time end
  self.sorted = sort.sort(o.model, ranking)
  self.scoring = self.sorted:in_precision(o.precision or o.model.precision or "f32")
  self.orders = sort.orders(self.sorted)
  self.key = key_of(o, ranking)
  local known = known_scores(o, self.key)
  local grid = grids.new(o.model.shape, { axes = o.axes, engine = o.engine, architecture = configs.kind(o.model.shape, o.model.config),
    order = self.orders.layers, what = "esp.search" })
  local budget = goals.of(o.budget, grid)
  self.limits = said_limits(budget)
  self.scorer = scorers.new(self.scoring, o.data, { tokens = o.tokens, batch = o.batch })
  self.tokens, self.nll = self.scorer.tokens, self.scorer:score(slices.slice(self.scoring, {})).nll
  local parts, loss = losses(o, self, ranking, grid, budget)
  self.by = parts and parts.name or self.by
  shortlisted(o, self, grid, parts, loss, budget)
  rescore(o, self, known)
  summarise(self)
  self.scorer:free()
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

--- The model of a row (the best where none is given): distilled where it was, else cut from the sorted model.
function Search:model_of(row)
  return slices.slice(self.sorted, row.request):materialize()
end

--- The best model found: distilled where kd was asked for.
function Search:best()
  local row = self.rows[1]
  return row.kd_model and require("espalier.models").load(row.kd_model) or self:model_of(row)
end

function Search:__tostring()
  return require("espalier.search.text")(self)
end

return M
