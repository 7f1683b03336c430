--- Hugging Face folders, in and out: config.json, safetensors (one file or shards with an index), the tokenizer's files.

local tensor = require "espalier.tensor"
local lazy = require "espalier.tensor.lazy"
local tape = require "espalier.tape"
local core = require "espalier.ffi"
local file = require "espalier.io.file"
local json = require "espalier.io.json"
local shards = require "espalier.io.shards"
local configs = require "espalier.models.config"
local models = require "espalier.models.model"
local bounded = require "espalier.models.bounded"
local lineages = require "espalier.lineage.store"
local options = require "espalier.options"
local fail = require "espalier.fail"

local M = {}

--- Files of a tokenizer, copied byte for byte from the source when a model is saved.
M.tokenizer_files = { "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
  "merges.txt", "generation_config.json" }

-- ---- in ----

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
-- and f64 widen to f32, f8 to bf16, exactly (f64 is rounded). opt.dtype: "f32" or "bf16" converts.
function M.load(dir, opt)
  opt = options.check("esp.load", opt, { dtype = { "string", one_of = { "f32", "bf16" } } })
  local config_path = file.join(dir, "config.json")
  if not file.kind(config_path) then fail("%s holds no config.json", dir) end
  local config = json.read(config_path)
  local shape = configs.of_config(config, config_path)
  return tape.outside_scopes(function()
    local where, weights, known = shards.open(dir), {}, {}
    for _, want in ipairs(configs.stored(shape, config.model_type)) do
      for name, t in pairs(take(where, want, dir, opt.dtype)) do weights[name] = t end
      known[want.name] = true
    end
    for name in pairs(where) do
      if not known[name] and not harmless[name] and not name:find "rotary_emb%.inv_freq$" then
        fail("%s: the weight '%s' has no place in a %s of this config.json", dir, name, config.model_type)
      end
    end
    return models.new(shape, { weights = weights, config = config, source = dir, lineage = lineages.read(dir) })
  end)
end

-- ---- out ----

-- A fixed batch for the comparison: ids spread over the vocabulary.
local function probe(s)
  local rows, length = {}, math.min(16, s.context)
  for b = 1, 2 do
    rows[b] = {}
    for t = 1, length do rows[b][t] = (b * 7919 + t * 104729) % s.vocab end
  end
  return rows
end

-- The dtype that most weights are written in, as config.json states it.
local function common_dtype(model, asked)
  local count, most = {}, nil
  for _, t in pairs(model:parameters()) do
    local dtype = lazy.stored(t, asked)
    count[dtype] = (count[dtype] or 0) + t:count()
    if not most or count[dtype] > count[most] then most = dtype end
  end
  return most
end

-- The model that the folder will hold.
local function rounded(model, asked)
  local weights = {}
  for name, t in pairs(model:parameters()) do weights[name] = lazy.rounded(t, lazy.stored(t, asked)) end
  return models.new(model.shape, { weights = weights })
end

local function write_parts(model, dir, asked, dtype, shard)
  local weights, names, own = {}, {}, model:parameters()
  for i, want in ipairs(configs.stored(model.shape, configs.kind(model.shape, model.config))) do
    names[i], weights[want.name] = want.name, {}
    for k, part in ipairs(want.parts) do weights[want.name][k] = own[part.name] end
  end
  shards.write(dir, weights, { order = names, dtype = asked, finite = true, shard = shard })
  json.write(file.join(dir, "config.json"), configs.to_config(model.shape, model.config, dtype))
  local has_generation
  if model.source and file.kind(model.source) == "folder" then
    for _, name in ipairs(M.tokenizer_files) do
      local from = file.join(model.source, name)
      if file.kind(from) == "file" then
        file.copy(from, file.join(dir, name))
        has_generation = has_generation or name == "generation_config.json"
      end
    end
  elseif model.tokenizer and model.tokenizer.files then
    for _, from in ipairs(model.tokenizer:files()) do
      -- Readers of such a folder look for tokenizer.model, whatever it was called.
      local name = file.name(from):gsub("^.*(%.model)$", "tokenizer%1"):gsub("^.*(%.bin)$", "tokenizer%1")
      file.copy(from, file.join(dir, name))
    end
  end
  if not has_generation then json.write(file.join(dir, "generation_config.json"), { _from_model_config = true }) end
end

local function prepare(dir)
  local kind = file.kind(dir)
  if kind == "folder" and #file.list(dir) > 0 and not file.kind(file.join(dir, "espalier.json")) then
    fail("save: %s is not empty and was not written by espalier; name another folder", dir)
  elseif kind == "file" then
    fail("save: %s is a file; name a folder", dir)
  end
  local parent = dir:gsub("/+$", ""):match "^(.*)/[^/]*$"
  if parent and parent ~= "" then file.make(parent) end
  -- What a killed process left beside the name.
  for _, name in ipairs(file.list(parent and parent ~= "" and parent or parent and "/" or ".")) do
    local owner = name:match("^" .. file.name(dir):gsub("%W", "%%%0") .. "%.part%-(%d+)$")
    if owner and not file.kind("/proc/" .. owner) then file.remove(file.join(parent or ".", name)) end
  end
end

--- Writes the model as a Hugging Face folder: beside its name first, reloaded, logits compared on a fixed batch, then put in place.
-- opt.dtype: "f32", "bf16" or "f16" for all weights; otherwise each keeps the dtype it was read in. opt.shard: most bytes of a file ("5GB").
-- Weights of a model that was opened, or cut from one, go from file to file in pieces of 16 MiB. Compared are the logits of the model with its
-- weights rounded as they were written and those of the folder, in f32 arithmetic on both sides, so that only what was written can differ; block by
-- block and the head in slices, so that neither model is held. Returns the largest difference.
function M.save(model, dir, opt)
  opt = options.check("model:save", opt, { dtype = { "string", one_of = { "f32", "bf16", "f16" } },
    shard = { "bytes", default = "5GB" }, quiet = { "bool", default = false } })
  dir = dir:gsub("/+$", "")
  prepare(dir)
  local dtype = common_dtype(model, opt.dtype)
  local part = dir .. ".part-" .. core.C.esp_process_id()
  file.remove(part)
  file.make(part)
  local ok, result = pcall(tape.scope, function()
    write_parts(model, part, opt.dtype, dtype, opt.shard)
    local difference = bounded.largest_difference(rounded(model, opt.dtype), M.load(part), probe(model.shape))
    if not (difference <= 1e-4) then
      fail("save: the written folder gives logits that differ by %g, want at most 1e-4; nothing was put in place", difference)
    end
    json.write(file.join(part, "espalier.json"), { lineage = lineages.write(model.lineage, part), largest_logit_difference = difference,
      dtype = dtype })
    return difference
  end)
  if not ok then
    file.remove(part)
    error(result, 0)
  end
  file.replace(part, dir)
  if not opt.quiet then print(string.format("wrote %s (%s); reloaded, largest difference of a logit %.2g", dir, dtype, result)) end
  return result
end

return M
