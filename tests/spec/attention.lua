--- Attention in f32 and bf16 against its formulas in Lua doubles, forward and backward at every coordinate; views, windows, caches, errors; every
-- instruction set of the machine; bits that do not depend on threads.
local t = ...

local esp = require "espalier"
local tensor = require "espalier.tensor"
local core = require "espalier.ffi"
local rows = require "oprows"
local file, process = esp.io.file, esp.io.process

local c = core.ops

-- ---- the reference ----

-- What query p of row b sees of keys 0 .. S-T+p: documents: another one begins in the middle; window: so many at most.
local function first_key(s, b, p)
  local position = s.S - s.T + p
  if s.window then return math.max(0, position - s.window + 1) end
  local middle = math.floor(s.S / 2) + b
  return s.documents and position >= middle and middle or 0
end

local function tanh(x)
  return 1 - 2 / (math.exp(2 * x) + 1)
end

-- Flat lists o, lse and, where dout is given, dq, dk, dv. s: B, T, S, H, G, D, cap, scale.
local function reference(s, q, k, v, dout)
  local T, S, H, G, D = s.T, s.S, s.H, s.G, s.D
  local o, lse, dq, dk, dv = {}, {}, {}, {}, {}
  for i = 1, #q do o[i], dq[i] = 0, 0 end
  for i = 1, #k do dk[i], dv[i] = 0, 0 end
  for b = 0, s.B - 1 do
    for h = 0, H - 1 do
      local g = math.floor(h / (H / G))
      for p = 0, T - 1 do
        local at, score, slope, most, sum = ((b * T + p) * H + h) * D, {}, {}, -math.huge, 0
        local from, to = first_key(s, b, p), S - T + p
        for j = from, to do
          local x, key = 0, ((b * S + j) * G + g) * D
          for i = 1, D do x = x + q[at + i] * k[key + i] end
          x, slope[j] = x * s.scale, 1
          if s.cap then
            local bent = tanh(x / s.cap)
            x, slope[j] = s.cap * bent, 1 - bent * bent
          end
          score[j], most = x, math.max(most, x)
        end
        for j = from, to do sum = sum + math.exp(score[j] - most) end
        lse[(b * H + h) * T + p + 1] = most + math.log(sum)
        local delta = 0
        for j = from, to do
          local key = ((b * S + j) * G + g) * D
          score[j] = math.exp(score[j] - most) / sum
          for i = 1, D do o[at + i] = o[at + i] + score[j] * v[key + i] end
        end
        for i = 1, dout and D or 0 do delta = delta + o[at + i] * dout[at + i] end
        for j = from, dout and to or -1 do
          local key, dp = ((b * S + j) * G + g) * D, 0
          for i = 1, D do dp = dp + dout[at + i] * v[key + i] end
          local d = score[j] * (dp - delta) * slope[j] * s.scale
          for i = 1, D do
            dv[key + i] = dv[key + i] + score[j] * dout[at + i]
            dq[at + i], dk[key + i] = dq[at + i] + d * k[key + i], dk[key + i] + d * q[at + i]
          end
        end
      end
    end
  end
  return { o = o, lse = lse, dq = dq, dk = dk, dv = dv }
end

-- ---- calls ----

-- B, T, H, G, D and, where they differ from T, keys S; options.
local function case(B, T, H, G, D, opt)
  local s = opt or {}
  s.B, s.T, s.H, s.G, s.D, s.S, s.scale = B, T, H, G, D, s.S or T, s.scale or D ^ -0.5
  return s
end

-- A tensor of the shape in a dtype; in a view: heads and channels are a part of those stored, and begin at an odd one.
local function tensor_of(shape, dtype, view, seed)
  if not view then return tensor.normal(shape, { seed = seed }):to(dtype) end
  local wide = tensor.normal({ shape[1], shape[2], shape[3] + 1, shape[4] + 3 }, { seed = seed }):to(dtype)
  return wide:narrow(2, 0, shape[3]):narrow(3, 1, shape[4])
end

local function inputs(s, dtype)
  local x = { q = tensor_of({ s.B, s.T, s.H, s.D }, dtype, s.view, 1), k = tensor_of({ s.B, s.S, s.G, s.D }, dtype, s.view, 2),
    v = tensor_of({ s.B, s.S, s.G, s.D }, dtype, s.view, 3), dout = tensor_of({ s.B, s.T, s.H, s.D }, dtype, s.view, 4) }
  if s.window or s.documents then
    local first = {}
    for b = 1, s.B do
      first[b] = {}
      for p = 1, s.T do first[b][p] = first_key(s, b - 1, p - 1) end
    end
    x.first = tensor.of(first, { dtype = "i32" })
  end
  return x
end

local function forward(s, x, dtype)
  local y = { o = tensor_of(x.q.shape, dtype, s.view, 5), lse = tensor.new { s.B, s.H, s.T } }
  c.attention(y.o.c, y.lse.c, x.q.c, x.k.c, x.v.c, x.first and x.first.c, s.scale, s.cap or 0)
  return y
end

local function backward(s, x, y, dtype)
  y.dq, y.dk, y.dv = tensor_of(x.q.shape, dtype, s.view, 6), tensor_of(x.k.shape, dtype, s.view, 7), tensor_of(x.k.shape, dtype, s.view, 8)
  c.attention_backward(y.dq.c, y.dk.c, y.dv.c, x.dout.c, x.q.c, x.k.c, x.v.c, y.o.c, y.lse.c, x.first and x.first.c, s.scale, s.cap or 0)
  return y
end

local function flat(x)
  return rows.flat(x:contiguous():to "f32")
end

-- The bits of results on one head, on few, on many, and over a cache, as text.
local function fingerprint()
  local parts = {}
  for _, dtype in ipairs { "f32", "bf16" } do
    for _, s in ipairs { case(1, 300, 1, 1, 10), case(1, 150, 6, 2, 48), case(5, 70, 4, 4, 8), case(1, 2, 6, 2, 48, { S = 700 }) } do
      local x = inputs(s, dtype)
      local y = forward(s, x, dtype)
      if s.S == s.T then backward(s, x, y, dtype) end
      for _, name in ipairs { "o", "lse", "dq", "dk", "dv" } do
        for i, value in ipairs(y[name] and flat(y[name]) or {}) do if i % 7 == 1 then parts[#parts + 1] = string.format("%.9g", value) end end
      end
    end
  end
  return table.concat(parts, " ")
end

if os.getenv "ESPALIER_ATTENTION_BITS" then
  file.write(os.getenv "ESPALIER_ATTENTION_BITS", fingerprint())
  return
end

-- Relative to the largest entry. What bf16 costs: a half in the last of eight bits of probabilities and of results, added up.
local tolerance = {
  f32 = { o = 1e-5, lse = 1e-5, dq = 2e-5, dk = 2e-5, dv = 2e-5 }, bf16 = { o = 2 ^ -7, lse = 1e-5, dq = 2 ^ -6, dk = 2 ^ -6, dv = 2 ^ -7 },
}

local cases = {
  ["one key"] = case(1, 1, 1, 1, 2), ["few queries"] = case(2, 3, 4, 2, 8), ["less than a panel"] = case(2, 5, 4, 2, 8),
  ["a panel"] = case(1, 32, 1, 1, 16), ["a panel and one"] = case(1, 33, 2, 2, 6), ["a tile"] = case(1, 128, 1, 1, 32),
  ["a tile and one"] = case(1, 129, 2, 1, 18), ["three tiles, an odd number of keys"] = case(1, 301, 2, 1, 10),
  ["groups of four"] = case(1, 70, 4, 1, 48), ["two panels of channels"] = case(2, 40, 2, 2, 64), ["a panel and a half"] = case(1, 130, 1, 1, 48),
  ["an odd number of channels"] = case(1, 40, 2, 1, 7), ["heads for every thread"] = case(4, 35, 4, 4, 8),
  documents = case(2, 150, 2, 1, 8, { documents = true }), ["a window"] = case(1, 300, 2, 2, 8, { window = 37 }),
  ["a window of one"] = case(1, 140, 1, 1, 6, { window = 1 }), capped = case(2, 140, 2, 1, 8, { cap = 1.5 }),
  ["capped, few"] = case(1, 4, 2, 1, 8, { cap = 1.5 }), ["capped in documents"] = case(1, 67, 2, 2, 6, { cap = 0.7, documents = true }),
  ["a scale of one's own"] = case(1, 50, 2, 2, 8, { scale = 1.3 }), ["parts of wider tensors"] = case(2, 70, 2, 1, 10, { view = true }),
  ["parts of wider tensors, few"] = case(2, 3, 4, 2, 50, { view = true }),
  ["a tile in parts of wider tensors"] = case(1, 140, 2, 2, 48, { view = true }),
}
local cached = {
  ["one query"] = case(1, 1, 4, 2, 48, { S = 9 }), ["one query, many keys"] = case(1, 1, 6, 6, 32, { S = 4500 }),
  ["one query, five heads in a group"] = case(2, 1, 5, 1, 64, { S = 131 }), ["four queries"] = case(2, 4, 4, 4, 20, { S = 70 }),
  ["one query in a short window"] = case(1, 1, 4, 2, 32, { S = 300, window = 10 }),
  ["four queries in a window"] = case(1, 4, 4, 2, 50, { S = 200, window = 66 }), ["five queries"] = case(2, 5, 2, 1, 48, { S = 70 }),
  ["a tile and more"] = case(1, 131, 2, 1, 8, { S = 300 }), ["a window behind a cache"] = case(1, 40, 2, 1, 8, { S = 400, window = 45 }),
  ["documents behind a cache"] = case(2, 40, 2, 1, 8, { S = 201, documents = true }),
  ["one query, capped"] = case(1, 1, 4, 2, 48, { S = 90, cap = 2 }),
}

local function check(s, dtype, what)
  local x = inputs(s, dtype)
  local trains = s.S == s.T
  local y, want = forward(s, x, dtype), reference(s, flat(x.q), flat(x.k), flat(x.v), trains and flat(x.dout))
  if trains then backward(s, x, y, dtype) end
  for name, limit in pairs(tolerance[dtype]) do
    if y[name] then rows.compare(flat(y[name]), want[name], limit, what .. ": " .. name, name == "lse" and 1 or 1e-1) end
  end
end

for _, dtype in ipairs { "f32", "bf16" } do
  for name, s in pairs(cases) do
    t.test("attention in " .. dtype .. ", " .. name, function() esp.scope(check, s, dtype, name) end)
  end
  for name, s in pairs(cached) do
    t.test("attention in " .. dtype .. " behind a cache, " .. name, function() esp.scope(check, s, dtype, name) end)
  end
end

t.test("what stands beside a result in a wider tensor stays", function()
  for _, T in ipairs { 3, 40 } do
    local s = case(1, T, 2, 1, 6)
    local x, wide = inputs(s, "bf16"), tensor.full({ 1, T, 3, 9 }, 7, "bf16")
    local o = wide:narrow(2, 0, 2):narrow(3, 1, 6)
    c.attention(o.c, nil, x.q.c, x.k.c, x.v.c, nil, 1, 0)
    t.equal(o:to "f32", forward(case(1, T, 2, 1, 6, { scale = 1 }), x, "bf16").o:to "f32", "the same numbers")
    o:fill(7)
    t.equal(wide:to "f32", tensor.full({ 1, T, 3, 9 }, 7), "and nothing else")
  end
end)

t.test("NaN in attention comes out, and a masked key's does not get in from another tile", function()
  local function has_nan(x)
    for _, v in ipairs(flat(x)) do if v ~= v then return true end end
    return false
  end
  for _, dtype in ipairs { "f32", "bf16" } do
    for _, T in ipairs { 3, 40, 140 } do
      for _, name in ipairs { "q", "k", "v", "dout" } do
        local s = case(1, T, 2, 1, 8)
        local x = inputs(s, dtype)
        x[name]:narrow(1, 0, 1):fill(0 / 0)
        local y = forward(s, x, dtype)
        t.ok(name == "dout" or has_nan(y.o), dtype .. ": " .. name .. " in o")
        backward(s, x, y, dtype)
        for _, d in ipairs { "dq", "dk", "dv" } do t.ok(name == "dout" or name == "v" or has_nan(y[d]), dtype .. ": " .. name .. " in " .. d) end
        t.ok(has_nan(y.dk), dtype .. ": " .. name .. " in dk")
      end
    end
    local s = case(1, 300, 1, 1, 8)
    local x = inputs(s, dtype)
    for _, name in ipairs { "k", "v" } do x[name]:narrow(1, 290, 1):fill(0 / 0) end
    t.ok(not has_nan(forward(s, x, dtype).o:narrow(1, 0, 256)), "queries before it are as they were")
  end
end)

t.test("attention says what is wrong with its arguments", function()
  local function wrong(part, change, op)
    local s = case(1, 5, 4, 2, 8)
    local x = inputs(s, "bf16")
    local y = forward(s, x, "bf16")
    for _, name in ipairs { "dq", "dk", "dv" } do y[name] = tensor.new((name == "dq" and x.q or x.k).shape, "bf16") end
    change(x, y, s)
    t.fails(part, function()
      if op == "backward" then
        c.attention_backward(y.dq.c, y.dk.c, y.dv.c, x.dout.c, x.q.c, x.k.c, x.v.c, y.o.c, y.lse.c, nil, s.scale, 0)
      else
        c.attention(y.o.c, y.lse.c, x.q.c, x.k.c, x.v.c, nil, s.scale, 0)
      end
    end)
  end
  wrong("attention: 'k' is f32, want bf16 (dtype of q)", function(x) x.k = x.k:to "f32" end)
  wrong("attention: 'v' is f32, want bf16 (dtype of q)", function(x) x.v = x.v:to "f32" end)
  wrong("attention: 'o' is f32, want bf16 (dtype of q)", function(_, y) y.o = y.o:to "f32" end)
  wrong("attention: 'k' is bf16, want f32 (dtype of q)", function(x) x.q = x.q:to "f32" end)
  wrong("attention: 'q' is f16, want f32 or bf16", function(x) x.q = x.q:to "f16" end)
  wrong("attention: 'lse' is bf16, want f32", function(_, y) y.lse = y.lse:to "bf16" end)
  wrong("attention: scale is -1, want a number above 0", function(_, _, s) s.scale = -1 end)
  wrong("nan, want a number above 0", function(_, _, s) s.scale = 0 / 0 end)
  for _, name in ipairs { "dq", "dk", "dv" } do
    wrong("attention_backward: '" .. name .. "' is f32, want bf16 (dtype of q)", function(_, y) y[name] = y[name]:to "f32" end, "backward")
  end
  wrong("attention_backward: 'dout' is f32, want bf16 (dtype of q)", function(x) x.dout = x.dout:to "f32" end, "backward")
  wrong("attention_backward: 'o' is f32, want bf16 (dtype of q)", function(_, y) y.o = y.o:to "f32" end, "backward")
end)

-- ---- other instruction sets, other numbers of threads ----

local function child(variables, out)
  local program = t.program() or t.skip "needs the espalier program"
  local command = { "/usr/bin/env" }
  for _, v in ipairs(variables) do command[#command + 1] = v end
  for _, v in ipairs { file.real(program), t.root .. "tests/run.lua", "attention" } do command[#command + 1] = v end
  return process.start(command, out):wait(), t.read(out)
end

t.test("bits of attention do not depend on the number of threads", function()
  local dir, bits = t.folder(), {}
  for i, threads in ipairs { 1, 2, 5 } do
    local to = dir .. "/bits" .. i
    local code, said = child({ "ESPALIER_THREADS=" .. threads, "ESPALIER_ATTENTION_BITS=" .. to }, dir .. "/said")
    t.equal(code, 0, said)
    bits[i] = t.read(to)
    t.ok(#bits[i] > 1000 and bits[i] == bits[1], threads .. " threads")
  end
end)

t.test("every instruction set of the machine gives these results", function()
  if os.getenv "ESPALIER_ISA" then t.skip "this is such a run" end
  for _, isa in ipairs { "generic", "avx512_bf16" } do
    local code, said = child({ "ESPALIER_ISA=" .. isa }, t.folder() .. "/said")
    t.equal(code, 0, isa .. ": " .. said)
  end
end)
