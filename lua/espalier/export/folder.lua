--- The files of a Hugging Face folder: config.json, generation_config.json, safetensors, and what the source had beside them, byte for byte.

local file = require "espalier.io.file"
local json = require "espalier.io.json"
local shards = require "espalier.io.shards"
local configs = require "espalier.models.config"
local fail = require "espalier.fail"

local M = {}

-- Files that go along as they are: the tokenizer's, in all the shapes that it comes in, and the terms of the source.
local along = { "^tokenizer%.json$", "^tokenizer%.model$", "^tokenizer%.model%.v%d+$", "^tokenizer_config%.json$", "^special_tokens_map%.json$",
  "^added_tokens%.json$", "^vocab%.json$", "^merges%.txt$", "^chat_template%.jinja$", "^tekken%.json$", "%.tiktoken$", "^generation_config%.json$",
  "^LICENSE", "^NOTICE" }

local function goes_along(name)
  for _, pattern in ipairs(along) do if name:find(pattern) then return true end end
  return false
end

-- The model's tokenizer, or nil where there is none that opens: its files are copied all the same.
local function tokenizer_of(model)
  local ok, tok = pcall(model.tok, model)
  return ok and tok or nil
end

local function write_along(model, dir)
  if model.source and file.kind(model.source) == "folder" then
    for _, name in ipairs(file.list(model.source)) do
      local from = file.join(model.source, name)
      if goes_along(name) and file.kind(from) == "file" then file.copy(from, file.join(dir, name)) end
    end
  else
    local tok = tokenizer_of(model)
    if tok then tok:write(dir) end
  end
end

-- Ids that config.json and generation_config.json name: the source's, else the tokenizer's.
local function special_ids(model)
  local ids, config, tok = {}, model.config or {}, tokenizer_of(model) or {}
  local is_folder = model.source and file.kind(model.source) == "folder"
  for name, own in pairs { bos_token_id = "bos", eos_token_id = "eos", pad_token_id = "pad" } do
    -- Where nobody says one, null: a class has ids of its own for what is missing, which may be beyond the vocabulary.
    if config[name] == nil then ids[name] = tok[own] or not is_folder and json.null or nil end
  end
  return ids
end

--- Writes the files into an empty folder. opt: dtype (nil: each weight's own), label (the one in config.json), kind (model_type), shard (most bytes
-- of weights in a file). Returns the names of the files of weights.
function M.write(model, dir, opt)
  local weights, names, own = {}, {}, model:parameters()
  for i, want in ipairs(configs.stored(model.shape, opt.kind)) do
    names[i], weights[want.name] = want.name, {}
    for k, part in ipairs(want.parts) do weights[want.name][k] = own[part.name] end
  end
  local files = shards.write(dir, weights, { order = names, dtype = opt.dtype, finite = true, shard = opt.shard })
  local config, ids = configs.to_config(model.shape, model.config, opt.label, { kind = opt.kind }), special_ids(model)
  for name, id in pairs(ids) do config[name] = id end
  json.write(file.join(dir, "config.json"), config)
  write_along(model, dir)
  local generation = file.join(dir, "generation_config.json")
  if not file.kind(generation) then
    local defaults = { _from_model_config = true }
    for _, name in ipairs { "bos_token_id", "eos_token_id", "pad_token_id" } do defaults[name] = config[name] end
    json.write(generation, defaults)
  end
  return files
end

--- Makes room for a folder: refuses one that holds something else, removes what a killed process left beside it.
function M.prepare(dir)
  local kind = file.kind(dir)
  if kind == "folder" and #file.list(dir) > 0 and not file.kind(file.join(dir, "espalier.json")) then
    fail("save: %s is not empty and was not written by espalier; name another folder", dir)
  elseif kind == "file" then
    fail("save: %s is a file; name a folder", dir)
  end
  local parent = dir:gsub("/+$", ""):match "^(.*)/[^/]*$"
  if parent and parent ~= "" then file.make(parent) end
  for _, name in ipairs(file.list(parent and parent ~= "" and parent or parent and "/" or ".")) do
    local owner = name:match("^" .. file.name(dir):gsub("%W", "%%%0") .. "%.part%-(%d+)$")
    if owner and not file.kind("/proc/" .. owner) then file.remove(file.join(parent or ".", name)) end
  end
end

return M
