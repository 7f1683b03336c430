--- Real models: logits, gradients, greedy text and NLL against independent implementations; export and bad folders.

local t = ...
local esp = require "espalier"
local json = esp.io.json

local function largest(a, b)
  return esp.no_grad(function() return ((a - b):abs():view(-1):max(0)):item() end)
end

-- Checkpoint, greedy text, reference logits, ids that were generated.
local real = {
  { "stories260K", "stories260K.bin", "expected_greedy_200.txt", "logits_once_upon_a_time.txt", 200, 1.31079, 110083 },
  { "babyllama", "tok105_model5000.bin", "tok105_greedy_256.txt", "tok105_logits_once_upon_a_time.txt", 256, 0.66087, 76500 },
}

for _, case in ipairs(real) do
  t.test("greedy text of " .. case[1], function()
    local folder = "data/models/" .. case[1] .. "/"
    local model, want = esp.load(t.shared(folder .. case[2])), t.read(t.shared(folder .. case[3]))
    local tok = model:tok()
    local ids = require("espalier.models.generate").ids(model, { tok.bos }, { tokens = case[5], temperature = 0, stop = tok.bos })
    t.equal(tok:decode(ids):gsub("%s+$", ""), (want:gsub("%s+$", "")), "text")
  end)
end

t.test("NLL on 300 stories", function()
  local text = t.read(t.shared "data/text/tinystories/tinystories_10k.txt")
  local stories = {}
  for story in (text .. "<|endoftext|>"):gmatch "(.-)<|endoftext|>" do
    stories[#stories + 1] = story:match "^%s*(.-)%s*$"
    if #stories == 300 then break end
  end
  for _, case in ipairs(real) do
    local model = esp.load(t.shared("data/models/" .. case[1] .. "/" .. case[2]))
    local tok, total, count = model:tok(), 0, 0
    local rows = {}
    for _, story in ipairs(stories) do
      local ids = tok:encode(story, { bos = true })
      while #ids > model.shape.context do ids[#ids] = nil end
      rows[#rows + 1] = ids
      if #rows == 10 then
        local mean, n = model:loss(rows)
        total, count, rows = total + mean * n, count + n, {}
      end
    end
    t.equal(count, case[7], case[1] .. " predictions")
    t.near(total / count, case[6], 1e-4, case[1] .. " NLL")
  end
end)

t.test("a saved model gives the same logits, and is replaced whole", function()
  local shape = { hidden = 16, ffn = 24, layers = 2, heads = 4, kv_heads = 2, head_dim = 6, vocab = 30, context = 32, norm_eps = 1e-5,
    rope = { theta = 10000 }, tied = false }
  local model, dir = esp.models.new(shape, { seed = 3 }), t.folder() .. "/m"
  t.equal((model:save(dir, { quiet = true })), 0)
  local again = esp.load(dir)
  t.equal(again.shape, shape)
  t.equal(largest(again:logits { { 1, 2, 3 } }, model:logits { { 1, 2, 3 } }), 0)
  model:save(dir, { dtype = "bf16", quiet = true })
  t.equal(esp.load(dir):parameters()["model.norm.weight"].dtype, "bf16")
  t.equal(#esp.io.file.list(dir:match "^(.*)/"), 1, "nothing beside it")
  t.fails("was not written by espalier", function()
    local other = t.folder()
    t.write(other .. "/x", "y")
    model:save(other)
  end)
end)

t.test("what is wrong in a folder is said in one sentence", function()
  local shape = { hidden = 16, ffn = 24, layers = 1, heads = 2, kv_heads = 1, head_dim = 8, vocab = 30, context = 32, norm_eps = 1e-5,
    rope = { theta = 10000 }, tied = true }
  local dir = t.folder()
  esp.models.new(shape, { seed = 3 }):save(dir .. "/m", { quiet = true })
  local config = json.read(dir .. "/m/config.json")
  local function refused(part, change)
    local c = json.copy(config)
    change(c)
    json.write(dir .. "/m/config.json", c)
    t.fails(part, esp.load, dir .. "/m")
  end
  refused("field 'hidden_size' is missing", function(c) c.hidden_size = nil end)
  refused("model_type 'bert' is not known", function(c) c.model_type = "bert" end)
  refused("do not divide among", function(c) c.num_key_value_heads = 3 end)
  refused("want [32, 16]", function(c) c.vocab_size = 32 end)
  refused("has no place", function(c) c.num_hidden_layers = 0 + 1; c.intermediate_size = 0 end)
  t.fails("holds no config.json", esp.load, dir)
  t.fails("hf download org/name", esp.load, "org/name")
  local model = esp.models.new(shape, { seed = 3 })
  model:parameters()["model.norm.weight"]:fill(0 / 0)
  t.fails("holds NaN or infinity", function() model:save(dir .. "/nan") end)
  t.equal(esp.io.file.kind(dir .. "/nan"), nil)
end)

for _, case in ipairs(real) do
  t.test("reference logits of " .. case[1], function()
    local folder = "data/models/" .. case[1] .. "/"
    local model, text = esp.load(t.shared(folder .. case[2])), t.read(t.shared(folder .. case[4]))
    local ids, rows = {}, {}
    for id in text:match("# ids ([%d ]+)"):gmatch "%d+" do ids[#ids + 1] = tonumber(id) end
    for line in text:gmatch "[^\n]+" do if not line:match "^#" then rows[#rows + 1] = line end end
    t.equal(#rows, #ids, "positions in the file")
    local logits = model:logits { ids }:table()[1]
    for i, line in ipairs(rows) do
      local numbers = {}
      for n in line:gmatch "%S+" do numbers[#numbers + 1] = tonumber(n) end
      table.remove(numbers, 1)
      t.near(logits[i], numbers, 1e-4, "position " .. i - 1)
    end
  end)
end
