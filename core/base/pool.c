/* One pool of threads for the whole process. The caller works too, so one thread means no pool at all.
 *
 * A worker joins a region while that is open, and the caller waits for those that joined: one that wakes too late is not waited for. Between regions
 * a worker looks out for the next one for a while before it sleeps, as waking it takes longer than a small operation does; so does the caller for the
 * last block of the others.
 *
 * Each thread has a run of neighbouring blocks of its own, so that it reads memory in order and the same part of it from one operation to the next;
 * when its own are done it takes over from others.
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

enum { MOST_THREADS = 256, LOOKS = 64 };

/* How long a thread looks out before it sleeps, in seconds: twice as long as it worked last, as what it saves is a part of that, and at most longer
 * than Lua needs from one operation to the next. */
static double patience(double worked)
{
    return worked < 50e-6 ? 2 * worked : 100e-6;
}

static atomic_int stop_asked;

void esp_interrupt(void) { atomic_store(&stop_asked, 1); }
void esp_interrupt_clear(void) { atomic_store(&stop_asked, 0); }
int esp_interrupted(void) { return atomic_load(&stop_asked); }

/* The blocks of one thread that nobody has begun; on a cache line of its own. */
typedef struct share {
    _Alignas(64) atomic_llong next;
    int64_t end;
} share;

static struct {
    pthread_mutex_t caller;            /* one parallel region at a time */
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    int threads;                       /* settled number; 0: not yet */
    int started;
    atomic_ullong region;              /* number of the latest region, written under the lock */
    int open;                          /* it may still be joined */
    int asleep;                        /* workers that wait for `work` */
    atomic_int busy;                   /* workers inside it, written under the lock */
    esp_task *task;
    void *context;
    share shares[MOST_THREADS];        /* of the caller, then of the workers */
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

static void cut_into_shares(int64_t blocks)
{
    for (int t = 0; t < pool.threads; t++) {
        pool.shares[t].end = blocks * (t + 1) / pool.threads;
        atomic_store(&pool.shares[t].next, blocks * t / pool.threads);
    }
}

static void run_share(share *s)
{
    while (atomic_load_explicit(&s->next, memory_order_relaxed) < s->end) {
        int64_t b = atomic_fetch_add(&s->next, 1);
        if (b >= s->end || atomic_load(&pool.failed)) return;
        int code = atomic_load(&stop_asked) ? ESP_ESTOP : pool.task(pool.context, b);
        if (code != ESP_OK) note_failure(code);
    }
}

static void run_blocks(int own)
{
    inside = 1;
    for (int k = 0; k < pool.threads; k++) run_share(&pool.shares[(own + k) % pool.threads]);
    inside = 0;
}

static inline void pause_a_little(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Looks out for a region after the one that was seen. */
static void await_region(uint64_t seen, double until)
{
    do {
        for (int i = 0; i < LOOKS; i++) {
            if (atomic_load_explicit(&pool.region, memory_order_relaxed) != seen) return;
            pause_a_little();
        }
    } while (esp_clock() < until);
}

static void await_others(double until)
{
    do {
        for (int i = 0; i < LOOKS; i++) {
            if (atomic_load_explicit(&pool.busy, memory_order_relaxed) == 0) return;
            pause_a_little();
        }
    } while (esp_clock() < until);
}

static void *worker(void *own)
{
    uint64_t seen = 0;
    double until = 0;
    for (;;) {
        await_region(seen, until);
        pthread_mutex_lock(&pool.lock);
        while (pool.region == seen) {
            pool.asleep++;
            pthread_cond_wait(&pool.work, &pool.lock);
            pool.asleep--;
        }
        seen = pool.region;
        if (pool.open) {
            pool.busy++;
            pthread_mutex_unlock(&pool.lock);
            double start = esp_clock();
            run_blocks((int)(intptr_t)own);
            until = esp_clock();
            until += patience(until - start);
            pthread_mutex_lock(&pool.lock);
            if (--pool.busy == 0) pthread_cond_signal(&pool.done);
        }
        pthread_mutex_unlock(&pool.lock);
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
        if (pthread_create(&thread, &detached, worker, (void *)(intptr_t)n) != 0) break;
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
        pool.code = ESP_OK;
        cut_into_shares(blocks);
        atomic_store(&pool.failed, 0);
        pool.open = 1;
        pool.region++;
        if (pool.asleep) pthread_cond_broadcast(&pool.work);
    }
    pthread_mutex_unlock(&pool.lock);
    int code;
    if (alone) {
        code = run_serially(blocks, task, context);
    } else {
        double start = esp_clock();
        run_blocks(0);
        pthread_mutex_lock(&pool.lock);
        pool.open = 0;
        pthread_mutex_unlock(&pool.lock);
        double now = esp_clock();
        await_others(now + patience(now - start));
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
