--- Models written for other programs: a Hugging Face folder, or a GGUF file for llama.cpp, each opened again and compared before it is put in place.
--
-- A folder holds, beside the model, espalier.json: { lineage, dtype, model_type, notes, contract = { difference, largest, nll, rounding, batch },
-- files = { name = XXH3 } }, README.md (card.lua) and probe.safetensors (contract.lua).

local core = require "espalier.ffi"
local scope = require "espalier.scope"
local lazy = require "espalier.tensor.lazy"
local file = require "espalier.io.file"
local json = require "espalier.io.json"
local lineages = require "espalier.lineage.store"
local contract = require "espalier.export.contract"
local folder = require "espalier.export.folder"
local card = require "espalier.export.card"
local transformers = require "espalier.export.transformers"
local options = require "espalier.options"
local fail = require "espalier.fail"

local M = {}

local by_torch = { float32 = "f32", bfloat16 = "bf16", float16 = "f16" }

--- The dtype that a parsed config.json names in either spelling; "f32" where it names none.
function M.config_dtype(config)
  return by_torch[config.dtype] or by_torch[config.torch_dtype] or "f32"
end

--- The dtype to write a model in: nil where each weight keeps the one that it was read in, else that of its source's config, else f32.
-- model.kept_dtype: another.
function M.dtype(model)
  if model.kept_dtype then return model.kept_dtype end
  if model:parameters()["model.embed_tokens.weight"].stored then return nil end
  return M.config_dtype(model.config or {})
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

-- The model as it is and as a folder holds it; one and the same where nothing is rounded.
local function rounded(model, asked)
  local written, changes = contract.through(model, function(t) return lazy.stored(t, asked) end)
  return changes and contract.through(model, function(t) return t.dtype end) or written, written
end

local function hashes(dir)
  local list = {}
  for _, name in ipairs(file.list(dir)) do list[name] = file.hash(file.join(dir, name)) end
  return list
end

-- A model that comes out as it went in keeps what was found when it was first rounded: rounding it again costs nothing.
local function keep_facts(model, files, facts)
  local before = model.source and file.kind(file.join(model.source, "espalier.json")) and json.read(file.join(model.source, "espalier.json"))
  if not (before and before.contract and before.files) then return facts end
  for _, name in ipairs(files) do if before.files[name] ~= file.hash(file.join(files.dir, name)) then return facts end end
  return before.contract
end

local function write_folder(model, part, opt, notes)
  local kind, note = transformers.kind(opt.twin.shape, model.config)
  if note then notes[#notes + 1] = note end
  local label = common_dtype(opt.twin, opt.dtype)
  local files = folder.write(opt.twin, part, { dtype = opt.dtype, label = label, kind = kind, shard = opt.shard })
  files.dir = part
  local reopened = require("espalier.models.huggingface").load(part)
  local original, written = rounded(model, opt.dtype)
  local facts, rows, logits = contract.prove(original, written, reopened, { tolerance = opt.padded and 1e-5 or nil })
  facts = keep_facts(model, files, facts)
  contract.write_probe(file.join(part, "probe.safetensors"), rows, logits)
  local record = { dtype = label, model_type = kind, notes = json.array { unpack(notes) }, contract = facts }
  file.write(file.join(part, "README.md"), card.text(opt.twin, record))
  record.lineage = lineages.write(opt.twin.lineage, part)
  record.files = hashes(part)
  json.write(file.join(part, "espalier.json"), record)
  return facts
end

local function save_folder(model, dir, opt)
  dir = dir:gsub("/+$", "")
  folder.prepare(dir)
  local part, notes = dir .. ".part-" .. core.C.esp_process_id(), {}
  file.remove(part)
  file.make(part)
  opt.twin = opt.padded and require("espalier.export.padded").twin(model) or model
  if opt.padded then notes[1] = "layers that differed in width are padded with zeros to the widest" end
  local ok, facts = pcall(scope.run, write_folder, model, part, opt, notes)
  if not ok then
    file.remove(part)
    error(facts, 0)
  end
  file.replace(part, dir)
  return facts, notes
end

local function save_gguf(model, path, opt)
  local twin = opt.padded and require("espalier.export.padded").twin(model) or model
  local plan = require("espalier.models.gguf").plan(twin, opt.dtype)
  local parent = path:match "^(.*)/[^/]*$"
  if parent and parent ~= "" then file.make(parent) end
  if file.kind(path) == "folder" then fail("save: %s is a folder; name a file", path) end
  -- Its name ends in .gguf too, so that it is opened as what it is.
  local part = path:gsub("%.gguf$", "") .. ".part-" .. core.C.esp_process_id() .. ".gguf"
  local ok, facts = pcall(scope.run, function()
    plan:write(part)
    local reopened = require("espalier.models.gguf").load(part)
    return (contract.prove(model, plan:rounded(), reopened, { context = plan.shape.context }))
  end)
  if not ok then
    file.remove(part)
    error(facts, 0)
  end
  file.rename(part, path)
  return facts, plan.notes
end

--- model:save(path, opt): a Hugging Face folder, or a GGUF file where path ends in .gguf; beside its name first, opened again, logits compared on a
-- fixed batch with those of the model rounded to what was written, then put in place; nothing appears where they disagree.
-- opt.dtype: "f32", "bf16" or "f16" for all weights (otherwise each keeps the one that the source has it in), for GGUF also "q8_0"; opt.shard: most
-- bytes of weights in a file ("5GB"); opt.padded: the twin of one width of a model whose layers differ in it (export/padded.lua).
-- Returns the largest difference of a logit, and { difference, largest (logit), nll, rounding (what rounding cost in NLL), batch }.
function M.save(model, path, opt)
  opt = options.check("model:save", opt, { dtype = { "string", one_of = { "f32", "bf16", "f16", "q8_0" } }, shard = { "bytes", default = "5GB" },
    padded = { "bool", default = false }, quiet = { "bool", default = false } })
  if type(path) ~= "string" or path == "" then fail("model:save: the path is %s, want a text", tostring(path)) end
  local gguf = path:match "%.gguf$"
  if opt.dtype == "q8_0" and not gguf then fail("model:save: q8_0 is a type of GGUF; name a file that ends in .gguf") end
  opt.dtype = opt.dtype or M.dtype(model)
  if gguf then opt.dtype = opt.dtype or common_dtype(model) end
  local facts, notes = (gguf and save_gguf or save_folder)(model, path, opt)
  if not opt.quiet then
    print(string.format("wrote %s (%s); opened again, largest difference of a logit %.2g, NLL %.4f, of which rounding %+.2g", path,
      opt.dtype or common_dtype(model), facts.difference, facts.nll, facts.rounding))
    for _, note in ipairs(notes) do print("  " .. note) end
  end
  return facts.difference, facts
end

return M
