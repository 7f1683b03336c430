--- The table of a sweep: one row a cell, or one a group of seeds with their spread apart from the interval over documents.

local M = {}

--- A value as it stands in a table.
function M.value(v)
  if type(v) == "number" then
    if v == math.floor(v) and math.abs(v) < 1e15 then return string.format("%d", v) end
    return string.format(math.abs(v) >= 0.01 and "%.4f" or "%.3g", v)
  end
  if type(v) == "table" then
    local parts = {}
    for _, x in ipairs(v) do parts[#parts + 1] = M.value(x) end
    return table.concat(parts, ",")
  end
  return tostring(v)
end

-- Results to show: single numbers and texts, the known ones first.
local known = { "label", "parameters", "nll", "interval" }

local function result_names(cells)
  local names, seen, rest = {}, {}, {}
  for _, cell in ipairs(cells) do
    for k, v in pairs(cell.result or {}) do
      if type(k) == "string" and type(v) ~= "table" and not seen[k] then rest[#rest + 1], seen[k] = k, true end
    end
  end
  for _, k in ipairs(known) do
    if seen[k] then names[#names + 1], seen[k] = k, false end
  end
  table.sort(rest)
  for _, k in ipairs(rest) do if seen[k] then names[#names + 1] = k end end
  return names
end

--- "nll=0.7283 interval=0.01": the numbers of one result.
function M.one_line(result)
  local parts = {}
  for _, name in ipairs(result_names { { result = result } }) do parts[#parts + 1] = name .. "=" .. M.value(result[name]) end
  return table.concat(parts, " ")
end

-- Cells that differ in their seed alone, in the order of their first.
local function groups_of(self)
  local groups, by_key = {}, {}
  for _, cell in ipairs(self.cells) do
    local parts = {}
    for _, name in ipairs(self.names) do if name ~= "seed" then parts[#parts + 1] = M.value(cell.options[name]) end end
    local key = table.concat(parts, "\0")
    if not by_key[key] then
      by_key[key] = {}
      groups[#groups + 1] = by_key[key]
    end
    table.insert(by_key[key], cell)
  end
  return groups
end

-- Mean and standard deviation over the cells of a group that are done; nil where the values are no numbers.
local function mean_of(group, name)
  local sum, n, squares = 0, 0, 0
  for _, cell in ipairs(group) do
    local v = cell.result and cell.result[name]
    if type(v) == "number" then sum, n, squares = sum + v, n + 1, squares + v * v end
  end
  if n == 0 then return nil, nil, 0 end
  local mean = sum / n
  return mean, n > 1 and math.sqrt(math.max(0, squares - n * mean * mean) / (n - 1)) or nil, n
end

local function state_text(cell)
  return cell.state .. (cell.stale and ", stale" or "")
end

--- Rows for people: { columns = { names }, rows = { { texts } }, grouped = true where seeds are summed up }. A group's row gives the mean over its
-- seeds, the standard deviation over them ("over seeds") and the mean interval over documents in columns of their own.
function M.rows(self)
  local results, out, groups = result_names(self.cells), { columns = {}, rows = {} }, groups_of(self)
  out.grouped = #groups < #self.cells
  local options = {}
  for _, name in ipairs(self.names) do if not (out.grouped and name == "seed") then options[#options + 1] = name end end
  for _, name in ipairs(options) do out.columns[#out.columns + 1] = name end
  if out.grouped then out.columns[#out.columns + 1] = "seeds" end
  for _, name in ipairs(results) do
    out.columns[#out.columns + 1] = name == "interval" and "+- over documents" or name
    if out.grouped and name == "nll" then out.columns[#out.columns + 1] = "+- over seeds" end
  end
  out.columns[#out.columns + 1] = "state"
  for _, group in ipairs(groups) do
    local row, first = {}, group[1]
    for _, name in ipairs(options) do row[#row + 1] = first.options[name] == nil and "" or M.value(first.options[name]) end
    local done, states = 0, {}
    for _, cell in ipairs(group) do
      if cell.state == "done" then done = done + 1 end
      states[#states + 1] = state_text(cell)
    end
    if out.grouped then row[#row + 1] = string.format("%d", done) end
    for _, name in ipairs(results) do
      local mean, spread = mean_of(group, name)
      local text = first.result and first.result[name]
      row[#row + 1] = mean and M.value(mean) or text ~= nil and tostring(text) or ""
      if out.grouped and name == "nll" then row[#row + 1] = spread and M.value(spread) or "" end
    end
    row[#row + 1] = done == #group and not table.concat(states):find "stale" and "done" or table.concat(states, "; ")
    out.rows[#out.rows + 1] = row
  end
  return out
end

--- The table as text.
function M.text(self)
  local t, widths, lines = M.rows(self), {}, {}
  for i, name in ipairs(t.columns) do widths[i] = #name end
  for _, row in ipairs(t.rows) do for i, v in ipairs(row) do widths[i] = math.max(widths[i], #v) end end
  local function add(row)
    local parts = {}
    for i, v in ipairs(row) do parts[i] = tonumber(v) and string.rep(" ", widths[i] - #v) .. v or v .. string.rep(" ", widths[i] - #v) end
    lines[#lines + 1] = (table.concat(parts, "  "):gsub("%s+$", ""))
  end
  add(t.columns)
  for _, row in ipairs(t.rows) do add(row) end
  for _, cell in ipairs(self.cells) do
    if cell.error and cell.state ~= "done" then lines[#lines + 1] = string.format("%s %s: %s", cell.id, cell.state, cell.error) end
  end
  return table.concat(lines, "\n")
end

return M
