--- What is to be planned: a shape from config.json or a model, and what the headers of its safetensors say; no weight is read.

local file = require "espalier.io.file"
local json = require "espalier.io.json"
local shards = require "espalier.io.shards"
local safetensors = require "espalier.io.safetensors"
local shapes = require "espalier.models.shape"
local configs = require "espalier.models.config"
local fail = require "espalier.fail"

local M = {}

local size_of = { F64 = 8, F32 = 4, BF16 = 2, F16 = 2, F8_E4M3 = 1, F8_E5M2 = 1, I8 = 1, U8 = 1 }

--- { parameters, bytes, dtypes = { F32 = parameters } } of a folder's headers, or nil without weights. A head that repeats tied embeddings and
-- tables of rotary frequencies are no parameters.
function M.stored(dir, s)
  local list = shards.files(dir)
  if #list == 0 then return nil end
  local sum = { parameters = 0, bytes = 0, dtypes = {} }
  for _, path in ipairs(list) do
    local f = safetensors.open(path)
    for _, name in ipairs(f.names) do
      if not (name:find "rotary_emb" or (s.tied and name == "lm_head.weight")) then
        local shape, dtype = f:describe(name)
        local n = 1
        for _, d in ipairs(shape) do n = n * d end
        sum.parameters = sum.parameters + n
        sum.bytes = sum.bytes + n * (size_of[dtype] or fail("%s: '%s' is %s, which is no dtype of weights", path, name, dtype))
        sum.dtypes[dtype] = (sum.dtypes[dtype] or 0) + n
      end
    end
  end
  return sum
end

--- Opens a path, a name in the local Hugging Face cache, or a model: { shape, where, architecture, stored }.
function M.open(what)
  if type(what) == "table" and what.shape then
    return { shape = what.shape, where = "model", architecture = configs.kind(what.shape, what.config) }
  end
  local path = require("espalier.models").find(what)
  local dir = file.kind(path) == "folder" and path or nil
  local config_path = dir and file.join(dir, "config.json") or path
  if not config_path:match "%.json$" then
    local model = require("espalier.models").load(path)
    return { shape = model.shape, where = path, architecture = configs.kind(model.shape, model.config) }
  end
  if not file.kind(config_path) then fail("plan: there is no %s", config_path) end
  local config = json.read(config_path)
  local s = configs.of_config(config, config_path)
  local stored = dir and M.stored(dir, s)
  if stored and stored.parameters ~= shapes.parameters(s) then
    fail("plan: the weights in %s hold %.0f parameters, its config.json makes %.0f", dir, stored.parameters, shapes.parameters(s))
  end
  return { shape = s, where = config_path, architecture = config.model_type, stored = stored }
end

return M
