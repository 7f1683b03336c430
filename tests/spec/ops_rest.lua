--- The operations without a row on the tape: copies, random numbers, sums that statistics and the optimiser are made of. At the end: was every
-- operation of the core tested?
local t = ...

local tensor = require "espalier.tensor"
local core = require "espalier.ffi"
local rows = require "oprows"

local c = core.ops

-- A test that covers the operations named.
local function covers(names, what, fn)
  for _, name in ipairs(names) do rows.covered[name] = true end
  t.test(what, fn)
end

local shapes = { { 1, 1 }, { 3, 5 }, { 2, 1024 }, { 2, 1025 } }

local function random(shape, seed)
  return tensor.normal(shape, { seed = seed })
end

covers({ "copy", "fill" }, "copy converts and follows strides; fill", function()
  for _, shape in ipairs(shapes) do
    local x = random(shape, 1)
    local turned = x:transpose(0, 1)
    local y = tensor.new(turned.shape):copy_from(turned)
    local flat, want = rows.flat(y), {}
    local all = rows.flat(x)
    for i = 1, shape[2] do for j = 1, shape[1] do want[#want + 1] = all[(j - 1) * shape[2] + i] end end
    t.equal(flat, want)
    local back = x:to("bf16"):to "f32"
    for i, v in ipairs(rows.flat(back)) do t.ok(math.abs(v - all[i]) <= math.abs(all[i]) * 2 ^ -8, "bf16 rounds to 8 bits") end
    t.equal(x:to("f16"):to("f32"):to("f16"):to "f32", x:to("f16"):to "f32")
    t.near(x:clone():fill(2.5):sum(), 2.5 * x:count(), 1e-3)
  end
  -- Halves go to the even neighbour: 1 + 2^-8 down, 1 + 3 * 2^-8 up.
  t.equal(tensor.of({ 1 + 2 ^ -8, 1 + 3 * 2 ^ -8 }):to("bf16"):to "f32", { 1, 1 + 2 ^ -6 })
end)

covers({ "uniform", "normal" }, "random numbers depend on seed and stream alone", function()
  local a = tensor.uniform({ 4, 4096 }, { seed = 7, stream = 3 })
  t.equal(a:narrow(0, 0, 1), tensor.uniform({ 1, 4096 }, { seed = 7, stream = 3 }), "a shorter draw is the beginning of a longer one")
  t.ok(rows.flat(a)[1] ~= rows.flat(tensor.uniform({ 1 }, { seed = 7, stream = 4 }))[1], "another stream")
  t.ok(rows.flat(a)[1] ~= rows.flat(tensor.uniform({ 1 }, { seed = 8, stream = 3 }))[1], "another seed")
  local sum = 0
  for _, v in ipairs(rows.flat(a)) do
    t.ok(v >= 0 and v < 1, "in [0, 1)")
    sum = sum + v
  end
  t.near(sum / a:count(), 0.5, 0.01)
  local n, mean, square = tensor.normal({ 32768 }, { seed = 9 }), 0, 0
  for _, v in ipairs(rows.flat(n)) do mean, square = mean + v / 32768, square + v * v / 32768 end
  t.near(mean, 0, 0.02)
  t.near(square, 1, 0.03)
end)

covers({ "argsort" }, "argsort is stable and puts NaN last", function()
  t.equal(tensor.of({ 3, 1, 2, 1 }):argsort(), { 1, 3, 2, 0 })
  t.equal(tensor.of({ 3, 1, 0 / 0, 3 }):argsort { descending = true }, { 0, 3, 1, 2 })
  t.equal(tensor.of({ 0 / 0, 5, 4 }):argsort(), { 2, 1, 0 })
end)

covers({ "total_acc", "sumsq_acc", "clip_factor" }, "the norm of gradients and the factor that clips it", function()
  for _, shape in ipairs(shapes) do
    local x = random(shape, 2)
    local sum, squares = 1, 0
    for _, v in ipairs(rows.flat(x)) do sum, squares = sum + v, squares + v * v end
    local total, square, factor = tensor.full({}, 1, "f64"), tensor.zeros({}, "f64"), tensor.zeros({}, "f64")
    c.total_acc(total.c, x.c)
    c.sumsq_acc(square.c, x.c)
    t.near(total:item(), sum, 1e-9 * x:count())
    t.near(square:item(), squares, 1e-9 * squares)
    for _, most in ipairs { 0.5, 1e6, 0 } do
      c.clip_factor(factor.c, square.c, most)
      t.near(factor:item(), most == 0 and 1 or math.min(1, most / (math.sqrt(squares) + 1e-6)), 1e-12)
    end
  end
end)

covers({ "scaled_acc" }, "scaled_acc adds", function()
  local y, x = random({ 3, 5 }, 3), random({ 3, 5 }, 4)
  local want = {}
  for i, v in ipairs(rows.flat(y)) do want[i] = v - 2 * rows.flat(x)[i] end
  c.scaled_acc(y.c, x.c, -2)
  rows.compare(rows.flat(y), want, 1e-6, "scaled_acc")
end)

covers({ "softmax" }, "softmax sums to one and bears large logits", function()
  for _, shape in ipairs(shapes) do
    local x, y = random(shape, 5) * 200, tensor.new(shape)
    c.softmax(y.c, x.c)
    local flat, C = rows.flat(y), shape[2]
    for r = 0, shape[1] - 1 do
      local sum = 0
      for i = 1, C do sum = sum + flat[r * C + i] end
      t.near(sum, 1, 1e-5)
    end
    rows.compare(flat, rows.flat(x:softmax()), 2e-5, "softmax")
  end
end)

covers({ "adamw" }, "AdamW: three steps of the formula in doubles", function()
  for _, n in ipairs { 1, 15, 1024, 1025 } do
    local p, g = random({ n }, 6), random({ n }, 7)
    local m, v = tensor.zeros { n }, tensor.zeros { n }
    local pf, gf, mf, vf = rows.flat(p), rows.flat(g), {}, {}
    for i = 1, n do mf[i], vf[i] = 0, 0 end
    local function scalar(x) return tensor.full({}, x, "f64") end
    for step = 1, 3 do
      local lr, factor = 0.01 * step, 0.5
      c.adamw(p.c, m.c, v.c, g.c, scalar(lr).c, scalar(step).c, scalar(factor).c, 0.9, 0.95, 1e-3, 0.1)
      for i = 1, n do
        local gi = gf[i] * factor
        mf[i], vf[i] = 0.9 * mf[i] + 0.1 * gi, 0.95 * vf[i] + 0.05 * gi * gi
        pf[i] = pf[i] * (1 - lr * 0.1) - lr * (mf[i] / (1 - 0.9 ^ step)) / (math.sqrt(vf[i] / (1 - 0.95 ^ step)) + 1e-3)
      end
    end
    rows.compare(rows.flat(p), pf, 1e-6, "p")
    rows.compare(rows.flat(m), mf, 1e-6, "m")
    rows.compare(rows.flat(v), vf, 1e-6, "v")
  end
end)

covers({ "channel_stats_acc" }, "the seven sums of a channel", function()
  for _, size in ipairs { { 1, 1, 1 }, { 2, 3, 5 }, { 3, 17, 1025 } } do
    local B, T, C = unpack(size)
    local x, stats = random(size, 8), tensor.full({ 7, C }, 1, "f64")
    c.channel_stats_acc(stats.c, x.c)
    c.channel_stats_acc(stats.c, x.c)
    local flat, want = rows.flat(x), {}
    for i = 1, 7 * C do want[i] = 1 end
    for b = 0, B - 1 do
      for ch = 1, C do
        local mean_abs, square, sum = 0, 0, 0
        for p = 0, T - 1 do
          local v = flat[(b * T + p) * C + ch]
          mean_abs, square, sum = mean_abs + math.abs(v) / T, square + v * v, sum + v
        end
        local variance = square / T - (sum / T) ^ 2
        for k, add in ipairs { mean_abs, mean_abs ^ 2, math.sqrt(square), square, variance, variance ^ 2, sum } do
          want[(k - 1) * C + ch] = want[(k - 1) * C + ch] + 2 * add
        end
      end
    end
    rows.compare(rows.flat(stats), want, 1e-6, "stats")
  end
end)

covers({ "cosine_acc" }, "the sum of cosines; a row of zeros has none", function()
  for _, shape in ipairs(shapes) do
    local a, b, total = random(shape, 9), random(shape, 10), tensor.full({}, 1, "f64")
    a:narrow(0, 0, 1):fill(0)
    c.cosine_acc(total.c, a.c, b.c)
    local x, y, C, want = rows.flat(a), rows.flat(b), shape[2], 1
    for r = 1, shape[1] - 1 do
      local dot, p, q = 0, 0, 0
      for i = r * C + 1, (r + 1) * C do dot, p, q = dot + x[i] * y[i], p + x[i] ^ 2, q + y[i] ^ 2 end
      want = want + dot / math.sqrt(p * q)
    end
    t.near(total:item(), want, 1e-6)
  end
end)

-- Run after ops.lua and ops_layers.lua, by the order of their names; alone it can say nothing of theirs.
if rows.covered.rmsnorm and rows.covered.exp then
  t.test("every operation of the core has a row", function()
    local missing = {}
    for name in core.string(core.C.esp_op_names()):gmatch "[^\n]+" do
      if not rows.covered[name] then missing[#missing + 1] = name end
    end
    t.equal(missing, {})
  end)
end
