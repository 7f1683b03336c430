--- A blend: rows of several sources in fixed proportions, as { ["wiki.h5"] = 0.3, ["code.h5"] = 0.2 } asks.
--
-- Weights are taken to six decimals and brought to the smallest whole numbers, n_1 .. n_m, D their sum: the blend repeats a period of D rows in
-- which source j stands n_j times. The i-th row of a source (from 1) has its window between rows (i-1) D/n_j and i D/n_j of the period, and of the
-- open windows the one that closes first is served: each row then falls into its window (that is earliest deadline first at full load), so every
-- prefix of the blend holds the share of each source to within one row. Which source the k-th row is of, and which of its rows, is looked up from
-- k alone.

local file = require "espalier.io.file"
local growing = require "espalier.data.growing"
local options = require "espalier.options"
local Rows = require "espalier.data.rows"
local fail = require "espalier.fail"

local M = { longest_period = 1e6 }
local Blend = setmetatable({}, { __index = Rows })
Blend.__index = Blend

local function gcd(a, b)
  while b > 0 do a, b = b, a % b end
  return a
end

-- Weights as the smallest whole numbers in their proportion.
local function whole_numbers(names, weights)
  local list, common = {}, 0
  for i, w in ipairs(weights) do
    if type(w) ~= "number" or not (w > 0 and w < 1e6) then
      fail("esp.data: the weight of '%s' is %s, want a number above 0", names[i], tostring(w))
    end
    list[i] = math.floor(w * 1e6 + 0.5)
    if list[i] == 0 then fail("esp.data: the weight of '%s' is %g, less than a millionth", names[i], w) end
    common = gcd(list[i], common)
  end
  local period = 0
  for i in ipairs(list) do
    list[i] = list[i] / common
    period = period + list[i]
  end
  if period > M.longest_period then
    fail("esp.data: the weights repeat after %.0f rows only, at most %.0f are taken; round them (1 and 2 are a third and two)", period,
      M.longest_period)
  end
  return list, period
end

-- source[k], nth[k] for row k of a period: which source, and how many rows of it come before in the period.
local function schedule(counts, period)
  local source, nth, given = growing "i32", growing "i32", {}
  for j in ipairs(counts) do given[j] = 0 end
  for k = 0, period - 1 do
    local best, due
    for j, n in ipairs(counts) do
      -- Released when k >= floor(given D / n); due at ceil((given + 1) D / n), ties to the earlier name.
      if given[j] < n and given[j] * period < (k + 1) * n then
        local deadline = math.ceil((given[j] + 1) * period / n)
        if not due or deadline < due then best, due = j, deadline end
      end
    end
    source:push(best)
    nth:push(given[best])
    given[best] = given[best] + 1
  end
  return source, nth
end

local function assemble(names, sources, counts, period, source, nth, role)
  local self = setmetatable({ names = names, list = sources, sources = {}, counts = counts, period = period, source = source, nth = nth,
    role = role, documents = 0 }, Blend)
  for i, name in ipairs(names) do
    self.sources[name] = sources[i]
    self.documents = self.documents + sources[i].documents
  end
  self:settle()
  return self
end

--- A blend of { [name] = { data, weight } }.
function M.new(parts)
  local names, sources, weights = {}, {}, {}
  for name in pairs(parts) do names[#names + 1] = name end
  table.sort(names)
  for i, name in ipairs(names) do sources[i], weights[i] = parts[name][1], parts[name][2] end
  local counts, period = whole_numbers(names, weights)
  return assemble(names, sources, counts, period, schedule(counts, period))
end

--- Rows of all sources have one length: the shortest that one of them came to.
function Blend:settle()
  local seq
  for _, d in ipairs(self.list) do if d.seq then seq = math.min(seq or d.seq, d.seq) end end
  for _, d in ipairs(self.list) do if not d.seq then return end end
  for _, d in ipairs(self.list) do if d.seq > seq then d:bind(nil, seq) end end
  self.seq, self.tokenizer = seq, self.list[1].tokenizer
end

function Blend:bind(tok, context)
  for _, d in ipairs(self.list) do d:bind(tok, context) end
  self:settle()
  return self
end

function Blend:tokenizer_of(model)
  for _, d in ipairs(self.list) do
    local tok = d:tokenizer_of(model)
    if tok then return tok end
  end
end

function Blend:vocab()
  local most
  for _, d in ipairs(self.list) do
    local v = d:vocab()
    if v and v > (most or 0) then most = v end
  end
  return most
end

--- Rows of all sources, one source after another: what scoring goes through.
function Blend:all_rows()
  local n = 0
  for _, d in ipairs(self.list) do n = n + d:all_rows() end
  return n
end

function Blend:tokens()
  local n = 0
  for _, d in ipairs(self.list) do n = n + d:tokens() end
  return n
end

function Blend:pick_all(k, seed, sequential)
  local period, at = math.floor(k / self.period), k % self.period
  local j = self.source.p[at]
  local before = 0
  for i = 1, j - 1 do before = before + self.list[i]:all_rows() end
  return before + self.list[j]:pick_all(period * self.counts[j] + self.nth.p[at], seed, sequential)
end

function Blend:fill(r, b, batch)
  for _, d in ipairs(self.list) do
    local n = d:all_rows()
    if r < n then return d:fill(r, b, batch) end
    r = r - n
  end
end

--- Each source is split by itself; both sides are blends in the same proportions.
function Blend:split(opt)
  opt = options.check("data:split", opt, { held_out = { "percent", default = 0.01 } })
  local train, held = {}, {}
  for i, d in ipairs(self.list) do
    local s = d:split(opt)
    train[i], held[i] = s.train, s.held_out
  end
  local function side(list, role) return assemble(self.names, list, self.counts, self.period, self.source, self.nth, role) end
  return { train = side(train, "train"), held_out = side(held, "held_out") }
end

--- Content hash of the sources with their shares, in the order of their names.
function Blend:digest()
  local parts = {}
  for i, d in ipairs(self.list) do parts[i] = self.counts[i] .. " " .. d:digest() end
  self.hash = file.hash_text(table.concat(parts, "\n"))
  return self.hash
end

function Blend:parts() return self.list end

function Blend:__tostring()
  local lines = {}
  for i, name in ipairs(self.names) do
    lines[i] = string.format("%s %.4g %%: %s", name, 100 * self.counts[i] / self.period, tostring(self.list[i]))
  end
  return "blend of " .. table.concat(lines, "; ")
end

return M
