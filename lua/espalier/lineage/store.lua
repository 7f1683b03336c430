--- Lineage on disk: the steps in espalier.json, the sets of indices that each step kept beside it in kept.h5 (N/hidden, N/layers, N/ffn.L,
-- N/heads.L, N/kv_heads.L; N counts the steps, L the layers of the model before the step, both from 0).

local file = require "espalier.io.file"
local json = require "espalier.io.json"
local hdf5 = require "espalier.io.hdf5"
local tensor = require "espalier.tensor"

local M = { name = "kept.h5" }

-- Where the sets of a loaded step lie; they are read when somebody asks.
local stored = setmetatable({}, { __mode = "k" })

-- One set as it is written: an i32 tensor. A layer without that part keeps nothing, which HDF5 has no name for, so it is left out.
local function put(values, name, set)
  if #set > 0 then values[name] = tensor.of(set, { dtype = "i32" }) end
end

--- Writes kept.h5 of a list of steps into a folder; nothing where no step kept a set. Returns the steps as espalier.json holds them.
function M.write(lineage, dir)
  local values, plain = {}, {}
  for i, step in ipairs(lineage) do
    for axis, sets in pairs(M.kept(step) or {}) do
      local at = i - 1 .. "/" .. axis
      if axis == "hidden" or axis == "layers" then
        put(values, at, sets)
      else
        for l, set in pairs(sets) do put(values, at .. "." .. l - 1, set) end
      end
    end
    plain[i] = {}
    for k, v in pairs(step) do if k ~= "kept" then plain[i][k] = v end end
  end
  if next(values) then hdf5.write(file.join(dir, M.name), values) end
  return json.array(plain)
end

--- The steps of a folder's espalier.json; {} where it has none.
function M.read(dir)
  local record = file.join(dir, "espalier.json")
  local list = file.kind(record) and json.read(record).lineage or {}
  local path = file.join(dir, M.name)
  if file.kind(path) then
    for i, step in ipairs(list) do stored[step] = { path = path, prefix = i - 1 .. "/" } end
  end
  return list
end

--- The sets that a step kept, { hidden = {..}, layers = {..}, ffn = { [l+1] = {..} }, heads =, kv_heads =, partners = }, or nil.
function M.kept(step)
  local at = stored[step]
  if step.kept or not at then return step.kept end
  local f, sets = hdf5.open(at.path), {}
  for _, name in ipairs(f.names) do
    if name:sub(1, #at.prefix) == at.prefix then
      local axis, l = name:sub(#at.prefix + 1):match "^([%a_]+)%.?(%d*)$"
      local set = f:tensor(name):table()
      if l == "" then
        sets[axis] = set
      else
        sets[axis] = sets[axis] or {}
        sets[axis][tonumber(l) + 1] = set
      end
    end
  end
  f:close()
  step.kept = next(sets) and sets or nil
  return step.kept
end

return M
