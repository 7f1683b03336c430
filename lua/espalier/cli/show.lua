--- Values and files for people to read.

local file = require "espalier.io.file"
local quantity = require "espalier.quantity"

local M = {}

local function sorted_keys(t)
  local keys = {}
  for k in pairs(t) do keys[#keys + 1] = k end
  table.sort(keys, function(a, b)
    if type(a) == type(b) and (type(a) == "number" or type(a) == "string") then return a < b end
    return tostring(a) < tostring(b)
  end)
  return keys
end

--- A value as text: tables to depth 3 and twenty entries, all else by its own tostring.
function M.value(v, depth)
  depth = depth or 0
  if type(v) == "string" then return depth == 0 and v or string.format("%q", v) end
  local meta = getmetatable(v)
  if type(v) ~= "table" or (meta and meta.__tostring) then return tostring(v) end
  if depth == 3 then return "{ .. }" end
  local parts, count = {}, 0
  for _, k in ipairs(sorted_keys(v)) do
    count = count + 1
    if count > 20 then
      parts[#parts + 1] = ".."
      break
    end
    local text = M.value(v[k], depth + 1)
    parts[#parts + 1] = type(k) == "number" and k == count and text or tostring(k) .. " = " .. text
  end
  if #parts == 0 then return "{}" end
  return "{ " .. table.concat(parts, ", ") .. " }"
end

-- A line a tensor, then their number and the numbers in them.
local function tensor_lines(lines, names, describe)
  local total = 0
  for _, name in ipairs(names) do
    local shape, dtype = describe(name)
    local count = 1
    for _, n in ipairs(shape) do count = count * n end
    total = total + count
    lines[#lines + 1] = string.format("%-60s %-6s [%s]", name, dtype, table.concat(shape, ", "))
  end
  lines[#lines + 1] = string.format("%d tensors, %s numbers", #names, quantity.show_exact(total))
  return table.concat(lines, "\n")
end

local function safetensors_file(path)
  local f, lines = require("espalier.io.safetensors").open(path), {}
  for _, key in ipairs(sorted_keys(f.metadata)) do lines[#lines + 1] = string.format("%s: %s", key, M.value(f.metadata[key], 1)) end
  return tensor_lines(lines, f.names, function(name) return f:describe(name) end)
end

local function gguf_file(path)
  local f = require("espalier.io.gguf").open(path)
  local lines = { "GGUF version " .. f.version }
  for _, key in ipairs(f.keys) do
    local value, kind = f:get(key)
    local shown = type(value) == "table" and string.format("%d of them: %s", #value, M.value(value, 1)) or M.value(value, 1)
    lines[#lines + 1] = string.format("%s (%s): %s", key, kind, shown)
  end
  return tensor_lines(lines, f.names, function(name) return f:describe(name) end)
end

local function hdf5_file(path)
  local f, lines = require("espalier.io.hdf5").open(path), {}
  for _, key in ipairs { "format", "tokenizer", "tokenizer_hash", "vocab", "bos", "eos", "rule", "source" } do
    local value = f:attribute(key)
    if value then lines[#lines + 1] = key .. ": " .. value end
  end
  return tensor_lines(lines, f.names, function(name) return f:describe(name) end)
end

local function json_file(path)
  local json = require "espalier.io.json"
  return json.encode(json.read(path), { indent = "  " })
end

local function model_folder(path)
  local model = require("espalier.models").load(path)
  local lines = { tostring(model), "bytes in f32: " .. quantity.show_bytes(4 * require("espalier.models.shape").parameters(model.shape)) }
  lines[#lines + 1] = tostring(require("espalier.lineage").lineage(model))
  return table.concat(lines, "\n")
end

local by_ending = { safetensors = safetensors_file, gguf = gguf_file, h5 = hdf5_file, hdf5 = hdf5_file, json = json_file }

--- What is in a file: safetensors, GGUF, HDF5, JSON; or a model: its folder or a llama2.c checkpoint.
function M.file(path)
  local kind = file.kind(path)
  if not kind then require "espalier.fail"("show: there is no '%s'", path) end
  local reader = kind == "file" and by_ending[path:match "%.(%w+)$" or ""]
  return (reader or model_folder)(path)
end

return M
