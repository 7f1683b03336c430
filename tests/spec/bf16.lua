--- Products in bf16: against f32 products of rounded operands, at sizes around every tile and tail, in every instruction set that the machine has;
-- training in bf16 beside f32; what backward computes again.
local t = ...

local esp = require "espalier"
local tensor = require "espalier.tensor"
local ops = require "espalier.ops"
local tape = require "espalier.tape"
local product = require "espalier.product"
local core = require "espalier.ffi"
local rows = require "oprows"
local process = esp.io.process

local f32, bf16 = product.of "f32", product.of "bf16"

local function rounded(x)
  return x:to("bf16"):to "f32"
end

-- Every entry within `tolerance` of the largest; NaN fails.
local function close(got, want, tolerance, what)
  rows.compare(rows.flat(got:to "f32"), rows.flat(want:to "f32"), tolerance, what)
end

rows.covered.pack = true

-- { N, I, O }: one tile, tails in rows, columns and pairs, several blocks of each, one pair, few rows, two runs of k.
local sizes = {
  { 12, 32, 32 }, { 13, 33, 33 }, { 11, 2, 31 }, { 6, 1, 1 }, { 5, 769, 65 }, { 200, 48, 530 }, { 400, 17, 40 }, { 3, 19, 7 }, { 60, 2100, 70 },
}

t.test("products in bf16 are those of rounded operands, summed in f32", function()
  for _, size in ipairs(sizes) do
    esp.scope(function()
      local N, I, O = unpack(size)
      local what = table.concat(size, "x")
      local x, w, dy = tensor.normal({ N, I }, { seed = 1 }), tensor.normal({ O, I }, { seed = 2 }), tensor.normal({ N, O }, { seed = 3 })
      local rx, rw, rdy = rounded(x), rounded(w), rounded(dy)
      local function both(shape, name, ...)
        local got, want = tensor.full(shape, 0.5), tensor.full(shape, 0.5)
        local a, b = ...
        bf16[name](got, a, b)
        f32[name](want, a == dy and rdy or rx, b == w and rw or rx)
        close(got, want, N <= 4 and 1e-2 or 2e-6, name .. " " .. what)
        return want
      end
      local y = both({ N, O }, "forward", x, w)
      both({ N, I }, "dx", dy, w)
      both({ N, I }, "dx_acc", dy, w)
      both({ O, I }, "dw", dy, x)
      both({ O, I }, "dw_acc", dy, x)
      -- Operands stored in bf16, and a result that is.
      local y16 = tensor.new({ N, O }, "bf16")
      bf16.forward(y16, x:to "bf16", w:to "bf16")
      close(y16, y, 2 ^ -8, "stored in bf16 " .. what)
      -- Few rows turn such a weight on their way: the same numbers as of a packed one.
      local before, packed16 = tensor.new({ N, O }, "bf16"), bf16.pack(w:to "bf16")
      bf16.forward(before, x:to "bf16", packed16)
      t.equal(y16:table(), before:table(), "turned " .. what)
      -- A packed weight stands for the weight.
      local packed, again, dx, want = bf16.pack(w, { backward = true }), tensor.new { N, O }, tensor.new { N, I }, tensor.new { N, I }
      bf16.forward(again, x, packed)
      close(again, y, N <= 4 and 1e-2 or 2e-6, "packed " .. what)
      bf16.dx(dx, dy, packed)
      f32.dx(want, rdy, rw)
      close(dx, want, 2e-6, "packed dx " .. what)
    end)
  end
end)

t.test("products in bf16 follow views, and carry NaN", function()
  local x, w = tensor.normal({ 20, 40 }, { seed = 4 }):narrow(1, 0, 24), tensor.normal({ 50, 40 }, { seed = 5 }):narrow(1, 0, 24):narrow(0, 0, 36)
  local y, want = tensor.full({ 20, 64 }, 7), tensor.new { 20, 36 }
  bf16.forward(y:narrow(1, 0, 36), x, w)
  f32.forward(want, rounded(x), rounded(w))
  close(y:narrow(1, 0, 36), want, 2e-6, "a prefix of weight and result")
  t.equal(y:narrow(1, 36, 28):contiguous(), tensor.full({ 20, 28 }, 7), "what stands beside the result")
  local bad = x:contiguous()
  bad:data()[5 * 24 + 23] = 0 / 0
  bf16.forward(y:narrow(1, 0, 36), bad, w)
  local flat = rows.flat(y:narrow(1, 0, 36))
  for o = 0, 35 do t.ok(flat[5 * 36 + o + 1] ~= flat[5 * 36 + o + 1], "NaN in its row") end
  t.ok(flat[1] == flat[1] and flat[#flat] == flat[#flat], "and in no other")
  t.fails("linear: 'y' is [20, 64], want 20 rows of 36", function() core.ops.linear(y.c, x.c, w.c, nil, 1) end)
  t.fails("linear: 'dtype' is 3, want f32 (0) or bf16 (1)", function() core.ops.linear(y:narrow(1, 0, 36).c, x.c, w.c, nil, 3) end)
  t.fails("'packed' has 3 numbers, want 768", function()
    core.ops.linear(y:narrow(1, 0, 36).c, x.c, w.c, tensor.new({ 3 }, "i32").c, 1)
  end)
end)

-- Rows stored in bf16 are widened, and rounded once where they are written: what the f32 operation makes of widened rows, rounded.
t.test("norms, bias, rope and gates read and write bf16", function()
  local function normal(shape, seed) return tensor.normal(shape, { seed = seed }):to "bf16" end
  local function wide(x) return x:to "f32" end
  -- fn(dtype, in(x)): results of the operation, its inputs as they are or widened.
  local function same(what, fn)
    local got, want = { fn("bf16", function(x) return x end) }, { fn("f32", wide) }
    for i, y in ipairs(got) do
      t.equal(y:to("f32"):table(), (y.dtype == "bf16" and rounded(want[i]) or want[i]):table(), what .. " " .. i)
    end
  end
  local x, dy, w = normal({ 37, 19 }, 1), normal({ 37, 19 }, 2), tensor.normal({ 19 }, { seed = 3 })
  local new = tensor.new
  same("rmsnorm", function(dtype, is)
    local y, dx, rstd, dw = new(x.shape, dtype), new(x.shape, dtype), new { 37 }, new { 19 }
    core.ops.rmsnorm(y.c, rstd.c, is(x).c, w.c, 1e-5, 1)
    core.ops.rmsnorm_backward(dx.c, dw.c, is(dy).c, is(x).c, w.c, rstd.c, 1)
    return y, dx, dw
  end)
  same("layernorm", function(dtype, is)
    local y, dx, mean, rstd, dw, db = new(x.shape, dtype), new(x.shape, dtype), new { 37 }, new { 37 }, new { 19 }, new { 19 }
    core.ops.layernorm(y.c, mean.c, rstd.c, is(x).c, w.c, w.c, 1e-5, 0)
    core.ops.layernorm_backward(dx.c, dw.c, db.c, is(dy).c, is(x).c, w.c, mean.c, rstd.c, 0)
    return y, dx, dw, db
  end)
  same("bias", function(dtype, is)
    local y, given = new(x.shape, dtype), is(x):clone()
    core.ops.bias(y.c, given.c, w.c)
    core.ops.bias(given.c, given.c, w.c)
    return y, given
  end)
  local q, cos, sin = normal({ 3, 17, 2, 10 }, 4), tensor.uniform({ 17, 4 }, { seed = 5 }), tensor.uniform({ 17, 4 }, { seed = 6 })
  same("rope", function(dtype, is)
    local y, back = new(q.shape, dtype), is(q):clone()
    core.ops.rope(y.c, is(q).c, cos.c, sin.c, 0)
    core.ops.rope(back.c, back.c, cos.c, sin.c, 1)
    return y, back
  end)
  for kind = 0, 2 do
    same("gate " .. kind, function(dtype, is)
      local y, alone, dgate, dup, single = new(x.shape, dtype), new(x.shape, dtype), new(x.shape, dtype), new(x.shape, dtype), new(x.shape, dtype)
      core.ops.gate(y.c, is(x).c, is(dy).c, kind)
      core.ops.gate(alone.c, is(x).c, nil, kind)
      core.ops.gate_backward(dgate.c, dup.c, is(dy).c, is(x).c, is(dy).c, kind)
      core.ops.gate_backward(single.c, nil, is(dy).c, is(x).c, nil, kind)
      return y, alone, dgate, dup, single
    end)
  end
end)

t.test("a gradient that several readers of a bf16 tensor make is their sum", function()
  local x = tensor.normal({ 6, 8 }, { seed = 1 }):requires_grad_()
  local w = tensor.normal({ 8 }, { seed = 2 })
  local h = ops.rmsnorm(x, w, 1e-5, 0, "bf16")
  t.equal(h.dtype, "bf16")
  local y = ops.gate(h, nil, "relu2"):keep_grad()
  local z = ops.rmsnorm(y, w, 1e-5, 0) + ops.rmsnorm(h, w, 1e-5, 0) + ops.rmsnorm(h, w, 1e-5, 0)
  z:sum():backward()
  t.equal(y.grad.dtype, "bf16")
  local x32 = x:detach():requires_grad_()
  local h32 = ops.rmsnorm(x32, w, 1e-5, 0)
  local z32 = ops.rmsnorm(ops.gate(h32, nil, "relu2"), w, 1e-5, 0) + ops.rmsnorm(h32, w, 1e-5, 0) + ops.rmsnorm(h32, w, 1e-5, 0)
  z32:sum():backward()
  close(x.grad, x32.grad, 0.02, "gradient")
end)

t.test("every instruction set of the machine gives these products", function()
  t.under_each_isa("bf16", { "generic", "avx512_bf16" })
end)

t.test("an instruction set that is not known is told", function()
  if os.getenv "ESPALIER_ISA" then t.skip "this is such a run" end
  local program, out = t.program() or t.skip "needs the espalier program", t.folder() .. "/out"
  local code = process.start({ "/usr/bin/env", "ESPALIER_ISA=sse9", program, t.root .. "tests/run.lua", "bf16" }, out):wait()
  local said = t.read(out)
  t.equal(code, 1)
  t.ok(said:find("ESPALIER_ISA is 'sse9', want generic, avx2, avx512, avx512_bf16 or amx", 1, true), said)
end)

t.test("the gradient of KL in bf16 is that in f32, rounded", function()
  for _, V in ipairs { 1, 511, 513, 1030 } do
    local s, teacher, weight = tensor.normal({ 3, V }, { seed = 8 }) * 5, tensor.normal({ 3, V }, { seed = 9 }) * 5, tensor.of { 1, 0, 0.25 }
    local loss, ds, ds16 = tensor.new { 3 }, tensor.new { 3, V }, tensor.full({ 3, V }, 7, "bf16")
    core.ops.kl(loss.c, ds.c, s.c, teacher.c, weight.c, 2)
    core.ops.kl(loss.c, ds16.c, s.c, teacher.c, weight.c, 2)
    t.equal(ds16:to "f32", rounded(ds))
    -- Logits in bf16 are read as the f32 that they are, also where the gradient takes their place.
    local s16, teacher16, loss16 = s:to "bf16", teacher:to "bf16", tensor.new { 3 }
    core.ops.kl(loss.c, ds.c, s16:to("f32").c, teacher16:to("f32").c, weight.c, 2)
    core.ops.kl(loss16.c, nil, s16.c, teacher16:to("f32").c, weight.c, 2)
    t.equal(loss16, loss)
    core.ops.kl(loss16.c, s16.c, s16.c, teacher16.c, weight.c, 2)
    t.equal(loss16, loss)
    t.equal(s16:to "f32", rounded(ds))
  end
end)

t.test("KL bears logits of minus infinity, and maxima far apart", function()
  local V = 1100
  local a, b = tensor.normal({ 2, V }, { seed = 10 }), tensor.normal({ 2, V }, { seed = 11 })
  -- A whole stretch of the vocabulary is masked in both; another stands 60 above the rest.
  for _, x in ipairs { a, b } do
    x:narrow(1, 512, 512):fill(-math.huge)
    for r = 0, 1 do x:data()[r * V + 1050] = 60 end
  end
  local loss, ds, weight = tensor.new { 2 }, tensor.new { 2, V }, tensor.full({ 2 }, 1)
  core.ops.kl(loss.c, ds.c, a.c, b.c, weight.c, 1)
  for _, v in ipairs(rows.flat(loss)) do t.ok(math.abs(v) < 1e-6, "nearly all mass is on one token: " .. v) end
  for _, v in ipairs(rows.flat(ds)) do t.ok(math.abs(v) < 1e-6, "and the gradient is nothing: " .. v) end
end)

-- ---- training ----

local function tiny(seed)
  return esp.models.new({ hidden = 32, ffn = 48, layers = 2, heads = 4, kv_heads = 2, head_dim = 8, vocab = 96, context = 64, norm_eps = 1e-5,
    rope = { theta = 10000 }, tied = true }, { seed = seed, std = 0.1 })
end

local function some_data()
  local list = {}
  for r = 1, 24 do
    list[r] = {}
    for i = 1, 32 do list[r][i] = (r * 7 + i * i) % 96 end
  end
  return esp.data.of(list)
end

t.test("bf16 trains like f32, keeps f32 weights, and its bits do not depend on how a step is cut", function()
  local teacher, student, data = tiny(1), tiny(2), some_data()
  local function run(precision)
    return esp.distill { teacher = teacher, student = student, data = data, batch = 8, steps = 30, precision = precision, quiet = true,
      schedule = esp.schedule.cosine { peak = 3e-3, min = 3e-4, warmup = 3 } }
  end
  local a, b = run "f32", run "bf16"
  t.ok(b.steps[30].loss < 0.9 * b.steps[1].loss, "it learns")
  t.near(b.steps[30].loss / a.steps[30].loss, 1, 0.005)
  t.ok(b.steps[30].loss ~= a.steps[30].loss, "the products are others")
  for name, w in pairs(b.model:parameters()) do t.equal(w.dtype, "f32", name) end
  t.equal(b.model.precision, nil)
  t.equal(run("bf16").steps[30].loss, b.steps[30].loss, "the same bits again")
  t.fails("precision", function() run "f16" end)
  t.near(esp.evaluate({ b.model, data = data, precision = "bf16" }).nll / esp.evaluate({ b.model, data = data }).nll, 1, 0.005)
end)

t.test("a step like the one before asks the system for no memory", function()
  local teacher, student, data = tiny(1), tiny(2), some_data()
  for _, precision in ipairs { "f32", "bf16" } do
    local asked = {}
    local function rate(step)
      -- Handles of tensors wait for the collector, whose turn is not that of a step.
      collectgarbage()
      asked[step] = tonumber(core.C.esp_memory_mallocs())
      return 1e-3
    end
    esp.distill { teacher = teacher, student = student, data = data, batch = 8, steps = 8, precision = precision, quiet = true,
      schedule = { name = "counted", rate = rate } }
    t.equal(asked[8], asked[3], precision)
  end
end)

-- 1024: rows of logits stand a little apart there.
for _, V in ipairs { 90, 1024 } do t.test("a head's gradient that is added at once is the one that backward would bring, vocabulary " .. V, function()
  local head = require "espalier.loss.head"
  local h, w = tensor.normal({ 70, 16 }, { seed = 1 }), tensor.normal({ V, 16 }, { seed = 2 })
  local th, tw = tensor.normal({ 70, 16 }, { seed = 3 }), tensor.normal({ V, 16 }, { seed = 4 })
  local function loss(weight, into)
    local states = { hidden = h:detach():requires_grad_(), weight = weight, precision = "bf16" }
    return head.loss { states = states, target = tensor.full({ 70 }, 5):to "i32", valid = tensor.full({ 70 }, 1), positions = 70, predictions = 70,
      loss = esp.loss.kl(), teacher = { hidden = th, weight = tw, precision = "bf16" }, into = into }, states
  end
  local later = w:detach():requires_grad_()
  local a, x = loss(later)
  a:backward()
  local now = w:detach():requires_grad_()
  now.grad = tensor.full(w.shape, 2)
  local b, y = loss(now, now.grad)
  b:backward()
  t.equal(y.hidden.grad:table(), x.hidden.grad:table())
  close(now.grad, later.grad + 2, 1e-6, "added to what was there")
  local again = loss(now, now.grad)
  t.fails("this loss came in times 2", function() (again * 2):backward() end)
end) end

t.test("what is forgotten is computed again, or never if nobody reads it", function()
  local w = tensor.normal({ 6, 5 }, { seed = 6 }):requires_grad_(true)
  local x, norm = tensor.normal({ 4, 5 }, { seed = 7 }):requires_grad_(true), tensor.full({ 5 }, 1.5):requires_grad_(true)
  local function gradients(forget)
    return esp.scope(function()
      local h = ops.rmsnorm(x * 2, norm, 1e-5)
      local y = ops.linear(h, w)
      local sum = (y + 1):mean()
      if forget then
        tape.forget(h)
        t.fails("freed", function() h:data() end)
      end
      sum:backward()
      local got = { rows.flat(x.grad), rows.flat(w.grad), rows.flat(norm.grad) }
      for _, p in ipairs { x, w, norm } do
        p.grad:free()
        p.grad = nil
      end
      return got
    end)
  end
  t.equal(gradients(true), gradients(false))
end)
