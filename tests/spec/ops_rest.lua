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

local function i32(list) return list and tensor.of(list, { dtype = "i32" }) end

-- What [2,8,n] statistics of ones become when those of values(b, p, u) of row b, position p, unit u (from 0) are added.
local function eight(B, T, n, lengths, values)
  local want = {}
  for i = 1, 16 * n do want[i] = 1 end
  for b = 0, B - 1 do
    local count = lengths and lengths[b + 1] or T
    for u = 0, count > 0 and n - 1 or -1 do
      local sum_abs, square, sum = 0, 0, 0
      for p = 0, count - 1 do
        local v = values(b, p, u)
        sum_abs, square, sum = sum_abs + math.abs(v), square + v * v, sum + v
      end
      local mean, variance = sum_abs / count, square / count - (sum / count) ^ 2
      for k, add in ipairs { mean, mean ^ 2, math.sqrt(square), square, variance, variance ^ 2, sum, sum_abs } do
        local at = ((b + 1) % 2 * 8 + k - 1) * n + u + 1
        want[at] = want[at] + add
      end
    end
  end
  return want
end

-- Calls op(stats, x, lengths) for x of each dtype, whole and with lengths, and compares with eight() of value(list of x's numbers, index of row and
-- position, unit). shape: [B,T,..]; n: units.
local function check_eight(shape, n, op, value)
  local B, T = shape[1], shape[2]
  for _, dtype in ipairs { "f32", "bf16" } do
    local x = random(shape, 8):to(dtype)
    local flat = rows.flat(x:to "f32")
    for _, lengths in ipairs { false, lengths_of(B, T) } do
      local stats = tensor.full({ 2, 8, n }, 1, "f64")
      op(stats, x, lengths and i32(lengths).c or nil)
      rows.compare(rows.flat(stats), eight(B, T, n, lengths, function(b, p, u) return value(flat, b * T + p, u) end), 1e-6,
        dtype .. " [" .. table.concat(shape, ",") .. "]")
    end
  end
end

covers({ "channel_stats_acc" }, "the eight sums of a channel, by half", function()
  for _, shape in ipairs { { 1, 1, 1 }, { 2, 3, 5 }, { 3, 17, 1025 }, { 4, 5, 64 }, { 1, 300, 45 }, { 2, 515, 3 } } do
    local C = shape[3]
    check_eight(shape, C, function(stats, x, lengths) c.channel_stats_acc(stats.c, x.c, lengths, 1) end,
      function(flat, at, u) return flat[at * C + u + 1] end)
  end
  local x, stats = random({ 2, 3, 5 }, 1), tensor.zeros({ 2, 8, 5 }, "f64")
  t.fails("'stats' is [8, 5], want [2, 8, 5]", c.channel_stats_acc, tensor.zeros({ 8, 5 }, "f64").c, x.c, nil, 0)
  t.fails("want [batch, positions, channels]", c.channel_stats_acc, stats.c, random({ 3, 5 }, 1).c, nil, 0)
  t.fails("'x' is f16, want f32 or bf16", c.channel_stats_acc, stats.c, x:to("f16").c, nil, 0)
  t.fails("'lengths' has 4 for row 1, want 0 to 3", c.channel_stats_acc, stats.c, x.c, i32({ 3, 4 }).c, 0)
  t.fails("has no positions", c.channel_stats_acc, stats.c, tensor.zeros({ 2, 0, 5 }).c, nil, 0)
  local view = random({ 2, 3, 9 }, 2):narrow(2, 2, 5)
  local dense = tensor.zeros({ 2, 8, 5 }, "f64")
  c.channel_stats_acc(stats.c, view.c, nil, 0)
  c.channel_stats_acc(dense.c, view:contiguous().c, nil, 0)
  t.equal(stats, dense, "a strided view")
  x:fill(0 / 0)
  c.channel_stats_acc(stats.c, x.c, nil, 0)
  for _, v in ipairs(rows.flat(stats)) do t.ok(v ~= v, "NaN stays") end
end)

covers({ "activation_stats_acc" }, "the eight sums behind an activation", function()
  local f = { [core.C.ESP_SILU] = function(x) return x / (1 + math.exp(-x)) end,
    [core.C.ESP_GELU_TANH] = function(x)
      local u = math.sqrt(2 / math.pi) * (x + 0.044715 * x ^ 3)
      return x / (1 + math.exp(-2 * u))
    end, [core.C.ESP_RELU2] = function(x) return math.max(x, 0) ^ 2 end }
  for kind, fn in pairs(f) do
    for _, shape in ipairs { { 1, 1, 1 }, { 3, 17, 41 }, { 2, 70, 130 } } do
      local C = shape[3]
      check_eight(shape, C, function(stats, x, lengths) c.activation_stats_acc(stats.c, x.c, kind, lengths, 1) end,
        function(flat, at, u) return fn(flat[at * C + u + 1]) end)
    end
  end
  local x, stats = random({ 2, 3, 5 }, 1), tensor.zeros({ 2, 8, 5 }, "f64")
  t.fails("activation_stats_acc: kind is 7, want one of esp_activation", c.activation_stats_acc, stats.c, x.c, 7, nil, 0)
end)

-- Length of w's columns at + 1 .. at + width times the numbers of flat from `from` on; w (rows of a table) nil: of those numbers.
local function length(flat, from, width, w, at)
  local sum = 0
  for o = 1, w and #w or width do
    local v = w and 0 or flat[from + o]
    for i = 1, w and width or 0 do v = v + w[o][at + i] * flat[from + i] end
    sum = sum + v * v
  end
  return math.sqrt(sum)
end

covers({ "unit_stats_acc", "gram_root" }, "the eight sums of units' lengths, and of what they add through a weight", function()
  for _, size in ipairs { { 1, 1, 1, 1, 3 }, { 3, 5, 6, 3, 2 }, { 2, 150, 96, 48, 70 }, { 2, 270, 10, 5, 64 }, { 1, 3, 264, 132, 150 } } do
    local B, T, C, width, O = unpack(size)
    local n = C / width
    check_eight({ B, T, C }, n, function(stats, x, lengths) c.unit_stats_acc(stats.c, x.c, nil, width, lengths, 1) end,
      function(flat, at, u) return length(flat, at * C + u * width, width) end)
    for _, dtype in ipairs { "f32", "bf16" } do
      local w, root = random({ O, C }, 5):to(dtype), tensor.new { n, width, width }
      c.gram_root(root.c, w.c, width)
      local list = w:to("f32"):table()
      check_eight({ B, T, C }, n, function(stats, x, lengths) c.unit_stats_acc(stats.c, x.c, root.c, width, lengths, 1) end,
        function(flat, at, u) return length(flat, at * C + u * width, width, list, u * width) end)
    end
  end
  local x, stats, root = random({ 1, 2, 6 }, 1), tensor.zeros({ 2, 8, 2 }, "f64"), tensor.zeros { 2, 3, 3 }
  t.fails("width 4 does not divide the 6 channels", c.unit_stats_acc, stats.c, x.c, nil, 4, nil, 0)
  t.fails("'root' is [2, 3, 3], want [3, 2, 2]", c.unit_stats_acc, tensor.zeros({ 2, 8, 3 }, "f64").c, x.c, root.c, 2, nil, 0)
  t.fails("width 4 does not divide the 6 columns of 'w'", c.gram_root, root.c, random({ 5, 6 }, 1).c, 4)
  t.fails("'root' is [2, 3, 3], want [3, 2, 2]", c.gram_root, root.c, random({ 5, 6 }, 1).c, 2)
end)

t.test("gram_root: R R' = W'W, also where columns depend on each other, of views, and with NaN", function()
  -- Columns 2 and 3 are made of 0 and 1, column 4 is zero; more columns than rows make the last ones depend too.
  local w = random({ 4, 12 }, 3)
  local p = w:data()
  for o = 0, 3 do p[o * 12 + 2], p[o * 12 + 3], p[o * 12 + 4] = p[o * 12] * 2, p[o * 12] - 3 * p[o * 12 + 1], 0 end
  for _, width in ipairs { 1, 3, 6 } do
    local root = tensor.new { 12 / width, width, width }
    c.gram_root(root.c, w.c, width)
    local r, full, got, want = root:table(), w:table(), {}, {}
    for u = 0, 12 / width - 1 do
      for i = 1, width do
        for j = 1, width do
          local a, b = 0, 0
          for k = 1, width do a = a + r[u + 1][i][k] * r[u + 1][j][k] end
          for o = 1, 4 do b = b + full[o][u * width + i] * full[o][u * width + j] end
          got[#got + 1], want[#want + 1] = a, b
          t.ok(j <= i or r[u + 1][i][j] == 0, "lower triangular")
        end
      end
    end
    rows.compare(got, want, 1e-6, "width " .. width)
  end
  local half, whole = tensor.new { 2, 3, 3 }, tensor.new { 2, 3, 3 }
  c.gram_root(half.c, w:narrow(1, 3, 6).c, 3)
  c.gram_root(whole.c, w:narrow(1, 3, 6):contiguous().c, 3)
  t.equal(half, whole, "a strided view")
  p[3] = 0 / 0
  c.gram_root(half.c, w:narrow(1, 3, 6).c, 3)
  local r = half:table()
  t.ok(r[1][1][1] ~= r[1][1][1] and r[2][1][1] == r[2][1][1], "NaN stays in its unit")
end)

covers({ "pair_stats_acc" }, "the eight sums of the lengths of pairs that turn together", function()
  for _, size in ipairs { { 1, 1, 1, 2, 2 }, { 2, 3, 5, 6, 4 }, { 3, 70, 3, 48, 48 }, { 1, 300, 2, 20, 12 } } do
    local B, T, H, D, turning = unpack(size)
    local half = turning / 2
    check_eight({ B, T, H, D }, H * half, function(stats, x, lengths) c.pair_stats_acc(stats.c, x.c, turning, lengths, 1) end,
      function(flat, at, u)
        local from = (at * H + math.floor(u / half)) * D + u % half + 1
        return math.sqrt(flat[from] ^ 2 + flat[from + half] ^ 2)
      end)
  end
  local x, stats = random({ 1, 2, 3, 6 }, 1), tensor.zeros({ 2, 8, 9 }, "f64")
  t.fails("turning is 8, want an even number from 2 to the 6 channels", c.pair_stats_acc, stats.c, x.c, 8, nil, 0)
  t.fails("turning is 3", c.pair_stats_acc, stats.c, x.c, 3, nil, 0)
  t.fails("want [batch, positions, heads, channels]", c.pair_stats_acc, stats.c, random({ 2, 3, 6 }, 1).c, 6, nil, 0)
end)

covers({ "taylor_stats_acc" }, "the four sums of activations times gradients, by half", function()
  local sizes = { { 1, 1, 1, 1 }, { 2, 3, 6, 1 }, { 3, 5, 6, 3 }, { 3, 7, 1030, 1 }, { 2, 3, 260, 2 }, { 1, 300, 45, 1 }, { 2, 270, 38, 19 } }
  for _, size in ipairs(sizes) do
    local B, T, C, width = unpack(size)
    local n = C / width
    for _, dtypes in ipairs { { "f32", "f32" }, { "bf16", "f32" }, { "f32", "bf16" }, { "bf16", "bf16" } } do
      local x, g, want = random({ B, T, C }, 8):to(dtypes[1]), random({ B, T, C }, 9):to(dtypes[2]), {}
      local stats = tensor.full({ 2, 4, n }, 1, "f64")
      c.taylor_stats_acc(stats.c, x.c, g.c, width, 1)
      local u, v = rows.flat(x:to "f32"), rows.flat(g:to "f32")
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
      c.linear_dx(rw.c, r.c, w.c, nil, 0)
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

-- Adds the cosine, the angle and, at a row's last token, the angle again of vectors x and y of C numbers to want[at + 1 .. at + 3].
local function add_angle(want, at, x, from_x, y, from_y, C, last)
  local dot, u, v = 0, 0, 0
  for i = 1, C do
    local a, b = x[from_x + i], y[from_y + i]
    dot, u, v = dot + a * b, u + a ^ 2, v + b ^ 2
  end
  local cos = u * v == 0 and 0 or dot / math.sqrt(u * v)
  local angle = math.acos(math.max(-1, math.min(1, cos))) / math.pi
  want[at + 1], want[at + 2] = want[at + 1] + cos, want[at + 2] + angle
  if last then want[at + 3] = want[at + 3] + angle end
end

covers({ "angle_stats_acc" }, "cosines and angles by half; a vector of zeros has cosine 0", function()
  for _, size in ipairs { { 1, 1, 1 }, { 2, 3, 5 }, { 3, 65, 17 }, { 2, 130, 16 } } do
    local B, T, C = unpack(size)
    for _, dtype in ipairs { "f32", "bf16" } do
      for _, lengths in ipairs { false, lengths_of(B, T) } do
        local a, b, stats, want = random(size, 9), random(size, 10), tensor.full({ 2, 3 }, 1, "f64"), { 1, 1, 1, 1, 1, 1 }
        a:select(1, 0):fill(0)
        a = a:to(dtype)
        c.angle_stats_acc(stats.c, a.c, b.c, lengths and i32(lengths).c or nil, 1)
        local x, y = rows.flat(a:to "f32"), rows.flat(b)
        for r = 0, B - 1 do
          local n = lengths and lengths[r + 1] or T
          for p = 0, n - 1 do add_angle(want, (r + 1) % 2 * 3, x, (r * T + p) * C, y, (r * T + p) * C, C, p == n - 1) end
        end
        rows.compare(rows.flat(stats), want, 1e-6, "stats")
      end
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

covers({ "stream_stats_acc" }, "angles of all pairs of streams", function()
  for _, size in ipairs { { 2, 1, 1, 1 }, { 3, 2, 3, 5 }, { 5, 3, 37, 16 }, { 9, 2, 33, 19 } } do
    local S, B, T, C = unpack(size)
    local L = S - 1
    for _, dtype in ipairs { "f32", "bf16" } do
      for _, lengths in ipairs { false, lengths_of(B, T) } do
        local x, stats, want = random(size, 9), tensor.full({ 2, L, L, 3 }, 1, "f64"), {}
        x:select(0, 1):select(1, 0):fill(0)
        x = x:to(dtype)
        for i = 1, 2 * L * L * 3 do want[i] = 1 end
        c.stream_stats_acc(stats.c, x.c, lengths and i32(lengths).c or nil, 1)
        local flat = rows.flat(x:to "f32")
        for i = 0, L - 1 do
          for j = i + 1, L do
            for r = 0, B - 1 do
              local n = lengths and lengths[r + 1] or T
              for p = 0, n - 1 do
                local function from(s) return ((s * B + r) * T + p) * C end
                add_angle(want, (((r + 1) % 2 * L + i) * L + j - 1) * 3, flat, from(i), flat, from(j), C, p == n - 1)
              end
            end
          end
        end
        rows.compare(rows.flat(stats), want, 1e-6, "stats")
      end
    end
  end
  local x, stats = random({ 3, 2, 3, 5 }, 1), tensor.zeros({ 2, 2, 2, 3 }, "f64")
  t.fails("'stats' is [2, 2, 2, 3], want [2, 1, 1, 3]", c.stream_stats_acc, stats.c, x:narrow(0, 0, 2).c, nil, 0)
  t.fails("want [two or more streams, batch, positions, channels]", c.stream_stats_acc, stats.c, x:narrow(0, 0, 1).c, nil, 0)
  t.fails("'lengths' has 4 for row 1, want 0 to 3", c.stream_stats_acc, stats.c, x.c, i32({ 3, 4 }).c, 0)
  x:select(0, 2):fill(0 / 0)
  c.stream_stats_acc(stats.c, x.c, nil, 0)
  local got = stats:table()[1]
  t.ok(got[1][1][1] == got[1][1][1] and got[1][2][1] ~= got[1][2][1] and got[2][2][2] ~= got[2][2][2], "NaN stays in its pairs")
end)

covers({ "weight_sums_acc", "weight_products_acc" }, "sums of |w| and w^2, and of |w g|, by column and by row", function()
  for _, size in ipairs { { 1, 1 }, { 3, 5 }, { 17, 130 }, { 300, 33 } } do
    for _, dtype in ipairs { "f32", "bf16" } do
      local w = random(size, 4):to(dtype)
      for axis = 0, 1 do
        local n, want = size[2 - axis], {}
        local stats = tensor.full({ 2, n }, 1, "f64")
        c.weight_sums_acc(stats.c, w.c, axis)
        for i = 1, 2 * n do want[i] = 1 end
        for o, line in ipairs(w:to("f32"):table()) do
          for i, v in ipairs(line) do
            local at = axis == 0 and i or o
            want[at], want[n + at] = want[at] + math.abs(v), want[n + at] + v * v
          end
        end
        rows.compare(rows.flat(stats), want, 1e-9, "stats")
        local g, sums, products = random(size, 5), tensor.full({ n }, 1, "f64"), {}
        c.weight_products_acc(sums.c, w.c, g.c, axis)
        for i = 1, n do products[i] = 1 end
        local of = g:table()
        for o, line in ipairs(w:to("f32"):table()) do
          for i, v in ipairs(line) do
            local at = axis == 0 and i or o
            products[at] = products[at] + math.abs(v * of[o][i])
          end
        end
        rows.compare(rows.flat(sums), products, 1e-6, "products")
      end
    end
  end
  local stats = tensor.zeros({ 2, 5 }, "f64")
  t.fails("axis 2, want 0 or 1", c.weight_sums_acc, stats.c, random({ 3, 5 }, 1).c, 2)
  t.fails("'g' is [5, 3], want [3, 5]", c.weight_products_acc, tensor.zeros({ 5 }, "f64").c, random({ 3, 5 }, 1).c, random({ 5, 3 }, 1).c, 0)
  t.fails("axis -1, want 0 or 1", c.weight_products_acc, tensor.zeros({ 5 }, "f64").c, random({ 3, 5 }, 1).c, random({ 3, 5 }, 1).c, -1)
  t.fails("want [outputs, inputs]", c.weight_sums_acc, stats.c, random({ 5 }, 1).c, 0)
  t.fails("'stats' is [2, 5], want [2, 3]", c.weight_sums_acc, stats.c, random({ 3, 5 }, 1).c, 1)
end)

-- Run after bf16.lua, ops.lua and ops_layers.lua, by the order of their names; alone it can say nothing of theirs.
if rows.covered.rmsnorm and rows.covered.exp and rows.covered.pack then
  t.test("every operation of the core has a row", function()
    local missing = {}
    for name in core.string(core.C.esp_op_names()):gmatch "[^\n]+" do
      if not rows.covered[name] then missing[#missing + 1] = name end
    end
    t.equal(missing, {})
  end)
end
