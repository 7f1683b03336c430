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

covers({ "take" }, "take gathers rows and columns and converts", function()
  for _, shape in ipairs { { 1, 1 }, { 3, 5 }, { 2, 1024 }, { 3, 2049 } } do
    local x, lines, columns = random(shape, 5), { shape[1] - 1, 0 }, { shape[2] - 1, 0, math.floor(shape[2] / 2) }
    local function index(list) return tensor.of(list, { dtype = "i32" }) end
    for _, dtype in ipairs { "f32", "bf16", "f16", "f64" } do
      local from = x:to(dtype)
      local y = tensor.new({ 2, 3 }, "f32")
      c.take(y.c, from.c, index(lines).c, index(columns).c)
      t.equal(y, from:to("f32"):index_select(0, lines):index_select(1, columns), dtype)
      local all, turned = tensor.new(shape, "bf16"), tensor.new({ shape[2], 1 }, dtype)
      c.take(all.c, from.c, nil, nil)
      t.equal(all, from:to("f32"):to "bf16", dtype .. " to bf16")
      c.take(turned.c, from:transpose(0, 1).c, nil, index({ shape[1] - 1 }).c)
      t.equal(turned:to "f32", from:to("f32"):select(0, shape[1] - 1):view(-1, 1), dtype .. " of a transposed view")
    end
  end
  local y, x = tensor.new { 2 }, tensor.of { 1, 2, 3 }
  c.take(y.c, x.c, nil, tensor.of({ 2, 0 }, { dtype = "i32" }).c)
  t.equal(y, { 3, 1 })
  t.fails("take: index 3 at place 1 of 'columns', want 0 to 2", c.take, y.c, x.c, nil, tensor.of({ 2, 3 }, { dtype = "i32" }).c)
  t.fails("without 'rows'", c.take, y.c, x.c, tensor.of({ 2, 0 }, { dtype = "i32" }).c, nil)
  t.fails("take: 'y' is [2], want [3]", c.take, y.c, x.c, nil, nil)
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

-- Rows that count to `lengths`, from row number 1 on: row b of x is in half (1 + b) % 2.
local function lengths_of(B, T)
  local list = {}
  for b = 1, B do list[b] = math.max(0, T - (b - 1) * 2) end
  return list
end

covers({ "channel_stats_acc" }, "the eight sums of a channel, by half", function()
  for _, size in ipairs { { 1, 1, 1 }, { 2, 3, 5 }, { 3, 17, 1025 }, { 4, 5, 64 } } do
    local B, T, C = unpack(size)
    for _, lengths in ipairs { false, lengths_of(B, T) } do
      local x, stats, want = random(size, 8), tensor.full({ 2, 8, C }, 1, "f64"), {}
      local given = lengths and tensor.of(lengths, { dtype = "i32" })
      for _ = 1, 2 do c.channel_stats_acc(stats.c, x.c, given and given.c or nil, 1) end
      local flat = rows.flat(x)
      for i = 1, 16 * C do want[i] = 1 end
      for b = 0, B - 1 do
        local n = lengths and lengths[b + 1] or T
        for ch = 1, n > 0 and C or 0 do
          local sum_abs, square, sum = 0, 0, 0
          for p = 0, n - 1 do
            local v = flat[(b * T + p) * C + ch]
            sum_abs, square, sum = sum_abs + math.abs(v), square + v * v, sum + v
          end
          local mean, variance = sum_abs / n, square / n - (sum / n) ^ 2
          for k, add in ipairs { mean, mean ^ 2, math.sqrt(square), square, variance, variance ^ 2, sum, sum_abs } do
            local at = ((b + 1) % 2 * 8 + k - 1) * C + ch
            want[at] = want[at] + 2 * add
          end
        end
      end
      rows.compare(rows.flat(stats), want, 1e-6, "stats")
    end
  end
  local x, stats = random({ 2, 3, 5 }, 1), tensor.zeros({ 2, 8, 5 }, "f64")
  t.fails("'stats' is [8, 5], want [2, 8, 5]", c.channel_stats_acc, tensor.zeros({ 8, 5 }, "f64").c, x.c, nil, 0)
  t.fails("want [batch, positions, channels]", c.channel_stats_acc, stats.c, random({ 3, 5 }, 1).c, nil, 0)
  t.fails("'lengths' has 4 for row 1, want 0 to 3", c.channel_stats_acc, stats.c, x.c, tensor.of({ 3, 4 }, { dtype = "i32" }).c, 0)
end)

covers({ "taylor_stats_acc" }, "the four sums of activations times gradients, by half", function()
  for _, size in ipairs { { 1, 1, 1, 1 }, { 2, 3, 6, 1 }, { 3, 5, 6, 3 }, { 3, 7, 1030, 1 }, { 2, 3, 260, 2 } } do
    local B, T, C, width = unpack(size)
    local n = C / width
    local x, g, stats, want = random({ B, T, C }, 8), random({ B, T, C }, 9), tensor.full({ 2, 4, n }, 1, "f64"), {}
    c.taylor_stats_acc(stats.c, x.c, g.c, width, 1)
    local u, v = rows.flat(x), rows.flat(g)
    for i = 1, 8 * n do want[i] = 1 end
    for b = 0, B - 1 do
      for group = 0, n - 1 do
        local plain, absolute, square = 0, 0, 0
        for p = 0, T - 1 do
          local product = 0
          for ch = group * width + 1, (group + 1) * width do
            local at = (b * T + p) * C + ch
            product, square = product + u[at] * v[at], square + v[at] ^ 2
          end
          plain, absolute = plain + product, absolute + math.abs(product)
        end
        for k, add in ipairs { plain, absolute, plain ^ 2, square } do
          local at = ((b + 1) % 2 * 4 + k - 1) * n + group + 1
          want[at] = want[at] + add
        end
      end
    end
    rows.compare(rows.flat(stats), want, 1e-6, "stats")
  end
  t.fails("width 4 does not divide the 6 channels", c.taylor_stats_acc, tensor.zeros({ 2, 4, 2 }, "f64").c, random({ 1, 1, 6 }, 1).c,
    random({ 1, 1, 6 }, 1).c, 4, 0)
end)

covers({ "contribution_acc" }, "lengths of errors with one more channel", function()
  for _, size in ipairs { { 1, 1, 1 }, { 2, 3, 6 }, { 3, 5, 65 }, { 2, 3, 260 } } do
    local B, T, C = unpack(size)
    for _, lengths in ipairs { false, lengths_of(B, T) } do
      -- Columns and a residual in three dimensions, so that lengths are known without the formula.
      local D, a, w, r = 3, random(size, 11), random({ 3, C }, 12), random({ B, T, 3 }, 13)
      local rw, rn, wn, want = tensor.new(size), tensor.new { B, T }, tensor.new { C }, {}
      c.linear_dx(rw.c, r.c, w.c)
      c.norm(rn.c, r.c, 2)
      c.norm(wn.c, w:transpose(0, 1):contiguous().c, 1)
      local sums, given = tensor.full({ C }, 1, "f64"), lengths and tensor.of(lengths, { dtype = "i32" })
      c.contribution_acc(sums.c, a.c, rw.c, rn.c, wn.c, given and given.c or nil)
      local u, v, e = rows.flat(a), rows.flat(w), rows.flat(r)
      for ch = 1, C do
        want[ch] = 1
        for b = 0, B - 1 do
          for p = 0, (lengths and lengths[b + 1] or T) - 1 do
            local square = 0
            for d = 0, D - 1 do square = square + (e[(b * T + p) * D + d + 1] + u[(b * T + p) * C + ch] * v[d * C + ch]) ^ 2 end
            want[ch] = want[ch] + math.sqrt(square)
          end
        end
      end
      rows.compare(rows.flat(sums), want, 1e-5, "sums")
    end
  end
  local x, one = random({ 1, 2, 3 }, 1), tensor.full({ 3 }, 1)
  t.fails("'r' is [1, 3], want [1, 2]", c.contribution_acc, tensor.zeros({ 3 }, "f64").c, x.c, x.c, tensor.zeros({ 1, 3 }).c, one.c, nil)
  t.fails("'w' is [2], want [3]", c.contribution_acc, tensor.zeros({ 3 }, "f64").c, x.c, x.c, tensor.zeros({ 1, 2 }).c, tensor.zeros({ 2 }).c, nil)
  local nan = tensor.zeros({ 3 }, "f64")
  c.contribution_acc(nan.c, tensor.full({ 1, 2, 3 }, 0 / 0).c, x.c, tensor.zeros({ 1, 2 }).c, one.c, nil)
  t.ok(nan:table()[1] ~= nan:table()[1], "NaN stays")
end)

covers({ "angle_stats_acc" }, "cosines and angles by half; a vector of zeros has cosine 0", function()
  for _, size in ipairs { { 1, 1, 1 }, { 2, 3, 5 }, { 3, 65, 17 }, { 2, 130, 16 } } do
    local B, T, C = unpack(size)
    for _, lengths in ipairs { false, lengths_of(B, T) } do
      local a, b, stats, want = random(size, 9), random(size, 10), tensor.full({ 2, 3 }, 1, "f64"), { 1, 1, 1, 1, 1, 1 }
      local given = lengths and tensor.of(lengths, { dtype = "i32" })
      a:select(1, 0):fill(0)
      c.angle_stats_acc(stats.c, a.c, b.c, given and given.c or nil, 1)
      local x, y = rows.flat(a), rows.flat(b)
      for r = 0, B - 1 do
        local n, at = lengths and lengths[r + 1] or T, (r + 1) % 2 * 3
        for p = 0, n - 1 do
          local dot, u, v = 0, 0, 0
          for i = (r * T + p) * C + 1, (r * T + p + 1) * C do dot, u, v = dot + x[i] * y[i], u + x[i] ^ 2, v + y[i] ^ 2 end
          local cos = p == 0 and 0 or dot / math.sqrt(u * v)
          local angle = math.acos(math.max(-1, math.min(1, cos))) / math.pi
          want[at + 1], want[at + 2] = want[at + 1] + cos, want[at + 2] + angle
          if p == n - 1 then want[at + 3] = want[at + 3] + angle end
        end
      end
      rows.compare(rows.flat(stats), want, 1e-6, "stats")
    end
  end
  local x, wide = random({ 1, 2, 3 }, 1), tensor.zeros({ 2, 4, 3 }, "f64")
  local stats = wide:select(1, 2)
  c.angle_stats_acc(stats.c, x.c, x.c, nil, 0)
  t.near(stats:table(), { { 2, 0, 0 }, { 0, 0, 0 } }, 1e-7, "the same vectors")
  t.near(wide:sum(0):sum(0), { 2, 0, 0 }, 1e-7, "and nowhere else")
  x:fill(0 / 0)
  c.angle_stats_acc(stats.c, x.c, x.c, nil, 0)
  t.ok(stats:table()[1][1] ~= stats:table()[1][1], "NaN stays")
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
