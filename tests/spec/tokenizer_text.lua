--- Ids of whole texts against those of the tokenizers, sentencepiece and tiktoken packages: hashes in tests/golden/tokenizers, made by the script
-- there. The shorter texts (eight languages, prose, web pages; three of them line by line too), or all of them with ESPALIER_ALL_TEXTS.
local t = ...

local esp = require "espalier"
local core, file = esp.ffi, esp.io.file
local C = core.C

local hex = core.new "char[33]"
local golden = esp.io.json.read(t.root .. "tests/golden/tokenizers/hashes.json")

-- Ids of a text as the C call leaves them, and their number; freed by the collector.
local function ids_of(tok, text, special)
  local out, n = core.new "int32_t *[1]", core.new "int64_t[1]"
  core.try(C.esp_tokenizer_encode(out, n, tok.c, text, #text, special and 1 or 0))
  return core.gc(out[0], C.esp_buffer_free), tonumber(n[0])
end

local function hash(ids, n)
  core.try(C.esp_hash(hex, ids, n * 4))
  return core.string(hex)
end

local function hash_lines(tok, text, special)
  local parts, ending = {}, core.string(core.cast("char *", core.new("int32_t[1]", -1)), 4)
  for line in (text .. "\n"):gmatch "([^\n]*)\n" do
    local ids, n = ids_of(tok, line, special)
    parts[#parts + 1] = core.string(core.cast("char *", ids), n * 4) .. ending
  end
  return file.hash_text(table.concat(parts))
end

local function decoded(tok, ids, n)
  local out, bytes = core.new "char *[1]", core.new "int64_t[1]"
  core.try(C.esp_tokenizer_decode(out, bytes, tok.c, ids, n, 1, 1))
  return core.buffer(out[0], bytes[0])
end

-- Pieces of a small vocabulary do not hold every character, and sentencepiece squeezes or adds spaces where its model says so. "plain": where special
-- tokens are left to be text, and but for a space that the text begins with; the tokenizers package loses both for Mistral's (WikiText has them).
local promises = { ["tokenizers/gpt2/hf_tokenizer.json"] = true, ["tokenizers/others/smollm_tokenizer.json"] = true,
  ["tokenizers/others/minimind_tokenizer.json"] = true, ["tokenizers/llama2/hf_tokenizer.json"] = true,
  ["tokenizers/mistral/hf_tokenizer_v3.json"] = "plain",
  ["tokenizers/llama2/tokenizer.model"] = true, ["tokenizers/llama3/tokenizer.model"] = true,
  ["tokenizers/tiktoken/cl100k_base.tiktoken"] = true }

for name, texts in pairs(golden) do
  t.test("every text has its ids by " .. name, function()
    local tok, count = esp.tokenizer.load(t.shared("data/" .. name)), 0
    -- The other two packages find special tokens where they are told to only.
    local special = name:match "%.json$" ~= nil
    for path, want in pairs(texts) do
      local text = t.read(t.shared("data/" .. path))
      if (#text < 340000 and not path:match "devtest$") or os.getenv "ESPALIER_ALL_TEXTS" then
        local ids, n = ids_of(tok, text, special)
        t.equal({ n, hash(ids, n) }, { want[1], want[2] }, path)
        if os.getenv "ESPALIER_ALL_TEXTS" or path:match "/[ahj]%l+_%a+%.dev$" then
          t.equal(hash_lines(tok, text, special), want[3], "lines of " .. path)
        end
        if promises[name] == "plain" then
          ids, n = ids_of(tok, text, false)
          text = text:gsub("^ ", "")
        end
        if promises[name] then t.ok(decoded(tok, ids, n) == text, "decoding does not give back " .. path) end
        count = count + 1
      end
    end
    t.ok(count >= 10, count .. " texts were compared")
  end)
end
