--- Every legal shape that can be cut from a shape, one after another, with its exact sizes; none is stored.
--
-- A count of parameters is that of the embeddings and the final norm, and a sum over layers whose terms depend on the widths alone. So for each
-- choice of widths one term a kind of layer is asked of models/shape.lua, and every number of layers then costs one addition.

local shapes = require "espalier.models.shape"
local engines = require "espalier.plan.engines"
local options = require "espalier.options"
local fail = require "espalier.fail"

local M = {}
local Grid = {}
Grid.__index = Grid

--- Axes of a grid, in the order in which they turn (the last one fastest).
M.axes = { "hidden", "ffn", "heads", "kv_heads", "layers" }

local function largest(s, axis)
  local v = s[axis]
  return type(v) == "table" and math.max(unpack(v)) or v
end
M.largest = largest

--- The step between sizes of an axis where none is named: of hidden and ffn the largest power of two within a 32nd; heads go by whole groups.
function M.step(s, axis)
  if axis == "heads" then return largest(s, "kv_heads") end
  if axis == "kv_heads" or axis == "layers" then return 1 end
  return 2 ^ math.max(0, math.floor(math.log(largest(s, axis) / 32) / math.log(2) + 1e-9))
end

-- Sizes of an axis from the largest: the model's own, then multiples of the step.
local function sizes(s, axis)
  local most, step = largest(s, axis), M.step(s, axis)
  local list = { most }
  for size = math.ceil(most / step - 1) * step, step, -step do list[#list + 1] = size end
  return list
end

local function checked(what, s, axis, list)
  local most, out = largest(s, axis), {}
  if type(list) ~= "table" then fail("%s: axes.%s is %s, want a list of sizes", what, axis, type(list)) end
  if #list == 0 then fail("%s: axes.%s is empty, want a list of sizes", what, axis) end
  for i, v in ipairs(list) do
    if type(v) ~= "number" or v ~= math.floor(v) or v < 1 or v > most then
      fail("%s: axes.%s holds %s, want whole numbers from 1 to %d (what the model has)", what, axis, tostring(v), most)
    end
    out[i] = v
  end
  table.sort(out, function(a, b) return a > b end)
  return out
end

-- axes: names, or name = list of sizes; fixed: axis = size. Axes that are neither stay as they are.
local function choices(what, s, axes, fixed)
  local all = {}
  for _, axis in ipairs(M.axes) do all[axis] = { largest(s, axis) } end
  for key, value in pairs(axes) do
    local axis = type(key) == "number" and value or key
    if not all[axis] then
      local near = options.nearest(tostring(axis), M.axes)
      fail("%s: there is no axis '%s'%s", what, tostring(axis), near and "; did you mean '" .. near .. "'?"
        or ", want hidden, ffn, heads, kv_heads or layers")
    end
    all[axis] = type(key) == "number" and sizes(s, axis) or checked(what, s, axis, value)
  end
  for axis, size in pairs(fixed or {}) do all[axis] = checked(what, s, axis, { size }) end
  return all
end

--- A grid over shape s. opt.axes: { "hidden", "ffn", heads = { 32, 24 } }, names with default steps or lists of sizes; opt.fixed: { axis = size };
-- opt.engine ("transformers") and opt.architecture ("llama"): shapes that the engine refuses are left out; opt.order: the layers from the one that
-- is kept longest (0, 1 .. where nil), which matters where layers differ; opt.bytes: of a number in the KV cache (2).
function M.new(s, opt)
  opt = options.check("grid", opt, { axes = { "table", default = { "hidden", "ffn", "heads", "layers" } }, fixed = { "table" },
    engine = { "string", default = "transformers", one_of = engines.names }, architecture = { "string", default = "llama" }, order = { "table" },
    bytes = { "int", default = 2 }, what = { "string", default = "grid" } })
  local order = opt.order or {}
  if not opt.order then for l = 0, s.layers - 1 do order[l + 1] = l end end
  return setmetatable({ shape = s, choices = choices(opt.what, s, opt.axes, opt.fixed), engine = opt.engine, architecture = opt.architecture,
    order = order, bytes = opt.bytes }, Grid)
end

--- One layer of given widths in a model of hidden size d: its parameters and its cache bytes a token; then what lies outside the layers: parameters
-- in all, and those of the embeddings. Either part of a layer may be 0; the two parts add up.
function M.layer(s, d, f, h, g, bytes)
  local one = shapes.copy(s)
  one.layers, one.hidden, one.ffn, one.heads, one.kv_heads = 1, d, f, h, g
  local p, kv = shapes.parameters(one), shapes.kv_bytes(one, bytes)
  one.layers = 2
  local both = shapes.parameters(one)
  return both - p, kv, 2 * p - both, shapes.embedding_parameters(one)
end

-- Widths of layer l under a request; a part that the layer does not have stays away.
local function widths(s, l, ffn, heads, kv_heads)
  local f, h = shapes.at(s, "ffn", l), shapes.at(s, "heads", l)
  return f > 0 and math.min(ffn, f) or 0, h > 0 and heads or 0, h > 0 and kv_heads or 0
end

--- Sizes by number of layers for one choice of widths: lists parameters[n], kv[n] (bytes of one token) for the first n layers of the order, and
-- the parameters of the embeddings.
function Grid:by_layers(d, ffn, heads, kv_heads)
  local s, known, base, embedding = self.shape, {}, nil, nil
  local parameters, kv, p, k = {}, {}, nil, 0
  for n, l in ipairs(self.order) do
    local f, h, g = widths(s, l, ffn, heads, kv_heads)
    local key = f * 2 ^ 26 + h * 2 ^ 13 + g
    if not known[key] then
      local own, cache, outside, e = M.layer(s, d, f, h, g, self.bytes)
      known[key] = { own, cache }
      base, embedding = outside, e
    end
    p = (p or base) + known[key][1]
    k = k + known[key][2]
    parameters[n], kv[n] = p, k
  end
  return parameters, kv, embedding
end

function Grid:legal(d, h, g)
  local each = largest(self.shape, "heads") / largest(self.shape, "kv_heads")
  return h % g == 0 and h / g <= each and engines.takes(self.engine, self.architecture, d, h)
end

--- How many shapes each() gives.
function Grid:count()
  local all, n = self.choices, 0
  for _, d in ipairs(all.hidden) do
    for _, h in ipairs(all.heads) do for _, g in ipairs(all.kv_heads) do if self:legal(d, h, g) then n = n + 1 end end end
  end
  return n * #all.ffn * #all.layers
end

--- An iterator over all legal shapes: for c in grid:each() do .. c.hidden, ffn, heads, kv_heads, layers, parameters, non_embedding, kv (bytes of one
-- token) .. end. c is one table that is filled anew each time: copy what is kept.
function Grid:each()
  local all, layers = self.choices, self.choices.layers
  local at, c, li = { 1, 1, 1, 0 }, {}, #layers
  local parameters, kv, embedding
  local function advance()
    repeat
      local axis = 4
      at[axis] = at[axis] + 1
      while at[axis] > #all[M.axes[axis]] do
        if axis == 1 then return false end
        at[axis] = 1
        axis = axis - 1
        at[axis] = at[axis] + 1
      end
      for i = 1, 4 do c[M.axes[i]] = all[M.axes[i]][at[i]] end
    until self:legal(c.hidden, c.heads, c.kv_heads)
    parameters, kv, embedding = self:by_layers(c.hidden, c.ffn, c.heads, c.kv_heads)
    li = 1
    return true
  end
  return function()
    li = li + 1
    if li > #layers and not advance() then return nil end
    local n = layers[li]
    c.layers, c.parameters, c.kv = n, parameters[n], kv[n]
    c.non_embedding = c.parameters - embedding
    return c
  end
end

--- The cell of a request: what it does not name is the model's own.
function Grid:cell(request)
  local c = {}
  for _, axis in ipairs(M.axes) do c[axis] = request[axis] or largest(self.shape, axis) end
  local parameters, kv, embedding = self:by_layers(c.hidden, c.ffn, c.heads, c.kv_heads)
  c.parameters, c.kv, c.non_embedding = parameters[c.layers], kv[c.layers], parameters[c.layers] - embedding
  return c
end

--- The request of a cell, as esp.prune and esp.plan take it: only what differs from the model.
function Grid:request(c)
  local request = {}
  for _, axis in ipairs(M.axes) do if c[axis] ~= largest(self.shape, axis) then request[axis] = c[axis] end end
  return request
end

return M
