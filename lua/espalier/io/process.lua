--- Child processes.

local core = require "espalier.ffi"

local C = core.C
local M = {}
local Process = {}
Process.__index = Process

--- Starts argv (a list; the first is the path of the program). output: file for stdout and stderr (appended), or nil for ours.
function M.start(argv, output)
  local pid, array, anchor = core.new "int[1]", core.strings(argv)
  core.try(C.esp_process_start(pid, array, output))
  return setmetatable({ pid = pid[0], anchor = anchor }, Process)
end

--- nil while it runs, then its exit code (128 + signal where one ended it).
function Process:poll()
  if self.code then return self.code end
  local running, code = core.new "int[1]", core.new "int[1]"
  core.try(C.esp_process_poll(self.pid, running, code))
  if running[0] == 0 then self.code = code[0] end
  return self.code
end

function Process:signal(number)
  core.try(C.esp_process_signal(self.pid, number))
end

--- Waits for the end and returns the exit code.
function Process:wait()
  while not self:poll() do core.try(C.esp_sleep(0.005)) end
  return self.code
end

--- Sleeps; an interrupt ends it with an error.
function M.sleep(seconds)
  core.try(C.esp_sleep(seconds))
end

function M.id()
  return C.esp_process_id()
end

--- The running espalier program, for starting another of its kind.
function M.program()
  return require("espalier.io.file").real "/proc/self/exe"
end

return M
