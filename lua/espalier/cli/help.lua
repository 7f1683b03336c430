--- Help out of the sources: the comment above a function, the options of a recipe.

local file = require "espalier.io.file"
local fail = require "espalier.fail"

local M = {}

local root = debug.getinfo(1, "S").source:match "^@(.*)cli/help%.lua$"

-- All Lua files below the library, relative to it.
local function sources(dir, list)
  list = list or {}
  for _, name in ipairs(file.list(dir)) do
    local path = file.join(dir, name)
    if file.kind(path) == "folder" then sources(path, list) elseif name:match "%.lua$" then list[#list + 1] = path end
  end
  return list
end

-- The block of comment lines that ends above line n (1-based) of a list of lines; "" where it does not begin with `mark`.
local function comment_above(lines, n, mark)
  local first = n
  while first > 1 and lines[first - 1]:match "^%s*%-%-" do first = first - 1 end
  if mark and lines[first]:sub(1, #mark) ~= mark then return "" end
  local text = {}
  for i = first, n - 1 do text[#text + 1] = (lines[i]:gsub("^%s*%-%-%-? ?", "")) end
  return table.concat(text, "\n")
end

local function lines_of(path)
  local lines = {}
  for line in (file.read(path) .. "\n"):gmatch "([^\n]*)\n" do lines[#lines + 1] = line end
  return lines
end

--- The comment above a function value.
function M.of_function(fn)
  local info = debug.getinfo(fn, "S")
  if info.source:sub(1, 1) ~= "@" then return "a function of C, without a comment" end
  local lines = lines_of(info.source:sub(2))
  local text = comment_above(lines, info.linedefined)
  return lines[info.linedefined]:gsub("^%s+", "") .. "\n\n" .. (text ~= "" and text or "(no comment)")
end

-- Every function of a source that has a public comment (---): calls visit(name as it is written, comment). A constructor is a local function
-- named `new`; its comment begins with the name that it is called by ("nn.Block{ hidden =, .. }").
local function functions_of(path, visit)
  local lines = lines_of(path)
  for i, line in ipairs(lines) do
    local name = line:match "^function ([%w_%.:]+%b())" or line:match "^local function new%("
    local text = name and comment_above(lines, i, "---")
    if text and text ~= "" then
      if name:match "^local" then name = text:match "^([%w_%.]+)%s*[{(]" end
      if name then visit(name, text) end
    end
  end
end

-- Signatures and comments of a public name in all sources.
local function search(word)
  local found = {}
  for _, path in ipairs(sources(root)) do
    functions_of(path, function(name, text)
      if name:match "([%w_]+)%(" == word or name:match "([%w_]+)$" == word then
        found[#found + 1] = name .. "   (" .. path:sub(#root + 1) .. ")\n" .. text
      end
    end)
  end
  return found
end

-- What a module owns, and its functions with the first sentence of each; nil where there is no module of that name.
local function of_module(name)
  local base = file.join(root, (name:gsub("%.", "/")))
  local paths = file.kind(base) == "folder" and sources(base) or file.kind(base .. ".lua") and { base .. ".lua" }
  if not paths then return nil end
  local head = file.kind(base) == "folder" and file.join(base, "init.lua") or base .. ".lua"
  local out = {}
  for _, line in ipairs(file.kind(head) and lines_of(head) or {}) do
    if not line:match "^%-%-" then break end
    out[#out + 1] = (line:gsub("^%-%-%-? ?", ""))
  end
  out[#out + 1] = ""
  for _, path in ipairs(paths) do
    functions_of(path, function(signature, text)
      local first = text:gsub("\n", " "):match "^(.-[%.:;])%s" or text:gsub("\n", " ")
      out[#out + 1] = "  " .. signature .. "\n      " .. first
    end)
  end
  return table.concat(out, "\n")
end

-- The name of a module's table.
local function module_name(value)
  for name, loaded in pairs(package.loaded) do
    local short = loaded == value and name:match "^espalier%.([%w_%.]+)$"
    if short then return short end
  end
end

local function recipe_help(path)
  local options = require "espalier.options"
  local chunk, problem = loadfile(path)
  if not chunk then fail("%s", problem) end
  local lines = {}
  for _, line in ipairs(lines_of(path)) do
    if not line:match "^%-%-" then break end
    lines[#lines + 1] = (line:gsub("^%-%-%-? ?", ""))
  end
  local STOP = {}
  options.collect = function(spec)
    lines[#lines + 1] = ""
    local names = {}
    for name in pairs(spec) do names[#names + 1] = name end
    table.sort(names)
    for _, name in ipairs(names) do
      local rule = spec[name]
      lines[#lines + 1] = string.format("  %-12s %-8s %-12s %s", name, rule[1],
        rule.required and "required" or rule.default ~= nil and tostring(rule.default) or "", rule.help or "")
    end
    error(STOP, 0)
  end
  local ok, message = pcall(chunk)
  options.collect = nil
  if not ok and message ~= STOP then fail("%s", tostring(message)) end
  return table.concat(lines, "\n")
end

local function topics(usage)
  local names = {}
  for name in pairs(require("espalier").functions) do names[#names + 1] = "esp." .. name end
  table.sort(names)
  return usage .. "\n\nfunctions: " .. table.concat(names, " ") .. "\nmodules:   esp.data esp.eval esp.importance esp.io esp.loss esp.models esp.nn "
    .. "esp.ops esp.schedule esp.tensor esp.tokenizer\n\nespalier help prune tells about esp.prune; at the prompt help(esp.prune) does."
end

--- Text about a function or a module of the library (itself, or its name), a recipe by path, or everything.
function M.about(what, usage)
  if what == nil then return topics(usage or "") end
  if type(what) == "function" then return M.of_function(what) end
  if type(what) == "string" and what:match "%.lua$" then return recipe_help(what) end
  local name = type(what) == "table" and module_name(what) or tostring(what):gsub("^esp%.", "")
  local module = not require("espalier").functions[name] and of_module(name)
  if module then return module end
  local found = search(name:match "[%w_]+$" or "")
  if #found == 0 then fail("help: nothing is called '%s'; espalier help lists what there is", tostring(what)) end
  return table.concat(found, "\n\n")
end

return M
