--- Encoding on one thread: megabytes a second of processor time, beside the tokenizers package's where a Python has it; and whether time grows with
-- the length alone.
--
--   build/espalier tests/bench/encode.lua tokenizer=tokenizer.json text=corpus.txt python=python3

local esp = require "espalier"
local core, file = esp.ffi, esp.io.file
local C = core.C

local opt = esp.options(..., {
  tokenizer = { "path", default = "../shared/data/tokenizers/gpt2/hf_tokenizer.json", help = "a tokenizer.json, or any tokenizer without python" },
  text = { "path", default = "../shared/data/text/redpajama-sample/sample_c4-rp1.jsonl", help = "the text" },
  rounds = { "int", default = 5, help = "the best of so many rounds counts" },
  python = { "string", default = os.getenv "BENCH_PYTHON" or "python3", help = "a Python that has tokenizers" },
})

local tok = esp.tokenizer.load(opt.tokenizer)

-- Seconds of the processor that the best of n rounds takes, and the number of ids.
local function measure(text, n)
  local out, count, best = core.new "int32_t *[1]", core.new "int64_t[1]", math.huge
  for _ = 1, n do
    local start = os.clock()
    core.try(C.esp_tokenizer_encode(out, count, tok.c, text, #text, 1))
    best = math.min(best, os.clock() - start)
    C.esp_buffer_free(out[0])
  end
  return best, tonumber(count[0])
end

-- What the package does, or nil and why not.
local function theirs()
  local helper = (debug.getinfo(1, "S").source:match "^@(.*)%.lua$") .. ".py"
  local out = os.tmpname()
  local child = esp.io.process.start({ "/usr/bin/env", opt.python, helper, opt.tokenizer, opt.text, tostring(opt.rounds) }, out)
  local code, printed = child:wait(), file.read(out)
  file.remove(out)
  local line = printed:match "{[^\n]*}"
  if code ~= 0 or not line then return nil, (printed:match "[^\n]*%s*$"):sub(1, 200) end
  return esp.io.json.decode(line, "encode.py")
end

local text = file.read(opt.text)
local seconds, ids = measure(text, opt.rounds)
print(string.format("%s: %d bytes, %d ids, %.1f MB/s", file.name(opt.text), #text, ids, #text / seconds / 1e6))
local other, why = theirs()
if other then
  local ratio = #text / seconds / 1e6 / other.mb_per_s
  print(string.format("tokenizers %s: %.1f MB/s, %d ids; ratio %.1f", other.version, other.mb_per_s, other.ids, ratio))
else
  print("tokenizers: not measured: " .. why)
end
for _, letter in ipairs { "a", " ", "\n", "1", "é", "語", "▁", "." } do
  local long = string.rep(letter, math.floor(1e6 / #letter))
  local whole = measure(long, 1)
  print(string.format("a megabyte of %-4q %.3f s; half of it %.3f s", letter, whole, measure(long:sub(1, #letter * math.floor(5e5 / #letter)), 1)))
end
