--- Runs tests/spec/*.lua and counts: the last line is "N passed, N failed, N skipped"; exit code 1 where one failed.
--
--   build/espalier tests/run.lua [part of a spec's name ...]
--
-- A spec gets `t` as `...`: t.test(name, fn), t.equal, t.near, t.ok, t.fails, t.skip, t.little, t.shared(path), t.folder(), t.read, t.write, t.root.

local root = debug.getinfo(1, "S").source:match "^@(.*)tests/run%.lua$" or ""
if root == "" then root = "./" end
package.path = root .. "lua/?.lua;" .. root .. "lua/?/init.lua;" .. root .. "tests/?.lua;" .. package.path

local esp = require "espalier"
local tensor = require "espalier.tensor"
local file = require "espalier.io.file"
require "espalier.ops"

local shared = os.getenv "ESPALIER_SHARED" or root .. "../shared"
local passed, failed, skipped = 0, 0, 0
local folders = {}
local t = { root = root }

-- A line at a time, also into a file: what hangs can be seen.
io.stdout:setvbuf "line"

local SKIP = {}

local function show(v)
  if type(v) == "string" then return string.format("%q", v) end
  return tostring(v)
end

local function plain(v)
  return tensor.is(v) and v:table() or v
end

--- The `bytes` bytes of a whole number, the lowest first.
function t.little(n, bytes)
  local out = {}
  for i = 1, bytes do
    out[i] = string.char(n % 256)
    n = math.floor(n / 256)
  end
  return table.concat(out)
end

function t.ok(condition, what)
  if not condition then error(what or "not so", 2) end
end

local function first_difference(a, b, path)
  if type(a) ~= "table" or type(b) ~= "table" then
    return a ~= b and string.format("%s: got %s, want %s", path, show(a), show(b)) or nil
  end
  for k, v in pairs(a) do
    local d = first_difference(v, b[k], path .. "[" .. show(k) .. "]")
    if d then return d end
  end
  for k in pairs(b) do
    if a[k] == nil then return string.format("%s[%s]: got nil, want %s", path, show(k), show(b[k])) end
  end
end

--- Deep equality.
function t.equal(got, want, what)
  local d = first_difference(plain(got), plain(want), what or "value")
  if d then error(d, 2) end
end

local function near(a, b, tolerance, path)
  if type(b) == "table" then
    if type(a) ~= "table" or #a ~= #b then return string.format("%s: got %s entries, want %d", path, type(a) == "table" and #a or type(a), #b) end
    for i = 1, #b do
      local d = near(a[i], b[i], tolerance, path .. "[" .. i - 1 .. "]")
      if d then return d end
    end
  elseif not (type(a) == "number" and (a == b or math.abs(a - b) <= tolerance)) then
    return string.format("%s: got %s, want %s within %g", path, tostring(a), tostring(b), tolerance)
  end
end

--- Numbers, tables or tensors within an absolute tolerance; NaN fails.
function t.near(got, want, tolerance, what)
  local d = near(plain(got), plain(want), tolerance, what or "value")
  if d then error(d, 2) end
end

--- fn must fail with a sentence that holds `part`.
function t.fails(part, fn, ...)
  local ok, message = pcall(fn, ...)
  if ok then error("did not fail; want: " .. part, 2) end
  if not tostring(message):find(part, 1, true) then error("failed with: " .. tostring(message) .. "; want: " .. part, 2) end
  return message
end

function t.skip(reason)
  error({ SKIP, reason }, 0)
end

--- Path of a file of the shared test data; without the data the test is skipped.
function t.shared(path)
  local full = file.join(shared, path)
  if not file.kind(full) then t.skip("no " .. path) end
  return full
end

--- A fresh folder, removed at the end.
function t.folder()
  local dir = string.format("%s/espalier-test-%d-%d", os.getenv "TMPDIR" or "/tmp", esp.ffi.C.esp_process_id(), #folders)
  file.remove(dir)
  file.make(dir)
  folders[#folders + 1] = dir
  return dir
end

t.read, t.write = file.read, file.write

--- The program that runs this, for starting children; nil under plain luajit.
function t.program()
  local path = file.real "/proc/self/exe"
  return file.name(path) == "espalier" and path or nil
end

--- Runs a file of specs again in a process of its own for each of these instruction sets; skipped where this is such a run.
function t.under_each_isa(name, list)
  if os.getenv "ESPALIER_ISA" then t.skip "this is such a run" end
  local program, out = t.program() or t.skip "needs the espalier program", t.folder() .. "/out"
  for _, isa in ipairs(list) do
    local argv = { "/usr/bin/env", "ESPALIER_ISA=" .. isa, program, t.root .. "tests/run.lua", name }
    t.equal(esp.io.process.start(argv, out):wait(), 0, isa .. ": " .. t.read(out))
  end
end

--- Runs a recipe with each of these numbers of threads: it must say the same every time.
function t.same_with_threads(recipe, list)
  local program, dir = t.program() or t.skip "needs the espalier program", t.folder()
  local first
  t.write(dir .. "/recipe.lua", recipe)
  for _, n in ipairs(list) do
    local child = esp.io.process.start({ "/usr/bin/env", "ESPALIER_THREADS=" .. n, program, dir .. "/recipe.lua" }, dir .. "/said")
    t.equal(child:wait(), 0, t.read(dir .. "/said"))
    local said = t.read(dir .. "/said")
    file.remove(dir .. "/said")
    first = first or said
    t.ok(#said > 0, "it says nothing")
    t.equal(said, first, n .. " threads")
  end
end

function t.test(name, fn)
  local ok, message = xpcall(fn, function(e)
    if type(e) == "table" and e[1] == SKIP then return e end
    return os.getenv "ESPALIER_TRACE" and debug.traceback(tostring(e), 2) or e
  end)
  if ok then
    passed = passed + 1
  elseif type(message) == "table" and message[1] == SKIP then
    skipped = skipped + 1
    print("  skipped: " .. name .. " (" .. message[2] .. ")")
  else
    failed = failed + 1
    print("  FAILED: " .. name .. ": " .. tostring(message))
  end
end

local wanted = { ... }
for _, name in ipairs(file.list(root .. "tests/spec")) do
  local run = name:match "%.lua$" and #wanted == 0
  for _, w in ipairs(wanted) do run = run or name:find(w, 1, true) ~= nil end
  if run then
    local before, start = passed, esp.ffi.C.esp_clock()
    local chunk, problem = loadfile(root .. "tests/spec/" .. name)
    if chunk then
      local ok, message = xpcall(chunk, debug.traceback, t)
      if not ok then problem = message end
    end
    if problem then
      failed = failed + 1
      print("  FAILED: " .. name .. ": " .. tostring(problem))
    end
    print(string.format("%-24s %3d passed  %.1f s", name:gsub("%.lua$", ""), passed - before, esp.ffi.C.esp_clock() - start))
    collectgarbage()
  end
end
for _, dir in ipairs(folders) do file.remove(dir) end
print(string.format("%d passed, %d failed, %d skipped", passed, failed, skipped))
os.exit(failed == 0 and 0 or 1)
