--- What the model loses with layers left out, by running it: sums of NLL, of KL from the full model, of squared changes of the last hidden state
-- and of the logits; and what a task of the user's says.
--
-- The residual stream is kept into each layer, so leaving out layers i..i+n-1 runs the layers behind them only: a scan of L layers costs about
-- half of L passes. Logits exist a chunk of tokens at a time.

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"
local tape = require "espalier.tape"
local scope = require "espalier.scope"
local tokens = require "espalier.eval.tokens"
local fail = require "espalier.fail"

local c = core.ops
--- stopped: what a scan raises that was asked to stop.
local M = { stopped = setmetatable({}, { __tostring = function() return "interrupted" end }) }

--- Sums a half and candidate: NLL, predictions, KL, positions, squared change of the last hidden state, of the logits, squared logits.
M.columns = 7

--- What is left out: parts of a layer or blocks of layers, by kind. Returns a list of { key, part, n, first }.
function M.candidates(layers, part, n)
  local list = {}
  for i = 0, layers - n do list[i + 1] = { part = part, n = n, first = i } end
  return list
end

--- The skip table of forward with a candidate left out beside what is out already.
function M.skip(out, candidate)
  local skip = {}
  for l, what in pairs(out or {}) do skip[l] = what end
  for l = candidate.first, candidate.first + candidate.n - 1 do
    local own = candidate.part == "layer" and true or candidate.part
    skip[l] = skip[l] and skip[l] ~= own and true or own
  end
  return skip
end

-- Adds per-token values to f64 sums [2,count,columns] of candidate i, by the half of their row.
local function add(sums, i, batch, v)
  local T, count, p, target = batch.ids.shape[2], sums.shape[2], sums:data(), batch.target:data()
  local lengths = batch.lengths and batch.lengths:data()
  local nll, kl, hidden, logits, full = v.nll:data(), v.kl:data(), v.hidden:data(), v.logits:data(), v.full_logits:data()
  for b = 0, batch.ids.shape[1] - 1 do
    local at = ((batch.row + b) % 2 * count + i) * M.columns
    for t = b * T, b * T + (lengths and lengths[b] or T) - 1 do
      if target[t] >= 0 then p[at], p[at + 1] = p[at] + nll[t], p[at + 1] + 1 end
      p[at + 2], p[at + 3] = p[at + 2] + kl[t], p[at + 3] + 1
      p[at + 4], p[at + 5], p[at + 6] = p[at + 4] + hidden[t] ^ 2, p[at + 5] + logits[t] ^ 2, p[at + 6] + full[t] ^ 2
    end
  end
end

-- Length of the change of each token's last hidden state.
local function change(a, b)
  local d, y = tensor.new(a.shape), tensor.new { a.shape[1], a.shape[2] }
  c.sub(d.c, a.c, b.c)
  c.norm(y.c, d.c, 2)
  return y
end

--- Runs the candidates on one batch and adds up. streams[l]: the residual stream into layer l (of the model with `out` left out already); full: the
-- full model's last hidden state; sums: f64 [2, #list, columns]. stop() (or nil) is asked after each candidate; yes raises M.stopped.
function M.scan(model, batch, streams, full, list, sums, out, stop)
  for i, candidate in ipairs(list) do
    tape.no_grad(scope.run, function()
      local skip = M.skip(out, candidate)
      -- Whole layers that are out need not be walked through.
      local start = candidate.part == "layer" and candidate.first + candidate.n or candidate.first
      local hidden = model:forward(nil, { first = batch.first, from = { layer = start, x = streams[candidate.first] }, skip = skip })
      local v = tokens.compare(model:states(hidden), batch.target, model:states(full))
      v.hidden = change(hidden, full)
      add(sums, i - 1, batch, v)
    end)
    if stop and stop() then error(M.stopped, 0) end
  end
end

--- The model with layers left out, for a task that runs it: forward, logits, loss and generate see the smaller one.
function M.without(model, skip)
  local view = setmetatable({}, { __index = model, __tostring = function() return "model with layers left out: " .. tostring(model) end })
  function view.forward(_, ids, opt)
    local own = {}
    for k, v in pairs(opt or {}) do own[k] = v end
    own.skip = own.skip and fail("forward: this model already leaves layers out") or skip
    return model:forward(ids, own)
  end
  return view
end

--- What the task says with each candidate left out, a list; it must give a number, higher is better. after(i): called when candidate i is done;
-- where it answers yes the list ends there.
function M.task(model, list, task, out, after)
  local scores = {}
  for i, candidate in ipairs(list) do
    scores[i] = tape.no_grad(scope.run, task, M.without(model, M.skip(out, candidate)))
    if type(scores[i]) ~= "number" or scores[i] ~= scores[i] then
      fail("task: it gave %s with layer %d left out, want a number", tostring(scores[i]), candidate.first)
    end
    if after(i) then break end
  end
  return scores
end

return M
