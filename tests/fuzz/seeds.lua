--- The corpus that fuzzing starts from: for each target small good files, and the hostile cases known for its format.

local esp = require "espalier"
local file, json = esp.io.file, esp.io.json

local M = {}

local function u64(n)
  local bytes = {}
  for i = 1, 8 do
    bytes[i] = string.char(n % 256)
    n = math.floor(n / 256)
  end
  return table.concat(bytes)
end

-- A llama2.c or sentencepiece number: little-endian 32 bits of a whole number or of a float.
local function u32(n)
  return u64(n % 2 ^ 32):sub(1, 4)
end

local shape = { hidden = 4, ffn = 4, layers = 1, heads = 2, kv_heads = 1, head_dim = 2, vocab = 4, context = 8, norm_eps = 1e-5,
  rope = { theta = 1e4 }, tied = true }

-- The files of a tiny model, by name.
local function tiny_model(dir)
  esp.models.new(shape, { seed = 1 }):save(dir .. "/tiny", { quiet = true })
  local files = {}
  for _, name in ipairs { "config.json", "model.safetensors" } do files[name] = file.read(dir .. "/tiny/" .. name) end
  return files
end

function M.safetensors(dir)
  local list = { tiny_model(dir)["model.safetensors"] }
  local function header(text, data) list[#list + 1] = u64(#text) .. text .. (data or "") end
  for _, dtype in ipairs { "F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I16", "I8", "U8", "BOOL", "F4", "f32" } do
    header(string.format('{"a":{"dtype":"%s","shape":[2],"data_offsets":[0,16]}}', dtype), string.rep("\1", 16))
  end
  for _, text in ipairs {
    '{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}', '{"a":{"dtype":"F32","shape":[0],'
      .. '"data_offsets":[0,0]}}',
    '{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}', '{"a":{"dtype":"F32","shape":[1e3],"data_offsets":[0,4]}}',
    '{"a":{"dtype":"F32","shape":[-1],"data_offsets":[4,0]}}', '{"a":{"dtype":null,"shape":[1],"data_offsets":[0,4]}}',
    '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"\\u0061":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    '{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', '{"__metadata__":{"a":1}}', '{"__metadata__":null}', "{}", "[]", "",
    string.rep("[", 1000), string.rep(" ", 1000), '{"a":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}',
    '{"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}}',
  } do header(text, "\0\0\128\63") end
  for _, n in ipairs { 0, 1, 100000001, 2 ^ 40, 2 ^ 53 } do list[#list + 1] = u64(n) .. "{}" end
  list[#list + 1] = string.rep("\255", 8)
  return list
end

function M.gguf(dir)
  local path = file.make(dir) .. "/a.gguf"
  local x = esp.tensor.of { { 1, 2 }, { 3, 4 } }
  esp.io.gguf.write(path, { { "general.architecture", "string", "llama" }, { "general.alignment", "u32", 32 }, { "a", "[i32]", { 1, -1 } },
    { "b", "[string]", { "x", "" } }, { "c", "bool", true }, { "d", "f64", 0.5 } },
    { { name = "x", shape = { 2, 2 }, type = "f32", give = function(use) use(x) end },
      { name = "y", shape = { 2, 32 }, type = "q8_0", give = function(use) use(esp.tensor.normal({ 2, 32 }, { seed = 1 })) end } })
  local good = file.read(path)
  esp.models.new(shape, { seed = 1 }):save(dir .. "/model.gguf", { quiet = true })
  local list = { file.read(dir .. "/model.gguf"), good, good:sub(1, 24), good:sub(1, -40), "GGUF" .. u32(3) .. u64(0) .. u64(0) }
  for _, n in ipairs { 4, 8, 16 } do list[#list + 1] = good:sub(1, n) .. string.rep("\255", 8) .. good:sub(n + 9) end
  return list
end

function M.json()
  return { '{"a":[1,2.5,-3e-7,true,null,"\\u00e9\\ud83d\\ude00"],"b":{}}', "[[[[]]]]", '{"a":1,"a":2}', '"\\ud800"', "8.0", string.rep("[", 300),
    "\239\187\191{}", '{"a":NaN}', '"\255"', "1e999", "" }
end

function M.config(dir)
  local good = tiny_model(dir)["config.json"]
  local list = { good }
  for _, change in ipairs { { '"hidden_size": 4', '"hidden_size": 0' }, { '"num_hidden_layers": 1', '"num_hidden_layers": 1000000000' },
    { '"num_attention_heads": 2', '"num_attention_heads": 3' }, { '"head_dim": 2', '"head_dim": 3' }, { '"vocab_size": 4', '"vocab_size": []' },
    { '"rope_theta": 10000', '"rope_theta": "x"' }, { '"llama"', '"bert"' }, { '"rope_type": "default"', '"rope_type": "yarn", "factor": 0' } } do
    list[#list + 1] = (good:gsub(change[1], function() return change[2] end))
  end
  return list
end

function M.index()
  local map = {}
  for name in pairs(esp.models.new(shape, { seed = 1 }):parameters()) do map[name] = "model-00001-of-00001.safetensors" end
  local list = { json.encode { metadata = { total_size = 400 }, weight_map = map } }
  for _, text in ipairs { '{"weight_map":{"a":"../x"}}', '{"weight_map":{"a":"/etc/passwd"}}', '{"weight_map":{"a":""}}', '{"weight_map":[]}', "{}",
    '{"weight_map":{"a":1}}', '{"weight_map":{"a":"model.safetensors.index.json"}}', '{"metadata":null,"weight_map":{}}' } do
    list[#list + 1] = text
  end
  return list
end

function M.llama2c()
  local function header(...)
    local parts = {}
    for i, n in ipairs { ... } do parts[i] = u32(n) end
    return table.concat(parts)
  end
  local good = header(4, 4, 1, 2, 1, 4, 8)
  -- embedding, two norms, q k v o, gate down up, final norm; then the rotary tables.
  local floats = 16 + 8 + 16 + 8 + 8 + 16 + 48 + 4 + 16
  return { good .. string.rep("\0\0\128\63", floats), good, header(4, 4, 1, 3, 1, 4, 8), header(0, 4, 1, 2, 1, 4, 8),
    header(2 ^ 24, 2 ^ 24, 2 ^ 24, 1, 1, 2 ^ 24, 2 ^ 24), header(4, 4, 1, 2, 0, 4, 8), header(4, 4, 1, 2, 1, -4, 8) }
end

function M.tokenizer_json()
  local function bpe(model, rest)
    return string.format('{"version":"1.0","added_tokens":[{"id":4,"content":"<s>","special":true,"lstrip":false,"rstrip":false,"normalized":false,'
      .. '"single_word":false}],"normalizer":null,"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,'
      .. '"trim_offsets":true,"use_regex":true},'
      .. '"post_processor":null,"decoder":{"type":"ByteLevel"},"model":{"type":"BPE",%s}%s}', model, rest or "")
  end
  return { bpe '"vocab":{"a":0,"b":1,"ab":2,"c":3},"merges":["a b"]', bpe '"vocab":{"a":0,"b":1,"ab":2},"merges":[["a","b"]],"ignore_merges":true',
    bpe '"vocab":{"a":0,"a":1},"merges":[]', bpe '"vocab":{"a":-1},"merges":["a a"]', bpe '"vocab":{"a":2147483647},"merges":[]',
    bpe '"vocab":{},"merges":["a"]', bpe('"vocab":{"a":0},"merges":[]', ',"truncation":{}'),
    '{"added_tokens":[],"normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"\226\150\129"},{"type":"Replace",'
      .. '"pattern":{"String":" "},"content":"\226\150\129"}]},"pre_tokenizer":null,"post_processor":null,'
      .. '"decoder":{"type":"Sequence","decoders":[{"type":"ByteFallback"},'
      .. '{"type":"Fuse"}]},"model":{"type":"BPE","unk_token":"<unk>","fuse_unk":true,"byte_fallback":true,"vocab":{"<unk>":0,"a":1},"merges":[]}}',
    '{"model":{"type":"Unigram","unk_id":0,"vocab":[["<unk>",0.0],["a",-1.5]]},"added_tokens":[],"pre_tokenizer":{"type":"Metaspace",'
      .. '"replacement":"\226\150\129","prepend_scheme":"always","split":true},"normalizer":{"type":"NFC"},"decoder":null,"post_processor":null}',
    '{"model":{"type":"BPE","vocab":{"a":0},"merges":[]},"pre_tokenizer":{"type":"Split","pattern":{"Regex":"(a+)+$"},"behavior":"Isolated",'
      .. '"invert":false},"added_tokens":[],"normalizer":null,"decoder":null,"post_processor":null}', "{}" }
end

function M.megatron()
  local function idx(version, dtype, lengths, documents)
    local parts, at = { "MMIDIDX\0\0", u64(version), string.char(dtype), u64(#lengths), u64(#documents) }, 0
    for _, n in ipairs(lengths) do parts[#parts + 1] = u32(n) end
    for _, n in ipairs(lengths) do
      parts[#parts + 1] = u64(at)
      at = at + 2 * n
    end
    for _, n in ipairs(documents) do parts[#parts + 1] = u64(n) end
    return table.concat(parts)
  end
  local good = idx(1, 8, { 3, 4 }, { 0, 1, 2 })
  return { good, idx(1, 8, { 7 }, { 0, 1 }), idx(1, 8, { 7, 0 }, { 0, 2 }), idx(2, 8, { 7 }, { 0, 1 }), idx(1, 6, { 7 }, { 0, 1 }),
    idx(1, 8, { 2 ^ 31, 7 }, { 0, 1, 2 }), idx(1, 8, { 3, 4 }, { 0, 2, 1 }), good:sub(1, 34), good .. "x",
    good:sub(1, 18) .. string.rep("\255", 16) }
end

function M.jsonl()
  return { '{"a":{"text":"one two"}}\n{"a":{"text":"three"}}\n', '{"a":{"text":""}}\n\n{"a":{"text":"x"}}', '{"a":{"text":1}}', '{"a":1}', "{}",
    "[]", "\n\n", '{"a":{"text":"\\ud83d\\ude00"}}\r\n', '{"a":{"text":"' .. string.rep("x", 2000) .. '"}}',
    '{"a":{"text":"\255"}}', '{"a":{"text":"cut' }
end

function M.jsonl_messages()
  return { '{"messages":[{"role":"user","content":"one"},{"role":"assistant","content":"two"}]}\n', '{"messages":[]}', '{"messages":[{"role":"x"}]}',
    '{"messages":[{"role":"user","content":null}]}', '{"messages":{"role":"user"}}', '{"messages":[[]]}',
    '{"messages":[{"role":"system","content":"a"},' .. '{"role":"user","content":"b"},{"role":"assistant","content":""}]}' }
end

-- Protocol buffers: field number and wire type in one byte, then the value.
local function field(n, wire, value) return string.char(n * 8 + wire) .. value end
local function bytes(n, text) return field(n, 2, string.char(#text) .. text) end

function M.sentencepiece()
  local function piece(text, kind)
    return bytes(1, bytes(1, text) .. field(2, 5, u32(0)) .. (kind and field(3, 0, string.char(kind)) or ""))
  end
  local pieces = piece("<unk>", 2) .. piece("<s>", 3) .. piece("</s>", 3) .. piece "a" .. piece "b" .. piece "ab" .. piece("<0x41>", 6)
  local bpe, unigram = bytes(2, field(3, 0, "\2")), bytes(2, field(3, 0, "\1"))
  return { pieces .. bpe, pieces .. unigram, pieces, bpe, piece("", 1) .. bpe, "\10\255\255\255\255\15",
    "\10\128\128\128\128\128\128\128\128\128\1", "" }
end

-- Lines of base64 and a rank. Vocabularies are known by the number of their ranks, so that whole files are no seeds.
function M.tiktoken()
  return { "IQ== 0\nIg== 1\nISI= 2\n", "IQ== 0\nIQ== 1\n", "IQ== 1\n", "!!!! 0\n", "IQ 0", "IQ== -1\n", "IQ== 99999999999999999999\n",
    "\n\n", "IQ==" }
end

function M.llama2c_tokenizer()
  local function entry(text) return u32(0) .. u32(#text) .. text end
  local good = u32(6)
  for i = 1, 32 do good = good .. entry(i < 4 and "<s>" or string.char(60 + i)) end
  return { good, u32(2 ^ 31), u32(6) .. u32(0) .. u32(2 ^ 31 - 1), u32(6) .. u32(0) .. u32(2 ^ 32 - 1), good .. "x" }
end

return M
