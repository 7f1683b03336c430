--- Time and memory of a long piece of work: the first step is timed, then how long the rest takes is said; a cap on time ends it early; what
-- cannot fit in memory is refused before it begins.

local core = require "espalier.ffi"
local quantity = require "espalier.quantity"
local fail = require "espalier.fail"

local C = core.C
local M = {}
local Watch = {}
Watch.__index = Watch

--- A watch over `steps` equal steps. opt: what, steps, time (cap in seconds), quiet, before (steps done in an earlier session).
function M.watch(opt)
  return setmetatable({ what = opt.what, steps = opt.steps, time = opt.time, quiet = opt.quiet, start = C.esp_clock() }, Watch)
end

--- After each step; true when the cap on time says to stop.
function Watch:step(n)
  local spent = C.esp_clock() - self.start
  if n == 1 and not self.quiet and spent * (self.steps - 1) > 2 then
    local whole = spent * self.steps
    local expected = self.time and math.min(whole, self.time) or whole
    print(string.format("%s: about %s for %d steps, peak memory %s%s", self.what, quantity.show_seconds(expected), self.steps,
      quantity.show_bytes(tonumber(C.esp_rss_peak())), self.time and whole > self.time and "; the cap on time ends it early" or ""))
  end
  if C.esp_interrupted() ~= 0 then fail("interrupted") end
  return self.time and spent >= self.time or false
end

--- Refuses work that wants more memory than there is. advice: what would fit.
function M.refuse_if_too_big(what, bytes, advice)
  local free = tonumber(C.esp_memory_available())
  if free > 0 and bytes > free then
    fail("%s: needs about %s of memory, %s are free; %s", what, quantity.show_bytes(bytes), quantity.show_bytes(free), advice)
  end
end

return M
