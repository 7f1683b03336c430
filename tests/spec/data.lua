--- Data in: text, JSONL and Megatron pairs become documents and rows; order, blends and masks are what they say.
local t = ...

local esp = require "espalier"
local core = require "espalier.ffi"
local file = esp.io.file
local C = core.C

local shape = { hidden = 16, ffn = 24, layers = 2, heads = 4, kv_heads = 2, head_dim = 8, vocab = 512, context = 64, norm_eps = 1e-5,
  rope = { theta = 10000 }, tied = true }

local function tokenizer() return esp.tokenizer.load(t.shared "data/models/stories260K/tok512.model") end

-- All rows of data as { ids, first, target } lists.
local function rows_of(data)
  local b = data:batch(0, data:rows())
  return b.ids:table(), b.first:table(), b.target:table(), b
end

t.test("a permutation of any length is one, follows seed and stream, and needs no array", function()
  for _, n in ipairs { 1, 2, 3, 5, 16, 17, 100, 1000, 4097 } do
    local seen, moved = {}, 0
    for i = 0, n - 1 do
      local j = tonumber(C.esp_permute(i, n, 7, 3))
      t.ok(j >= 0 and j < n and not seen[j], n .. ": " .. i .. " goes to " .. j)
      seen[j] = true
      if j ~= i then moved = moved + 1 end
    end
    t.ok(n < 16 or moved > 0.8 * n, n .. ": only " .. moved .. " moved")
  end
  local function first(seed, stream)
    local list = {}
    for i = 0, 9 do list[i + 1] = tonumber(C.esp_permute(i, 2 ^ 40 + 7, seed, stream)) end
    return table.concat(list, " ")
  end
  t.equal(first(1, 0), first(1, 0))
  t.ok(first(1, 0) ~= first(2, 0) and first(1, 0) ~= first(1, 1), "another seed and another stream")
  -- Where an index goes is uniform: chi-square over 16 bins of 10,000 draws, 37.7 is passed once in a thousand times.
  local bins, chi = {}, 0
  for i = 0, 9999 do
    local bin = math.floor(tonumber(C.esp_permute(i, 1e9, 5, 2)) / 1e9 * 16)
    bins[bin] = (bins[bin] or 0) + 1
  end
  for bin = 0, 15 do chi = chi + ((bins[bin] or 0) - 625) ^ 2 / 625 end
  t.ok(chi < 37.7, "chi-square " .. chi)
end)

t.test("text: separators, a document a file, folders, trimming, a byte order mark", function()
  local dir = t.folder()
  t.write(dir .. "/a.txt", "\239\187\191 one \n<|endoftext|>\n\n<|endoftext|>two\n<|endoftext|>")
  t.write(dir .. "/b.jsonl", '{"text": "three"}\n\n{"text": "four"}\r\n')
  file.make(dir .. "/deep")
  t.write(dir .. "/deep/c.txt", "five##six")
  t.write(dir .. "/ignored.md", "seven")
  t.equal(esp.data.open(dir .. "/a.txt"):texts(), { "one", "two" })
  t.equal(esp.data.open(dir):texts(), { "one", "two", "three", "four", "five##six" })
  t.equal(esp.data.open(dir .. "/deep/c.txt", { separator = "##" }):texts(), { "five", "six" })
  t.equal(#esp.data.open(dir .. "/a.txt", { separator = "" }):texts(), 1)
  t.fails("there is no", esp.data.open, dir .. "/none.txt")
  t.write(dir .. "/deep/empty.txt", " \n ")
  t.fails("no documents", esp.data.open, dir .. "/deep/empty.txt")
  file.make(dir .. "/void")
  t.fails("holds no .txt or .jsonl", esp.data.open, dir .. "/void")
  t.fails("entry 2 of the list is number", esp.data.open, { "a", 3 })
end)

t.test("a reader's batches do not depend on where they are cut", function()
  local path, texts = t.folder() .. "/many.txt", {}
  for i = 1, 300 do texts[i] = string.rep("x", (i * 37) % 90) .. i end
  t.write(path, table.concat(texts, "<|endoftext|>"))
  local source = require "espalier.data.source"
  local whole = source.batch_bytes
  for _, bytes in ipairs { 1, 16, 100, 1000 } do
    source.batch_bytes = bytes
    t.equal(esp.data.open(path):texts(), texts, bytes .. " bytes a batch")
  end
  source.batch_bytes = whole
end)

t.test("JSONL: nested fields; what is wrong names the file and the line", function()
  local path = t.folder() .. "/a.jsonl"
  local function open(text, opt)
    t.write(path, text)
    return esp.data.open(path, opt)
  end
  t.equal(open('{"a":{"b":"x","c":[1,{"d":2}]}}\n{"a.b":"y"}\n{"q":{},"a":{"z":1,"b":"\\u00e9"}}', { field = "a.b" }):texts(), { "x", "y", "é" })
  for _, case in ipairs {
    { '{"text":"a"}\n\n{"txt":"b"}', "line 3: the field 'text' is missing, want a text" },
    { '{"text":"a"}\n{"text":7}', "line 2: the field 'text' is a number, want a text" }, { '{"text":["a"]}', "is a list" },
    { '{"text":null}', "is null" }, { "[1]", "line 1: it is a list, want an object" }, { '{"text":"a"}\n{"text":"b"', "line 2" },
    { '{"text":"a","text":"b"}', "stands twice" }, { '{"text":"\255"}', "line 1" }, { '{"text":"\\ud800"}', "surrogate" },
  } do
    local message = t.fails(case[2], open, case[1])
    t.ok(message:find(path, 1, true), message)
  end
  -- Of many bad lines the first is named, whatever the threads do.
  local lines = {}
  for i = 1, 400 do lines[i] = i > 150 and '{"text":0}' or '{"text":"fine"}' end
  for _ = 1, 5 do t.fails("line 151:", open, table.concat(lines, "\n")) end
  t.fails("prompt and completion go together", open, "{}", { prompt = "p" })
  t.fails("not several of them", open, "{}", { messages = "m", field = "f" })
  t.fails("a template is for messages", open, "{}", { template = "chatml" })
  t.fails("template is 'alpaca'", open, "{}", { messages = "m", template = "alpaca" })
end)

t.test("rows: cut, whole and none keep document boundaries", function()
  local rows = { { 1, 2, 3 }, { 4, 5 }, { 6, 7, 8, 9, 10, 11 }, { 12 } }
  local data = esp.data.of(rows)
  local function packed(pack, seq)
    local d = esp.data.of(rows)
    d.opt = { pack = pack, seq = seq, min_tokens = 1 }
    d.seq = nil
    return d:bind(nil)
  end
  local ids, first, target = rows_of(packed("cut", 4))
  t.equal(ids, { { 1, 2, 3, 4 }, { 5, 6, 7, 8 }, { 9, 10, 11, 12 } })
  t.equal(first, { { 0, 0, 0, 3 }, { 0, 1, 1, 1 }, { 0, 0, 0, 3 } })
  t.equal(target, { { 2, 3, -1, 5 }, { -1, 7, 8, 9 }, { 10, 11, -1, -1 } })
  ids, first, target = rows_of(packed("whole", 5))
  t.equal(ids, { { 1, 2, 3, 4, 5 }, { 6, 7, 8, 9, 10 }, { 12, 0, 0, 0, 0 } })
  t.equal(first, { { 0, 0, 0, 3, 3 }, { 0, 0, 0, 0, 0 }, { 0, 1, 2, 3, 4 } })
  t.equal(target, { { 2, 3, -1, 5, -1 }, { 7, 8, 9, 10, -1 }, { -1, -1, -1, -1, -1 } })
  local batch = select(4, rows_of(data))
  t.equal(data.seq, 6)
  t.equal(batch.positions, 12)
  t.equal(batch.predictions, 8)
  t.equal(packed("cut", 100):rows(), 1)
  t.fails("row 4, want 0 to 3", data.batch, data, { 4 })
  t.fails("token 0 is -1, want an id", esp.data.of, { { -1 } })
end)

-- ---- Megatron ----

local codes = { uint8 = { 1, 1 }, int8 = { 2, 1 }, int16 = { 3, 2 }, int32 = { 4, 4 }, int64 = { 5, 8 }, uint16 = { 8, 2 } }

-- Writes a pair of sequences (lists of ids); documents: where each begins, and the end. change(parts) damages the index.
local function megatron(prefix, dtype, sequences, documents, change)
  local code, size = unpack(codes[dtype] or { 6, 8 })
  local bin, lengths, pointers, bounds, at = {}, {}, {}, {}, 0
  for i, s in ipairs(sequences) do
    lengths[i], pointers[i] = t.little(#s, 4), t.little(at, 8)
    for _, id in ipairs(s) do bin[#bin + 1] = t.little(id, size) end
    at = at + #s * size
  end
  for i, d in ipairs(documents) do bounds[i] = t.little(d, 8) end
  local parts = { magic = "MMIDIDX\0\0", version = t.little(1, 8), code = t.little(code, 1), sequences = t.little(#sequences, 8),
    documents = t.little(#documents, 8), lengths = table.concat(lengths), pointers = table.concat(pointers), bounds = table.concat(bounds), rest = "",
    bin = table.concat(bin) }
  if change then change(parts) end
  t.write(prefix .. ".bin", parts.bin)
  t.write(prefix .. ".idx", parts.magic .. parts.version .. parts.code .. parts.sequences .. parts.documents .. parts.lengths .. parts.pointers
    .. parts.bounds .. parts.rest)
  return prefix
end

t.test("Megatron pairs of every dtype", function()
  local dir = t.folder()
  for dtype in pairs(codes) do
    local top = ({ uint8 = 255, int8 = 127, int16 = 32767, uint16 = 65535, int32 = 2 ^ 31 - 1, int64 = 2 ^ 31 - 1 })[dtype]
    local prefix = megatron(dir .. "/" .. dtype, dtype, { { 1, 2, 3 }, { 4 }, { 5, top } }, { 0, 2, 3 })
    for _, name in ipairs { prefix, prefix .. ".bin", prefix .. ".idx" } do
      local data = esp.data.open(name, { pack = "none", seq = 4 })
      t.equal(rows_of(data), { { 1, 2, 3, 4 }, { 5, top, 0, 0 } }, dtype)
    end
  end
  -- The side of a document does not depend on how its ids are stored.
  local sequences, bounds = {}, { 0 }
  for i = 1, 60 do sequences[i], bounds[i + 1] = { i, i + 1, (i * 7) % 100 }, i end
  local function held(dtype)
    local data = esp.data.open(megatron(dir .. "/x", dtype, sequences, bounds), { pack = "none" })
    return (rows_of(data:split({ held_out = "20%" }).held_out))
  end
  t.equal(held "int64", held "uint8")
end)

t.test("a hostile or damaged Megatron index is refused in one sentence", function()
  local prefix = t.folder() .. "/m"
  local sequences, documents = { { 1, 2, 3 }, { 4 }, { 5, 6 } }, { 0, 2, 3 }
  local function refused(part, change, dtype)
    megatron(prefix, dtype or "int32", sequences, documents, change)
    local message = t.fails(part, esp.data.open, prefix)
    t.ok(message:find("m.idx", 1, true) and not message:find "\n", message)
  end
  refused("does not begin with MMIDIDX", function(p) p.magic = "MMIDIDY\0\0" end)
  refused("version 2", function(p) p.version = t.little(2, 8) end)
  refused("dtype code 9", function(p) p.code = "\9" end)
  refused("dtype code 0", function(p) p.code = "\0" end)
  refused("its numbers are float64", nil, "float64")
  refused("its numbers are float32", function(p) p.code = "\7" end)
  refused("4 sequences", function(p) p.sequences = t.little(4, 8) end)
  refused("claims", function(p) p.sequences = string.rep("\255", 8) end)
  refused("claims", function(p) p.sequences = string.rep("\255", 7) .. "\127" end)
  refused("claims", function(p) p.documents = string.rep("\255", 7) .. "\127" end)
  refused("claims", function(p) p.documents = t.little(0, 8) end)
  refused("claims", function(p) p.bounds = p.bounds:sub(1, -2) end)
  refused("multimodal", function(p) p.rest = "\0\0\0" end)
  refused("5 bytes behind the lists", function(p) p.rest = "12345" end)
  refused("has the length -1", function(p) p.lengths = string.rep("\255", 4) .. p.lengths:sub(5) end)
  refused("begins at byte 13", function(p) p.pointers = p.pointers:sub(1, 8) .. t.little(13, 8) .. p.pointers:sub(17) end)
  refused("the .bin has 23 bytes", function(p) p.bin = p.bin:sub(1, -2) end)
  refused("the .bin has 25 bytes", function(p) p.bin = p.bin .. "x" end)
  refused("document 0 begins at sequence 1", function(p) p.bounds = t.little(1, 8) .. p.bounds:sub(9) end)
  refused("document 2 begins at sequence 1", function(p) p.bounds = t.little(0, 8) .. t.little(2, 8) .. t.little(1, 8) end)
  refused("document 1 begins at sequence 9", function(p) p.bounds = t.little(0, 8) .. t.little(9, 8) .. t.little(3, 8) end)
  refused("the documents end at sequence 2", function(p) p.bounds = t.little(0, 8) .. t.little(1, 8) .. t.little(2, 8) end)
  megatron(prefix, "int32", sequences, documents)
  local index = t.read(prefix .. ".idx")
  for n = 0, #index - 1, 3 do
    t.write(prefix .. ".idx", index:sub(1, n))
    t.fails("m.idx", esp.data.open, prefix)
  end
  file.remove(prefix .. ".idx")
  t.fails("there is no '" .. prefix .. ".idx'; a Megatron pair is", esp.data.open, prefix .. ".bin")
  -- An id that no model has is found when it is read.
  megatron(prefix, "int32", { { 1, 2 ^ 32 - 1 } }, { 0, 1 })
  t.fails("token 1 is -1, want an id", function() esp.data.open(prefix, { pack = "none" }):batch(0, 1) end)
  megatron(prefix, "int64", { { 1, 2 ^ 31 } }, { 0, 1 })
  t.fails("token 1 is 2147483648", function() esp.data.open(prefix, { pack = "none" }):batch(0, 1) end)
  megatron(prefix, "int32", sequences, documents)
  t.fails("holds ids; the option 'field' is about text", esp.data.open, prefix, { field = "text" })
end)

-- ---- blends ----

t.test("a blend holds its proportions over every prefix, whatever the order of its table", function()
  local dir, made = t.folder(), {}
  for i, name in ipairs { "wiki", "code", "books", "chat" } do
    local lines = {}
    for k = 1, 30 + i do lines[k] = string.format('{"text":"%s %d"}', name, k) end
    made[name] = dir .. "/" .. name .. ".jsonl"
    t.write(made[name], table.concat(lines, "\n"))
  end
  local tok = tokenizer()
  for _, weights in ipairs { { wiki = 0.3, code = 0.2, books = 0.4, chat = 0.1 }, { wiki = 1, code = 1, books = 1 }, { wiki = 0.97, code = 0.03 },
    { wiki = 5, code = 0.000001 * 7e5 }, { wiki = 0.123457, code = 0.4, books = 0.3 }, { code = 2 } } do
    local paths, sum = {}, 0
    for name, w in pairs(weights) do
      paths[made[name]] = w
      sum = sum + w
    end
    local data = esp.data.open(paths, { seq = 16, pack = "none", tokenizer = tok })
    local bounds, counts, at = {}, {}, 0
    for i in ipairs(data.names) do
      bounds[i], counts[i] = at, 0
      at = at + data.list[i]:rows()
    end
    t.equal(data:rows(), at)
    for k = 0, 2999 do
      local row, j = data:pick(k, 3), #bounds
      while row < bounds[j] do j = j - 1 end
      counts[j] = counts[j] + 1
      for i, name in ipairs(data.names) do
        local w = weights[name:match "([^/]+)%.jsonl$"] / sum
        t.ok(math.abs(counts[i] - w * (k + 1)) < 1, string.format("%s holds %d of %d rows, its weight is %g", name, counts[i], k + 1, w))
      end
    end
  end
end)

t.test("a blend goes through each source once an epoch; far rows are found at once", function()
  local dir = t.folder()
  t.write(dir .. "/a.jsonl", ('{"text":"a b c"}\n'):rep(7))
  t.write(dir .. "/b.jsonl", ('{"content":"d e f g"}\n'):rep(5))
  local data = esp.data.open({ [dir .. "/a.jsonl"] = 0.7, [dir .. "/b.jsonl"] = { weight = 0.3, field = "content" } },
    { seq = 16, pack = "none", tokenizer = tokenizer() })
  local times = {}
  for k = 0, 9 do
    local row = data:pick(k, 1)
    times[row] = (times[row] or 0) + 1
  end
  for row = 0, 6 do t.equal(times[row], 1, "row " .. row .. " of a") end
  local far = data:pick(1e15, 1)
  t.ok(far >= 0 and far < 12, "row " .. far)
  local ids = data:batch({ 0, 11 }).ids:table()
  t.ok(ids[1][1] == ids[2][1] and ids[1][3] ~= ids[2][3], "rows of both")
  t.fails("has no weight", esp.data.open, { [dir .. "/a.jsonl"] = { field = "text" } })
  t.fails("want a number above 0", esp.data.open, { [dir .. "/a.jsonl"] = 0 })
  t.fails("want a number above 0", esp.data.open, { [dir .. "/a.jsonl"] = 0 / 0 })
  t.fails("unknown option 'feild'", esp.data.open, { [dir .. "/a.jsonl"] = { weight = 1, feild = "x" } })
  t.fails("round them", esp.data.open, { [dir .. "/a.jsonl"] = { weight = 999.999983 }, [dir .. "/b.jsonl"] = { weight = 0.3, field = "content" } })
end)

-- ---- masks ----

t.test("prompt and completion: only the completion is predicted and counted", function()
  local tok, path = tokenizer(), t.folder() .. "/sft.jsonl"
  t.write(path, '{"prompt":"Once upon a time","completion":" there was a fox."}\n{"prompt":"","completion":"Tom ran."}\n'
    .. '{"prompt":"Lily saw","completion":""}\n')
  local data = esp.data.open(path, { prompt = "prompt", completion = "completion", tokenizer = tok, seq = 48, pack = "none" })
  local ids, _, target, batch = rows_of(data)
  local whole, prompt = tok:encode("Once upon a time there was a fox.", { bos = true, eos = true }), tok:encode("Once upon a time", { bos = true })
  local n = 0
  for i = 1, #whole do
    t.equal(ids[1][i], whole[i], "id " .. i)
    local want = (i >= #prompt and i < #whole) and whole[i + 1] or -1
    t.equal(target[1][i], want, "target " .. i)
    if want >= 0 then n = n + 1 end
  end
  t.ok(n > 5 and target[1][#whole - 1] == tok.eos, "the end is learnt")
  -- Without a prompt all but BOS is counted; an empty completion leaves its end.
  local tom = #tok:encode "Tom ran."
  for i = 1, tom do t.equal(target[2][i], ids[2][i + 1]) end
  local last = 0
  for i = 1, 48 do if target[3][i] >= 0 then last = last + 1 end end
  t.equal(last, 1)
  t.equal(batch.predictions, n + tom + 1 + 1)
  t.equal(batch.positions, batch.predictions)
  -- What goes whole into rows unless told otherwise.
  t.equal(esp.data.open(path, { prompt = "prompt", completion = "completion", tokenizer = tok, seq = 128 }):rows(), 1)
  local endless = setmetatable({ eos = false }, { __index = tok })
  t.fails("has no EOS token", esp.data.open, path, { prompt = "prompt", completion = "completion", tokenizer = endless, eos = true })
end)

t.test("messages: what the assistant says is counted, by a template", function()
  local tok, path = tokenizer(), t.folder() .. "/chat.jsonl"
  local line = '{"chat":[{"role":"user","content":"Hi."},{"role":"assistant","content":"Hello!"},{"role":"user","content":"Go."},'
    .. '{"role":"assistant","content":"No."}]}'
  t.write(path, line)
  local function open(opt)
    opt.messages, opt.tokenizer, opt.seq = opt.messages or "chat", tok, 64
    return esp.data.open(path, opt)
  end
  local data = open { template = { "[{role}]\n", "\n" } }
  t.equal(data:texts(), { "[user]\nHi.\n[assistant]\nHello!\n[user]\nGo.\n[assistant]\nNo.\n" })
  local ids, _, target = rows_of(data)
  local said = {}
  for i = 1, 64 do if target[1][i] >= 0 then said[#said + 1] = target[1][i] end end
  t.equal(tok:decode(said, { first = false }), "Hello!\nNo.\n")
  t.equal(ids[1][1], tok.bos)
  t.equal(open({}):texts(), { "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nGo.<|im_end|>\n"
    .. "<|im_start|>assistant\nNo.<|im_end|>\n" })
  t.fails("is missing, want a list", open, { messages = "talk" })
  t.write(path, '{"chat":[{"role":"user","content":"Hi."}]}')
  t.fails("no message has the role 'assistant'", open, {})
  t.write(path, '{"chat":[{"role":"assistant","content":["Hi."]}]}')
  t.fails("line 1: the field 'content' is a list, want a text", open, {})
end)

t.test("loss and counts of a run, and of a score, are over the completion alone", function()
  local tok, path = tokenizer(), t.folder() .. "/sft.jsonl"
  t.write(path, '{"p":"One day","c":" a cat sat."}\n{"p":"The dog","c":" ran far away."}\n')
  local data = esp.data.open(path, { prompt = "p", completion = "c", tokenizer = tok, seq = 40, pack = "none" })
  local model, b = esp.models.new(shape, { seed = 1 }), data:batch(0, 2)
  local nll, n = model:token_nll(b.ids, { first = b.first, target = b.target }):table(), 0
  local sum = 0
  for _, v in ipairs(nll) do sum = sum + v end
  for _, row in ipairs(b.target:table()) do for _, id in ipairs(row) do if id >= 0 then n = n + 1 end end end
  t.equal(n, b.predictions)
  local score = esp.evaluate { model, data = data }
  t.near(score.nll, sum / n, 1e-5)
  t.equal(score.predictions, n)
  local run = esp.train { model, data = data, steps = 1, batch = 2, quiet = true }
  t.near(run.steps[1].loss, sum / n, 1e-5)
  t.equal(run.steps[1].tokens, n)
  -- Distilled: KL over the same positions; the prompt's positions change nothing.
  local teacher = esp.models.new(shape, { seed = 2 })
  local kd = esp.distill { teacher = teacher, student = model, data = data, steps = 1, batch = 2, quiet = true }
  local p, q, kl = teacher:logits(b.ids):log_softmax():table(), model:logits(b.ids):log_softmax():table(), 0
  for r, row in ipairs(b.target:table()) do
    for i, id in ipairs(row) do
      if id >= 0 then for v = 1, 512 do kl = kl + math.exp(p[r][i][v]) * (p[r][i][v] - q[r][i][v]) end end
    end
  end
  t.near(kd.steps[1].loss, kl / n, 1e-5)
  -- A step whose rows hold nothing to learn is no NaN.
  t.write(path, '{"p":"' .. ("word "):rep(60) .. '","c":"x"}')
  local cut = esp.data.open(path, { prompt = "p", completion = "c", tokenizer = tok, seq = 16 })
  t.equal(esp.train({ model, data = cut, steps = 1, batch = 1, quiet = true }).steps[1].loss, 0)
end)
