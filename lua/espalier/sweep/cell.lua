--- A cell of a sweep: options as data, an id that follows from them, a folder, and a state that survives the process.
--
-- cells/ID/ holds cell.json (the options), state.json (what happened so far, written whole each time), lock (held by the process that runs the
-- cell), output (what it printed) and run (the folder that the recipe gets as cell.out). A state that says "running" while nobody holds the lock
-- is an interruption.

local file = require "espalier.io.file"
local json = require "espalier.io.json"

local M = {}
local Cell = {}
Cell.__index = Cell

-- Text of a plain value with the keys of tables in order.
local function canonical(v)
  if type(v) ~= "table" then return type(v) == "number" and string.format("%.17g", v) or type(v) .. ":" .. tostring(v) end
  local keys, parts = {}, {}
  for k in pairs(v) do keys[#keys + 1] = k end
  table.sort(keys, function(a, b) return tostring(a) < tostring(b) end)
  for i, k in ipairs(keys) do parts[i] = tostring(k) .. "=" .. canonical(v[k]) end
  return "{" .. table.concat(parts, ",") .. "}"
end

--- A cell of the sweep in folder out. options: plain data, { name = value }.
function M.new(options, out)
  local id = file.hash_text(canonical(options)):sub(1, 12)
  return setmetatable({ options = options, id = id, folder = file.join(out, "cells/" .. id) }, Cell)
end

local function plain(v)
  if type(v) ~= "table" then return v end
  local copy = {}
  for k, x in pairs(v) do copy[k] = plain(x) end
  return copy
end

--- What is known about the cell: { state = pending | running | done | failed | interrupted, result, error, code, interruptions, seconds }.
function Cell:read()
  local path = file.join(self.folder, "state.json")
  if not file.kind(path) then return { state = "pending", interruptions = 0 } end
  local record = plain(json.read(path))
  if record.state == "running" and not self:held() then
    -- Its process is gone and left no word: a kill, a crash, a power cut.
    record.state, record.interruptions = "interrupted", record.interruptions + 1
  end
  return record
end

--- Does a process run this cell now?
function Cell:held()
  local ok, lock = pcall(file.lock, file.join(self.folder, "lock"))
  if ok then lock.release() end
  return not ok
end

function Cell:write(record)
  file.make(self.folder)
  local path = file.join(self.folder, "cell.json")
  if not file.kind(path) then json.write(path, self.options) end
  json.write(file.join(self.folder, "state.json"), record)
end

--- Runs the cell in this process: fn gets its options with id and out beside them. true, or false and the sentence.
-- code: hash of the recipe that runs it.
function Cell:run(fn, code)
  file.make(self.folder)
  local lock = file.lock(file.join(self.folder, "lock"))
  local before = self:read()
  local C = require("espalier.ffi").C
  local start = C.esp_clock()
  local record = { state = "running", code = code, interruptions = before.interruptions }
  -- The lock is ours, so read() cannot have told an interruption from a run; what the file says does.
  if before.state == "running" then record.interruptions = record.interruptions + 1 end
  self:write(record)
  local given = plain(self.options)
  given.id, given.out = self.id, file.join(self.folder, "run")
  local ok, result = pcall(fn, given)
  record.seconds = C.esp_clock() - start
  if ok then
    ok, result = pcall(json.encode, result == nil and {} or result)
    if ok then record.state, record.result = "done", json.decode(result, "result") else result = "the result is no plain data: " .. result end
  end
  if not ok then
    -- A stop that was asked for is no fault of the cell.
    local stopped = C.esp_interrupted() ~= 0 or tostring(result):find("interrupted", 1, true) or tostring(result):find("stopped at step", 1, true)
    record.state, record.error = stopped and "interrupted" or "failed", tostring(result)
  end
  C.esp_interrupt_clear()
  self:write(record)
  lock.release()
  return ok, result
end

return M
