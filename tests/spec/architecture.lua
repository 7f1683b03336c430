--- Dependencies run one way. A file requires what stands in its own row or above it; a foreign header is included in one place.
local t = ...

local file = require("espalier").io.file

-- A row holds modules, or single files of one ("models.shape") that stand higher than the rest of it.
local rows = {
  { "fail", "ffi", "quantity", "options" },
  { "tensor", "io", "find", "progress", "budget" },
  { "scope", "tape", "grad", "ops", "product", "profile" },
  { "models.shape", "nn", "loss", "optim", "schedule", "tokenizer", "data", "eval.tokens" },
  { "models", "lineage.store", "eval", "importance", "run" },
  { "export", "prune", "plan", "distill", "lineage", "report", "sweep.summary" },
  { "sensitivity", "search", "sweep" },
  { "cli" },
}

-- A model's method hands over to what stands above it.
local allowed = { ["models.model requires export"] = true }

local row_of = {}
for i, row in ipairs(rows) do for _, name in ipairs(row) do row_of[name] = i end end

-- The row of "models.shape", else that of "models".
local function row(module, where)
  local name = module
  while name and not row_of[name] do name = name:match "^(.*)%.[^.]*$" end
  return name and row_of[name] or error(where .. ": '" .. module .. "' stands in no row of tests/spec/architecture.lua")
end

local function sources(dir, ending, visit)
  for _, name in ipairs(file.list(dir)) do
    local path = file.join(dir, name)
    if file.kind(path) == "folder" then sources(path, ending, visit) elseif name:match(ending) then visit(path, file.read(path)) end
  end
end

t.test("the Lua side: each file requires what stands below it", function()
  local root, seen, wrong = t.root .. "lua/espalier/", 0, {}
  sources(root:sub(1, -2), "%.lua$", function(path, text)
    local module = path:sub(#root + 1, -5):gsub("/init$", ""):gsub("/", ".")
    -- The top hands out every module by name.
    if module == "init" then return end
    for needed in text:gmatch "require%s*%(?%s*[\"']espalier%.([%w_.]+)[\"']" do
      seen = seen + 1
      local what = module .. " requires " .. needed
      if row(needed:gsub("%.$", ""), path) > row(module, path) and not allowed[what] then wrong[#wrong + 1] = what end
    end
    if module ~= "ffi" and text:find "require%s*%(?%s*[\"']ffi[\"']" then wrong[#wrong + 1] = module .. " requires ffi" end
  end)
  t.ok(seen > 200, "only " .. seen .. " requires were found")
  t.equal(table.concat(wrong, "; "), "")
end)

t.test("the core: folders include what stands below them, a foreign header one file", function()
  local below = { base = 1, tensor = 2, ops = 3, io = 3, text = 4, host = 5 }
  local homes = { ["hdf5%.h"] = "io/hdf5%.c$", ["lua%.h"] = "host/", ["luajit%.h"] = "host/", ["yajl"] = "io/",
    ["pcre2%.h"] = "text/", ["utf8proc%.h"] = "text/" }
  local root, seen, wrong = t.root .. "core/", 0, {}
  sources(root:sub(1, -2), "%.[ch]$", function(path, text)
    local name = path:sub(#root + 1)
    local folder = name:match "^(%w+)/"
    for header in text:gmatch '#%s*include%s*"%.%./(%w+)[/.]' do
      seen = seen + 1
      if folder and below[header] and below[header] > below[folder] then wrong[#wrong + 1] = name .. " includes " .. header end
    end
    for header in text:gmatch "#%s*include%s*<([^>]+)>" do
      for pattern, home in pairs(homes) do
        if header:find(pattern) and not name:find(home) then wrong[#wrong + 1] = name .. " includes " .. header end
      end
    end
  end)
  t.ok(seen >= 12, "only " .. seen .. " includes were found")
  t.equal(table.concat(wrong, "; "), "")
end)
