--- A sentencepiece model (a protocol buffer) of pieces, scores and types: BPE with identity normalisation.

local core = require "espalier.ffi"

local M = {}

local function varint(n)
  local out = {}
  repeat
    local low = n % 128
    n = math.floor(n / 128)
    out[#out + 1] = string.char(n > 0 and low + 128 or low)
  until n == 0
  return table.concat(out)
end

-- Fields by number: a varint, bytes of a length, a float.
local function whole(number, value) return varint(number * 8) .. varint(value) end
local function bytes(number, text) return varint(number * 8 + 2) .. varint(#text) .. text end
local function float(number, value) return varint(number * 8 + 5) .. core.string(core.new("float[1]", value), 4) end

-- -1 as protocol buffers write it: 64 bits of ones.
local MINUS_ONE = string.rep("\255", 9) .. "\1"
local function id_field(number, id) return id and whole(number, id) or varint(number * 8) .. MINUS_ONE end

--- The bytes of a model. v: pieces, scores, types (lists; types as sentencepiece and GGUF count them), prefix: does a text begin with a space that is
-- not there?; squeeze: do several spaces count as one?; bos, eos, unk, pad: ids or nil.
function M.encode(v)
  local out, has_bytes = {}, false
  for i, piece in ipairs(v.pieces) do
    has_bytes = has_bytes or v.types[i] == 6
    out[i] = bytes(1, bytes(1, piece) .. float(2, v.scores[i]) .. (v.types[i] ~= 1 and whole(3, v.types[i]) or ""))
  end
  local trainer = whole(3, 2) .. whole(4, #v.pieces) .. whole(35, has_bytes and 1 or 0) .. whole(40, v.unk or 0) .. id_field(41, v.bos)
    .. id_field(42, v.eos) .. id_field(43, v.pad)
  local normalizer = bytes(1, "identity") .. whole(3, v.prefix and 1 or 0) .. whole(4, v.squeeze and 1 or 0) .. whole(5, 1)
  return table.concat(out) .. bytes(2, trainer) .. bytes(3, normalizer)
end

return M
