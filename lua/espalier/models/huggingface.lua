--- Hugging Face folders: config.json and safetensors (one file, or shards with an index). They are written by export/folder.lua.

local tensor = require "espalier.tensor"
local lazy = require "espalier.tensor.lazy"
local scope = require "espalier.scope"
local file = require "espalier.io.file"
local json = require "espalier.io.json"
local shards = require "espalier.io.shards"
local configs = require "espalier.models.config"
local models = require "espalier.models.model"
local lineages = require "espalier.lineage.store"
local options = require "espalier.options"
local fail = require "espalier.fail"

local M = {}

local function same(a, b)
  return table.concat(a, "x") == table.concat(b, "x")
end

-- A stored tensor under the names of its parts: { [name] = lazy tensor }. Nothing is read: NaN and infinity are looked for when it is first used.
local function take(where, want, dir, dtype)
  local f = where[want.name]
  if not f then fail("%s: the weight '%s' is missing", dir, want.name) end
  local shape = f:describe(want.name)
  if not same(shape, want.shape) then
    fail("%s: '%s' is [%s], want [%s] (from config.json)", dir, want.name, table.concat(shape, ", "), table.concat(want.shape, ", "))
  end
  local whole, parts, at = f:view(want.name), {}, 0
  local what = string.format("%s: '%s'", dir, want.name)
  for _, part in ipairs(want.parts) do
    local own = #want.parts == 1 and whole or tensor.narrow(whole, 0, at, part.shape[1])
    parts[part.name] = lazy.of(own, { dtype = dtype, what = what })
    at = at + part.shape[1]
  end
  return parts
end

local harmless = { ["lm_head.weight"] = true }

--- Opens a folder: headers and shapes are checked, weights are read when they are first used. f32 and bf16 are used as they are stored, mapped; f16
-- and f64 widen to f32, f8 to bf16, exactly (f64 is rounded). opt.dtype: "f32" or "bf16" converts. A second result: a sentence about what is odd in
-- the folder but does no harm.
function M.load(dir, opt)
  opt = options.check("esp.load", opt, { dtype = { "string", one_of = { "f32", "bf16" } } })
  local config_path = file.join(dir, "config.json")
  if not file.kind(config_path) then fail("%s holds no config.json", dir) end
  local config = json.read(config_path)
  local shape = configs.of_config(config, config_path)
  return scope.outside(function()
    local where, odd = shards.open(dir)
    local weights, known = {}, {}
    for _, want in ipairs(configs.stored(shape, config.model_type)) do
      for name, t in pairs(take(where, want, dir, opt.dtype)) do weights[name] = t end
      known[want.name] = true
    end
    for name in pairs(where) do
      if not known[name] and not harmless[name] and not name:find "rotary_emb%.inv_freq$" then
        fail("%s: the weight '%s' has no place in a %s of this config.json", dir, name, config.model_type)
      end
    end
    return models.new(shape, { weights = weights, config = config, source = dir, lineage = lineages.read(dir) }), odd
  end)
end

return M
