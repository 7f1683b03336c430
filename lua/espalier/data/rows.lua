--- What data of every kind does with its rows: batches of them as tensors, samples, and the order in which a run meets them.
--
-- A kind gives: seq; self:all_rows(); self:fill(row, b, batch) writes one row; self:pick_all(k, seed, sequential) is the k-th row that a run meets.

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"
local fail = require "espalier.fail"

local C = core.C
local Rows = {}

--- The place of the k-th of n rows that are met again in another order each epoch: a function of n, k and seed alone.
function Rows.shuffled(n, k, seed)
  return tonumber(C.esp_permute(k % n, n, seed, math.floor(k / n)))
end

--- Number of rows.
function Rows:rows()
  local n = self:all_rows()
  return self.taken and math.min(self.taken, n) or n
end

--- The k-th row (from 0) that a run with this seed meets, over as many epochs as it takes; a function of k alone, so that a run resumes anywhere.
function Rows:pick(k, seed, sequential)
  if not self.taken then return self:pick_all(k, seed, sequential) end
  local n = self:rows()
  return sequential and k % n or Rows.shuffled(n, k, seed)
end

--- n rows drawn without replacement (all where there are fewer; of a blend in its proportions), as data.
function Rows:sample(n, seed)
  local some = {}
  for k, v in pairs(self) do some[k] = v end
  some.taken, some.sample_seed = n, seed or 0
  return setmetatable(some, getmetatable(self))
end

--- Rows as tensors: { ids, first, target (i32 [n,T]), valid (f32 [n*T]: 1 where the loss counts), predictions, positions }. which: a list of rows,
-- or the first row and how many. positions: entries of valid that are 1; predictions: tokens that have a next one in their document; where a
-- mask says which tokens count, only those are targets, and only the positions before them are valid.
function Rows:batch(which, n)
  local list = which
  if type(which) == "number" then
    list = {}
    for i = 1, n do list[i] = which + i - 1 end
  end
  local B, T = #list, self.seq
  local batch = { ids = tensor.new({ B, T }, "i32"), first = tensor.new({ B, T }, "i32"), target = tensor.new({ B, T }, "i32"),
    valid = tensor.zeros { B * T }, positions = 0, predictions = 0 }
  batch.p = { ids = batch.ids:data(), first = batch.first:data(), target = batch.target:data(), valid = batch.valid:data() }
  local rows = self:rows()
  for b = 0, B - 1 do
    local r = list[b + 1]
    if r < 0 or r >= rows then fail("data:batch: row %d, want 0 to %d", r, rows - 1) end
    self:fill(self.taken and self:pick_all(r, self.sample_seed) or r, b, batch)
  end
  local target, valid = batch.p.target, batch.p.valid
  for i = 0, B * T - 1 do
    if target[i] >= 0 then batch.predictions = batch.predictions + 1 end
    if valid[i] > 0 then batch.positions = batch.positions + 1 end
  end
  batch.p = nil
  return batch
end

--- Readies the data for a model: tokenises by its tokenizer what is still text, refuses ids of another tokenizer or a larger vocabulary, and lets
-- rows whose length nobody chose follow its context. what: who asks, for messages.
function Rows:use(model, what)
  self:bind(self:tokenizer_of(model), model.shape.context)
  local vocab = self:vocab()
  if vocab and vocab > model.shape.vocab then
    fail("%s: the tokenizer has %d pieces, the model's vocabulary %d", what, vocab, model.shape.vocab)
  end
end

return Rows
