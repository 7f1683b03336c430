--- Reports: one self-contained HTML page of a run or a sweep. Tables and inline SVG; no script, no network, opens from the disk.

local file = require "espalier.io.file"
local journal = require "espalier.io.journal"
local shapes = require "espalier.models.shape"
local svg = require "espalier.report.svg"

local M = {}

local style = [[
:root{color-scheme:light dark;--line:#8884}
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;font-size:14px;display:block;overflow-x:auto}
td,th{padding:.25rem .7rem;border-bottom:1px solid var(--line);text-align:left;font-variant-numeric:tabular-nums}
td.n{text-align:right}svg{width:100%;height:auto;font-size:11px}svg text{fill:currentColor;opacity:.75}
.mid{text-anchor:middle}.end{text-anchor:end}.grid{stroke:var(--line)}polyline{fill:none;stroke-width:1.6}
.key{font-size:13px}.key span{margin-right:1.1rem;display:inline-block}.key i{display:inline-block;width:.8rem;height:.8rem;margin-right:.35rem}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(26rem,1fr));gap:1.5rem}
h2{font-size:1.1rem;margin:1.6rem 0 .4rem}.note{opacity:.75}]]

--- Writes a page whole. parts: list of { heading, html }.
function M.page(path, title, parts)
  local out = { "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\n<title>",
    svg.escape(title), "</title>\n<style>", style, "</style></head>\n<body><h1>", svg.escape(title), "</h1>\n" }
  for _, part in ipairs(parts) do
    out[#out + 1] = "<section><h2>" .. svg.escape(part[1]) .. "</h2>\n" .. part[2] .. "</section>\n"
  end
  out[#out + 1] = "</body></html>\n"
  file.write(path, table.concat(out))
end

--- A table of texts.
function M.table(columns, rows)
  local out = { "<table><tr>" }
  for _, name in ipairs(columns) do out[#out + 1] = "<th>" .. svg.escape(name) .. "</th>" end
  out[#out + 1] = "</tr>\n"
  for _, row in ipairs(rows) do
    out[#out + 1] = "<tr>"
    for _, v in ipairs(row) do out[#out + 1] = (tonumber(v) and "<td class=\"n\">" or "<td>") .. svg.escape(v) .. "</td>" end
    out[#out + 1] = "</tr>\n"
  end
  out[#out + 1] = "</table>"
  return table.concat(out)
end

-- What the log of a run's folder holds: the loss by step, scores by step and what was asked; nil where there is no log.
local function read_run(dir)
  local path = file.join(dir, "log")
  if file.kind(path) ~= "file" then return nil end
  local run, steps = { loss = {}, lr = {}, nll = {}, asked = {} }, {}
  for _, r in ipairs(journal.read(path)) do
    -- A resumed run writes some steps twice, with the same values.
    if r.kind == "asked" then run.asked = r.options
    elseif r.kind == "step" and not steps[r.step] then
      steps[r.step] = true
      run.loss[#run.loss + 1], run.lr[#run.lr + 1] = { r.step, r.loss }, { r.step, r.lr }
    elseif r.kind == "evaluation" then run.nll[#run.nll + 1] = { r.step, r.nll, r.interval } end
  end
  return run
end

local function chart(html)
  return "<div>" .. html .. "</div>"
end

--- Importance by layer, out of statistics: block influence, and the mean FFN activation score.
function M.importance(stats)
  local bi, ffn = {}, {}
  local scores = stats:score({ axis = "layers", metric = "bi" }):table()
  for l = 0, stats.shape.layers - 1 do
    bi[l + 1] = { l, scores[l + 1] }
    if shapes.at(stats.shape, "ffn", l) > 0 then
      local own, sum = stats:score({ axis = "ffn", layer = l }):table(), 0
      for _, v in ipairs(own) do sum = sum + v end
      ffn[#ffn + 1] = { l, sum / #own }
    end
  end
  local out = chart(svg.bars({ { points = bi } }, { x = "layer", y = "block influence" }))
  if #ffn > 0 then out = out .. chart(svg.bars({ { points = ffn, colour = 2 } }, { x = "layer", y = "mean FFN activation (l2, mean)" })) end
  return "<div class=\"charts\">" .. out .. "</div>"
end

local function sorted_rows(t)
  local rows = {}
  for k, v in pairs(t) do rows[#rows + 1] = { tostring(k), tostring(v) } end
  table.sort(rows, function(a, b) return a[1] < b[1] end)
  return rows
end

--- report.html of a run's folder, from its log.
function M.run(dir)
  local run = read_run(dir)
  local charts = chart(svg.lines({ { points = svg.thin(run.loss, 300) } }, { x = "step", y = run.asked.loss .. " loss" }))
  charts = charts .. chart(svg.lines({ { points = svg.thin(run.lr, 300), colour = 3 } }, { x = "step", y = "learning rate" }))
  if #run.nll > 0 then
    charts = charts .. chart(svg.points({ { points = run.nll, colour = 2 } }, { x = "step", y = "held-out NLL, 95 % over documents" }))
  end
  M.page(file.join(dir, "report.html"), "run " .. dir, { { "Training", "<div class=\"charts\">" .. charts .. "</div>" },
    { "What was asked", M.table({ "option", "value" }, sorted_rows(run.asked)) } })
end

local function label_of(cell, names)
  if cell.result and cell.result.label then
    return cell.result.label .. (cell.options.seed and ", seed " .. cell.options.seed or "")
  end
  local parts = {}
  for _, name in ipairs(names) do if cell.options[name] ~= nil then parts[#parts + 1] = name .. "=" .. tostring(cell.options[name]) end end
  return table.concat(parts, " ")
end

local most_curves = 24

-- One chart for each kind of loss: values of different losses do not compare.
local function loss_charts(sweep)
  local kinds, by_kind = {}, {}
  for i, cell in ipairs(sweep.cells) do
    local run = read_run(file.join(cell.folder, "run"))
    if run and #run.loss > 0 then
      local kind = run.asked.loss
      if not by_kind[kind] then
        by_kind[kind] = {}
        kinds[#kinds + 1] = kind
      end
      table.insert(by_kind[kind], { name = label_of(cell, sweep.names), points = svg.thin(run.loss, 150), colour = i })
    end
  end
  local out = {}
  for _, kind in ipairs(kinds) do
    local series, note = by_kind[kind], ""
    if #series > most_curves then
      note = string.format("<p class=\"note\">the first %d of %d runs</p>", most_curves, #series)
      series = { unpack(series, 1, most_curves) }
    end
    out[#out + 1] = chart(svg.lines(series, { x = "step", y = kind .. " loss" }) .. note)
  end
  return #out > 0 and "<div class=\"charts\">" .. table.concat(out) .. "</div>" or nil
end

local function size_chart(sweep)
  local series, by_label = {}, {}
  for _, cell in ipairs(sweep.cells) do
    local r = cell.result or {}
    if type(r.parameters) == "number" and type(r.nll) == "number" then
      local name = r.label or label_of(cell, sweep.names)
      if not by_label[name] then
        by_label[name] = { name = name, points = {} }
        series[#series + 1] = by_label[name]
      end
      table.insert(by_label[name].points, { r.parameters, r.nll, r.interval, label_of(cell, sweep.names) })
    end
  end
  if #series == 0 then return nil end
  if #series > most_curves then for _, s in ipairs(series) do s.name, s.colour = nil, 1 end end
  return svg.points(series, { x = "parameters", y = "held-out NLL, 95 % over documents" })
end

--- The page of a sweep: its table, size against NLL, loss curves, importance by layer.
function M.sweep(sweep, path)
  local summary = require "espalier.sweep.summary"
  local t = summary.rows(sweep)
  local parts = { { "Cells", M.table(t.columns, t.rows) .. (t.grouped and
    "<p class=\"note\">Over seeds: standard deviation of the seeds' means. Over documents: 95 % interval of one model's mean.</p>" or "") } }
  local errors = {}
  for _, cell in ipairs(sweep.cells) do
    if cell.error and cell.state ~= "done" then errors[#errors + 1] = { cell.id, cell.state, cell.error } end
  end
  if #errors > 0 then parts[#parts + 1] = { "What went wrong", M.table({ "cell", "state", "error" }, errors) } end
  local size, curves = size_chart(sweep), loss_charts(sweep)
  if size then parts[#parts + 1] = { "Size against loss", size } end
  if curves then parts[#parts + 1] = { "Training", curves } end
  if sweep.importance then parts[#parts + 1] = { "Importance by layer", M.importance(sweep.importance) } end
  M.page(path, sweep.title or "sweep " .. sweep.out, parts)
end

return M
