--- The README's commands and recipes run as they stand, in a folder with a small model and some stories.
local t = ...

local esp = require "espalier"
local file = esp.io.file

local text = t.read(t.root .. "README.md")

local function world()
  local program = t.program() or t.skip "needs the espalier program"
  local model = t.shared "data/models/stories260K/stories260K.bin"
  local stories = t.read(t.shared "data/text/tinystories/tinystories_10k.txt"):sub(1, 150000)
  local dir = t.folder()
  local teacher = esp.load(model)
  teacher:tok()
  teacher:save(dir .. "/teacher", { quiet = true })
  t.write(dir .. "/stories.txt", stories)
  return dir, file.real(program)
end

-- Runs a shell line in dir; the text it printed. A failure shows its last lines.
local function shell(dir, line)
  local child = esp.io.process.start({ "/bin/sh", "-c", "cd '" .. dir .. "' && " .. line }, dir .. "/printed")
  local code, printed = child:wait(), t.read(dir .. "/printed")
  file.remove(dir .. "/printed")
  if code ~= 0 then error(string.format("'%s' ended with %d: %s", line, code, printed:sub(-600)), 0) end
  return printed
end

t.test("every command of the README", function()
  local dir, program = world()
  local root = file.real(t.root == "./" and "." or t.root)
  local count = 0
  for line in text:match("```sh\n(.-)```"):gmatch "[^\n]+" do
    local command = line:gsub("%s+#.*$", ""):gsub("^build/espalier", program):gsub("recipes/", root .. "/recipes/")
    t.ok(#shell(dir, command) > 40, line .. ": printed nothing to speak of")
    count = count + 1
  end
  t.ok(count >= 6, "commands found: " .. count)
  t.ok(file.kind(dir .. "/runs/a/model/model.safetensors") == "file", "the model")
  t.ok(t.read(dir .. "/runs/a/report.html"):find("</html>", 1, true), "the report")
end)

t.test("every recipe of the README", function()
  local dir, program = world()
  local printed = {}
  for code in text:gmatch "```lua\n(.-)```" do
    local name = "recipe" .. #printed .. ".lua"
    t.write(dir .. "/" .. name, code)
    printed[#printed + 1] = shell(dir, program .. " " .. name)
  end
  t.ok(#printed >= 2, "recipes found: " .. #printed)
  t.ok(printed[1]:find("Retraining can change this order", 1, true), "the sensitivity table")
  t.ok(file.kind(dir .. "/student/config.json") == "file", "the student")
  t.ok(printed[2]:find("+- over seeds", 1, true), "the sweep's table")
  -- What the page shows is what comes out, but for speed and the last digits.
  for _, part in ipairs { "layers by kl, 64 rows", "what the halves of 64 rows keep", "ffn by taylor_abs  ffn 125", "drop: 2, 4" } do
    t.ok(printed[3]:find(part, 1, true), part .. " is not in: " .. printed[3])
  end
  -- A second start runs nothing again.
  t.ok(shell(dir, program .. " recipe1.lua"):find("6 cells, 6 done, 0 to run", 1, true), "the sweep goes on")
end)

t.test("the layout and the targets that the README names are there", function()
  local top = {}
  for _, name in ipairs(file.list(t.root == "" and "." or t.root)) do
    if file.kind(t.root .. name) == "folder" and not name:match "^%." then top[#top + 1] = name end
  end
  for _, name in ipairs(top) do
    t.ok(text:find("\n    " .. name .. "/", 1, true) or name == "build" or name == "runs", name .. " is not in the layout")
  end
  local makefile = t.read(t.root .. "Makefile")
  for target in text:gmatch "make (%l+)[ `]" do t.ok(makefile:find("\n" .. target .. ":", 1, true), "make " .. target) end
end)
