--- GGUF: what is written is read back, Q8_0 as llama.cpp makes it, and every damaged or hostile file is refused with a sentence.
local t = ...

local esp = require "espalier"
local core = require "espalier.ffi"
local tensor = require "espalier.tensor"
local gguf = require "espalier.io.gguf"
local file = esp.io.file

-- ---- a file by hand ----

local le = t.little
local function u32(n) return le(n, 4) end
local function u64(n) return le(n, 8) end
local function text(s) return u64(#s) .. s end
local minus1 = string.rep("\255", 8)

local function pair(key, kind, data) return text(key) .. u32(kind) .. data end
local function entry(name, dims, kind, at)
  local out = { text(name), u32(#dims) }
  for _, d in ipairs(dims) do out[#out + 1] = type(d) == "string" and d or u64(d) end
  return table.concat(out) .. u32(kind) .. u64(at)
end
local function pad(s, n) return s .. string.rep("\0", -#s % (n or 32)) end
local function head(tensors, pairs_, version) return "GGUF" .. u32(version or 3) .. u64(tensors) .. u64(pairs_) end
-- One tensor, a key before it.
local function one(e, data) return pad(head(1, 1) .. pair("a", 4, u32(7)) .. e) .. pad(data or string.rep("\0", 8)) end
local function meta(bytes, n) return head(0, n or 1) .. bytes end

local good = one(entry("x", { 2 }, 0, 0))

local cases = {
  { "no byte", "" }, { "three bytes", "GGU" }, { "a header cut short", good:sub(1, 23) }, { "other magic", "GGML" .. good:sub(5) },
  { "version 0", head(0, 0, 0) }, { "version 1", head(0, 0, 1) }, { "version 4", head(0, 0, 4) }, { "big endian", "GGUF\0\0\0\3" .. good:sub(9) },
  { "tensors -1", "GGUF" .. u32(3) .. minus1 .. u64(0) .. string.rep("\0", 64) },
  { "pairs -1", "GGUF" .. u32(3) .. u64(0) .. minus1 .. string.rep("\0", 64) },
  { "more tensors than bytes", head(1000, 0) .. string.rep("\0", 64) }, { "more pairs than bytes", head(0, 1000) .. string.rep("\0", 64) },
  { "key length -1", meta(minus1 .. string.rep("a", 64)) }, { "key longer than the file", meta(u64(100) .. "abc" .. u32(4) .. u32(0)) },
  { "empty key", meta(pair("", 4, u32(1))) }, { "key with NUL", meta(pair("a\0b", 4, u32(1))) },
  { "key of 70000", meta(pair(string.rep("k", 70000), 4, u32(1))) },
  { "key twice", meta(pair("a", 4, u32(1)) .. pair("a", 4, u32(1)), 2) }, { "value type 13", meta(pair("a", 13, u64(1))) },
  { "value type -1", meta(pair("a", 2 ^ 32 - 1, u64(1))) }, { "value cut short", meta(pair("abc", 10, "123")) },
  { "text of 2^63", meta(pair("a", 8, string.rep("\0", 7) .. "\128" .. "abc")) },
  { "text longer than the file", meta(pair("a", 8, u64(2 ^ 30) .. "abc")) },
  { "truth value 2", meta(pair("abcdef", 7, "\2")) }, { "array of arrays", meta(pair("a", 9, u32(9) .. u64(1) .. u32(4) .. u64(0))) },
  { "array of type 99", meta(pair("a", 9, u32(99) .. u64(0))) }, { "array of 2^63", meta(pair("a", 9, u32(0) .. string.rep("\0", 7) .. "\128")) },
  { "array of 2^40 numbers", meta(pair("a", 9, u32(4) .. u64(2 ^ 40) .. "abcd")) },
  { "array of 2^30 texts", meta(pair("a", 9, u32(8) .. u64(2 ^ 30) .. u64(0))) },
  { "a text of an array beyond the file", meta(pair("a", 9, u32(8) .. u64(2) .. text "x" .. u64(99))) },
  { "truth values of 2 in an array", meta(pair("a", 9, u32(7) .. u64(3) .. "\1\0\2")) },
  { "alignment 0", meta(pair("general.alignment", 4, u32(0))) }, { "alignment 24", meta(pair("general.alignment", 4, u32(24))) },
  { "alignment 2^31", meta(pair("general.alignment", 4, u32(2 ^ 31))) }, { "alignment as i32", meta(pair("general.alignment", 5, u32(32))) },
  { "alignment as a list", meta(pair("general.alignment", 9, u32(4) .. u64(1) .. u32(32))) },
  { "name of 64", one(entry(string.rep("n", 64), { 2 }, 0, 0)) }, { "no name", one(entry("", { 2 }, 0, 0)) },
  { "name with NUL", one(entry("a\0b", { 2 }, 0, 0)) },
  { "name with an escape", one(entry("a\27[31m", { 2 }, 0, 0)) }, { "no dimension", one(entry("x", {}, 0, 0)) },
  { "five dimensions", one(entry("x", { 1, 1, 1, 1, 2 }, 0, 0)) },
  { "dimension 0", one(entry("x", { 0, 2 }, 0, 0)) }, { "dimension -1", one(entry("x", { minus1 }, 0, 0)) },
  { "elements overflow", one(entry("x", { 2 ^ 32, 2 ^ 32 }, 0, 0)) }, { "dimension 2^42+1", one(entry("x", { 2 ^ 42 + 1, 2 ^ 42 }, 0, 0)) },
  { "bytes overflow", one(entry("x", { 2 ^ 61, 2 }, 28, 0)) }, { "type 4 (removed)", one(entry("x", { 32 }, 4, 0)) },
  { "type 9999", one(entry("x", { 2 }, 9999, 0)) },
  { "type -1", one(entry("x", { 2 }, 2 ^ 32 - 1, 0)) }, { "rows that are no blocks", one(entry("x", { 33 }, 8, 0), string.rep("\0", 68)) },
  { "begins at 32", one(entry("x", { 2 }, 0, 32), string.rep("\0", 64)) },
  { "begins at 2^63", one(entry("x", { 2 }, 0, 0):sub(1, -9) .. string.rep("\0", 7) .. "\128") },
  { "data cut short", good:sub(1, -26) }, { "no data", pad(head(1, 0) .. entry("x", { 2 }, 0, 0)) },
  { "no padding", head(1, 0) .. entry("xyz", { 2 }, 0, 0) },
  { "name twice", pad(head(2, 0) .. entry("x", { 2 }, 0, 0) .. entry("x", { 2 }, 0, 32)) .. string.rep("\0", 64) },
  { "overlap", pad(head(2, 0) .. entry("x", { 16 }, 0, 0) .. entry("y", { 2 }, 0, 32)) .. string.rep("\0", 96) },
  { "sizes that overflow together", pad(head(2, 0) .. entry("x", { 2 ^ 60 }, 0, 0) .. entry("y", { 2 ^ 60 }, 0, 2 ^ 62)) .. string.rep("\0", 96) },
  { "bytes behind the end", good .. string.rep("\0", 40) }, { "directory cut short", good:sub(1, 60) },
}

t.test("every damaged or hostile file is refused by name", function()
  local path = t.folder() .. "/model.gguf"
  t.write(path, good)
  t.equal(gguf.open(path):tensor("x"):table(), { 0, 0 }, "the good one")
  local wrong = {}
  for _, case in ipairs(cases) do
    t.write(path, case[2])
    local before = core.C.esp_clock()
    local ok, message = pcall(gguf.open, path)
    if ok then wrong[#wrong + 1] = case[1] .. ": accepted"
    elseif not tostring(message):find("model.gguf", 1, true) or #message > 600 or message:find "%c" then
      wrong[#wrong + 1] = case[1] .. ": " .. tostring(message):sub(1, 200)
    end
    if core.C.esp_clock() - before > 1 then wrong[#wrong + 1] = case[1] .. ": took too long" end
  end
  t.equal(wrong, {})
  t.ok(#cases >= 55)
end)

t.test("every cut of a good file is refused, and what is no regular file", function()
  local path = t.folder() .. "/model.gguf"
  for n = 0, #good - 25 do
    t.write(path, good:sub(1, n))
    t.fails("model.gguf", gguf.open, path)
  end
  t.fails("none.gguf", gguf.open, path .. "/none.gguf")
  t.fails("/dev/zero", gguf.open, "/dev/zero")
  t.fails("directory.gguf", gguf.open, file.make(path:gsub("model", "directory")))
end)

t.test("types that are not read are named; the directory still is", function()
  local path = t.folder() .. "/model.gguf"
  t.write(path, one(entry("x", { 256 }, 12, 0), string.rep("\0", 144)))
  local f = gguf.open(path)
  t.equal({ f:describe "x" }, { { 256 }, "Q4_K" })
  t.fails("tensor 'x' is Q4_K; F32, F16, BF16, Q8_0", f.tensor, f, "x")
  t.fails("there is no tensor 'y'", f.tensor, f, "y")
end)

t.test("what is written is read back, twice the same bytes", function()
  local dir = t.folder()
  local x = tensor.normal({ 3, 64 }, { seed = 1 })
  local metadata = { { "general.architecture", "string", "llama" }, { "a.u8", "u8", 200 }, { "a.i8", "i8", -3 }, { "a.u16", "u16", 60000 },
    { "a.i16", "i16", -5 }, { "a.u32", "u32", 4e9 }, { "a.i32", "i32", -7 }, { "a.f32", "f32", 1e-5 }, { "a.bool", "bool", false },
  { "a.u64", "u64", 2 ^ 52 },
    { "a.i64", "i64", -2 ^ 40 }, { "a.f64", "f64", 1 / 3 }, { "a.texts", "[string]", { "", "b\0c", "\240\159\152\128" } },
    { "a.numbers", "[i32]", { -1, 2 } }, { "a.flags", "[bool]", { true, false } }, { "a.none", "[f32]", {} } }
  local function tensors()
    local list = {}
    for _, kind in ipairs { "f32", "f16", "bf16", "q8_0" } do
      list[#list + 1] = { name = "t." .. kind, shape = { 3, 64 }, type = kind, give = function(use) use(x) end }
    end
    list[#list + 1] = { name = "turned", shape = { 64, 3 }, type = "f32", give = function(use) use(x:transpose(0, 1)) end }
    return list
  end
  gguf.write(dir .. "/a.gguf", metadata, tensors())
  gguf.write(dir .. "/b.gguf", metadata, tensors())
  t.ok(t.read(dir .. "/a.gguf") == t.read(dir .. "/b.gguf"), "the same bytes")
  local f = gguf.open(dir .. "/a.gguf")
  for _, entry_ in ipairs(metadata) do
    local value, kind = f:get(entry_[1])
    t.equal(kind, entry_[2], entry_[1])
    t.equal(value, entry_[3], entry_[1])
  end
  t.equal(f:get "none", nil)
  t.equal(f:tensor("t.f32"):table(), x:table())
  t.equal(f:tensor("t.f16"):to("f32"):table(), x:to("f16"):to("f32"):table())
  t.equal(f:tensor("t.bf16"):to("f32"):table(), x:to("bf16"):to("f32"):table())
  t.equal(f:tensor("turned"):table(), x:transpose(0, 1):contiguous():table())
  local q, p, most = f:tensor "t.q8_0", x:data(), 0
  local got = q:data()
  for i = 0, 191 do most = math.max(most, math.abs(got[i] - p[i])) end
  t.ok(most > 0 and most < 0.02, "Q8_0 is off by " .. most)
  t.fails("want at most 63", gguf.write, dir .. "/c.gguf", {}, { { name = string.rep("n", 64), shape = { 1 }, type = "f32" } })
  t.fails("broken", gguf.write, dir .. "/c.gguf", {}, { { name = "n", shape = { 1 }, type = "f32", give = function() error "broken" end } })
  t.equal(file.list(dir), { "a.gguf", "b.gguf" })
end)

t.test("Q8_0 blocks: scale max/127 in f16, rounding away from zero at halves, zeros stay zero", function()
  local row = {}
  for i = 1, 32 do row[i] = i - 16.5 end
  row[32] = 127
  local zeros = {}
  for i = 1, 32 do zeros[i] = 0 end
  local y = tensor.new({ 68 }, "u8")
  core.try(core.C.esp_q8_pack(y.c, tensor.of({ row, zeros }).c))
  local bytes = y:table()
  -- 127/127 = 1 is 0x3c00; -15.5 rounds to -16, 14.5 to 15.
  t.equal({ bytes[1], bytes[2], bytes[3], bytes[33], bytes[34] }, { 0, 0x3c, 256 - 16, 15, 127 })
  for i = 35, 68 do t.equal(bytes[i], 0) end
  t.ok(core.C.esp_q8_pack(y.c, tensor.zeros({ 2, 31 }).c) ~= 0 and core.string(core.C.esp_error()):find "multiple of 32")
  t.ok(core.C.esp_q8_pack(y.c, tensor.zeros({ 1, 32 }).c) ~= 0 and core.string(core.C.esp_error()):find "want 34")
end)

t.test("show tells what is in a file of each kind", function()
  local show, dir = require("espalier.cli.show").file, t.folder()
  local function says(path, ...)
    local said = show(path)
    for _, part in ipairs { ... } do t.ok(said:find(part, 1, true), "no '" .. part .. "' in " .. said) end
  end
  gguf.write(dir .. "/a.gguf", { { "general.name", "string", "n" }, { "list", "[i32]", { 4, 5 } } },
    { { name = "x", shape = { 2, 3 }, type = "bf16", give = function(use) use(tensor.zeros { 2, 3 }) end } })
  says(dir .. "/a.gguf", "GGUF version 3", 'general.name (string): "n"', "list ([i32]): 2 of them: { 4, 5 }", "BF16   [2, 3]", "1 tensors, 6 numbers")
  esp.io.safetensors.write(dir .. "/a.safetensors", { x = tensor.zeros { 2, 3 } }, { metadata = { format = "pt" } })
  says(dir .. "/a.safetensors", 'format: "pt"', "F32    [2, 3]")
  esp.io.hdf5.write(dir .. "/a.h5", { ["g/x"] = tensor.zeros { 4 } })
  says(dir .. "/a.h5", "g/x", "f32    [4]")
  esp.io.json.write(dir .. "/config.json", { model_type = "llama" })
  says(dir .. "/config.json", '"model_type": "llama"')
  t.fails("there is no", show, dir .. "/none.gguf")
end)

-- ---- a file of others ----

t.test("a LLaMA 2 of random weights from elsewhere gives llama.cpp's logits", function()
  local path = t.shared "data/formats/gguf/llama-2-tiny-random.gguf"
  local f, model = gguf.open(path), esp.load(path)
  t.equal({ f.version, #f.names, f:get "general.architecture", (select(2, f:describe "output.weight")) }, { 3, 12, "llama", "F16" })
  -- The first logits of the first and the last id, and the largest of each, as llama-cpp-python gives them (in products of f16).
  local logits = model:logits({ { 1, 450, 4996, 17354 } }):table()[1]
  t.near({ unpack(logits[1], 1, 5) }, { 0.08841264, -0.02129262, -0.02884445, -0.0692812, 0.06121689 }, 1e-4)
  t.near({ unpack(logits[4], 1, 5) }, { -0.02756518, 0.05020348, -0.00121592, 0.05912577, -0.05932632 }, 1e-4)
  for i, best in ipairs { 31102, 3868, 16974, 12352 } do
    for id, v in ipairs(logits[i]) do t.ok(v <= logits[i][best + 1], string.format("%d: id %d is above %d", i, id - 1, best)) end
  end
  t.equal(model:tok():encode("Once upon a time", { bos = true }), { 1, 9038, 2501, 263, 931 })
end)
