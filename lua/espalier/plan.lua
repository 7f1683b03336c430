--- Plan before load: what a model has and what would be left of it, from config.json alone; no weight is read.

local file = require "espalier.io.file"
local json = require "espalier.io.json"
local shapes = require "espalier.models.shape"
local configs = require "espalier.models.config"
local legal = require "espalier.prune.legal"
local quantity = require "espalier.quantity"
local fail = require "espalier.fail"

local M = {}
local Plan = {}
Plan.__index = Plan

local function shape_of(what)
  if type(what) == "table" and what.shape then return what.shape, "model" end
  local path = require("espalier.models").find(what)
  if file.kind(path) == "folder" then path = file.join(path, "config.json") end
  if not path:match "%.json$" then return require("espalier.models").load(path).shape, path end
  if not file.kind(path) then fail("plan: there is no %s", path) end
  return configs.of_config(json.read(path), path), path
end

-- Bytes that a distillation step keeps, by part. f32; activations of the student for backward, one chunk of both heads' logits.
local function distillation(teacher, student, batch, length)
  local tokens, p = batch * length, shapes.parameters(student)
  local kept = 0
  for l = 0, student.layers - 1 do
    local h, g, f = shapes.at(student, "heads", l), shapes.at(student, "kv_heads", l), shapes.at(student, "ffn", l)
    local e, d = student.head_dim, student.hidden
    -- norm, q and k before and after rope, v, attention output, its projection and sum; norm, gate, up, product, its projection and sum
    if h > 0 then kept = kept + 4 * d + 3 * h * e + 3 * g * e end
    if f > 0 then kept = kept + 4 * d + 3 * f end
  end
  return { teacher = 4 * shapes.parameters(teacher), student = 4 * p, gradients = 4 * p, moments = 8 * p, activations = 4 * kept * tokens,
    logits = 2 * 4 * 256 * student.vocab }
end
M.distillation = distillation

local function facts(s, opt)
  return { shape = s, parameters = shapes.parameters(s), non_embedding = shapes.parameters(s) - shapes.embedding_parameters(s),
    kv = shapes.kv_bytes(s, 2) * opt.batch * opt.length, flops = shapes.flops(s, opt.length) }
end

--- esp.plan(path, name or model, opt) -> plan; print it, or read plan.before, plan.after, plan.memory.
-- opt: what esp.prune takes (hidden, ffn, heads, kv_heads, layers, drop, drop_attention, drop_mlp), batch (1) and length (2048, at most the
-- context) for caches and for the memory of a distillation run. Illegal sizes are refused with the nearest legal ones.
function M.plan(what, opt)
  opt = legal.parse("plan", opt, { batch = { "int", default = 1 }, length = { "int" } })
  local s, where = shape_of(what)
  opt.length = opt.length or math.min(2048, s.context)
  local after = legal.result(s, opt, legal.check("plan", s, opt))
  local plan = setmetatable({ where = where, before = facts(s, opt), after = facts(after, opt), batch = opt.batch, length = opt.length,
    memory = distillation(s, after, opt.batch, opt.length) }, Plan)
  return plan
end

local function line(name, before, after)
  return string.format("%-28s %20s %20s", name, before, after)
end

function Plan:__tostring()
  local b, a = self.before, self.after
  local out = { self.where, "before: " .. shapes.text(b.shape), "after:  " .. shapes.text(a.shape), "", line("", "before", "after") }
  local function add(name, show, key)
    out[#out + 1] = line(name, show(key(b)), show(key(a)))
  end
  add("parameters", quantity.show_exact, function(x) return x.parameters end)
  add("without embeddings", quantity.show_exact, function(x) return x.non_embedding end)
  add("bytes in bf16", quantity.show_bytes, function(x) return 2 * x.parameters end)
  add("bytes in f32", quantity.show_bytes, function(x) return 4 * x.parameters end)
  add(string.format("KV cache, %d x %d, bf16", self.batch, self.length), quantity.show_bytes, function(x) return x.kv end)
  add("FLOP a token, forward", quantity.show_count, function(x) return x.flops end)
  out[#out + 1] = ""
  local total = 0
  for _, v in pairs(self.memory) do total = total + v end
  out[#out + 1] = string.format("distillation in f32, batches of %d x %d tokens: about %s", self.batch, self.length, quantity.show_bytes(total))
  for _, name in ipairs { "teacher", "student", "gradients", "moments", "activations", "logits" } do
    out[#out + 1] = string.format("  %-14s %12s", name, quantity.show_bytes(self.memory[name]))
  end
  return table.concat(out, "\n")
end

return M
