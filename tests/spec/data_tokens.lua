--- Token files: what `espalier tokenize` writes is what opening the text gives, whole or not at all, whatever the threads, the disk and the signals
-- do; and runs on blends of all formats resume bit-equal.
local t = ...

local esp = require "espalier"
local tensor = require "espalier.tensor"
local file, hdf5, process = esp.io.file, esp.io.hdf5, esp.io.process

local shape = { hidden = 16, ffn = 24, layers = 2, heads = 4, kv_heads = 2, head_dim = 8, vocab = 512, context = 64, norm_eps = 1e-5,
  rope = { theta = 10000 }, tied = true }

local function tokenizer_path() return t.shared "data/models/stories260K/tok512.model" end
local function tokenizer() return esp.tokenizer.load(tokenizer_path()) end
local function program() return file.real(t.program() or t.skip "needs the espalier program") end

-- The first n stories, as one text with separators.
local function stories(n)
  local text, list, at = t.read(t.shared "data/text/tinystories/tinystories_10k.txt"), {}, 1
  while #list < n do
    local from, to = text:find("<|endoftext|>", at, true)
    list[#list + 1] = text:sub(at, from - 1)
    at = to + 1
  end
  return table.concat(list, "<|endoftext|>"), list
end

local function rows_of(data)
  local b = data:batch(0, data:rows())
  return { b.ids:table(), b.first:table(), b.target:table(), b.valid:table() }
end

t.test("a token file gives the rows, the sides and the refusals of its text", function()
  local dir, tok = t.folder(), tokenizer()
  local text = stories(40)
  t.write(dir .. "/a.txt", text)
  t.write(dir .. "/b.jsonl", '{"text":"Tom ran."}\n{"text":"Lily sat."}')
  local made = esp.data.tokenize { input = dir, out = dir .. "/c.h5", tokenizer = tok, quiet = true }
  t.equal(made.documents, 42)
  local from_text, from_file = esp.data.open(dir, { seq = 64, tokenizer = tok }), esp.data.open(dir .. "/c.h5", { seq = 64 })
  t.equal(rows_of(from_file), rows_of(from_text))
  t.equal(made.tokens, from_text.starts.p[42])
  t.equal(from_file:digest(), from_text:digest())
  local a, b = from_text:split { held_out = "20%" }, from_file:split { held_out = "20%" }
  t.equal(rows_of(b.held_out), rows_of(a.held_out))
  local model = esp.models.new(shape, { seed = 1, tokenizer = tok })
  t.fails("is in the training data", esp.train, { model, data = b.train, held_out = a.train, steps = 1, quiet = true })
  local run = esp.train { model, data = b, steps = 2, batch = 2, quiet = true }
  t.equal(run.steps[2].loss, esp.train({ model, data = a, steps = 2, batch = 2, quiet = true }).steps[2].loss)
  t.fails("training side of a split", esp.evaluate, { model, data = b.train })
  local f = hdf5.open(dir .. "/c.h5")
  local wanted = { format = "espalier tokens", vocab = "512", tokenizer_hash = tok:hash(), bos = tostring(tok.bos), eos = "-1", hash_of = "text" }
  for name, want in pairs(wanted) do t.equal(f:attribute(name), want, name) end
  f:close()
  t.fails("holds ids; the option 'eos'", esp.data.open, dir .. "/c.h5", { eos = true })
  t.fails("it holds ids, no texts", from_file.texts, from_file)
end)

t.test("BOS, EOS and masks are what was asked for, and are recorded", function()
  local dir, tok = t.folder(), tokenizer()
  t.write(dir .. "/a.txt", "Tom ran.<|endoftext|>Lily sat.")
  t.write(dir .. "/sft.jsonl", '{"p":"Tom","c":" ran."}\n{"p":"Lily","c":" sat down."}')
  local function ids(opt)
    opt.tokenizer, opt.out, opt.quiet, opt.input = tok, dir .. "/o.h5", true, dir .. "/a.txt"
    esp.data.tokenize(opt)
    local f, list = hdf5.open(opt.out), {}
    local n, bos, eos = f:length "tokens", f:attribute "bos", f:attribute "eos"
    local p = esp.ffi.new("int32_t[?]", n)
    f:part("tokens", "i32", 0, n, p)
    for i = 1, n do list[i] = p[i - 1] end
    f:close()
    return list, bos, eos
  end
  local one, two = tok:encode "Tom ran.", tok:encode "Lily sat."
  for _, case in ipairs { { true, false }, { false, true }, { true, true }, { false, false } } do
    local want = {}
    for _, text in ipairs { one, two } do
      if case[1] then want[#want + 1] = tok.bos end
      for _, id in ipairs(text) do want[#want + 1] = id end
      if case[2] then want[#want + 1] = tok.eos end
    end
    local got, bos, eos = ids { bos = case[1], eos = case[2] }
    t.equal(got, want)
    t.equal(bos, tostring(case[1] and tok.bos or -1))
    t.equal(eos, tostring(case[2] and tok.eos or -1))
  end
  esp.data.tokenize { input = dir .. "/sft.jsonl", out = dir .. "/s.h5", tokenizer = tok, prompt = "p", completion = "c", quiet = true }
  for _, pack in ipairs { "whole", "none", "cut" } do
    t.equal(rows_of(esp.data.open(dir .. "/s.h5", { seq = 16, pack = pack })),
      rows_of(esp.data.open(dir .. "/sft.jsonl", { seq = 16, pack = pack, prompt = "p", completion = "c", tokenizer = tok })), pack)
  end
  t.equal(esp.data.open(dir .. "/s.h5", { seq = 64 }):rows(), 1)
end)

t.test("another tokenizer, and a vocabulary beyond the model's, are refused", function()
  local dir, tok = t.folder(), tokenizer()
  t.write(dir .. "/a.txt", "Tom ran.<|endoftext|>Lily sat.")
  esp.data.tokenize { input = dir .. "/a.txt", out = dir .. "/a.h5", tokenizer = tok, quiet = true }
  local other = esp.tokenizer.load(t.shared "data/models/babyllama/tok105.model")
  local message = t.fails("is tokenised by another tokenizer", esp.data.open, dir .. "/a.h5", { tokenizer = other })
  t.ok(message:find(tok:hash(), 1, true) and message:find(other:hash(), 1, true), message)
  local model = esp.models.new(shape, { seed = 1, tokenizer = other })
  t.fails("is tokenised by another tokenizer", esp.evaluate, { model, data = esp.data.open(dir .. "/a.h5") })
  local small = {}
  for k, v in pairs(shape) do small[k] = v end
  small.vocab = 300
  t.fails("512 pieces, the model's vocabulary 300", esp.evaluate, { esp.models.new(small, { seed = 1 }), data = esp.data.open(dir .. "/a.h5") })
  t.fails("512 pieces, the model's vocabulary 300", esp.importance.measure, esp.models.new(small, { seed = 1 }), esp.data.open(dir .. "/a.h5"))
end)

t.test("token files of others: any integers, chunks or none; what is wrong is one sentence", function()
  local path = t.folder() .. "/x.h5"
  local function i32(list) return tensor.of(list, { dtype = "i32" }) end
  local function open(change)
    local sets = { tokens = i32 { 1, 2, 3, 4, 5, 6 }, document_offsets = i32 { 0, 2, 6 } }
    for k, v in pairs(change) do sets[k] = v or nil end
    hdf5.write(path, sets)
    return esp.data.open(path, { pack = "none", seq = 4 })
  end
  t.equal(rows_of(open {})[1], { { 1, 2, 0, 0 }, { 3, 4, 5, 6 } })
  t.equal(rows_of(open { tokens = tensor.of({ 1, 2, 3, 4, 5, 6 }, { dtype = "u8" }) })[1], { { 1, 2, 0, 0 }, { 3, 4, 5, 6 } })
  t.equal(rows_of(open { loss_mask = i32 { 0, 1, 0, 0, 1, 0 } })[3], { { 2, -1, -1, -1 }, { -1, 5, -1, -1 } })
  for _, case in ipairs {
    { { tokens = false }, "want the datasets tokens and document_offsets" }, { { document_offsets = false }, "want the datasets tokens" },
    { { document_offsets = i32 { 1, 6 } }, "begins with 1, want 0" },
    { { document_offsets = i32 { 0, 4, 3, 6 } }, "falls from 4 to 3 at document 1" },
    { { document_offsets = i32 { 0, 5 } }, "ends at 5, there are 6 tokens" }, { { document_offsets = i32 { 0, 9 } }, "ends at 9" },
    { { document_offsets = i32 {} }, "want the datasets tokens" }, { { tokens = tensor.of { 1.5, 2 } }, "want one list of integers" },
    { { tokens = i32 { { 1, 2 }, { 3, 4 } } }, "want one list of integers" }, { { document_hashes = i32 { 1 } }, "1 document_hashes, want 2" },
    { { loss_mask = i32 { 1 } }, "loss_mask has 1 entries, want 6" }, { { tokens = i32 {}, document_offsets = i32 { 0 } }, "no documents" },
  } do
    local message = t.fails(case[2], open, case[1])
    t.ok(not message:find "\n", message)
  end
  t.write(path, "no HDF5 at all")
  t.fails("x.h5", esp.data.open, path)
  t.fails("there is no", esp.data.open, path .. "5.h5")
end)

t.test("every flipped byte of a token file is noticed or harmless", function()
  local dir, tok = t.folder(), tokenizer()
  t.write(dir .. "/a.txt", (stories(12)))
  esp.data.tokenize { input = dir .. "/a.txt", out = dir .. "/a.h5", tokenizer = tok, quiet = true }
  local function content()
    local data = esp.data.open(dir .. "/a.h5", { seq = 32 })
    local all = { rows_of(data), data:digest() }
    data.corpus.f:close()
    return all
  end
  local bytes, want, noticed = t.read(dir .. "/a.h5"), content(), 0
  for at = 1, #bytes, math.floor(#bytes / 97) do
    t.write(dir .. "/a.h5", bytes:sub(1, at - 1) .. string.char((bytes:byte(at) + 85) % 256) .. bytes:sub(at + 1))
    local ok, got = pcall(content)
    if ok then t.equal(got, want, "the flipped byte " .. at) else noticed = noticed + 1 end
  end
  t.ok(noticed > 3, noticed .. " noticed")
end)

t.test("Megatron pairs keep their ids; text and pairs are told apart and compared by ids", function()
  local dir, tok = t.folder(), tokenizer()
  local texts = { "Tom ran.", "Lily sat.", "The dog ate." }
  local lengths, pointers, bounds, bin, at = {}, {}, { esp.ffi.string(esp.ffi.new "char[8]", 8) }, {}, 0
  local function little(v, n)
    local s = ""
    for _ = 1, n do s, v = s .. string.char(v % 256), math.floor(v / 256) end
    return s
  end
  for i, text in ipairs(texts) do
    local ids = tok:encode(text, { eos = true })
    lengths[i], pointers[i], bounds[i + 1] = little(#ids, 4), little(at, 8), little(i, 8)
    for _, id in ipairs(ids) do bin[#bin + 1] = little(id, 2) end
    at = at + 2 * #ids
  end
  t.write(dir .. "/m.bin", table.concat(bin))
  t.write(dir .. "/m.idx", "MMIDIDX\0\0" .. little(1, 8) .. "\8" .. little(3, 8) .. little(4, 8) .. table.concat(lengths) .. table.concat(pointers)
    .. table.concat(bounds))
  esp.data.tokenize { input = dir .. "/m", out = dir .. "/m.h5", quiet = true }
  local pair, copied = esp.data.open(dir .. "/m", { seq = 16 }), esp.data.open(dir .. "/m.h5", { seq = 16 })
  t.equal(rows_of(copied), rows_of(pair))
  t.equal(rows_of(copied:split({ held_out = "30%" }).held_out), rows_of(pair:split({ held_out = "30%" }).held_out))
  local model = esp.models.new(shape, { seed = 1, tokenizer = tok })
  local text = esp.data.open({ "A new story.", "The dog ate." }, { seq = 16 })
  t.fails("document 1 of the held-out data", esp.train, { model, data = pair, held_out = text, steps = 1, quiet = true })
  esp.train { model, data = pair, held_out = esp.data.open({ "A new story." }, { seq = 16 }), steps = 1, batch = 1, quiet = true }
  t.fails("go into files of their own", esp.data.tokenize, { input = { dir .. "/m", dir .. "/m.txt" }, out = dir .. "/x.h5", tokenizer = tok })
  local small = esp.tokenizer.load(t.shared "data/models/babyllama/tok105.model")
  t.fails("the tokenizer has 105 pieces", esp.data.tokenize, { input = dir .. "/m", out = dir .. "/x.h5", tokenizer = small, quiet = true })
  t.equal(file.list(dir), { "m.bin", "m.h5", "m.idx" })
end)

-- ---- the verb ----

t.test("the verb: one line about what it made, one sentence about what was wrong, and nothing left behind", function()
  local p, dir, tok = program(), t.folder(), tokenizer_path()
  t.write(dir .. "/a.txt", "Tom ran.<|endoftext|>Lily sat.")
  t.write(dir .. "/bad.jsonl", '{"text":"a"}\n{"text":1}')
  t.write(dir .. "/raw.txt", "fine<|endoftext|>not \255 fine")
  local function run(...)
    local child = process.start({ p, "tokenize", ... }, dir .. "/said")
    local code, said = child:wait(), t.read(dir .. "/said")
    file.remove(dir .. "/said")
    return code, said
  end
  local code, said = run(dir .. "/a.txt", "out=" .. dir .. "/a.h5", "tokenizer=" .. tok)
  t.equal(code, 0, said)
  t.ok(said:find("2 documents, 11 tokens (u16)", 1, true), said)
  local before = file.list(dir)
  local out = "out=" .. dir .. "/b.h5"
  for _, case in ipairs {
    { "name a file or a folder" }, { "there is no", dir .. "/none", out, "tokenizer=" .. tok }, { "'tokenizer' is missing", dir .. "/a.txt", out },
    { "'out' is missing", dir .. "/a.txt", "tokenizer=" .. tok }, { "a name that ends in .h5", dir .. "/a.txt", "out=b", "tokenizer=" .. tok },
    { "did you mean 'field'", dir .. "/a.txt", out, "feild=x" }, { "is given twice", dir .. "/a.txt", out, out },
    { "line 2: the field 'text' is a number", dir .. "/bad.jsonl", out, "tokenizer=" .. tok },
    { "raw.txt document 2: ", dir .. "/raw.txt", out, "tokenizer=" .. tok }, { "its tokens are there already", dir .. "/a.h5", out },
    { "there is no 'nowhere/at/all'", dir .. "/a.txt", out, "tokenizer=nowhere/at/all" },
    { "cannot write", dir .. "/a.txt", "out=" .. dir .. "/no/such/folder.h5", "tokenizer=" .. tok },
  } do
    code, said = run(unpack(case, 2))
    t.equal(code, 1, said)
    t.ok(said:find(case[1], 1, true) and select(2, said:gsub("\n", "")) == 1, case[1] .. ": " .. said)
    t.equal(file.list(dir), before, case[1])
  end
end)

t.test("threads change nothing; peak memory does not grow with the input", function()
  local p, dir = program(), t.folder()
  local text = stories(250)
  t.write(dir .. "/once.txt", text)
  t.write(dir .. "/many.txt", (text .. "<|endoftext|>"):rep(48))
  t.write(dir .. "/run.lua", [[
    local input, out, tokenizer = ...
    local esp = require "espalier"
    require("espalier.data.source").batch_bytes = 2 ^ 16
    esp.data.tokenize { input = input, out = out, tokenizer = tokenizer, quiet = true }
    io.write(tonumber(esp.ffi.C.esp_rss_peak()))
  ]])
  local function run(input, out, threads)
    -- A sanitizer would keep what was freed.
    local line = "ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=0:thread_local_quarantine_size_kb=0 " .. string.format(
      "ESPALIER_THREADS=%d exec %s %s/run.lua %s/%s %s/%s %s", threads, p, dir, dir, input, dir, out, tokenizer_path())
    t.equal(process.start({ "/bin/sh", "-c", line }, dir .. "/" .. out .. ".said"):wait(), 0)
    return tonumber(t.read(dir .. "/" .. out .. ".said"))
  end
  run("once.txt", "one.h5", 1)
  run("once.txt", "three.h5", 3)
  t.ok(t.read(dir .. "/one.h5") == t.read(dir .. "/three.h5"), "one thread and three write the same bytes")
  -- Two huge pages may be begun or not; what would follow the text is twice that.
  local small, large = run("once.txt", "two.h5", 2), run("many.txt", "many.h5", 2)
  t.ok(47 * #text > 8 * 2 ^ 20, "there is enough of it")
  t.ok(large - small < 4 * 2 ^ 20, string.format("%d bytes at the peak for the text, %d for 48 of it", small, large))
end)

t.test("a full disk at any write leaves nothing, and what was there", function()
  local p, dir = program(), t.folder()
  t.write(dir .. "/a.txt", (stories(60)))
  local function go(limit)
    local line = string.format("{ (ulimit -f %s; exec %s tokenize %s/a.txt out=%s/a.h5 tokenizer=%s); echo $?; } 2>&1 | cat", limit, p, dir, dir,
      tokenizer_path())
    process.start({ "/bin/sh", "-c", line }, dir .. "/said"):wait()
    local said, code = t.read(dir .. "/said"):match "^(.-)(%d+)\n$"
    file.remove(dir .. "/said")
    return tonumber(code), said
  end
  local blocks, failures = 0, 0
  while true do
    local code, said = go(blocks)
    if code == 0 then break end
    failures = failures + 1
    t.equal(code, 1, said)
    t.ok(said:find "espalier: [^\n]+\n$", said)
    t.equal(file.list(dir), { "a.txt" }, said)
    blocks = math.max(blocks + 1, math.floor(blocks * 1.4))
  end
  t.ok(failures > 8, failures .. " failures")
  local before = t.read(dir .. "/a.h5")
  t.equal((go(3)), 1)
  t.ok(t.read(dir .. "/a.h5") == before, "the file that was there")
end)

t.test("Ctrl-C leaves nothing half written; what a kill leaves is swept up by the next", function()
  local p, dir = program(), t.folder()
  t.write(dir .. "/a.txt", ((stories(300)) .. "<|endoftext|>"):rep(60))
  local function start()
    return process.start({ p, "tokenize", dir .. "/a.txt", "out=" .. dir .. "/a.h5", "tokenizer=" .. tokenizer_path() }, dir .. "/said")
  end
  local function writes(child)
    return file.kind(dir .. "/a.h5.part-" .. child.pid)
  end
  local interrupted, killed = 0, 0
  for i = 1, 8 do
    local child, signal = start(), i % 2 == 0 and 9 or 2
    while i % 4 > 1 and not writes(child) and not child:poll() do process.sleep(0.002) end
    process.sleep(0.1 * (i * 0.6180339887 % 1))
    child:signal(signal)
    local code = child:wait()
    t.ok(not file.kind(dir .. "/a.h5"), "a.h5 is there")
    if signal == 2 then
      -- Before the program listens, the signal ends it at once.
      t.equal(code, 130, t.read(dir .. "/said"))
      t.ok(not t.read(dir .. "/said"):find(".lua:", 1, true), t.read(dir .. "/said"))
      t.ok(not file.kind(dir .. "/a.h5.part-" .. child.pid), t.read(dir .. "/said"))
      interrupted = interrupted + 1
    elseif file.kind(dir .. "/a.h5.part-" .. child.pid) then
      killed = killed + 1
    end
  end
  t.ok(interrupted == 4 and killed > 0, interrupted .. " interrupted, " .. killed .. " killed while it wrote")
  t.write(dir .. "/a.txt", "Tom ran.")
  t.equal(start():wait(), 0)
  t.equal(file.list(dir), { "a.h5", "a.txt", "said" })
end)

t.test("a run on a blend of formats, killed and interrupted, makes the same bits", function()
  local p, dir, tok = program(), t.folder(), tokenizer()
  local _, list = stories(60)
  local lines = {}
  for i = 1, 20 do lines[i] = esp.io.json.encode { p = list[i]:sub(1, 40), c = list[i]:sub(41, 160) } end
  t.write(dir .. "/sft.jsonl", table.concat(lines, "\n"))
  t.write(dir .. "/wiki.txt", table.concat(list, "<|endoftext|>", 21, 40))
  t.write(dir .. "/rest.txt", table.concat(list, "<|endoftext|>", 41, 60))
  esp.data.tokenize { input = dir .. "/rest.txt", out = dir .. "/rest.h5", tokenizer = tok, quiet = true }
  t.write(dir .. "/train.lua", [[
    local out, dir, tokenizer = ...
    local esp = require "espalier"
    local shape = { hidden = 32, ffn = 48, layers = 2, heads = 4, kv_heads = 2, head_dim = 8, vocab = 512, context = 64, norm_eps = 1e-5,
      rope = { theta = 10000 }, tied = true }
    local data = esp.data.open({ [dir .. "/wiki.txt"] = 0.5, [dir .. "/rest.h5"] = 0.3, [dir .. "/sft.jsonl"] = { weight = 0.2, prompt = "p",
      completion = "c" } }, { seq = 48, tokenizer = esp.tokenizer.load(tokenizer) }):split { held_out = "10%" }
    local run = esp.train { esp.models.new(shape, { seed = 1 }), data = data, steps = 120, batch = 4, checkpoint_every = 4, seed = 5,
      out = out, quiet = true }
    io.write(string.format("%.17g %.17g", run.steps[120].loss, run.nll))
  ]])
  local function go(out) return process.start({ p, dir .. "/train.lua", out, dir, tokenizer_path() }, out .. ".said") end
  local whole = go(dir .. "/whole")
  while not file.kind(dir .. "/whole/log") and not whole:poll() do process.sleep(0.002) end
  local start = esp.ffi.C.esp_clock()
  t.equal(whole:wait(), 0, t.read(dir .. "/whole.said"))
  local seconds = esp.ffi.C.esp_clock() - start
  local killed = 0
  for i = 1, 6 do
    local child = go(dir .. "/cut")
    -- The run has begun; it is stopped somewhere in its first half.
    while not file.kind(dir .. "/cut/log") and not child:poll() do process.sleep(0.002) end
    process.sleep(0.3 * seconds * (i * 0.6180339887 % 1))
    if not child:poll() then
      child:signal(i % 2 == 0 and 9 or 2)
      killed = killed + 1
    end
    if child:wait() == 0 then break end
    file.remove(dir .. "/cut.said")
  end
  t.ok(killed > 0, "it was never stopped")
  if not file.kind(dir .. "/cut.said") then t.equal(go(dir .. "/cut"):wait(), 0) end
  t.equal(t.read(dir .. "/cut.said"):match "[%d%.e%-]+ [%d%.e%-]+$", t.read(dir .. "/whole.said"), "after " .. killed .. " stops")
end)
