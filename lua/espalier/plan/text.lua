--- A plan as people read it.

local shapes = require "espalier.models.shape"
local quantity = require "espalier.quantity"

local function line(name, before, after)
  return string.format("%-28s %20s %20s", name, before, after)
end

local function add_sizes(out, plan)
  local b, a = plan.before, plan.after
  local function add(name, show, key) out[#out + 1] = line(name, show(key(b)), show(key(a))) end
  add("parameters", quantity.show_exact, function(x) return x.parameters end)
  add("without embeddings", quantity.show_exact, function(x) return x.non_embedding end)
  for _, d in ipairs { { "f32", 4 }, { "bf16", 2 }, { "8 bits", 1 } } do
    add("bytes in " .. d[1], quantity.show_bytes, function(x) return d[2] * x.parameters end)
  end
  add(string.format("KV cache, %d x %d, bf16", plan.batch, plan.length), quantity.show_bytes, function(x) return x.kv end)
  add("FLOP a token, forward", quantity.show_count, function(x) return x.flops end)
end

local function parts(out, title, values, names)
  local total = 0
  for _, name in ipairs(names) do total = total + values[name] end
  out[#out + 1] = string.format(title, quantity.show_bytes(total))
  for _, name in ipairs(names) do out[#out + 1] = string.format("  %-16s %12s", name, quantity.show_bytes(values[name])) end
end

-- The best cut of each set of axes, with the budgets as it fills them.
local function add_found(out, plan)
  local f = plan.found
  out[#out + 1] = string.format("\n%s of %s legal shapes keep the budget; of each set of axes the most even cut:", quantity.show_exact(f.fitting),
    quantity.show_exact(f.seen))
  local head = string.format("  %6s %6s %5s %4s %6s", "hidden", "ffn", "heads", "kv", "layers")
  for _, g in ipairs(f.goals) do head = head .. string.format(" %16s", g.name) end
  out[#out + 1] = head .. "  cut"
  for _, c in ipairs(f.list) do
    local row = string.format("%s %6d %6d %5d %4d %6d", c == f.pick and ">" or " ", c.hidden, c.ffn, c.heads, c.kv_heads, c.layers)
    for _, g in ipairs(f.goals) do row = row .. string.format(" %16s", g.show(g.value(c))) end
    out[#out + 1] = row .. "  " .. (c.cut == "" and "nothing" or c.cut)
  end
  if f.measured then out[#out + 1] = "latency of the shape above (>), measured whole: " .. quantity.show_seconds(f.measured) end
end

local function add_neighbours(out, plan)
  if #plan.neighbours == 0 then return end
  out[#out + 1] = "\nlegal neighbours:"
  local now = plan.after.parameters
  for _, n in ipairs(plan.neighbours) do
    out[#out + 1] = string.format("  %-30s %16s %+7.2f %%", n.axis .. " = " .. n.size .. (n.heads and ", heads = " .. n.heads or ""),
      quantity.show_exact(n.parameters), 100 * (n.parameters / now - 1))
  end
end

return function(plan)
  local out = { plan.where, "before: " .. shapes.text(plan.before.shape), "after:  " .. shapes.text(plan.after.shape) }
  if plan.stored then
    local kinds = {}
    for dtype, n in pairs(plan.stored.dtypes) do kinds[#kinds + 1] = quantity.show_exact(n) .. " in " .. dtype end
    table.sort(kinds)
    out[#out + 1] = "stored: " .. quantity.show_bytes(plan.stored.bytes) .. ", " .. table.concat(kinds, ", ")
  end
  if type(plan.after.shape.ffn) == "table" or type(plan.after.shape.heads) == "table" then
    out[#out + 1] = "layers differ: other engines load the zero-padded uniform twin"
  end
  out[#out + 1] = ""
  out[#out + 1] = line("", "before", "after")
  add_sizes(out, plan)
  if plan.found then add_found(out, plan) end
  add_neighbours(out, plan)
  out[#out + 1] = ""
  local what = string.format("distillation in %s, batches of %d x %d tokens: about %%s of memory", plan.precision, plan.batch, plan.length)
  parts(out, what, plan.memory, { "teacher", "student", "gradients", "moments", "activations", "logits", "rows", "other" })
  if plan.disk then
    parts(out, "on disk: about %s", plan.disk, { "checkpoints", "model", "cache of states", "cache of top 64" })
    out[#out + 1] = string.format("%s tokens at %s tokens/s%s: about %s", quantity.show_count(plan.tokens), quantity.show_count(plan.rate),
      plan.measured_rate and ", measured on this machine" or "", quantity.show_seconds(plan.time))
  end
  return table.concat(out, "\n")
end
