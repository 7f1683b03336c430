--- A ranking: a metric for each axis, asked of statistics, and the sets of indices that it keeps at a size (sets.lua). Ties go to the lower index;
-- kept indices ascend.

local tape = require "espalier.tape"
local scope = require "espalier.scope"
local choose = require "espalier.importance.choose"
local score = require "espalier.importance.score"
local sets = require "espalier.importance.sets"
local options = require "espalier.options"
local fail = require "espalier.fail"

local M = { best = choose.best, order = choose.order }
local Ranking = {}
Ranking.__index = Ranking

--- What a ranking may say of an axis: the options of stats:score, and
--   within      "layer": each layer keeps its own best; "network": all layers compete, so that their sizes differ; "shared": scores summed over
--               the layers, one set for all (2407.14679 can be read so)
--   normalise   "none", or "standard": each layer's scores to mean 0 and deviation 1 before layers compete (2312.11983)
--   contiguous  layers: the block of layers that goes is one piece;  protect: { first, last }: so many layers at the ends always stay
local spec_options = { within = { "string", default = "layer", one_of = { "layer", "network", "shared" } },
  normalise = { "string", default = "none", one_of = { "none", "standard" } }, contiguous = { "bool", default = false },
  protect = { "list", default = { 0, 0 } } }
for name, rule in pairs(score.options) do spec_options[name] = rule end

local ranked = { "hidden", "ffn", "heads", "kv_heads", "head_dim", "layers" }

local function axis_spec(axis, given)
  local opt = type(given) == "table" and not given.score and given or { metric = given }
  local own = {}
  for k, v in pairs(opt) do own[k] = v end
  own.axis = axis
  own = options.check("stats:rank: " .. axis, own, spec_options)
  if own.metric then score.metric(own.metric, axis) end
  return own
end

--- stats:rank(spec): spec[axis] is the name of a metric, a metric, or a table of the options above.
function M.new(stats, spec)
  local own = {}
  for axis, given in pairs(spec) do
    local known = false
    for _, a in ipairs(ranked) do known = known or a == axis end
    if not known then fail("stats:rank: unknown axis '%s', want %s", tostring(axis), table.concat(ranked, ", ")) end
    own[axis] = axis_spec(axis, given)
  end
  return setmetatable({ stats = stats, spec = own, defaults = {} }, Ranking)
end

function Ranking:of(axis)
  if self.spec[axis] then return self.spec[axis] end
  self.defaults[axis] = self.defaults[axis] or axis_spec(axis, nil)
  return self.defaults[axis]
end

--- The same questions asked of other statistics.
function Ranking:with(stats)
  return setmetatable({ stats = stats, spec = self.spec, defaults = self.defaults }, Ranking)
end

local function refuse_nan(x, axis, l)
  local p = x:data()
  for i = 0, x.shape[1] - 1 do
    if p[i] ~= p[i] then
      fail("the score of %s %d%s is NaN; the calibration pass or the weights held NaN", axis, i, l and " in layer " .. l or "")
    end
  end
  return x
end

-- Scores of an axis, f32 [n], in layer l; of layers, block: of so many at a time. Called inside scopes.
function Ranking:ask(axis, l, model, block)
  local opt = {}
  for name in pairs(score.options) do opt[name] = self:of(axis)[name] end
  opt.layer, opt.model = l, model
  if block then opt.block = block end
  return refuse_nan(score.score(self.stats, opt), axis, l)
end

--- Sets of kept indices at the sizes of opt (numbers; of ffn, heads and kv_heads also lists by layer): { hidden = { .. }, ffn = { [l+1] = { .. } },
-- heads =, kv_heads =, layers = { .. }, head_dim = { pairs } }; only the axes named. opt.layers counts the layers that stay; opt.head_dim channels,
-- so twice the pairs; a size along an axis that competes over the network is the mean of its layers. model: for metrics that read weights.
function Ranking:kept(opt, model)
  return sets.kept(self, opt, model)
end

--- Scores along an axis (of layer l for ffn and heads), a list of numbers; NaN is an error. model: for metrics that read weights.
function Ranking:scores(axis, l, model)
  return tape.no_grad(scope.run, function() return self:ask(axis, l, model):table() end)
end

--- Every axis in the order of importance, the highest first: the same sets as kept() gives, before they are cut short. heads stand group by group in
-- the order of kv_heads, the best first inside each group. Layers are ordered one by one, also where `contiguous` is asked for.
function Ranking:orders(model)
  return sets.orders(self, model)
end

--- Would more data change the answer? Overlap of what the even and the odd rows keep at the sizes of opt: see stability.lua.
function Ranking:stability(opt)
  return require("espalier.importance.stability").of(self, opt)
end

local function say(opt)
  local default = opt.axis == "layers" and "bi" or "activation"
  local name = type(opt.metric) == "string" and opt.metric or opt.metric and (opt.metric.name or "a metric of the recipe") or default
  if name == "activation" then name = name .. " (" .. opt.agg .. ")" end
  if opt.axis == "heads" and name:find "^activation" then name = name .. ", " .. opt.heads end
  if opt.within ~= "layer" then name = name .. ", " .. (opt.within == "network" and "over the network" or "one set for all layers") end
  if opt.contiguous then name = name .. ", one block" end
  return name
end

function Ranking:__tostring()
  local text = string.format("ranking: hidden by %s; ffn by %s; heads by %s inside their group; layers by %s", say(self:of "hidden"),
    say(self:of "ffn"), say(self:of "heads"), say(self:of "layers"))
  return text .. (self.spec.kv_heads and "; kv_heads by " .. say(self.spec.kv_heads) or "")
end

return M
