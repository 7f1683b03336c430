--- Files and folders.

local core = require "espalier.ffi"

local C, try = core.C, core.try
local M = {}

--- Whole content of a file (at most 1 GiB, or max bytes).
function M.read(path, max)
  local data, n = core.new "char *[1]", core.new "int64_t[1]"
  try(C.esp_file_read(data, n, path, max or 0))
  return core.buffer(data[0], n[0])
end

--- Writes a file whole or not at all. text: a string or a list of strings.
function M.write(path, text)
  local w = core.new "esp_writer *[1]"
  try(C.esp_writer_open(w, path))
  for _, part in ipairs(type(text) == "table" and text or { text }) do
    if C.esp_writer_write(w[0], part, #part) ~= 0 then
      C.esp_writer_abandon(w[0])
      core.raise()
    end
  end
  try(C.esp_writer_publish(w[0]))
end

local function stat(path)
  local kind, bytes, mtime = core.new "int[1]", core.new "int64_t[1]", core.new "double[1]"
  try(C.esp_file_stat(path, kind, bytes, mtime))
  return kind[0], tonumber(bytes[0]), mtime[0]
end

--- "file", "folder", "other", or nil where there is nothing.
function M.kind(path)
  return ({ "file", "folder", "other" })[(stat(path))]
end

function M.size(path)
  local _, bytes = stat(path)
  return bytes
end

--- Creates a folder with its parents; one that is there is fine.
function M.make(path)
  try(C.esp_folder_make(path))
  return path
end

--- Sorted names in a folder.
function M.list(path)
  local data, n = core.new "char *[1]", core.new "int64_t[1]"
  try(C.esp_folder_list(data, n, path))
  local names = {}
  for name in core.buffer(data[0], n[0]):gmatch "[^\n]+" do names[#names + 1] = name end
  return names
end

--- Removes a file, or a folder with all in it; nothing there is fine.
function M.remove(path) try(C.esp_file_remove(path)) end
function M.rename(from, to) try(C.esp_file_rename(from, to)) end
--- Puts a folder in the place of another (or of nothing) at once; what was there is removed.
function M.replace(from, to) try(C.esp_folder_replace(from, to)) end
--- The same bytes under another name: a link where the file system can, else a copy.
function M.copy(from, to) try(C.esp_file_link_or_copy(from, to)) end

--- Absolute path, links followed.
function M.real(path)
  local out = core.new "char *[1]"
  try(C.esp_path_real(out, path))
  local text = core.string(out[0])
  C.esp_buffer_free(out[0])
  return text
end

--- 32 hex digits of a text's XXH3.
function M.hash_text(text)
  local hex = core.new "char[33]"
  try(C.esp_hash(hex, text, #text))
  return core.string(hex)
end

function M.hash(path)
  local hex = core.new "char[33]"
  try(C.esp_hash_file(hex, path))
  return core.string(hex)
end

function M.join(folder, name)
  return folder:sub(-1) == "/" and folder .. name or folder .. "/" .. name
end

--- Last part of a path.
function M.name(path)
  return path:gsub("/+$", ""):match "[^/]*$"
end

--- Takes an exclusive lock, refused with the holder's process number; lock:release() gives it back.
function M.lock(path)
  local out = core.new "esp_lock *[1]"
  try(C.esp_lock_take(out, path))
  local held = core.gc(out[0], C.esp_lock_release)
  return { release = function()
    if held then C.esp_lock_release(core.gc(held, nil)) end
    held = nil
  end }
end

return M
