--- Sorted models, slices and masks: views that compute what cuts compute, to the bit where they are the same cut.

local t = ...
local esp = require "espalier"
local hash = require "espalier.models.hash"
local shapes = require "espalier.models.shape"
local slices = require "espalier.prune.slice"
local tensor = require "espalier.tensor"

local tiny = { hidden = 40, ffn = 56, layers = 4, heads = 8, kv_heads = 2, head_dim = 6, vocab = 70, context = 64, norm_eps = 1e-5,
  rope = { theta = 10000 }, tied = false }

local function rows(n, T, seed)
  local list = {}
  for b = 1, n do
    list[b] = {}
    for i = 1, T do list[b][i] = (b * 31 + i * i * 7 + seed * 13 + i * b) % 70 end
  end
  return list
end

local calibration, held_out = rows(4, 24, 1), rows(3, 33, 2)

local function largest(a, b)
  return (a - b):abs():view(-1):max(0):item()
end

-- Relative to the largest of the wanted.
local function near(got, want, tolerance, what)
  t.ok(largest(got, want) <= tolerance * want:abs():view(-1):max(0):item(), what)
end

local function world(shape, seed)
  local model = esp.models.new(shape or tiny, { seed = seed or 5, std = 0.2 })
  local stats = esp.importance.measure(model, calibration, { quiet = true })
  local ranking = stats:rank {}
  return model, ranking, esp.sort(model, ranking)
end

local cuts = {
  {}, { hidden = 24 }, { ffn = 37 }, { heads = 4 }, { heads = 3, kv_heads = 1 }, { kv_heads = 1 }, { layers = 2 }, { drop = { 0, 2 } },
  { drop_attention = { 1 }, drop_mlp = { 3 } }, { hidden = 31, ffn = 9, heads = 6, layers = 3 },
  { hidden = 16, heads = 2, kv_heads = 1, drop = { 3 } },
  { ffn = { 56, 0, 13, 20 }, heads = { 8, 4, 0, 2 }, kv_heads = { 2, 2, 0, 1 } },
}

t.test("a slice is its own materialized model to the bit, saved and loaded, and the same cut as esp.prune", function()
  local tied = shapes.copy(tiny)
  tied.tied, tied.kv_heads = true, 8
  for i, shape in ipairs { tiny, tied } do
    local model, ranking, sorted = world(shape)
    local dir = t.folder()
    for c, cut in ipairs(cuts) do
      if i == 1 or not (cut.kv_heads or cut.heads) then
        local what = "cut " .. c
        local slice = esp.slice(sorted, cut)
        local logits = slice:logits(held_out)
        local own = slice:materialize()
        own:save(dir .. "/" .. c, { quiet = true })
        local loaded = esp.load(dir .. "/" .. c)
        t.equal(largest(logits, own:logits(held_out)), 0, what .. " materialized")
        t.equal(largest(logits, loaded:logits(held_out)), 0, what .. " saved and loaded")
        t.equal(slice:loss(held_out), loaded:loss(held_out), what .. " loss")
        t.equal(hash(slice), hash(own), what .. " parameters")
        t.ok(hash(esp.lineage(loaded):replay(model)) == hash(own), what .. " replayed from the unsorted model")
        local request = { quiet = true }
        for k, v in pairs(cut) do request[k] = v end
        local pruned = esp.prune(model, ranking, request)
        t.equal(slice.shape, pruned.shape, what)
        near(logits, pruned:logits(held_out), 1e-5, what .. " as esp.prune")
      end
    end
  end
end)

t.test("a sorted model is sorted still when it was saved, loaded, or is in bf16", function()
  local _, _, sorted = world()
  local dir, cut = t.folder() .. "/sorted", { hidden = 24, ffn = 30, heads = 4, layers = 3 }
  sorted:save(dir, { quiet = true })
  t.equal(largest(esp.slice(esp.load(dir), cut):logits(held_out), esp.slice(sorted, cut):logits(held_out)), 0)
  local half = esp.slice(sorted:clone { dtype = "bf16" }, cut)
  t.equal(largest(half:logits(held_out), half:materialize():logits(held_out)), 0, "in bf16")
  t.ok(largest(half:logits(held_out), esp.slice(sorted, cut):logits(held_out)) > 0, "which rounds")
end)

t.test("every architecture: sorted it is the same function, and its slices are its cuts", function()
  for _, name in ipairs { "gemma", "gemma2", "llama-tied-bias", "llama-wide-heads", "llama31-rope", "mistral-window", "nemotron", "olmo2", "phi3",
    "qwen2", "qwen3", "smollm3" } do
    local model = esp.load(t.shared("data/golden/hf/" .. name))
    local ids = esp.io.safetensors.read(t.shared("data/golden/hf/" .. name .. "/golden.safetensors")).input_ids
    local ranking = esp.importance.measure(model, ids, { quiet = true }):rank {}
    local sorted = esp.sort(model, ranking)
    near(sorted:logits(ids), model:logits(ids), 1e-5, name .. " sorted")
    local heads, half = model.shape.heads > model.shape.kv_heads and 4 or nil, model.shape.kv_heads / 2
    local cut = { hidden = 48, ffn = 70, heads = heads, drop = { 1 } }
    local slice = esp.slice(sorted, cut)
    cut.quiet = true
    near(slice:logits(ids), esp.prune(model, ranking, cut):logits(ids), 1e-5, name .. " cut")
    local dir = t.folder() .. "/m"
    slice:save(dir, { quiet = true })
    t.equal(largest(slice:logits(ids), esp.load(dir):logits(ids)), 0, name .. " saved and loaded")
    local groups = esp.slice(sorted, { kv_heads = half })
    near(groups:logits(ids), esp.prune(model, ranking, { kv_heads = half, quiet = true }):logits(ids), 1e-5, name .. " groups")
    local ok, why = pcall(esp.mask, model, ranking:kept({ hidden = 48, ffn = 70, heads = heads }, model))
    if ok then
      near(why:logits(ids), esp.prune(model, ranking, { hidden = 48, ffn = 70, heads = heads, quiet = true }):logits(ids), 1e-5, name .. " masked")
    else
      t.ok(({ gemma = 1, gemma2 = 1, nemotron = 1, olmo2 = 1 })[name] and tostring(why):find "cannot be masked", name .. ": " .. tostring(why))
      near(esp.mask(model, { ffn = ranking:kept({ ffn = 70 }, model).ffn }):logits(ids),
        esp.prune(model, ranking, { ffn = 70, quiet = true }):logits(ids), 1e-5, name .. " masked neurons")
    end
  end
end)

t.test("slices whose products are in bf16 are their own materialized models to the bit", function()
  local _, _, sorted = world()
  local ids = require("espalier.models.model").as_ids(held_out)
  for _, cut in ipairs { { hidden = 24, ffn = 30, heads = 4, layers = 3 }, { hidden = 31, ffn = 9 }, { heads = 3, kv_heads = 1 },
    { drop_mlp = { 2 } } } do
    local plain, slice = esp.slice(sorted, cut), esp.slice(sorted:in_precision "bf16", cut)
    local own = slice:materialize()
    t.equal({ own.precision, slice.precision, plain.precision }, { "bf16", "bf16" })
    t.equal(largest(slice:logits(ids), own:logits(ids)), 0)
    t.equal(slice:loss(ids), own:loss(ids))
    local again = plain:in_precision "bf16"
    t.equal(again:loss(ids), slice:loss(ids), "asked of the slice")
    t.ok(again:in_precision "bf16" == again and plain:in_precision "f32" == plain)
    t.ok(largest(slice:logits(ids), plain:logits(ids)) > 0, "which rounds")
    t.near(slice:loss(ids), plain:loss(ids), 0.02)
    -- The first layers' streams are kept from one slice in bf16 to the next, apart from those in f32.
    t.equal(plain:loss(ids), plain:materialize():loss(ids))
  end
end)

t.test("slices are views, made at once, and never change their source", function()
  local _, _, sorted = world()
  local before = hash(sorted)
  collectgarbage()
  local live = tonumber(esp.ffi.C.esp_memory_live())
  local slice = esp.slice(sorted, { hidden = 24, ffn = 30, heads = 4, layers = 3 })
  t.equal(tonumber(esp.ffi.C.esp_memory_live()), live, "nothing before it runs")
  local start = esp.ffi.C.esp_clock()
  for _ = 1, 200 do esp.slice(sorted, { hidden = 24, ffn = 30, heads = 4, layers = 3 }) end
  t.ok((esp.ffi.C.esp_clock() - start) / 200 < 1e-3, "in microseconds")
  local views = slice.views.weights
  local headers = tonumber(esp.ffi.C.esp_memory_live()) - live
  t.ok(next(views) and headers <= 256 * #slice:parameter_names(), "headers of views, no weights: " .. headers)
  local name = "model.layers.0.mlp.up_proj.weight"
  local function place(model) return esp.ffi.C.esp_tensor_data(model:parameters()[name].c) end
  t.ok(place(slice) == place(sorted), "the same place")
  local view = slice.decoder.model.layers[1].mlp.down_proj.weight
  t.fails("'y' is a read-only view of another model's weights", view.fill, view, 1)
  t.fails("read-only view", view:narrow(0, 0, 1).fill, view:narrow(0, 0, 1), 1)
  t.fails("read-only view", esp.no_grad, function() slice.decoder.model.norm.weight:copy_from(esp.tensor.full({ 24 }, 1)) end)
  local student = slice:clone()
  student:parameters()["model.norm.weight"]:fill(3)
  local run = esp.distill { teacher = sorted, student = slice, data = esp.data.of(calibration), steps = 2, batch = 2, quiet = true }
  t.ok(hash(run.model) ~= hash(slice), "trained")
  t.equal(hash(sorted), before, "the source stays")
  t.ok(tostring(slice):find("slice of a sorted model", 1, true), tostring(slice))
  t.fails("this model is not sorted", esp.slice, esp.models.new(tiny, { seed = 1 }), { hidden = 8 })
  t.fails("hidden = 41, want 1 to 40", esp.slice, sorted, { hidden = 41 })
  t.fails("did you mean 'ffn'?", esp.slice, sorted, { fnn = 41 })
end)

t.test("scores start at the first layer that differs, and are the same", function()
  local _, _, sorted = world()
  local ids = require("espalier.models.model").as_ids(held_out)
  local ran
  local function score(cut)
    local slice = esp.slice(sorted, cut)
    ran = 0
    for _, block in ipairs(slice.decoder.model.layers) do
      local forward = block.forward
      block.forward = function(...)
        ran = ran + 1
        return forward(...)
      end
    end
    local got = slice:loss(ids)
    t.equal(got, esp.slice(sorted, cut):materialize():loss(ids))
    return ran
  end
  t.equal(score {}, 4)
  t.equal(score {}, 1, "the last layer's input is kept")
  t.equal(score { drop = { 3 } }, 0 + 0, "a stream that is there already")
  t.equal(score { drop_mlp = { 2 } }, 2)
  t.equal(score { drop_mlp = { 2 }, drop = { 3 } }, 0)
  t.equal(score { drop_mlp = { 1, 2 } }, 3)
  t.equal(score { hidden = 20 }, 4, "another width is another stream")
  slices.forget(sorted)
  t.equal(score { hidden = 20 }, 4, "forgotten")
end)

t.test("a mask of zeros and ones is the cut", function()
  for _, shape in ipairs { tiny, (function()
    local s = shapes.copy(tiny)
    s.tied = true
    return s
  end)() } do
    local model, ranking = world(shape)
    for i, cut in ipairs { { hidden = 24 }, { ffn = 37 }, { heads = 4 }, { kv_heads = 1 }, { layers = 2 },
      { hidden = 31, ffn = 9, heads = 6, layers = 3 } } do
      local kept = ranking:kept(cut, model)
      local cut_model = esp.prune(model, ranking, { quiet = true, hidden = cut.hidden, ffn = cut.ffn, heads = cut.heads, kv_heads = cut.kv_heads,
        layers = cut.layers })
      near(esp.mask(model, kept):logits(held_out), cut_model:logits(held_out), 1e-5, "cut " .. i)
      if cut.kv_heads then
        near(esp.mask(model, { kv_heads = kept.kv_heads }):logits(held_out), cut_model:logits(held_out), 1e-5, "groups alone")
      end
    end
  end
end)

t.test("soft masks weaken, whole ones change nothing, and scores share their first layers", function()
  local model = world()
  local half = tensor.full({ tiny.ffn }, 0.5)
  local soft = esp.mask(model, { ffn = { [2] = half } })
  local by_hand = model:clone()
  local down = by_hand:parameters()["model.layers.1.mlp.down_proj.weight"]
  down:copy_from(esp.no_grad(function() return down * 0.5 end))
  t.equal(largest(soft:logits(held_out), by_hand:logits(held_out)), 0)
  t.equal(largest(esp.mask(model, { layers = tensor.full({ 4 }, 1), hidden = tensor.full({ 40 }, 1) }):logits(held_out), model:logits(held_out)), 0)
  near(esp.mask(model, { layers = tensor.of { 1, 0, 1, 1 } }):logits(held_out),
    esp.prune(model, nil, { drop = { 1 }, quiet = true }):logits(held_out), 1e-5, "a layer's weight of 0")
  t.equal(esp.mask(model, { ffn = { [2] = half } }):loss(held_out), by_hand:loss(held_out))
  t.equal(esp.mask(model, { ffn = { [3] = half } }):loss(held_out), esp.mask(model, { ffn = { [3] = half } }):loss(held_out))
  t.equal(soft:loss(held_out), by_hand:loss(held_out), "after another mask")
  t.fails("ffn[1] (layer 0) names 56, want whole numbers from 0 to 55", esp.mask, model, { ffn = { { 56 } } })
  t.fails("hidden is [3], want [40]", esp.mask, model, { hidden = tensor.full({ 3 }, 1) })
  t.fails("layers holds 2 at 0, want 0 to 1", esp.mask, model, { layers = tensor.of { 2, 0, 0, 0 } })
  t.fails("hidden keeps no channel", esp.mask, model, { hidden = {} })
  t.fails("heads lists 5 layers, want at most 4", esp.mask, model, { heads = { {}, {}, {}, {}, {} } })
end)
