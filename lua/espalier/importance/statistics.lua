--- Statistics of one calibration pass, and the questions they answer without the model's running again.
--
-- For each layer and site, eight sums a channel and half (core: channel_stats_acc) over the rows of the calibration data; for each layer the sum of
-- cos(input, output); where asked for, NLL and KL with layers left out. Statistics of shards of data add up.

local core = require "espalier.ffi"
local tensor = require "espalier.tensor"
local file = require "espalier.io.file"
local hdf5 = require "espalier.io.hdf5"
local json = require "espalier.io.json"
local shapes = require "espalier.models.shape"
local options = require "espalier.options"
local find = require "espalier.find"
local fail = require "espalier.fail"

local Statistics = {}
Statistics.__index = Statistics

local M = {}

--- Sites at which channels are counted, and the axis whose channels they are.
M.sites = { "norm1", "attention", "heads", "norm2", "ffn" }

--- An empty one. shape: of the model; facts: { model = hash, data = hash }.
function M.new(shape, facts)
  return setmetatable({ shape = shape, facts = facts or {}, sums = {}, cosine = {}, left_out = {}, rows = 0, tokens = 0 }, Statistics)
end

-- ---- reading the sums ----

local row_of = { mean = 0, l2 = 2, var = 4 }

-- One aggregation of an [8,n] table: batch over the rows' values of seq.
local function aggregate(sums, batch, seq, rows)
  local first, second, out = sums[row_of[seq] + 1], sums[row_of[seq] + 2], {}
  for c = 1, #first do
    local mean = first[c] / rows
    out[c] = batch == "mean" and mean or batch == "l2" and math.sqrt(second[c]) or math.max(0, second[c] / rows - mean * mean)
    if first[c] ~= first[c] then out[c] = first[c] end
  end
  return out
end

local function parse_agg(agg)
  local batch, seq = agg:match "^%s*(%w+)%s*,%s*(%w+)%s*$"
  if not (row_of[batch] and row_of[seq]) then fail("stats: agg '%s', want two of mean, l2, var as in \"l2,mean\" (batch, then sequence)", agg) end
  return batch, seq
end

-- What a metric sees of one site: aggregations and moments as tensors [n].
local function view(stats, sums)
  local v = {}
  function v.agg(name)
    local batch, seq = parse_agg(name)
    return tensor.of(aggregate(sums, batch, seq, stats.rows))
  end
  return setmetatable(v, { __index = function(_, name)
    local k = ({ mean_square = 4, mean = 7 })[name] or fail("metric: statistic '%s' is not known, want mean_square, mean or agg(..)", tostring(name))
    local list = {}
    for c, x in ipairs(sums[k]) do list[c] = x / stats.tokens end
    return tensor.of(list)
  end })
end

local function sums_of(stats, l, site)
  local layer = stats.sums[l + 1]
  local t = layer and layer[site]
  if not t then fail("stats: layer %d has no '%s' (0 to %d; a layer without that part has none)", l, site, #stats.sums - 1) end
  return t:sum(0):table()
end

-- Weights by role of a site in layer l: "out" [outputs, n] multiplies the channels, "in" [n, inputs] makes them.
local function weights(model, l, site)
  return setmetatable({}, { __index = function(_, role)
    if not model then fail("metric: needs the weights; give model = to stats:score, or prune with esp.prune") end
    local p, base = model:parameters(), "model.layers." .. l .. "."
    local names = {
      ffn = { out = "mlp.down_proj", ["in"] = "mlp.up_proj", gate = "mlp.gate_proj" },
      attention = { out = "self_attn.o_proj", ["in"] = "self_attn.q_proj" },
      norm1 = { out = "self_attn.q_proj" }, norm2 = { out = "mlp.up_proj" },
    }
    local name = names[site][role] or fail("metric: no weight '%s' at %s", tostring(role), site)
    return tensor.to(p[base .. name .. ".weight"], "f32")
  end })
end

-- ---- scores ----

local function metric_named(metric)
  return type(metric) == "table" and metric or find("metrics", metric, "espalier.importance.metrics.")
end

-- Scores [n] of one site of one layer, a table of numbers.
local function site_score(stats, opt, l, site)
  local metric = metric_named(opt.metric)
  local given = { agg = opt.agg, layer = l, site = site, seed = opt.seed }
  return metric.score(view(stats, sums_of(stats, l, site)), weights(opt.model or stats.model, l, site), given):table()
end

local function head_scores(stats, opt, l)
  if opt.heads == "tokenwise" then return site_score(stats, opt, l, "heads") end
  local channels, out, e = site_score(stats, opt, l, "attention"), {}, stats.shape.head_dim
  for h = 0, #channels / e - 1 do
    local sum = 0
    for i = 1, e do sum = sum + channels[h * e + i] ^ 2 end
    out[h + 1] = math.sqrt(sum)
  end
  return out
end

local function hidden_scores(stats, opt)
  local out = {}
  for l = 0, stats.shape.layers - 1 do
    for _, site in ipairs { "norm1", "norm2" } do
      if stats.sums[l + 1][site] then
        for c, v in ipairs(site_score(stats, opt, l, site)) do out[c] = (out[c] or 0) + v end
      end
    end
  end
  return out
end

local function layer_scores(stats, opt)
  local metric, out = opt.metric, {}
  for l = 0, stats.shape.layers - 1 do
    if metric == "bi" then
      out[l + 1] = 1 - stats.cosine[l + 1] / stats.tokens
    elseif metric == "nll" or metric == "kl" then
      local one = stats.left_out[1] and stats.left_out[1][l + 1]
      if not one then fail("stats: no %s with a layer left out; measure with { depth = true }", metric) end
      out[l + 1] = one[metric]
    else
      fail("stats: metric '%s' of layers, want bi, nll or kl", tostring(metric))
    end
  end
  return out
end

--- Scores along an axis, f32 tensor [n]; higher means keep. axis: ffn, heads, hidden, layers, or attention (channels of o_proj's input).
-- metric: "activation", "magnitude", "wanda", "random", a table with score, or for layers "bi", "nll", "kl"; agg: "batch,seq"; layer: for ffn,
-- heads, attention; site: another site of that layer ("norm1", "norm2"); heads: "channelwise" or "tokenwise" (2407.14679, section 2.2).
function Statistics:score(opt)
  opt = options.check("stats:score", opt, { axis = { "string", required = true, one_of = { "ffn", "heads", "hidden", "layers", "attention" } },
    metric = { "any" }, agg = { "string", default = "l2,mean" }, layer = { "int" }, site = { "string", one_of = M.sites },
    heads = { "string", default = "channelwise", one_of = { "channelwise", "tokenwise" } }, seed = { "int", default = 0 }, model = { "model" } })
  opt.metric = opt.metric or (opt.axis == "layers" and "bi" or "activation")
  if opt.axis == "layers" then return tensor.of(layer_scores(self, opt)) end
  if opt.axis == "hidden" and not opt.site then return tensor.of(hidden_scores(self, opt)) end
  if not opt.layer then fail("stats:score: option 'layer' is missing for axis %s", opt.axis) end
  if opt.axis == "heads" and not opt.site then return tensor.of(head_scores(self, opt, opt.layer)) end
  return tensor.of(site_score(self, opt, opt.layer, opt.site or opt.axis))
end

--- A ranking: one metric an axis. spec: { ffn = "wanda", heads = { metric =, agg =, heads = }, hidden =, layers = "nll" }; absent axes get the
-- default (activation l2,mean; bi).
function Statistics:rank(spec)
  return require("espalier.importance.ranking").new(self, spec or {})
end

-- ---- adding, saving ----

local function same_facts(a, b)
  return a.facts.model == b.facts.model and shapes.text(a.shape) == shapes.text(b.shape)
end

--- 32 hex digits that tell these statistics from others: XXH3 over what they are of and every sum.
function Statistics:hash()
  local parts = { self.rows, self.tokens, shapes.text(self.shape), json.encode(self.facts) }
  for l, layer in ipairs(self.sums) do
    local sites = {}
    for site in pairs(layer) do sites[#sites + 1] = site end
    table.sort(sites)
    for _, site in ipairs(sites) do
      local t, hex = tensor.contiguous(layer[site]), core.new "char[33]"
      core.try(core.C.esp_hash(hex, t:data(), 8 * t:count()))
      parts[#parts + 1] = l .. site .. core.string(hex)
    end
  end
  return file.hash_text(table.concat(parts, " "))
end

--- Adds the statistics of another shard of data on the same model.
function Statistics:merge(other)
  if not same_facts(self, other) then fail("stats:merge: the statistics are of different models") end
  local both = M.new(self.shape, self.facts)
  both.rows, both.tokens, both.model = self.rows + other.rows, self.tokens + other.tokens, self.model
  for l, layer in ipairs(self.sums) do
    both.sums[l], both.cosine[l] = {}, self.cosine[l] + other.cosine[l]
    for site, a in pairs(layer) do
      local sum, x, y = tensor.new(a.shape, "f64"), a:data(), other.sums[l][site]:data()
      local p = sum:data()
      for i = 0, a:count() - 1 do p[i] = x[i] + y[i] end
      both.sums[l][site] = sum
    end
  end
  return both
end

--- Writes an HDF5 file: layer.N/SITE [2,8,n] f64, cosine, left_out, and what they are of.
function Statistics:save(path)
  local values = {}
  for l, layer in ipairs(self.sums) do
    for site, t in pairs(layer) do values["layer." .. l - 1 .. "/" .. site] = t end
  end
  values.cosine = tensor.of(self.cosine, { dtype = "f64" })
  values.about = json.encode { kind = "espalier statistics", version = 1, rows = self.rows, tokens = self.tokens, shape = self.shape,
    facts = self.facts }
  for n, list in pairs(self.left_out) do
    local flat = {}
    for i, x in ipairs(list) do flat[i] = { x.nll, x.kl } end
    values["left_out/" .. n] = tensor.of(flat, { dtype = "f64" })
  end
  hdf5.write(path, values)
end

--- Reads what save wrote.
function M.load(path)
  local f = hdf5.open(path)
  if not f:has "about" then fail("%s holds no statistics of espalier (no dataset 'about')", path) end
  local about = json.decode(f:text "about", path)
  if about.kind ~= "espalier statistics" then fail("%s holds '%s', want espalier statistics", path, tostring(about.kind)) end
  local s = M.new(about.shape, about.facts)
  s.rows, s.tokens, s.cosine = about.rows, about.tokens, f:tensor("cosine"):table()
  for l = 0, s.shape.layers - 1 do s.sums[l + 1] = {} end
  for _, name in ipairs(f.names) do
    local l, site = name:match "^layer%.(%d+)/(%w+)$"
    if l then s.sums[l + 1][site] = f:tensor(name) end
    local n = tonumber(name:match "^left_out/(%d+)$")
    if n then
      s.left_out[n] = {}
      for i, pair in ipairs(f:tensor(name):table()) do s.left_out[n][i] = { nll = pair[1], kl = pair[2] } end
    end
  end
  f:close()
  return s
end

function Statistics:__tostring()
  return string.format("statistics: %d rows, %d tokens; %s", self.rows, self.tokens, shapes.text(self.shape))
end

return M
