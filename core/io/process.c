/* Child processes, and what a program wants to know of its terminal. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "io.h"

extern char **environ;

int esp_process_start(int *pid, const char *const *argv, const char *output)
{
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    posix_spawn_file_actions_init(&files);
    posix_spawnattr_init(&attributes);
    posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
    if (output) {
        posix_spawn_file_actions_addopen(&files, 1, output, O_WRONLY | O_CREAT | O_APPEND, 0666);
        posix_spawn_file_actions_adddup2(&files, 1, 2);
    }
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    pid_t child;
    int bad = posix_spawn(&child, argv[0], &files, &attributes, (char *const *)argv, environ);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attributes);
    if (bad) {
        errno = bad;
        return esp_io_fail("cannot start", argv[0]);
    }
    *pid = child;
    return ESP_OK;
}

int esp_process_poll(int pid, int *running, int *code)
{
    int status;
    pid_t done = waitpid(pid, &status, WNOHANG);
    if (done < 0) return esp_fail(ESP_EIO, "process %d: %s", pid, strerror(errno));
    *running = done == 0;
    *code = done == 0 ? 0 : WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    return ESP_OK;
}

int esp_process_signal(int pid, int number)
{
    return kill(pid, number) == 0 ? ESP_OK : esp_fail(ESP_EIO, "process %d: %s", pid, strerror(errno));
}

int esp_process_id(void) { return (int)getpid(); }

int esp_sleep(double seconds)
{
    double end = esp_clock() + seconds;
    for (;;) {
        if (esp_interrupted()) return esp_fail(ESP_ESTOP, "interrupted");
        double rest = end - esp_clock();
        if (rest <= 0) return ESP_OK;
        double nap = rest < 0.05 ? rest : 0.05;
        struct timespec t = {0, (long)(nap * 1e9)};
        nanosleep(&t, NULL);
    }
}

int esp_is_terminal(int fd) { return isatty(fd); }

int esp_terminal_width(void)
{
    struct winsize w;
    return ioctl(1, TIOCGWINSZ, &w) == 0 && w.ws_col > 0 ? w.ws_col : 80;
}
