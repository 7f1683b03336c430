--- Large hostile files: whatever a parser is given, it takes no more memory than eight times the file and 16 MiB.
--
-- Each file is opened by a process of its own, whose memory at its peak is compared with that before. (Small ones: tests/fuzz.)
local t = ...

local esp = require "espalier"
local file, process = esp.io.file, esp.io.process

local SIZE, little = 4e6, t.little

-- Opens arg[2] as what arg[1] says; prints the bytes taken and what it said.
local child = [[
  local esp, C = require "espalier", require("espalier").ffi.C
  local kind, path = ...
  -- As espalier tokenize reads, batch by batch.
  local function each(p, opt)
    require("espalier.data.source").open(p, opt):each(esp.tokenizer.load(p:match "^(.*)/" .. "/tokenizer.json"), function() end)
  end
  local open = { json = esp.io.json.read, plan = esp.plan, load = function(p) esp.load(p:match "^(.*)/") end, checkpoint = esp.load,
    safetensors = esp.io.safetensors.open, gguf = esp.io.gguf.open, tokenizer = esp.tokenizer.load,
    data = function(p) return esp.data.open(p, { seq = 4 }) end,
    jsonl = function(p) each(p, { field = "a.text" }) end, messages = function(p) each(p, { messages = "messages" }) end }
  local rss, live, lua = tonumber(C.esp_rss()), tonumber(C.esp_memory_live()), collectgarbage "count"
  local ok, said = pcall(open[kind], path)
  -- A sanitizer's own memory is no matter of ours: then what the allocators count.
  local counted = tonumber(C.esp_memory_peak()) - live + 1024 * (collectgarbage "count" - lua)
  print(os.getenv "COUNTED" and counted or tonumber(C.esp_rss_peak()) - rss)
  print(ok and "opened" or said)
]]

local function taken_by(dir, kind, path)
  local program = t.program() or t.skip "needs the espalier program"
  t.write(dir .. "/open.lua", child)
  local argv = { "/usr/bin/env", "A=", program, dir .. "/open.lua", kind, path }
  if program:find "sanitize" then argv[2] = "COUNTED=1" end
  local started = process.start(argv, dir .. "/out")
  local code, said = started:wait(), t.read(dir .. "/out")
  file.remove(dir .. "/out")
  t.equal(code, 0, said)
  return tonumber(said:match "^[^\n]*"), said:match "\n(.*)\n"
end

-- before, then as many of body as fit, and after; a comma that ends the last of them is cut off.
local function fill(before, body, after)
  return before .. body:rep(math.floor(SIZE / #body)):gsub(",$", "") .. after
end

-- The same of bodies that differ: %x is the number of each, two of them where it is there twice.
local function number(before, pattern, after)
  local out, bytes, i, format = {}, 0, 0, string.format
  while bytes < SIZE do
    out[i + 1] = format(pattern, i, i)
    bytes, i = bytes + #out[i + 1] + 1, i + 1
  end
  return before .. table.concat(out, ",") .. after
end

local function safetensors(header) return little(#header, 8) .. header end

local function bpe(vocab, merges, rest)
  return '{"model":{"type":"BPE","vocab":' .. vocab .. ',"merges":' .. (merges or "[]") .. "}" .. (rest or "") .. "}"
end

-- Name of the file, how it is opened, and a word of what it must say ("opened" where it may).
local cases = {
  { "numbers.json", "json", "opened", function() return fill("[", "1,", "]") end },
  { "floats.json", "json", "opened", function() return fill("[", "0.5,", "]") end },
  { "lists.json", "json", "so many small values", function() return fill("[", "[],", "]") end },
  { "objects.json", "json", "so many small values", function() return fill("[", '{"":{}},', "]") end },
  { "keys.json", "json", "so many small values", function() return number("{", '"%x":1', "}") end },
  { "text.json", "json", "opened", function() return fill('"', "\\u00e9", '"') end },
  { "config.json", "plan", "a number of 4000000 digits", function() return fill('{"x":', "1", "}") end },
  { "config.json", "plan", "is missing", function() return fill('{"model_type":"llama","x":[', "1,", "]}") end },
  { "model.safetensors.index.json", "load", "so many small values", function() return number('{"weight_map":{', '"%x":1', "}}") end },
  { "model.safetensors.index.json", "load", "is in model-00001-of-00001.safetensors, which is not there",
    function() return number('{"weight_map":{', '"%x":"model-00001-of-00001.safetensors"', "}}") end },
  { "many.safetensors", "safetensors", "opened",
    function() return safetensors(number("{", '"%x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}', "}")) end },
  { "dims.safetensors", "safetensors", "opened",
    function() return safetensors(number("{", '"%x":{"dtype":"F32","shape":[0' .. (",0"):rep(31) .. '],"data_offsets":[0,0]}', "}")) end },
  { "metadata.safetensors", "safetensors", "more than 65536 pairs", function() return safetensors(number('{"__metadata__":{', '"%x":""', "}}")) end },
  { "nested.safetensors", "safetensors", "no JSON object", function() return safetensors(fill("", "[", "")) end },
  { "keys.gguf", "gguf", "metadata pairs, at most 65536 can be",
    function() return "GGUF" .. little(3, 4) .. little(0, 8) .. little(2e5, 8) .. fill("", little(1, 8) .. "a" .. little(0, 4) .. "\1", "") end },
  { "texts.gguf", "gguf", "opened", function()
    local n = math.floor(SIZE / 8)
    local head = "GGUF" .. little(3, 4) .. little(0, 8) .. little(1, 8) .. little(1, 8) .. "a"
    return head .. little(9, 4) .. little(8, 4) .. little(n, 8) .. ("\0"):rep(8 * n)
  end },
  { "vocabulary/tokenizer.json", "tokenizer", "opened", function() return bpe(number("{", '"%x":%d', "}")) end },
  { "merges/tokenizer.json", "tokenizer", "opened", function() return bpe('{"a":0,"b":1,"ab":2}', fill("[", '"a b",', "]")) end },
  { "unigram/tokenizer.json", "tokenizer", "opened",
    function() return number('{"model":{"type":"Unigram","unk_id":0,"vocab":[', '["%x",0]', "]}}") end },
  { "pieces/tokenizer.json", "tokenizer", "1333334 pieces, at most",
    function() return '{"model":{"type":"Unigram","vocab":[' .. ("[],"):rep(math.floor(SIZE / 3)) .. "[]]}}" end },
  { "unknown/tokenizer.json", "tokenizer", "opened", function() return bpe('{"a":0}', nil, fill(',"padding":[', "1,", "]")) end },
  { "steps/tokenizer.json", "tokenizer", "more than 64 steps of its pre-tokenizer", function()
    return bpe('{"a":0}', nil, fill(',"pre_tokenizer":{"type":"Sequence","pretokenizers":[', '{"type":"WhitespaceSplit"},', "]}"))
  end },
  { "frame/tokenizer.json", "tokenizer", "more than 64 ids", function()
    local frame = ',"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"a"}}],"special_tokens":{"a":{"ids":['
    return bpe('{"a":0}', nil, fill(frame, "0,", "]}}}"))
  end },
  { "empty.model", "tokenizer", "pieces, at most 1048576 can be", function() return fill("", "\10\0", "") end },
  { "same.model", "tokenizer", "pieces 0 and 1 are both 'a'", function() return fill("", "\10\5\10\1a\24\1", "") end },
  { "ranks.tiktoken", "tokenizer", "ranks; known are", function() return (number("", "YQ== %d", ""):gsub(",", "\n")) end },
  { "tokenizer.bin", "tokenizer", "opened", function() return fill(little(1, 4), ("\0"):rep(8), "") end },
  { "model.bin", "checkpoint", "cut short", function()
    return little(4, 4) .. little(4, 4) .. little(1, 4) .. little(2, 4) .. little(1, 4) .. little(1e6, 4) .. little(8, 4) .. ("\0"):rep(SIZE)
  end },
  { "corpus.idx", "data", "ids of 2 bytes", function()
    local n = math.floor(SIZE / 20)
    return "MMIDIDX\0\0" .. little(1, 8) .. "\8" .. little(n, 8) .. little(n + 1, 8) .. ("\0"):rep(20 * n + 8)
  end },
  { "numbers.jsonl", "jsonl", "opened", function() return fill('{"a":{"text":"b"},"x":[', "1,", "]}") end },
  { "lines.jsonl", "jsonl", "opened", function() return fill("", '{"a":{"text":"b"}}\n', "") end },
  { "spaces.jsonl", "jsonl", "opened", function() return fill("", " ", '\n{"a":{"text":"b"}}') end },
  { "messages.jsonl", "messages", "opened", function() return fill("", '{"messages":[{"role":"assistant","content":"x"}]}\n', "") end },
}

t.test("no parser takes more than eight times a large hostile file and 16 MiB", function()
  local dir = t.folder()
  local vocab = {}
  for b = 0, 255 do vocab[string.format("<0x%02X>", b)] = b end
  local model = { type = "BPE", byte_fallback = true, vocab = vocab, merges = esp.io.json.array() }
  t.write(dir .. "/tokenizer.json", esp.io.json.encode { model = model })
  for _, case in ipairs(cases) do
    local name, kind, says, make = unpack(case)
    local path = dir .. "/" .. name
    file.make(path:match "^(.*)/")
    if kind == "load" then
      t.write(dir .. "/config.json", [[{ "model_type": "llama", "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1,
        "num_attention_heads": 1, "vocab_size": 4, "max_position_embeddings": 8, "rms_norm_eps": 1e-5, "hidden_act": "silu" }]])
    elseif kind == "data" then
      t.write(dir .. "/corpus.bin", ("\1\0"):rep(7))
    end
    t.write(path, make())
    local size = file.size(path)
    local taken, said = taken_by(dir, kind, path)
    t.ok(said:find(says, 1, true), name .. ": " .. said)
    t.ok(taken <= 8 * size + 2 ^ 24, string.format("%s: %.1f MB for a file of %.1f (%s)", name, taken / 1e6, size / 1e6, said))
    file.remove(path)
  end
end)
