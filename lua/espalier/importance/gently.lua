--- Work that ends at a good place on Ctrl-C: in the espalier program the first one is only noted, and asked for between steps.

local core = require "espalier.ffi"

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

return M
