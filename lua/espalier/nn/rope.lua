--- Rotary position embedding (2104.09864): the tables of cosines and sines.
--
-- rope = { theta, partial, scaling }: the first partial (1) of a head's channels turn with inverse frequencies theta^(-2i/R), R channels in all;
-- scaling bends them for long contexts:
--   linear    all are divided by factor
--   llama3    (Llama 3.1) wavelengths above original_context/low_freq_factor are stretched by factor, those below original_context/high_freq_factor
--             are kept, those between are blended
--   yarn      (2309.00071) channels that turn more than beta_fast (32) times in the original context are kept, fewer than beta_slow (1) stretched,
--             those between blended (truncate: at whole channels); cos and sin are scaled by attention_factor
--   dynamic   past the original context theta grows with the length that is run
--   longrope  (2402.13753) each is divided by its short_factor, or its long_factor past the original context; cos and sin scaled
-- The last two depend on the length. Angles are made in doubles: position times frequency in f32 loses a digit from position 10,000 on.

local tensor = require "espalier.tensor"
local fail = require "espalier.fail"

local rope = {}

local function plain(theta, channels)
  local list = {}
  for i = 0, channels / 2 - 1 do list[i + 1] = theta ^ (-2 * i / channels) end
  return list
end

local function map(list, fn)
  for i, f in ipairs(list) do list[i] = fn(f, i) end
  return list
end

local bend = {}

function bend.linear(list, s)
  return map(list, function(f) return f / s.factor end)
end

function bend.llama3(list, s)
  local original = s.original_context
  return map(list, function(f)
    local wave = 2 * math.pi / f
    if wave > original / s.low_freq_factor then return f / s.factor end
    if wave < original / s.high_freq_factor then return f end
    local share = (original / wave - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    return (1 - share) * f / s.factor + share * f
  end)
end

function bend.yarn(list, s, theta)
  local channels = 2 * #list
  -- The channel that turns so many times in the original context.
  local function channel(turns) return channels * math.log(s.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta)) end
  local low, high = channel(s.beta_fast or 32), channel(s.beta_slow or 1)
  if s.truncate ~= false then low, high = math.floor(low), math.ceil(high) end
  low, high = math.max(low, 0), math.min(high, channels - 1)
  if low == high then high = high + 0.001 end
  return map(list, function(f, i)
    local stretched = math.min(1, math.max(0, (i - 1 - low) / (high - low)))
    return f / s.factor * stretched + f * (1 - stretched)
  end)
end

function bend.dynamic(list, s, theta, length)
  if length <= s.original_context then return list end
  local channels = 2 * #list
  return plain(theta * (s.factor * length / s.original_context - (s.factor - 1)) ^ (channels / (channels - 2)), channels)
end

function bend.longrope(list, s, _, length)
  local name = length > s.original_context and "long_factor" or "short_factor"
  if #s[name] ~= #list then fail("rope: %s has %d numbers, want %d (half of the channels that turn)", name, #s[name], #list) end
  return map(list, function(f, i) return f / s[name][i] end)
end

-- 0.1 m ln(s) + 1, the attention factor of YaRN (section 3.4).
local function magnitude(factor, m)
  return factor > 1 and 0.1 * m * math.log(factor) + 1 or 1
end

-- What cos and sin are multiplied by.
local function attention_factor(s)
  if not s then return 1 end
  if s.attention_factor then return s.attention_factor end
  if s.type == "yarn" then
    if s.mscale and s.mscale_all_dim and s.mscale ~= 0 and s.mscale_all_dim ~= 0 then
      return magnitude(s.factor, s.mscale) / magnitude(s.factor, s.mscale_all_dim)
    end
    return magnitude(s.factor, 1)
  end
  if s.type == "longrope" and s.factor > 1 then return math.sqrt(1 + math.log(s.factor) / math.log(s.original_context)) end
  return 1
end

--- Runs of lengths of one regime have the same tables; 0 where the length says nothing.
function rope.regime(opt, length)
  local s = opt.scaling
  if not s or length <= (s.original_context or length) then return 0 end
  if s.type == "longrope" then return 1 end
  return s.type == "dynamic" and length or 0
end

--- Channels of a head that turn.
function rope.channels(head_dim, opt)
  return math.floor(head_dim * (opt.partial or 1))
end

--- Inverse frequencies of a head, for a run of so many positions in all (only some scalings ask: rope.regime).
function rope.frequencies(head_dim, opt, length)
  local list, s = plain(opt.theta, rope.channels(head_dim, opt)), opt.scaling
  if not s then return list end
  return bend[s.type](list, s, opt.theta, length or 0)
end

--- cos, sin [positions, R/2], f32; length: of the whole run (positions).
function rope.tables(positions, head_dim, opt, length)
  local frequencies, factor = rope.frequencies(head_dim, opt, length or positions), attention_factor(opt.scaling)
  local half = #frequencies
  local cos, sin = tensor.new { positions, half }, tensor.new { positions, half }
  local c, s = cos:data(), sin:data()
  for p = 0, positions - 1 do
    for i = 0, half - 1 do
      local angle = p * frequencies[i + 1]
      c[p * half + i] = math.cos(angle) * factor
      s[p * half + i] = math.sin(angle) * factor
    end
  end
  return cos, sin
end

return rope
