--- Text and tokens for calibration, training and scoring: documents, tokenised when a model is known, packed into rows with their boundaries kept.

local tensor = require "espalier.tensor"
local core = require "espalier.ffi"
local source = require "espalier.data.source"
local memory = require "espalier.data.memory"
local disk = require "espalier.data.disk"
local documents = require "espalier.data.documents"
local growing = require "espalier.data.growing"
local blend = require "espalier.data.blend"
local options = require "espalier.options"
local fail = require "espalier.fail"

local M = {}

local spec = { seq = { "int" }, pack = { "string", one_of = { "cut", "whole", "none" } }, min_tokens = { "int", default = 1 }, tokenizer = { "any" } }
for name, rule in pairs(source.options) do spec[name] = rule end

-- Files of ids take no option about text: one given is a misunderstanding.
local function refuse_text_options(path, opt)
  for name in pairs(source.options) do
    if opt[name] ~= nil then fail("esp.data.open: %s holds ids; the option '%s' is about text", path, name) end
  end
end

local function open_one(path, opt)
  local corpus
  if type(path) == "string" then
    corpus = (path:match "%.h5$" or path:match "%.hdf5$") and disk.hdf5(path) or disk.megatron(path)
    if corpus then refuse_text_options(path, opt) end
  elseif type(path) ~= "table" then
    fail("esp.data.open: the first argument is %s, want a path, a list of texts, or { path = weight }", type(path))
  end
  corpus = corpus or memory.of_text(source.open(path, opt))
  if opt.tokenizer then corpus:bind(opt.tokenizer) end
  return documents.new(corpus, nil, opt):bind(opt.tokenizer)
end

-- { path = weight } or { path = { weight = .., options } }: each with the options of all and its own.
local function open_blend(paths, given)
  local parts = {}
  for path, entry in pairs(paths) do
    if type(path) ~= "string" then fail("esp.data.open: the blend names '%s', want paths", tostring(path)) end
    local opt, weight = {}, entry
    for k, v in pairs(given or {}) do opt[k] = v end
    if type(entry) == "table" then
      weight = entry.weight or fail("esp.data.open: '%s' has no weight", path)
      for k, v in pairs(entry) do if k ~= "weight" then opt[k] = v end end
    end
    parts[path] = { M.open(path, opt), weight }
  end
  return blend.new(parts)
end

--- esp.data.open(path [, opt]) -> data. path: a text file, a folder of .txt and .jsonl, a .jsonl, a token file (.h5), a Megatron pair (.bin, .idx or
-- their prefix), a list of texts, or a blend { ["wiki.h5"] = 0.3, ["code.jsonl"] = { weight = 0.2, field = "content" } },
-- which goes through each source epoch by epoch, in these proportions over every prefix; data.sources["wiki.h5"] is one of them.
-- Rows: opt.seq tokens each (the smaller of 1,024 and the model's context); opt.pack = "cut" (documents one after another, cut every seq tokens),
-- "whole" (whole documents as they fit, then padding; what SFT data does unless told), "none" (a document a row); opt.min_tokens: leave shorter
-- documents out. A token never attends to, and is never predicted from, another document.
-- Text: opt.separator between documents of a text file ("<|endoftext|>"; "": a file is a document); opt.field of a JSONL line ("text"; "a.b" is b
-- inside a); opt.tokenizer, else the model's that first uses the data; opt.bos in front of each document (true, where the tokenizer has one), opt.eos
-- behind it (false; true for completions); opt.special: special tokens written in the text are found (false; true for messages).
-- SFT: opt.prompt and opt.completion, or opt.messages (a list of { role, content }) with opt.template ("chatml", "llama3", { before, after }): the
-- loss and its counts are over the completion, or what the assistant says, alone.
function M.open(path, opt)
  local is_blend = type(path) == "table" and #path == 0 and next(path) ~= nil
  local checked = options.check("esp.data.open", opt, spec)
  if is_blend then return open_blend(path, opt) end
  return open_one(path, checked)
end

M.tokenize = require("espalier.data.tokenize").tokenize

--- Data of rows that are ids already: an i32 tensor [rows, tokens] or a table of rows; each is a document of its own.
function M.of(rows)
  if tensor.is(rows) then rows = rows:table() end
  local corpus = memory.of_rows(rows)
  corpus.longest_row = 1
  for _, row in ipairs(rows) do corpus.longest_row = math.max(corpus.longest_row, #row) end
  return documents.new(corpus, nil, { pack = "none", min_tokens = 1 }):bind(nil)
end

-- All hashes of data as one list; by ids where some of what is compared never was text.
local function gather(data, by_ids)
  local all = growing "u64"
  for _, d in ipairs(data:parts()) do
    all:append(by_ids and d:id_hashes().p or d:hashes(), d.documents)
  end
  return all
end

--- Refuses to score on documents that were trained on.
function M.refuse_overlap(train, held, what)
  local kinds = {}
  for _, data in ipairs { train, held } do
    for _, d in ipairs(data:parts()) do kinds[d.corpus.hash_of] = true end
  end
  local by_ids, at = kinds.text and kinds.ids, core.new "int64_t[1]"
  local a, b = gather(train, by_ids), gather(held, by_ids)
  core.try(core.C.esp_hashes_meet(at, a.p, a.count, b.p, b.count))
  if at[0] >= 0 then
    fail("%s: document %d of the held-out data is in the training data; scores on it would say nothing", what, tonumber(at[0]))
  end
end

return M
