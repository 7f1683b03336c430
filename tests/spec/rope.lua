--- Rotary positions against transformers: tests/golden/rope.py made the tables.
local t = ...

local esp = require "espalier"
local rope = require "espalier.nn.rope"
local configs = require "espalier.models.config"
local json = esp.io.json

local cases, golden = json.read(t.root .. "tests/golden/rope.json"), esp.io.safetensors.read(t.root .. "tests/golden/rope.safetensors")

for name, case in pairs(cases) do
  t.test("tables of " .. name, function()
    local s = configs.of_config(case.config, name)
    local cos, sin = rope.tables(case.length, s.head_dim, s.rope)
    t.equal(cos.shape, { case.length, rope.channels(s.head_dim, s.rope) / 2 })
    for i, row in ipairs(case.rows) do
      -- transformers makes angles in f32: half a unit of the last place of an angle.
      local tolerance = 2e-6 + row * 1.2e-7
      t.near(cos:select(0, row), golden[name .. ".cos"]:table()[i], tolerance, "cos of row " .. row)
      t.near(sin:select(0, row), golden[name .. ".sin"]:table()[i], tolerance, "sin of row " .. row)
    end
    t.equal(configs.of_config(configs.to_config(s, case.config), "again"), s)
    t.equal(configs.of_config(configs.to_config(s, nil, "f32", { kind = case.config.model_type }), "anew"), s)
  end)
end

t.test("tables that depend on the length follow the run", function()
  for _, kind in ipairs { "dynamic-past", "longrope-long" } do
    local s = configs.of_config(cases[kind].config, kind)
    s.layers, s.context = 1, math.max(s.context, 1500)
    local model, ids = esp.models.new(s, { seed = 5, std = 0.3 }), {}
    for i = 1, cases[kind].length do ids[i] = i * 17 % 40 end
    local long = model:logits { ids }:table()[1]
    local short = model:logits { { unpack(ids, 1, 100) } }:table()[1]
    local other = 0
    for i, v in ipairs(short[100]) do other = math.max(other, math.abs(v - long[100][i])) end
    t.ok(other > 1e-4, kind .. ": position 99 is the same in a run of 100 and of " .. #ids)
  end
  -- Generation passes the original context of 256 and goes on as one pass would.
  local s = configs.of_config(cases["longrope-long"].config, "longrope")
  local model, ids = esp.models.new(s, { seed = 5, std = 0.3 }), {}
  for i = 1, 250 do ids[i] = i * 17 % 40 end
  local generate = require("espalier.models.generate").ids
  for _, id in ipairs(generate(model, ids, { tokens = 10, temperature = 0 })) do
    local last = model:logits({ ids }):table()[1][#ids]
    for other = 1, 40 do t.ok(last[id + 1] >= last[other] - 1e-4, "position " .. #ids .. ": another id is likelier") end
    ids[#ids + 1] = id
  end
  t.equal(#ids, 260)
  s = configs.of_config(cases["longrope-short"].config, "longrope")
  s.rope.scaling.short_factor = { 1, 2 }
  t.fails("short_factor has 2 numbers, want 12", rope.tables, 10, 32, s.rope)
end)
