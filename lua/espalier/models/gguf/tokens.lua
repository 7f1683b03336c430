--- The tokenizer of a GGUF file, both ways: pieces, scores, types, merges and special ids under tokenizer.ggml.*.
--
-- Out of a file it becomes the file that other programs know: a sentencepiece model, or a tokenizer.json.

local file = require "espalier.io.file"
local json = require "espalier.io.json"
local bytelevel = require "espalier.models.gguf.bytelevel"
local sentencepiece = require "espalier.models.gguf.sentencepiece"
local tokenizer = require "espalier.tokenizer"
local fail = require "espalier.fail"

local M = {}

local UNUSED = 5

-- llama.cpp's vocabulary has as many pieces as the embedding has rows, each another text.
local function fill(v, vocab)
  local pieces, types, seen = {}, {}, {}
  for id = 0, vocab - 1 do
    local piece, kind = v.pieces[id + 1], v.types[id + 1]
    if piece == nil or piece == "" or seen[piece] then piece, kind = "[PAD" .. id .. "]", UNUSED end
    seen[piece] = true
    pieces[id + 1], types[id + 1] = piece, kind
  end
  return pieces, types
end

-- chat_template of tokenizer_config.json beside the tokenizer, where it is one text.
local function chat_template(tok)
  local path = file.join(tok.path:match "^(.*)/[^/]*$" or ".", "tokenizer_config.json")
  local v = file.kind(path) == "file" and json.read(path).chat_template
  return type(v) == "string" and v or nil
end

-- The model's tokenizer, or nil where it has none.
local function tokenizer_of(model)
  local ok, tok = pcall(model.tok, model)
  if ok then return tok end
  -- A file that is there and cannot be read is no missing one.
  if not tostring(tok):find "no tokenizer" then error(tok, 0) end
end

-- llama.cpp ends its process at a character for which a vocabulary without bytes has no piece.
local function has_bytes(v)
  for _, kind in ipairs(v.types) do if kind == 6 then return true end end
  return false
end

--- Keys of a model's tokenizer: a list of { key, kind, value }; sentences about it are added to notes. A model without one gets a file without,
-- which takes and gives ids alone.
function M.write(model, notes)
  local list, vocab = {}, model.shape.vocab
  local function out(key, kind, value)
    if value ~= nil then list[#list + 1] = { "tokenizer." .. key, kind, value } end
  end
  local tok = tokenizer_of(model)
  if not tok then
    out("ggml.model", "string", "no_vocab")
    notes[#notes + 1] = "it has no tokenizer"
    return list
  end
  local v = tok:vocabulary()
  if #v.pieces > vocab then fail("save: the tokenizer has %d pieces, the model's vocabulary %d", #v.pieces, vocab) end
  if v.model == "gpt2" and not v.pre then
    fail("save: llama.cpp has no name for the way in which %s cuts words, so that its GGUF file would cut other ones", tok.path)
  end
  local pieces, types = fill(v, vocab)
  out("ggml.model", "string", v.model)
  out("ggml.pre", "string", v.pre or "default")
  out("ggml.tokens", "[string]", pieces)
  if v.model == "llama" then
    if not has_bytes(v) then notes[#notes + 1] = "llama.cpp ends at a character that is not in its vocabulary, which has no single bytes" end
    local scores = v.scores
    for id = #scores, vocab - 1 do scores[id + 1] = -1e4 end
    out("ggml.scores", "[f32]", scores)
    -- A text that begins with a letter gets a space in front, or it does not: seen in what becomes of one.
    out("ggml.add_space_prefix", "bool", (tok:piece(tok:encode("a")[1] or 0) or ""):sub(1, 3) == "\226\150\129")
    out("ggml.remove_extra_whitespaces", "bool", #tok:encode("a  b") == #tok:encode("a b"))
  else
    out("ggml.merges", "[string]", v.merges)
  end
  out("ggml.token_type", "[i32]", types)
  for name, key in pairs { bos = "bos", eos = "eos", unk = "unknown", pad = "padding" } do out("ggml." .. key .. "_token_id", "u32", v[name]) end
  out("ggml.add_bos_token", "bool", v.add_bos)
  out("ggml.add_eos_token", "bool", false)
  out("chat_template", "string", chat_template(tok))
  table.sort(list, function(a, b) return a[1] < b[1] end)
  return list
end

-- ---- in ----

-- Name and text of the file that a tokenizer of this kind is.
local function as_file(kind, get, v)
  if kind == "llama" then
    return "tokenizer.model", sentencepiece.encode { pieces = v.pieces, scores = v.scores, types = v.types, prefix = get "add_space_prefix" ~= false,
      squeeze = get "remove_extra_whitespaces" == true, bos = v.bos, eos = v.eos, unk = v.unk, pad = v.pad }
  end
  return "tokenizer.json", bytelevel.encode(v)
end

--- The tokenizer of an open file (io/gguf.lua), or nil where it has none of a kind that is known here.
function M.read(f)
  local function get(key) return f:get("tokenizer.ggml." .. key) end
  local kind, v = get "model", { pieces = get "tokens", scores = get "scores", types = get "token_type", merges = get "merges", pre = get "pre",
    bos = get "bos_token_id", eos = get "eos_token_id", unk = get "unknown_token_id", pad = get "padding_token_id" }
  local second = ({ llama = "scores", gpt2 = "merges" })[kind]
  if not second or type(v.pieces) ~= "table" or type(v.types) ~= "table" or type(v[second]) ~= "table" then return nil end
  if #v.types ~= #v.pieces or second == "scores" and #v.scores ~= #v.pieces then
    fail("%s: %d tokens, but another number of scores or token types", f.path, #v.pieces)
  end
  local name, text = as_file(kind, get, v)
  if not text then return nil end
  local tok = tokenizer.parse(name, text, f.path)
  tok.bos, tok.eos, tok.unk, tok.pad = v.bos, v.eos, v.unk, v.pad
  if get "add_bos_token" ~= nil then tok.add_bos = get "add_bos_token" end
  return tok
end

return M
