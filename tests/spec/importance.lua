--- Every metric's formula against plain Lua doubles, from the activations, gradients and weights of small models of random weights, for each
-- architecture.

local t = ...
local esp = require "espalier"
local tensor = require "espalier.tensor"
local ops = require "espalier.ops"
local shapes = require "espalier.models.shape"
local models = require "espalier.models.model"
local batches = require "espalier.importance.batches"
local gradients = require "espalier.importance.gradients"

local base = { hidden = 12, ffn = 10, layers = 3, heads = 4, kv_heads = 2, head_dim = 4, vocab = 23, context = 32, norm_eps = 1e-5,
  rope = { theta = 10000 }, tied = true }

local function with(more)
  local s = shapes.copy(base)
  for k, v in pairs(more) do s[k] = v end
  return s
end

-- Three rows; what fills the second to the length of the others must not count.
local rows = { { 3, 1, 4, 1, 5, 9, 2 }, { 6, 5, 3, 5 }, { 8, 9, 7, 9, 3, 2, 3 } }

local architectures = {
  { "llama", with {} },
  { "llama, a head a group, own head", with { kv_heads = 4, tied = false } },
  { "qwen2", with { biases = { qkv = true } } },
  { "qwen3", with { qk_norm = "head" } },
  { "gemma", with { norm = "rms1p", activation = "gelu_tanh", embedding_scale = "root" } },
  { "gemma2", with { norm = "rms1p", norms = "both", activation = "gelu_tanh", embedding_scale = "root", attention_cap = 2, logit_cap = 3,
    query_scalar = 6, window = { 3, 0, 3 } } },
  { "nemotron", with { norm = "layernorm1p", gated = false, activation = "relu2", rope = { theta = 10000, partial = 0.5 }, tied = false } },
  { "nemotron with biases", with { norm = "layernorm1p", gated = false, activation = "relu2", biases = { qkv = true, output = true, mlp = true } } },
  { "smollm3", with { rotary = { true, false, true } } },
  { "olmo2", with { norms = "post", qk_norm = "whole", tied = false } },
  { "llama, layers of different sizes", with { ffn = { 10, 6, 0 }, heads = { 4, 0, 2 }, kv_heads = { 2, 0, 1 } } },
}

-- ---- what the reference stands on ----

local function sites_of(model, ids)
  local seen = { outer = {} }
  esp.no_grad(function()
    model:forward(ids, { observe = function(site, l, x)
      local place = l or "outer"
      seen[place] = seen[place] or {}
      seen[place][site] = esp.no_grad(tensor.contiguous, x):table()
    end })
  end)
  return seen
end

-- Gradients of the summed next-token loss at the sites, { [layer] = { [site] = nested } }, and by the weights: added up over batches of `size` rows.
-- lose(model, hidden, batch): goes backward from the loss.
local function gradients_of(model, size, lose)
  local grads, before = {}, {}
  for name, p in pairs(model:parameters()) do
    before[name] = p
    p:requires_grad_()
  end
  for batch in batches.of(rows, size).next do
    local kept = {}
    local h = model:forward(batch.ids, { first = batch.first, observe = function(site, l, x)
      if l and x.node then kept[#kept + 1] = { site, l, x:keep_grad() } end
    end })
    lose(model, h, batch)
    for _, k in ipairs(kept) do
      local site, l, x = k[1], k[2], k[3]
      if x.grad then
        grads[l] = grads[l] or {}
        grads[l][site] = grads[l][site] or {}
        for _, row in ipairs(x.grad:contiguous():table()) do table.insert(grads[l][site], row) end
      end
    end
  end
  local weights = {}
  for name, p in pairs(before) do
    weights[name] = p.grad and p.grad:table()
    p.requires_grad, p.grad = nil, nil
  end
  return grads, weights
end

-- The loss of all rows at once, by the tape alone: no chunks of the head.
local function lose_by_tape(model, h, batch)
  local N = batch.target:count()
  ops.cross_entropy(model:project(h):view(N, model.shape.vocab), tensor.view(batch.target, { N })):sum():backward()
end

local function open(shape)
  local model = esp.models.new(shape, { seed = 3, std = 0.4 })
  -- Norms of ones hide whether they count.
  for name, p in pairs(model:parameters()) do
    if name:find "norm" then p:copy_from(tensor.uniform(p.shape, { lo = 0.5, hi = 1.5, seed = #name })) end
  end
  local ids, lengths = models.as_ids(rows)
  local target = models.next_targets(ids, lengths)
  local stats = esp.importance.measure(model, rows, { grads = true, batch = 2, quiet = true,
    depth = { blocks = { 1, 2 }, parts = { "layer", "attention", "mlp" } } })
  -- As measure goes backward, two rows at a time, so that what is held to the doubles is the formula.
  local grads, weight_grads = gradients_of(model, 2, gradients.backward)
  return { model = model, shape = shape, ids = ids, lengths = lengths, target = target, stats = stats, sites = sites_of(model, ids), grads = grads,
    weight_grads = weight_grads, tokens = 18, predictions = 15, rows = 3 }
end

-- x[b][t][c] of channel c: a list of the rows' values, each a list to the row's length.
local function channel(x, c, lengths)
  local list = {}
  for b, n in ipairs(lengths) do
    list[b] = {}
    for p = 1, n do list[b][p] = x[b][p][c] end
  end
  return list
end

local seq = {
  mean = function(v) local s = 0 for _, x in ipairs(v) do s = s + math.abs(x) end return s / #v end,
  l2 = function(v) local s = 0 for _, x in ipairs(v) do s = s + x * x end return math.sqrt(s) end,
  var = function(v)
    local m, s = 0, 0
    for _, x in ipairs(v) do m = m + x / #v end
    for _, x in ipairs(v) do s = s + (x - m) ^ 2 / #v end
    return s
  end,
}

local function aggregate(list, batch, inner)
  local each = {}
  for b, v in ipairs(list) do each[b] = seq[inner](v) end
  return seq[batch](each)
end

local function flat(list)
  local all = {}
  for _, v in ipairs(list) do for _, x in ipairs(v) do all[#all + 1] = x end end
  return all
end

-- f(channel's rows, c) for each channel of a site.
local function each_channel(x, lengths, f)
  local out = {}
  for c = 1, #x[1][1] do out[c] = f(channel(x, c, lengths), c) end
  return out
end

local compared = 0
local function same(got, want, tolerance, what)
  local most = 0
  for _, v in ipairs(want) do most = math.max(most, math.abs(v)) end
  t.near(got, want, tolerance * most, what)
  compared = compared + #want
end

local function column(w, c, p)
  local s = 0
  for o = 1, #w do s = s + math.abs(w[o][c]) ^ p end
  return s
end

local function line(w, r, p)
  local s = 0
  for i = 1, #w[r] do s = s + math.abs(w[r][i]) ^ p end
  return s
end

-- Readers and makers of a site, nested lists.
local function weights_of(o, l, site)
  local p = o.model:parameters()
  local function get(name) local w = p["model.layers." .. l .. "." .. name .. ".weight"] return w and w:table() end
  local names = { norm1 = { { "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj" }, {} }, norm2 = { { "mlp.gate_proj", "mlp.up_proj" }, {} },
    attention = { { "self_attn.o_proj" }, { "self_attn.q_proj" } }, ffn = { { "mlp.down_proj" }, { "mlp.gate_proj", "mlp.up_proj" } } }
  local readers, makers = {}, {}
  for _, name in ipairs(names[site][1]) do readers[#readers + 1] = get(name) end
  for _, name in ipairs(names[site][2]) do makers[#makers + 1] = get(name) end
  local function sum(list, f) local s = 0 for _, w in ipairs(list) do s = s + f(w) end return s end
  return {
    out = function(c, power) return sum(readers, function(w) return column(w, c, power) end) end,
    made = function(c, power) return sum(makers, function(w) return line(w, c, power) end) end,
    readers = readers,
  }
end

local function axis_of(site)
  if site == "norm1" or site == "norm2" then return "hidden", site end
  return site, nil
end

local function check_site(o, l, site)
  local x, w = o.sites[l][site], weights_of(o, l, site)
  local axis, named = axis_of(site)
  local function ours(metric, agg) return o.stats:score { axis = axis, layer = l, site = named, metric = metric, agg = agg } end
  local what = site .. " of layer " .. l .. " "
  for batch in pairs(seq) do
    for inner in pairs(seq) do
      same(ours("activation", batch .. "," .. inner), each_channel(x, o.lengths, function(v) return aggregate(v, batch, inner) end), 1e-6,
        what .. batch .. "," .. inner)
    end
  end
  local function moment(f) return each_channel(x, o.lengths, function(v, c) return f(flat(v), c) end) end
  same(ours "wanda", moment(function(v, c) return seq.l2(v) / math.sqrt(o.tokens) * w.out(c, 1) end), 1e-6, what .. "wanda")
  same(ours "flap", moment(function(v, c) return seq.var(v) * w.out(c, 2) end), 1e-6, what .. "flap")
  same(ours "magnitude", moment(function(_, c) return math.sqrt(w.out(c, 2) + w.made(c, 2)) end), 1e-6, what .. "magnitude")
  if axis ~= "hidden" then
    same(ours "contribution", moment(function(v, c) return seq.mean(v) * math.sqrt(w.out(c, 2)) end), 1e-6, what .. "contribution")
  end
end

-- Sums of p = sum over units' channels of x g: signed, absolute, and of squares of rows' sums; by unit of `width` channels.
local function products(o, x, g, width)
  local out = { signed = {}, absolute = {}, fisher = {} }
  for u = 1, #x[1][1] / width do
    local signed, absolute, fisher = 0, 0, 0
    for b, n in ipairs(o.lengths) do
      local row = 0
      for p = 1, n do
        local one = 0
        for c = (u - 1) * width + 1, u * width do one = one + x[b][p][c] * g[b][p][c] end
        row, absolute = row + one, absolute + math.abs(one)
      end
      signed, fisher = signed + row, fisher + row ^ 2
    end
    out.signed[u], out.absolute[u], out.fisher[u] = signed / o.predictions, absolute / o.predictions, fisher / o.predictions
  end
  return out
end

local function check_taylor(o, l, site, axis, width, named)
  local want = products(o, o.sites[l][site], o.grads[l][site], width)
  local what = (axis or "") .. " at " .. site .. " of layer " .. l .. " "
  local function ours(metric) return o.stats:score { axis = axis, layer = l, site = named, metric = metric }:table() end
  local function mapped(f)
    local list = {}
    for i = 1, #want.signed do list[i] = f(i) end
    return list
  end
  local most = 0
  for _, v in ipairs(want.absolute) do most = math.max(most, v) end
  -- Signed sums cancel; they are held to the largest of the absolute ones.
  t.near(ours "taylor", mapped(function(i) return math.abs(want.signed[i]) end), 1e-6 * most, what .. "taylor")
  same(ours "taylor_abs", want.absolute, 1e-6, what .. "taylor_abs")
  same(ours "fisher", mapped(function(i) return want.fisher[i] / 2 end), 1e-6, what .. "fisher")
  local second = mapped(function(i) return math.abs(want.fisher[i] / 2 - want.signed[i]) end)
  for i, v in ipairs(want.fisher) do most = math.max(most, v / 2, want.absolute[i]) end
  t.near(ours "taylor_second", second, 1e-6 * most, what .. "second")
  compared = compared + 4 * #want.signed
end

local function grouped(list, width, f)
  local out = {}
  for g = 1, #list / width do
    local s = 0
    for i = (g - 1) * width + 1, g * width do s = s + f(list[i]) end
    out[g] = s
  end
  return out
end

local function check_heads(o, l)
  local s, x = o.shape, o.sites[l].attention
  local H, G, e = shapes.at(s, "heads", l), shapes.at(s, "kv_heads", l), s.head_dim
  local function ours(axis, metric, kind) return o.stats:score { axis = axis, layer = l, metric = metric, heads = kind } end
  local channels = each_channel(x, o.lengths, function(v) return aggregate(v, "l2", "mean") end)
  local heads = grouped(channels, e, function(v) return v * v end)
  for h = 1, H do heads[h] = math.sqrt(heads[h]) end
  same(ours("heads", "activation"), heads, 1e-6, "heads, channelwise")
  same(ours("kv_heads", "activation"), grouped(heads, H / G, function(v) return v end), 1e-6, "groups")
  local w = weights_of(o, l, "attention").readers[1]
  -- Length at each token of a unit's channels, or of what they add through o_proj.
  local function lengths(width, through)
    local y = {}
    for b, n in ipairs(o.lengths) do
      y[b] = {}
      for p = 1, n do
        y[b][p] = {}
        for u = 1, #x[1][1] / width do
          local sum = 0
          if through then
            for out = 1, #w do
              local one = 0
              for c = (u - 1) * width + 1, u * width do one = one + w[out][c] * x[b][p][c] end
              sum = sum + one * one
            end
          else
            for c = (u - 1) * width + 1, u * width do sum = sum + x[b][p][c] ^ 2 end
          end
          y[b][p][u] = math.sqrt(sum)
        end
      end
    end
    return y
  end
  same(ours("heads", "activation", "tokenwise"), each_channel(lengths(e), o.lengths, function(v) return aggregate(v, "l2", "mean") end), 1e-6,
    "heads, tokenwise")
  local function mean(v) return seq.mean(flat(v)) end
  same(ours("heads", "contribution"), each_channel(lengths(e, true), o.lengths, mean), 2e-6, "contribution of heads")
  same(ours("kv_heads", "contribution"), each_channel(lengths(e * H / G, true), o.lengths, mean), 2e-6, "contribution of groups")
  check_taylor(o, l, "attention", "heads", e)
  check_taylor(o, l, "attention", "kv_heads", e * H / G)
end

local function check_weight_form(o, l)
  local p, g = o.model:parameters(), o.weight_grads
  local function product(name)
    local w, d = p["model.layers." .. l .. "." .. name], g["model.layers." .. l .. "." .. name]
    if not w then return nil end
    w = w:table()
    for i in ipairs(w) do
      if type(w[i]) == "table" then for j in ipairs(w[i]) do w[i][j] = math.abs(w[i][j] * d[i][j]) end else w[i] = math.abs(w[i] * d[i]) end
    end
    return w
  end
  if shapes.at(o.shape, "ffn", l) == 0 then return end
  local down, want = product "mlp.down_proj.weight", {}
  for c = 1, #down[1] do want[c] = column(down, c, 1) end
  for _, name in ipairs { "gate", "up" } do
    local w, b = product("mlp." .. name .. "_proj.weight"), product("mlp." .. name .. "_proj.bias")
    for c = 1, w and #want or 0 do want[c] = want[c] + line(w, c, 1) + (b and b[c] or 0) end
  end
  for c = 1, #want do want[c] = want[c] / o.predictions end
  same(o.stats:score { axis = "ffn", layer = l, metric = "taylor_weight" }, want, 1e-6, "weight form")
end

-- The gradients themselves against those of the tape alone, without chunks and all rows at once. Both are sums in f32 of an order of their own, so
-- no closer: on models like these PyTorch's f32 backward is up to 3e-6 of the largest (Fisher's squares up to 7e-6) from its own in f64, where its
-- activations are within 4e-7.
local function check_gradients(o)
  local own, weights = gradients_of(o.model, 3, lose_by_tape)
  local function largest(x)
    if type(x) ~= "table" then return math.abs(x) end
    local most = 0
    for _, v in ipairs(x) do most = math.max(most, largest(v)) end
    return most
  end
  for l, sites in pairs(own) do
    for site, g in pairs(sites) do t.near(o.grads[l][site], g, 1e-5 * largest(g), "gradient at " .. site .. " of layer " .. l) end
  end
  for name, g in pairs(weights) do t.near(o.weight_grads[name], g, 1e-5 * largest(g), "gradient by " .. name) end
end

local function check_pairs(o)
  local s, want = o.shape, {}
  for l = 0, s.layers - 1 do
    local H, G = shapes.at(s, "heads", l), shapes.at(s, "kv_heads", l)
    local q, k = o.sites[l].q, o.sites[l].k
    local turning = s.head_dim * (s.rope.partial or 1)
    if shapes.at(s, "rotary", l) == false then q = nil end
    for i = 1, q and turning / 2 or 0 do
      local function size(x, head)
        local list = {}
        for b, n in ipairs(o.lengths) do
          list[b] = {}
          for p = 1, n do list[b][p] = math.sqrt(x[b][p][head][i] ^ 2 + x[b][p][head][i + turning / 2] ^ 2) end
        end
        return aggregate(list, "l2", "mean")
      end
      for h = 1, H do want[i] = (want[i] or 0) + size(q, h) * size(k, math.floor((h - 1) / (H / G)) + 1) end
    end
  end
  same(o.stats:score { axis = "head_dim" }, want, 2e-6, "pairs that turn together")
end

local function log_softmax(x)
  local most, sum = -math.huge, 0
  for _, v in ipairs(x) do most = math.max(most, v) end
  for _, v in ipairs(x) do sum = sum + math.exp(v - most) end
  local y = {}
  for i, v in ipairs(x) do y[i] = v - most - math.log(sum) end
  return y
end

local function angle(a, b)
  local dot, p, q = 0, 0, 0
  for i = 1, #a do dot, p, q = dot + a[i] * b[i], p + a[i] ^ 2, q + b[i] ^ 2 end
  local c = dot / math.sqrt(p * q)
  return c, math.acos(math.max(-1, math.min(1, c))) / math.pi
end

-- Mean 1 - cos, mean angle, mean angle at last tokens, between two streams.
local function between(o, a, b)
  local cos, all, last = 0, 0, 0
  for r, n in ipairs(o.lengths) do
    for p = 1, n do
      local c, x = angle(a[r][p], b[r][p])
      cos, all = cos + c / o.tokens, all + x / o.tokens
      if p == n then last = last + x / o.rows end
    end
  end
  return 1 - cos, all, last
end

local function check_angles(o)
  local L = o.shape.layers
  local function stream(i) return i < L and o.sites[i]["in"] or o.sites[L - 1].out end
  for n = 1, L do
    local bi, all, last = {}, {}, {}
    for i = 0, L - n do bi[i + 1], all[i + 1], last[i + 1] = between(o, stream(i), stream(i + n)) end
    local function ours(metric, at_last) return o.stats:score { axis = "layers", metric = metric, block = n, last = at_last } end
    same(ours "bi", bi, 1e-6, "bi")
    same(ours "angular", all, 1e-6, "angular")
    same(ours("angular", true), last, 1e-6, "angular, last token")
  end
  for part, places in pairs { attention = { "in", "mid" }, mlp = { "mid", "out" } } do
    local bi = {}
    for l = 0, L - 1 do bi[l + 1] = between(o, o.sites[l][places[1]], o.sites[l][places[2]]) end
    t.near(o.stats:score { axis = "layers", part = part }, bi, 1e-6, "bi of " .. part)
  end
end

-- What a skip table loses: nll, kl, mse_hidden, mse_logits, nmse_logits.
local function lost(o, skip)
  local function run(s)
    return esp.no_grad(function()
      local h = o.model:forward(o.ids, { skip = s })
      return h:table(), (o.model.project and o.model:project(h) or ops.linear(h, o.model:head())):table()
    end)
  end
  local hf, lf = run(nil)
  local h, lg = run(skip)
  local target, T = o.target:table(), #o.target:table()[1]
  local v = { nll = 0, kl = 0, mse_hidden = 0, mse_logits = 0, nmse_logits = 0 }
  local square, change = 0, 0
  for b, n in ipairs(o.lengths) do
    for p = 1, math.min(n, T) do
      local full, own = log_softmax(lf[b][p]), log_softmax(lg[b][p])
      if target[b][p] >= 0 then v.nll = v.nll - own[target[b][p] + 1] / o.predictions end
      for i = 1, #full do v.kl = v.kl + math.exp(full[i]) * (full[i] - own[i]) / o.tokens end
      for i = 1, #h[b][p] do v.mse_hidden = v.mse_hidden + (h[b][p][i] - hf[b][p][i]) ^ 2 / o.tokens / o.shape.hidden end
      for i = 1, #full do
        change, square = change + (lg[b][p][i] - lf[b][p][i]) ^ 2, square + lf[b][p][i] ^ 2
      end
    end
  end
  v.mse_logits, v.nmse_logits = change / o.tokens / o.shape.vocab, change / square
  return v
end

local function check_left_out(o)
  local L = o.shape.layers
  for _, kind in ipairs { { "layer", 1 }, { "layer", 2 }, { "attention", 1 }, { "mlp", 1 } } do
    local part, n = kind[1], kind[2]
    local want = {}
    for i = 0, L - n do
      local skip = {}
      for l = i, i + n - 1 do skip[l] = part == "layer" and true or part end
      for name, v in pairs(lost(o, skip)) do
        want[name] = want[name] or {}
        want[name][i + 1] = v
      end
    end
    for name, list in pairs(want) do
      local most = 1e-3
      for _, v in ipairs(list) do most = math.max(most, v) end
      t.near(o.stats:score { axis = "layers", metric = name, part = part, block = n }, list, 1e-5 * most, name .. " without " .. part .. " x" .. n)
    end
  end
end

for _, architecture in ipairs(architectures) do
  t.test("every metric against its formula: " .. architecture[1], function()
    local o = open(architecture[2])
    local s, hidden, all_hidden = o.shape, {}, true
    compared = 0
    t.equal({ o.stats:total "rows", o.stats:total "tokens", o.stats:total "predictions" }, { 3, 18, 15 })
    for l = 0, s.layers - 1 do
      local sites = {}
      if shapes.at(s, "heads", l) > 0 then sites[1], sites[2] = "norm1", "attention" end
      if shapes.at(s, "ffn", l) > 0 then sites[#sites + 1], sites[#sites + 2] = "norm2", "ffn" end
      for _, site in ipairs(sites) do
        check_site(o, l, site)
        local axis, named = axis_of(site)
        if o.grads[l][site] then check_taylor(o, l, site, axis, 1, named) else all_hidden = false end
        if named then
          for c, v in ipairs(each_channel(o.sites[l][site], o.lengths, function(x) return aggregate(x, "l2", "mean") end)) do
            hidden[c] = (hidden[c] or 0) + v
          end
        end
      end
      if shapes.at(s, "heads", l) > 0 then check_heads(o, l) end
      check_weight_form(o, l)
      if o.sites[l].pre then
        same(o.stats:score { axis = "ffn", layer = l, site = "pre", agg = "var,l2" },
          each_channel(o.sites[l].pre, o.lengths, function(v) return aggregate(v, "var", "l2") end), 1e-6, "before the activation")
      end
    end
    same(o.stats:score { axis = "hidden" }, hidden, 1e-6, "hidden")
    local final = each_channel(o.sites.outer.final, o.lengths, function(v) return aggregate(v, "l2", "mean") end)
    for c in ipairs(final) do final[c] = final[c] + hidden[c] end
    same(o.stats:score { axis = "hidden", norms = { "norm1", "norm2", "final" } }, final, 1e-6, "hidden with the last norm")
    check_gradients(o)
    check_pairs(o)
    check_angles(o)
    check_left_out(o)
    t.ok(all_hidden, "a site without a gradient")
    t.ok(compared > 1000, "only " .. compared .. " numbers compared")
  end)
end

t.test("the activation alone, and the gate's product", function()
  local o = open(base)
  local act = {}
  for b, row in ipairs(o.sites[1].pre) do
    act[b] = {}
    for p, channels in ipairs(row) do
      act[b][p] = {}
      for c, v in ipairs(channels) do act[b][p][c] = v / (1 + math.exp(-v)) end
    end
  end
  same(o.stats:score { axis = "ffn", layer = 1, site = "act" }, each_channel(act, o.lengths, function(v) return aggregate(v, "l2", "mean") end), 1e-6,
    "after the activation")
end)
