--- The weights of a folder: model.safetensors, or shards that model.safetensors.index.json names. Read with every rule of the index checked, and
-- written in shards of at most 5 GB, whole or not at all.

local file = require "espalier.io.file"
local json = require "espalier.io.json"
local safetensors = require "espalier.io.safetensors"
local tensor = require "espalier.tensor"
local lazy = require "espalier.tensor.lazy"
local quantity = require "espalier.quantity"
local fail = require "espalier.fail"

local M = { single = "model.safetensors", index = "model.safetensors.index.json" }

-- ---- in ----

-- A shard is a name in the folder. (It may be a link out of it: the Hugging Face cache is made of such.)
local function check_part(index, name, part)
  if type(part) ~= "string" then fail("%s: '%s' is in %s, want the name of a file", index, name, tostring(part)) end
  if part == "" or part == "." or part == ".." or part:find "[/%z]" then
    fail("%s: '%s' is in '%s', which is no file of the folder", index, name, part)
  end
end

-- Shards of the folder that no entry names, where the names are numbered "...-00001-of-00003.safetensors".
local function check_unnamed(dir, index, opened)
  local of = {}
  for part in pairs(opened) do
    local stem, count = part:match "^(.*)%-%d+%-of%-(%d+)%.safetensors$"
    if stem then of[stem .. "-of-" .. count] = true end
  end
  for _, name in ipairs(file.list(dir)) do
    local stem, count = name:match "^(.*)%-%d+%-of%-(%d+)%.safetensors$"
    if stem and of[stem .. "-of-" .. count] and not opened[name] then fail("%s: names nothing of %s, which lies beside it", index, name) end
  end
end

-- { [tensor name] = file name } of an index, every one of them a name in the folder; and what it says of the bytes of all, or nil.
local function read_index(index)
  local whole = json.read(index)
  local map = type(whole) == "table" and whole.weight_map
  if type(map) ~= "table" then fail("%s: field 'weight_map' is missing", index) end
  for name, part in pairs(map) do check_part(index, name, part) end
  return map, type(whole.metadata) == "table" and whole.metadata.total_size or nil
end

-- A sentence where the bytes that an index claims are not those of its tensors; files' own bytes, which some programs write, pass. Nothing is made
-- of the number, and names, shapes and bytes are all checked without it: a wrong one does no harm.
local function check_total(index, total, opened)
  local tensors, files = 0, 0
  for _, f in pairs(opened) do
    tensors = tensors + f.bytes
    files = files + file.size(f.path)
  end
  if total == nil or total == json.null or total == tensors or total == files then return nil end
  return string.format("%s: total_size is %s, but the tensors of its shards have %s bytes; all else of it holds", index,
    type(total) == "number" and string.format("%.0f", total) or "no number", string.format("%.0f", tensors))
end

local function by_index(dir, index)
  local map, total = read_index(index)
  local where, opened, count = {}, {}, {}
  for name, part in pairs(map) do
    if not opened[part] then
      local path = file.join(dir, part)
      if not file.kind(path) then fail("%s: '%s' is in %s, which is not there", index, name, part) end
      opened[part], count[part] = safetensors.open(path), 0
    end
    if not opened[part].index[name] then fail("%s: '%s' is said to be in %s, which does not hold it", index, name, part) end
    where[name], count[part] = opened[part], count[part] + 1
  end
  for part, f in pairs(opened) do
    -- Names are unique in the map, so a shard with more of them than the map has for it holds one that is missing or mapped elsewhere.
    if count[part] ~= #f.names then
      for _, name in ipairs(f.names) do
        if where[name] ~= f then
          fail("%s: %s holds '%s', which %s", index, part, name, where[name] and "is also in another shard" or "no entry names")
        end
      end
    end
  end
  check_unnamed(dir, index, opened)
  return where, check_total(index, total, opened)
end

--- Files of the weights of a folder: the shards of its index, or the one file; none where it has neither. Nothing of them is opened.
function M.files(dir)
  local index, one = file.join(dir, M.index), file.join(dir, M.single)
  if not file.kind(index) then return file.kind(one) and { one } or {} end
  local seen, list = {}, {}
  for _, part in pairs((read_index(index))) do
    if not seen[part] then list[#list + 1] = file.join(dir, part) end
    seen[part] = true
  end
  return list
end

--- { [tensor name] = open safetensors file } of a folder; and a sentence about its index that does no harm, or nil.
function M.open(dir)
  local index = file.join(dir, M.index)
  if file.kind(index) then return by_index(dir, index) end
  local path, where = file.join(dir, M.single), {}
  if not file.kind(path) then
    local pickled = file.kind(file.join(dir, "pytorch_model.bin")) or file.kind(file.join(dir, "pytorch_model.bin.index.json"))
    fail("%s holds no model.safetensors (nor an index of shards)%s", dir, pickled and
      "; its pytorch_model.bin is a pickle, which can run any program when it is opened and is not read: save the model as safetensors" or "")
  end
  local one = safetensors.open(path)
  for _, name in ipairs(one.names) do where[name] = one end
  return where
end

-- ---- out ----

local width = { f32 = 4, bf16 = 2, f16 = 2, i32 = 4, u8 = 1, f64 = 8 }

local function bytes_of(entry, dtype)
  local total = 0
  for _, t in ipairs(tensor.is(entry) and { entry } or entry) do total = total + t:count() * width[lazy.stored(t, dtype)] end
  return total
end

-- Names in order, in groups of at most `most` bytes; what is larger stands alone.
local function groups(tensors, order, dtype, most)
  local all, size, total = {}, 0, 0
  for _, name in ipairs(order) do
    local bytes = bytes_of(tensors[name], dtype)
    if #all == 0 or size + bytes > most then
      all[#all + 1], size = {}, 0
    end
    table.insert(all[#all], name)
    size, total = size + bytes, total + bytes
  end
  return all, total
end

--- Writes { [name] = tensor, or a list of tensors one below the other } into a folder: model.safetensors, or numbered shards and their index.
-- opt.order: list of names; opt.shard: most bytes of tensors in a file ("5GB"; filled in that order); opt.dtype, finite: as safetensors.write.
-- Where it fails nothing stays. Returns the names of the files.
function M.write(dir, tensors, opt)
  local all, total = groups(tensors, opt.order, opt.dtype, quantity.bytes(opt.shard or "5GB"))
  local files, map = {}, {}
  local ok, message = pcall(function()
    for i, names in ipairs(all) do
      files[i] = #all == 1 and M.single or string.format("model-%05d-of-%05d.safetensors", i, #all)
      safetensors.write(file.join(dir, files[i]), tensors, { order = names, dtype = opt.dtype, finite = opt.finite, metadata = { format = "pt" } })
      for _, name in ipairs(names) do map[name] = files[i] end
    end
    if #all > 1 then
      files[#files + 1] = M.index
      json.write(file.join(dir, M.index), { metadata = { total_size = total }, weight_map = map })
    end
  end)
  if not ok then
    for _, name in ipairs(files) do file.remove(file.join(dir, name)) end
    error(message, 0)
  end
  return files
end

return M
