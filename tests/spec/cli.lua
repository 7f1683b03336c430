--- The program: one line, verbs, help, the prompt through a pipe and on a terminal, Ctrl-C; and the core under plain luajit.
local t = ...

local esp = require "espalier"
local file, process = esp.io.file, esp.io.process
local C = esp.ffi.C

local function run(dir, argv)
  local child = process.start(argv, dir .. "/out")
  local code, said = child:wait(), t.read(dir .. "/out")
  file.remove(dir .. "/out")
  return code, said
end

local function program()
  return file.real(t.program() or t.skip "needs the espalier program")
end

t.test("one line, help and plan", function()
  local p, dir = program(), t.folder()
  local function says(part, ...)
    local code, said = run(dir, { p, ... })
    t.equal(code, 0, said)
    t.ok(said:find(part, 1, true), said)
  end
  says("2", "-e", "1 + 1")
  says("{ 9, 10, 11 }", "-e", "esp.range(9, 11)")
  says("tensor", "-e", "esp.tensor.of { { 1, 2 }, { 3, 4 } }")
  says("espalier plan MODEL", "--help")
  says("espalier 0.", "--version")
  says("Ties go to the lower index", "help", "prune")
  says("run.model is the trained student", "help", "distill")
  says("embedding channels to keep", "help", (t.root == "./" and "" or t.root) .. "recipes/minitron.lua")
  t.write(dir .. "/config.json", [[{ "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
    "rope_theta": 500000, "tie_word_embeddings": false, "hidden_act": "silu" }]])
  says("8,030,261,248", "plan", dir .. "/config.json", "hidden=3072")
end)

t.test("every function of the library has a comment that help finds", function()
  local help = require "espalier.cli.help"
  for name in pairs(esp.functions) do
    local text = help.about(esp[name])
    t.ok(not text:find("(no comment)", 1, true) and #text > 60, "esp." .. name .. ": " .. text)
  end
end)

t.test("help tells of a module, its functions and its layers", function()
  local help = require "espalier.cli.help"
  t.ok(help.about(esp.nn):find("Transformer layers as modules", 1, true) and help.about("nn"):find("nn.Block", 1, true), help.about "nn")
  t.ok(help.about("esp.nn.Block"):find("kv_heads", 1, true), "a layer")
  t.ok(help.about("prune"):find("esp.prune(model", 1, true), "a function goes before the module of its name")
  t.ok(help.about("schedule"):find("Warm-up, then half a cosine", 1, true), "first sentences")
  t.fails("nothing is called 'prun'", help.about, "prun")
end)

t.test("the prompt through a pipe: locals live on, results are shown, a mistake is one sentence", function()
  local p, dir = program(), t.folder()
  t.write(dir .. "/lines", [[
local x = 20
local function double(n) return 2 * n end
double(x) + 2
for i = 1, 2 do
  print("line " .. i)
end
esp.tensor.of { 1, 2, 3 }
local shape = { hidden = 8, ffn = 8, layers = 1, heads = 1, kv_heads = 1, head_dim = 8, vocab = 8, context = 8, norm_eps = 1e-5 }
shape.rope, shape.tied = { theta = 1e4 }, true
esp.models.new(shape, { seed = 1 })
esp.lod("x")
local y = = 3
help(esp.prune)
x
]])
  local code, said = run(dir, { "/bin/sh", "-c", string.format("HOME=%s exec %s < %s/lines", dir, p, dir) })
  -- A script that pipes lines in hears of the mistakes.
  t.equal(code, 1, said)
  for _, part in ipairs { "42", "line 1\nline 2", "tensor f32 [3]: 1 2 3", "536 parameters", "there is no esp.lod; did you mean esp.load?",
    "unexpected symbol", "Ties go to the lower index", "20" } do
    t.ok(said:find(part, 1, true), "no '" .. part .. "' in: " .. said)
  end
  t.ok(said:find("hidden 8, ffn 8", 1, true), "the model: " .. said)
  t.ok(not said:find("stack traceback", 1, true), said)
end)

-- Sends lines to the prompt on a terminal of `script`; keys: list of { seconds to wait, text }.
local function on_terminal(dir, p, keys)
  local code = process.start({ "/bin/sh", "-c", "command -v script" }, dir .. "/which"):wait()
  if code ~= 0 then t.skip "no script(1) to make a terminal" end
  local parts = {}
  for _, key in ipairs(keys) do parts[#parts + 1] = string.format("sleep %g; printf '%s'", key[1], key[2]) end
  local line = string.format("(%s; sleep 0.3) | HOME=%s TERM=xterm timeout 30 script -qec '%s' /dev/null", table.concat(parts, "; "), dir, p)
  local _, said = run(dir, { "/bin/sh", "-c", line })
  return (said:gsub("\r", ""))
end

t.test("on a terminal: TAB completes, Ctrl-C stops a loop and a kernel and comes back", function()
  local p, dir = program(), t.folder()
  local said = on_terminal(dir, p, {
    { 0.3, "esp.sensi\\t\\n" }, { 0.3, "while true do end\\n" }, { 0.5, "\\003" }, { 0.3, "print(6 * 7)\\n" },
    { 0.3, "local a = esp.tensor.normal({ 1500, 1500 }, { seed = 1 })\\n" }, { 0.3, "for i = 1, 1e9 do esp.ops.linear(a, a) end\\n" },
    { 0.7, "\\003" },
    { 0.5, "print(6 * 8)\\n" }, { 0.3, "\\004" } })
  t.ok(said:find("tivity", 1, true) and said:find("function: ", 1, true), "completion: " .. said)
  t.ok(said:find("interrupted", 1, true), "no word of the interrupt: " .. said)
  t.ok(said:find("\n42", 1, true), "after the loop: " .. said)
  t.ok(said:find("\n48", 1, true), "after the kernel: " .. said)
  t.ok(t.read(dir .. "/.local/state/espalier/history"):find("print(6", 1, true), "the history is kept")
end)

t.test("Ctrl-C ends compiled loops", function()
  local p, dir = program(), t.folder()
  for _, code in ipairs { "while true do end", "local s = 0 for i = 1, 1e15 do s = s + i % 7 end",
    "local l = {} for i = 1, 1e15 do l[i % 100] = i end" } do
    local child, start = process.start({ p, "-e", code }, dir .. "/out"), C.esp_clock()
    process.sleep(0.3)
    child:signal(2)
    while not child:poll() and C.esp_clock() - start < 10 do process.sleep(0.01) end
    local ended = child:poll()
    if not ended then child:signal(9) end
    t.equal(ended, 130, code)
  end
end)

t.test("Ctrl-C in a run saves it; the same command goes on and makes the same bits", function()
  local p, dir = program(), t.folder()
  t.write(dir .. "/train.lua", [[
    local out, steps = ...
    local esp = require "espalier"
    local shape = { hidden = 32, ffn = 48, layers = 2, heads = 4, kv_heads = 2, head_dim = 8, vocab = 64, context = 32, norm_eps = 1e-5,
      rope = { theta = 10000 }, tied = true }
    local rows = {}
    for r = 1, 32 do
      rows[r] = {}
      for i = 1, 24 do rows[r][i] = (r * 31 + i * i * 7 + i * r) % 64 end
    end
    steps = tonumber(steps)
    local run = esp.train { esp.models.new(shape, { seed = 1 }), data = esp.data.of(rows), steps = steps, batch = 8, out = out, quiet = true }
    io.write(string.format("%.17g", run.steps[steps].loss))
  ]])
  local function go(out) return process.start({ p, dir .. "/train.lua", out, "300" }, out .. ".txt") end
  t.equal(go(dir .. "/whole"):wait(), 0)
  local child = go(dir .. "/cut")
  while not file.kind(dir .. "/cut/log") do process.sleep(0.01) end
  process.sleep(0.15)
  child:signal(2)
  local code = child:wait()
  if code == 0 then t.skip "this machine was done before it could be interrupted" end
  t.ok(t.read(dir .. "/cut.txt"):find("the same command goes on", 1, true), t.read(dir .. "/cut.txt"))
  t.equal(#file.list(dir .. "/cut/checkpoints"), 1)
  file.remove(dir .. "/cut.txt")
  t.equal(go(dir .. "/cut"):wait(), 0)
  t.equal(t.read(dir .. "/cut.txt"), t.read(dir .. "/whole.txt"))
end)

t.test("plain luajit drives the core too", function()
  local p, dir = program(), t.folder()
  local lua = p:match "^(.*)/build/" .. "/lua"
  t.write(dir .. "/sum.lua", "local esp = require 'espalier' print(esp.tensor.of({ 1, 2 }):sum():item())")
  local line = string.format("LUA_PATH='%s/?.lua;%s/?/init.lua;;' luajit %s/sum.lua", lua, lua, dir)
  local code, said = run(dir, { "/bin/sh", "-c", line })
  if code == 127 then t.skip "no luajit" end
  t.equal(said, "3\n")
end)
