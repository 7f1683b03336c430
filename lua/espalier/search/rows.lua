--- Candidates of a search as rows: what each is, what it takes, how it scored; their order, their front, and how well the cheap loss foresaw scores.

local legal = require "espalier.prune.legal"
local shapes = require "espalier.models.shape"

local M = {}

local function texts(v)
  if type(v) ~= "table" then return tostring(v) end
  local list = {}
  for i, x in ipairs(v) do list[i] = tostring(x) end
  return table.concat(list, ",")
end

--- A request as one line, the same for the same cut: "hidden=48 ffn=128".
function M.name(request)
  local parts = {}
  for _, axis in ipairs { "hidden", "ffn", "heads", "kv_heads", "layers", "drop" } do
    if request[axis] then parts[#parts + 1] = axis .. "=" .. texts(request[axis]) end
  end
  return #parts > 0 and table.concat(parts, " ") or "whole"
end

--- A row of a request on shape s: name, request, shape, parameters, memory (weights and KV cache in bf16), latency where it was measured.
function M.new(s, request, cheap, opt, latency)
  local new = legal.result(s, request, legal.check("esp.search", s, request))
  local p = shapes.parameters(new)
  local seconds
  if latency then
    seconds = 0
    for l = 0, new.layers - 1 do
      local mlp, attention = latency:parts(new.hidden, shapes.at(new, "ffn", l), shapes.at(new, "heads", l), shapes.at(new, "kv_heads", l))
      seconds = seconds + mlp + attention
    end
  end
  return { name = M.name(request), request = request, shape = new, parameters = p, cheap = cheap, latency = seconds,
    memory = 2 * p + shapes.kv_bytes(new, 2) * opt.batch * opt.length, uniform = type(new.ffn) == "number" and type(new.heads) == "number" }
end

--- The loss that counts of a row: after distillation where there was one; nil before it was scored.
function M.loss(row)
  return row.kd_nll or row.nll
end

--- Sorts rows: the further a row came in distillation the higher, then by its loss; rows that were not scored last, by their cheap loss.
function M.sort(rows)
  table.sort(rows, function(a, b)
    local x, y = a.round or 0, b.round or 0
    if x ~= y then return x > y end
    local p, q = M.loss(a), M.loss(b)
    if p and q and p ~= q then return p < q end
    if (p ~= nil) ~= (q ~= nil) then return p ~= nil end
    if a.cheap ~= b.cheap then return a.cheap < b.cheap end
    return a.name < b.name
  end)
end

--- What a front may weigh against the loss, by the field of a row.
M.measures = { "parameters", "memory", "latency" }

-- Does b have no more of the loss and of every measure than a, and less of one?
local function beats(b, a, measures)
  local all, better = b.nll <= a.nll, b.nll < a.nll
  for _, m in ipairs(measures) do
    if a[m] then
      all = all and b[m] <= a[m]
      better = better or b[m] < a[m]
    end
  end
  return all and better
end

local function on_front(a, rows, measures)
  if not a.nll then return false end
  for _, b in ipairs(rows) do if b ~= a and b.nll and beats(b, a, measures) then return false end end
  return true
end

--- Marks the front: scored rows that no other row beats or equals in NLL, parameters, memory and (where measured) latency, all at once.
function M.mark_front(rows)
  for _, a in ipairs(rows) do a.front = on_front(a, rows, M.measures) end
end

--- The front of NLL against one measure: the scored rows of which no other has less of both, from the least of the measure on.
function M.front(rows, measure)
  local list = {}
  for _, a in ipairs(rows) do if on_front(a, rows, { measure }) then list[#list + 1] = a end end
  table.sort(list, function(a, b) return a[measure] < b[measure] or (a[measure] == b[measure] and a.name < b.name) end)
  return list
end

-- Ranks with ties shared.
local function ranks(values)
  local order, out = {}, {}
  for i = 1, #values do order[i] = i end
  table.sort(order, function(a, b) return values[a] < values[b] end)
  local i = 1
  while i <= #order do
    local j = i
    while j < #order and values[order[j + 1]] == values[order[i]] do j = j + 1 end
    for k = i, j do out[order[k]] = (i + j) / 2 end
    i = j + 1
  end
  return out
end

--- Rank correlation (Spearman) of two lists of numbers; NaN for fewer than two, or where one is constant.
function M.rank_correlation(x, y)
  local a, b, n = ranks(x), ranks(y), #x
  local mean, ab, aa, bb = (n + 1) / 2, 0, 0, 0
  for i = 1, n do
    ab, aa, bb = ab + (a[i] - mean) * (b[i] - mean), aa + (a[i] - mean) ^ 2, bb + (b[i] - mean) ^ 2
  end
  return ab / math.sqrt(aa * bb)
end

return M
