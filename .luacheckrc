std = "luajit"
max_line_length = 150
-- Comparisons are written so that NaN fails them.
ignore = { "581", "582" }
-- At the prompt and in `espalier -e` these are there.
read_globals = { "esp", "help" }
