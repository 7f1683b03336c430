--- What a distillation run would take: memory by part, disk by part, and time from a rate measured on this machine.

local measure = require "espalier.plan.measure"
local shapes = require "espalier.models.shape"

local M = {}

--- Bytes that a step keeps, by part: f32; activations of the student for backward, one chunk of both heads' logits.
function M.memory(teacher, student, batch, length)
  local tokens, p = batch * length, shapes.parameters(student)
  local kept = 0
  for l = 0, student.layers - 1 do
    local h, g, f = shapes.at(student, "heads", l), shapes.at(student, "kv_heads", l), shapes.at(student, "ffn", l)
    local e, d = student.head_dim, student.hidden
    -- norm, q and k before and after rope, v, attention output, its projection and sum; norm, gate, up, product, its projection and sum
    if h > 0 then kept = kept + 4 * d + 3 * h * e + 3 * g * e end
    if f > 0 then kept = kept + 4 * d + 3 * f end
  end
  return { teacher = 4 * shapes.parameters(teacher), student = 4 * p, gradients = 4 * p, moments = 8 * p, activations = 4 * kept * tokens,
    logits = 2 * 4 * 256 * student.vocab }
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
