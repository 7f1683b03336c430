--- Losses on logits: kl, ce, sums of them, or a user's own over log-probabilities.
--
-- A loss is a list of terms { kind, scale, ... }. A loss of one's own is a Lua file or table { token = function(s, t, opt) .. end } that turns
-- log-probabilities [n, vocab] of student and teacher into one value a token; chunks, averages and backward are made here (head.lua).

local options = require "espalier.options"
local find = require "espalier.find"
local fail = require "espalier.fail"

local M = {}

--- Forward KL from teacher to student at a temperature (1): mean over tokens, no tau^2 factor (2407.14679, section 3).
function M.kl(opt)
  opt = options.check("esp.loss.kl", opt, { temperature = { "number", default = 1 } })
  return { terms = { { kind = "kl", scale = 1, temperature = opt.temperature } }, teacher = true, name = "kl(" .. opt.temperature .. ")" }
end

--- Next-token cross-entropy, mean over predictions.
function M.ce()
  return { terms = { { kind = "ce", scale = 1 } }, name = "ce" }
end

--- A loss of one's own: a table with token, or the name of a file (in the recipe's folder, its losses/, or ESPALIER_PATH). esp.loss.NAME(opt) is the
-- same for a file NAME.lua.
function M.custom(definition, opt)
  if type(definition) == "string" then
    local name = definition
    definition = find("losses", name, "espalier.loss.losses.")
    if type(definition) == "table" then definition.name = definition.name or name end
  end
  if type(definition) ~= "table" or type(definition.token) ~= "function" then
    fail("esp.loss.custom: want a table with a function 'token', got %s", type(definition))
  end
  return { terms = { { kind = "token", scale = 1, token = definition.token, opt = opt, zero_at_teacher = definition.zero_at_teacher } },
    teacher = definition.teacher ~= false, name = definition.name or "custom" }
end

--- A weighted sum: esp.loss.sum { { esp.loss.kl(), 1 }, { esp.loss.ce(), 0.5 } }.
function M.sum(list)
  local sum = { terms = {}, name = "" }
  for i, pair in ipairs(list) do
    local loss, weight = pair[1], pair[2] or 1
    if type(loss) ~= "table" or not loss.terms then fail("esp.loss.sum: entry %d is no loss", i) end
    for _, term in ipairs(loss.terms) do
      local copy = {}
      for k, v in pairs(term) do copy[k] = v end
      copy.scale = term.scale * weight
      sum.terms[#sum.terms + 1] = copy
    end
    sum.teacher = sum.teacher or loss.teacher
    sum.name = sum.name .. (i > 1 and " + " or "") .. weight .. " " .. loss.name
  end
  return sum
end

-- Names that are no function here are files.
return setmetatable(M, { __index = function(_, name)
  return function(opt) return M.custom(name, opt) end
end })
