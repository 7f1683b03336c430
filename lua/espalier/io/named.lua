--- What files of tensors by name have in common, whatever their format: the names in the order of the file, and what each tensor is.

local core = require "espalier.ffi"
local fail = require "espalier.fail"

--- Gives a class of open files (with path, and c, the handle) its methods: f:list() fills f.names and f.index; f:at(name) is the place of a tensor,
-- or the sentence that there is none; f:describe(name). calls: functions of the core: count(c), name(c, i), ndim(c, i), shape(c, i), dtype(c, i).
return function(File, calls)
  function File:list()
    self.names, self.index = {}, {}
    for i = 0, tonumber(calls.count(self.c)) - 1 do
      local name = core.string(calls.name(self.c, i))
      self.names[i + 1], self.index[name] = name, i
    end
  end

  function File:at(name)
    return self.index[name] or fail("%s: there is no tensor '%s' in it", self.path, tostring(name))
  end

  --- Shape (a list, rows first) and dtype (as in the file) of a tensor, without reading it.
  function File:describe(name)
    local i, shape = self:at(name), {}
    local from = calls.shape(self.c, i)
    for d = 1, calls.ndim(self.c, i) do shape[d] = tonumber(from[d - 1]) end
    return shape, core.string(calls.dtype(self.c, i))
  end
end
