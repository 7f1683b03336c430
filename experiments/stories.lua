--- What the experiments on stories share: the model, stories to train on and others to score, results that keep every story's sum, paired tables.

local esp = require "espalier"
local evaluation = require "espalier.eval"

local M = {}

--- Options of every such experiment, with its own: a model and the stories it was trained on.
function M.options(args, own)
  local spec = {
    model = { "path", required = true, help = "BabyLlama's llama2.c checkpoint, its tokenizer beside it" },
    text = { "path", required = true, help = "the first ten thousand stories of TinyStories" },
    seeds = { "list", default = { 1, 2, 3 }, help = "as 1,2,3: of the calibration sample, and of training where there is any" },
    out = { "path", required = true, help = "folder of the sweep" },
    retry = { "string", default = "no", help = "no, failed, stale or all" },
  }
  for name, rule in pairs(own or {}) do spec[name] = rule end
  return esp.options(args, spec)
end

--- { teacher, train, held_out }: the first 300 stories of 128 tokens or more, cut there, are scored; training begins behind the 300th story.
function M.open(opt)
  local teacher, scored, trained = esp.load(opt.model), {}, {}
  local tok = teacher:tok()
  for i, text in ipairs(esp.data.open(opt.text):texts()) do
    if #scored < 300 and #tok:encode(text, { bos = true }) >= 128 then scored[#scored + 1] = text
    elseif i > 300 then trained[#trained + 1] = text end
  end
  return { teacher = teacher, train = esp.data.open(trained, { seq = 128 }), held_out = esp.data.open(scored, { seq = 128, pack = "none" }) }
end

--- A cell's result: NLL with its interval over stories, parameters, and every story's sum, which pairing needs.
function M.result(world, model, more)
  local lists = evaluation.by_document(model, world.held_out, 16)
  local nll, interval = evaluation.mean_with_interval(lists.nll, lists.predictions)
  local out = { nll = nll, interval = interval, parameters = esp.plan(model).before.parameters, stories = lists.nll, predictions = lists.predictions }
  for k, v in pairs(more or {}) do out[k] = v end
  return out
end

--- Mean of a field over results.
function M.mean(results, field)
  local sum = 0
  for _, r in ipairs(results) do sum = sum + r[field] end
  return sum / #results
end

--- Difference of two lists of results (one a seed, the same seeds) in nats a token, and the half width of its 95 % interval over stories: for each
-- story the difference of its sums, meaned over the seeds.
function M.paired(a, b, field)
  local sums, counts = {}, a[1].predictions
  for i = 1, #counts do
    sums[i] = 0
    for s = 1, #a do sums[i] = sums[i] + (a[s][field or "stories"][i] - b[s][field or "stories"][i]) / #a end
  end
  return evaluation.mean_with_interval(sums, counts)
end

--- The results of a sweep's cells in groups by the value of an option, in the order of the cells; the sweep's failed cells are an error.
function M.groups(sweep, name)
  local order, by_value = {}, {}
  for _, cell in ipairs(sweep.cells) do
    local value = cell.options[name]
    if cell.state ~= "done" then error("the cell " .. cell.id .. " is " .. cell.state .. ": " .. tostring(cell.error), 0) end
    if not by_value[value] then
      order[#order + 1], by_value[value] = value, {}
    end
    table.insert(by_value[value], cell.result)
  end
  return order, by_value
end

return M
