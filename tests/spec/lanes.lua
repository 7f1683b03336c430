--- Losses and softmax over rows of logits, in every instruction set that the machine has: at lengths around every vector, tail and stretch, against
-- doubles; masked logits, maxima far apart, NaN, rows left out, results in place.
local t = ...

local esp = require "espalier"
local tensor = require "espalier.tensor"
local core = require "espalier.ffi"
local rows = require "oprows"

local c, inf = core.ops, math.huge

-- One logit; a vector of 4, 8 and 16 and beside them; four vectors; a stretch and beside it; a tail in the third.
local lengths = { 1, 3, 4, 7, 9, 15, 16, 17, 31, 33, 64, 67, 2047, 2048, 2049, 4103 }

-- log-probabilities of a flat list from `from` on, in doubles.
local function logs(x, from, V, tau)
  local most, sum, y = -inf, 0, {}
  for i = 1, V do most = math.max(most, x[from + i] / tau) end
  for i = 1, V do sum = sum + math.exp(x[from + i] / tau - most) end
  for i = 1, V do y[i] = x[from + i] / tau - most - math.log(sum) end
  return y
end

local function logits(N, V, seed, scale)
  return tensor.normal({ N, V }, { seed = seed, std = scale })
end

t.test("softmax, its logarithm and their backward, at every length", function()
  for _, V in ipairs(lengths) do
    esp.scope(function()
      local x, dy, y, p, dx = logits(2, V, V, 8), logits(2, V, V + 1, 1), tensor.new { 2, V }, tensor.new { 2, V }, tensor.new { 2, V }
      c.log_softmax(y.c, x.c)
      c.softmax(p.c, x.c)
      c.log_softmax_backward(dx.c, dy.c, y.c)
      local flat, g, want_y, want_p, want_dx = rows.flat(x), rows.flat(dy), {}, {}, {}
      for n = 0, 1 do
        local l, sum = logs(flat, n * V, V, 1), 0
        for i = 1, V do sum = sum + g[n * V + i] end
        for i = 1, V do
          want_y[n * V + i], want_p[n * V + i], want_dx[n * V + i] = l[i], math.exp(l[i]), g[n * V + i] - math.exp(l[i]) * sum
        end
      end
      rows.compare(rows.flat(y), want_y, 4e-7, "log_softmax " .. V)
      rows.compare(rows.flat(p), want_p, 1e-6, "softmax " .. V)
      rows.compare(rows.flat(dx), want_dx, 1e-6, "log_softmax_backward " .. V, 1)
      c.softmax(x.c, x.c)
      t.equal(x, p, "in place")
    end)
  end
end)

t.test("exponentials are within two units in the last place, down to nothing", function()
  local V = 2000
  local x = tensor.new { 1, V }
  local p = x:data()
  for i = 0, V - 1 do p[i] = -90 * i / (V - 1) end
  local y = tensor.new { 1, V }
  c.softmax(y.c, x.c)
  local q = y:data()
  for i = 0, V - 1 do
    local want = math.exp(tonumber(p[i]))
    if p[i] < -87 then t.equal(tonumber(q[i]), 0)
    -- Two units of the exponential, half a one each for the factor and the product, as long as that is a normal number.
    elseif p[i] > -83 then t.ok(math.abs(q[i] / q[0] / want - 1) <= 3.5 * 2 ^ -23, string.format("exp(%.9g): %.9g", p[i], q[i] / q[0])) end
  end
end)

t.test("cross-entropy and its gradient, at every length", function()
  for _, V in ipairs(lengths) do
    esp.scope(function()
      local x, weight = logits(3, V, V, 5), tensor.of { 0.5, 2, 0 }
      local target = tensor.of({ V - 1, -1, 0 }, { dtype = "i32" })
      local loss, alone, ds, sum = tensor.new { 3 }, tensor.new { 3 }, tensor.full({ 3, V }, 7), tensor.full({ 3, V }, 1)
      c.cross_entropy(loss.c, ds.c, x.c, target.c, weight.c)
      c.cross_entropy(alone.c, nil, x.c, target.c, weight.c)
      c.cross_entropy_acc(alone.c, sum.c, x.c, target.c, weight.c)
      t.equal(alone, loss)
      local l, want, one_more = logs(rows.flat(x), 0, V, 1), {}, {}
      for i = 1, 3 * V do
        want[i] = i > V and 0 or 0.5 * (math.exp(l[i]) - (i == V and 1 or 0))
        one_more[i] = want[i] + 1
      end
      rows.compare(rows.flat(loss), { -0.5 * l[V], 0, 0 }, 1e-6, "cross-entropy " .. V, 1)
      rows.compare(rows.flat(ds), want, 1e-6, "its gradient " .. V, 0.5)
      rows.compare(rows.flat(sum), one_more, 1e-6, "added " .. V)
      c.cross_entropy(loss.c, x.c, x.c, target.c, weight.c)
      t.equal(x, ds, "in place")
    end)
  end
end)

t.test("KL and its gradient, at every length and temperature", function()
  for k, V in ipairs(lengths) do
    esp.scope(function()
      local tau = ({ 1, 2.5, 0.7 })[k % 3 + 1]
      local s, teacher, weight = logits(2, V, V, 6), logits(2, V, V + 1, 6), tensor.of { 0.75, 0 }
      local loss, alone, ds, sum = tensor.new { 2 }, tensor.new { 2 }, tensor.full({ 2, V }, 7), tensor.full({ 2, V }, 1)
      local ds16 = tensor.new({ 2, V }, "bf16")
      c.kl(loss.c, ds.c, s.c, teacher.c, weight.c, tau)
      c.kl(alone.c, nil, s.c, teacher.c, weight.c, tau)
      t.equal(alone, loss)
      c.kl_acc(alone.c, sum.c, s.c, teacher.c, weight.c, tau)
      c.kl(alone.c, ds16.c, s.c, teacher.c, weight.c, tau)
      local a, b, kl, want, one_more = logs(rows.flat(s), 0, V, tau), logs(rows.flat(teacher), 0, V, tau), 0, {}, {}
      for i = 1, V do
        local p, q = math.exp(b[i]), math.exp(a[i])
        kl = kl + 0.75 * p * (b[i] - a[i])
        want[i], want[V + i] = 0.75 / tau * (q - p), 0
        one_more[i], one_more[V + i] = want[i] + 1, 1
      end
      rows.compare(rows.flat(loss), { kl, 0 }, 2e-6, "KL " .. V, 1)
      rows.compare(rows.flat(ds), want, 1e-6, "its gradient " .. V, 1)
      rows.compare(rows.flat(sum), one_more, 1e-6, "added " .. V)
      rows.compare(rows.flat(ds16:to "f32"), rows.flat(ds:to("bf16"):to "f32"), 0, "in bf16 " .. V)
      c.kl(loss.c, s.c, s.c, teacher.c, weight.c, tau)
      t.equal(s, ds, "in place")
    end)
  end
end)

t.test("products of a few rows read a weight as it stands, in f32 or bf16, whole or a prefix of a wider one", function()
  for k, I in ipairs(lengths) do
    esp.scope(function()
      local N, O = k % 4 + 1, ({ 1, 63, 64, 131 })[k % 4 + 1]
      local x, y = tensor.normal({ N, I + 3 }, { seed = I }):narrow(1, 2, I), tensor.full({ N, O + 2 }, 7)
      local wide = tensor.normal({ O + 1, I + k % 3 }, { seed = I + 1 })
      for _, dtype in ipairs { "f32", "bf16" } do
        local w = wide:to(dtype):narrow(1, 0, I):narrow(0, 0, O)
        c.linear(y:narrow(1, 1, O).c, x.c, w.c, nil, 0)
        local a, b, want = rows.flat(x), rows.flat(w:to "f32"), {}
        for n = 0, N - 1 do
          want[#want + 1] = 7
          for o = 0, O - 1 do
            local sum = 0
            for i = 1, I do sum = sum + a[n * I + i] * b[o * I + i] end
            want[#want + 1] = sum
          end
          want[#want + 1] = 7
        end
        rows.compare(rows.flat(y), want, 1e-6, string.format("%dx%dx%d %s", N, I, O, dtype), math.sqrt(I))
      end
    end)
  end
end)

t.test("masked logits count nothing, in vectors and tails", function()
  for _, V in ipairs { 5, 67, 4103 } do
    local s, teacher = logits(1, V, 1, 3), logits(1, V, 2, 3)
    local kept = math.ceil(V / 2)
    local few_s, few_t = s:narrow(1, 0, kept):contiguous(), teacher:narrow(1, 0, kept):contiguous()
    for _, x in ipairs { s, teacher } do x:narrow(1, kept, V - kept):fill(-inf) end
    local weight, target = tensor.full({ 1 }, 1), tensor.full({ 1 }, 1, "i32")
    local a, b, da, db = tensor.new { 1 }, tensor.new { 1 }, tensor.new { 1, V }, tensor.new { 1, kept }
    c.kl(a.c, da.c, s.c, teacher.c, weight.c, 1)
    c.kl(b.c, db.c, few_s.c, few_t.c, weight.c, 1)
    rows.compare(rows.flat(a), rows.flat(b), 1e-6, "KL")
    rows.compare(rows.flat(da:narrow(1, 0, kept)), rows.flat(db), 1e-6, "its gradient", 1)
    for _, v in ipairs(rows.flat(da:narrow(1, kept, V - kept))) do t.equal(v, 0) end
    c.cross_entropy(a.c, da.c, s.c, target.c, weight.c)
    c.cross_entropy(b.c, db.c, few_s.c, target.c, weight.c)
    rows.compare(rows.flat(a), rows.flat(b), 1e-6, "cross-entropy")
    for _, v in ipairs(rows.flat(da:narrow(1, kept, V - kept))) do t.equal(v, 0) end
    -- What only the teacher masks counts nothing; what only the student masks costs without end.
    c.kl(a.c, da.c, logits(1, V, 1, 3).c, teacher.c, weight.c, 1)
    t.ok(a:item() < inf and a:item() > 0, "a mask of the teacher's: " .. a:item())
    c.kl(a.c, nil, s.c, logits(1, V, 2, 3).c, weight.c, 1)
    t.equal(a:item(), inf)
  end
end)

t.test("NaN anywhere is NaN in its row's loss, and in no other", function()
  for _, at in ipairs { 0, 15, 66, 2048, 4102 } do
    local V = 4103
    local good, weight, target = logits(2, V, 1, 3), tensor.full({ 2 }, 1), tensor.full({ 2 }, 1, "i32")
    local bad, loss, ds = good:clone(), tensor.new { 2 }, tensor.new { 2, V }
    bad:data()[at] = 0 / 0
    local function check(what)
      local v, g = rows.flat(loss), rows.flat(ds)
      t.ok(v[1] ~= v[1] and v[2] == v[2] and g[at + 1] ~= g[at + 1] and g[V + 1] == g[V + 1], what .. " at " .. at)
    end
    c.kl(loss.c, ds.c, bad.c, good.c, weight.c, 1)
    check "KL, student"
    c.kl(loss.c, ds.c, good.c, bad.c, weight.c, 1)
    check "KL, teacher"
    c.cross_entropy(loss.c, ds.c, bad.c, target.c, weight.c)
    check "cross-entropy"
  end
end)

t.test("every instruction set of the machine gives these rows", function()
  t.under_each_isa("lanes", { "generic", "avx2", "avx512" })
end)
