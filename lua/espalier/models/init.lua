--- Opening and making models.

local file = require "espalier.io.file"
local models = require "espalier.models.model"
local fail = require "espalier.fail"

local M = { new = models.new }

-- Folder of "org/name" in the local Hugging Face cache, or nil.
local function cached(name)
  local home = os.getenv "HF_HOME" or os.getenv "XDG_CACHE_HOME" and os.getenv "XDG_CACHE_HOME" .. "/huggingface"
    or (os.getenv "HOME" or "") .. "/.cache/huggingface"
  local hub = os.getenv "HF_HUB_CACHE" or home .. "/hub"
  local snapshots = hub .. "/models--" .. name:gsub("/", "--")
  local ref = snapshots .. "/refs/main"
  if file.kind(ref) == "file" then
    local dir = snapshots .. "/snapshots/" .. file.read(ref):match "^%s*(%x+)"
    if file.kind(dir) == "folder" then return dir end
  end
  if file.kind(snapshots .. "/snapshots") == "folder" then
    local all = file.list(snapshots .. "/snapshots")
    if #all > 0 then return snapshots .. "/snapshots/" .. all[#all] end
  end
end

--- Where a model is: the path itself, or the folder of "org/name" in the local Hugging Face cache; else the sentence that says how to fetch it.
function M.find(name)
  if type(name) ~= "string" then fail("esp.load: the model is %s, want a path or a name", type(name)) end
  if file.kind(name) then return name end
  if name:match "^[%w%._%-]+/[%w%._%-]+$" then
    return cached(name)
      or fail("esp.load: '%s' is neither a path nor in the local Hugging Face cache; this line fetches it: hf download %s", name, name)
  end
  fail("esp.load: there is no '%s'", name)
end

--- The same as load, without a warning: the model, and a sentence about what is odd in its files but does no harm, or nil.
function M.open(name, opt)
  local path = M.find(name)
  if file.kind(path) == "folder" then return require("espalier.models.huggingface").load(path, opt) end
  if path:match "%.gguf$" then return require("espalier.models.gguf").load(path, opt) end
  return require("espalier.models.llama2c").load(path)
end

--- Opens a model: a Hugging Face folder, its name in the local cache, a GGUF file, or a llama2.c .bin. opt.dtype: "f32" or "bf16" converts the
-- weights of the first three.
function M.load(name, opt)
  local model, odd = M.open(name, opt)
  if odd then fail.warn(odd) end
  return model
end

return M
