--- README.md of an exported folder: what the model is, what was done to it, how it was checked, and how to check and run it. Made of facts alone, so
-- that the same model has the same card.

local lineages = require "espalier.lineage"
local shapes = require "espalier.models.shape"
local configs = require "espalier.models.config"
local transformers = require "espalier.export.transformers"
local quantity = require "espalier.quantity"

local M = {}

local torch_names = { f32 = "float32", bf16 = "bfloat16", f16 = "float16" }

--- The lines of Python that check a folder with transformers.
M.check = [[
import torch, transformers, safetensors.torch
probe = safetensors.torch.load_file("probe.safetensors")
model = transformers.AutoModelForCausalLM.from_pretrained(".", dtype=torch.float32)
logits = model(probe["ids"].long()).logits
print("largest difference of a logit:", (logits - probe["logits"]).abs().max().item())
]]

local function front(model)
  local first = model.lineage[1]
  local base = first and type(first.parent) == "string" and first.parent:match "models%-%-([^/]+%-%-[^/]+)/snapshots"
  local lines = { "---", "library_name: transformers", "pipeline_tag: text-generation", "tags:", "- espalier" }
  for _, step in ipairs(model.lineage) do
    if step.step == "prune" then
      lines[#lines + 1] = "- pruned"
      break
    end
  end
  if base then lines[#lines + 1] = "base_model: " .. base:gsub("%-%-", "/", 1) end
  lines[#lines + 1] = "---"
  return table.concat(lines, "\n")
end

local function what_it_is(model, record)
  local s, config = model.shape, configs.architecture(record.model_type, "card")
  local lines = { string.format("A `%s` of %s parameters (%s outside the embeddings), stored in %s.", config.class,
    quantity.show_exact(shapes.parameters(s)), quantity.show_exact(shapes.parameters(s) - shapes.embedding_parameters(s)),
    torch_names[record.dtype]), "", shapes.text(s) .. "; context " .. s.context .. (s.tied and "; head tied to the embedding." or ".") }
  for _, note in ipairs(record.notes) do
    lines[#lines + 1] = ""
    lines[#lines + 1] = "Note: " .. note .. "."
  end
  return table.concat(lines, "\n")
end

local function where_from(model)
  if #model.lineage == 0 then return "Written by Espalier, which changed none of its weights but to round them." end
  return "Made by Espalier, step by step:\n\n```\n" .. tostring(lineages.lineage(model)) .. "\n```"
end

local function how_checked(record)
  local c = record.contract
  local batch = c.batch == "text" and "a fixed text" or "ids spread over the vocabulary"
  return string.format([[
These files were opened again before they were put in place: on %s (`probe.safetensors`: ids and logits) no logit differed from those of the model
rounded to %s by more than %.2g. The largest logit there is %.3g, the mean negative log-likelihood %.4f nats a token; rounding changed that by %+.2g.
`espalier check .` does it again, hashes of all files included.]], batch, torch_names[record.dtype], c.difference, c.largest, c.nll, c.rounding)
end

local function others(record)
  return string.format([[
With transformers, in this folder:

```python
%s```

With vLLM: `vllm serve . --dtype %s`. With llama.cpp: `espalier -e 'esp.load("."):save("model.gguf")'`, or its own
`convert_hf_to_gguf.py . --outtype %s --outfile model.gguf`; then `llama-cli -m model.gguf -p "Once upon a time"`.]], M.check,
    torch_names[record.dtype], record.dtype)
end

--- The text of the card. record: { dtype, model_type, notes (sentences), contract (export/contract.lua) }.
function M.text(model, record)
  local class = configs.architecture(record.model_type, "card").class
  local parts = { front(model), string.format("# %s, %s parameters", class, quantity.show_count(shapes.parameters(model.shape))),
    what_it_is(model, record), "## Where it comes from", where_from(model), "## How it was checked", how_checked(record), "## Check it, run it" }
  if transformers.opens(model.shape, record.model_type) then
    parts[#parts + 1] = others(record)
  else
    parts[#parts + 1] = "Espalier opens this folder: `espalier check .`. Other programs do not, for the reason above."
  end
  return table.concat(parts, "\n\n") .. "\n"
end

return M
