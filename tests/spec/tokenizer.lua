--- Tokenizers against the vectors of llama.cpp and against each other; hostile files.

local t = ...
local esp = require "espalier"

-- Cases of an .inp file and the ids of the .out file.
local function vectors(base)
  local inp, out = t.read(t.shared(base .. ".inp")), t.read(t.shared(base .. ".out"))
  local cases, wanted = {}, {}
  for case in (inp .. "\n__ggml_vocab_test__\n"):gmatch "(.-)\n__ggml_vocab_test__\n" do cases[#cases + 1] = case end
  for line in out:gmatch "([^\n]*)\n" do
    local ids = {}
    for id in line:gmatch "%d+" do ids[#ids + 1] = tonumber(id) end
    wanted[#wanted + 1] = ids
  end
  return cases, wanted
end

local function check(tok, base)
  local cases, wanted = vectors(base)
  t.ok(#cases >= #wanted and #wanted > 20, "fewer cases than expected")
  for i, ids in ipairs(wanted) do
    t.equal(tok:encode(cases[i]), ids, string.format("case %d %q", i, cases[i]))
    t.equal(tok:decode(ids), cases[i], "decoded case " .. i)
  end
end

t.test("sentencepiece model gives the ids of LLaMA 2", function()
  check(esp.tokenizer.load(t.shared "data/tokenizers/llama2/tokenizer.model"), "data/tokenizers/llama2/ggml-vocab-llama-spm.gguf")
end)

t.test("tokenizer.json gives the ids of LLaMA 2", function()
  check(esp.tokenizer.load(t.shared "data/tokenizers/llama2/hf_tokenizer.json"), "data/tokenizers/llama2/ggml-vocab-llama-spm.gguf")
end)

t.test("tokenizer.json gives the ids of GPT-2", function()
  check(esp.tokenizer.load(t.shared "data/tokenizers/gpt2/hf_tokenizer.json"), "data/tokenizers/gpt2/ggml-vocab-gpt-2.gguf")
end)

t.test("tokenizer.json gives the ids of Phi-3, whose vocabulary begins as LLaMA 2's", function()
  check(esp.tokenizer.load(t.shared "data/tokenizers/llama2/hf_tokenizer.json"), "data/tokenizers/others/ggml-vocab-phi-3.gguf")
end)

t.test("tiktoken's ranks give the ids of Llama 3", function()
  local tok = esp.tokenizer.load(t.shared "data/tokenizers/llama3/tokenizer.model")
  check(tok, "data/tokenizers/llama3/ggml-vocab-llama-bpe.gguf")
  t.equal({ tok.kind, tok.vocab, tok.bos, tok.eos, tok.add_bos, tok:id "<|eot_id|>", tok:id "<|reserved_special_token_247|>" },
    { "tiktoken", 128256, 128000, 128001, true, 128009, 128255 })
  t.equal(tok:encode("<|eot_id|>x", { special = true, template = true }), { 128000, 128009, 87 })
  t.equal(#tok:encode "<|eot_id|>", 7)
  t.fails("cannot be written in another format", tok.vocabulary, tok)
end)

t.test("prompts of ggml have the ids of GPT-2", function()
  local tok, count = esp.tokenizer.load(t.shared "data/tokenizers/gpt2/hf_tokenizer.json"), 0
  for line in t.read(t.shared "data/tokenizers/gpt2/ggml_prompts_gpt-2.txt"):gmatch "[^\n]+" do
    local text, list = line:match "^(.*) => ([%d,]+)$"
    t.equal(table.concat(tok:encode(text), ","), list, text)
    count = count + 1
  end
  t.ok(count > 50, count .. " prompts")
end)

t.test("the plans of tiktoken's tests hold for every vocabulary that is there", function()
  local tok = { r50k_base = esp.tokenizer.load(t.shared "data/tokenizers/gpt2/hf_tokenizer.json"),
    cl100k_base = esp.tokenizer.load(t.shared "data/tokenizers/tiktoken/cl100k_base.tiktoken") }
  local count = 0
  local plans = t.read(t.shared "data/tokenizers/tiktoken/TestPlans.txt")
  for name, text, list in plans:gmatch "EncodingName: (%S+)\r?\nSample: (.-)\r?\nEncoded: (%b[])" do
    if tok[name] then
      t.equal("[" .. table.concat(tok[name]:encode(text, { special = true }), ", ") .. "]", list, name .. ": " .. text:sub(1, 60))
      count = count + 1
    end
  end
  t.equal(count, 130)
end)

t.test("an added token that is found in normalized text is written as it stood there", function()
  -- As tokenizers 0.23 decodes: <unk> and <s> of this file are normalized, </s> is not.
  local tok = esp.tokenizer.load(t.shared "data/tokenizers/llama2/hf_tokenizer.json")
  local cases = { ["the <unk> of"] = { 278, 0, 310 }, ["<unk> <unk>"] = { 0, 0 }, ["<s> the"] = { 1, 278 }, ["the <s> the"] = { 278, 1, 278 },
    ["the</s> the"] = { 278, 2, 278 } }
  for text, ids in pairs(cases) do t.equal(tok:decode(ids, { special = true }), text) end
  t.equal(tok:encode(" the <unk> of", { special = true }), { 29871, 278, 0, 310 })
  t.equal(tok:decode({ 29871, 278, 0, 310 }, { special = true }), " the <unk> of")
  t.equal(tok:decode { 278, 0, 310 }, "the of")
end)

t.test("llama2.c .bin and sentencepiece .model agree", function()
  local a = esp.tokenizer.load(t.shared "data/models/stories260K/tok512.model")
  local b = esp.tokenizer.load(t.shared "data/models/stories260K/tok512.bin", { vocab = 512 })
  local text = t.read(t.shared "data/models/stories260K/expected_greedy_200.txt")
  t.equal(a:encode(text), b:encode(text))
  t.equal(a:decode(a:encode "Tim & Léa said \"hi\" 42 times."), "Tim & Léa said \"hi\" 42 times.")
end)

t.test("a tokenizer tells what another format needs of it", function()
  local v = esp.tokenizer.load(t.shared "data/tokenizers/gpt2/hf_tokenizer.json"):vocabulary()
  t.equal({ v.model, #v.pieces, #v.scores, #v.types, #v.merges }, { "gpt2", 50257, 50257, 50257, 50000 })
  t.equal({ v.merges[1], v.merges[50000] }, { "Ġ t", "Ġg azed" })
  t.equal({ v.pieces[50257], v.types[50257], v.types[1] }, { "<|endoftext|>", 3, 1 })
  t.equal(v.pre, "gpt-2")
  t.equal(esp.tokenizer.load(t.shared "data/tokenizers/others/smollm_tokenizer.json"):vocabulary().pre, "smollm")
  local byrules = esp.tokenizer.load(t.shared "data/tokenizers/llama2/hf_tokenizer.json"):vocabulary()
  v = esp.tokenizer.load(t.shared "data/tokenizers/llama2/tokenizer.model"):vocabulary()
  -- The rules were made of the scores: both order the pieces alike.
  local order = {}
  local last = -(#byrules.merges + 1)
  for id = 260, 31999 do if byrules.scores[id] > last and v.scores[id] < 0 then order[#order + 1] = { byrules.scores[id], v.scores[id], id } end end
  table.sort(order, function(a, b) return a[1] > b[1] end)
  for i = 2, #order do t.ok(order[i - 1][2] >= order[i][2], "piece " .. order[i][3] - 1 .. " is out of order") end
  t.ok(#order > 20000, #order .. " pieces by rules")
  t.equal({ v.model, #v.merges, v.bos, v.eos, v.unk, v.pad }, { "llama", 0, 1, 2, 0, nil })
  t.equal({ v.types[1], v.types[2], v.types[4], v.types[260], v.pieces[4], v.pieces[260], v.scores[261] }, { 2, 3, 6, 1, "<0x00>", "▁▁", -1 })
end)

t.test("GGUF's name of a way of cutting asks for the whole of it", function()
  local path = t.folder() .. "/tokenizer.json"
  local llama3 = [[(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+]]
  local function name(pattern, whole, form, space)
    local bytes = { type = "ByteLevel", add_prefix_space = space or false, use_regex = pattern == nil }
    local split = pattern and { type = "Split", pattern = { Regex = pattern }, behavior = "Isolated", invert = false }
    local cuts = { type = "Sequence", pretokenizers = esp.io.json.array { split or bytes, split and bytes } }
    esp.io.json.write(path, { model = { type = "BPE", vocab = { a = 0 }, merges = esp.io.json.array(), ignore_merges = whole or false },
      normalizer = form and { type = form } or nil, pre_tokenizer = cuts, decoder = { type = "ByteLevel" } })
    return esp.tokenizer.load(path):vocabulary().pre
  end
  local qwen2 = llama3:gsub("{1,3}", "")
  t.equal({ name(), name(llama3, true), name(qwen2, false, "NFC") }, { "gpt-2", "llama-bpe", "qwen2" })
  local others = { { nil, true }, { nil, false, "NFC" }, { nil, false, nil, true }, { llama3 }, { qwen2 }, { qwen2, false, "NFKC" }, { "." } }
  for i, other in ipairs(others) do
    t.equal(name(unpack(other, 1, 4)), nil, "case " .. i)
  end
end)

t.test("ids go into the caller's buffer, or it is told how many there are", function()
  local core = esp.ffi
  local tok = esp.tokenizer.load(t.shared "data/tokenizers/gpt2/hf_tokenizer.json")
  local ids, n = core.new "int32_t[4]", core.new "int64_t[1]"
  core.try(core.C.esp_tokenizer_encode_into(ids, 4, n, tok.c, "Hello World!", 12, 0))
  t.equal({ tonumber(n[0]), ids[0], ids[1], ids[2], ids[3] }, { 3, 15496, 2159, 0, 0 })
  t.fails("has 3 ids, there is room for 2", function() core.try(core.C.esp_tokenizer_encode_into(ids, 2, n, tok.c, "Hello World!", 12, 0)) end)
  t.equal(tonumber(n[0]), 3)
end)

-- Random texts from a fixed seed: bytes, characters of every plane, and scraps that tokenizers treat in their own ways.
local scraps = { " ", "  ", "\n", "\r\n", "\t", "'s", "'LL", "<s>", "</s>", "<|endoftext|>", "<|eot_id|>", "[INST]",
  "<0x41>", "▁", "\194\160", "é", "e\204\129", "12345", "日本",
  "\240\159\152\128", "\226\128\139", "abc", "ABC", "ſ", "()", "//" }
local function random_text(random)
  local parts, kind = {}, random(3)
  for i = 1, random(24) do
    if kind == 1 then parts[i] = string.char(random(0, 255)) end
    if kind == 2 then
      local c = random(0, random(4) == 1 and 0x10ffff or 0x7ff)
      parts[i] = c < 0x80 and string.char(c) or c < 0x800 and string.char(0xc0 + math.floor(c / 64), 0x80 + c % 64)
        or c < 0x10000 and string.char(0xe0 + math.floor(c / 4096), 0x80 + math.floor(c / 64) % 64, 0x80 + c % 64)
        or string.char(0xf0 + math.floor(c / 262144), 0x80 + math.floor(c / 4096) % 64, 0x80 + math.floor(c / 64) % 64, 0x80 + c % 64)
    end
    if kind == 3 then parts[i] = scraps[random(#scraps)] end
  end
  return table.concat(parts)
end

t.test("random bytes are encoded and come back, or are refused as no UTF-8", function()
  local count = tonumber(os.getenv "ESPALIER_RANDOM_STRINGS" or 1000)
  local names = { "gpt2/hf_tokenizer.json", "llama2/hf_tokenizer.json", "others/smollm_tokenizer.json", "llama2/tokenizer.model",
    "llama3/tokenizer.model" }
  for _, name in ipairs(names) do
    local tok = esp.tokenizer.load(t.shared("data/tokenizers/" .. name))
    math.randomseed(7)
    local refused = 0
    for _ = 1, count do
      local text = random_text(math.random)
      -- LLaMA 2's tokenizer.json puts a space behind every special token, so they are left to be text.
      local ok, ids = pcall(tok.encode, tok, text, { special = name ~= "llama2/hf_tokenizer.json" })
      if ok then
        local back = tok:decode(ids, { special = true })
        -- The model of LLaMA 2 writes a space and its sign alike.
        if name:match "^llama2" then text, back = text:gsub("▁", " "), back:gsub("▁", " ") end
        -- SmolLM's vocabulary lacks bytes that no text of its training had.
        if name ~= "others/smollm_tokenizer.json" then t.equal(back, text, name) end
      else
        t.ok(tostring(ids):find("of the text is no UTF-8", 1, true), tostring(ids))
        refused = refused + 1
      end
    end
    t.ok(refused > count / 8 and refused < count / 2, refused .. " of " .. count .. " were refused")
  end
end)

t.test("a long run of one letter takes no longer than its length", function()
  local tok = esp.tokenizer.load(t.shared "data/tokenizers/gpt2/hf_tokenizer.json")
  for _, letter in ipairs { "a", " ", ".", "1" } do
    local start = esp.ffi.C.esp_clock()
    t.equal(tok:decode(tok:encode(letter:rep(200000))), letter:rep(200000))
    t.ok(esp.ffi.C.esp_clock() - start < 10, "200 kB of " .. letter .. " took ten seconds")
  end
  -- Its pattern looks for the end of the line behind each of the spaces.
  tok = esp.tokenizer.load(t.shared "data/tokenizers/llama3/tokenizer.model")
  local spaces = (" "):rep(1200000)
  t.ok(tok:decode(tok:encode(spaces)) == spaces, "spaces are lost")
end)

t.test("a folder with both takes tokenizer.json and says so", function()
  local dir = t.folder()
  t.write(dir .. "/tokenizer.json", t.read(t.shared "data/golden/lm-eval/tokenizer-stories260K/tokenizer.json"))
  t.write(dir .. "/tokenizer.model", t.read(t.shared "data/models/stories260K/tok512.model"))
  local tok = esp.tokenizer.load(dir)
  t.equal(tok.path, dir .. "/tokenizer.json")
  t.equal(tok.passed_over, dir .. "/tokenizer.model")
  t.ok(tostring(tok):find("tokenizer.model beside it is not used", 1, true), tostring(tok))
end)

t.test("damaged tokenizers are refused in one sentence", function()
  local dir = t.folder()
  local function refused(name, content, part)
    t.write(dir .. "/" .. name, content)
    t.fails(part, esp.tokenizer.load, dir .. "/" .. name)
  end
  refused("a.model", "\10\255\255\255\255\15", "no whole sentencepiece model")
  refused("a.model", "", "no pieces")
  refused("tok.bin", "\1\0\0\0\0\0\128\63\255\255\255\127", "has 2147483647 bytes")
  refused("a.json", "[]", "no JSON object")
  refused("a.json", '{"model":{"type":"WordPiece"}}', "'WordPiece', want BPE or Unigram")
  refused("a.json", '{"model":{"type":"BPE","vocab":{"a":0},"merges":["a b"]}}', "not in the vocabulary")
  refused("a.json", '{"model":{"type":"BPE","vocab":{"a":0,"b":0},"merges":[]}}', "same id")
  refused("a.json", '{"model":{"type":"BPE","vocab":{"a":0},"merges":[]},"pre_tokenizer":{"type":"Mystery"}}', "'Mystery'")
  refused("a.json", '{"model":{"type":"BPE","vocab":{"a":0},"merges":[]},"normalizer":{"type":"Odd"}}', "'Odd'")
  refused("a.txt", "", "no tokenizer by its name")
  refused("a.tiktoken", "IQ== 0\nIg== 2\n", "line 2 is not a piece in base64, a space and the rank 1")
  refused("a.tiktoken", "IQ== 0\n!g== 1\n", "line 2 is not base64")
  refused("a.tiktoken", "IQ== 0\n", "1 ranks; known are")
end)
