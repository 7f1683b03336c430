--- The append-only journal of a run: JSON records, each with length and checksum; a torn last record is cut off when it is opened again.

local core = require "espalier.ffi"
local json = require "espalier.io.json"

local C = core.C
local M = {}
local Journal = {}
Journal.__index = Journal

--- Opens for appending (creates it); a second writer is refused.
function M.open(path)
  local out = core.new "esp_journal *[1]"
  core.try(C.esp_journal_open(out, path))
  return setmetatable({ c = core.gc(out[0], C.esp_journal_close) }, Journal)
end

--- Appends a table; sync waits until it is on the disk.
function Journal:append(record, sync)
  local text = json.encode(record)
  core.try(C.esp_journal_append(self.c, text, #text, sync and 1 or 0))
end

function Journal:close()
  if self.c then core.try(C.esp_journal_close(core.gc(self.c, nil))) end
  self.c = nil
end

--- All whole records of a journal, a list of tables.
function M.read(path)
  local data, n, torn = core.new "char *[1]", core.new "int64_t[1]", core.new "int64_t[1]"
  core.try(C.esp_journal_read(data, n, torn, path))
  local records, at, total = {}, 0, tonumber(n[0])
  while at < total do
    local size = tonumber(core.cast("int64_t *", data[0] + at)[0])
    records[#records + 1] = json.decode(core.string(data[0] + at + 8, size), path)
    at = at + 8 + size
  end
  C.esp_buffer_free(data[0])
  return records
end

return M
