--- The median of a list of numbers, the least and the largest of them.
return function(list)
  local sorted = { unpack(list) }
  table.sort(sorted)
  local n = #sorted
  return (sorted[math.ceil(n / 2)] + sorted[math.floor(n / 2) + 1]) / 2, sorted[1], sorted[n]
end
