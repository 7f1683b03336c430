--- Finds a metric or a loss by name: NAME.lua in the recipe's folder (or its metrics/ or losses/), then in each folder of ESPALIER_PATH, then
-- among ours.

local file = require "espalier.io.file"
local fail = require "espalier.fail"

-- Folder of the running recipe; nil at the prompt.
local function recipe_folder()
  local args = rawget(_G, "arg")
  local path = args and args[0]
  return path and path:match "%.lua$" and (path:match "^(.*)/[^/]*$" or ".") or nil
end

--- The value that the file returns. kind: "metrics" or "losses"; ours: prefix of our own modules of that kind.
return function(kind, name, ours)
  if type(name) ~= "string" or not name:match "^[%w_]+$" then fail("%s: '%s' is no name of a file", kind, tostring(name)) end
  local folders = { recipe_folder() }
  for folder in (os.getenv "ESPALIER_PATH" or ""):gmatch "[^;:]+" do folders[#folders + 1] = folder end
  for _, folder in ipairs(folders) do
    for _, path in ipairs { file.join(folder, name .. ".lua"), file.join(folder, kind .. "/" .. name .. ".lua") } do
      if file.kind(path) == "file" then
        local chunk, problem = loadfile(path)
        if not chunk then fail("%s", problem) end
        return chunk()
      end
    end
  end
  if package.searchpath(ours .. name, package.path) then return require(ours .. name) end
  fail("%s: there is no %s.lua in the recipe's folder, in ESPALIER_PATH (%s) or among ours", kind, name, os.getenv "ESPALIER_PATH" or "not set")
end
