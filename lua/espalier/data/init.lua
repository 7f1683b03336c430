--- Text for calibration, training and scoring: documents, tokenised when a model is known, packed into rows with their boundaries kept.

local tensor = require "espalier.tensor"
local tape = require "espalier.tape"
local file = require "espalier.io.file"
local json = require "espalier.io.json"
local options = require "espalier.options"
local fail = require "espalier.fail"

local M = {}
local Data = {}
Data.__index = Data

-- ---- documents ----

local function split_text(text, separator)
  local documents, at = {}, 1
  while true do
    local from, to = text:find(separator, at, true)
    local one = text:sub(at, (from or 0) - 1):match "^%s*(.-)%s*$"
    if one ~= "" then documents[#documents + 1] = one end
    if not from then return documents end
    at = to + 1
  end
end

local function read_jsonl(path, field)
  local documents, n = {}, 0
  for line in file.read(path, 2 ^ 33):gmatch "[^\n]+" do
    n = n + 1
    local text = json.decode(line, path .. " line " .. n)[field]
    if type(text) ~= "string" then fail("%s line %d: field '%s' is %s, want a text", path, n, field, type(text)) end
    documents[n] = text
  end
  return documents
end

local function read_path(path, opt)
  local kind = file.kind(path)
  if not kind then fail("esp.data.open: there is no '%s'", tostring(path)) end
  if kind == "file" then
    if path:match "%.jsonl$" then return read_jsonl(path, opt.field) end
    return split_text(file.read(path, 2 ^ 33), opt.separator)
  end
  local documents = {}
  for _, name in ipairs(file.list(path)) do
    if name:match "%.txt$" or name:match "%.jsonl$" then
      for _, d in ipairs(read_path(file.join(path, name), opt)) do documents[#documents + 1] = d end
    end
  end
  return documents
end

local function new(documents, opt, role)
  if #documents == 0 then fail("esp.data: no documents in it") end
  return setmetatable({ texts = documents, opt = opt, role = role, documents = #documents }, Data)
end

--- esp.data.open(path, opt): a .txt (documents between opt.separator, "<|endoftext|>"), a .jsonl (opt.field, "text"), a folder of them, or a table of
-- texts. opt.seq: tokens a row (the smaller of 1,024 and the model's context); opt.pack = false: one document a row, cut at seq;
-- opt.min_tokens: leave shorter documents out; opt.tokenizer: else the model's that first uses it.
function M.open(path, opt)
  opt = options.check("esp.data.open", opt, { field = { "string", default = "text" }, separator = { "string", default = "<|endoftext|>" },
    seq = { "int" }, pack = { "bool", default = true }, min_tokens = { "int", default = 1 }, tokenizer = { "any" } })
  local data = new(type(path) == "table" and path or read_path(path, opt), opt)
  if opt.tokenizer then data:bind(opt.tokenizer) end
  return data
end

--- Data of rows that are ids already: an i32 tensor [rows, tokens] or a table of rows; each is a document of its own.
function M.of(rows)
  if tensor.is(rows) then rows = rows:table() end
  local texts, ids, starts, longest = {}, {}, {}, 0
  for i, row in ipairs(rows) do
    texts[i] = table.concat(row, " ")
    starts[i] = #ids
    longest = math.max(longest, #row)
    for _, id in ipairs(row) do ids[#ids + 1] = id end
  end
  local data = new(texts, { pack = false })
  starts[#starts + 1] = #ids
  data.starts, data.seq = starts, longest
  data.flat = tape.outside_scopes(tensor.of, ids, { dtype = "i32" })
  return data
end

local function hashes_of(data)
  if not data.hashes then
    data.hashes = {}
    for i, text in ipairs(data.texts) do data.hashes[i] = file.hash_text(text) end
  end
  return data.hashes
end

--- Content hash of all documents in order.
function Data:digest()
  self.hash = self.hash or file.hash_text(table.concat(hashes_of(self)))
  return self.hash
end

--- { train, held_out }: the side of a document follows from the hash of its text, so equal documents fall together and a later split agrees.
function Data:split(opt)
  opt = options.check("data:split", opt, { held_out = { "percent", default = 0.01 } })
  local train, held, smallest = {}, {}, 1
  local function place(i) return tonumber(hashes_of(self)[i]:sub(1, 8), 16) / 2 ^ 32 end
  for i = 1, #self.texts do smallest = math.min(smallest, place(i)) end
  for i, text in ipairs(self.texts) do
    -- Of a few documents one at least is held out.
    local side = (place(i) < opt.held_out or place(i) == smallest) and held or train
    side[#side + 1] = text
  end
  if #train == 0 or #held == 0 then fail("data:split: held_out = %g leaves one side of %d documents empty", opt.held_out, #self.texts) end
  return { train = new(train, self.opt, "train"):bind(self.tokenizer), held_out = new(held, self.opt, "held_out"):bind(self.tokenizer) }
end

--- Documents from..to (from 0, both in) as data of their own.
function Data:range(from, to)
  local some = {}
  for i = from, math.min(to, #self.texts - 1) do some[#some + 1] = self.texts[i + 1] end
  return new(some, self.opt, self.role):bind(self.tokenizer)
end

--- n rows drawn without replacement (all where there are fewer), as data.
function Data:sample(n, seed)
  local some = setmetatable({}, { __index = self })
  for k, v in pairs(self) do some[k] = v end
  setmetatable(some, Data)
  some.taken, some.seed, some.chosen = n, seed or 0, nil
  return some
end

-- ---- tokens and rows ----

--- Tokenises for a tokenizer; nothing where that is done already (another tokenizer is refused).
function Data:bind(tok, context)
  -- Rows that came as ids need no tokenizer.
  if not tok or (self.flat and not self.tokenizer) then return self end
  if self.tokenizer then
    if self.tokenizer:hash() ~= tok:hash() then fail("esp.data: it is tokenised by %s, not by %s", self.tokenizer.path, tok.path) end
    -- Rows whose length nobody chose follow the context of the model that uses them.
    if self.opt.seq or not context or self.seq <= context then return self end
  end
  self.tokenizer = tok
  self.seq = self.opt.seq or math.min(1024, context or 1024)
  local ids, starts, total = {}, {}, 0
  for _, text in ipairs(self.texts) do
    local own = tok:encode(text, { bos = true })
    if #own >= self.opt.min_tokens then
      starts[#starts + 1] = total
      for i = 1, self.opt.pack and #own or math.min(#own, self.seq) do
        total = total + 1
        ids[total] = own[i]
      end
    end
  end
  if total == 0 then fail("esp.data: no document has %d tokens", self.opt.min_tokens) end
  starts[#starts + 1] = total
  self.starts = starts
  self.flat = tape.outside_scopes(tensor.of, ids, { dtype = "i32" })
  return self
end

local function all_rows(self)
  if not self.flat then fail("esp.data: it is not tokenised yet; give tokenizer = to esp.data.open, or use it with a model") end
  if not self.opt.pack then return #self.starts - 1 end
  return math.max(1, math.floor(self.starts[#self.starts] / self.seq))
end

--- Permutation of 0..n-1 for an epoch: a function of seed and epoch alone.
local function permutation(n, seed, epoch)
  return tape.no_grad(tape.scope, function()
    return tensor.uniform({ n }, { seed = seed, stream = epoch }):argsort():table()
  end)
end

--- Number of rows.
function Data:rows()
  local n = all_rows(self)
  return self.taken and math.min(self.taken, n) or n
end

function Data:tokens()
  return math.min(self:rows() * self.seq, self.starts[#self.starts])
end

--- Order of the rows in an epoch.
function Data:order(epoch, seed)
  return permutation(self:rows(), seed, epoch)
end

-- Writes row r (of all) into row b of the batch.
local function fill_row(self, r, b, ids, first, target)
  local T, p, starts = self.seq, self.flat:data(), self.starts
  local from, to = r * T, math.min((r + 1) * T, starts[#starts])
  local d
  if not self.opt.pack then
    from, to, d = starts[r + 1], starts[r + 2], r + 1
  else
    -- The document that holds the first token, by bisection.
    local lo, hi = 1, #starts - 1
    while lo < hi do
      local mid = math.ceil((lo + hi) / 2)
      if starts[mid] <= from then lo = mid else hi = mid - 1 end
    end
    d = lo
  end
  for t = 0, T - 1 do
    local at, to_index = from + t, b * T + t
    if at < to then
      while at >= starts[d + 1] do d = d + 1 end
      ids[to_index] = p[at]
      first[to_index] = math.max(0, starts[d] - from)
      target[to_index] = at + 1 < starts[d + 1] and p[at + 1] or -1
    else
      ids[to_index], first[to_index], target[to_index] = 0, t, -1
    end
  end
  return to - from
end

--- Rows as tensors: { ids, first, target (i32 [n,T]), valid (f32 [n*T], 0 at padding), predictions, positions }. which: a list of rows, or the first
-- row and how many.
function Data:batch(which, n)
  local list = which
  if type(which) == "number" then
    list = {}
    for i = 1, n do list[i] = which + i - 1 end
  end
  if self.taken and not self.chosen then self.chosen = permutation(all_rows(self), self.seed, 0) end
  local B, T = #list, self.seq
  local batch = { ids = tensor.new({ B, T }, "i32"), first = tensor.new({ B, T }, "i32"), target = tensor.new({ B, T }, "i32"),
    valid = tensor.zeros { B * T }, positions = 0, predictions = 0 }
  local ids, first, target, valid = batch.ids:data(), batch.first:data(), batch.target:data(), batch.valid:data()
  for b = 0, B - 1 do
    local r = list[b + 1]
    if r < 0 or r >= self:rows() then fail("data:batch: row %d, want 0 to %d", r, self:rows() - 1) end
    local length = fill_row(self, self.chosen and self.chosen[r + 1] or r, b, ids, first, target)
    batch.positions = batch.positions + length
    for t = 0, length - 1 do valid[b * T + t] = 1 end
  end
  for i = 0, B * T - 1 do if target[i] >= 0 then batch.predictions = batch.predictions + 1 end end
  return batch
end

--- Refuses to score on documents that were trained on.
function M.refuse_overlap(train, held, what)
  local seen = {}
  for _, h in ipairs(hashes_of(train)) do seen[h] = true end
  for i, h in ipairs(hashes_of(held)) do
    if seen[h] then fail("%s: document %d of the held-out data is in the training data; scores on it would say nothing", what, i - 1) end
  end
end

function Data:__tostring()
  return string.format("data: %d documents%s", self.documents, self.flat and string.format(", %d rows of %d tokens", self:rows(), self.seq) or "")
end

return M
