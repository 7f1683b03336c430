--- Text, JSONL and Megatron pairs into a token file: in parallel, in memory that does not grow with the input, whole or not at all.
--
-- The file: datasets tokens [n] (u16 where the vocabulary allows, else i32), document_offsets [documents + 1] (i64), document_hashes [documents]
-- (u64), and for SFT data loss_mask [n] (u8, 1 where the loss counts a token); attributes format, version, tokenizer, tokenizer_hash, vocab, bos, eos
-- (the ids put around each document, -1 for none), hash_of ("text" or "ids"), rule and source (JSON). Chunks carry Fletcher32, so that h5py, and all
-- else that reads through HDF5, checks what it reads.

local core = require "espalier.ffi"
local file = require "espalier.io.file"
local hdf5 = require "espalier.io.hdf5"
local json = require "espalier.io.json"
local source = require "espalier.data.source"
local disk = require "espalier.data.disk"
local options = require "espalier.options"
local progress = require "espalier.progress"
local quantity = require "espalier.quantity"
local fail = require "espalier.fail"

local M = {}

local spec = { input = { "any", required = true }, out = { "path", required = true }, tokenizer = { "any" }, quiet = { "bool", default = false } }
for name, rule in pairs(source.options) do spec[name] = rule end
M.options = spec

-- ---- writing ----

-- A token file being written; counts go on from batch to batch.
local Sink = {}
Sink.__index = Sink

local function sink_of(path, stored)
  return setmetatable({ f = hdf5.create(path), stored = stored, documents = 0, tokens = 0 }, Sink)
end

-- Appends documents: int32_t ids, their lengths and hashes, and a mask or nil.
function Sink:append(documents, tokens, ids, lengths, hashes, counted)
  local ends, first = core.new("double[?]", documents + 1), self.documents == 0 and 1 or 0
  for d = 0, documents - 1 do ends[d + 1] = (d == 0 and self.tokens or ends[d]) + tonumber(lengths[d]) end
  self.f:grow("tokens", self.stored, "i32", ids, tokens)
  if counted then self.f:grow("loss_mask", "u8", "u8", counted, tokens) end
  -- The first batch brings the leading 0.
  self.f:grow("document_offsets", "i64", "f64", ends + 1 - first, documents + first)
  self.f:grow("document_hashes", "u64", "u64", hashes, documents)
  self.documents, self.tokens = self.documents + documents, self.tokens + tokens
end

-- A killed process leaves its part of a file; the next one that writes there sweeps it up.
local function sweep_up(out)
  local folder = out:match "^(.*)/[^/]*$" or "."
  if file.kind(folder) ~= "folder" then return end
  local begin = file.name(out) .. ".part-"
  for _, name in ipairs(file.list(folder)) do
    local pid = name:sub(1, #begin) == begin and name:sub(#begin + 1):match "^%d+$"
    if pid and not file.kind("/proc/" .. pid) then file.remove(file.join(folder, name)) end
  end
end

-- ---- the two kinds of input ----

local function write_text(sink, from, tok, bar)
  local start = core.C.esp_clock()
  from:each(tok, function(e, at)
    sink:append(tonumber(e.documents), tonumber(e.tokens), e.ids, e.lengths, e.hashes, from.masked and e.counted or nil)
    local speed = at / 1e6 / (core.C.esp_clock() - start)
    bar:update(math.ceil(at / 1e3), string.format("kB  %s tokens  %.1f MB/s", quantity.show_count(sink.tokens), speed))
  end)
end

-- Documents of a pair, some at a time; ids must be the tokenizer's.
local function write_megatron(sink, c, tok, bar)
  local offsets, d, most = c:offsets(), 0, 2 ^ 20
  while d < c.documents do
    local from = d
    repeat d = d + 1 until d == c.documents or offsets[d + 1] - offsets[from] > most
    local n, tokens = d - from, offsets[d] - offsets[from]
    local ids, lengths, hashes = core.new("int32_t[?]", math.max(1, tokens)), core.new("double[?]", n), core.new("uint64_t[?]", n)
    c:read(offsets[from], tokens, ids)
    for i = 0, tokens - 1 do
      if tok and ids[i] >= tok.vocab then
        fail("tokenize: %s: token %.0f is %d, the tokenizer has %d pieces", c.path, offsets[from] + i, ids[i], tok.vocab)
      end
    end
    for i = 0, n - 1 do
      lengths[i] = offsets[from + i + 1] - offsets[from + i]
      hashes[i] = core.C.esp_hash64(ids + (offsets[from + i] - offsets[from]), 4 * lengths[i])
    end
    sink:append(n, tokens, ids, lengths, hashes)
    bar:update(math.ceil(4 * sink.tokens / 1e3), string.format("kB  %s tokens", quantity.show_count(sink.tokens)))
  end
end

-- What is to be read: { pairs } of Megatron, or { text }, a source; never both, as their hashes are of different things.
local function inputs_of(o)
  local paths, pairs_found, texts = type(o.input) == "table" and o.input or { o.input }, {}, {}
  for _, path in ipairs(paths) do
    if type(path) ~= "string" then fail("tokenize: the input is %s, want a path", type(path)) end
    if path:match "%.h5$" or path:match "%.hdf5$" then fail("tokenize: %s is HDF5; its tokens are there already", path) end
    local pair = disk.megatron(path)
    if pair then pairs_found[#pairs_found + 1] = pair else texts[#texts + 1] = path end
  end
  if #pairs_found > 0 and #texts > 0 then fail("tokenize: Megatron pairs and text go into files of their own; blend them when they are opened") end
  if #texts + #pairs_found == 0 then fail("tokenize: name what is to be tokenised") end
  if #texts > 0 then return { text = source.open({ paths = texts }, o) } end
  for name in pairs(source.options) do
    if o[name] ~= nil then fail("tokenize: a Megatron pair holds ids; the option '%s' is about text", name) end
  end
  return { pairs = pairs_found }
end

local function record(sink, o, tok, from)
  local f, rule = sink.f, from.text and from.text:rule(tok) or {}
  f:text("format", "espalier tokens")
  f:integer("version", 1)
  f:text("made_by", "espalier " .. require("espalier").version)
  if tok then
    f:text("tokenizer", tok.path)
    f:text("tokenizer_hash", tok:hash())
    f:integer("vocab", tok.vocab)
  end
  f:integer("bos", rule.bos or -1)
  f:integer("eos", rule.eos or -1)
  f:text("hash_of", from.text and "text" or "ids")
  f:text("rule", from.text and from.text:describe(tok) or "megatron")
  f:text("source", json.encode(json.array(type(o.input) == "table" and o.input or { o.input })))
end

local function write(sink, from, tok, o)
  local bytes = from.text and from.text.bytes or 0
  for _, c in ipairs(from.pairs or {}) do bytes = bytes + 4 * c:offsets()[c.documents] end
  local bar = progress.new { label = "tokenize", total = math.ceil(bytes / 1e3), quiet = o.quiet }
  if from.text then write_text(sink, from.text, tok, bar) end
  for _, c in ipairs(from.pairs or {}) do write_megatron(sink, c, tok, bar) end
  if sink.tokens == 0 then fail("tokenize: no documents in it") end
  record(sink, o, tok, from)
end

-- ids of 16 bits where all ids are below 2^16.
local function stored_as(tok, from)
  if tok then return tok.vocab <= 65536 and "u16" or "i32" end
  for _, c in ipairs(from.pairs) do if c.wide then return "i32" end end
  return "u16"
end

--- Writes a token file: esp.data.tokenize{ input =, out =, tokenizer = } -> { out, documents, tokens, seconds, stored }; from the command line
-- espalier tokenize INPUT .. out=FILE.h5 tokenizer=MODEL name=value ...
-- input: text files, folders of .txt and .jsonl, .jsonl files (one or several), or Megatron pairs, whose ids stay as they are; out: the .h5 that is
-- written, replaced whole where it is there; tokenizer: a model's folder or a tokenizer's file.
-- separator: what stands between documents of a text file (<|endoftext|>; empty: a file is a document). field: of a JSONL line (text; a.b is b
-- inside a). bos: BOS in front of each document (yes, where the tokenizer has one); eos: EOS behind it (no; yes for completions); both are recorded
-- in the file. special: special tokens written in the text are found (no; yes for messages). prompt and completion, or messages with template
-- (chatml, llama3, or before,after): SFT data, whose loss_mask says what the loss counts.
-- Results do not depend on the number of threads (ESPALIER_THREADS). Errors name the file and the line or document; then, and when it is
-- interrupted, nothing is left behind.
function M.tokenize(opt)
  local o = options.check("tokenize", opt, spec)
  local tok, from = o.tokenizer, inputs_of(o)
  if type(tok) == "string" then tok = require("espalier.tokenizer").load(tok) end
  if from.text and not tok then fail("tokenize: option 'tokenizer' is missing; want a model's folder or a tokenizer's file") end
  if not (o.out:match "%.h5$" or o.out:match "%.hdf5$") then fail("tokenize: out = '%s', want a name that ends in .h5", o.out) end
  local start = core.C.esp_clock()
  sweep_up(o.out)
  local sink
  local ok, problem = pcall(function()
    sink = sink_of(o.out, stored_as(tok, from))
    write(sink, from, tok, o)
    sink.f:publish()
  end)
  if not ok then
    if sink then sink.f:abandon() end
    -- An interrupt may strike between the making of a file and the hand that holds it: what bears our name goes.
    file.remove(o.out .. ".part-" .. core.C.esp_process_id())
    error(problem, 0)
  end
  return { out = o.out, documents = sink.documents, tokens = sink.tokens, seconds = core.C.esp_clock() - start, stored = sink.stored }
end

return M
