/* One pool of threads for the whole process. The caller works too, so one thread means no pool at all.
 *
 * SIGINT and SIGPROF are blocked in the workers: signals belong to the thread that runs Lua. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "base.h"

enum { MOST_THREADS = 256 };

static atomic_int stop_asked;

void esp_interrupt(void) { atomic_store(&stop_asked, 1); }
void esp_interrupt_clear(void) { atomic_store(&stop_asked, 0); }
int esp_interrupted(void) { return atomic_load(&stop_asked); }

static struct {
    pthread_mutex_t caller;            /* one parallel region at a time */
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    int threads;                       /* settled number; 0: not yet */
    int started;
    uint64_t region;                   /* number of the region that runs */
    int busy;                          /* workers inside it */
    esp_task *task;
    void *context;
    int64_t blocks;
    atomic_llong next;
    atomic_int failed;
    int code;
    char text[1024];
} pool = {.caller = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER,
          .work = PTHREAD_COND_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};

static _Thread_local int inside;       /* this thread runs a task */

static int cores_allowed(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    return n < 1 ? 1 : n > MOST_THREADS ? MOST_THREADS : n;
}

static void settle_locked(void)
{
    if (pool.threads) return;
    const char *asked = getenv("ESPALIER_THREADS");
    int n = asked ? atoi(asked) : 0;
    pool.threads = n >= 1 && n <= MOST_THREADS ? n : cores_allowed();
}

int esp_threads_set(int n)
{
    if (n < 1 || n > MOST_THREADS) return esp_fail(ESP_EARG, "threads: %d asked for, want 1 to %d", n, (int)MOST_THREADS);
    pthread_mutex_lock(&pool.lock);
    int late = pool.started && pool.threads != n;
    if (!late) pool.threads = n;
    int have = pool.threads;
    pthread_mutex_unlock(&pool.lock);
    if (late) return esp_fail(ESP_EARG, "threads: %d asked for, but %d already run; the number is settled by the first operation", n, have);
    return ESP_OK;
}

int esp_threads(void)
{
    pthread_mutex_lock(&pool.lock);
    settle_locked();
    int n = pool.threads;
    pthread_mutex_unlock(&pool.lock);
    return n;
}

static void note_failure(int code)
{
    int expected = 0;
    if (atomic_compare_exchange_strong(&pool.failed, &expected, 1)) {
        pool.code = code;
        snprintf(pool.text, sizeof pool.text, "%s", code == ESP_ESTOP ? "interrupted" : esp_error());
    }
}

static void run_blocks(void)
{
    inside = 1;
    for (;;) {
        int64_t b = atomic_fetch_add(&pool.next, 1);
        if (b >= pool.blocks || atomic_load(&pool.failed)) break;
        int code = atomic_load(&stop_asked) ? ESP_ESTOP : pool.task(pool.context, b);
        if (code != ESP_OK) note_failure(code);
    }
    inside = 0;
}

static void *worker(void *unused)
{
    (void)unused;
    uint64_t seen = 0;
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        while (pool.region == seen) pthread_cond_wait(&pool.work, &pool.lock);
        seen = pool.region;
        pthread_mutex_unlock(&pool.lock);
        run_blocks();
        pthread_mutex_lock(&pool.lock);
        if (--pool.busy == 0) pthread_cond_signal(&pool.done);
    }
    return NULL;
}

/* Starts the workers; with pool.lock held. Fewer threads than wished change the speed and nothing else. */
static void start_locked(void)
{
    settle_locked();
    sigset_t blocked, before;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGINT);
    sigaddset(&blocked, SIGPROF);
    pthread_sigmask(SIG_BLOCK, &blocked, &before);
    int n = 1;
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    while (n < pool.threads) {
        pthread_t thread;
        if (pthread_create(&thread, &detached, worker, NULL) != 0) break;
        n++;
    }
    pthread_attr_destroy(&detached);
    pool.threads = n;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pool.started = 1;
}

static int run_serially(int64_t blocks, esp_task *task, void *context)
{
    for (int64_t b = 0; b < blocks; b++) {
        if (atomic_load(&stop_asked)) return esp_fail(ESP_ESTOP, "interrupted");
        int code = task(context, b);
        if (code != ESP_OK) return code;
    }
    return ESP_OK;
}

int esp_parallel(int64_t blocks, esp_task *task, void *context)
{
    int64_t losses = esp_bus_losses();
    if (blocks <= 1 || inside) {
        int code = run_serially(blocks, task, context);
        return code == ESP_OK && losses != esp_bus_losses() ? esp_bus_fail() : code;
    }
    pthread_mutex_lock(&pool.caller);
    pthread_mutex_lock(&pool.lock);
    if (!pool.started) start_locked();
    int alone = pool.threads == 1;
    if (!alone) {
        pool.task = task;
        pool.context = context;
        pool.blocks = blocks;
        pool.code = ESP_OK;
        atomic_store(&pool.next, 0);
        atomic_store(&pool.failed, 0);
        pool.busy = pool.threads - 1;
        pool.region++;
        pthread_cond_broadcast(&pool.work);
    }
    pthread_mutex_unlock(&pool.lock);
    int code;
    if (alone) {
        code = run_serially(blocks, task, context);
    } else {
        run_blocks();
        pthread_mutex_lock(&pool.lock);
        while (pool.busy > 0) pthread_cond_wait(&pool.done, &pool.lock);
        pthread_mutex_unlock(&pool.lock);
        code = atomic_load(&pool.failed) ? esp_fail(pool.code, "%s", pool.text) : ESP_OK;
    }
    pthread_mutex_unlock(&pool.caller);
    return code == ESP_OK && losses != esp_bus_losses() ? esp_bus_fail() : code;
}

void *esp_scratch(int64_t bytes)
{
    static _Thread_local void *block;
    static _Thread_local int64_t have;
    if (bytes > have) {
        esp_free(block);
        have = 0;
        block = esp_malloc(bytes);
        if (block) have = bytes;
    }
    return block;
}
