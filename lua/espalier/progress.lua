--- One line that tells how far a long piece of work is: redrawn on a terminal, printed now and then elsewhere.

local core = require "espalier.ffi"
local quantity = require "espalier.quantity"

local C = core.C
local M = {}
local Progress = {}
Progress.__index = Progress

--- opt: label, total, done (at the start), quiet; after: seconds before which nothing is shown (0), for what is often done sooner.
function M.new(opt)
  local terminal = C.esp_is_terminal(1) == 1
  return setmetatable({ label = opt.label, total = opt.total, from = opt.done or 0, quiet = opt.quiet, after = opt.after or 0, start = C.esp_clock(),
    last = -math.huge, terminal = terminal, every = terminal and 0.1 or 5 }, Progress)
end

function Progress:update(done, text)
  local now = C.esp_clock()
  if self.quiet or now - self.start < self.after or (now - self.last < self.every and done < self.total) then return end
  self.last = now
  local share = (done - self.from) / math.max(1, self.total - self.from)
  local left = share > 0 and "  " .. quantity.show_seconds((now - self.start) * (1 - share) / share) .. " left" or ""
  local line = string.format("%s %d/%d  %s%s", self.label, done, self.total, text, left)
  if self.terminal then
    local width = C.esp_terminal_width() - 1
    io.write("\r" .. line:sub(1, width) .. string.rep(" ", math.max(0, width - #line)))
    if done >= self.total then io.write "\n" end
    io.flush()
  else
    print(line)
    io.flush()
  end
end

--- Ends the line where the work stops early.
function Progress:stop()
  if self.terminal and not self.quiet and self.last > -math.huge then io.write "\n" end
end

return M
