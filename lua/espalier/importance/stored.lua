--- Statistics as they lie in a file: layer.N/NAME, outer/NAME, left_out/NAME, and about, JSON that tells what they are of.
--
-- Sums are f64 in memory so that anything may be added. In the file a channel has what the metrics need, to f32: of each half of the rows
-- [2, 7 or 8, channels]
--   0, 1  mean over rows of the mean |x| over a row's tokens, and its deviation over rows
--   2     deviation over rows of the l2 norm over a row's tokens
--   3, 4  mean and deviation over rows of the variance over a row's tokens
--   5, 6  mean and deviation of x over all tokens
--   7     mean |x| over all tokens, where rows differ in length (else it is 0's)
-- Deviations are kept, and no sums of squares: a variance that is small beside its mean would not survive f32. The mean of the norms follows: their
-- squares add up to those of x. Products with gradients and sums over weights are f32 sums; all else stays f64. Datasets are deflated. The file of a
-- pass that is not done holds the sums as they are, f64 [2, 8, channels], so that it goes on to the same bits.

local tensor = require "espalier.tensor"
local scope = require "espalier.scope"
local hdf5 = require "espalier.io.hdf5"
local json = require "espalier.io.json"
local statistics = require "espalier.importance.statistics"
local fail = require "espalier.fail"

local M = {}

local version = 3

-- Sums of channels in memory, as esp_channel_stats_acc (core/espalier.h) adds them up.
local SUMS = 8

local function is_channels(t) return #t.shape == 3 and t.shape[2] == SUMS end

-- Is f32 enough for the sums of a name, and are they many? Users' own reductions may need every digit.
local function is_plain(name)
  return not name:find("%.user%.") and (name:match "%.taylor$" or name:match "%.weights$" or name:match "%.taylor_weight$") ~= nil
end

-- sqrt(mean of squares - square of the mean); rounding may leave a tiny negative, NaN stays NaN.
local function deviation(sum, square, n)
  local mean = sum / n
  local v = square / n - mean * mean
  return v < 0 and 0 or math.sqrt(v)
end

-- Do the rows' mean |x|, counted by length, make the mean over all tokens? They do where all rows are of one length.
local function of_one_length(t, counts)
  local n, p = t.shape[3], t:data()
  for h = 0, 1 do
    local at, length = h * SUMS * n, counts[h + 1].tokens / math.max(1, counts[h + 1].rows)
    for i = at, at + n - 1 do
      if not (math.abs(p[i] * length - p[i + 7 * n]) <= 1e-9 * p[i + 7 * n]) then return false end
    end
  end
  return true
end

local function encode_channels(t, counts)
  local n, K = t.shape[3], of_one_length(t, counts) and 7 or 8
  local y, p = tensor.zeros { 2, K, n }, t:data()
  local q = y:data()
  for h = 0, 1 do
    local rows, tokens = counts[h + 1].rows, counts[h + 1].tokens
    for i = 0, rows > 0 and n - 1 or -1 do
      local a, b = h * SUMS * n + i, h * K * n + i
      q[b], q[b + n] = p[a] / rows, deviation(p[a], p[a + n], rows)
      q[b + 2 * n] = deviation(p[a + 2 * n], p[a + 3 * n], rows)
      q[b + 3 * n], q[b + 4 * n] = p[a + 4 * n] / rows, deviation(p[a + 4 * n], p[a + 5 * n], rows)
      q[b + 5 * n], q[b + 6 * n] = p[a + 6 * n] / tokens, deviation(p[a + 6 * n], p[a + 3 * n], tokens)
      if K == 8 then q[b + 7 * n] = p[a + 7 * n] / tokens end
    end
  end
  return y
end

local function square_sum(mean, dev, n) return n * (mean * mean + dev * dev) end

local function decode_channels(t, counts)
  local K, n, p = t.shape[2], t.shape[3], t:data()
  local y = tensor.zeros({ 2, SUMS, n }, "f64")
  local q = y:data()
  for h = 0, 1 do
    local rows, tokens = counts[h + 1].rows, counts[h + 1].tokens
    for i = 0, rows > 0 and n - 1 or -1 do
      local a, b = h * SUMS * n + i, h * K * n + i
      q[a], q[a + n] = rows * p[b], square_sum(p[b], p[b + n], rows)
      local squares = square_sum(p[b + 5 * n], p[b + 6 * n], tokens)
      local norm = squares / rows - p[b + 2 * n] ^ 2
      q[a + 2 * n], q[a + 3 * n] = norm < 0 and 0 or rows * math.sqrt(norm), squares
      q[a + 4 * n], q[a + 5 * n] = rows * p[b + 3 * n], square_sum(p[b + 3 * n], p[b + 4 * n], rows)
      q[a + 6 * n], q[a + 7 * n] = tokens * p[b + 5 * n], tokens * p[b + (K == 8 and 7 or 0) * n]
    end
  end
  return y
end

local function encode(name, t, counts, exact)
  if exact then return t end
  if is_channels(t) then return encode_channels(t, counts) end
  return is_plain(name) and tensor.to(t, "f32") or t
end

local function decode(path, name, t, counts)
  local K = t.shape[2]
  if t.dtype == "f32" and #t.shape == 3 and not is_plain(name) then
    if K ~= 7 and K ~= 8 then fail("%s: '%s' is %s, want [2, 7 or 8, channels]", path, name, tensor.shape_text(t)) end
    return decode_channels(t, counts)
  end
  return tensor.to(t, "f64")
end

--- Writes statistics, whole or not at all; exact: as they are in memory.
function M.save(stats, path, exact)
  local values = { about = json.encode { kind = "espalier statistics", version = version, counts = json.array(stats.counts), shape = stats.shape,
    facts = stats.facts, hash = stats:hash() } }
  scope.run(function()
    local function put(group, place)
      for name, t in pairs(place) do values[group .. "/" .. name] = encode(name, t, stats.counts, exact) end
    end
    for l, layer in ipairs(stats.sums) do put("layer." .. l - 1, layer) end
    put("outer", stats.outer)
    put("left_out", stats.left_out)
    hdf5.write(path, values, { packed = true })
  end)
end

--- Statistics of a file.
function M.load(path)
  local f = hdf5.open(path)
  if not f:has "about" then fail("%s holds no statistics of espalier (no dataset 'about')", path) end
  local about = json.decode(f:text "about", path)
  if about.kind ~= "espalier statistics" then fail("%s holds '%s', want espalier statistics", path, tostring(about.kind)) end
  if about.version ~= version then
    fail("%s is of version %s, this program reads version %d; measure again", path, tostring(about.version), version)
  end
  local s = statistics.new(about.shape, about.facts)
  s.counts = about.counts
  scope.outside(function()
    for _, name in ipairs(f.names) do
      local group, own = name:match "^([^/]+)/(.+)$"
      local l = group and tonumber(group:match "^layer%.(%d+)$")
      if l and not s.sums[l + 1] then fail("%s: '%s' is of a layer that the model does not have (0 to %d)", path, name, s.shape.layers - 1) end
      local into = l and s.sums[l + 1] or group == "outer" and s.outer or group == "left_out" and s.left_out
      if into then into[own] = decode(path, own, f:tensor(name), s.counts) end
    end
  end)
  f:close()
  s.known_hash = about.hash
  return s
end

return M
