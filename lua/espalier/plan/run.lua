--- What a distillation run would take: memory by part, disk by part, and time from a rate measured on this machine.

local measure = require "espalier.plan.measure"
local shapes = require "espalier.models.shape"
local cut = require("espalier.loss.head").cut
local rows_at_once = require("espalier.distill.pass").rows

local M = {}

-- Bytes of the heads while the loss is made (loss/head.lua): logits and their gradients, packed heads (of a teacher that is not in bf16, too). The
-- head's gradient is added at once.
local function head_bytes(teacher, student, tokens, precision, half)
  local V, d = student.vocab, student.hidden
  local chunk, group = cut(tokens, V, precision)
  if precision ~= "bf16" then return 4 * V * 2 * chunk end
  return V * (2 * chunk + 2 * group + 4 * d + (half and 0 or 2 * teacher.hidden))
end

--- Bytes that a step over opt.batch rows of opt.length tokens holds at most, by part: the student as given and the copy that is trained; activations
-- for backward of the tokens that go through it at once; logits: of a chunk, with all that the heads need then; other: what the allocator rounds up,
-- and the program itself. opt.precision: of the products; opt.teacher, opt.given: bytes of the teacher and of the student as given (all in f32).
function M.memory(teacher, student, opt)
  local batch, length, precision = opt.batch, opt.length, opt.precision
  local tokens, p = math.min(batch, rows_at_once(length)) * length, shapes.parameters(student)
  -- The stream is f32; what products read is in the dtype of the precision.
  local stream, kept, size = 4 * student.hidden + teacher.hidden, 0, precision == "bf16" and 2 or 4
  for l = 0, student.layers - 1 do
    local h, g, f = shapes.at(student, "heads", l), shapes.at(student, "kv_heads", l), shapes.at(student, "ffn", l)
    local e, d = student.head_dim, student.hidden
    -- queries, keys, values and what attention gives, and the sum; what the gate reads, and the sum. Norms and products are made again.
    if h > 0 then stream, kept = stream + d, kept + 2 * h * e + 2 * g * e end
    if f > 0 then stream, kept = stream + d, kept + (student.gated == false and 1 or 2) * f end
  end
  local half = opt.teacher and opt.teacher < 4 * shapes.parameters(teacher)
  local parts = { teacher = opt.teacher or 4 * shapes.parameters(teacher), student = (opt.given or 4 * p) + 4 * p, gradients = 4 * p, moments = 8 * p,
    activations = (4 * stream + size * kept) * tokens, logits = head_bytes(teacher, student, tokens, precision, half) }
  local sum = 0
  for _, bytes in pairs(parts) do sum = sum + bytes end
  -- Blocks are rounded up, and larger ones taken for smaller, by a sixteenth in all; the program, its libraries and the threads' scratch take the
  -- rest.
  parts.other = sum / 16 + 32e6
  -- The order of a step's rows is a Lua list, and what its passes read stands ready: ids, targets, where documents begin, masks.
  parts.rows = batch * (16 + 16 * length)
  return parts
end

--- Bytes on disk, by part: two generations of checkpoints (weights and moments), the trained model, and what caching the teacher on `tokens` tokens
-- would take: final hidden states in bf16, which give the exact distribution, or the 64 largest logits (id and bf16) with the tail's mass.
function M.disk(teacher, student, tokens)
  local p = shapes.parameters(student)
  return { checkpoints = 2 * 12 * p, model = 4 * p, ["cache of states"] = 2 * teacher.hidden * tokens, ["cache of top 64"] = (64 * 6 + 4) * tokens }
end

-- Seconds of all layers over one row of T tokens; layers of one kind are measured once.
local function all_layers(s, T, opt)
  local known, sum = {}, 0
  for l = 0, s.layers - 1 do
    local w, key = { hidden = s.hidden }, ""
    for _, axis in ipairs { "ffn", "heads", "kv_heads" } do
      w[axis] = shapes.at(s, axis, l)
      key = key .. w[axis] .. ","
    end
    known[key] = known[key] or measure.layer(s, w, 1, T, opt)
    sum = sum + known[key]
  end
  return sum
end

--- Tokens a second of a distillation step on this machine: the teacher's layers forward, the student's forward and backward, each kind measured once
-- over at most 1,024 tokens, and both heads (the student's twice more, for backward). The optimiser, which large batches hide, is left out.
function M.rate(teacher, student, length)
  local T = math.min(length, 1024)
  local layers = all_layers(teacher, T) + all_layers(student, T, { train = true })
  return 1 / (layers / T + measure.head(teacher.hidden, teacher.vocab) + 3 * measure.head(student.hidden, student.vocab))
end

return M
