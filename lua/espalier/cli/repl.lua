--- The prompt. Locals live on from line to line; results are printed; an error is one sentence; Ctrl-C comes back here.
--
-- A chunk's top-level locals are kept by name: each line is compiled with `local a, b, c = ...` of the names known so far in front, runs, and its
-- last act is to hand all of them back. Functions that captured a local of an earlier line see that line's value, as in any Lua chunk.

local cli = require "espalier.cli"
local show = require "espalier.cli.show"
local core = require "espalier.ffi"

local host = package.loaded["espalier.host"]
local M = {}

local names, values = {}, {}          -- locals so far, in the order of their birth

-- Names that a line declares at its top level. Nested blocks are skipped by counting their words; strings and comments are taken out first.
local function declared(code)
  local plain = code:gsub("%-%-%[%[.-%]%]", " "):gsub("%-%-[^\n]*", " "):gsub("%[%[.-%]%]", "''"):gsub("\\.", ""):gsub("\"[^\"\n]*\"", "''")
    :gsub("'[^'\n]*'", "''")
  local found, depth = {}, 0
  local openers = { ["function"] = 1, ["do"] = 1, ["then"] = 1, ["repeat"] = 1, ["end"] = -1, ["until"] = -1, ["elseif"] = -1 }
  local at = 1
  while true do
    local from, to, word = plain:find("([%a_][%w_]*)", at)
    if not from then break end
    at = to + 1
    if word == "local" and depth == 0 then
      local fname, e = plain:match("^%s+function%s+([%a_][%w_]*)()", at)
      if fname then
        found[#found + 1] = fname
        at, depth = e, depth + 1
      else
        local list, e2 = plain:match("^%s+([%a_][%w_%s,]*)()", at)
        -- `local a, b = f()` or `local a` alone: names up to '=' or the line's end.
        list = (list or ""):match "^[^\n]*"
        for name in list:gmatch "[%a_][%w_]*" do
          if openers[name] or name == "local" or name == "return" then break end
          found[#found + 1] = name
        end
        at = e2 and at + #list or at
      end
    elseif word == "else" then
      depth = depth + 0
    else
      depth = depth + (openers[word] or 0)
    end
  end
  return found
end

local function remember(list)
  for _, name in ipairs(list) do
    local known = false
    for _, have in ipairs(names) do known = known or have == name end
    if not known then names[#names + 1] = name end
  end
end

-- Compiles a line with the locals in front and a hand-back behind. Expressions are tried first.
local function compile(code)
  local before = #names > 0 and "local " .. table.concat(names, ", ") .. " = ... " or ""
  local chunk = loadstring(before .. "return " .. code, "=prompt")
  if chunk then return chunk, true end
  local fresh, all = declared(code), {}
  for _, n in ipairs(names) do all[#all + 1] = n end
  for _, n in ipairs(fresh) do all[#all + 1] = n end
  -- The hand-back goes in a function of its own, so that a `return` in the line still may stand last.
  local back = #all > 0 and " __espalier_keep(" .. table.concat(all, ", ") .. ")" or ""
  local problem
  chunk, problem = loadstring(before .. code .. "\n" .. back, "=prompt")
  if not chunk then
    local plain = loadstring(before .. code, "=prompt")
    if plain then return plain, true end
    return nil, problem
  end
  return chunk, false, fresh, all
end

local function print_results(...)
  for i = 1, select("#", ...) do print(show.value((select(i, ...)))) end
end

-- Runs one complete piece of code; true, or false and the sentence.
local function evaluate(code)
  local chunk, expression, fresh, all = compile(code)
  if not chunk then return false, expression end
  local given = {}
  for i, n in ipairs(names) do given[i] = values[n] end
  rawset(_G, "__espalier_keep", function(...)
    for i, n in ipairs(all) do values[n] = (select(i, ...)) end
  end)
  local count = #names
  local ok, message = cli.guarded(function()
    print_results(chunk(unpack(given, 1, count)))
  end)
  if ok and not expression then remember(fresh) end
  return ok, message
end

local function incomplete(problem)
  return type(problem) == "string" and problem:find "<eof>" ~= nil
end

-- ---- completion ----

local function fields(v)
  local list, seen = {}, {}
  local depth = 0
  while type(v) == "table" and depth < 4 do
    for k in pairs(v) do if type(k) == "string" and not k:match "^_" and not seen[k] then list[#list + 1], seen[k] = k, true end end
    local meta = getmetatable(v)
    v, depth = meta and meta.__index, depth + 1
  end
  if type(v) == "function" or v == nil then return list end
  return list
end

--- Words that may stand at the end of a line. base: the dotted word being written.
function M.complete(line, _, word)
  local path = line:match "[%w_%.:]*$"
  local prefix, rest = path:match "^(.*[%.:])([%w_]*)$"
  rest = rest or path
  local from
  if prefix then
    from = _G
    local first = true
    for name in prefix:gmatch "[%w_]+" do
      if first and values[name] ~= nil then from = values[name] else from = type(from) == "table" and from[name] or nil end
      first = false
    end
  end
  local candidates = prefix and fields(from) or fields(_G)
  if not prefix then for _, n in ipairs(names) do candidates[#candidates + 1] = n end end
  if from == _G.esp and prefix then
    for name in pairs(_G.esp.functions) do candidates[#candidates + 1] = name end
    for _, name in ipairs { "data", "eval", "importance", "io", "loss", "models", "nn", "ops", "schedule", "tensor", "tokenizer" } do
      candidates[#candidates + 1] = name
    end
  end
  local list, seen, lead = {}, {}, word:sub(1, #word - #rest)
  for _, name in ipairs(candidates) do
    if name:sub(1, #rest) == rest and not seen[name] then list[#list + 1], seen[name] = lead .. name, true end
  end
  table.sort(list)
  return list
end

-- ---- the loop ----

local function history_file()
  local state = os.getenv "XDG_STATE_HOME" or (os.getenv "HOME" and os.getenv "HOME" .. "/.local/state")
  if not state then return nil end
  local ok = pcall(require("espalier.io.file").make, state .. "/espalier")
  return ok and state .. "/espalier/history" or nil
end

--- Reads lines until the end of input; returns the exit code: 1 where input is no terminal and a line failed.
function M.run()
  _G.esp = require "espalier"
  _G.help = function(what) print(require("espalier.cli.help").about(what, "help(esp.prune), help \"prune\"")) end
  local terminal = core.C.esp_is_terminal(0) == 1 and host
  local history = terminal and history_file()
  if terminal then
    host.completer(M.complete)
    if history then host.history(history) end
    print("espalier " .. esp.version .. "   help() lists what there is, Ctrl-D leaves")
  end
  local failed, pending = false, nil
  while true do
    local line
    if terminal then line = host.readline(pending and ">> " or "> ") else line = io.read "*l" end
    if not line then break end
    local code = pending and pending .. "\n" .. line or line
    pending = nil
    if code:match "%S" then
      local chunk, problem = compile(code)
      if not chunk and incomplete(problem) then
        pending = code
      else
        local ok, message = evaluate(code)
        io.stdout:flush()
        if not ok then
          failed = true
          io.stderr:write((tostring(message):gsub("^prompt:1: ", "")), "\n")
        end
      end
    end
  end
  if pending then
    failed = true
    io.stderr:write("the input ended inside: ", pending, "\n")
  end
  if history then host.history(history, true) end
  if terminal then print() end
  return failed and not terminal and 1 or 0
end

return M
