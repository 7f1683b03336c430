--- Learning rates by step: esp.schedule.cosine { peak =, min =, warmup = }, .constant { rate = }, .linear { peak =, min =, warmup = }.
--
-- A schedule is { name, rate = function(step, steps) .. end }, step counting from 1; any table like that does.

local options = require "espalier.options"

local M = {}

local function number(x) return string.format("%.17g", x) end

-- Warm-up from peak/warmup to peak, then `shape` from 1 to 0 over the rest between peak and min.
local function warmed(name, given, shape)
  local opt = options.check("esp.schedule." .. name, given, { peak = { "number", required = true }, min = { "number", default = 0 },
    warmup = { "int", default = 0 } })
  return { name = string.format("%s(%s, %s, %d)", name, number(opt.peak), number(opt.min), opt.warmup), rate = function(step, steps)
    if step <= opt.warmup then return opt.peak * step / opt.warmup end
    local part = steps > opt.warmup and math.min(1, (step - opt.warmup) / (steps - opt.warmup)) or 1
    return opt.min + (opt.peak - opt.min) * shape(part)
  end }
end

--- Warm-up, then half a cosine from peak to min.
function M.cosine(opt)
  return warmed("cosine", opt, function(part) return 0.5 * (1 + math.cos(math.pi * part)) end)
end

--- Warm-up, then a line from peak to min.
function M.linear(opt)
  return warmed("linear", opt, function(part) return 1 - part end)
end

--- The same rate always.
function M.constant(opt)
  opt = options.check("esp.schedule.constant", opt, { rate = { "number", required = true } })
  return { name = "constant(" .. number(opt.rate) .. ")", rate = function() return opt.rate end }
end

return M
