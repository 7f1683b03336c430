--- The stages of a search: losses of parts, the shortlist that they make of the grid, true scores of those. Each ends early where search.late() says
-- so, and leaves what it has.

local progress = require "espalier.progress"
local slices = require "espalier.prune.slice"
local shortlist = require "espalier.search.shortlist"
local layerwise = require "espalier.search.layerwise"
local rows = require "espalier.search.rows"
local fail = require "espalier.fail"

local M = {}

-- Losses of parts. Measuring them takes a while, so the best by importance is scored before: there is a best from the first run on.
local function parts_of(o, self, grid, budget, kept)
  if o.score == "kept" then return kept end
  local first = shortlist.walk(grid, budget, shortlist.loss(self.model.shape, kept, self.orders.layers), 1, { quiet = o.quiet }).list[1]
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

--- Losses of parts, or nil where the score is a function; and the loss of a cell.
function M.losses(o, self, ranking, grid, budget)
  if type(o.score) == "function" then return nil, o.score end
  if o.score ~= "kept" and o.score ~= "kl" then fail("esp.search: score is %s, want \"kept\", \"kl\" or a function of a cell", tostring(o.score)) end
  local s, order = self.model.shape, self.orders.layers
  local parts = parts_of(o, self, grid, budget, require("espalier.search.kept").new(s, ranking, self.orders, self.model))
  return parts, shortlist.loss(s, parts, order)
end

--- Fills self.rows with the candidates that are worth a score.
function M.shortlist(o, self, grid, parts, loss, budget)
  local found = shortlist.walk(grid, budget, loss, o.top, { quiet = o.quiet, late = self.late })
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
  for _, f in ipairs(layerwise.shapes(grid, parts, budget, o.budget, math.max(1, math.floor(o.top / 3)), self.late)) do
    self.rows[#self.rows + 1] = rows.new(self.model.shape, f.request, f.cheap, o.budget, budget.latency)
  end
end

--- True scores, the most promising first; known: of an earlier start, by name.
function M.rescore(o, self, known)
  local bar = progress.new { label = "re-scoring", total = #self.rows, quiet = o.quiet, after = 2 }
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
  end
  bar:stop()
end

return M
