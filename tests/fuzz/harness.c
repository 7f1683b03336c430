/* libFuzzer over every parser: an input becomes a file, and tests/fuzz/targets.lua opens it as a user would.
 *
 * A finding is whatever the sanitizers or the time limit report, and here: a Lua error that is no sentence of ours but a slip of the code, or
 * memory beyond eight times the input + 16 MiB. ESPALIER_FUZZ names the target, ESPALIER_FUZZ_FOLDER the folder in which the file is written. */
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <sanitizer/allocator_interface.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { SPARE = 16 << 20, TIMES = 8, COLLECT_EVERY = 64 };

static lua_State *L;
static char path[4096];
static atomic_llong live, peak;

/* ---- memory: malloc by the sanitizer's hooks, Lua's own by its count ---- */

static void on_malloc(const volatile void *pointer, size_t size)
{
    (void)pointer;
    long long now = atomic_fetch_add(&live, (long long)size) + (long long)size;
    if (now > atomic_load(&peak)) atomic_store(&peak, now);
}

static void on_free(const volatile void *pointer)
{
    if (pointer) atomic_fetch_sub(&live, (long long)__sanitizer_get_allocated_size(pointer));
}

static void finding(const char *what, const char *text)
{
    fprintf(stderr, "finding: %s: %s\n", what, text);
    abort();
}

/* ---- the target ---- */

static void must(int status)
{
    if (status != 0) finding("tests/fuzz/targets.lua", lua_tostring(L, -1));
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    const char *target = getenv("ESPALIER_FUZZ"), *folder = getenv("ESPALIER_FUZZ_FOLDER");
    if (!target || !folder) finding("ESPALIER_FUZZ, ESPALIER_FUZZ_FOLDER", "want the name of a target, and a folder to work in");
    L = luaL_newstate();
    luaL_openlibs(L);
    must(luaL_loadfile(L, "tests/fuzz/targets.lua") || lua_pcall(L, 0, 1, 0));
    lua_getfield(L, -1, target);
    if (!lua_istable(L, -1)) finding(target, "no such target in tests/fuzz/targets.lua");
    lua_getfield(L, -1, "file");
    const char *name = lua_tostring(L, -1);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    lua_pop(L, 1);
    lua_getfield(L, -1, "open");
    __sanitizer_install_malloc_and_free_hooks(on_malloc, on_free);
    return 0;
}

static void write_input(const uint8_t *data, size_t size)
{
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f) != 0) finding("cannot write", path);
}

/* A sentence of ours stands at the line that called (tests/fuzz/targets.lua); an error of Lua's own at a line of the library, or nowhere. */
static int is_slip(const char *text)
{
    return strncmp(text, "tests/fuzz/targets.lua:", 23) != 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int count;
    write_input(data, size);
    if (count++ % COLLECT_EVERY == 0) lua_gc(L, LUA_GCCOLLECT, 0);
    long long before = atomic_load(&live), kilobytes = lua_gc(L, LUA_GCCOUNT, 0);
    atomic_store(&peak, before);
    lua_pushvalue(L, -1);
    lua_pushstring(L, path);
    int failed = lua_pcall(L, 1, 0, 0);
    long long used = atomic_load(&peak) - before, grown = lua_gc(L, LUA_GCCOUNT, 0) - kilobytes;
    if (failed) {
        const char *text = lua_tostring(L, -1);
        if (!text || is_slip(text)) finding("not a sentence", text ? text : "no text");
        lua_pop(L, 1);
    }
    if (grown > 0) used += grown * 1024;
    if (used > TIMES * (long long)size + SPARE) {
        char text[128];
        snprintf(text, sizeof text, "%lld bytes for an input of %zu", used, size);
        finding("memory", text);
    }
    return 0;
}
