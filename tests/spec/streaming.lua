--- Models larger than memory: opened without being read, pruned from file to file under a tight budget, checked block by block; every stored dtype; a
-- weight is made when it is first used, and a file that shrinks meanwhile is reported.
local t = ...

local esp = require "espalier"
local tensor = require "espalier.tensor"
local lazy = require "espalier.tensor.lazy"
local bounded = require "espalier.models.bounded"
local file, safetensors, C = esp.io.file, esp.io.safetensors, esp.ffi.C

local small = { hidden = 16, ffn = 24, layers = 2, heads = 4, kv_heads = 2, head_dim = 6, vocab = 30, context = 32, norm_eps = 1e-5,
  rope = { theta = 10000 }, tied = false }
local ids = { { 1, 2, 3, 29 }, { 4, 5, 6, 0 } }

local function read_yet(model)
  local count = 0
  for _, p in pairs(model:parameters()) do if not lazy.is(p) then count = count + 1 end end
  return count
end

local function saved(shape, opt, seed)
  local dir, model = t.folder() .. "/m", esp.models.new(shape, { seed = seed or 3 })
  model:save(dir, { quiet = true, dtype = opt and opt.dtype })
  return dir, model
end

-- The bytes of a dense tensor.
local function bytes_of(x)
  return esp.ffi.string(x:data(), x:count() * tonumber(C.esp_dtype_size(C.esp_tensor_dtype(x.c))))
end

-- Sets that keep n of `of` indices, out of order.
local function some(of, n, step)
  local list = {}
  for i = 0, n - 1 do list[i + 1] = i * step % of end
  return list
end

t.test("an opened model is read when it is used, and cut while it is saved", function()
  local dir, model = saved(small)
  local opened = esp.load(dir)
  t.equal(read_yet(opened), 0, "nothing is read")
  local keep = { hidden = some(16, 10, 7), ffn = { some(24, 9, 5), some(24, 9, 11) } }
  local size = { hidden = 10, ffn = 9, keep = keep, quiet = true }
  local cut, want = esp.prune(opened, nil, size), esp.prune(model, nil, size)
  t.equal(read_yet(cut), 0, "nor by pruning")
  t.equal(cut:save(dir .. "-cut", { quiet = true, shard = "2kB" }), 0)
  t.equal(read_yet(cut) + read_yet(opened), 0, "nor by saving and checking")
  t.ok(file.kind(dir .. "-cut/model-00003-of-00003.safetensors") or file.kind(dir .. "-cut/model.safetensors.index.json"), "in shards")
  t.near(esp.load(dir .. "-cut"):logits(ids), want:logits(ids), 0, "the same numbers as in memory")
  t.near(cut:logits(ids), want:logits(ids), 0, "the cut model itself")
  t.ok(read_yet(cut) > 0, "now it is read")
  -- A cut of a cut, of what was not read and of what was.
  for _, from in ipairs { esp.load(dir .. "-cut"), cut } do
    local again = esp.prune(from, nil, { hidden = 6, keep = { hidden = { 9, 0, 3, 2, 5, 4 } }, quiet = true })
    t.near(again:logits(ids), esp.prune(want, nil, { hidden = 6, keep = { hidden = { 9, 0, 3, 2, 5, 4 } }, quiet = true }):logits(ids), 0)
  end
end)

t.test("a weight that is written gets bytes of its own; clones and cuts do not follow", function()
  local dir, model = saved(small)
  local opened = esp.load(dir)
  local name = "model.layers.0.mlp.up_proj.weight"
  local p = opened:parameters()[name]
  local cut = esp.prune(opened, nil, { ffn = 12, keep = { ffn = { some(24, 12, 2), some(24, 12, 2) } }, quiet = true })
  local clone = opened:clone()
  p:fill(0.5)
  t.equal(p:readonly(), false)
  t.equal(opened:parameters()[name]:sum():item(), 0.5 * 24 * 16)
  local own = model:parameters()[name]
  t.near(clone:parameters()[name], own, 0, "the clone keeps the old numbers")
  t.near(cut:parameters()[name], own:index_select(0, some(24, 12, 2)), 0, "and so does the cut")
  t.near(esp.load(dir):parameters()[name], own, 0, "and the file")
  t.equal(esp.load(dir):parameters()[name]:readonly(), true, "f32 is a view of the file")
end)

local function entry(name, dtype, shape, at, bytes)
  return string.format('"%s":{"dtype":"%s","shape":[%s],"data_offsets":[%d,%d]}', name, dtype, table.concat(shape, ","), at, at + bytes)
end

-- A folder of `small` whose weights are stored in another dtype; numbers that the dtype holds are given back as f32.
local function stored_as(dtype, header)
  local dir, model = saved(small)
  local bytes, entries, at, expect = {}, {}, 0, {}
  for _, name in ipairs(model:parameter_names()) do
    local p = model:parameters()[name]
    local n = p:count()
    if dtype == "F64" then
      bytes[#bytes + 1], expect[name] = bytes_of(p:to "f64"), p
    else
      -- 256 patterns without NaN and infinity, of moderate size, over and over.
      local list, numbers = {}, {}
      for i = 1, n do
        local b = (i * 37 + #name) % 64 + (i % 2) * 128
        list[i] = string.char(b)
        local e, m = math.floor(b % 128 / (dtype == "F8_E4M3" and 8 or 4)), b % (dtype == "F8_E4M3" and 8 or 4)
        local bias, step = dtype == "F8_E4M3" and 7 or 15, dtype == "F8_E4M3" and 8 or 4
        numbers[i] = (b >= 128 and -1 or 1) * (e == 0 and m / step * 2 ^ (1 - bias) or (1 + m / step) * 2 ^ (e - bias))
      end
      bytes[#bytes + 1], expect[name] = table.concat(list), tensor.of(numbers):view(p.shape)
    end
    entries[#entries + 1] = entry(name, dtype, p.shape, at, #bytes[#bytes])
    at = at + #bytes[#bytes]
  end
  local text = "{" .. table.concat(entries, ",") .. "}" .. string.rep(" ", header or 0)
  local length = {}
  for i = 0, 7 do length[i + 1] = string.char(math.floor(#text / 256 ^ i) % 256) end
  t.write(dir .. "/model.safetensors", { table.concat(length), text, table.concat(bytes) })
  return dir, expect
end

t.test("every stored float dtype is read exactly, also from unaligned bytes", function()
  for _, dtype in ipairs { "F64", "F8_E4M3", "F8_E5M2" } do
    for pad = 0, 3 do
      local dir, expect = stored_as(dtype, pad)
      local model = esp.load(dir)
      for name, p in pairs(model:parameters()) do
        t.equal(p.dtype, dtype == "F64" and "f32" or "bf16", name)
        t.near(p:to "f32", expect[name], 0, dtype .. " " .. name)
      end
      local out = dir .. "-out"
      t.equal(esp.load(dir):save(out, { quiet = true }), 0)
      t.near(esp.load(out):logits(ids), model:logits(ids), 0)
    end
  end
end)

t.test("an f16 model runs in f32, is measured and pruned, and stays f16 on disk", function()
  local dir = saved(small, { dtype = "f16" })
  local opened = esp.load(dir)
  t.equal(esp.io.json.read(dir .. "/config.json").torch_dtype, "float16")
  local stats = esp.importance.measure(opened, { { 1, 2, 3, 4, 5, 6 } }, { quiet = true })
  for _, from in ipairs { opened, esp.load(dir) } do
    local cut = esp.prune(from, stats, { hidden = 12, ffn = 16, quiet = true })
    cut:save(dir .. "-cut", { quiet = true })
    local _, dtype = safetensors.open(dir .. "-cut/model.safetensors"):describe "model.norm.weight"
    t.equal(dtype, "F16")
    t.near(esp.load(dir .. "-cut"):logits(ids), cut:logits(ids), 0)
    cut:save(dir .. "-cut", { quiet = true, dtype = "bf16" })
    t.equal(esp.load(dir .. "-cut"):parameters()["model.norm.weight"].dtype, "bf16")
  end
  local clone = opened:clone()
  t.equal(clone:parameters()["model.norm.weight"].dtype, "f32")
  t.near(clone:logits(ids), opened:logits(ids), 0)
end)

t.test("NaN is found when a weight is first used, hashed or saved, and named", function()
  local dir, model = saved(small)
  local name = "model.layers.1.self_attn.o_proj.weight"
  local weights = {}
  for k, p in pairs(model:parameters()) do weights[k] = p end
  weights[name] = tensor.full({ 16, 24 }, 0 / 0)
  safetensors.write(dir .. "/model.safetensors", weights)
  local opened = esp.load(dir)
  t.fails("'" .. name .. "' holds NaN or infinity", opened.logits, opened, ids)
  t.fails("holds NaN or infinity", opened.save, opened, dir .. "-out")
  t.equal(file.kind(dir .. "-out"), nil, "nothing is written")
  t.fails("holds NaN or infinity", esp.prune, opened, nil, { hidden = 4, keep = { hidden = { 0, 1, 2, 3 } } })
end)

t.test("what shape a weight has is checked before anything is read", function()
  local dir = saved(small)
  local config = esp.io.json.read(dir .. "/config.json")
  config.intermediate_size = 25
  esp.io.json.write(dir .. "/config.json", config)
  t.fails("'model.layers.0.mlp.gate_proj.weight' is [24, 16], want [25, 16] (from config.json)", esp.load, dir)
end)

t.test("a file that becomes shorter while it is mapped is reported", function()
  local dir = saved({ hidden = 64, ffn = 512, layers = 2, heads = 4, kv_heads = 2, head_dim = 16, vocab = 256, context = 32, norm_eps = 1e-5,
    rope = { theta = 10000 }, tied = false })
  local path = dir .. "/model.safetensors"
  local opened = esp.load(dir)
  local cut = esp.prune(opened, nil, { ffn = 256, keep = { ffn = { some(512, 256, 2), some(512, 256, 2) } }, quiet = true })
  local raw, kept = safetensors.read(path), tensor.full({ 4 }, 2)
  esp.io.process.start({ "/bin/sh", "-c", "truncate -s 70000 " .. path }):wait()
  t.fails("became shorter while it was in use", opened.logits, opened, ids)
  t.fails("became shorter while it was in use", cut.save, cut, dir .. "-cut")
  t.equal(file.kind(dir .. "-cut"), nil)
  t.fails("became shorter while it was in use", raw["lm_head.weight"].table, raw["lm_head.weight"])
  t.fails("became shorter while it was in use", raw["model.norm.weight"].clone, raw["model.norm.weight"])
  t.fails("model.safetensors", esp.load, dir)
  t.equal(kept:sum():item(), 8, "what is in memory goes on")
end)

-- ---- a model of some hundred megabytes, most of it holes ----

local large = { hidden = 1024, ffn = 3072, layers = 6, heads = 8, kv_heads = 2, head_dim = 128, vocab = 24000, context = 64, norm_eps = 1e-5,
  rope = { theta = 10000 }, tied = false }

-- A folder of the shape in bf16 whose file is sparse: norms are 1, layer 1 and the first rows of the embedding and the head hold numbers.
local function sparse(shape)
  local dir = t.folder()
  esp.io.json.write(dir .. "/config.json", require("espalier.models.config").to_config(shape, nil, "bf16"))
  local entries, at, full = {}, 0, {}
  for _, want in ipairs(require("espalier.models.config").stored(shape, "llama")) do
    local bytes = 2
    for _, n in ipairs(want.shape) do bytes = bytes * n end
    entries[#entries + 1] = entry(want.name, "BF16", want.shape, at, bytes)
    full[#full + 1] = { want.name, at, want.shape }
    at = at + bytes
  end
  local text = "{" .. table.concat(entries, ",") .. "}"
  text = text .. string.rep(" ", -#text % 8)
  local out = assert(io.open(dir .. "/model.safetensors", "wb"))
  for i = 0, 7 do out:write(string.char(math.floor(#text / 256 ^ i) % 256)) end
  out:write(text)
  for i, one in ipairs(full) do
    local name, from, size = unpack(one)
    local rows = #size == 1 and 1 or (name:find "layers%.1%." and size[1]) or (name:find "layers" and 0) or 64
    if rows > 0 then
      local x = #size == 1 and tensor.full(size, 1) or tensor.normal({ rows, size[2] }, { std = 0.02, seed = 5, stream = i })
      out:seek("set", 8 + #text + from)
      out:write(bytes_of(x:to "bf16"))
    end
  end
  out:seek("set", 8 + #text + at - 1)
  out:write "\0"
  out:close()
  return dir, at
end

t.test("a large model is pruned to disk and checked in memory that does not grow with it", function()
  local dir, bytes = sparse(large)
  local kept = { hidden = some(1024, 768, 5), ffn = {} }
  for l = 1, large.layers do kept.ffn[l] = some(3072, 2048, 7) end
  local before = os.clock()
  local model = esp.load(dir)
  t.ok(os.clock() - before < 0.1, string.format("opened in %.3f s of processor time", os.clock() - before))
  collectgarbage()
  C.esp_memory_trim()
  -- Sixteen MiB of staging, one block of the cut model in bf16, and what each thread widens of it.
  local budget = (56 + 4 * C.esp_threads()) * 2 ^ 20
  t.ok(bytes > 2.4e8 and bytes > 2 * budget, "the model is larger")
  C.esp_memory_budget(C.esp_memory_live() + budget)
  local ok, message = pcall(function()
    local student = esp.prune(model, nil, { hidden = 768, ffn = 2048, keep = kept, quiet = true })
    student:save(dir .. "/cut", { quiet = true, shard = "60MB" })
    t.equal(read_yet(student), 0, "nothing of it stays")
  end)
  C.esp_memory_budget(0)
  t.ok(ok, message)
  local out = esp.load(dir .. "/cut")
  t.equal(out.shape.hidden, 768)
  local name = "model.layers.1.mlp.down_proj.weight"
  local want = esp.load(dir):parameters()[name]:index_select(0, kept.hidden):index_select(1, kept.ffn[2])
  t.equal((out:parameters()[name]:to "f32" - want:to "f32"):abs():sum():item(), 0, "the very numbers that were kept")
  t.ok(want:to("f32"):abs():sum():item() > 0)
  -- The head in slices gives the logits of the whole.
  local h, logits = bounded.hidden(out, { { 1, 2, 3 } }), out:logits { { 1, 2, 3 } }
  for from, weight in bounded.head(out) do
    t.equal((out:project(h, weight) - logits:narrow(2, from, weight.shape[1])):abs():sum():item(), 0, "rows from " .. from)
  end
end)
