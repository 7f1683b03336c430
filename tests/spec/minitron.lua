--- Measuring, pruning and planning against the goldens of an independent implementation, on two real models.

local t = ...
local esp = require "espalier"
local tensor = require "espalier.tensor"
local json = esp.io.json

local function largest(a, b)
  return esp.no_grad(function() return ((a - b):abs():view(-1):max(0)):item() end)
end

local function relative(got, want, tolerance, what)
  local most = (want:abs():view(-1):max(0)):item()
  t.near(largest(got, want) / most, 0, tolerance, what)
end

for _, name in ipairs { "stories260K", "babyllama" } do
  local opened
  local function open()
    if opened then return opened end
    local dir = t.shared("data/golden/minitron/" .. name)
    local model = esp.load(dir .. "/teacher")
    local gold, figures = esp.io.safetensors.read(dir .. "/golden.safetensors"), json.read(dir .. "/golden.json")
    local blocks = {}
    for n in pairs(figures.drop) do blocks[#blocks + 1] = tonumber(n) end
    table.sort(blocks)
    local stats = esp.importance.measure(model, gold.ids, { depth = blocks, grads = true, batch = 16, quiet = true })
    opened = { model = model, gold = gold, figures = figures, stats = stats }
    return opened
  end

  t.test("activation scores of " .. name, function()
    local o, checked = open(), 0
    for l = 0, o.model.shape.layers - 1 do
      for _, site in ipairs { "norm1", "norm2", "attention", "ffn" } do
        for _, batch in ipairs { "mean", "l2", "var" } do
          for _, seq in ipairs { "mean", "l2", "var" } do
            local want = o.gold[string.format("score.%d.%s.%s.%s", l, site, batch, seq)]
            local axis = (site == "attention" or site == "ffn") and site or "hidden"
            local got = o.stats:score { axis = axis, layer = l, site = axis == "hidden" and site or nil, agg = batch .. "," .. seq }
            relative(got, want, 1e-4, string.format("layer %d %s %s,%s", l, site, batch, seq))
            checked = checked + 1
          end
        end
      end
      for _, kind in ipairs { "channelwise", "tokenwise" } do
        relative(o.stats:score { axis = "heads", layer = l, heads = kind }, o.gold[string.format("score.%d.head.%s", l, kind)], 1e-4, kind)
      end
      -- The golden has the root of the sum of squares, ours of their mean.
      local wanda = o.stats:score { axis = "ffn", layer = l, metric = "wanda" } * math.sqrt(o.gold.ids:count())
      relative(wanda, o.gold[string.format("score.%d.ffn.wanda", l)], 1e-4, "wanda")
    end
    relative(o.stats:score { axis = "hidden" }, o.gold["score.hidden"], 1e-4, "hidden")
    t.ok(checked == 36 * o.model.shape.layers, "too few scores compared")
  end)

  t.test("scores by weights and gradients of " .. name, function()
    local o = open()
    for l = 0, o.model.shape.layers - 1 do
      for _, metric in ipairs { "flap", "contribution", "magnitude", "taylor_weight" } do
        relative(o.stats:score { axis = "ffn", layer = l, metric = metric }, o.gold["score." .. l .. ".ffn." .. metric], 1e-4, metric .. l)
      end
      for _, site in ipairs { "norm1", "norm2", "attention", "ffn" } do
        local axis = (site == "attention" or site == "ffn") and site or "hidden"
        local key, named = "score." .. l .. "." .. site .. ".taylor", axis == "hidden" and site or nil
        local signed = o.stats:score { axis = axis, layer = l, site = named, metric = "taylor" }
        -- The signed sum cancels: it is held to the sum of absolute values.
        local most = o.gold[key .. "_abs"]:abs():max(0):item()
        t.near(largest(signed, o.gold[key]) / most, 0, 1e-4, key)
        relative(o.stats:score { axis = axis, layer = l, site = named, metric = "taylor_abs" }, o.gold[key .. "_abs"], 1e-4, key)
      end
    end
  end)

  t.test("block influence, angles and layers left out of " .. name, function()
    local o = open()
    t.near(o.model:loss(o.gold.ids), o.figures.nll, 1e-5, "nll")
    t.near(o.stats:score { axis = "layers" }, o.figures.bi, 1e-5, "bi")
    for n, list in pairs(o.figures.angular) do
      t.near(o.stats:score { axis = "layers", metric = "angular", block = tonumber(n) }, list, 1e-5, "angular " .. n)
      t.near(o.stats:score { axis = "layers", metric = "angular", block = tonumber(n), last = true }, o.figures.angular_last_token[n], 1e-5,
        "angular, last token " .. n)
    end
    for n, list in pairs(o.figures.drop) do
      local nll = o.stats:score({ axis = "layers", metric = "nll", block = tonumber(n) }):table()
      local kl = o.stats:score({ axis = "layers", metric = "kl", block = tonumber(n) }):table()
      t.equal(#nll, #list)
      for i, want in ipairs(list) do
        t.near({ nll[i], kl[i] }, want, 1e-5 * math.max(1, want[1]), string.format("without %s layers from %d", n, i - 1))
      end
    end
  end)

  t.test("pruned models of " .. name, function()
    local o = open()
    local rows = tensor.contiguous(tensor.narrow(o.gold.ids, 0, 0, 4))
    for variant, want in pairs(o.figures.pruned) do
      local opt, full = { quiet = true }, o.model.shape
      opt.drop = want.dropped
      for _, axis in ipairs { "hidden", "ffn", "heads" } do
        if want[axis] and want[axis] < full[axis] then opt[axis] = want[axis] end
      end
      t.ok(next(opt, next(opt)), variant .. " prunes nothing")
      local small, sets = esp.prune(o.model, o.stats, opt)
      for _, axis in ipairs { "hidden", "ffn", "heads" } do
        if opt[axis] then t.equal(sets[axis], want.kept[axis], variant .. " kept " .. axis) end
      end
      local logits = o.gold["pruned." .. variant .. ".logits"]
      if logits then t.near(largest(small:logits(rows), logits), 0, 1e-4, variant .. " logits") end
      t.near(small:loss(o.gold.ids), want.nll, 1e-5 * math.max(1, want.nll), variant .. " nll")
    end
  end)

  t.test("statistics of " .. name .. " survive a file and add up", function()
    local o = open()
    local path = t.folder() .. "/s.h5"
    o.stats:save(path)
    local again = esp.importance.load(path)
    relative(again:score { axis = "hidden" }, o.stats:score { axis = "hidden" }, 2e-7, "hidden, to f32")
    t.equal(again:score { axis = "layers", metric = "kl" }, o.stats:score { axis = "layers", metric = "kl" })
    relative(again:score { axis = "hidden", metric = "taylor_weight" }, o.stats:score { axis = "hidden", metric = "taylor_weight" }, 2e-7, "weights")
    t.equal(again:hash(), o.stats:hash())
    local function shard(from, n)
      local file = t.folder() .. "/shard.h5"
      esp.importance.measure(o.model, tensor.contiguous(tensor.narrow(o.gold.ids, 0, from, n)), { batch = 8, quiet = true }):save(file)
      return esp.importance.load(file)
    end
    local merged = shard(0, 32):merge(shard(32, 32))
    relative(merged:score { axis = "ffn", layer = 1 }, o.stats:score { axis = "ffn", layer = 1 }, 1e-6, "merged")
    local sizes = { hidden = o.figures.pruned.hidden.hidden, ffn = o.figures.pruned.ffn.ffn, heads = o.figures.pruned.heads.heads }
    local sets = merged:rank {}:kept(sizes)
    for _, axis in ipairs { "hidden", "ffn", "heads" } do
      t.equal(sets[axis], o.figures.pruned[axis].kept[axis], "kept by merged halves: " .. axis)
    end
    t.write(path, "no HDF5")
    t.fails("cannot read", esp.importance.load, path)
  end)
end

local tiny = { hidden = 16, ffn = 24, layers = 3, heads = 4, kv_heads = 2, head_dim = 4, vocab = 30, context = 32, norm_eps = 1e-5,
  rope = { theta = 10000 }, tied = true }

t.test("impossible sizes are refused with the nearest legal ones", function()
  local model = esp.models.new(tiny, { seed = 1 })
  local stats = esp.importance.measure(model, { { 1, 2, 3, 4 }, { 5, 6, 7, 8 } }, { quiet = true })
  t.fails("hidden = 17, want 1 to 16", esp.prune, model, stats, { hidden = 17 })
  t.fails("the nearest legal are 2 and 4", esp.prune, model, stats, { heads = 3 })
  t.fails("unknown option 'hiden'; did you mean 'hidden'?", esp.prune, model, stats, { hiden = 8 })
  t.fails("drop names layer 3, want 0 to 2", esp.prune, model, stats, { drop = { 3 } })
  t.fails("want statistics or a ranking", esp.prune, model, nil, { hidden = 8 })
  t.fails("the first argument is nil, want a model", esp.prune)
  local part = esp.prune(model, stats, { drop = { 0 }, drop_mlp = { 2 }, drop_attention = { 1 }, hidden = 8, ffn = 12, kv_heads = 1, quiet = true })
  t.equal({ part.shape.layers, part.shape.ffn, part.shape.heads, part.shape.kv_heads }, { 2, { 12, 0 }, { 0, 2 }, { 0, 1 } })
  local dir = t.folder() .. "/m"
  part:save(dir, { quiet = true })
  t.equal(largest(esp.load(dir):logits { { 1, 2 } }, part:logits { { 1, 2 } }), 0)
  model:parameters()["model.embed_tokens.weight"]:fill(0 / 0)
  local bad = esp.importance.measure(model, { { 1, 2, 3, 4 } }, { quiet = true })
  t.fails("is NaN", esp.prune, model, bad, { hidden = 8, quiet = true })
end)

local function config(dir, c)
  json.write(dir .. "/config.json", c)
  return dir
end

t.test("exact parameter counts from config.json alone", function()
  local nemo = config(t.folder(), { model_type = "mistral", hidden_size = 5120, intermediate_size = 14336, num_hidden_layers = 40,
    num_attention_heads = 32, num_key_value_heads = 8, head_dim = 128, vocab_size = 131072, max_position_embeddings = 131072,
    rms_norm_eps = 1e-5, rope_theta = 1000000, hidden_act = "silu", tie_word_embeddings = false })
  local plan = esp.plan(nemo, { hidden = 4096, ffn = 11520 })
  t.equal({ plan.before.parameters, plan.after.parameters }, { 12247782400, 8414105600 })
  t.ok(tostring(plan):find("8,414,105,600", 1, true), "the table shows it")
  local llama = config(t.folder(), { model_type = "llama", hidden_size = 4096, intermediate_size = 14336, num_hidden_layers = 32,
    num_attention_heads = 32, num_key_value_heads = 8, vocab_size = 128256, max_position_embeddings = 131072, rms_norm_eps = 1e-5,
    rope_theta = 500000, hidden_act = "silu", tie_word_embeddings = false })
  t.equal(esp.plan(llama).before.parameters, 8030261248)
  t.fails("field 'vocab_size' is missing", esp.plan, config(t.folder(), { model_type = "llama", hidden_size = 8, intermediate_size = 8,
    num_hidden_layers = 1, num_attention_heads = 1, max_position_embeddings = 8, rms_norm_eps = 1e-5 }))
end)
