--- Calibration data a batch at a time: rows of esp.data, an i32 tensor of ids, or a table of rows.

local tensor = require "espalier.tensor"
local tape = require "espalier.tape"
local core = require "espalier.ffi"
local file = require "espalier.io.file"
local models = require "espalier.models.model"
local fail = require "espalier.fail"

local M = {}

--- Binds rows of esp.data to the model's tokenizer; 64 rows are drawn where no sample was; all else as it is.
function M.bind(model, data)
  if type(data) ~= "table" or not data.bind then return data end
  data:use(model, "measure")
  if data:rows() > 64 and not data.taken then return data:sample(64) end
  return data
end

local function lengths_tensor(list, T)
  for _, n in ipairs(list) do if n ~= T then return tensor.of(list, { dtype = "i32" }) end end
  return nil
end

-- Tokens of each row that count.
local function lengths_of(valid, B, T)
  local p, list = valid:data(), {}
  for b = 0, B - 1 do
    local n = 0
    while n < T and p[b * T + n] ~= 0 do n = n + 1 end
    list[b + 1] = n
  end
  return list
end

local function from_data(data, at, n)
  local b = data:batch(at, n)
  local list = lengths_of(b.valid, n, data.seq)
  return { ids = b.ids, first = b.first, target = b.target, valid = b.valid, row = at, counts = list, lengths = lengths_tensor(list, data.seq) }
end

local function from_ids(ids, lengths, at, n)
  local T, list = ids.shape[2], {}
  for i = 1, n do list[i] = lengths[at + i] end
  local part = tensor.contiguous(tensor.narrow(ids, 0, at, n))
  return { ids = part, target = models.next_targets(part, list), row = at, counts = list, lengths = lengths_tensor(list, T) }
end

--- { rows, seq, read(from, n), next }: read gives { ids, target (i32 [n,T]), first or nil, valid or nil, lengths (i32 [n] or nil: all of T), counts
-- (the same as a list), row (number of the first) }; next() walks through in batches of `size`, from row `from` on (0);
-- size may be nil where next is not called.
function M.of(data, size, from)
  local source, ids, lengths = {}, nil, nil
  if type(data) == "table" and data.batch and data.rows then
    source.rows, source.seq = data:rows(), data.seq
  else
    if type(data) == "table" and #data == 0 and not tensor.is(data) then fail "measure: the calibration data has no rows" end
    ids, lengths = models.as_ids(data)
    source.rows, source.seq = ids.shape[1], ids.shape[2]
  end
  if source.rows == 0 then fail("measure: the calibration data has no rows") end
  function source.read(at, n)
    return tape.no_grad(function() return ids and from_ids(ids, lengths, at, n) or from_data(data, at, n) end)
  end
  local at = from or 0
  function source.next()
    if at >= source.rows then return nil end
    local n = math.min(size, source.rows - at)
    at = at + n
    return source.read(at - n, n)
  end
  return source
end

--- Hash of a batch's rows, chained to that of the rows before: it does not depend on the size of the batches.
function M.digest(before, batch)
  local hex, p, T = core.new "char[33]", batch.ids:data(), batch.ids.shape[2]
  for b, n in ipairs(batch.counts) do
    core.try(core.C.esp_hash(hex, p + (b - 1) * T, 4 * n))
    before = file.hash_text(before .. core.string(hex))
  end
  return before
end

return M
