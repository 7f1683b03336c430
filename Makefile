# Espalier. `make demo` and `make test` work as the first command on a fresh Debian or Ubuntu: what is missing is installed, then built, then run.
#
#   make            build/libespalier.so, build/libespalier-hdf5.so, build/espalier
#   make demo       a small teacher is trained, pruned, retrained and compared (about a minute)
#   make test       the whole test suite; the last line counts passed, failed and skipped
#   make check      linters, then the test suite under ASan and UBSan
#   make fuzz       every parser under libFuzzer, ASan and UBSan: FUZZ_RUNS=1000000 FUZZ_TARGETS="gguf json"
#   make bench      speed and memory at two real shapes, beside PyTorch where BENCH_PYTHON= (python3) has torch; kept under tests/bench/results
#   make install    PREFIX=/usr/local
#   make clean

CC       = gcc
PREFIX   = /usr/local
BENCH_PYTHON = python3
B        = build$(if $(SANITIZE),/sanitize)$(if $(FUZZ),/fuzz)

# -fno-math-errno and -fno-trapping-math let loops vectorise and change no result; -ffast-math is not used anywhere.
WARNINGS = -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes $(if $(WERROR),-Werror)
CFLAGS   = -O3 -g
ALL_CFLAGS = -std=gnu11 -fPIC -fno-math-errno -fno-trapping-math $(WARNINGS) $(CFLAGS) $(SANITIZERS) -MMD -MP
SANITIZERS = $(if $(SANITIZE)$(FUZZ),-O1 -fsanitize=address$(,)undefined$(if $(FUZZ),$(,)fuzzer-no-link) -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
, := ,

# Expanded when a command runs, so after the packages are there.
CORE_LIBS = $(shell pkg-config --libs yajl libpcre2-8 libutf8proc libxxhash) -ldl -lpthread -lm
HDF5_CFLAGS = $(shell pkg-config --cflags hdf5)
HDF5_LIBS = $(shell pkg-config --libs hdf5)
HOST_CFLAGS = $(shell pkg-config --cflags luajit libedit)
HOST_LIBS = $(shell pkg-config --libs luajit libedit)

HDF5_SRC = core/io/hdf5.c
CORE_SRC = $(filter-out $(HDF5_SRC),$(wildcard core/base/*.c core/tensor/*.c core/ops/*.c core/io/*.c core/text/*.c))
HOST_SRC = $(wildcard core/host/*.c)
C_TESTS  = $(patsubst tests/core/%.c,$(B)/tests/%,$(wildcard tests/core/*.c))

CORE_OBJ = $(CORE_SRC:core/%.c=$(B)/obj/%.o) $(B)/obj/header.o
HDF5_OBJ = $(HDF5_SRC:core/%.c=$(B)/obj/%.o) $(B)/obj/checksum.o
HOST_OBJ = $(HOST_SRC:core/%.c=$(B)/obj/%.o)

.PHONY: all demo test check lint fuzz bench install clean
all: $(B)/libespalier.so $(B)/libespalier-hdf5.so $(B)/espalier

$(B)/libespalier.so: $(CORE_OBJ)
	$(CC) -shared $(SANITIZERS) -o $@ $(CORE_OBJ) $(CORE_LIBS)

$(B)/libespalier-hdf5.so: $(HDF5_OBJ) $(B)/libespalier.so
	$(CC) -shared $(SANITIZERS) -o $@ $(HDF5_OBJ) -L$(B) -lespalier -Wl,-rpath,'$$ORIGIN' $(HDF5_LIBS) $(shell pkg-config --libs libxxhash)

$(B)/espalier: $(HOST_OBJ) $(B)/libespalier.so
	$(CC) $(SANITIZERS) -o $@ $(HOST_OBJ) -L$(B) -lespalier -Wl,-rpath,'$$ORIGIN:$$ORIGIN/../lib' -Wl,-E $(HOST_LIBS) -lm

$(B)/tests/%: tests/core/%.c $(B)/libespalier.so
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) -o $@ $< -L$(B) -lespalier -Wl,-rpath,'$$ORIGIN/..' -lm

$(B)/obj/%.o: core/%.c | build/packages
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(if $(findstring hdf5,$<),$(HDF5_CFLAGS)) $(if $(findstring host/,$<),$(HOST_CFLAGS)) -c -o $@ $<

# The public header, preprocessed, is part of the library: what the Lua side binds is what was compiled.
$(B)/header.txt: core/espalier.h | build/packages
	@mkdir -p $(@D)
	$(CC) -DESP_CDEF -E -P core/espalier.h -o $@

$(B)/obj/header.c: $(B)/header.txt
	@mkdir -p $(@D)
	{ echo '#include "../../$(if $(SANITIZE)$(FUZZ),../)core/espalier.h"'; \
	  echo 'const char *esp_checksum(void) { return "'$$(cksum < $< | tr ' ' '-')'"; }'; \
	  echo 'const char *esp_header(void) { return'; sed 's/\\/\\\\/g; s/"/\\"/g; s/.*/"&\\n"/' $<; echo ';}'; } > $@

$(B)/obj/checksum.c: $(B)/header.txt
	@mkdir -p $(@D)
	{ echo '#include "../../$(if $(SANITIZE)$(FUZZ),../)core/espalier.h"'; \
	  echo 'const char *esp_h5_checksum(void) { return "'$$(cksum < $< | tr ' ' '-')'"; }'; } > $@

$(B)/obj/%.o: $(B)/obj/%.c
	$(CC) $(ALL_CFLAGS) -c -o $@ $<

# Sums stay in registers only where loops are unrolled: with the -O1 of the sanitizers the suite would take half as long again. No parser comes here,
# so fuzzing goes without them: clang would need minutes.
$(B)/obj/ops/tile.o: ALL_CFLAGS += $(if $(FUZZ),-fno-sanitize=all,-O3)

-include $(wildcard $(B)/obj/*.d $(B)/obj/*/*.d $(B)/tests/*.d)

# ---- packages: installed by apt where missing; where apt cannot be used the one line to run is printed ----

PACKAGES = gcc libc6-dev pkg-config luajit libluajit-5.1-dev libhdf5-dev libyajl-dev libpcre2-dev libutf8proc-dev libxxhash-dev libedit-dev
LINTERS  = cppcheck lua-check
HAVE     = command -v $(CC) >/dev/null && command -v luajit >/dev/null && \
           pkg-config --exists luajit hdf5 yajl libpcre2-8 libutf8proc libxxhash libedit
# $(1): packages
APT = sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
      if command -v apt-get >/dev/null && { [ -z "$$sudo" ] || command -v sudo >/dev/null; } && \
         $$sudo env DEBIAN_FRONTEND=noninteractive sh -c 'apt-get update -qq && apt-get install -y -qq --no-install-recommends $(1)' >build/apt.log 2>&1; \
      then :; else tail -n 3 build/apt.log 2>/dev/null; echo "Packages are missing and could not be installed here. Run this line, then make again:"; \
      echo "    sudo apt-get install $(1)"; exit 1; fi

build/packages:
	@mkdir -p build
	@{ $(HAVE); } || { echo "installing packages: $(PACKAGES)"; $(call APT,$(PACKAGES)); }
	@touch $@

# ---- commands ----

demo: all
	$(B)/espalier recipes/demo.lua out=runs/demo

test: all $(C_TESTS)
	$(if $(SANITIZE),ASAN_OPTIONS=detect_leaks=0 )$(B)/espalier tests/run.lua

lint: | build/packages
	@command -v cppcheck >/dev/null && command -v luacheck >/dev/null || { echo "installing linters: $(LINTERS)"; $(call APT,$(LINTERS)); }
	cppcheck --quiet --std=c11 --enable=warning,performance,portability --inline-suppr --error-exitcode=1 --suppress=missingIncludeSystem core
	luacheck --quiet lua recipes experiments tests

# Leaks are not looked for: LuaJIT keeps its state to the end of the process.
check: lint
	$(MAKE) WERROR=1 all
	$(MAKE) WERROR=1 SANITIZE=1 all
	$(MAKE) WERROR=1 SANITIZE=1 test

# The core built again by clang for libFuzzer; nothing of it is installed or shipped.
FUZZ_RUNS = 2000
FUZZ_TARGETS =
fuzz: all
	@command -v clang >/dev/null || { echo "installing clang"; $(call APT,clang); }
	$(MAKE) FUZZ=1 CC=clang build/fuzz/harness
	$(B)/espalier tests/fuzz/run.lua build/fuzz/harness build/fuzz/corpus $(FUZZ_RUNS) $(FUZZ_TARGETS)

build/fuzz/harness: tests/fuzz/harness.c build/fuzz/libespalier.so build/fuzz/libespalier-hdf5.so
	$(CC) $(ALL_CFLAGS) $(HOST_CFLAGS) -fsanitize=fuzzer -o $@ $< -Lbuild/fuzz -lespalier -Wl,-rpath,'$$ORIGIN' -Wl,-E $(HOST_LIBS) -lm

bench: all
	$(B)/espalier tests/bench/run.lua python=$(BENCH_PYTHON)

install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib $(DESTDIR)$(PREFIX)/include $(DESTDIR)$(PREFIX)/share/espalier
	install -m 755 $(B)/espalier $(DESTDIR)$(PREFIX)/bin/
	install -m 644 $(B)/libespalier.so $(B)/libespalier-hdf5.so $(DESTDIR)$(PREFIX)/lib/
	install -m 644 core/espalier.h $(DESTDIR)$(PREFIX)/include/
	cp -R lua recipes $(DESTDIR)$(PREFIX)/share/espalier/

clean:
	rm -rf build
