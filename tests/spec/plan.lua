--- Plans: exact sizes of published and stored models, grids against nested loops, budgets, refusals, measured layers.

local t = ...
local esp = require "espalier"
local json = require "espalier.io.json"
local file = require "espalier.io.file"
local shapes = require "espalier.models.shape"
local legal = require "espalier.prune.legal"
local grids = require "espalier.plan.grid"
local measure = require "espalier.plan.measure"

local function config(own)
  local c = { model_type = "mistral", hidden_size = 5120, intermediate_size = 14336, num_hidden_layers = 40, num_attention_heads = 32,
    num_key_value_heads = 8, head_dim = 128, vocab_size = 131072, max_position_embeddings = 131072, rms_norm_eps = 1e-5, rope_theta = 1000000,
    hidden_act = "silu", tie_word_embeddings = false }
  for k, v in pairs(own or {}) do c[k] = v end
  local dir = t.folder()
  json.write(dir .. "/config.json", c)
  return dir
end

local llama8b = { model_type = "llama", hidden_size = 4096, num_hidden_layers = 32, vocab_size = 128256, rope_theta = 500000 }

t.test("published models have their exact counts", function()
  local nemo, llama = config(), config(llama8b)
  for _, row in ipairs {
    { nemo, {}, 12247782400, 10905605120 }, { nemo, { hidden = 4096, ffn = 11520 }, 8414105600, 7340363776 },
    { llama, {}, 8030261248, 6979588096 }, { llama, { hidden = 3072, ffn = 9216 }, 4512746496, 3724741632 },
    { llama, { drop = esp.range(16, 31) }, 4540469248, 3489796096 }, { llama, { layers = 16 }, 4540469248, 3489796096 },
  } do
    local plan = esp.plan(row[1], row[2])
    t.equal({ plan.after.parameters, plan.after.non_embedding }, { row[3], row[4] })
  end
  -- 131,072 bytes a token in bf16 for 32 layers of 8 x 128, unchanged by width, halved by half of the depth.
  local width, depth = esp.plan(llama, { hidden = 3072, ffn = 9216, length = 1000 }), esp.plan(llama, { layers = 16, length = 1000 })
  t.equal({ width.before.kv, width.after.kv, depth.after.kv }, { 131072000, 131072000, 65536000 })
end)

-- A model of the Nemotron family: LayerNorm1p with biases, squared ReLU without a gate, half of each head turns.
local function nemotron(layers, hidden, heads, kv_heads, ffn)
  local dir = t.folder()
  json.write(dir .. "/config.json", { model_type = "nemotron", num_hidden_layers = layers, hidden_size = hidden, num_attention_heads = heads,
    num_key_value_heads = kv_heads, head_dim = 128, intermediate_size = ffn, vocab_size = 256000, hidden_act = "relu2", norm_eps = 1e-5,
    partial_rotary_factor = 0.5, rope_theta = 10000, max_position_embeddings = 4096, tie_word_embeddings = false })
  return dir
end

t.test("the Nemotron family has its exact counts, and every candidate of the paper", function()
  local teacher = nemotron(32, 6144, 48, 8, 24576)
  for _, row in ipairs {
    { esp.plan(teacher), 15628775424, 12483047424 }, { esp.plan(teacher, { hidden = 4096, ffn = 16384 }), 8271699968, 6174547968 },
    { esp.plan(teacher, { hidden = 3072, ffn = 9216, heads = 24 }), 4190509056, 2617645056 },
    { esp.plan(nemotron(32, 4096, 32, 32, 16384)), 8540135424, 6442983424 },
  } do t.equal({ row[1].after.parameters, row[1].after.non_embedding }, { row[2], row[3] }) end
  -- 2407.14679, Table 19: layers, heads, ffn, hidden; totals in billions.
  for _, c in ipairs {
    { 32, 32, 12800, 5120, 8.494 }, { 32, 32, 13824, 4608, 7.947 }, { 32, 48, 11520, 4608, 7.871 }, { 32, 48, 16384, 4096, 8.272 },
    { 31, 32, 12800, 5120, 8.311 }, { 31, 32, 16128, 4608, 8.430 }, { 31, 48, 13824, 4608, 8.357 }, { 31, 48, 16384, 4096, 8.079 },
    { 30, 32, 12800, 5120, 8.127 }, { 30, 32, 16128, 4608, 8.235 }, { 30, 48, 13824, 4608, 8.164 }, { 30, 48, 16384, 4096, 7.886 },
    { 29, 32, 12800, 5120, 7.944 }, { 29, 32, 16128, 4608, 8.039 }, { 29, 48, 13824, 4608, 7.970 },
  } do
    local plan = esp.plan(teacher, { layers = c[1], heads = c[2], ffn = c[3], hidden = c[4] })
    t.near(plan.after.parameters / 1e9, c[5], 0.0005, table.concat(c, " "))
  end
end)

t.test("the paper's search space within 5 % of 8 and of 4 billion", function()
  local function within(hidden, ffn, heads, goal)
    local grid, n = grids.new(esp.plan(nemotron(32, 6144, 48, 8, 24576)).before.shape, { axes = { layers = { 32, 31, 30, 29 }, heads = heads,
      hidden = hidden, ffn = ffn }, architecture = "nemotron" }), 0
    for c in grid:each() do
      local ratio = c.ffn / c.hidden
      if math.abs(c.parameters / goal - 1) <= 0.05 and (ratio == 2.5 or ratio == 3 or ratio == 3.5 or ratio == 4) then n = n + 1 end
    end
    return n
  end
  local function widths(hidden)
    local list, seen = {}, {}
    for _, d in ipairs(hidden) do
      for _, r in ipairs { 2.5, 3, 3.5, 4 } do
        if not seen[d * r] then list[#list + 1], seen[d * r] = d * r, true end
      end
    end
    return list
  end
  local eight, four = { 4096, 4608, 5120, 5632, 6144 }, { 2560, 3072, 3584, 4096, 4608 }
  t.equal(within(eight, widths(eight), { 32, 48 }, 8e9), 18)
  t.equal(within(four, widths(four), { 24, 32, 48 }, 4e9), 18)
end)

t.test("stored models have what their headers say", function()
  for _, name in ipairs { "hf/gemma", "hf/gemma2", "hf/llama", "hf/llama-linear-rope", "hf/llama-tied-bias", "hf/llama-wide-heads", "hf/llama31-rope",
    "hf/mistral-nemo", "hf/mistral-window", "hf/nemotron", "hf/olmo2", "hf/phi3", "hf/qwen2", "hf/qwen3", "hf/smollm3",
    "minitron/babyllama/teacher", "minitron/stories260K/teacher" } do
    local plan = esp.plan(t.shared("data/golden/" .. name))
    t.equal(plan.stored.parameters, plan.before.parameters, name)
    t.equal(plan.stored.dtypes, { F32 = plan.before.parameters }, name)
    t.equal(plan.stored.bytes, 4 * plan.before.parameters, name)
  end
  t.equal(esp.plan(t.shared "data/formats/hf-tiny-llama/config.json").before.parameters, 2 * 32000 * 16 + 4 * 16 * 16 + 3 * 16 * 64 + 3 * 16)
end)

t.test("headers that do not fit config.json are refused", function()
  local dir = t.folder()
  local c = json.read(t.shared "data/golden/hf/llama/config.json")
  c.intermediate_size = 111
  json.write(dir .. "/config.json", c)
  file.copy(t.shared "data/golden/hf/llama/model.safetensors", dir .. "/model.safetensors")
  t.fails("hold 116160 parameters, its config.json makes 115584", esp.plan, dir)
end)

local tiny = { hidden = 24, ffn = 20, layers = 4, heads = 8, kv_heads = 4, head_dim = 4, vocab = 30, context = 32, norm_eps = 1e-5,
  rope = { theta = 10000 }, tied = false }

-- Every legal shape by nested loops over the same choices, each asked of prune/legal.lua.
local function by_loops(s, choices, takes)
  local list = {}
  for _, d in ipairs(choices.hidden) do for _, f in ipairs(choices.ffn) do for _, h in ipairs(choices.heads) do
    for _, g in ipairs(choices.kv_heads) do for _, n in ipairs(choices.layers) do
      local request = { hidden = d, ffn = f, heads = h, kv_heads = g, layers = n }
      local ok, sets = pcall(legal.check, "test", s, request)
      if ok and takes(d, h) then
        local new = legal.result(s, request, sets)
        list[#list + 1] = table.concat({ d, f, h, g, n, shapes.parameters(new), shapes.kv_bytes(new, 2),
          shapes.parameters(new) - shapes.embedding_parameters(new) }, " ")
      end
    end end
  end end end
  return list
end

t.test("a grid is every legal shape with its exact sizes", function()
  local mixed = shapes.copy(tiny)
  mixed.ffn, mixed.heads, mixed.kv_heads = { 20, 0, 12, 20 }, { 8, 8, 0, 8 }, { 4, 4, 0, 4 }
  for _, s in ipairs { tiny, mixed } do
    for _, engine in ipairs { "transformers", "any" } do
      local grid = grids.new(s, { engine = engine,
        axes = { "kv_heads", "layers", heads = { 4, 8, 3, 2, 6 }, hidden = { 24, 16, 13, 8 }, ffn = { 20, 7, 12 } } })
      local got = {}
      for c in grid:each() do
        got[#got + 1] = table.concat({ c.hidden, c.ffn, c.heads, c.kv_heads, c.layers, c.parameters, c.kv, c.non_embedding }, " ")
      end
      t.equal(got, by_loops(s, grid.choices, function(d, h) return engine == "any" or d % h == 0 end))
      t.ok(#got > 100, "many")
    end
  end
  t.fails("did you mean 'hidden'?", grids.new, tiny, { axes = { "hiden" } })
  t.fails("axes.ffn holds 21, want whole numbers from 1 to 20", grids.new, tiny, { axes = { ffn = { 21 } } })
  t.fails("axes.ffn is empty", grids.new, tiny, { axes = { ffn = {} } })
end)

t.test("a grid of the 12B model, filtered by two budgets in two seconds", function()
  local start = os.clock()
  local plan = esp.plan(config(), { params = "8.42B", memory = "18GiB", batch = 1, length = 8192 })
  local spent = os.clock() - start
  t.ok(plan.found.seen >= 1e5, "shapes: " .. plan.found.seen)
  t.ok(spent < 2, "seconds of processor time: " .. spent)
  t.ok(plan.after.parameters <= 8.42e9 and plan.after.parameters > 8.2e9, "near the budget: " .. plan.after.parameters)
  t.equal(plan.found.pick.cut, "hidden, ffn")
  t.equal({ plan.after.shape.hidden, plan.after.shape.ffn }, { plan.request.hidden, plan.request.ffn })
  t.ok(tostring(plan):find "of each set of axes the most even cut", "shown")
end)

t.test("budgets hold together, and name the smallest shape where none does", function()
  local model = esp.models.new(tiny, { seed = 1 })
  local full = shapes.parameters(tiny)
  local plan = esp.plan(model, { params = full / 2, non_embedding = full / 3, batch = 2, length = 16 })
  t.ok(plan.after.parameters <= full / 2 and plan.after.non_embedding <= full / 3, "both kept")
  for _, c in ipairs(plan.found.list) do t.ok(c.parameters <= full / 2 and c.non_embedding <= full / 3, c.cut) end
  plan = esp.plan(model, { memory = 2 * full, layers = 3, ffn = 10 })
  t.equal({ plan.after.shape.layers, plan.after.shape.ffn }, { 3, 10 })
  t.equal(esp.plan(model, { params = full }).after.parameters, full, "nothing is cut where nothing must be")
  t.fails("none of 1 legal shapes keeps the budget; the smallest has params 5,256 (limit 100)", esp.plan, model,
    { params = 100, hidden = 24, ffn = 20, heads = 8, layers = 1 })
  t.fails("drop and a budget are both given", esp.plan, model, { params = 100, drop = { 1 } })
  t.fails("params = 0, want more than 0", esp.plan, model, { params = 0 })
  t.fails("did you mean 'ffn'?", esp.plan, model, { params = 100, axes = { "fnn" } })
end)

t.test("what an engine refuses is refused with the nearest sizes that it takes", function()
  local model = esp.models.new(tiny, { seed = 1 })
  t.fails("hidden = 20 is no multiple of 8 heads, which transformers demands of a llama (from version 5 on); the nearest legal are "
    .. "hidden = 16, hidden = 24, heads = 4", esp.plan, model, { hidden = 20 })
  t.equal(esp.plan(model, { hidden = 20, engine = "any" }).after.shape.hidden, 20)
  t.equal(esp.plan(model, { hidden = 20, heads = 4 }).after.shape.heads, 4)
  t.fails("want one of transformers, any", esp.plan, model, { hidden = 20, engine = "all" })
  t.equal(esp.plan(config(), { hidden = 4100 }).after.shape.hidden, 4100, "a Mistral may")
  t.fails("the nearest legal are 4 and 8", esp.plan, model, { heads = 6 })
  t.fails("length = 33, the model's context is 32", esp.plan, model, { length = 33 })
  local near = esp.plan(model, { hidden = 16 }).neighbours
  t.equal({ near[1].axis, near[1].size, near[2].axis, near[2].size }, { "hidden", 8, "hidden", 24 })
  for _, n in ipairs(near) do
    local again = { hidden = 16, [n.axis] = n.size, heads = n.heads or n.axis == "heads" and n.size or nil }
    t.equal(esp.plan(model, again).after.parameters, n.parameters, n.axis)
  end
end)

t.test("a distillation's memory, disk and time", function()
  local model = esp.models.new(tiny, { seed = 1 })
  local plan = esp.plan(model, { ffn = 10, tokens = "1M", rate = 2000, batch = 3, length = 8 })
  local p = plan.after.parameters
  t.equal({ plan.memory.teacher, plan.memory.moments }, { 4 * plan.before.parameters, 8 * p })
  local many = esp.plan(model, { ffn = 10, batch = 4096, length = 8 }).memory
  t.equal(many.activations, esp.plan(model, { ffn = 10, batch = 128, length = 8 }).memory.activations, "passes of 1,024 tokens")
  t.ok(many.activations > plan.memory.activations, "but a smaller batch is a smaller pass")
  t.ok(esp.plan(model, { ffn = 10, precision = "bf16" }).memory.logits ~= plan.memory.logits, "bf16 packs the heads")
  t.equal({ plan.disk.checkpoints, plan.disk["cache of states"], plan.disk["cache of top 64"] }, { 24 * p, 48e6, 388e6 })
  t.equal(plan.time, 500)
  t.ok(tostring(plan):find("8 min 20 s", 1, true), "shown")
  local measured = esp.plan(model, { ffn = 10, tokens = "1M", length = 8 })
  t.ok(measured.rate > 10 and measured.rate < 1e9, "a rate: " .. measured.rate)
  t.near(measured.time, 1e6 / measured.rate, 1e-6)
end)

t.test("a distillation's memory agrees with what its process takes", function()
  local program, dir = t.program() or t.skip "needs the espalier program", t.folder()
  t.write(dir .. "/run.lua", [[
    local esp = require "espalier"
    local C, precision = esp.ffi.C, ...
    precision = precision:match "=(.*)"
    local before = tonumber(C.esp_rss())
    local function model(hidden, ffn, seed)
      return esp.models.new({ hidden = hidden, ffn = ffn, layers = 4, heads = 4, kv_heads = 2, head_dim = 32, vocab = 16000, context = 256,
        norm_eps = 1e-5, rope = { theta = 10000 }, tied = false }, { seed = seed })
    end
    local rows = {}
    for r = 1, 6 do
      rows[r] = {}
      for i = 1, 256 do rows[r][i] = (r * 31 + i * i * 7 + i * r) % 16000 end
    end
    local teacher, planned = model(256, 704, 1), 0
    esp.distill { teacher = teacher, student = model(192, 512, 2), data = esp.data.of(rows), batch = 6, precision = precision, steps = 2,
      quiet = true, schedule = esp.schedule.constant { rate = 1e-4 } }
    local plan = esp.plan(teacher, { hidden = 192, ffn = 512, batch = 6, length = 256, precision = precision })
    for _, bytes in pairs(plan.memory) do planned = planned + bytes end
    print(planned / (tonumber(C.esp_rss_peak()) - before))]])
  for _, precision in ipairs { "f32", "bf16" } do
    local said = dir .. "/said." .. precision
    local code = esp.io.process.start({ "/usr/bin/env", "ESPALIER_THREADS=2", program, dir .. "/run.lua", "precision=" .. precision }, said):wait()
    t.equal(code, 0, t.read(said))
    t.near(tonumber(t.read(said)), 1, 0.1, precision)
  end
end)

t.test("latency is measured by layers and checked whole", function()
  local s = shapes.copy(tiny)
  s.hidden, s.ffn, s.head_dim, s.layers = 128, 512, 16, 3
  local model = esp.models.new(s, { seed = 1 })
  local plan = esp.plan(model, { latency = "1h", batch = 1, length = 32, axes = { "hidden", "ffn", "layers" }, quiet = true })
  t.equal(plan.found.pick.cut, "", "an hour is enough for all of it")
  local layers, whole = plan.found.goals.latency:of(plan.found.pick), plan.found.measured
  t.ok(layers > 0 and layers < 20 * whole and whole < 20 * layers, "the same order: " .. layers .. ", " .. whole)
  local slow, fast = plan.found.goals.latency:of(plan.found.list[1]), 1e-12
  t.fails("none of", esp.plan, model, { latency = fast, length = 32, quiet = true })
  t.ok(slow == layers, "the same question, the same answer")
  t.ok(measure.layer(s, { hidden = 128, ffn = 0, heads = 8, kv_heads = 4 }, 1, 32, { train = true }) > 0, "attention alone")
end)
