--- A tokenizer.json of byte-level BPE from what GGUF holds of it: pieces, types, merges, and a name for the way in which words are cut.

local json = require "espalier.io.json"

local M = {}

local llama3 = [[(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+]]

-- What each name stands for: parts in order, "GPT-2" and "digits" or a regular expression; nfc: texts are composed first; whole: a word that is a
-- piece is not merged.
local ways = {
  ["gpt-2"] = { "GPT-2" }, smollm = { "digits", "GPT-2" }, starcoder = { "digits", "GPT-2" }, refact = { "digits", "GPT-2" },
  ["llama-bpe"] = { llama3, whole = true }, qwen2 = { (llama3:gsub("{1,3}", "")), nfc = true },
}

local function byte_level(regex)
  return { type = "ByteLevel", add_prefix_space = false, trim_offsets = true, use_regex = regex }
end

-- The pre-tokenizer of tokenizer.json for a way of cutting.
local function pre_tokenizer(way)
  local parts = {}
  for _, part in ipairs(way) do
    if part == "GPT-2" then parts[#parts + 1] = byte_level(true)
    elseif part == "digits" then parts[#parts + 1] = { type = "Digits", individual_digits = true }
    else parts[#parts + 1] = { type = "Split", pattern = { Regex = part }, behavior = "Isolated", invert = false } end
  end
  if way[#way] ~= "GPT-2" then parts[#parts + 1] = byte_level(false) end
  if #parts == 1 then return parts[1] end
  return { type = "Sequence", pretokenizers = json.array(parts) }
end

--- The text of a tokenizer.json, or nil where the name is not known here. v: pieces, types (lists), merges (texts "left right"), pre.
function M.encode(v)
  local way = ways[v.pre]
  if not way then return nil end
  local vocab, added = {}, json.array()
  for i, piece in ipairs(v.pieces) do
    if v.types[i] == 3 or v.types[i] == 4 then
      added[#added + 1] = { id = i - 1, content = piece, special = v.types[i] == 3, single_word = false, lstrip = false, rstrip = false,
        normalized = false }
    end
    vocab[piece] = i - 1
  end
  return json.encode { version = "1.0", added_tokens = added, normalizer = way.nfc and { type = "NFC" } or json.null,
    pre_tokenizer = pre_tokenizer(way), decoder = byte_level(true), post_processor = json.null, truncation = json.null, padding = json.null,
    model = { type = "BPE", vocab = vocab, merges = json.array(v.merges), byte_fallback = false, ignore_merges = way.whole or false,
      fuse_unk = false, dropout = json.null, unk_token = json.null } }
end

return M
