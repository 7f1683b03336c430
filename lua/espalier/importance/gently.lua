--- Work that ends at a good place on Ctrl-C: in the espalier program the first one is only noted, and asked for between steps.

local core = require "espalier.ffi"
local fail = require "espalier.fail"

local host = package.loaded["espalier.host"]
local M = {}

--- pcall(fn, stop), where stop() tells whether somebody asked to stop.
function M.run(fn)
  local function stop() return (host and host.stop_asked()) or core.C.esp_interrupted() ~= 0 end
  if host then host.gentle(true) end
  local ok, result = pcall(fn, stop)
  if host then host.gentle(false) end
  return ok, result
end

-- Is a recipe running, rather than somebody at the prompt?
local function in_recipe()
  local args = rawget(_G, "arg")
  return args and tostring(args[0]):match "%.lua$" ~= nil
end

--- Work was stopped: at the prompt the sentence is printed and what was done is the caller's to return; a recipe must not go on with a part, so it
-- ends with the sentence and `shown`, what was done as text (or nil).
function M.stopped(sentence, shown)
  core.C.esp_interrupt_clear()
  if in_recipe() then fail("%s (interrupted)%s", sentence, shown and "\n" .. shown or "") end
  print(sentence .. "; this is what was done")
end

return M
