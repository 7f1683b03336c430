--- safetensors: what is written is read back, and every damaged or hostile file is refused with a sentence that names it.
local t = ...

local esp = require "espalier"
local tensor = require "espalier.tensor"
local file = esp.io.file
local safetensors, shards = esp.io.safetensors, require "espalier.io.shards"

local function length(n) return t.little(n, 8) end

-- A file of a header and n bytes of data.
local function whole(header, n)
  return length(#header) .. header .. string.rep("\0", n or 0)
end

local function entry(name, dtype, shape, from, to)
  return string.format('"%s":{"dtype":"%s","shape":%s,"data_offsets":[%s,%s]}', name, dtype, shape, tostring(from), tostring(to))
end

local function one(...) return "{" .. entry("a", ...) .. "}" end
local function two(a, b) return "{" .. a .. "," .. b .. "}" end

local good = one("F32", "[2]", 0, 8)
local max63, max64 = string.rep("\255", 7) .. "\127", string.rep("\255", 8)

-- name and bytes; the file's name must stand in every sentence
local cases = {
  { "header of 0", length(0) }, { "header of 2^63-1", max63 .. good },
  { "header of 2^63", string.rep("\0", 7) .. "\128" .. good }, { "header of 2^64-1", max64 .. good },
  { "header over the bound", length(100000001) .. good },
  { "header longer than the file", length(1000) .. good }, { "header to the end, no data", whole(good) },
  { "not UTF-8", whole('{"\255":1}') }, { "a byte order mark", whole("\239\187\191" .. good, 8) },
  { "NUL in a name", whole("{" .. entry("a\\u0000b", "F32", "[2]", 0, 8) .. "}", 8) },
  { "JSON cut short", whole(good:sub(1, -4), 8) }, { "a million brackets", whole(string.rep("[", 1000000)) },
  { "a lone surrogate", whole("{" .. entry("\\ud800", "F32", "[2]", 0, 8) .. "}", 8) },
  { "a name twice", whole(two(entry("a", "F32", "[2]", 0, 8), entry("a", "F32", "[2]", 0, 8)), 8) },
  { "a name twice, once escaped", whole(two(entry("a", "F32", "[2]", 0, 8), entry("\\u0061", "F32", "[2]", 8, 16)), 16) },
  { "a name twice, of no size", whole(two(entry("a", "F32", "[0]", 0, 0), entry("a", "F32", "[0]", 0, 0))) },
  { "an unknown dtype", whole(one("F99", "[2]", 0, 8), 8) }, { "a dtype in lower case", whole(one("f32", "[2]", 0, 8), 8) },
  { "dtype null", whole('{"a":{"dtype":null,"shape":[2],"data_offsets":[0,8]}}', 8) },
  { "no dtype", whole('{"a":{"shape":[2],"data_offsets":[0,8]}}', 8) }, { "no shape", whole('{"a":{"dtype":"F32","data_offsets":[0,8]}}', 8) },
  { "no offsets", whole('{"a":{"dtype":"F32","shape":[2]}}', 8) },
  { "a field too many", whole('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}}', 8) },
  { "shape a text", whole(one("F32", '"2"', 0, 8), 8) }, { "shape a float", whole(one("F32", "[2.0]", 0, 8), 8) },
  { "shape with an exponent", whole(one("F32", "[2e0]", 0, 8), 8) }, { "shape negative", whole(one("F32", "[-2]", 0, 8), 8) },
  { "shape of 2^64", whole(one("F32", "[18446744073709551616]", 0, 8), 8) },
  { "elements overflow", whole(one("F32", "[4294967296,4294967296]", 0, 8), 8) },
  { "bytes overflow", whole(one("F64", "[2305843009213693952]", 0, 8), 8) },
  { "rank 1000000", whole(one("F32", "[" .. string.rep("1,", 999999) .. "1]", 0, 4), 4) },
  { "offsets reversed", whole(one("F32", "[2]", 8, 0), 8) }, { "offsets negative", whole(one("F32", "[2]", -8, 0), 8) },
  { "one offset", whole('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}}', 8) },
  { "three offsets", whole('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]}}', 8) },
  { "overlap of one byte", whole(two(entry("a", "U8", "[4]", 0, 4), entry("b", "U8", "[4]", 3, 7)), 7) },
  { "a hole of one byte", whole(two(entry("a", "U8", "[4]", 0, 4), entry("b", "U8", "[4]", 5, 9)), 9) },
  { "data that does not begin at 0", whole(one("F32", "[2]", 1, 9), 9) }, { "beyond the file", whole(one("F32", "[2]", 0, 8), 7) },
  { "a size that is not the shape's", whole(one("F32", "[3]", 0, 8), 8) }, { "a byte too many behind", whole(good, 9) },
  { "metadata a number", whole('{"__metadata__":1,' .. good:sub(2), 8) }, { "metadata nested", whole('{"__metadata__":{"a":{}},' .. good:sub(2), 8) },
  { "metadata null", whole('{"__metadata__":null,' .. good:sub(2), 8) }, { "a list", whole("[]") }, { "a number", whole("7") },
  { "a tensor that is a number", whole('{"a":7}') }, { "two documents", whole(good .. good, 8) },
  { "metadata twice", whole('{"__metadata__":{},"__metadata__":{},' .. good:sub(2), 8) },
  { "a key of metadata twice", whole('{"__metadata__":{"a":"1","a":"2"},' .. good:sub(2), 8) },
  { "shape twice", whole('{"a":{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}}', 8) },
  { "elements of half a byte", whole(one("F4", "[3]", 0, 2), 2) }, { "complex numbers", whole(one("C64", "[1]", 0, 8), 8) },
  { "a header of spaces", whole(string.rep(" ", 2000000)) }, { "three million brackets and commas", whole("[" .. string.rep("[],", 1000000)) },
  { "two million numbers", whole("[" .. string.rep("0,", 2000000) .. "0]") },
  { "half a million keys", whole('{"__metadata__":{' .. string.rep('"":"",', 500000) .. '"":""}}') },
  { "a name of five megabytes, unknown dtype", whole("{" .. entry(string.rep("n", 5000000), "F", "[2]", 0, 8) .. "}", 8) },
}
for n = 0, 7 do cases[#cases + 1] = { n .. " bytes", ("\8" .. string.rep("\0", 7)):sub(1, n) } end

t.test("every damaged or hostile file is refused by name", function()
  local dir = t.folder()
  local path = dir .. "/model.safetensors"
  local wrong = {}
  -- The list of mapped files keeps its places.
  t.write(path, whole(good, 8))
  safetensors.read(path)
  collectgarbage()
  for _, case in ipairs(cases) do
    t.write(path, case[2])
    local before, live = esp.ffi.C.esp_clock(), tonumber(esp.ffi.C.esp_memory_live())
    -- No allocation beyond eight times the file and 16 MiB.
    esp.ffi.C.esp_memory_budget(live + 8 * #case[2] + 2 ^ 24)
    local ok, message = pcall(safetensors.read, path)
    esp.ffi.C.esp_memory_budget(0)
    if ok then wrong[#wrong + 1] = case[1] .. ": accepted"
    elseif not tostring(message):find("model.safetensors", 1, true) or #message > 600 then
      wrong[#wrong + 1] = case[1] .. ": " .. tostring(message):sub(1, 200)
    end
    if esp.ffi.C.esp_clock() - before > 2 then wrong[#wrong + 1] = case[1] .. ": took too long" end
    if tonumber(esp.ffi.C.esp_memory_live()) > live then wrong[#wrong + 1] = case[1] .. ": left tensor bytes behind" end
  end
  t.equal(wrong, {})
  t.ok(#cases >= 60)
end)

t.test("headers that are large and right are read in memory bounded by their length", function()
  local path, parts = t.folder() .. "/a.safetensors", {}
  for i = 1, 100000 do parts[i] = entry("t" .. i, "U8", i % 2 == 0 and "[0]" or "[1,0,1]", 0, 0) end
  local text = whole("{" .. table.concat(parts, ",") .. "}")
  t.write(path, text)
  collectgarbage()
  esp.ffi.C.esp_memory_budget(esp.ffi.C.esp_memory_live() + 8 * #text + 2 ^ 24)
  local ok, f = pcall(safetensors.open, path)
  esp.ffi.C.esp_memory_budget(0)
  t.ok(ok, f)
  t.equal(#f.names, 100000)
  t.equal(f:describe "t77", { 1, 0, 1 })
  t.equal(f:tensor("t78"):count(), 0)
  local name = string.rep("n", 10000000)
  t.write(path, whole("{" .. entry(name, "F32", "[2]", 0, 8) .. "}", 8))
  t.equal(#safetensors.open(path).names[1], 10000000)
end)

t.test("what is no regular file is refused", function()
  local dir = t.folder()
  t.fails("x.safetensors", safetensors.read, file.make(dir .. "/x.safetensors"))
  t.fails("/dev/zero", safetensors.read, "/dev/zero")
  t.fails("none.safetensors", safetensors.read, dir .. "/none.safetensors")
  esp.io.process.start({ "/bin/sh", "-c", "ln -s loop.safetensors " .. dir .. "/loop.safetensors; mkfifo " .. dir .. "/pipe.safetensors" }):wait()
  t.fails("loop.safetensors", safetensors.read, dir .. "/loop.safetensors")
  t.fails("pipe.safetensors", safetensors.read, dir .. "/pipe.safetensors")
end)

t.test("legal oddities are read", function()
  local path = t.folder() .. "/a.safetensors"
  t.write(path, whole(" \n" .. good .. "  \t\n", 8))
  t.equal(safetensors.read(path).a:table(), { 0, 0 })
  -- Data may stand in another order than the names.
  t.write(path, whole(two(entry("b", "U8", "[2]", 2, 4), entry("a", "U8", "[2]", 0, 2))) .. "\1\2\3\4")
  t.equal(safetensors.read(path).b:table(), { 3, 4 })
  t.write(path, whole("{}"))
  t.equal(next(safetensors.read(path)), nil)
end)

t.test("dtypes, shapes and views come back", function()
  local path = t.folder() .. "/a.safetensors"
  local x = tensor.normal({ 3, 5 }, { seed = 1 })
  local all = { x = x, turned = x:transpose(0, 1), half = x:to "bf16", f16 = x:to "f16", ids = tensor.of({ 1, -2, 3 }, { dtype = "i32" }),
    double = tensor.of({ 1 / 3 }, { dtype = "f64" }), none = tensor.zeros { 0, 4 }, scalar = tensor.full({}, 2) }
  safetensors.write(path, all)
  local back = safetensors.read(path)
  for name, want in pairs(all) do
    t.equal(back[name].dtype, want.dtype, name)
    t.equal(back[name].shape, want.shape, name)
    if want.dtype ~= "bf16" and want.dtype ~= "f16" then t.equal(back[name]:table(), want:contiguous():table(), name) end
  end
  t.equal(back.half:to("f32"):table(), x:to("bf16"):to("f32"):table())
  t.fails("__metadata__", safetensors.write, path, { __metadata__ = x })
  t.equal(safetensors.read(path).scalar:item(), 2)
end)

t.test("what is written comes in pieces, one below the other, and in turn", function()
  local path = t.folder() .. "/a.safetensors"
  local x = tensor.normal({ 7, 5 }, { seed = 2 })
  safetensors.write(path, { fused = { x, x:narrow(0, 2, 3) } }, { dtype = "f16" })
  local fused = safetensors.read(path).fused
  t.equal(fused.dtype, "f16")
  t.equal(fused:to("f32"):narrow(0, 7, 3), x:to("f16"):to("f32"):narrow(0, 2, 3))
  t.fails("one goes below the other", safetensors.write, path, { fused = { x, x:narrow(1, 0, 2) } })
  t.fails("holds NaN or infinity as f16", safetensors.write, path, { x = tensor.of { 1, 1e6 } }, { dtype = "f16", finite = true })
  local w = safetensors.create(path, { { name = "a", dtype = "f32", shape = { 7, 5 } }, { name = "b", dtype = "f32", shape = { 2 } } })
  t.fails("'b' comes out of turn, want 'a'", w.append, w, "b", tensor.zeros { 2 })
  w:append("a", x)
  t.fails("'b' gets 3 elements, 2 are still missing", w.append, w, "b", tensor.zeros { 3 })
  t.fails("'b' got 0 of its 2 elements", w.publish, w)
  t.equal(#file.list(path:match "^(.*)/"), 1, "nothing beside it")
  t.equal(safetensors.read(path).fused.shape, { 10, 5 }, "the old file stays")
end)

t.test("whole numbers are read where they fit in 32 bits", function()
  local path = t.folder() .. "/a.safetensors"
  for dtype, case in pairs {
    I32 = { "\254\255\255\255", -2 }, I16 = { "\0\128", -32768 }, I8 = { "\128", -128 }, U8 = { "\200", 200 }, BOOL = { "\1", 1 },
    U16 = { "\255\255", 65535 }, U32 = { "\255\255\255\127", 2147483647 }, U64 = { "\7" .. string.rep("\0", 7), 7 },
  } do
    t.write(path, whole(one(dtype, "[1]", 0, #case[1])) .. case[1])
    t.equal(safetensors.read(path).a:table(), { case[2] }, dtype)
  end
  t.write(path, whole(one("U32", "[2]", 0, 8)) .. "\1\0\0\0\0\0\0\128")
  t.fails("a.safetensors: tensor 'a' holds 2147483648, which does not fit in 32 bits", safetensors.read, path)
  t.write(path, whole(one("U64", "[1]", 0, 8)) .. string.rep("\255", 8))
  t.fails("holds 18446744073709551615, which does not fit", safetensors.read, path)
  t.write(path, whole(one("I64", "[2]", 0, 16)) .. "\5" .. string.rep("\0", 7) .. string.rep("\255", 8))
  t.equal(safetensors.read(path).a:table(), { 5, -1 })
  t.write(path, whole(one("I64", "[1]", 0, 8)) .. string.rep("\0", 4) .. "\1\0\0\0")
  t.fails("a.safetensors: tensor 'a' holds 4294967296, which does not fit in 32 bits", safetensors.read, path)
end)

-- ---- shards ----

local shape = { hidden = 16, ffn = 24, layers = 2, heads = 2, kv_heads = 1, head_dim = 8, vocab = 40, context = 32, norm_eps = 1e-5,
  rope = { theta = 10000 }, tied = true }

-- A model's folder in two shards with an index; returns the folder, the model and the map.
local function sharded()
  local dir = t.folder()
  local model = esp.models.new(shape, { seed = 3 })
  model:save(dir .. "/m", { quiet = true })
  local names, parts, map = model:parameter_names(), { {}, {} }, {}
  for i, name in ipairs(names) do
    local k = i % 2 + 1
    parts[k][name] = model:parameters()[name]
    map[name] = string.format("model-0000%d-of-00002.safetensors", k)
  end
  for k = 1, 2 do safetensors.write(string.format("%s/m/model-0000%d-of-00002.safetensors", dir, k), parts[k]) end
  file.remove(dir .. "/m/model.safetensors")
  local total = 0
  for _, p in pairs(model:parameters()) do total = total + 4 * p:count() end
  local function index(weight_map, metadata)
    esp.io.json.write(dir .. "/m/model.safetensors.index.json", { metadata = metadata or { total_size = total }, weight_map = weight_map })
  end
  index(map)
  return dir .. "/m", model, map, index, total
end

t.test("a sharded folder is one model; an index that lies is refused", function()
  local dir, model, map, index = sharded()
  local ids = { { 1, 2, 3, 4 } }
  t.near(esp.load(dir):logits(ids), model:logits(ids), 0)
  local first = model:parameter_names()[1]
  local function with(change)
    local copy = {}
    for k, v in pairs(map) do copy[k] = v end
    change(copy)
    index(copy)
    return pcall(esp.load, dir)
  end
  for what, change in pairs {
    ["a shard that is not there"] = function(m) m[first] = "model-00003-of-00002.safetensors" end,
    ["a path out of the folder"] = function(m) m[first] = "../m/" .. map[first] end,
    ["an absolute path"] = function(m) m[first] = dir .. "/" .. map[first] end,
    ["a weight in the wrong shard"] = function(m) m[first] = map[model:parameter_names()[2]] end,
    ["a weight left out"] = function(m) m[first] = nil end,
    ["a name that goes up"] = function(m) m[first] = ".." end,
    ["no name"] = function(m) m[first] = "" end,
    ["a name with a zero byte"] = function(m) m[first] = map[first] .. "\0x" end,
    ["a shard that is a number"] = function(m) m[first] = 7 end,
    ["a hundred thousand entries"] = function(m) for i = 1, 100000 do m["w" .. i] = map[first] end end,
    ["a weight that is nowhere"] = function(m) m["model.layers.7.mlp.up_proj.weight"] = map[first] end,
  } do
    local ok, message = with(change)
    t.ok(not ok, what .. " was accepted")
    t.ok(tostring(message):find(dir, 1, true) or tostring(message):find("safetensors", 1, true), what .. ": " .. tostring(message))
  end
end)

t.test("shards hold each weight once, and each shard is named", function()
  local dir, model, map, index = sharded()
  local names, part = model:parameter_names(), "/model-00001-of-00002.safetensors"
  local first = {}
  for _, name in ipairs(names) do if map[name] == part:sub(2) then first[name] = model:parameters()[name] end end
  local extra = {}
  for name, p in pairs(first) do extra[name] = p end
  extra[names[1] == next(first) and names[2] or names[1]] = model:parameters()[names[1]]
  extra.more = tensor.zeros { 2 }
  safetensors.write(dir .. part, extra)
  t.fails("model.safetensors.index.json: model-00001-of-00002.safetensors holds '", esp.load, dir)
  safetensors.write(dir .. part, first)
  t.near(esp.load(dir):logits { { 1, 2 } }, model:logits { { 1, 2 } }, 0, "whole again")
  safetensors.write(dir .. "/model-00003-of-00002.safetensors", { more = tensor.zeros { 2 } })
  t.fails("names nothing of model-00003-of-00002.safetensors", esp.load, dir)
  file.remove(dir .. "/model-00003-of-00002.safetensors")
  esp.io.process.start({ "/bin/sh", "-c", "cd " .. dir .. " && rm ." .. part .. " && ln -s ." .. part .. " ." .. part }):wait()
  t.fails("model-00001-of-00002.safetensors", esp.load, dir)
  index "no map"
  t.fails("field 'weight_map' is missing", esp.load, dir)
end)

t.test("a wrong total_size of an index is said, and does no harm", function()
  local dir, model, map, index, total = sharded()
  local files = file.size(dir .. "/model-00001-of-00002.safetensors") + file.size(dir .. "/model-00002-of-00002.safetensors")
  local null = esp.io.json.null
  for _, fine in ipairs { { total_size = total }, { total_size = files }, { total_size = null }, {}, null } do
    index(map, fine)
    t.equal(select(2, shards.open(dir)), nil)
  end
  index(map, { total_size = "big" })
  t.ok(select(2, shards.open(dir)):find("total_size is no number, but the tensors of its shards have " .. total .. " bytes", 1, true))
  index(map, { total_size = total - 4 })
  local program, out = t.program() or t.skip "needs the espalier program", dir .. ".out"
  local code = esp.io.process.start({ file.real(program), "-e", 'esp.load("' .. dir .. '"):loss { { 1, 2, 3 } }' }, out):wait()
  local said = t.read(out)
  t.equal(code, 0, said)
  t.ok(said:find("espalier: warning: " .. dir .. "/model.safetensors.index.json: total_size is " .. total - 4, 1, true), said)
  t.near(tonumber(said:match "\n([%d.]+)"), model:loss { { 1, 2, 3 } }, 1e-4)
  local lines = tostring(require("espalier.export.check").check(dir))
  t.ok(lines:find("note    index         " .. dir .. "/model.safetensors.index.json: total_size is", 1, true), lines)
end)

t.test("the plan of a folder whose index lies is a sentence too", function()
  local dir, _, map, index = sharded()
  index { ["model.norm.weight"] = "../x" }
  t.fails("'../x', which is no file of the folder", esp.plan, dir)
  index(map)
  t.write(dir .. "/model.safetensors.index.json", "7")
  t.fails("field 'weight_map' is missing", esp.plan, dir)
end)

t.test("weights are written in shards of at most the bytes asked for, in order, with their index", function()
  local dir, tensors = t.folder(), {}
  for i, n in ipairs { 100, 300, 50, 1000, 1, 1 } do tensors["t" .. i] = tensor.full({ n }, i) end
  local order = { "t1", "t2", "t3", "t4", "t5", "t6" }
  local files = shards.write(dir, tensors, { order = order, shard = 1600 })
  t.equal(#files, 5)
  local index = esp.io.json.read(dir .. "/model.safetensors.index.json")
  t.equal(index.metadata.total_size, 4 * 1452)
  local groups = {}
  for name, part in pairs(index.weight_map) do groups[part] = (groups[part] or 0) + tensors[name]:count() end
  -- What is larger than the limit stands alone.
  t.equal(groups, { ["model-00001-of-00004.safetensors"] = 400, ["model-00002-of-00004.safetensors"] = 50,
    ["model-00003-of-00004.safetensors"] = 1000, ["model-00004-of-00004.safetensors"] = 2 })
  t.equal(safetensors.open(dir .. "/model-00001-of-00004.safetensors").metadata.format, "pt")
  for name, f in pairs(shards.open(dir)) do t.equal(f:tensor(name), tensors[name], name) end
  local other = t.folder()
  tensors.t6 = tensor.full({ 1 }, 0 / 0)
  t.fails("'t6' holds NaN or infinity", shards.write, other, tensors, { order = order, shard = 1600, finite = true })
  t.equal(#file.list(other), 0, "nothing stays")
end)

t.test("files of other programs: F16, F32, and whole numbers of one byte", function()
  local gemma = safetensors.open(t.shared "data/formats/safetensors/gemma_hf_checkpoint.safetensors")
  t.equal({ #gemma.names, (select(2, gemma:describe "model.norm.weight")) }, { 11, "F16" })
  local minicpm, count = safetensors.read(t.shared "data/formats/safetensors/minicpm3-4b_model.safetensors"), 0
  for _, x in pairs(minicpm) do count = count + x:count() end
  t.equal(count, 100500)
  -- Matrices of +1 and -1 whose rows are at right angles: H H' = n, exactly.
  local hadamards = safetensors.open(t.shared "data/formats/safetensors/utils_hadamards.safetensors")
  t.equal(#hadamards.names, 66)
  for _, name in ipairs { "92", "172" } do
    local n, dtype = hadamards:describe(name)[1], select(2, hadamards:describe(name))
    local rows = hadamards:tensor(name):table()
    t.equal({ dtype, #rows, #rows[1] }, { "I8", n, n })
    for i = 1, n do
      for _, k in ipairs { 1, i, n } do
        local sum = 0
        for c = 1, n do sum = sum + rows[i][c] * rows[k][c] end
        t.equal(sum, i == k and n or 0, name .. ": rows " .. i .. " and " .. k)
      end
    end
  end
end)

t.test("a folder of pickled weights is refused with what to do", function()
  t.fails("its pytorch_model.bin is a pickle", esp.load, t.shared "data/formats/hf-tiny-llama")
end)
