--- Rotary position embedding: the tables of cosines and sines.
--
-- Angles are made in doubles: position times inverse frequency in f32 loses a digit from position 10,000 on.

local tensor = require "espalier.tensor"

local rope = {}

--- Inverse frequencies of a head: theta^(-2i/head_dim), bent for long contexts where opt.scaling asks for it (2104.09864).
-- scaling of type "llama3" (Llama 3.1): wavelengths above original/low_freq_factor are stretched by factor, those below
-- original/high_freq_factor are kept, those between are blended; type "linear" stretches all.
function rope.frequencies(head_dim, opt)
  local list, s = {}, opt.scaling
  for i = 0, head_dim / 2 - 1 do
    local f = opt.theta ^ (-2 * i / head_dim)
    if s and s.type == "linear" then
      f = f / s.factor
    elseif s and s.type == "llama3" then
      local original, wave = s.original_context, 2 * math.pi / f
      if wave > original / s.low_freq_factor then
        f = f / s.factor
      elseif wave >= original / s.high_freq_factor then
        local share = (original / wave - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
        f = (1 - share) * f / s.factor + share * f
      end
    end
    list[i + 1] = f
  end
  return list
end

--- cos, sin [positions, head_dim/2], f32.
function rope.tables(positions, head_dim, opt)
  local half, frequencies = head_dim / 2, rope.frequencies(head_dim, opt)
  local cos, sin = tensor.new { positions, half }, tensor.new { positions, half }
  local c, s = cos:data(), sin:data()
  for p = 0, positions - 1 do
    for i = 0, half - 1 do
      local angle = p * frequencies[i + 1]
      c[p * half + i] = math.cos(angle)
      s[p * half + i] = math.sin(angle)
    end
  end
  return cos, sin
end

return rope
