--- What is fuzzed: for each parser the name that its file has, and how a user opens it. Whatever comes, a sentence or a value is the answer.

package.path = "lua/?.lua;lua/?/init.lua;" .. package.path

local esp = require "espalier"
local file = esp.io.file

local targets = {}

targets.safetensors = { file = "model.safetensors", open = function(path)
  local f = esp.io.safetensors.open(path)
  for _, name in ipairs(f.names) do f:describe(name) end
  for _, name in ipairs(f.names) do f:tensor(name) end
end }

targets.gguf = { file = "model.gguf", open = function(path)
  local f = esp.io.gguf.open(path)
  for _, name in ipairs(f.names) do f:describe(name) end
  for _, name in ipairs(f.names) do f:tensor(name) end
  esp.load(path)
end }

targets.json = { file = "value.json", open = function(path)
  local value = esp.io.json.read(path)
  esp.io.json.encode(value)
end }

targets.config = { file = "config.json", open = function(path)
  tostring(esp.plan(path))
end }

-- Beside the index stands one good shard.
targets.index = { file = "model.safetensors.index.json", open = function(path)
  local dir = path:match "^(.*)/"
  local shard = dir .. "/model-00001-of-00001.safetensors"
  if not file.kind(shard) then
    local shape = { hidden = 4, ffn = 4, layers = 1, heads = 1, kv_heads = 1, head_dim = 4, vocab = 4, context = 8, norm_eps = 1e-5,
      rope = { theta = 1e4 }, tied = true }
    local model = esp.models.new(shape, { seed = 1 })
    model:save(dir .. "/m", { quiet = true })
    file.rename(dir .. "/m/config.json", dir .. "/config.json")
    file.rename(dir .. "/m/model.safetensors", shard)
    file.remove(dir .. "/m")
  end
  esp.load(dir)
end }

targets.llama2c = { file = "model.bin", open = function(path) esp.load(path) end }

-- The ids beside the index: seven of u16.
targets.megatron = { file = "corpus.idx", open = function(path)
  file.write((path:gsub("idx$", "bin")), string.rep("\1\0", 7))
  local data = esp.data.open(path, { seq = 4 })
  if data:rows() > 0 then data:batch(0, 1) end
end }

local words
-- A tokenizer of 256 bytes, made once.
local function byte_tokenizer(dir)
  if not words then
    local vocab = {}
    for b = 0, 255 do vocab[string.format("<0x%02X>", b)] = b end
    local model = { type = "BPE", byte_fallback = true, vocab = vocab, merges = esp.io.json.array() }
    file.write(dir .. "/tokenizer.json",
      esp.io.json.encode { model = model, added_tokens = esp.io.json.array(), decoder = { type = "ByteFallback" } })
    words = esp.tokenizer.load(dir .. "/tokenizer.json")
  end
  return words
end

local function jsonl(opt)
  return { file = "corpus.jsonl", open = function(path)
    opt.tokenizer, opt.seq = byte_tokenizer(path:match "^(.*)/"), 16
    local data = esp.data.open(path, opt)
    if data:rows() > 0 then data:batch(0, 1) end
  end }
end

targets.jsonl = jsonl { field = "a.text" }
targets.jsonl_messages = jsonl { messages = "messages", template = "chatml" }

local function tokenizer(name, vocab)
  return { file = name, open = function(path)
    local tok = esp.tokenizer.load(path, { vocab = vocab })
    tok:decode(tok:encode "abcab")
    local ids = tok:encode("Once upon a time, 12 caf\195\169s \240\159\153\130 <s> ", { special = true })
    tok:decode(ids)
  end }
end

targets.tokenizer_json = tokenizer "tokenizer.json"
targets.sentencepiece = tokenizer "tokenizer.model"
targets.tiktoken = tokenizer "ranks.tiktoken"
targets.llama2c_tokenizer = tokenizer("tokenizer.bin", 32)

return targets
