--- Every part of tokenizer.json on texts that try it, and small sentencepiece models, against the ids of the packages (tests/golden/tokenizers).
local t = ...

local esp = require "espalier"
local json = esp.io.json

local golden = json.read(t.root .. "tests/golden/tokenizers/parts.json")

t.test("every normalizer, pre-tokenizer and model of tokenizer.json gives its ids", function()
  local path = t.folder() .. "/tokenizer.json"
  for i, case in ipairs(golden.tokenizers) do
    json.write(path, case.config)
    local tok = esp.tokenizer.load(path)
    for k, text in ipairs(golden.texts) do
      t.equal(tok:encode(text, { special = true }), case.ids[k], string.format("tokenizer %d, %q", i, text))
    end
  end
  t.ok(#golden.tokenizers > 40, #golden.tokenizers .. " tokenizers")
end)

t.test("small models of sentencepiece give their ids and texts", function()
  local path = t.folder() .. "/tokenizer.model"
  for i, case in ipairs(golden.sentencepiece) do
    t.write(path, (case.model:gsub("%x%x", function(h) return string.char(tonumber(h, 16)) end)))
    local tok = esp.tokenizer.load(path)
    for k, text in ipairs(golden.texts) do
      local what = string.format("model %d, %q", i, text)
      t.equal(tok:encode(text), case.ids[k], what)
      t.equal(tok:decode(case.ids[k]), case.decoded[k], what)
    end
  end
end)

t.test("patterns that Oniguruma reads in another way are refused, not guessed", function()
  local path = t.folder() .. "/tokenizer.json"
  local refused = { ["[a[bc]]"] = "a class inside a class", ["[a&&b]"] = "an intersection", ["(?m:.)"] = "a group of an unknown kind",
    ["a{2}+"] = "'}+'", ["\\h"] = "the escape \\h", ["[\\S]"] = "a negated class inside a class", ["(a"] = "is wrong at",
    ["(a)\\1"] = "the escape \\1" }
  for pattern, part in pairs(refused) do
    json.write(path, { model = { type = "BPE", vocab = { a = 0 }, merges = json.array() },
      pre_tokenizer = { type = "Split", pattern = { Regex = pattern }, behavior = "Isolated", invert = false } })
    t.fails(part, esp.tokenizer.load, path)
  end
end)

t.test("a hostile pattern gives up in a sentence", function()
  local path = t.folder() .. "/tokenizer.json"
  json.write(path, { model = { type = "BPE", vocab = { a = 0 }, merges = json.array() },
    pre_tokenizer = { type = "Split", pattern = { Regex = "(a+)+(a+)+(a+)+[bc]" }, behavior = "Isolated", invert = false } })
  t.fails("the pattern gave up", function() esp.tokenizer.load(path):encode(("a"):rep(300)) end)
end)

t.test("a sentencepiece piece that is no UTF-8 is refused", function()
  local path = t.folder() .. "/tokenizer.model"
  t.write(path, "\10\8\10\1\195\21\0\0\0\0")
  t.fails("piece 0 is no UTF-8", esp.tokenizer.load, path)
end)
