--- Data of one corpus: some of its documents, packed into rows with their boundaries kept.
--
-- pack = "cut": documents one after another, cut every seq tokens; what goes on in the next row begins there without its context.
-- pack = "whole": a row holds as many whole documents as fit, in order; the rest of it is padding; a longer document is cut at seq.
-- pack = "none": one document a row, cut at seq.

local core = require "espalier.ffi"
local file = require "espalier.io.file"
local growing = require "espalier.data.growing"
local options = require "espalier.options"
local Rows = require "espalier.data.rows"
local fail = require "espalier.fail"

local C = core.C
local M = {}
local Data = setmetatable({}, { __index = Rows })
Data.__index = Data

--- Data of a corpus. which: list of document numbers (a growing f64), nil for all; opt: seq, pack, min_tokens; role: "train", "held_out" or nil.
function M.new(corpus, which, opt, role)
  if corpus.scan then corpus:scan() end
  local documents = which and which.count or corpus.documents
  if documents == 0 then fail("esp.data: no documents in it") end
  return setmetatable({ corpus = corpus, which = which, opt = opt, role = role, documents = documents }, Data)
end

function M.is(x) return getmetatable(x) == Data end

local function number_of(self, i) return self.which and self.which.p[i] or i end

-- ---- hashes, splits ----

--- uint64_t[documents]: the hashes of the documents, and the list that owns them.
function Data:hashes()
  local all = self.corpus:hashes()
  if not self.which then return all end
  if not self.own_hashes then
    self.own_hashes = growing "u64"
    for i = 0, self.documents - 1 do self.own_hashes:push(all[self.which.p[i]]) end
  end
  return self.own_hashes.p
end

--- Hashes of the ids of the documents, without the BOS and EOS around them: to compare text with what never was text here.
function Data:id_hashes()
  local c, offsets, sums, longest = self.corpus, self.corpus:offsets(), growing "u64", 1
  for d = 0, c.documents - 1 do longest = math.max(longest, offsets[d + 1] - offsets[d]) end
  local tok, ids = c.tokenizer or {}, core.new("int32_t[?]", longest)
  local bos, eos = c.bos or tok.bos, c.eos or tok.eos
  for i = 0, self.documents - 1 do
    local d = number_of(self, i)
    local from, to = 0, offsets[d + 1] - offsets[d]
    c:read(offsets[d], to, ids)
    if to > 0 and ids[0] == bos then from = 1 end
    if to > from and ids[to - 1] == eos then to = to - 1 end
    sums:push(C.esp_hash64(ids + from, 4 * (to - from)))
  end
  return sums
end

--- Content hash of all documents in order, of how they became ids, and of how they are packed.
function Data:digest()
  local hex = core.new "char[33]"
  core.try(C.esp_hash(hex, self:hashes(), 8 * self.documents))
  self.hash = file.hash_text(table.concat({ core.string(hex), self.corpus:describe(), self.pack or "", tostring(self.opt.min_tokens) }, "\n"))
  return self.hash
end

--- { train, held_out }: the side of a document follows from the hash of its text (of its ids, where it never was text here), so equal documents
-- fall together and a later split agrees, also between a text and its token file. opt.held_out: share of the documents ("1%").
function Data:split(opt)
  opt = options.check("data:split", opt, { held_out = { "percent", default = 0.01 } })
  local hashes, train, held, smallest = self:hashes(), growing "f64", growing "f64", 1
  local function place(i) return tonumber(hashes[i] / 4294967296ULL) / 2 ^ 32 end
  for i = 0, self.documents - 1 do smallest = math.min(smallest, place(i)) end
  for i = 0, self.documents - 1 do
    -- Of a few documents one at least is held out.
    local side = (place(i) < opt.held_out or place(i) == smallest) and held or train
    side:push(number_of(self, i))
  end
  if train.count == 0 or held.count == 0 then
    fail("data:split: held_out = %g leaves one side of %d documents empty", opt.held_out, self.documents)
  end
  local function side(which, role) return M.new(self.corpus, which, self.opt, role):bind(self.tokenizer) end
  return { train = side(train, "train"), held_out = side(held, "held_out") }
end

--- Documents from..to (from 0, both in) as data of their own.
function Data:range(from, to)
  local some = growing "f64"
  for i = from, math.min(to, self.documents - 1) do some:push(number_of(self, i)) end
  return M.new(self.corpus, some, self.opt, self.role):bind(self.tokenizer)
end

--- The texts of the documents, a list; refused where there are only ids.
function Data:texts()
  local list, by_number = {}, {}
  self.corpus:each_text(function(d, text) by_number[d] = text end)
  for i = 0, self.documents - 1 do list[i + 1] = by_number[number_of(self, i)] end
  return list
end

-- ---- rows ----

-- Documents of min_tokens or more: their numbers, and where each begins when they stand one after another.
local function lay_out(self)
  local offsets, longest = self.corpus:offsets(), self.pack == "cut" and math.huge or self.seq
  local kept, starts, total = growing "f64", growing "f64", 0
  for i = 0, self.documents - 1 do
    local d = number_of(self, i)
    local n = offsets[d + 1] - offsets[d]
    if n >= self.opt.min_tokens then
      kept:push(d)
      starts:push(total)
      total = total + math.min(n, longest)
    end
  end
  if total == 0 then fail("esp.data: no document has %d tokens", self.opt.min_tokens) end
  starts:push(total)
  self.kept, self.starts = kept, starts
end

-- The first document of each row, and the end, where rows hold whole documents.
local function lay_rows(self)
  local first, used, p = growing "f64", math.huge, self.starts.p
  for k = 0, self.kept.count - 1 do
    local n = p[k + 1] - p[k]
    if used + n > self.seq then
      first:push(k)
      used = 0
    end
    used = used + n
  end
  first:push(self.kept.count)
  self.row_first = first
end

--- Takes a tokenizer (nil: none) and a context (nil: none): text becomes ids, and rows whose length nobody chose follow the context.
function Data:bind(tok, context)
  if tok then
    self.corpus:bind(tok)
    self.tokenizer = self.corpus.tokenizer
  end
  if self.corpus:is_text() then return self end
  local seq = self.opt.seq or self.corpus.longest_row or math.min(1024, context or 1024)
  if self.seq and (self.opt.seq or seq >= self.seq) then return self end
  self.seq = seq
  self.pack = self.opt.pack or (self.corpus.masked and "whole" or "cut")
  lay_out(self)
  self.row_first = nil
  if self.pack == "whole" then lay_rows(self) end
  return self
end

--- The tokenizer for the data beside a model: the one it has, or the model's; nil where ids need none, or name none and the model has none.
function Data:tokenizer_of(model)
  if self.tokenizer then return self.tokenizer end
  if self.corpus:is_text() then return model:tok() end
  if not self.corpus.tokenised then return nil end
  local ok, tok = pcall(model.tok, model)
  return ok and tok or nil
end

function Data:vocab() return self.corpus.vocab end

--- Numbers of rows, all of them where a sample was taken.
function Data:all_rows()
  if not self.starts then fail("esp.data: it is not tokenised yet; give tokenizer = to esp.data.open, or use it with a model") end
  if self.pack == "none" then return self.kept.count end
  if self.pack == "whole" then return self.row_first.count - 1 end
  return math.max(1, math.floor(self.starts.p[self.kept.count] / self.seq))
end

function Data:pick_all(k, seed, sequential)
  local n = self:all_rows()
  return sequential and k % n or Rows.shuffled(n, k, seed)
end

function Data:tokens()
  local rows = self:rows()
  return math.min(rows * self.seq, self.starts.p[self.kept.count])
end

-- Where row r begins and ends in the documents one after another, and the document of its first token.
local function bounds_of(self, r)
  local p = self.starts.p
  if self.pack == "none" then return p[r], p[r + 1], r end
  if self.pack == "whole" then
    local k = self.row_first.p[r]
    return p[k], p[self.row_first.p[r + 1]], k
  end
  local from, lo, hi = r * self.seq, 0, self.kept.count - 1
  while lo < hi do
    local mid = math.ceil((lo + hi) / 2)
    if p[mid] <= from then lo = mid else hi = mid - 1 end
  end
  return from, math.min(from + self.seq, p[self.kept.count]), lo
end

-- Writes n tokens of a document, from its token `skip` on, at place t of row b; `more` of them follow in the document (0 or 1 is read).
local function fill_part(self, batch, b, t, place, n, more)
  local buffer, p, at = self.buffer, batch.p, b * self.seq + t
  self.corpus:read(place, n + more, buffer.ids)
  if self.corpus.masked then self.corpus:read_counted(place, n + more, buffer.counted) end
  core.copy(p.ids + at, buffer.ids, 4 * n)
  for i = 0, n - 1 do
    local last = i + 1 >= n + more
    local counted = not last and (not self.corpus.masked or buffer.counted[i + 1] ~= 0)
    p.first[at + i] = t
    p.target[at + i] = counted and buffer.ids[i + 1] or -1
    p.valid[at + i] = (counted or not self.corpus.masked) and 1 or 0
  end
end

--- Writes row r into row b of a batch.
function Data:fill(r, b, batch)
  local T, starts, offsets = self.seq, self.starts.p, self.corpus:offsets()
  if not self.buffer or self.buffer.T ~= T then
    self.buffer = { T = T, ids = core.new("int32_t[?]", T + 1), counted = core.new("uint8_t[?]", T + 1) }
  end
  local from, to, k = bounds_of(self, r)
  local at = from
  while at < to do
    local skip, length = at - starts[k], starts[k + 1] - starts[k]
    local n = math.min(length - skip, to - at)
    if n > 0 then fill_part(self, batch, b, at - from, offsets[self.kept.p[k]] + skip, n, skip + n < length and 1 or 0) end
    at, k = at + n, k + 1
  end
  local p = batch.p
  for t = to - from, T - 1 do
    local i = b * T + t
    p.ids[i], p.first[i], p.target[i] = 0, t, -1
  end
end

--- Itself: the parts of data of one corpus.
function Data:parts() return { self } end

function Data:__tostring()
  return string.format("data: %d documents%s", self.documents, self.starts and string.format(", %d rows of %d tokens", self:rows(), self.seq) or "")
end

return M
