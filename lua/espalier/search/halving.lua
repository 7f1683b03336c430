--- Successive halving (1502.07943): the finalists of a search are distilled for a while, the better half goes on for twice as long, until one leads.
-- Each round is a sweep in OUT/round.N: its cells are processes of their own, resume where they were stopped, and are never run twice.

local rows = require "espalier.search.rows"
local slices = require "espalier.prune.slice"
local shapes = require "espalier.models.shape"
local file = require "espalier.io.file"
local fail = require "espalier.fail"

local M = {}

--- Options of kd.
M.options = {
  tokens = { "tokens", required = true, help = "of each finalist in the first round; doubled in each round" },
  finalists = { "int", default = 4 }, batch = { "int", default = 8 }, seed = { "int", default = 0 }, loss = { "table" }, schedule = { "table" },
  parallel = { "int", default = 1 }, retry = { "string", default = "no", one_of = { "no", "failed", "stale", "all" } },
}

-- Distils one candidate for one round: from the pruned model in the first, from where the round before ended afterwards.
local function cell_of(search, kd, student_of)
  return function(cell)
    local run = require("espalier.distill").distill { teacher = search.model, student = student_of(cell), data = search.data, batch = kd.batch,
      tokens = cell.tokens, seed = kd.seed, loss = kd.loss, schedule = kd.schedule, out = cell.out }
    return { label = cell.candidate, nll = run.nll, interval = run.interval, parameters = shapes.parameters(run.model.shape),
      model = file.join(cell.out, "model") }
  end
end

local function round(search, kd, number, list)
  local by_name, cells, before = {}, {}, {}
  for i, row in ipairs(list) do
    by_name[row.name], before[row.name] = row, row.kd_model
    cells[i] = { candidate = row.name, round = number, tokens = kd.tokens * 2 ^ (number - 1) }
  end
  local function student_of(cell)
    local path = before[cell.candidate]
    return path and require("espalier.models").load(path) or slices.slice(search.sorted, by_name[cell.candidate].request):materialize()
  end
  local sweep = require("espalier.sweep").sweep { title = "search, round " .. number, cells = cells, out = file.join(search.out, "round." .. number),
    parallel = kd.parallel, retry = kd.retry, quiet = search.quiet, run = cell_of(search, kd, student_of) }
  for _, cell in ipairs(sweep.cells) do
    local row = by_name[cell.options.candidate]
    if cell.state == "done" then
      row.round, row.kd_nll, row.kd_interval, row.kd_model = number, cell.result.nll, cell.result.interval, cell.result.model
    else
      row.failed = cell.error or cell.state
    end
  end
end

--- Runs all rounds. search: { model, sorted, data (a split), out, quiet, rows, late() }; kd: as M.options; progress(): called after each round.
function M.run(search, kd, progress)
  if not (type(search.data) == "table" and search.data.train and search.data.held_out) then
    fail("esp.search: kd trains, so data must be a split: esp.data.open(..):split { held_out = \"5%%\" }")
  end
  if not search.out then fail("esp.search: kd runs cells of a sweep, which need a folder: give out") end
  local list, number = {}, 0
  for i = 1, math.min(kd.finalists, #search.rows) do if search.rows[i].nll then list[#list + 1] = search.rows[i] end end
  while #list > 0 and not search.late() do
    number = number + 1
    round(search, kd, number, list)
    local through = {}
    for _, row in ipairs(list) do if row.round == number then through[#through + 1] = row end end
    rows.sort(through)
    progress(through[1])
    list = {}
    if #through > 2 then
      for i = 1, math.ceil(#through / 2) do list[i] = through[i] end
    end
  end
end

return M
