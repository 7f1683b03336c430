--- espalier check: is a folder (or a GGUF file) what it says it is, and will others open it?

local file = require "espalier.io.file"
local json = require "espalier.io.json"
local models = require "espalier.models"
local configs = require "espalier.models.config"
local contract = require "espalier.export.contract"
local transformers = require "espalier.export.transformers"
local quantity = require "espalier.quantity"
local shapes = require "espalier.models.shape"
local fail = require "espalier.fail"

local M = {}
local Report = {}
Report.__index = Report

--- One line a check: "ok", "note" (nothing wrong) or "FAILED".
function Report:__tostring()
  local out = {}
  for i, line in ipairs(self) do out[i] = string.format("%-7s %-13s %s", line.mark, line.what, line.text) end
  return table.concat(out, "\n")
end

-- Runs one check: what it returns is its line; nil is no line. A second result of "note" marks it so.
local function run(report, what, fn, ...)
  local ok, text, mark = pcall(fn, ...)
  if ok and not text then return end
  report[#report + 1] = { what = what, mark = ok and (mark or "ok") or "FAILED", text = tostring(text) }
  report.ok = report.ok and ok
end

local function weights(model, facts)
  if not (facts.nll < math.huge) then fail("the mean negative log-likelihood of a fixed batch is %s", tostring(facts.nll)) end
  return string.format("%s parameters, all finite; %.4f nats a token on %s", quantity.show_exact(shapes.parameters(model.shape)), facts.nll,
    facts.batch == "text" and "a fixed text" or "ids spread over the vocabulary")
end

local function again(path, facts)
  local allowed = contract.allowed(facts.largest)
  if not (facts.difference <= allowed) then
    fail("opened again, with its weights in f32, %s gives logits that differ by %g, want at most %g", path, facts.difference, allowed)
  end
  return string.format("opened again, with its weights in f32: no logit differs by more than %.2g (the largest is %.3g)", facts.difference,
    facts.largest)
end

local function rounding(facts)
  if facts.rounding_difference == 0 then return "to bf16 changes nothing: its weights are in bf16, or as short", "note" end
  return string.format("to bf16 would change a logit by %.2g at most, and add %+.2g nats a token", facts.rounding_difference, facts.rounding), "note"
end

local function files(path, record)
  if not record then return "no espalier.json: there is nothing to compare the files with", "note" end
  local count = 0
  for name, hash in pairs(record.files or {}) do
    local full = file.join(path, name)
    if file.kind(full) ~= "file" then fail("%s is missing", full) end
    if file.hash(full) ~= hash then fail("%s is not what was written", full) end
    count = count + 1
  end
  return count .. " files have the hashes that espalier.json says"
end

local function probe(path, model)
  local full = file.join(path, "probe.safetensors")
  if not file.kind(full) then
    return "no probe.safetensors: that others compute these logits was not compared, only that the files give them again", "note"
  end
  local difference, largest = contract.compare_probe(model, full)
  local allowed = contract.allowed(largest)
  if not (difference <= allowed) then fail("logits differ from those in %s by %g, want at most %g", full, difference, allowed) end
  return string.format("no logit differs from those of probe.safetensors by more than %.2g", difference)
end

local function tokenizer(model)
  local ok, tok = pcall(model.tok, model)
  if not ok then
    if tostring(tok):find "no tokenizer" then return "there is none", "note" end
    error(tok, 0)
  end
  if tok.vocab > model.shape.vocab then fail("the tokenizer has %d pieces, the model's vocabulary %d", tok.vocab, model.shape.vocab) end
  return string.format("%s, %d pieces for a vocabulary of %d", tok.kind, tok.vocab, model.shape.vocab)
end

-- Every id that a config names is one of the vocabulary; eos may be a list.
local function ids(path, model)
  local checked = 0
  for _, name in ipairs { "config.json", "generation_config.json" } do
    local full = file.join(path, name)
    local config = file.kind(full) and json.read(full) or {}
    for _, key in ipairs { "bos_token_id", "eos_token_id", "pad_token_id" } do
      for _, id in ipairs(type(config[key]) == "table" and config[key] ~= json.null and config[key] or { config[key] }) do
        if type(id) == "number" then
          -- transformers writes -1 where there is no padding.
          if id >= model.shape.vocab or id < -1 then fail("%s: %s is %d, want 0 to %d", full, key, id, model.shape.vocab - 1) end
          checked = checked + 1
        end
      end
    end
  end
  return checked > 0 and checked .. " ids of config.json and generation_config.json are in the vocabulary" or nil
end

local function by_transformers(model)
  local kind, note = transformers.kind(model.shape, model.config)
  if kind == model.config.model_type and transformers.opens(model.shape, kind) then return "opens it as " .. configs.architecture(kind).class end
  return note, "note"
end

local function by_llama(model)
  local ok, plan = pcall(require("espalier.models.gguf").plan, model, "f32")
  if not ok then return (tostring(plan):gsub("^save: ", "")), "note" end
  return table.concat({ "a GGUF file can hold it", unpack(plan.notes) }, "; ")
end

--- Checks a model folder or a GGUF file: a list of lines { mark, what, text }, report.ok; print it. Nothing is written. report.contract: what a fixed
-- batch gave (contract.again).
function M.check(path)
  local report, model, odd = setmetatable({ ok = true }, Report), nil, nil
  path = models.find(path)
  local folder = file.kind(path) == "folder"
  run(report, "opens", function()
    model, odd = models.open(path)
    return shapes.text(model.shape)
  end)
  if not model then return report end
  local ok, facts = pcall(function() return contract.again(model, (models.open(path, { dtype = "f32" }))) end)
  run(report, "weights", function() return weights(model, ok and facts or error(facts, 0)) end)
  if ok then
    report.contract = facts
    run(report, "again", again, path, facts)
    run(report, "rounding", rounding, facts)
  end
  if folder then
    local record = file.join(path, "espalier.json")
    run(report, "files", function() return files(path, file.kind(record) and json.read(record)) end)
    run(report, "index", function() return odd, "note" end)
    run(report, "logits", probe, path, model)
    run(report, "ids", ids, path, model)
  end
  run(report, "tokenizer", tokenizer, model)
  if folder then run(report, "transformers", by_transformers, model) end
  run(report, "llama.cpp", by_llama, model)
  return report
end

return M
