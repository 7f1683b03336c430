--- Rotary positions in config.json, both ways, in both spellings: rope_theta with rope_scaling (before transformers 5), rope_parameters (since).
--
-- Where a file has both they must agree.

local json = require "espalier.io.json"
local reader = require "espalier.models.reader"
local shapes = require "espalier.models.shape"
local fail = require "espalier.fail"

local M = {}

-- Fields of each type: those it must have, those it may have (nn/rope.lua says what they do).
local kinds = {
  default = { {}, {} },
  linear = { { "factor" }, {} },
  dynamic = { { "factor" }, {} },
  llama3 = { { "factor", "low_freq_factor", "high_freq_factor" }, {} },
  yarn = { {}, { "factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim" } },
  longrope = { {}, { "factor", "attention_factor" } },
}
-- Those whose original context may stand beside them in config.json.
local stretched = { llama3 = true, yarn = true, longrope = true }

local function numbers(r, name)
  local list = r:required(name, "table")
  for i, v in ipairs(list) do if type(v) ~= "number" then fail("%s: %s[%d] is %s, want a number", r.where, name, i - 1, tostring(v)) end end
  return { unpack(list) }
end

local function read_scaling(p, kind, outer, context)
  local s = { type = kind }
  for _, name in ipairs(kinds[kind][1]) do s[name] = p:number(name) end
  for _, name in ipairs(kinds[kind][2]) do s[name] = p:optional(name, "number") end
  if stretched[kind] then
    -- transformers lets the outer field win.
    local inner = p:optional("original_max_position_embeddings", "number")
    s.original_context = outer or inner or context
  elseif kind == "dynamic" then
    s.original_context = context
  end
  if kind == "yarn" then
    -- Only false says something: true is what its absence says.
    if p:optional("truncate", "boolean") == false then s.truncate = false end
  elseif kind == "longrope" then
    s.short_factor, s.long_factor = numbers(p, "short_factor"), numbers(p, "long_factor")
  end
  if kind == "yarn" or kind == "longrope" then s.factor = s.factor or context / s.original_context end
  return s
end

-- One spelling: theta, partial, scaling of an object of parameters.
local function read_one(r, name, outer, context)
  local object = r:optional(name, "table")
  if not object then return nil end
  local p = reader.new(object, r.where .. ": " .. name)
  local new, old = p:optional("rope_type", "string"), p:optional("type", "string")
  local kind = new or old or "default"
  if kind == "su" then kind = "longrope" end
  if not kinds[kind] then
    fail("%s: rope type '%s' is not known, want default, linear, dynamic, llama3, yarn or longrope", r.where, tostring(kind))
  end
  local one = { theta = p:optional("rope_theta", "number"), partial = p:optional("partial_rotary_factor", "number"),
    scaling = kind ~= "default" and read_scaling(p, kind, outer, context) or nil }
  p:refuse_rest({}, "rope type " .. kind)
  return one
end

-- The one value that all places give which give any.
local function agree(r, name, ...)
  local found
  for i = 1, select("#", ...) do
    local v = select(i, ...)
    if v ~= nil and found ~= nil and not shapes.same(found, v) then
      fail("%s: rope_scaling, rope_parameters and the fields beside them disagree on %s", r.where, name)
    end
    if v ~= nil then found = v end
  end
  return found
end

--- Reads the rope of a config: returns { theta, scaling, partial } and the context. may_be_partial: does the architecture know partial rotation?
function M.read(r, may_be_partial)
  local context, outer = r:number "max_position_embeddings", r:optional("original_max_position_embeddings", "number")
  local old, new = read_one(r, "rope_scaling", outer, context), read_one(r, "rope_parameters", outer, context)
  local a, b = old or {}, new or {}
  local rope = { theta = agree(r, "rope_theta", r:given("rope_theta", "number"), a.theta, b.theta) or r.defaults.rope_theta or 10000 }
  if old and new then agree(r, "the scaling", a.scaling or false, b.scaling or false) end
  rope.scaling = a.scaling or b.scaling
  local beside
  if may_be_partial then beside = r:given("partial_rotary_factor", "number") end
  local partial = agree(r, "partial_rotary_factor", beside, a.partial, b.partial) or may_be_partial and r.defaults.partial_rotary_factor or 1
  if partial ~= 1 and not may_be_partial then fail("%s: partial_rotary_factor is %g, want 1 for this model_type", r.where, partial) end
  if partial ~= 1 then rope.partial = partial end
  -- A dynamic rope is there to go past the context that the model was trained with.
  if rope.scaling and rope.scaling.type == "dynamic" then context = math.floor(context * rope.scaling.factor) end
  return rope, context
end

local function scaling_fields(rope)
  local s, p = rope.scaling, {}
  p.rope_type = s and s.type or "default"
  for k, v in pairs(s or {}) do
    if k == "original_context" then
      if stretched[s.type] then p.original_max_position_embeddings = v end
    elseif k ~= "type" then
      p[k] = type(v) == "table" and json.array { unpack(v) } or v
    end
  end
  return p
end

--- Writes both spellings into a config. may_be_partial as for read.
function M.write(s, c, may_be_partial)
  local rope = s.rope
  local scaling = rope.scaling
  c.max_position_embeddings = scaling and scaling.type == "dynamic" and scaling.original_context or s.context
  c.rope_theta = rope.theta
  c.rope_scaling = scaling and scaling_fields(rope) or json.null
  c.rope_parameters = scaling_fields(rope)
  c.rope_parameters.rope_theta = rope.theta
  if c.original_max_position_embeddings and scaling and stretched[scaling.type] then
    c.original_max_position_embeddings = scaling.original_context
  end
  if may_be_partial then
    c.partial_rotary_factor = rope.partial or 1
    c.rope_parameters.partial_rotary_factor = c.partial_rotary_factor
  end
end

return M
