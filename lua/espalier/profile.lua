--- Where a run's time and memory go, op by op: every operation of the core is timed, and its results are counted while most bytes are live.
--
--   local result = esp.profile(function() ... end); print(result)        or        espalier profile recipe.lua name=value ...

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"
local quantity = require "espalier.quantity"
local fail = require "espalier.fail"
require "espalier.scope"       -- its hook on new tensors is there before ours

local C = core.C
local Profile = {}
Profile.__index = Profile

local function last(c)
  local n = C.esp_tensor_ndim(c)
  return n == 0 and 1 or tonumber(C.esp_tensor_shape(c)[n - 1])
end

local function count(c)
  return tonumber(C.esp_tensor_count(c))
end

-- Floating-point operations of a call that is made of matrix products, from its arguments; nil for other operations. Causal attention reads half of
-- the square of positions; its backward makes five products where forward makes two.
local function flops(name, a, b, d, e)
  if name:match "^linear.*_dw" then return 2 * count(b) * last(d) end
  if name:match "^linear" then return 2 * count(a) * last(b) end
  if name == "attention" then
    local q, S = C.esp_tensor_shape(d), tonumber(C.esp_tensor_shape(e)[1])
    return 4 * count(d) * (S - tonumber(q[1]) / 2)
  elseif name == "attention_backward" then
    return 10 * count(a) * tonumber(C.esp_tensor_shape(a)[1]) / 2
  end
end

-- Bytes by the operation that made them, of the tensors that live now.
local function snapshot(made)
  local bytes = {}
  for c, one in pairs(made) do
    if C.esp_tensor_data(c) ~= nil then bytes[one.op or "other"] = (bytes[one.op or "other"] or 0) + one.bytes end
  end
  return bytes
end

local function watched(name, op, p, made)
  local row = { op = name, calls = 0, seconds = 0, flops = 0 }
  return function(a, ...)
    local start = C.esp_clock()
    op(a, ...)
    local spent = C.esp_clock() - start
    if row.calls == 0 then p.rows[#p.rows + 1] = row end
    row.calls, row.seconds, row.flops = row.calls + 1, row.seconds + spent, row.flops + (flops(name, a, ...) or 0)
    if made[a] then made[a].op = made[a].op or name end
    local live = tonumber(C.esp_memory_live())
    -- A snapshot walks all tensors, so it waits until the peak has risen by a fiftieth.
    if live > 1.02 * p.peak then p.peak, p.bytes = live, snapshot(made) end
  end
end

local function by_bytes(bytes)
  local names = {}
  for name in pairs(bytes) do names[#names + 1] = name end
  table.sort(names, function(a, b) return bytes[a] > bytes[b] end)
  return names
end

--- Share of the time spent in matrix products, attention's among them, and their floating-point operations a second.
function Profile:products()
  local seconds, flop = 0, 0
  for _, r in ipairs(self.rows) do if r.flops > 0 then seconds, flop = seconds + r.seconds, flop + r.flops end end
  return seconds / self.seconds, seconds > 0 and flop / seconds or 0
end

function Profile:__tostring()
  local out, inside = { string.format("%-24s %9s %10s %7s %9s", "operation", "calls", "seconds", "share", "GFLOP/s") }, 0
  local function line(name, calls, seconds, rate)
    out[#out + 1] = string.format("%-24s %9s %10.3f %6.1f%% %9s", name, calls, seconds, 100 * seconds / self.seconds, rate)
  end
  for _, r in ipairs(self.rows) do
    inside = inside + r.seconds
    line(r.op, r.calls, r.seconds, r.flops > 0 and string.format("%.0f", r.flops / r.seconds / 1e9) or "")
  end
  line("between operations", "", self.seconds - inside, "")
  local share, rate = self:products()
  line("matrix products", "", share * self.seconds, string.format("%.0f", rate / 1e9))
  out[#out + 1] = ""
  out[#out + 1] = string.format("live at the peak: %s, by the operation that wrote it first", quantity.show_bytes(self.peak))
  for _, name in ipairs(by_bytes(self.bytes)) do
    out[#out + 1] = string.format("  %-22s %12s", name, quantity.show_bytes(self.bytes[name]))
  end
  return table.concat(out, "\n")
end

--- Runs fn(...) and returns its profile: print it, or read seconds (all), rows { op, calls, seconds, flops }, peak (bytes live at most) and bytes (of
-- those, by the operation that made them). What fn raises is raised. Not inside another profile.
return function(fn, ...)
  if type(fn) ~= "function" then fail("esp.profile: the first argument is %s, want a function", type(fn)) end
  local p = setmetatable({ rows = {}, peak = tonumber(C.esp_memory_live()), bytes = {} }, Profile)
  local plain, made, before = {}, setmetatable({}, { __mode = "k" }), tensor.on_new
  for name, op in pairs(core.ops) do
    plain[name] = op
    core.ops[name] = watched(name, op, p, made)
  end
  tensor.on_new = function(t, own)
    if before then before(t, own) end
    if own then made[t.c] = { bytes = t:count() * tonumber(C.esp_dtype_size(C.esp_tensor_dtype(t.c))) } end
  end
  local start = C.esp_clock()
  local ok, message = pcall(fn, ...)
  p.seconds = C.esp_clock() - start
  tensor.on_new = before
  for name, op in pairs(plain) do core.ops[name] = op end
  if not ok then error(message, 0) end
  table.sort(p.rows, function(a, b) return a.seconds > b.seconds end)
  return p
end
