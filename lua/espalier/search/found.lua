--- What a search has found: rows, the best of them, fronts; and the folder that holds it.

local file = require "espalier.io.file"
local json = require "espalier.io.json"
local options = require "espalier.options"
local slices = require "espalier.prune.slice"
local rows = require "espalier.search.rows"
local text = require "espalier.search.text"
local fail = require "espalier.fail"

local Search = {}
Search.__index = Search

--- Writes OUT/search.json, where there is an `out`.
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

--- Puts a row's model in OUT/best.
function Search:keep_best(row)
  if not self.out or not row or self.saved == row then return end
  local model = row.kd_model and require("espalier.models").load(row.kd_model) or self:model_of(row)
  model:save(file.join(self.out, "best"), { quiet = true })
  self.saved = row
end

--- Marks the front and sorts the rows, once they are scored.
function Search:summarise()
  local cheap, nll = {}, {}
  for _, r in ipairs(self.rows) do if r.nll then cheap[#cheap + 1], nll[#nll + 1] = r.cheap, r.nll end end
  self.correlation = rows.rank_correlation(cheap, nll)
  rows.mark_front(self.rows)
  rows.sort(self.rows)
  self:write()
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
  return text.of_search(self)
end

local Front = {}
Front.__index = Front
function Front:__tostring() return text.of_front(self, self.measure, self.whole, self.of) end

--- The front of loss against "parameters", "memory" or "latency": the scored rows of which no other has less of both, the smallest first; prints as
-- a table with bars. Latency is there where it was a budget or asked for (fronts).
function Search:front(measure)
  measure = options.check("search:front", { measure = measure }, { measure = { "string", required = true, one_of = rows.measures } }).measure
  if not self.rows[1][measure] then fail("search:front: latency was not measured; give esp.search fronts = { \"latency\" }, or a budget of it") end
  local front, scored = rows.front(self.rows, measure), 0
  for _, r in ipairs(self.rows) do if r.nll then scored = scored + 1 end end
  front.measure, front.whole, front.of = measure, self.nll, scored
  return setmetatable(front, Front)
end

return Search
