--- The folder of a run: `log` (append-only records, the truth while it runs), `run.h5` (published from the log), `checkpoints/`, `model/`, `lock`.
--
-- The first record says what was asked. The same options on the folder continue the run or find it done; others are refused, difference by
-- difference.

local tensor = require "espalier.tensor"
local scope = require "espalier.scope"
local core = require "espalier.ffi"
local file = require "espalier.io.file"
local hdf5 = require "espalier.io.hdf5"
local journal = require "espalier.io.journal"
local json = require "espalier.io.json"
local fail = require "espalier.fail"

local M = {}
local Store = {}
Store.__index = Store

local function differences(asked, before)
  local list, names = {}, {}
  for k in pairs(asked) do names[k] = true end
  for k in pairs(before) do names[k] = true end
  local sorted = {}
  for k in pairs(names) do sorted[#sorted + 1] = k end
  table.sort(sorted)
  for _, k in ipairs(sorted) do
    if tostring(asked[k]) ~= tostring(before[k]) then
      list[#list + 1] = string.format("%s was %s, now %s", k, tostring(before[k]), tostring(asked[k]))
    end
  end
  return list
end

--- Opens the folder of a run for what is asked ({ option = text or number }). Refuses a folder of another run, or one that another process writes.
function M.open(dir, asked)
  file.make(file.join(dir, "checkpoints"))
  local self = setmetatable({ dir = dir, asked = asked, metrics = {}, evaluations = {}, lock = file.lock(file.join(dir, "lock")) }, Store)
  local path = file.join(dir, "log")
  local records = file.kind(path) and journal.read(path) or {}
  for _, r in ipairs(records) do
    if r.kind == "asked" then
      local different = differences(asked, r.options)
      if #different > 0 then
        self.lock.release()
        fail("%s holds another run: %s; use another folder, or the same options to continue", dir, table.concat(different, "; "))
      end
      self.begun = true
    elseif r.kind == "step" then self.metrics[r.step] = r
    elseif r.kind == "evaluation" then self.evaluations[r.step] = r
    elseif r.kind == "done" then self.done = r end
  end
  self.log = journal.open(path)
  if not self.begun then
    self.log:append({ kind = "asked", options = asked, version = require("espalier").version, cpu = core.string(core.C.esp_cpu_name()),
      time = os.time() }, true)
  end
  return self
end

function Store:step(record)
  record.kind = "step"
  self.metrics[record.step] = record
  self.log:append(record)
end

function Store:evaluation(record)
  record.kind = "evaluation"
  self.evaluations[record.step] = record
  self.log:append(record)
end

-- ---- checkpoints ----

local function path_of(self, step)
  return string.format("%s/checkpoints/step-%08d.h5", self.dir, step)
end

--- Writes parameters, moments and the step, whole; then proves it by opening it, and only then removes the older ones.
function Store:checkpoint(step, optimizer)
  local values = { step = step }
  for _, name in ipairs(optimizer.names) do
    values["p/" .. name], values["m/" .. name], values["v/" .. name] = optimizer.parameters[name], optimizer.m[name], optimizer.v[name]
  end
  local path = path_of(self, step)
  hdf5.write(path, values)
  local f = hdf5.open(path)
  local good = f:number "step" == step
  f:close()
  if not good then fail("%s: the checkpoint just written does not open as step %d", path, step) end
  for _, name in ipairs(file.list(file.join(self.dir, "checkpoints"))) do
    local full = self.dir .. "/checkpoints/" .. name
    if full ~= path then file.remove(full) end
  end
  -- The records up to here must not be younger than the checkpoint.
  self.log:append({ kind = "checkpoint", step = step }, true)
end

--- Puts the newest checkpoint that opens into the optimizer; returns its step, 0 where there is none.
function Store:restore(optimizer)
  local names = file.list(file.join(self.dir, "checkpoints"))
  for i = #names, 1, -1 do
    local path = self.dir .. "/checkpoints/" .. names[i]
    if names[i]:match "^step%-%d+%.h5$" then
      local ok, step = pcall(scope.run, function()
        local f = hdf5.open(path)
        for _, name in ipairs(optimizer.names) do
          optimizer.parameters[name]:copy_from(f:tensor("p/" .. name))
          optimizer.m[name]:copy_from(f:tensor("m/" .. name))
          optimizer.v[name]:copy_from(f:tensor("v/" .. name))
        end
        local n = f:number "step"
        f:close()
        return n
      end)
      if ok then return step end
      print(string.format("%s does not open and is passed over: %s", path, tostring(step)))
    else
      file.remove(path)
    end
  end
  return 0
end

-- ---- publishing ----

local function columns(records, names)
  local steps, table_of = {}, {}
  for step in pairs(records) do steps[#steps + 1] = step end
  table.sort(steps)
  for _, name in ipairs(names) do
    local list = {}
    for i, step in ipairs(steps) do list[i] = records[step][name] or 0 end
    table_of[name] = tensor.of(list, { dtype = "f64" })
  end
  return #steps > 0 and table_of or {}
end

--- Writes run.h5 from what the log holds.
function Store:publish()
  scope.run(function()
    local values = { asked = json.encode(self.asked), version = require("espalier").version }
    for name, t in pairs(columns(self.metrics, { "step", "loss", "norm", "lr", "tokens", "seconds" })) do values["metrics/" .. name] = t end
    for name, t in pairs(columns(self.evaluations, { "step", "nll" })) do values["evaluations/" .. name] = t end
    hdf5.write(file.join(self.dir, "run.h5"), values)
  end)
end

--- Marks the run as done and publishes it.
function Store:finish(facts)
  facts.kind = "done"
  self.log:append(facts, true)
  self.done = facts
  self:publish()
end

function Store:close()
  self.log:close()
  self.lock.release()
end

return M
