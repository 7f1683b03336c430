--- The command line: a recipe, a verb, one line of Lua, or a prompt.

local M = {}

local usage = [[
espalier recipe.lua [name=value ...]   run a recipe ('espalier help recipe.lua' lists its options)
espalier plan MODEL [name=value ...]   what a model has, and what would be left of it
espalier profile recipe.lua ...        run a recipe, then say where its time and memory went, op by op
espalier show FILE                     what is in a safetensors, GGUF, HDF5 or JSON file, or a model folder
espalier tokenize INPUT .. out=F.h5    text, JSONL or Megatron pairs into a token file; needs tokenizer=MODEL
espalier check MODEL                   is a folder or GGUF file whole, and will others open it; ends with 1 where not
espalier help [NAME]                   about a function, a verb or a recipe
espalier -e 'lua'                      one line; esp is there
espalier                               a prompt]]

local host = package.loaded["espalier.host"]

-- Runs fn with Ctrl-C watched; true, or false and the sentence.
local function guarded(fn, ...)
  if host then host.watch(true) end
  local trace = os.getenv "ESPALIER_TRACE"
  local ok, message = xpcall(fn, function(e)
    return trace and debug.traceback(tostring(e), 2) or e
  end, ...)
  if host then host.watch(false) end
  return ok, message
end
M.guarded = guarded

local function options_of(args, from)
  local list = {}
  for i = from, #args do
    local name, value = args[i]:match "^([%w_]+)=(.*)$"
    if not name then require "espalier.fail"("'%s' is no option; write name=value", args[i]) end
    list[name] = value
  end
  return list
end

local verbs = {}

function verbs.plan(args)
  if not args[2] then require "espalier.fail"("plan: name a model: espalier plan MODEL hidden=4096 ffn=11520") end
  print(require("espalier.plan").plan(args[2], options_of(args, 3)))
end

function verbs.help(args)
  print(require("espalier.cli.help").about(args[2], usage))
end

function verbs.show(args)
  if not args[2] then require "espalier.fail"("show: name a file or a folder") end
  print(require("espalier.cli.show").file(args[2]))
end

function verbs.tokenize(args)
  require("espalier.cli.tokenize").run { unpack(args, 2) }
end

function verbs.check(args)
  if not args[2] then require "espalier.fail"("check: name a model's folder or a GGUF file") end
  local report = require("espalier.export.check").check(args[2])
  print(report)
  if not report.ok then require("espalier.fail").status = 1 end
end

function verbs.version()
  print("espalier " .. require("espalier").version .. ", " .. jit.version)
end

local function run_recipe(args)
  local path = args[1]
  local chunk, problem = loadfile(path)
  if not chunk then require "espalier.fail"("%s", problem) end
  -- Modules of its own lie beside a recipe.
  local folder = path:match "^(.*)/[^/]*$" or "."
  package.path = folder .. "/?.lua;" .. folder .. "/?/init.lua;" .. package.path
  rawset(_G, "arg", { [0] = path, unpack(args, 2) })
  chunk(unpack(args, 2))
end

function verbs.profile(args)
  if not (args[2] or ""):match "%.lua$" then require "espalier.fail"("profile: name a recipe: espalier profile recipe.lua name=value ..") end
  print(require "espalier.profile"(run_recipe, { unpack(args, 2) }))
end

local function run_line(code)
  _G.esp = require "espalier"
  local chunk, problem = loadstring("return " .. code, "=line")
  if not chunk then chunk, problem = loadstring(code, "=line") end
  if not chunk then require "espalier.fail"("%s", problem) end
  local results = { n = 0 }
  local function keep(...) results = { n = select("#", ...), ... } end
  keep(chunk())
  for i = 1, results.n do print(require("espalier.cli.show").value(results[i])) end
end

local function dispatch(args)
  local first = args[1]
  if first == "--help" or first == "-h" then print(usage) return end
  if first == "--version" then verbs.version() return end
  if first == "-e" then return run_line(args[2] or require "espalier.fail"("-e: no code given")) end
  if verbs[first] then return verbs[first](args) end
  if first:match "%.lua$" then
    if args[2] == "help" then return verbs.help { "help", first } end
    return run_recipe(args)
  end
  local names = {}
  for name in pairs(verbs) do names[#names + 1] = name end
  local near = require("espalier.options").nearest(first, names)
  require "espalier.fail"("'%s' is neither a recipe (.lua) nor a verb%s", first,
    near and "; did you mean '" .. near .. "'?" or "; see espalier --help")
end

--- Runs the program; returns its exit code.
function M.main(...)
  local args = { ... }
  if #args == 0 then return require("espalier.cli.repl").run() end
  local ok, message = guarded(dispatch, args)
  if ok then return require("espalier.fail").status end
  io.stdout:flush()
  -- Which of our lines Ctrl-C met tells nobody anything; one of a recipe does.
  local text = tostring(message):gsub("^%S*lua/espalier/%S+%.lua:%d+: interrupted$", "interrupted")
  io.stderr:write("espalier: ", text, "\n")
  return text:find "interrupted" and 130 or 1
end

return M
