--- What measure is asked to collect beside the sums that it always does: layers left out, and statistics of users' metrics.

local depth = require "espalier.importance.depth"
local score = require "espalier.importance.score"
local options = require "espalier.options"
local fail = require "espalier.fail"

local M = {}

--- measure's `depth` as { scans = { { key, candidates } .. }, task } or nil.
function M.depth(given, layers)
  if not given then return nil end
  local d = given == true and {} or given
  if type(d) ~= "table" then fail("measure: depth is %s, want true, a list of block sizes or { blocks =, parts =, task = }", tostring(given)) end
  if #d > 0 then d = { blocks = d } end
  d = options.check("measure: depth", d, { blocks = { "list", default = { 1 } }, parts = { "list", default = { "layer" } }, task = { "func" } })
  for _, n in ipairs(d.blocks) do
    if type(n) ~= "number" or n < 1 or n >= layers then fail("measure: depth: a block of %s layers of %d", tostring(n), layers) end
  end
  local list = {}
  for _, part in ipairs(d.parts) do
    if part ~= "layer" and part ~= "attention" and part ~= "mlp" then
      fail("measure: depth: part '%s', want layer, attention or mlp", tostring(part))
    end
    for _, n in ipairs(part == "layer" and d.blocks or { 1 }) do
      list[#list + 1] = { key = part .. "." .. n, candidates = depth.candidates(layers, part, n) }
    end
  end
  return { scans = list, task = d.task }
end

local sites_of = { ffn = { "ffn" }, heads = { "attention" }, kv_heads = { "attention" }, attention = { "attention" }, hidden = { "norm1", "norm2" } }

--- The reductions that metrics declare, { name, sites, of, merge } each; their names and merges go into facts.reductions.
function M.reductions(metrics, facts)
  local list = {}
  for _, given in ipairs(metrics or {}) do
    local metric = score.metric(given)
    if not metric.collect then
      fail("measure: metric '%s' declares no statistic (collect = { name = { of = function(x) .. end } }), so it needs no measuring",
        type(given) == "string" and given or "of the recipe")
    end
    for name, r in pairs(metric.collect) do
      if type(r) == "function" then r = { of = r } end
      local merge = r.merge or "sum"
      if type(r.of) ~= "function" or (merge ~= "sum" and merge ~= "max") then
        fail("measure: statistic '%s' wants of = function(x) and merge = \"sum\" or \"max\"", tostring(name))
      end
      local sites = {}
      for _, axis in ipairs(metric.axes or { "ffn" }) do for _, site in ipairs(sites_of[axis] or {}) do sites[site] = true end end
      list[#list + 1] = { name = name, sites = sites, of = r.of, merge = merge }
      facts.reductions[name] = merge
    end
  end
  table.sort(list, function(a, b) return a.name < b.name end)
  return list
end

return M
