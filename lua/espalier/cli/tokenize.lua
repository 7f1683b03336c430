--- espalier tokenize INPUT .. out=FILE.h5 tokenizer=MODEL name=value ...: esp.data.tokenize from the command line.

local fail = require "espalier.fail"
local file = require "espalier.io.file"
local quantity = require "espalier.quantity"

local M = {}

--- Runs the verb: args are what stands behind it, inputs and name=value.
function M.run(args)
  local given = { input = {} }
  for _, arg in ipairs(args) do
    local name, value = arg:match "^([%a_][%w_]*)=(.*)$"
    if not name then given.input[#given.input + 1] = arg
    elseif name == "input" then fail("tokenize: inputs stand by themselves: espalier tokenize a.jsonl b.txt out=corpus.h5 tokenizer=DIR")
    elseif given[name] then fail("option '%s' is given twice", name)
    else given[name] = value end
  end
  if #given.input == 0 then fail("tokenize: name a file or a folder: espalier tokenize stories.txt out=stories.h5 tokenizer=MODEL") end
  if given.tokenizer then given.tokenizer = require("espalier.models").find(given.tokenizer) end
  local made = require("espalier.data.tokenize").tokenize(given)
  print(string.format("%s: %s documents, %s tokens (%s), %s, in %s", made.out, quantity.show_exact(made.documents), quantity.show_exact(made.tokens),
    made.stored, quantity.show_bytes(file.size(made.out)), quantity.show_seconds(made.seconds)))
end

return M
