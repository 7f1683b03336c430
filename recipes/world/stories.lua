--- A small world to tell stories about: people with a home, a trade and an animal that never change, things that are owned, lost and given
-- on within a story, and small sums. Who knows the world can tell most words; who does not can only guess.
--
-- Deterministic from the seed: a generator of its own, so that the text is the same bytes everywhere.

local M = {}

local names = { "Ada", "Bruno", "Cleo", "Dario", "Edda", "Felix", "Greta", "Hugo", "Ines", "Jonas" }
local towns = { "Oldmoor", "Redbank", "Saltby", "Highfield", "Ferncombe", "Larkhill" }
local trades = { "baker", "weaver", "miller", "smith", "fisher", "gardener" }
local animals = { "dog", "cat", "goat", "horse", "parrot", "donkey" }
local things = { "lamp", "kettle", "drum", "ladder", "basket", "kite", "knife", "blanket" }
local colours = { "red", "blue", "green", "yellow" }
local fruits = { "apples", "pears", "plums", "nuts" }
local places = { "at the market", "by the river", "under the old bridge", "in the garden", "behind the mill", "on the hill", "in the attic" }
local weather = { "It was raining.", "The sun was warm.", "A cold wind blew.", "It was early in the morning.", "It was almost dark.",
  "Snow lay on the roofs." }

-- Park and Miller's generator: exact in doubles.
local function random_from(seed)
  local state = (seed * 48271 + 11) % 2147483647
  for _ = 1, 5 do state = state * 48271 % 2147483647 end
  return function(n)
    state = state * 48271 % 2147483647
    return math.floor(state / 2147483647 * n) + 1
  end
end

-- What never changes: a table { home, trade, animal } by name. The same for every seed of the stories.
local function people()
  local pick, list = random_from(2024), {}
  for _, name in ipairs(names) do
    list[name] = { home = towns[pick(#towns)], trade = trades[pick(#trades)], animal = animals[pick(#animals)] }
  end
  return list
end

local knows = people()

local function about(name, pick)
  local p, k = knows[name], pick(4)
  if k == 1 then return name .. " lives in " .. p.home .. "." end
  if k == 2 then return name .. " is a " .. p.trade .. "." end
  if k == 3 then return name .. " has a " .. p.animal .. "." end
  return name .. ", the " .. p.trade .. " from " .. p.home .. ", came with the " .. p.animal .. "."
end

local function two(pick)
  local a, b = pick(#names), pick(#names - 1)
  return names[a], names[b >= a and b + 1 or b]
end

-- Somebody owns a thing, gives it on, and is asked about it.
local function gift(pick)
  local a, b = two(pick)
  local thing = colours[pick(#colours)] .. " " .. things[pick(#things)]
  local s = { weather[pick(#weather)], about(a, pick), a .. " had a " .. thing .. ".", a .. " met " .. b .. " " .. places[pick(#places)] .. ".",
    about(b, pick), a .. " gave the " .. thing .. " to " .. b .. ".", "Now " .. b .. " has the " .. thing .. "." }
  if pick(2) == 1 then s[#s + 1] = "\"Thank you, " .. a .. ",\" said " .. b .. "." end
  return s
end

local function loss(pick)
  local a, b = two(pick)
  local thing, place = things[pick(#things)], places[pick(#places)]
  return { about(a, pick), a .. " lost the " .. thing .. " " .. place .. ".", weather[pick(#weather)],
    a .. " asked " .. b .. ": \"Where is my " .. thing .. "?\"", about(b, pick), b .. " looked " .. place .. " and found the " .. thing .. ".",
    a .. " took the " .. thing .. " home to " .. knows[a].home .. "." }
end

local function sum(pick)
  local a, b = two(pick)
  local x, y, fruit = pick(5), pick(5), fruits[pick(#fruits)]
  local s = { about(a, pick), a .. " had " .. x .. " " .. fruit .. ".", about(b, pick), b .. " gave " .. a .. " " .. y .. " more.",
    x .. " and " .. y .. " make " .. (x + y) .. ".", "So " .. a .. " had " .. (x + y) .. " " .. fruit .. "." }
  if pick(2) == 1 then
    local z = pick(x + y)
    s[#s + 1] = a .. " ate " .. z .. " and kept " .. (x + y - z) .. "."
  end
  return s
end

local function visit(pick)
  local a, b = two(pick)
  return { weather[pick(#weather)], a .. " went to " .. knows[b].home .. " to see " .. b .. ".", about(b, pick), about(a, pick),
    "The " .. knows[b].animal .. " of " .. b .. " was glad.", "In the evening " .. a .. " went back to " .. knows[a].home .. "." }
end

local kinds = { gift, loss, sum, visit }

--- n stories, a list of texts; seed: a whole number.
function M.stories(n, seed)
  local pick, list = random_from(seed), {}
  for i = 1, n do list[i] = table.concat(kinds[pick(#kinds)](pick), " ") end
  return list
end

--- What the stories take for granted: a list of { question, answer }, the answer being what must follow the question.
function M.facts()
  local list = {}
  for _, name in ipairs(names) do
    list[#list + 1] = { name .. " lives in", " " .. knows[name].home }
    list[#list + 1] = { name .. " is a", " " .. knows[name].trade }
    list[#list + 1] = { name .. " has a", " " .. knows[name].animal }
  end
  return list
end

return M
