--- A byte-level BPE vocabulary learnt from a text, written as the tokenizer.json that every engine reads. For small ASCII worlds: pairs are counted
-- over the distinct words, which are few.

local esp = require "espalier"

local M = {}

-- The character that stands for a byte in a byte-level vocabulary: printable ones for themselves, the others from U+0100 on.
local function alphabet()
  local of, others = {}, 0
  for b = 0, 255 do
    local code = b
    if not ((b >= 33 and b <= 126) or (b >= 161 and b <= 172) or b >= 174) then
      code = 256 + others
      others = others + 1
    end
    of[b] = code < 128 and string.char(code) or string.char(192 + math.floor(code / 64), 128 + code % 64)
  end
  return of
end

-- Distinct words with their counts, each a list of characters of the alphabet.
local function words_of(texts, of)
  local counts, list = {}, {}
  for _, text in ipairs(texts) do
    for space, word in text:gmatch "( ?)(%w+)" do
      -- Digits are split one by one, so that sums can be learnt.
      if word:match "^%a+$" then counts[space .. word] = (counts[space .. word] or 0) + 1 end
    end
  end
  for word, n in pairs(counts) do
    local symbols = {}
    for i = 1, #word do symbols[i] = of[word:byte(i)] end
    list[#list + 1] = { word = word, symbols = symbols, count = n }
  end
  table.sort(list, function(a, b) return a.word < b.word end)
  return list
end

-- The commonest pair of neighbours; of equally common ones the first in the order of the alphabet.
local function commonest(words)
  local counts, best, most = {}, nil, 1
  for _, w in ipairs(words) do
    for i = 1, #w.symbols - 1 do
      local pair = w.symbols[i] .. " " .. w.symbols[i + 1]
      counts[pair] = (counts[pair] or 0) + w.count
    end
  end
  for pair, n in pairs(counts) do
    if n > most or (n == most and best and pair < best) then best, most = pair, n end
  end
  return best
end

local function merge(words, pair)
  local a, b = pair:match "^(%S+) (%S+)$"
  for _, w in ipairs(words) do
    local out, i = {}, 1
    while i <= #w.symbols do
      if w.symbols[i] == a and w.symbols[i + 1] == b then
        out[#out + 1] = a .. b
        i = i + 2
      else
        out[#out + 1] = w.symbols[i]
        i = i + 1
      end
    end
    w.symbols = out
  end
  return a .. b
end

--- Learns a vocabulary of `size` pieces from a list of texts and writes it into folder dir; returns the tokenizer.
function M.learn(texts, size, dir)
  local of, json = alphabet(), esp.io.json
  local words, vocab, merges = words_of(texts, of), { ["<|endoftext|>"] = 0 }, {}
  for b = 0, 255 do vocab[of[b]] = b + 1 end
  for id = 257, size - 1 do
    local pair = commonest(words)
    if not pair then break end
    merges[#merges + 1] = pair
    vocab[merge(words, pair)] = id
  end
  local ending = { id = 0, content = "<|endoftext|>", special = true, lstrip = false, rstrip = false, normalized = false, single_word = false }
  local bytes = { type = "ByteLevel", add_prefix_space = false, trim_offsets = true, use_regex = true }
  json.write(dir .. "/tokenizer.json", { version = "1.0", added_tokens = json.array { ending }, normalizer = json.null, pre_tokenizer = bytes,
    post_processor = json.null, decoder = bytes, model = { type = "BPE", vocab = vocab, merges = json.array(merges), unk_token = json.null,
      continuing_subword_prefix = json.null, end_of_word_suffix = json.null, fuse_unk = false, byte_fallback = false, dropout = json.null } })
  json.write(dir .. "/tokenizer_config.json", { tokenizer_class = "PreTrainedTokenizerFast", bos_token = "<|endoftext|>",
    eos_token = "<|endoftext|>", add_bos_token = true })
  return esp.tokenizer.load(dir)
end

return M
