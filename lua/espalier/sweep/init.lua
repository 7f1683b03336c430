--- Sweeps: a grid of cells, each in a process of its own, that a kill cannot lose and a second start does not run again.
--
-- A child is the same recipe with the same arguments and ESPALIER_CELL in its environment: it runs up to its call of esp.sweep, which then runs that
-- one cell and ends the process. So a recipe's `run` is an ordinary closure; what stands before esp.sweep is run by each child too and should
-- be quick or find its work done (runs with an `out` do).

local core = require "espalier.ffi"
local file = require "espalier.io.file"
local process = require "espalier.io.process"
local options = require "espalier.options"
local cells = require "espalier.sweep.cell"
local summary = require "espalier.sweep.summary"
local quantity = require "espalier.quantity"
local fail = require "espalier.fail"

local M = {}
local Sweep = {}
Sweep.__index = Sweep

-- The grid: each of opt.cells (one empty where there are none) times each value of each axis, the last axis running fastest.
local function grid(opt)
  local list = {}
  for i, c in ipairs(opt.cells or { {} }) do
    if type(c) ~= "table" then fail("esp.sweep: cells[%d] is %s, want a table of options", i, type(c)) end
    list[i] = c
  end
  for i, axis in ipairs(opt.axes or {}) do
    local name, values = axis[1], axis[2]
    if type(name) ~= "string" or type(values) ~= "table" or #values == 0 then
      fail("esp.sweep: axes[%d] is no axis; write { \"lr\", { 1e-4, 3e-4 } }", i)
    end
    local longer = {}
    for _, c in ipairs(list) do
      if c[name] ~= nil then fail("esp.sweep: '%s' is an axis and stands in a cell too", name) end
      for _, v in ipairs(values) do
        local one = {}
        for k, x in pairs(c) do one[k] = x end
        one[name] = v
        longer[#longer + 1] = one
      end
    end
    list = longer
  end
  return list
end

-- The options' names in the order in which the writer named them: axes first, then those of the cells.
local function names_of(opt, list)
  local names, seen = {}, {}
  local function add(name)
    if not seen[name] then names[#names + 1], seen[name] = name, true end
  end
  local rest = {}
  for _, c in ipairs(list) do for k in pairs(c) do rest[#rest + 1] = k end end
  table.sort(rest)
  local axes = {}
  for _, axis in ipairs(opt.axes or {}) do axes[axis[1]] = true end
  for _, k in ipairs(rest) do if not axes[k] then add(k) end end
  for _, axis in ipairs(opt.axes or {}) do add(axis[1]) end
  return names
end

-- What a child is started with: the program, the recipe and its arguments.
local function command()
  local args = rawget(_G, "arg")
  if not (args and args[0] and file.kind(args[0]) == "file") then
    fail("esp.sweep: each cell runs in a process of its own, which needs a recipe file; write the sweep to one and run it")
  end
  local argv = { process.program(), args[0] }
  for i = 1, #args do argv[#argv + 1] = args[i] end
  return argv, file.hash(args[0])
end

local wait_for = 0.02

-- Is the cell to be run now?
local function is_due(record, retry)
  if record.state == "pending" then return true end
  if record.state == "interrupted" then return record.interruptions < 2 or retry == "failed" or retry == "all" end
  if record.state == "failed" then return retry == "failed" or retry == "all" end
  return record.state == "done" and (retry == "all" or (record.stale and retry == "stale"))
end

local function reset(cell, record)
  -- A stale or failed cell begins anew; an interrupted one goes on from its checkpoint.
  if record.state == "done" or record.state == "failed" then file.remove(cell.folder) end
end

local function show_cell(cell, names)
  local parts = {}
  for _, name in ipairs(names) do
    if cell.options[name] ~= nil then parts[#parts + 1] = name .. "=" .. summary.value(cell.options[name]) end
  end
  return table.concat(parts, " ")
end

-- Ends one child's story: what it wrote, or what its death says.
local function settle(self, cell, code)
  local record = cell:read()
  if record.state == "interrupted" and record.interruptions >= 2 then
    record.state = "failed"
    record.error = string.format("interrupted twice; the last process ended with %d; its output is %s/output", code, cell.folder)
    cell:write(record)
  elseif record.state == "pending" then
    record.state = "failed"
    record.error = string.format("the process ended with %d before the cell began; its output is %s/output", code, cell.folder)
    cell:write(record)
  elseif record.state == "interrupted" then
    cell:write(record)
  end
  local more = record.error and ": " .. record.error or ""
  if record.state == "done" then more = string.format(" in %s  %s", quantity.show_seconds(record.seconds), summary.one_line(record.result)) end
  self:say("%s: %s%s", show_cell(cell, self.names), record.state, more)
  return record
end

-- Threads of one child: the machine is shared evenly.
local function environment(self, cell)
  local threads = math.max(1, math.floor(core.C.esp_threads() / self.parallel))
  return { "/usr/bin/env", "ESPALIER_CELL=" .. cell.id, "ESPALIER_SWEEP=" .. file.real(self.out), "ESPALIER_THREADS=" .. threads }
end

local function start(self, cell, argv)
  file.make(cell.folder)
  local full = environment(self, cell)
  for _, a in ipairs(argv) do full[#full + 1] = a end
  return process.start(full, file.join(cell.folder, "output"))
end

-- Runs what is due, `parallel` at a time. An interrupt waits for the children, which got it too and save.
local function run_all(self, due, argv)
  local running, next_one, done = {}, 1, 0
  local function poll()
    for cell, child in pairs(running) do
      local code = child:poll()
      if code then
        running[cell] = nil
        local record = settle(self, cell, code)
        if record.state == "interrupted" and record.interruptions == 1 and core.C.esp_interrupted() == 0 then due[#due + 1] = cell end
        done = done + 1
      end
    end
  end
  local function busy()
    local n = 0
    for _ in pairs(running) do n = n + 1 end
    return n
  end
  local ok, problem = pcall(function()
    while next_one <= #due or busy() > 0 do
      while next_one <= #due and busy() < self.parallel do
        local cell = due[next_one]
        next_one = next_one + 1
        self:say("[%d/%d] %s", next_one - 1, #due, show_cell(cell, self.names))
        running[cell] = start(self, cell, argv)
      end
      process.sleep(wait_for)
      poll()
    end
  end)
  if ok then return end
  for _, child in pairs(running) do child:signal(2) end
  core.C.esp_interrupt_clear()
  while busy() > 0 do
    process.sleep(wait_for)
    poll()
  end
  self:refresh()
  self:report()
  fail("sweep: %s; the same command goes on with the cells that are left", (tostring(problem):gsub("^.*interrupted.*$", "interrupted")))
end

-- Reads all states; marks what an older recipe made.
function Sweep:refresh()
  for _, cell in ipairs(self.cells) do
    local record = cell:read()
    record.stale = record.state == "done" and record.code ~= self.code or nil
    cell.state, cell.result, cell.error, cell.stale, cell.seconds = record.state, record.result, record.error, record.stale, record.seconds
    cell.record = record
  end
end

function Sweep:say(format, ...)
  if self.quiet then return end
  print(string.format(format, ...))
  io.flush()
end

-- A cell that outlived the sweep which started it: its process goes on, and its result counts.
function Sweep:wait_for_others()
  for _, cell in ipairs(self.cells) do
    if cell.state == "running" then
      self:say("%s is still run by a process of an earlier start; waiting for it", show_cell(cell, self.names))
      while cell:held() do process.sleep(0.1) end
    end
  end
  self:refresh()
end

--- Writes report.html into the sweep's folder.
function Sweep:report()
  require("espalier.report").sweep(self, file.join(self.out, "report.html"))
end

local function count(self, state)
  local n = 0
  for _, cell in ipairs(self.cells) do if cell.state == state then n = n + 1 end end
  return n
end

local function tell(self)
  local failed, stale = count(self, "failed"), 0
  for _, cell in ipairs(self.cells) do if cell.stale then stale = stale + 1 end end
  if stale > 0 then
    self:say("%d of %d cells were made by an older version of this recipe; retry = \"stale\" runs them again", stale, #self.cells)
  end
  if failed > 0 then
    self:say("%d of %d cells failed; retry = \"failed\" runs them again", failed, #self.cells)
    -- A machine sees it too; the recipe itself goes on with what there is.
    fail.status = 1
  end
end

-- In a child: runs the cell it was started for and ends, or hands over an earlier sweep's results.
local function in_child(self, run)
  if file.real(self.out) ~= os.getenv "ESPALIER_SWEEP" then
    self:refresh()
    return self
  end
  for _, cell in ipairs(self.cells) do
    if cell.id == os.getenv "ESPALIER_CELL" then
      local ok, message = cell:run(run, self.code)
      io.stdout:flush()
      if not ok then io.stderr:write("espalier: ", tostring(message), "\n") end
      os.exit(ok and 0 or 1)
    end
  end
  fail("esp.sweep: this recipe has no cell %s; it was changed while the sweep ran", os.getenv "ESPALIER_CELL")
end

--- Runs a grid of cells, each in its own process and folder: esp.sweep{ axes, cells, run, out, .. } -> sweep.
-- axes: list of { name, values }; cells: list of option tables; cells times axes are the grid. run(cell): does the work; cell holds the options, id
-- and out (a folder, for esp.distill's out); it returns plain data, where nll, interval, parameters and label are known to the report.
-- retry: "no", "failed", "stale" or "all" cells again; parallel: processes at a time (1); importance: statistics to draw; title; quiet.
-- The same call goes on where a stopped one was: finished cells are not run again, an interrupted one continues, one interrupted twice by its
-- process' death counts as failed, a failed one keeps its error and stops nothing, but makes the program end with exit code 1.
-- sweep.cells: list of { options, id, folder, state, result, error, stale }; print(sweep) gives the table; out/report.html is written.
function M.sweep(opt)
  opt = options.check("esp.sweep", opt, { axes = { "list" }, cells = { "list" }, run = { "func", required = true }, out = { "path", required = true },
    retry = { "string", default = "no", one_of = { "no", "failed", "stale", "all" } }, parallel = { "int", default = 1 },
    importance = { "table" }, title = { "string" }, quiet = { "bool", default = false } })
  if not (opt.axes or opt.cells) then fail("esp.sweep: neither axes nor cells are given; there is nothing to run") end
  file.make(opt.out)
  local argv, code = command()
  local list = grid(opt)
  local self = setmetatable({ out = opt.out, code = code, parallel = math.max(1, opt.parallel), quiet = opt.quiet, title = opt.title, cells = {},
    importance = opt.importance, names = names_of(opt, list) }, Sweep)
  local seen = {}
  for i, o in ipairs(list) do
    local cell = cells.new(o, opt.out)
    if seen[cell.id] then fail("esp.sweep: cells %d and %d are the same: %s", seen[cell.id], i, show_cell(cell, self.names)) end
    seen[cell.id], self.cells[i] = i, cell
  end
  if os.getenv "ESPALIER_CELL" then return in_child(self, opt.run) end
  local lock = file.lock(file.join(opt.out, "lock"))
  self:refresh()
  self:wait_for_others()
  local due = {}
  for _, cell in ipairs(self.cells) do
    if is_due(cell.record, opt.retry) then
      reset(cell, cell.record)
      due[#due + 1] = cell
    end
  end
  self:say("sweep %s: %d cells, %d done, %d to run", opt.out, #self.cells, count(self, "done"), #due)
  local ok, problem = pcall(run_all, self, due, argv)
  if ok then
    self:refresh()
    self:report()
    tell(self)
  end
  lock.release()
  if not ok then error(problem, 0) end
  return self
end

function Sweep:__tostring()
  return summary.text(self)
end

return M
