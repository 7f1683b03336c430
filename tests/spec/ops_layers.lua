--- The operations of transformer layers, against their formulas in Lua doubles.
local t = ...

local esp = require "espalier"
local tensor = require "espalier.tensor"
local ops = require "espalier.ops"
local rows = require "oprows"

local function op(row) rows.op(t, row) end

op { "linear", covers = { "linear", "linear_dx", "linear_dx_acc", "linear_dw", "linear_dw_acc" }, grad = { "x", "w" },
  ins = { { x = { 1, 1 }, w = { 1, 1 } }, { x = { 3, 5 }, w = { 4, 5 } }, { x = { 2, 1024 }, w = { 3, 1024 } }, { x = { 130, 17 }, w = { 65, 17 } },
    { x = { 2, 1025 }, w = { 2, 1025 } } },
  run = function(i) return ops.linear(i.x, i.w) end,
  ref = function(v, shapes)
    local y, I, O = {}, shapes.x[2], shapes.w[1]
    for n = 0, shapes.x[1] - 1 do
      for o = 0, O - 1 do
        local s = 0
        for k = 1, I do s = s + v.x[n * I + k] * v.w[o * I + k] end
        y[#y + 1] = s
      end
    end
    return y
  end }

op { "linear used twice", covers = {}, grad = { "x", "w" }, ins = { { x = { 3, 5 }, w = { 5, 5 } } },
  run = function(i) return ops.linear(ops.linear(i.x, i.w), i.w) end,
  ref = function(v)
    local function once(x)
      local y = {}
      for n = 0, 2 do
        for o = 0, 4 do
          local s = 0
          for k = 1, 5 do s = s + x[n * 5 + k] * v.w[o * 5 + k] end
          y[#y + 1] = s
        end
      end
      return y
    end
    return once(once(v.x))
  end }

-- eps is large here, so that leaving it out anywhere shows.
op { "rmsnorm", covers = { "rmsnorm", "rmsnorm_backward" }, grad = { "x", "w" }, scales = { 0.1, 30 }, floor = 1e-2,
  ins = { { x = { 1, 1 }, w = { 1 } }, { x = { 3, 5 }, w = { 5 } }, { x = { 2, 1024 }, w = { 1024 } }, { x = { 2, 1025 }, w = { 1025 } },
    { x = { 70, 8 }, w = { 8 } } },
  run = function(i) return ops.rmsnorm(i.x, i.w, 0.01) end,
  ref = function(v, shapes)
    local y, C = {}, shapes.w[1]
    for n = 0, shapes.x[1] - 1 do
      local s = 0
      for c = 1, C do s = s + v.x[n * C + c] ^ 2 end
      for c = 1, C do y[#y + 1] = v.x[n * C + c] / math.sqrt(s / C + 0.01) * v.w[c] end
    end
    return y
  end }

op { "rmsnorm of a weight stored less 1", covers = {}, grad = { "x", "w" }, scales = { 0.1, 30 }, floor = 1e-2,
  ins = { { x = { 3, 5 }, w = { 5 } }, { x = { 33, 65 }, w = { 65 } } },
  run = function(i) return ops.rmsnorm(i.x, i.w, 0.01, 1) end,
  ref = function(v, shapes)
    local y, C = {}, shapes.w[1]
    for n = 0, shapes.x[1] - 1 do
      local s = 0
      for c = 1, C do s = s + v.x[n * C + c] ^ 2 end
      for c = 1, C do y[#y + 1] = v.x[n * C + c] / math.sqrt(s / C + 0.01) * (v.w[c] + 1) end
    end
    return y
  end }

-- A mean far from 0, and an eps that shows.
for _, offset in ipairs { 0, 1 } do
  op { "layernorm" .. (offset == 1 and " of a weight stored less 1" or ""), covers = { "layernorm", "layernorm_backward" }, grad = { "x", "w", "b" },
    scales = { 0.1, 30 }, floor = 1e-2, domain = { x = function(u, scale) return (u + 2) * scale end, w = function(u) return u end },
    ins = { { x = { 1, 2 }, w = { 2 }, b = { 2 } }, { x = { 3, 5 }, w = { 5 }, b = { 5 } }, { x = { 2, 1024 }, w = { 1024 }, b = { 1024 } },
      { x = { 2, 1025 }, w = { 1025 }, b = { 1025 } }, { x = { 70, 9 }, w = { 9 }, b = { 9 } } },
    run = function(i) return ops.layernorm(i.x, i.w, i.b, 0.01, offset) end,
    ref = function(v, shapes)
      local y, C = {}, shapes.w[1]
      for n = 0, shapes.x[1] - 1 do
        local mean, square = 0, 0
        for c = 1, C do mean = mean + v.x[n * C + c] / C end
        for c = 1, C do square = square + (v.x[n * C + c] - mean) ^ 2 / C end
        for c = 1, C do y[#y + 1] = (v.x[n * C + c] - mean) / math.sqrt(square + 0.01) * (v.w[c] + offset) + v.b[c] end
      end
      return y
    end }
end

op { "linear with a bias", covers = { "bias" }, grad = { "x", "w", "b" },
  ins = { { x = { 1, 1 }, w = { 1, 1 }, b = { 1 } }, { x = { 3, 5 }, w = { 4, 5 }, b = { 4 } }, { x = { 33, 3 }, w = { 130, 3 }, b = { 130 } } },
  run = function(i) return ops.linear(i.x, i.w, i.b) end,
  ref = function(v, shapes)
    local y, I, O = {}, shapes.x[2], shapes.w[1]
    for n = 0, shapes.x[1] - 1 do
      for o = 0, O - 1 do
        local s = v.b[o + 1]
        for k = 1, I do s = s + v.x[n * I + k] * v.w[o * I + k] end
        y[#y + 1] = s
      end
    end
    return y
  end }

-- ---- activations ----

local function tanh(x)
  return 1 - 2 / (math.exp(2 * x) + 1)
end

local activations = {
  silu = function(x) return x / (1 + math.exp(-x)) end,
  gelu_tanh = function(x) return 0.5 * x * (1 + tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ^ 3))) end,
  relu2 = function(x) return math.max(x, 0) ^ 2 end,
}
for kind, f in pairs(activations) do
  op { "gate of " .. kind, covers = { "gate", "gate_backward" }, grad = { "gate", "up" }, scales = { 1, 20 },
    ins = { { gate = { 1, 1 }, up = { 1, 1 } }, { gate = { 3, 5 }, up = { 3, 5 } }, { gate = { 2, 1024 }, up = { 2, 1024 } },
      { gate = { 2, 1025 }, up = { 2, 1025 } } },
    run = function(i) return ops.gate(i.gate, i.up, kind) end,
    ref = function(v)
      local y = {}
      for k, g in ipairs(v.gate) do y[k] = f(g) * v.up[k] end
      return y
    end }
  op { kind .. " without a gate", covers = {}, grad = { "x" }, scales = { 1, 20 }, ins = { { x = { 3, 5 } }, { x = { 2, 1025 } } },
    run = function(i) return ops.gate(i.x, nil, kind) end,
    ref = function(v)
      local y = {}
      for k, x in ipairs(v.x) do y[k] = f(x) end
      return y
    end }
end

-- Scales: nearly straight, bent, at the cap.
op { "softcap", covers = { "softcap", "softcap_backward" }, grad = { "x" }, scales = { 0.1, 3, 60 }, floor = 1e-3,
  ins = { { x = { 1, 1 } }, { x = { 3, 5 } }, { x = { 2, 1025 } } },
  run = function(i) return ops.softcap(i.x, 5) end,
  ref = function(v)
    local y = {}
    for k, x in ipairs(v.x) do y[k] = 5 * tanh(x / 5) end
    return y
  end }

t.test("tanh of the core is good near 0, where it bends and at its end", function()
  for _, x in ipairs { 0, 1e-30, 1e-4, 0.3, 0.6249, 0.6251, 1, 4, 20, 1e4 } do
    for _, sign in ipairs { 1, -1 } do
      local y, want = ops.softcap(tensor.of { sign * x }, 1):table()[1], sign * (x < 1e-3 and x or 1 - 2 / (math.exp(2 * x) + 1))
      t.near(y, want, 2e-7 * math.abs(want), "tanh " .. sign * x)
    end
  end
  t.fails("softcap: cap is 0, want a number above 0", ops.softcap, tensor.of { 1 }, 0)
  t.fails("gate: kind is 'gelu', want silu", ops.gate, tensor.of { 1 }, nil, "gelu")
  t.fails("bias: 'b' is [3], want [2]", ops.linear, tensor.zeros { 1, 4 }, tensor.zeros { 2, 4 }, tensor.zeros { 3 })
  t.fails("layernorm: 'b' is [3], want [2]", ops.layernorm, tensor.zeros { 1, 2 }, tensor.zeros { 2 }, tensor.zeros { 3 })
end)

op { "embedding", covers = { "embedding", "embedding_dw_acc" }, grad = { "w" }, nan = false, ins = { { w = { 4, 5 } }, { w = { 3, 1025 } } },
  run = function(i) return ops.embedding(i.w, tensor.of({ { 2, 0, 2 }, { 1, 2, 0 } }, { dtype = "i32" })) end,
  ref = function(v, shapes)
    local y, C = {}, shapes.w[2]
    for _, id in ipairs { 2, 0, 2, 1, 2, 0 } do for c = 1, C do y[#y + 1] = v.w[id * C + c] end end
    return y
  end }

-- Angles of position p and pair c: p / 7^(c+1), as cos and sin tables.
local function tables(T, half)
  local cos, sin = {}, {}
  for p = 1, T do
    cos[p], sin[p] = {}, {}
    for c = 1, half do cos[p][c], sin[p][c] = math.cos((p - 1) / 7 ^ c), math.sin((p - 1) / 7 ^ c) end
  end
  return tensor.of(cos), tensor.of(sin)
end

op { "rope", grad = { "x" }, ins = { { x = { 1, 1, 1, 2 } }, { x = { 2, 5, 3, 6 } }, { x = { 1, 67, 2, 48 } } },
  run = function(i, shapes) return ops.rope(i.x, tables(shapes.x[2], shapes.x[4] / 2)) end,
  ref = function(v, shapes)
    local B, T, H, D = unpack(shapes.x)
    local y, half = {}, D / 2
    for b = 0, B - 1 do
      for p = 0, T - 1 do
        for h = 0, H - 1 do
          local at = ((b * T + p) * H + h) * D
          for c = 1, half do
            local angle = p / 7 ^ c
            local x1, x2 = v.x[at + c], v.x[at + half + c]
            y[at + c], y[at + half + c] = x1 * math.cos(angle) - x2 * math.sin(angle), x2 * math.cos(angle) + x1 * math.sin(angle)
          end
        end
      end
    end
    return y
  end }

op { "rope of a part of the head", covers = {}, grad = { "x" }, ins = { { x = { 2, 5, 3, 6 } } },
  run = function(i) return ops.rope(i.x, tables(5, 2)) end,
  ref = function(v)
    local y = {}
    for k = 1, #v.x do y[k] = v.x[k] end
    for n = 0, 29 do
      local p = math.floor(n / 3) % 5
      for c = 1, 2 do
        local angle, x1, x2 = p / 7 ^ c, v.x[n * 6 + c], v.x[n * 6 + 2 + c]
        y[n * 6 + c], y[n * 6 + 2 + c] = x1 * math.cos(angle) - x2 * math.sin(angle), x2 * math.cos(angle) + x1 * math.sin(angle)
      end
    end
    return y
  end }

-- First key of each query: a document boundary in the middle of each row.
local function first_keys(B, T)
  local list = {}
  for b = 1, B do
    list[b] = {}
    for p = 0, T - 1 do list[b][p + 1] = p >= math.floor(T / 2) + b - 1 and math.floor(T / 2) + b - 1 or 0 end
  end
  return list
end

local function attention_reference(documents, cap)
  return function(v, shapes)
    local B, T, H, D = unpack(shapes.q)
    local S, G, y = shapes.k[2], shapes.k[3], {}
    local first = documents and first_keys(B, T)
    for b = 0, B - 1 do
      for p = 0, T - 1 do
        for h = 0, H - 1 do
          local g, scores, m = math.floor(h / (H / G)), {}, -math.huge
          local from = first and first[b + 1][p + 1] or 0
          for j = from, S - T + p do
            local s = 0
            for c = 1, D do s = s + v.q[((b * T + p) * H + h) * D + c] * v.k[((b * S + j) * G + g) * D + c] end
            scores[j] = cap and cap * tanh(s / math.sqrt(D) / cap) or s / math.sqrt(D)
            m = math.max(m, scores[j])
          end
          local z = 0
          for j = from, S - T + p do z = z + math.exp(scores[j] - m) end
          for c = 1, D do
            local s = 0
            for j = from, S - T + p do s = s + math.exp(scores[j] - m) / z * v.v[((b * S + j) * G + g) * D + c] end
            y[((b * T + p) * H + h) * D + c] = s
          end
        end
      end
    end
    return y
  end
end

local function heads(B, T, H, G, D, S)
  return { q = { B, T, H, D }, k = { B, S or T, G, D }, v = { B, S or T, G, D } }
end

-- One key, odd sizes, more than one tile (67, 130), groups of one, two and four heads.
local attention_shapes = { heads(1, 1, 1, 1, 2), heads(2, 5, 4, 2, 8), heads(1, 67, 4, 1, 6), heads(1, 130, 2, 2, 16) }
op { "attention", covers = { "attention", "attention_backward" }, grad = { "q", "k", "v" }, scales = { 1, 4 }, floor = 1e-1, ins = attention_shapes,
  run = function(i) return ops.attention(i.q, i.k, i.v) end, ref = attention_reference(false) }
op { "attention within documents", covers = {}, grad = { "q", "k", "v" }, scales = { 1 }, ins = { heads(2, 6, 4, 2, 8), heads(1, 130, 2, 1, 4) },
  run = function(i, shapes)
    return ops.attention(i.q, i.k, i.v, { first = tensor.of(first_keys(shapes.q[1], shapes.q[2]), { dtype = "i32" }) })
  end, ref = attention_reference(true) }
op { "attention with capped scores", covers = {}, grad = { "q", "k", "v" }, scales = { 1, 3 }, floor = 1e-1,
  ins = { heads(2, 5, 4, 2, 8), heads(1, 67, 2, 1, 6) }, run = function(i) return ops.attention(i.q, i.k, i.v, { cap = 1.5 }) end,
  ref = attention_reference(false, 1.5) }
op { "attention behind a cache", covers = {}, scales = { 1 }, ins = { heads(1, 1, 4, 2, 8, 9), heads(2, 3, 2, 1, 48, 70) },
  run = function(i) return ops.attention(i.q, i.k, i.v) end, ref = attention_reference(false) }

-- ---- storage in bf16: weights are read as they are rounded ----

t.test("linear, embedding and norms read bf16 weights", function()
  local x, w = tensor.normal({ 3, 16 }, { seed = 1 }), tensor.normal({ 8, 16 }, { seed = 2 }):to "bf16"
  local scale = tensor.normal({ 16 }, { seed = 3 }):to "bf16"
  t.near(ops.linear(x, w), ops.linear(x, w:to "f32"), 1e-5, "linear")
  local ids = tensor.of({ 3, 0 }, { dtype = "i32" })
  t.near(ops.embedding(w, ids), ops.embedding(w:to "f32", ids), 0, "embedding")
  local wide = scale:to "f32"
  for _, offset in ipairs { 0, 1 } do
    t.near(ops.rmsnorm(x, scale, 1e-5, offset), ops.rmsnorm(x, wide, 1e-5, offset), 0, "rmsnorm")
    t.near(ops.layernorm(x, scale, scale, 1e-5, offset), ops.layernorm(x, wide, wide, 1e-5, offset), 0, "layernorm")
  end
  t.near(ops.linear(x, tensor.zeros { 16, 16 }, scale), ops.linear(x, tensor.zeros { 16, 16 }, wide), 0, "bias")
end)

-- ---- a block of one's own ----

t.test("a block composed of esp.nn trains", function()
  local nn = esp.nn
  local down, up, norm = nn.Linear { inputs = 12, outputs = 5, seed = 1 }, nn.Linear { inputs = 5, outputs = 12, seed = 2 }, nn.RMSNorm { size = 12 }
  local x, want = tensor.normal({ 6, 12 }, { seed = 3 }), tensor.normal({ 6, 12 }, { seed = 4 })
  local parameters = {}
  for _, layer in ipairs { down, up, norm } do for _, p in pairs(layer:parameters()) do parameters[#parameters + 1] = p:requires_grad_(true) end end
  local first, last
  for _ = 1, 60 do
    esp.scope(function()
      local error_ = x + up(down(norm(x))) - want
      local loss = (error_ * error_):mean()
      last = loss:item()
      first = first or last
      loss:backward()
      for _, p in ipairs(parameters) do
        esp.no_grad(function() p:copy_from(p - p.grad * 0.1) end)
        p.grad:free()
        p.grad = nil
      end
    end)
  end
  t.ok(last < 0.8 * first, "the loss went from " .. first .. " to " .. last)
end)
