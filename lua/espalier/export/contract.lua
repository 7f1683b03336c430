--- The contract of every export: what was written is opened again, and its logits on a fixed batch are those of the model rounded to that.

local tensor = require "espalier.tensor"
local lazy = require "espalier.tensor.lazy"
local models = require "espalier.models.model"
local tape = require "espalier.tape"
local scope = require "espalier.scope"
local ops = require "espalier.ops"
local bounded = require "espalier.models.bounded"
local safetensors = require "espalier.io.safetensors"
local fail = require "espalier.fail"

local M = {}

-- Two rows, so that a mistake between rows shows; few positions, so that the logits of a large vocabulary stay small.
local ROWS, POSITIONS = 2, 32

-- Text for the batch: words that any English vocabulary knows, and enough of them.
local passage = [[Once upon a time there was an old gardener who trained a pear tree flat against a wall. Every winter he cut away half of its
branches, and every summer the branches that were left bore twice as much fruit. The neighbours asked him how he knew what to cut. "I look at what the
tree does with each branch," he said, "and then I tie down what I keep, so that it grows the way the whole tree would have grown."]]

-- The passage as ids, or nil where the model has no tokenizer that can read it.
local function of_text(model, count)
  local ok, ids = pcall(function()
    local tok = model:tok()
    return tok.vocab <= model.shape.vocab and tok:encode((passage:gsub("\n", " ")), { bos = tok.add_bos }) or nil
  end)
  return ok and ids and #ids >= count and ids or nil
end

--- The batch, rows of ids, and what it is: "text" where the model has a tokenizer, else "ids" spread over the vocabulary.
function M.batch(model, context)
  local s, rows = model.shape, {}
  local length = math.min(POSITIONS, context or s.context)
  local ids = of_text(model, ROWS * length)
  for b = 1, ROWS do
    rows[b] = {}
    for t = 1, length do rows[b][t] = ids and ids[(b - 1) * length + t] or (b * 7919 + t * 104729) % s.vocab end
  end
  return rows, ids and "text" or "ids"
end

local function largest(t)
  return tape.no_grad(scope.run, function() return (t:abs():view(-1):max(0)):item() end)
end

--- Logits [rows, positions, vocab] of a batch, in bounded memory: the weights of one block at a time, the head in slices.
function M.logits(model, rows)
  local V, out = model.shape.vocab, nil
  tape.no_grad(scope.run, function()
    local h = bounded.hidden(model, rows)
    local B, T = h.shape[1], h.shape[2]
    out = scope.outside(tensor.new, { B, T, V })
    for from, weight in bounded.head(model) do
      scope.run(function() tensor.narrow(out, 2, from, weight.shape[1]):copy_from(model:project(h, weight)) end)
    end
  end)
  return out
end

--- Mean negative log-likelihood of the next ids of the rows, nats, from the logits of all positions.
function M.nll(logits, rows)
  local total, count = 0, 0
  tape.no_grad(scope.run, function()
    local p, V = ops.log_softmax(logits):data(), logits.shape[3]
    for b, row in ipairs(rows) do
      for t = 1, #row - 1 do
        total, count = total - p[((b - 1) * #row + t - 1) * V + row[t + 1]], count + 1
      end
    end
  end)
  return total / count
end

--- The model with its weights through a dtype, dtype_of(weight), and whether that changes any. Nothing of the model itself is read for good.
function M.through(model, dtype_of)
  local weights, changes = {}, false
  for name, t in pairs(model:parameters()) do
    local dtype = dtype_of(t)
    changes = changes or dtype ~= "f32" and dtype ~= t.dtype
    weights[name] = lazy.rounded(t, dtype)
  end
  return models.new(model.shape, { weights = weights, config = model.config, source = model.source, tokenizer = model.tokenizer }), changes
end

--- The largest difference that a logit may have from one of the largest of its batch: 1e-4, or 1e-5 of that where it is more.
function M.allowed(most)
  return math.max(1e-4, 1e-5 * most)
end

--- What nothing from elsewhere can tell of a model: its logits on the batch against those of the same files opened again (reopened, of f32 weights),
-- and what rounding its weights to bf16 would cost. Returns { difference, largest, nll, rounding, rounding_difference (of a logit), batch }.
function M.again(model, reopened)
  local rows, kind = M.batch(model)
  local have, again = M.logits(model, rows), M.logits(reopened, rows)
  local facts = { difference = largest(have - again), largest = largest(have), nll = M.nll(have, rows), batch = kind }
  facts.rounding, facts.rounding_difference = 0, 0
  local rounded, changes = M.through(model, function() return "bf16" end)
  if changes then
    local logits = M.logits(rounded, rows)
    facts.rounding, facts.rounding_difference = M.nll(logits, rows) - facts.nll, largest(have - logits)
  end
  return facts
end

--- Compares: model as it is, rounded (the model of the numbers that were written, or model itself), reopened (what was read back). opt.tolerance
-- (1e-4, and 1e-5 of the largest logit where logits are large); opt.context: fewer positions than the model's. Returns { difference, largest, nll,
-- rounding (what rounding cost in NLL, nats a token), batch = "text" or "ids" }, the rows of ids, and the logits read back. Errors: they disagree.
function M.prove(model, rounded, reopened, opt)
  opt = opt or {}
  local rows, kind = M.batch(model, opt.context)
  local want, got = M.logits(rounded, rows), M.logits(reopened, rows)
  local difference, most = largest(want - got), largest(want)
  local allowed = opt.tolerance or M.allowed(most)
  -- NaN fails.
  if not (difference <= allowed) then
    fail("save: what was written gives logits that differ by %g from the model's, want at most %g; nothing was put in place", difference, allowed)
  end
  local after = M.nll(got, rows)
  local before = rounded == model and M.nll(want, rows) or M.nll(M.logits(model, rows), rows)
  return { difference = difference, largest = most, nll = after, rounding = after - before, batch = kind }, rows, got
end

--- Writes the batch and its logits: { ids i32 [rows, positions], logits f32 [rows, positions, vocab] }.
function M.write_probe(path, rows, logits)
  safetensors.write(path, { ids = tensor.of(rows, { dtype = "i32" }), logits = logits }, { metadata = { format = "pt" } })
end

--- The largest difference between a model's logits and those of a probe file.
function M.compare_probe(model, path)
  local probe = safetensors.read(path)
  if not (probe.ids and probe.logits) then fail("%s holds no ids and logits", path) end
  local got = M.logits(model, probe.ids)
  if table.concat(got.shape, "x") ~= table.concat(probe.logits.shape, "x") then
    fail("%s: the logits are %s, want %s", path, tensor.shape_text(probe.logits), tensor.shape_text(got))
  end
  return largest(got - tensor.to(probe.logits, "f32")), largest(got)
end

return M
