--- Documents as ids on disk, read piece by piece: our HDF5 token files and Megatron's pairs. What a corpus has is said in memory.lua.

local core = require "espalier.ffi"
local growing = require "espalier.data.growing"
local file = require "espalier.io.file"
local fail = require "espalier.fail"

local C = core.C
local M = {}

local function hash_documents(self)
  local offsets, sums, longest = self:offsets(), growing "u64", 0
  for d = 0, self.documents - 1 do longest = math.max(longest, offsets[d + 1] - offsets[d]) end
  local ids = core.new("int32_t[?]", math.max(1, longest))
  for d = 0, self.documents - 1 do
    local n = offsets[d + 1] - offsets[d]
    self:read(offsets[d], n, ids)
    sums:push(C.esp_hash64(ids, 4 * n))
  end
  return sums
end

local function no_texts() fail("esp.data: it holds ids, no texts") end

-- ---- Megatron ----

local Megatron = { masked = false, hash_of = "ids", tokenised = true, each_text = no_texts, is_text = function() return false end }
Megatron.__index = Megatron

--- PREFIX.bin and PREFIX.idx by either name or the prefix; nil where path names no such pair.
function M.megatron(path)
  local prefix = path:match "^(.*)%.bin$" or path:match "^(.*)%.idx$" or path
  local bin, idx = prefix .. ".bin", prefix .. ".idx"
  if not (file.kind(bin) and file.kind(idx)) then
    if path:match "%.bin$" or path:match "%.idx$" then
      fail("esp.data: there is no '%s'; a Megatron pair is a .bin and an .idx of one name", file.kind(bin) and idx or bin)
    end
    return nil
  end
  local out = core.new "esp_megatron *[1]"
  core.try(C.esp_megatron_open(out, bin, idx))
  local c = core.gc(out[0], C.esp_megatron_close)
  local self = setmetatable({ c = c, path = bin, documents = tonumber(C.esp_megatron_documents(c)), ends = growing "f64" }, Megatron)
  local dtype = core.string(C.esp_megatron_dtype(c))
  -- Ids of more than 16 bits may be in it.
  self.wide = dtype == "int32" or dtype == "int64"
  self.ends:reserve(self.documents + 1)
  C.esp_megatron_offsets(c, self.ends.p)
  return self
end

--- The pair names no tokenizer: any is taken at its word.
function Megatron:bind(tok) self.tokenizer, self.vocab = self.tokenizer or tok, self.vocab or (tok and tok.vocab) end
function Megatron:offsets() return self.ends.p end
function Megatron:read(at, n, ids) core.try(C.esp_megatron_read(ids, self.c, at, n)) end
Megatron.describe = function() return "megatron" end

function Megatron:hashes()
  self.sums = self.sums or hash_documents(self)
  return self.sums.p
end

-- ---- HDF5 ----

local Hdf5 = { tokenised = true, each_text = no_texts, is_text = function() return false end }
Hdf5.__index = Hdf5

local function check_offsets(self, tokens)
  local p, n = self.ends.p, self.documents
  if p[0] ~= 0 then fail("%s: document_offsets begins with %g, want 0", self.path, p[0]) end
  for d = 1, n do
    if not (p[d] >= p[d - 1]) then fail("%s: document_offsets falls from %.0f to %.0f at document %d", self.path, p[d - 1], p[d], d - 1) end
  end
  if p[n] ~= tokens then fail("%s: document_offsets ends at %.0f, there are %.0f tokens", self.path, p[n], tokens) end
end

--- A token file: datasets tokens [n] and document_offsets [documents + 1], and where they are there document_hashes [documents] and loss_mask [n].
function M.hdf5(path)
  if not file.kind(path) then fail("esp.data: there is no '%s'", path) end
  local f = require("espalier.io.hdf5").open(path)
  local self = setmetatable({ f = f, path = path, ends = growing "f64" }, Hdf5)
  local tokens, bounds, hashes, mask = f:length "tokens", f:length "document_offsets", f:length "document_hashes", f:length "loss_mask"
  if not tokens or not bounds or bounds < 1 then fail("%s: no token file: want the datasets tokens and document_offsets", path) end
  self.documents = bounds - 1
  if hashes and hashes ~= self.documents then fail("%s: %d document_hashes, want %d", path, hashes, self.documents) end
  if mask and mask ~= tokens then fail("%s: loss_mask has %d entries, want %d", path, mask, tokens) end
  self.masked, self.stored_hashes = mask ~= nil, hashes ~= nil
  self.hash_of = hashes and f:attribute "hash_of" or "ids"
  self.ends:reserve(bounds)
  f:part("document_offsets", "f64", 0, bounds, self.ends.p)
  check_offsets(self, tokens)
  self.vocab, self.tokenizer_hash = tonumber(f:attribute "vocab"), f:attribute "tokenizer_hash"
  self.rule = f:attribute "rule" or ""
  local function token(name)
    local id = tonumber(f:attribute(name))
    return id and id >= 0 and id or nil
  end
  self.bos, self.eos = token "bos", token "eos"
  return self
end

--- Refuses another tokenizer than the one that the file names.
function Hdf5:bind(tok)
  if tok and self.tokenizer_hash and tok:hash() ~= self.tokenizer_hash then
    fail("%s is tokenised by another tokenizer (%s, hash %s) than %s (hash %s)", self.path, self.f:attribute "tokenizer" or "unnamed",
      self.tokenizer_hash, tok.path, tok:hash())
  end
  self.tokenizer = self.tokenizer or tok
  if tok and not self.vocab then self.vocab = tok.vocab end
end

function Hdf5:offsets() return self.ends.p end
function Hdf5:read(at, n, ids) self.f:part("tokens", "i32", at, n, ids) end
function Hdf5:read_counted(at, n, bytes) self.f:part("loss_mask", "u8", at, n, bytes) end
function Hdf5:describe() return self.rule .. (self.tokenizer_hash or "") end

function Hdf5:hashes()
  if not self.sums and self.stored_hashes then
    self.sums = growing "u64"
    self.sums:reserve(self.documents)
    self.f:part("document_hashes", "u64", 0, self.documents, self.sums.p)
  end
  self.sums = self.sums or hash_documents(self)
  return self.sums.p
end

return M
