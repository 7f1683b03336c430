--- A user's loss is certified before it trains anything: one finite value a token; zero where student and teacher agree, if it says so; its
-- gradient against central differences of its own values.

local tensor = require "espalier.tensor"
local ops = require "espalier.ops"
local tape = require "espalier.tape"
local scope = require "espalier.scope"
local fail = require "espalier.fail"

local rows, vocab = 4, 7

local function log_probabilities(seed, scale)
  return ops.log_softmax(tensor.normal({ rows, vocab }, { seed = seed }) * scale)
end

local function values(term, s, t, what)
  local v = term.token(s, t, term.opt)
  if not tensor.is(v) or #v.shape ~= 1 or v.shape[1] ~= rows then
    fail("%s: token gives %s for log-probabilities [n, vocab], want a tensor [n], one value a token", what,
      tensor.is(v) and tensor.shape_text(v) or type(v))
  end
  local list = v:table()
  for i, x in ipairs(list) do if not (math.abs(x) < math.huge) then fail("%s: the value of token %d is %s", what, i - 1, tostring(x)) end end
  return v, list
end

-- Gradient by the logits of a sum of the values, and the same by central differences.
local function check_gradient(term, what)
  local logits, t = tensor.normal({ rows, vocab }, { seed = 3 }):requires_grad_(true), log_probabilities(2, 1)
  local loss = values(term, ops.log_softmax(logits), t, what):sum()
  if not loss.requires_grad then fail("%s: its values do not depend on the student", what) end
  loss:backward()
  local got, flat = logits.grad:view(-1):table(), logits:view(-1):table()
  local largest = 0
  for _, g in ipairs(got) do largest = math.max(largest, math.abs(g)) end
  local function at(i, h)
    local moved, nested = {}, {}
    for k, x in ipairs(flat) do moved[k] = x + (k == i and h or 0) end
    for r = 1, rows do nested[r] = { unpack(moved, (r - 1) * vocab + 1, r * vocab) } end
    local total = 0
    for _, x in ipairs(select(2, values(term, ops.log_softmax(tensor.of(nested)), t, what))) do total = total + x end
    return total
  end
  for _, i in ipairs { 1, 9, 20, rows * vocab } do
    local h = 0.01
    local want = tape.no_grad(function() return (at(i, h) - at(i, -h)) / (2 * h) end)
    -- Differences in f32 are good to a few parts in a thousand.
    if not (math.abs(got[i] - want) <= 0.02 * math.max(largest, 1e-2)) then
      fail("%s: the gradient by logit %d is %.5g, differences of its values say %.5g", what, i - 1, got[i], want)
    end
  end
end

--- Refuses a loss whose own terms (kind "token") are not what they should be; a built-in one is tested with the project.
return function(loss)
  for _, term in ipairs(loss.terms) do
    if term.kind == "token" then
      local what = "loss " .. loss.name
      scope.run(function()
        local s, t = log_probabilities(1, 1), log_probabilities(2, 1)
        tape.no_grad(function()
          values(term, s, t, what)
          if term.zero_at_teacher then
            for i, x in ipairs(select(2, values(term, t, t, what))) do
              if not (math.abs(x) <= 1e-5) then
                fail("%s: it says that it is zero at the teacher, but token %d gives %g where student and teacher agree", what, i - 1, x)
              end
            end
          end
        end)
        check_gradient(term, what)
      end)
    end
  end
end
