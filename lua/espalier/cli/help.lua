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

-- The block of comment lines that ends above line n (1-based) of a list of lines.
local function comment_above(lines, n)
  local first = n
  while first > 1 and lines[first - 1]:match "^%s*%-%-" do first = first - 1 end
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

-- Signature of a public name: its functions in the sources whose comment begins with ---.
local function search(word)
  local found = {}
  for _, path in ipairs(sources(root)) do
    local lines = lines_of(path)
    for i, line in ipairs(lines) do
      local name = line:match "^function ([%w_%.:]+)%("
      local short = name and name:match "[%w_]+$"
      if short == word and lines[i - 1] and lines[i - 1]:match "^%-%-" then
        found[#found + 1] = line:gsub("^function ", "") .. "   (" .. path:sub(#root + 1) .. ")\n" .. comment_above(lines, i)
      end
    end
  end
  return found
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

--- Text about a function of the library by name, a recipe by path, or everything.
function M.about(what, usage)
  if what == nil then return topics(usage or "") end
  if type(what) == "function" then return M.of_function(what) end
  if type(what) == "string" and what:match "%.lua$" then return recipe_help(what) end
  local word = tostring(what):match "[%w_]+$" or ""
  local found = search(word)
  if #found == 0 then fail("help: nothing is called '%s'; espalier help lists what there is", tostring(what)) end
  return table.concat(found, "\n\n")
end

return M
