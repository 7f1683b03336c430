--- Espalier: measure what matters in a language model, prune it, train what is left, lay the runs side by side.
--
-- `local esp = require "espalier"`. Modules are opened when first named, so that a recipe starts in milliseconds.

local esp = { version = "0.1.0" }

-- Functions named at the top: module and field. All other names are the modules lua/espalier/NAME.lua.
local functions = {
  load = { "models", "load" }, generate = { "models.generate", "generate" },
  prune = { "prune", "prune" }, plan = { "plan", "plan" }, sensitivity = { "sensitivity", "sensitivity" },
  lineage = { "lineage", "lineage" }, diff = { "lineage.diff", "diff" }, sort = { "prune.sort", "sort" }, slice = { "prune.slice", "slice" },
  mask = { "prune.mask", "mask" }, search = { "search", "search" },
  distill = { "distill", "distill" }, train = { "distill", "train" }, evaluate = { "eval", "evaluate" },
  sweep = { "sweep", "sweep" }, options = { "options", "parse" },
  scope = { "scope", "run" }, checkpoint = { "tape", "checkpoint" }, no_grad = { "tape", "no_grad" },
}
esp.functions = functions

--- Layers lo to hi, both in: esp.range(9, 12) is { 9, 10, 11, 12 }.
function esp.range(lo, hi)
  local list = {}
  for i = lo, hi do list[#list + 1] = i end
  return list
end

--- Is there a module espalier.NAME?
local function exists(name)
  if package.loaded["espalier." .. name] or package.preload["espalier." .. name] then return true end
  return package.searchpath("espalier." .. name, package.path) ~= nil
end

return setmetatable(esp, { __index = function(_, name)
  local at = functions[name]
  local value
  if at then
    value = require("espalier." .. at[1])[at[2]]
  elseif type(name) == "string" and name:match "^%l[%w_]*$" and exists(name) then
    value = require("espalier." .. name)
    -- Tensors come with their operators and gradients.
    if name == "tensor" then require "espalier.ops" end
  end
  if value == nil then
    local names = {}
    for known in pairs(functions) do names[#names + 1] = known end
    local near = require("espalier.options").nearest(tostring(name), names)
    require "espalier.fail"("there is no esp.%s%s", tostring(name), near and "; did you mean esp." .. near .. "?" or "; help() lists what there is")
  end
  rawset(esp, name, value)
  return value
end })
