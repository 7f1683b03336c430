--- Tokenizers: tokenizer.json, sentencepiece .model, tiktoken's ranks, llama2.c .bin; opened from a file or found in a model's folder.

local core = require "espalier.ffi"
local file = require "espalier.io.file"
local json = require "espalier.io.json"
local fail = require "espalier.fail"

local C = core.C
local M = {}
local Tokenizer = {}
Tokenizer.__index = Tokenizer

-- The tokenizer's file in a folder, and one beside it that was passed over. sentencepiece's model and the tokenizer.json that was made of it do not
-- agree on every text; tokenizer.json is what transformers and lm-evaluation-harness use.
local function find(dir)
  local found = {}
  for _, name in ipairs { "tokenizer.json", "tokenizer.model", "tokenizer.bin" } do
    if file.kind(file.join(dir, name)) == "file" then found[#found + 1] = file.join(dir, name) end
  end
  if found[1] then return found[1], found[2] end
  for _, ending in ipairs { "%.model$", "%.tiktoken$", "%.bin$" } do
    -- A checkpoint may be called tok-something too; the tokenizer is the smallest.
    local best
    for _, name in ipairs(file.list(dir)) do
      local path = file.join(dir, name)
      local named = name:match(ending) and (name:match "^tok" or ending == "%.tiktoken$")
      if named and (not best or file.size(path) < file.size(best)) then best = path end
    end
    if best then return best end
  end
  fail("%s holds no tokenizer (tokenizer.json, a sentencepiece .model, tiktoken's ranks or a llama2.c tokenizer.bin)", dir)
end

-- What tokenizer_config.json says of a special token: a text, or an object with its content.
local function special_id(t, config, name)
  local v = config[name]
  if type(v) == "table" and v ~= json.null then v = v.content end
  if type(v) ~= "string" then return nil end
  return t:id(v)
end

local function negative_is_nil(id)
  return id >= 0 and id or nil
end

-- Ids before (0) or behind (1) a text, a list.
local function frame(c, behind)
  local n, list = core.new "int64_t[1]", {}
  local ids = C.esp_tokenizer_frame(c, behind, n)
  for i = 1, tonumber(n[0]) do list[i] = ids[i - 1] end
  return list
end

local function extend(to, list)
  for _, id in ipairs(list) do to[#to + 1] = id end
end

-- A tokenizer around a handle of the core, which it then owns.
local function wrap(handle, path)
  local c = core.gc(handle, C.esp_tokenizer_free)
  local t = setmetatable({ c = c, path = path, vocab = tonumber(C.esp_tokenizer_vocab(c)), kind = core.string(C.esp_tokenizer_kind(c)) }, Tokenizer)
  t.bos, t.eos = negative_is_nil(C.esp_tokenizer_special(c, "bos")), negative_is_nil(C.esp_tokenizer_special(c, "eos"))
  t.unk, t.pad = negative_is_nil(C.esp_tokenizer_special(c, "unk")), negative_is_nil(C.esp_tokenizer_special(c, "pad"))
  t.before, t.behind = frame(c, 0), frame(c, 1)
  t.add_bos = t.bos ~= nil and (t.before[1] == t.bos or t.kind == "sentencepiece" or t.kind == "llama2c")
  return t
end

--- A tokenizer from the bytes of its file: name is the file's ("tokenizer.json", "tokenizer.model"), path is where they were found.
function M.parse(name, text, path)
  local out = core.new "esp_tokenizer *[1]"
  core.try(C.esp_tokenizer_parse(out, text, #text, name, 0))
  local t = wrap(out[0], path)
  t.name, t.text = name, text
  return t
end

--- Opens a tokenizer: a file, or a folder that holds one. opt.vocab: pieces of a llama2.c .bin.
-- tok.vocab, tok.kind; tok.bos, tok.eos, tok.unk, tok.pad: ids or nil; tok.add_bos: do its texts begin with bos? tok.before, tok.behind: ids that the
-- post-processor of tokenizer.json puts around a text. tok.passed_over: a tokenizer.model beside the tokenizer.json that was taken (printing tok
-- says so).
function M.load(path, opt)
  local kind = file.kind(path)
  if not kind then fail("tokenizer: there is no '%s'", tostring(path)) end
  local from, passed_over = path, nil
  if kind == "folder" then from, passed_over = find(path) end
  local out = core.new "esp_tokenizer *[1]"
  core.try(C.esp_tokenizer_load(out, from, opt and opt.vocab or 0))
  local t = wrap(out[0], from)
  t.passed_over = passed_over
  local config_path = (from:match "^(.*)/[^/]*$" or ".") .. "/tokenizer_config.json"
  if file.kind(config_path) == "file" then
    local config = json.read(config_path)
    t.bos, t.eos = special_id(t, config, "bos_token") or t.bos, special_id(t, config, "eos_token") or t.eos
    t.pad = special_id(t, config, "pad_token") or t.pad
    if type(config.add_bos_token) == "boolean" then t.add_bos = config.add_bos_token end
  end
  return t
end

--- ids of a text, a list. The text must be UTF-8. opt.bos: put bos in front; opt.eos: put eos behind; opt.template: put around it what
-- tokenizer.json's post-processor does, instead; opt.special: find special tokens written in the text.
function Tokenizer:encode(text, opt)
  if type(text) ~= "string" then fail("encode: the text is %s, want a string", type(text)) end
  opt = opt or {}
  local out, n = core.new "int32_t *[1]", core.new "int64_t[1]"
  core.try(C.esp_tokenizer_encode(out, n, self.c, text, #text, opt.special and 1 or 0))
  local ids, p = {}, out[0]
  if opt.template then extend(ids, self.before) elseif opt.bos and self.bos then ids[1] = self.bos end
  local shift = #ids
  for i = 1, tonumber(n[0]) do ids[shift + i] = p[i - 1] end
  C.esp_buffer_free(p)
  if opt.template then extend(ids, self.behind) elseif opt.eos and self.eos then ids[#ids + 1] = self.eos end
  return ids
end

--- Text of ids, the bytes as the pieces hold them (ids cut inside a character give half of it).
-- opt.special: write control tokens too; opt.first = false: the text goes on (a leading space of sentencepiece stays).
function Tokenizer:decode(ids, opt)
  opt = opt or {}
  local n = #ids
  local array = core.new("int32_t[?]", math.max(n, 1))
  for i = 1, n do array[i - 1] = ids[i] end
  local out, bytes = core.new "char *[1]", core.new "int64_t[1]"
  core.try(C.esp_tokenizer_decode(out, bytes, self.c, array, n, opt.special and 1 or 0, opt.first == false and 0 or 1))
  return core.buffer(out[0], bytes[0])
end

--- The piece of an id as it is stored, or nil.
function Tokenizer:piece(id)
  local n = core.new "int64_t[1]"
  local p = C.esp_tokenizer_piece(self.c, id, n, nil, nil)
  return p ~= nil and core.string(p, n[0]) or nil
end

--- The id of a piece, or nil.
function Tokenizer:id(piece)
  return negative_is_nil(C.esp_tokenizer_id(self.c, piece, #piece))
end

local function family(self)
  if self.kind == "tiktoken" then fail("%s: tiktoken's ranks cannot be written in another format; take the model's tokenizer.json", self.path) end
  return C.esp_tokenizer_unigram(self.c) ~= 0 and "t5" or self.kind == "byte-level BPE" and "gpt2" or "llama"
end

-- Where pieces merge by rules, a piece that comes of an earlier rule gets a higher score, and one that no rule makes the lowest, so that merging by
-- score does the same.
local function scores_of_merges(pieces, merges)
  local best, scores = {}, {}
  for rank, merge in ipairs(merges) do
    local whole = merge:gsub(" ", "", 1)
    best[whole] = best[whole] or -rank
  end
  for i, piece in ipairs(pieces) do scores[i] = best[piece] or -(#merges + 1) end
  return scores
end

--- All that another format stores of a tokenizer. model: "llama" (pieces merge by score, spaces are U+2581), "gpt2" (merges over the letters
-- of bytes), "t5" (unigram); pieces, scores and types: lists, entry id+1 is id's (types as GGUF counts them: 1 normal, 2 unknown, 3 control,
-- 4 user defined, 5 unused, 6 byte); merges: texts "left right" by rank, empty where there are none; pre: GGUF's name of the way words are cut,
-- nil where it has none; bos, eos, unk, pad: ids or nil; add_bos. tiktoken's ranks are refused: they are not merges.
function Tokenizer:vocabulary()
  local c, model, pieces, scores, types, merges = self.c, family(self), {}, {}, {}, {}
  local n, score, type_ = core.new "int64_t[1]", core.new "float[1]", core.new "int[1]"
  for id = 0, self.vocab - 1 do
    local p = C.esp_tokenizer_piece(c, id, n, score, type_)
    pieces[id + 1], scores[id + 1], types[id + 1] = core.string(p, n[0]), score[0], type_[0]
  end
  local left, right = core.new "int32_t[1]", core.new "int32_t[1]"
  for rank = 0, tonumber(C.esp_tokenizer_merges(c)) - 1 do
    C.esp_tokenizer_merge(c, rank, left, right)
    merges[rank + 1] = pieces[left[0] + 1] .. " " .. pieces[right[0] + 1]
  end
  if model == "llama" and #merges > 0 then scores = scores_of_merges(pieces, merges) end
  local pre = core.string(C.esp_tokenizer_pre(c))
  return { model = model, pieces = pieces, scores = scores, types = types, merges = merges,
    pre = pre ~= "" and pre or nil, bos = self.bos, eos = self.eos, unk = self.unk, pad = self.pad, add_bos = self.add_bos }
end

--- Writes the files that make this tokenizer into a folder, byte for byte, under the names by which other programs look for them.
function Tokenizer:write(dir)
  if self.text then return file.write(file.join(dir, self.name), self.text) end
  local from = self.path:match "^(.*)/[^/]*$" or "."
  -- Mistral's carry a version behind .model, tiktoken's ranks are called tokenizer.model where transformers looks for them.
  local ending = file.name(self.path):match "%.%w+$"
  file.copy(self.path, file.join(dir, "tokenizer" .. ((ending == ".json" or ending == ".bin") and ending or ".model")))
  for _, name in ipairs { "tokenizer_config.json", "special_tokens_map.json" } do
    if file.kind(file.join(from, name)) == "file" then file.copy(file.join(from, name), file.join(dir, name)) end
  end
end

--- Content hash of the tokenizer's file.
function Tokenizer:hash()
  self.sum = self.sum or self.text and file.hash_text(self.text) or file.hash(self.path)
  return self.sum
end

function Tokenizer:__tostring()
  local beside = self.passed_over and "; " .. file.name(self.passed_over) .. " beside it is not used" or ""
  return string.format("tokenizer: %s, %d pieces (%s%s)", self.kind, self.vocab, self.path, beside)
end

return M
