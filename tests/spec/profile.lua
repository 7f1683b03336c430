--- esp.profile and `espalier profile`: times, products and bytes by operation.
local t = ...

local esp = require "espalier"
local tensor = require "espalier.tensor"
local ops = require "espalier.ops"
local file, process = esp.io.file, esp.io.process

local function row_of(p, name)
  for _, r in ipairs(p.rows) do if r.op == name then return r end end
end

t.test("a profile counts calls, products and live bytes by operation", function()
  local plain = esp.ffi.ops.linear
  local p = esp.profile(function()
    local x, w = tensor.normal({ 64, 1024 }, { seed = 1 }), tensor.normal({ 2048, 1024 }, { seed = 2 }):requires_grad_(true)
    ops.linear(x, w):sum():backward()
  end)
  t.equal(row_of(p, "normal").calls, 2)
  t.equal(row_of(p, "linear").flops, 2 * 64 * 1024 * 2048)
  t.equal(row_of(p, "linear_dw").flops, 2 * 64 * 1024 * 2048)
  t.equal(row_of(p, "linear_dx"), nil, "x needs no gradient")
  t.equal(p.bytes.normal, 4 * (64 + 2048) * 1024)
  t.ok(p.peak >= p.bytes.normal, "the peak holds them")
  local share, rate = p:products()
  t.ok(share > 0 and share <= 1 and rate > 0)
  t.ok(tostring(p):find "linear_dw +1 ")
  t.equal(esp.ffi.ops.linear, plain, "the operations are themselves again")
end)

t.test("attention's products count half of the square", function()
  local p = esp.profile(function()
    local q, k = tensor.normal({ 2, 8, 4, 6 }, { seed = 1 }):requires_grad_(true), tensor.normal({ 2, 8, 2, 6 }, { seed = 2 })
    ops.attention(q, k, k):sum():backward()
  end)
  t.equal(row_of(p, "attention").flops, 2 * 2 * (2 * 4 * 6) * 8 * 8 / 2)
  t.equal(row_of(p, "attention_backward").flops, 2.5 * row_of(p, "attention").flops)
end)

t.test("what fails inside is raised, and nothing stays watched", function()
  local plain = esp.ffi.ops.add
  t.fails("on purpose", function() esp.profile(function() error("on purpose", 0) end) end)
  t.equal(esp.ffi.ops.add, plain)
  t.fails("the first argument is nil, want a function", function() esp.profile() end)
end)

t.test("espalier profile runs a recipe and prints its table", function()
  local program, dir = file.real(t.program() or t.skip "needs the espalier program"), t.folder()
  t.write(dir .. "/r.lua", [[
local esp = require "espalier"
local o = esp.options(..., { n = { "int" } })
print(esp.tensor.full({ o.n }, 2):sum():item())
]])
  local function run(...)
    local code = process.start({ program, "profile", ... }, dir .. "/out"):wait()
    local said = t.read(dir .. "/out")
    file.remove(dir .. "/out")
    return code, said
  end
  local code, said = run(dir .. "/r.lua", "n=8")
  t.equal(code, 0, said)
  t.ok(said:find "^16\n" and said:find "sum +1 " and said:find "live at the peak", said)
  code, said = run "nothing"
  t.equal(code, 1)
  t.ok(said:find("profile: name a recipe", 1, true), said)
end)
