--- Documents as ids in memory: made from text, or given as rows. And what every corpus, there or on disk, is:
--
-- documents (count), vocab or nil, masked (does it say which tokens the loss counts?), hash_of ("text" or "ids": what its hashes are of), tokenised
-- (were its ids made by a tokenizer that a model may have?), bos, eos (ids around its documents, or nil); c:offsets() double[documents + 1],
-- c:hashes() uint64_t[documents], c:read(at, n, ids), c:read_counted(at, n, bytes), c:is_text(), c:bind(tok), c:describe(), c:each_text(fn).

local core = require "espalier.ffi"
local growing = require "espalier.data.growing"
local fail = require "espalier.fail"

local C = core.C
local M = {}

local Memory = {}
Memory.__index = Memory

--- A corpus of a source of text; tokenised by c:bind(tok), until then its documents are known by their hashes alone.
function M.of_text(source)
  return setmetatable({ source = source, masked = source.masked, hash_of = "text" }, Memory)
end

--- A corpus of rows of ids (lists); each is a document.
function M.of_rows(rows)
  local self = setmetatable({ masked = false, hash_of = "ids", documents = #rows }, Memory)
  self.ids, self.ends, self.sums = growing "i32", growing "f64", growing "u64"
  self.ends:push(0)
  for r, row in ipairs(rows) do
    local from = self.ids.count
    for i, id in ipairs(row) do
      if type(id) ~= "number" or id < 0 or id ~= math.floor(id) or id >= 2 ^ 31 then
        fail("esp.data.of: row %d, token %d is %s, want an id", r - 1, i - 1, tostring(id))
      end
      self.ids:push(id)
    end
    self.ends:push(self.ids.count)
    self.sums:push(C.esp_hash64(self.ids.p + from, 4 * #row))
  end
  return self
end

--- Reads a text's documents without a tokenizer, for their hashes.
function Memory:scan()
  if self.sums then return end
  local sums = growing "u64"
  self.source:each(nil, function(e) sums:append(e.hashes, tonumber(e.documents)) end)
  self.sums, self.documents = sums, sums.count
end

local function tokenise(self, tok)
  local ids, counted, ends, sums = growing "i32", self.masked and growing "u8", growing "f64", growing "u64"
  ends:push(0)
  self.source:each(tok, function(e)
    sums:append(e.hashes, tonumber(e.documents))
    local at = ids.count
    for i = 0, tonumber(e.documents) - 1 do
      at = at + tonumber(e.lengths[i])
      ends:push(at)
    end
    ids:append(e.ids, tonumber(e.tokens))
    if counted then counted:append(e.counted, tonumber(e.tokens)) end
  end)
  local same = not self.sums or self.sums.count == sums.count
  for i = 0, same and self.sums and sums.count - 1 or -1 do same = same and self.sums.p[i] == sums.p[i] end
  if not same then fail("esp.data: the text changed between two readings of it") end
  self.ids, self.counted, self.ends, self.sums, self.documents = ids, counted, ends, sums, sums.count
end

--- Tokenises by tok, once; another tokenizer is then refused. Nothing for ids that were given.
function Memory:bind(tok)
  if not self.source then return end
  if self.tokenizer then
    if self.tokenizer:hash() ~= tok:hash() then fail("esp.data: it is tokenised by %s, not by %s", self.tokenizer.path, tok.path) end
    return
  end
  tokenise(self, tok)
  local rule = self.source:rule(tok)
  self.tokenizer, self.vocab, self.bos, self.eos = tok, tok.vocab, rule.bos, rule.eos
end

--- Does it still want a tokenizer?
function Memory:is_text() return self.ids == nil end
function Memory:offsets() return self.ends.p end

function Memory:hashes()
  self:scan()
  return self.sums.p
end

function Memory:read(at, n, ids) core.copy(ids, self.ids.p + at, 4 * n) end
function Memory:read_counted(at, n, bytes) core.copy(bytes, self.counted.p + at, n) end
function Memory:describe()
  return self.tokenizer and self.source:describe(self.tokenizer) .. self.tokenizer:hash() or ""
end

--- Calls fn(number, text) for each document, from 0.
function Memory:each_text(fn)
  if not self.source then fail("esp.data: it holds ids, no texts") end
  local number = 0
  self.source:each(nil, function(e)
    local at = e.text
    for i = 0, tonumber(e.documents) - 1 do
      fn(number, core.string(at, e.lengths[i]))
      at, number = at + e.lengths[i], number + 1
    end
  end)
end

return M
