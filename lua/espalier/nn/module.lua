--- What every layer is: a table with weights and parts, callable like a function.
--
-- A class lists the names of its weights (tensors) and parts (modules, or lists of modules) in the order in which they are walked; the
-- names of parameters are the paths to them: "model.layers.3.mlp.up_proj.weight".

local tensor = require "espalier.tensor"
local lazy = require "espalier.tensor.lazy"
local product = require "espalier.product"

local Module = {}

local function join(prefix, name)
  return prefix == "" and name or prefix .. "." .. name
end

-- Calls visit(path, tensor, owner, field) for each weight below a module.
local function walk(module, prefix, visit)
  local class = getmetatable(module)
  for _, name in ipairs(class.weights) do
    if module[name] then visit(join(prefix, name), module[name], module, name) end
  end
  for _, name in ipairs(class.parts) do
    local part = module[name]
    if part and getmetatable(part) then
      walk(part, join(prefix, name), visit)
    elseif part then
      for i, one in ipairs(part) do walk(one, join(join(prefix, name), tostring(i - 1)), visit) end
    end
  end
end

local methods = {}

--- { [name] = tensor } of all weights below; prefix is put in front of the names.
function methods:parameters(prefix)
  local all = {}
  walk(self, prefix or "", function(path, t) all[path] = t end)
  return all
end

--- The names in the order of the layers.
function methods:parameter_names(prefix)
  local names = {}
  walk(self, prefix or "", function(path) names[#names + 1] = path end)
  return names
end

--- Calls fn(name, tensor) for each weight and puts what it returns in its place (nil keeps it).
function methods:replace(fn, prefix)
  walk(self, prefix or "", function(path, t, owner, field) owner[field] = fn(path, t) or t end)
  return self
end

--- Sets the precision of the products of every linear layer below: "f32" or "bf16" (operands rounded, sums f32; weights stay as they are).
function methods:products_in(precision)
  product.of(precision)
  walk(self, "", function(_, _, owner, field) if field == "weight" and owner.outputs then owner.precision = precision end end)
  return self
end

--- Marks every weight so that backward leaves its gradient in t.grad.
function methods:requires_grad(on)
  walk(self, "", function(_, t) t.requires_grad = on ~= false end)
  return self
end

local function put_back(taken, ok, ...)
  for _, one in ipairs(taken) do
    one.owner[one.field]:free()
    one.owner[one.field] = one.weight
  end
  if not ok then error((...), 0) end
  return ...
end

--- self:forward(...) with every weight below that was not read yet made for this call only: so a model runs that is larger than memory.
function methods:pass(...)
  local taken = {}
  local function run(...)
    walk(self, "", function(_, t, owner, field)
      if lazy.is(t) then
        owner[field] = lazy.load(t)
        taken[#taken + 1] = { weight = t, owner = owner, field = field }
      end
    end)
    return self:forward(...)
  end
  return put_back(taken, pcall(run, ...))
end

--- A new class of modules. name: for messages; weights, parts: lists of field names.
-- The class's `forward(self, ...)` is what calling a module does.
function Module.class(name, weights, parts)
  local class = { name = name, weights = weights or {}, parts = parts or {} }
  class.__index = class
  for k, v in pairs(methods) do class[k] = v end
  class.__call = function(self, ...) return self:forward(...) end
  class.__tostring = function(self)
    local count = 0
    walk(self, "", function(_, t) count = count + t:count() end)
    return string.format("%s (%d parameters)", name, count)
  end
  return class
end

--- The weight that the options give, or a fresh one: normal with opt.std (0.02), a function of opt.seed and opt.stream.
function Module.weight(opt, shape)
  if opt.weight then return opt.weight end
  return tensor.normal(shape, { std = opt.std or 0.02, seed = opt.seed or 0, stream = opt.stream or 0 })
end

return Module
