--- Products of linear layers in f32 against sums in double, at sizes around every tile, tail and block, dense and through views, in every instruction
-- set that the machine has (those in bf16 are held against these: bf16.lua).
local t = ...

local esp = require "espalier"
local tensor = require "espalier.tensor"
local product = require("espalier.product").of "f32"

local function numbers(x)
  local flat = x:contiguous():to "f64"
  return require("espalier.ffi").cast("double *", flat:data()), flat
end

-- { N, I, O }: one tile; tails in rows, columns and k; one number; several blocks down, across, and both; two runs of k; rows that a first cache
-- would keep in one place.
local sizes = {
  { 12, 32, 32 }, { 13, 33, 33 }, { 11, 2, 31 }, { 6, 1, 1 }, { 5, 769, 65 }, { 3, 19, 7 }, { 700, 40, 48 }, { 40, 17, 1300 }, { 400, 30, 130 },
  { 30, 1100, 70 }, { 14, 1024, 20 },
}

-- A tensor of this shape: dense, or the first columns of a wider one.
local function of(shape, wide, opt)
  local x = tensor.normal({ shape[1], shape[2] + wide }, opt)
  return tensor.narrow(x, 1, 0, shape[2])
end

-- got[i,j] is start + sum over p of a(i, p) b(p, j), to within 1e-6 of the sum of magnitudes.
local function sums(got, m, n, k, a, b, start, what)
  local data, held = numbers(got)
  for i = 0, m - 1 do
    for j = 0, n - 1 do
      local sum, size = start, 1
      for p = 0, k - 1 do
        local term = a(i, p) * b(p, j)
        sum, size = sum + term, size + math.abs(term)
      end
      local off = math.abs(data[i * n + j] - sum)
      if not (off <= 1e-6 * size) then t.ok(false, string.format("%s: [%d,%d] is %g, want %g", what, i, j, data[i * n + j], sum)) end
    end
  end
  held:free()
end

t.test("products in f32 are the sums of products", function()
  for _, size in ipairs(sizes) do
    for _, wide in ipairs { 0, 3 } do
      esp.scope(function()
        local N, I, O = unpack(size)
        local what = table.concat(size, "x") .. (wide > 0 and " of views" or "")
        local x, w, dy = of({ N, I }, wide, { seed = 1 }), of({ O, I }, wide, { seed = 2 }), of({ N, O }, wide, { seed = 3 })
        local px, hx = numbers(x)
        local pw, hw = numbers(w)
        local pd, hd = numbers(dy)
        local function X(n, i) return px[n * I + i] end
        local function W(o, i) return pw[o * I + i] end
        local function D(n, o) return pd[n * O + o] end
        local function into(shape) return of(shape, wide, { seed = 4 }):fill(0.5) end
        local function check(name, shape, k, left, right, a, b, start)
          local got = into(shape)
          product[name](got, left, right)
          sums(got, shape[1], shape[2], k, a, b, start, name .. " " .. what)
        end
        check("forward", { N, O }, I, x, w, X, function(i, o) return W(o, i) end, 0)
        check("dx", { N, I }, O, dy, w, D, W, 0)
        check("dx_acc", { N, I }, O, dy, w, D, W, 0.5)
        check("dw", { O, I }, N, dy, x, function(o, n) return D(n, o) end, X, 0)
        check("dw_acc", { O, I }, N, dy, x, function(o, n) return D(n, o) end, X, 0.5)
        hx:free() hw:free() hd:free()
      end)
    end
  end
end)

t.test("a weight in bf16 is read as the numbers that it holds", function()
  for _, size in ipairs(sizes) do
    esp.scope(function()
      local N, I, O = unpack(size)
      local x, dy, w = tensor.normal({ N, I }, { seed = 1 }), tensor.normal({ N, O }, { seed = 3 }), tensor.normal({ O, I }, { seed = 2 }):to "bf16"
      local y, want = tensor.new { N, O }, tensor.new { N, O }
      product.forward(y, x, w)
      product.forward(want, x, w:to "f32")
      -- Few rows add up in another order.
      t.near(y, want, N <= 4 and 1e-5 or 0, "forward")
      local dx, wanted = tensor.new { N, I }, tensor.new { N, I }
      product.dx(dx, dy, w)
      product.dx(wanted, dy, w:to "f32")
      t.near(dx, wanted, 0, "dx")
    end)
  end
end)

t.test("NaN and infinity of one row or column stay there", function()
  local x, w, y = tensor.full({ 30, 40 }, 1), tensor.full({ 50, 40 }, 1), tensor.new { 30, 50 }
  tensor.narrow(tensor.narrow(x, 0, 7, 1), 1, 39, 1):fill(0 / 0)
  tensor.narrow(tensor.narrow(w, 0, 49, 1), 1, 0, 1):fill(1 / 0)
  product.forward(y, x, w)
  for r, row in ipairs(y:table()) do
    for c, v in ipairs(row) do
      if r == 8 then t.ok(v ~= v, "row 7 is NaN")
      else t.equal(v, c == 50 and 1 / 0 or 40) end
    end
  end
end)

t.test("products have the same bits however many threads they are cut for", function()
  t.same_with_threads([[
    local core, tensor, product = require "espalier.ffi", require "espalier.tensor", require "espalier.product"
    local N, I, O, hex = 1210, 70, 700, core.new "char[33]"
    for _, precision in ipairs { "f32", "bf16" } do
      local p = product.of(precision)
      local x, w, dy = tensor.normal({ N, I }, { seed = 1 }), tensor.normal({ O, I }, { seed = 2 }), tensor.normal({ N, O }, { seed = 3 })
      local results = { tensor.new { N, O }, tensor.new { N, I }, tensor.full({ O, I }, 1), tensor.new({ N, O }, precision) }
      p.forward(results[1], x, w)
      p.dx(results[2], dy, w)
      p.dw_acc(results[3], dy, x)
      p.forward(results[4], x, w)
      for _, y in ipairs(results) do
        core.try(core.C.esp_hash(hex, y:data(), y:count() * tonumber(core.C.esp_dtype_size(core.C.esp_tensor_dtype(y.c)))))
        print(core.string(hex))
      end
    end
  ]], { 1, 5, 40 })
end)

t.test("every instruction set of the machine gives these products", function()
  t.under_each_isa("products", { "generic", "avx512" })
end)
