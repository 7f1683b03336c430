--- Text before it is ids: files, folders and lists of texts, read as a stream of documents in memory that does not grow with them.
--
-- A text file holds documents between separators; a JSONL file one a line: the text of a field, a prompt and its completion, or a list of
-- messages. Documents are trimmed of white space at both ends, empty ones are left out.

local core = require "espalier.ffi"
local file = require "espalier.io.file"
local json = require "espalier.io.json"
local fail = require "espalier.fail"

local C = core.C
local M = { batch_bytes = 2 ^ 22 }
local Source = {}
Source.__index = Source

local TEXT, FIELD, ANSWER, MESSAGES = 0, 1, 2, 3

-- What stands around each message.
local templates = {
  chatml = { "<|im_start|>{role}\n", "<|im_end|>\n" },
  llama3 = { "<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>" },
}

--- The options of a source, for options.check; no defaults, so that an option given in vain is noticed.
M.options = {
  field = { "string", help = "JSONL: where the text is (text); a.b is b inside a" },
  separator = { "string", help = "text files: what stands between documents (<|endoftext|>); empty: a file is a document" },
  prompt = { "string", help = "JSONL: field of a prompt, on which no loss counts" },
  completion = { "string", help = "JSONL: field of what follows the prompt" },
  messages = { "string", help = "JSONL: field of a list of { role, content }; the loss counts on the assistant's" },
  template = { "list", help = "of messages: chatml (default), llama3, or before,after with {role}" },
  bos = { "bool", help = "BOS in front of each document (where the tokenizer has one)" },
  eos = { "bool", help = "EOS behind each document (no; yes for completions)" },
  special = { "bool", help = "special tokens written in the text are found (no; yes for messages)" },
}

local function is_lines(path)
  return path:match "%.jsonl$" or path:match "%.ndjson$" or path:match "%.json$"
end

local function collect(path, list, top)
  local kind = file.kind(path)
  if not kind then fail("esp.data: there is no '%s'", tostring(path)) end
  if kind == "folder" then
    for _, name in ipairs(file.list(path)) do
      local full = file.join(path, name)
      if file.kind(full) == "folder" or name:match "%.txt$" or name:match "%.jsonl$" or name:match "%.ndjson$" then collect(full, list) end
    end
    if top and #list == 0 then fail("esp.data: the folder '%s' holds no .txt or .jsonl", path) end
  else
    list[#list + 1] = { path = path, lines = is_lines(path) ~= nil, bytes = file.size(path) }
  end
  return list
end

local function check(opt)
  if (opt.prompt == nil) ~= (opt.completion == nil) then fail("esp.data: prompt and completion go together; one of them is missing") end
  local ways = (opt.field and 1 or 0) + (opt.prompt and 1 or 0) + (opt.messages and 1 or 0)
  if ways > 1 then fail("esp.data: name a field, a prompt with its completion, or messages; not several of them") end
  if opt.template and not opt.messages then fail("esp.data: a template is for messages; name their field, as in messages = \"messages\"") end
  local t = opt.template
  if t and not (#t == 1 and templates[t[1]] or #t == 2 and type(t[1]) == "string" and type(t[2]) == "string") then
    fail("esp.data: template is '%s', want chatml, llama3, or what stands before and after a message", table.concat(t, ","))
  end
end

--- A source of a path, a list of texts, or a list of paths under .paths; opt of M.options.
function M.open(from, opt)
  check(opt)
  local self = setmetatable({ opt = opt, bytes = 0 }, Source)
  if type(from) == "table" and not from.paths then
    self.texts = from
    for i, text in ipairs(from) do
      if type(text) ~= "string" then fail("esp.data: entry %d of the list is %s, want a text", i, type(text)) end
      self.bytes = self.bytes + #text
    end
  else
    self.files = {}
    for _, path in ipairs(type(from) == "table" and from.paths or { from }) do collect(path, self.files, true) end
    for _, f in ipairs(self.files) do
      self.bytes = self.bytes + f.bytes
      if (opt.prompt or opt.messages) and not f.lines then fail("esp.data: %s is no .jsonl; it has no prompts or messages", f.path) end
    end
  end
  -- Of documents with parts, some of which the loss does not count.
  self.masked = (opt.prompt or opt.messages) ~= nil
  return self
end

-- An option that defaults to `default`; asked for by name it needs the token.
local function token_of(tok, name, asked, default)
  if asked and not tok[name] then fail("esp.data: %s = true, but %s has no %s token", name, tok.path, name:upper()) end
  if asked == nil then asked = default end
  return asked and tok[name] or nil
end

--- What is put around documents by a tokenizer (nil: texts alone): { field .., bos, eos (ids or nil), special }.
function Source:rule(tok)
  local opt = self.opt
  local t = opt.template or { "chatml" }
  local pair = opt.messages and (#t == 1 and templates[t[1]] or t) or { "", "" }
  local special = opt.special
  if special == nil then special = opt.messages ~= nil end
  return { field = opt.prompt or opt.messages or opt.field or "text", answer = opt.completion or (opt.messages and "assistant") or "",
    kind = opt.prompt and ANSWER or opt.messages and MESSAGES or FIELD, before = pair[1], after = pair[2], special = special,
    bos = tok and token_of(tok, "bos", opt.bos, true), eos = tok and token_of(tok, "eos", opt.eos, opt.prompt ~= nil) }
end

--- The rule as a text, for the record.
function Source:describe(tok)
  local r = self:rule(tok)
  local out = { bos = r.bos or -1, eos = r.eos or -1, special = r.special, field = r.field, answer = r.answer, before = r.before, after = r.after,
    separator = self.opt.separator or "<|endoftext|>" }
  return json.encode(out)
end

-- The C form of a rule for one file; the second result keeps its texts alive.
local function c_rule(rule, name, lines)
  local c = core.new "esp_document_rule"
  c.kind, c.name = lines and rule.kind or TEXT, name
  c.field, c.answer, c.before, c.after = rule.field, rule.answer, rule.before, rule.after
  c.bos, c.eos, c.special = rule.bos or -1, rule.eos or -1, rule.special and 1 or 0
  return c, { rule, name }
end

-- Batches of a list of texts: text, ranges, numbers, count; nil at the end.
local function batches_of_texts(texts)
  local at = 1
  return function()
    if at > #texts then return nil end
    local from, bytes = at, 0
    repeat
      bytes = bytes + #texts[at]
      at = at + 1
    until at > #texts or bytes >= M.batch_bytes
    local n, place = at - from, 0
    local ranges, numbers = core.new("int64_t[?]", 2 * n), core.new("int64_t[?]", n)
    for i = 0, n - 1 do
      ranges[2 * i], ranges[2 * i + 1], numbers[i] = place, place + #texts[from + i], from + i
      place = place + #texts[from + i]
    end
    return table.concat(texts, "", from, at - 1), ranges, numbers, n
  end
end

local function encode(tok, c, text, ranges, numbers, count, fn, at)
  local out = core.gc(core.new "esp_encoded", C.esp_encoded_free)
  core.try(C.esp_documents_encode(out, tok and tok.c or nil, text, ranges, numbers, count, c))
  fn(out, at)
  C.esp_encoded_free(core.gc(out, nil))
end

local function each_of_file(f, separator, tok, rule, fn, before)
  local c, anchor = c_rule(rule, f.path, f.lines)
  separator = f.lines and "\n" or separator
  local handle = core.new "esp_reader *[1]"
  core.try(C.esp_reader_open(handle, f.path, separator, #separator))
  local reader = core.gc(handle[0], C.esp_reader_close)
  local text, ranges, numbers = core.new "const char *[1]", core.new "const int64_t *[1]", core.new "const int64_t *[1]"
  local count = core.new "int64_t[1]"
  repeat
    core.try(C.esp_reader_next(reader, M.batch_bytes, text, ranges, numbers, count))
    if count[0] > 0 then
      encode(tok, c, text[0], ranges[0], numbers[0], count[0], fn, before + tonumber(C.esp_reader_at(reader)))
    end
  until count[0] == 0
  C.esp_reader_close(core.gc(reader, nil))
  return anchor
end

--- Calls fn(encoded, bytes so far) for each batch of documents: an esp_encoded of the core, freed when fn returns. tok nil: texts and hashes.
function Source:each(tok, fn)
  local rule = self:rule(tok)
  if self.texts then
    local c, anchor = c_rule(rule, "the list of texts", false)
    for text, ranges, numbers, count in batches_of_texts(self.texts) do encode(tok, c, text, ranges, numbers, count, fn, 0) end
    return anchor
  end
  local before = 0
  for _, f in ipairs(self.files) do
    each_of_file(f, self.opt.separator or "<|endoftext|>", tok, rule, fn, before)
    before = before + f.bytes
  end
end

return M
