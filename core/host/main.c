/* The espalier program: starts LuaJIT, finds the Lua side, and turns Ctrl-C into a stop. What it then does is lua/espalier/cli/. */
#define _GNU_SOURCE
#include <lauxlib.h>
#include <lua.h>
#include <luajit.h>
#include <lualib.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#include <editline/readline.h>

#include "../espalier.h"

static lua_State *state;

/* ---- Ctrl-C: the first asks kernels and loops to stop, the second leaves at once ---- */

/* While a training loop runs, the first Ctrl-C is only noted: the loop ends its step, saves, and stops by itself. */
static volatile sig_atomic_t gentle, asked, watching;

static void stop_hook(lua_State *L, lua_Debug *where)
{
    (void)where;
    lua_sethook(L, NULL, 0, 0);
    watching = 0;
    luaJIT_profile_stop(state);
    luaL_error(L, "interrupted");
}

/* Compiled code never looks at debug hooks. A signal of the profiler makes it leave for the interpreter, which calls this, and does. */
static void on_profile(void *data, lua_State *L, int samples, int vmstate)
{
    (void)data, (void)samples, (void)vmstate;
    if (watching && esp_interrupted()) lua_sethook(L, stop_hook, LUA_MASKCALL | LUA_MASKRET | LUA_MASKCOUNT, 1);
}

static void on_interrupt(int number)
{
    if (asked || esp_interrupted()) _exit(128 + number);
    if (gentle) {
        asked = 1;
        return;
    }
    esp_interrupt();
    if (watching) raise(SIGPROF);
    lua_sethook(state, stop_hook, LUA_MASKCALL | LUA_MASKRET | LUA_MASKCOUNT, 1);
}

/* watch(on): looks for an interrupt while Lua runs.
 *
 * The profiler is on, so that compiled loops hold its check ("l": without it they hold none), but its timer is not: a tick that falls into
 * LuaJIT's own change of its dispatch table leaves the two at odds, and a loop then enters and leaves its code for ever. The signal comes
 * from on_interrupt alone. */
static int watch(lua_State *L)
{
    if (lua_toboolean(L, 1)) {
        struct itimerval never = {{0, 0}, {0, 0}};
        esp_interrupt_clear();
        luaJIT_profile_start(L, "li1000", on_profile, NULL);
        setitimer(ITIMER_PROF, &never, NULL);
        watching = 1;
    } else {
        watching = 0;
        luaJIT_profile_stop(L);
        lua_sethook(L, NULL, 0, 0);
    }
    return 0;
}

/* stopped(): a call of the core saw the interrupt first and is about to raise it. One Ctrl-C is one error: a second one, from the hook, would
 * strike whoever cleans up after the first. */
static int stopped(lua_State *L)
{
    watching = 0;
    lua_sethook(L, NULL, 0, 0);
    return 0;
}

/* gentle(on): an interrupt is noted for stop_asked() and stops nothing. */
static int set_gentle(lua_State *L)
{
    gentle = lua_toboolean(L, 1);
    asked = 0;
    return 0;
}

static int stop_asked(lua_State *L)
{
    lua_pushboolean(L, asked);
    return 1;
}

/* ---- line editing ---- */

/* The Lua function that completes: called with the text so far and the word's start, gives a list of words. */
static char **complete(const char *word, int start, int end)
{
    rl_attempted_completion_over = 1;
    lua_getfield(state, LUA_REGISTRYINDEX, "espalier.complete");
    if (!lua_isfunction(state, -1)) {
        lua_pop(state, 1);
        return NULL;
    }
    lua_pushlstring(state, rl_line_buffer, (size_t)end);
    lua_pushinteger(state, start);
    lua_pushstring(state, word);
    if (lua_pcall(state, 3, 1, 0) != 0 || !lua_istable(state, -1)) {
        lua_pop(state, 1);
        return NULL;
    }
    int n = (int)lua_objlen(state, -1);
    char **list = n ? calloc((size_t)n + 2, sizeof *list) : NULL;
    for (int i = 0; list && i < n; i++) {
        lua_rawgeti(state, -1, i + 1);
        list[i + 1] = strdup(lua_tostring(state, -1));
        lua_pop(state, 1);
    }
    /* The first entry is what all have in common. */
    if (list) {
        size_t common = strlen(list[1]);
        for (int i = 2; i <= n; i++) {
            size_t k = 0;
            while (k < common && list[i][k] == list[1][k]) k++;
            common = k;
        }
        list[0] = strndup(list[1], common);
    }
    lua_pop(state, 1);
    return list;
}

/* readline(prompt) -> line or nil at the end. */
static int read_line(lua_State *L)
{
    char *line = readline(luaL_checkstring(L, 1));
    if (!line) return 0;
    if (*line) add_history(line);
    lua_pushstring(L, line);
    free(line);
    return 1;
}

/* history(path [, write]): reads or writes the history file. */
static int history(lua_State *L)
{
    const char *path = luaL_checkstring(L, 1);
    if (lua_toboolean(L, 2)) write_history(path);
    else read_history(path);
    return 0;
}

static int set_completer(lua_State *L)
{
    lua_settop(L, 1);
    lua_setfield(L, LUA_REGISTRYINDEX, "espalier.complete");
    rl_attempted_completion_function = complete;
    return 0;
}

/* ---- start ---- */

/* Folder of the Lua side: beside the build in the source tree, under share/ when installed. */
static int find_lua(char *out, size_t size)
{
    char exe[4096];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    const char *given = getenv("ESPALIER_LUA");
    if (given) {
        snprintf(out, size, "%s", given);
        return 1;
    }
    if (n < 0) return 0;
    exe[n] = 0;
    *strrchr(exe, '/') = 0;
    static const char *const places[] = {"/../lua", "/../../lua", "/../share/espalier/lua"};
    for (int i = 0; i < 3; i++) {
        char probe[4200];
        snprintf(probe, sizeof probe, "%s%s/espalier/init.lua", exe, places[i]);
        if (access(probe, R_OK) == 0) {
            snprintf(out, size, "%s%s", exe, places[i]);
            return 1;
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    char folder[4200], code[9000];
    if (!find_lua(folder, sizeof folder)) {
        fprintf(stderr, "espalier: the Lua side (espalier/init.lua) is not found beside the program; set ESPALIER_LUA to its folder\n");
        return 1;
    }
    state = luaL_newstate();
    if (!state) {
        fprintf(stderr, "espalier: no memory for LuaJIT\n");
        return 1;
    }
    luaL_openlibs(state);
    static const luaL_Reg functions[] = {{"watch", watch}, {"gentle", set_gentle}, {"stop_asked", stop_asked}, {"stopped", stopped}, {"readline", read_line},
                                        
                                         {"history", history}, {"completer", set_completer}, {NULL, NULL}};
    lua_newtable(state);
    luaL_register(state, NULL, functions);
    lua_setfield(state, LUA_REGISTRYINDEX, "espalier.host");
    lua_getfield(state, LUA_GLOBALSINDEX, "package");
    lua_getfield(state, -1, "loaded");
    lua_getfield(state, LUA_REGISTRYINDEX, "espalier.host");
    lua_setfield(state, -2, "espalier.host");
    lua_pop(state, 2);
    struct sigaction action = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &action, NULL);
    /* Writes past a file size limit answer with an error instead of a signal. */
    signal(SIGXFSZ, SIG_IGN);
    snprintf(code, sizeof code, "package.path = [[%s/?.lua;%s/?/init.lua;]] .. package.path return require('espalier.cli').main(...)", folder, folder);
    int bad = luaL_loadstring(state, code);
    for (int i = 1; !bad && i < argc; i++) lua_pushstring(state, argv[i]);
    if (!bad) bad = lua_pcall(state, argc - 1, 1, 0);
    if (bad) {
        fprintf(stderr, "espalier: %s\n", lua_tostring(state, -1) ? lua_tostring(state, -1) : "unknown error");
        return 1;
    }
    fflush(stdout);
    /* The process ends here; taking the state apart first would only cost time. */
    _exit((int)lua_tointeger(state, -1));
}
