--- Files: safetensors, gguf, json, hdf5, file, journal, process. Each is opened when first named.

return setmetatable({}, { __index = function(io, name)
  local value = require("espalier.io." .. name)
  io[name] = value
  return value
end })
