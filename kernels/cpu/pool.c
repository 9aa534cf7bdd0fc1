/*
 * The thread pool of the CPU backend: fork-join regions of independent items.
 *
 * A decoded token is a few hundred regions of a few microseconds to a few hundred, so a region must
 * cost about a microsecond when every thread has a core, and must not wait for a thread that has
 * none. Items are therefore handed out one by one from a shared counter: a thread that is not
 * running takes nothing, and the owner alone can finish a region. Threads that wait spin for a
 * short time and then sleep in the kernel, which gives their core to whoever holds an item. The
 * owner sleeps in short naps, because a scheduler looks for a waiting thread to move to a core when
 * that core falls idle, and at first passes over one that ran a moment ago. A thread whose spinning
 * does not pay off spins less.
 *
 * The counter holds the number of items beside the next one, so a thread that comes late to a
 * region and early to the next always judges a claim by the region it belongs to. A region cannot
 * end while a claimed item is not reported in `done`, hence a claim makes `task` and `context` safe
 * to read.
 *
 * A thread that spins has nothing to do and memory is idle: it fetches into its second-level cache
 * what it will probably read first in a later region (nosa_cpu_pool_want), a few lines between two
 * looks at the word that it waits for.
 */
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "cpu/cpu_internal.h"

#define SPIN_NS_MAX 50000  /* longest spin before sleeping */
#define SPIN_NS_MIN 1000   /* what an unsuccessful spinner falls back to */
#define NAP_NS      200000 /* longest single sleep of the owner in a region */
#define SPIN_PAUSES 16     /* pauses between two looks at the clock */
#define THREADS_MAX 1024
#define CACHE_LINE  64
#define WANT_STEP   256                 /* bytes that are fetched between two looks */
#define WANT_MAX    ((size_t)512 << 10) /* of one thread: leaves room in its second-level cache */

/* How one thread waits; owned by that thread. */
struct spinner {
    int32_t thread;
    int64_t limit_ns; /* how long it spins; 0: never */
    bool enabled;
    int64_t nap_ns; /* longest single sleep; 0: any */

    /* What is left to fetch of the wanted memory of that version. */
    uint32_t want_version;
    uintptr_t want_at, want_end;
};

struct nosa_cpu_pool {
    /* Fixed after init. */
    int32_t threads;
    int32_t workers_started;
    pthread_t *worker;             /* [threads - 1], owned */
    struct spinner worker_spinner; /* what every worker starts with */

    /* Owned by the caller of run(), read by threads that hold an item. */
    nosa_cpu_task task;
    void *context;
    struct spinner owner_spinner;

    /* Shared: n_items << 32 | next item, and the word that waiting workers watch. */
    _Alignas(CACHE_LINE) _Atomic uint64_t claim;
    _Atomic uint32_t epoch; /* one more per region; workers sleep on it */
    _Atomic bool stop;

    /* What a later region will stream. Written by the owner, the version last; a reader that mixes
     * two of them fetches memory that nobody needs. */
    _Atomic uint32_t want_version;
    _Atomic(const char *) want_data;
    _Atomic size_t want_unit_bytes;
    _Atomic int32_t want_units;

    /* Shared, written by workers. */
    _Alignas(CACHE_LINE) _Atomic uint32_t done; /* items reported; the owner sleeps on it */
    _Atomic int32_t owner_sleeps;               /* not 0 while the owner sleeps, or is about to */
    _Alignas(CACHE_LINE) _Atomic int32_t sleepers; /* at least the number of workers asleep */
    _Atomic int32_t next_index;
};

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

/* Sleeps until woken, unless *word is not `expected`; at most nap_ns if that is not 0. */
static void futex_sleep(_Atomic uint32_t *word, uint32_t expected, int64_t nap_ns)
{
    struct timespec nap = {.tv_nsec = nap_ns};
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, nap_ns > 0 ? &nap : NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, int32_t threads)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, threads, NULL, NULL, 0);
}

/* The units that the thread will take first, if threads come in the order of their numbers. */
static void find_wanted(const struct nosa_cpu_pool *pool, struct spinner *spinner, uint32_t version)
{
    int32_t units = atomic_load_explicit(&pool->want_units, memory_order_relaxed), first = 0;
    size_t unit_bytes = atomic_load_explicit(&pool->want_unit_bytes, memory_order_relaxed);
    for (int32_t i = 0; i < spinner->thread && first < units; i++)
        first += nosa_cpu_run_length(units - first, pool->threads);
    int32_t count = first < units ? nosa_cpu_run_length(units - first, pool->threads) : 0;
    size_t bytes = (size_t)count * unit_bytes;
    spinner->want_version = version;
    spinner->want_at = (uintptr_t)atomic_load_explicit(&pool->want_data, memory_order_relaxed);
    spinner->want_at += (size_t)first * unit_bytes;
    spinner->want_end = spinner->want_at + (bytes < WANT_MAX ? bytes : WANT_MAX);
}

/* Fetches some of what the thread wants; false if it has all. */
static inline bool fetch_wanted(const struct nosa_cpu_pool *pool, struct spinner *spinner)
{
    uint32_t version = atomic_load_explicit(&pool->want_version, memory_order_acquire);
    if (version != spinner->want_version)
        find_wanted(pool, spinner, version);
    if (spinner->want_at >= spinner->want_end)
        return false;
    for (int i = 0; i < WANT_STEP; i += CACHE_LINE)
        __builtin_prefetch((const char *)(spinner->want_at + (size_t)i), 0, 2);
    spinner->want_at += WANT_STEP;
    return true;
}

/* Spins while *word is `value`; false if the time ran out. */
static bool spin_while(const struct nosa_cpu_pool *pool, struct spinner *spinner,
                       _Atomic uint32_t *word, uint32_t value)
{
    if (spinner->limit_ns == 0)
        return atomic_load_explicit(word, memory_order_acquire) != value;
    int64_t start = 0;
    for (;;) {
        for (int i = 0; i < SPIN_PAUSES; i++) {
            if (atomic_load_explicit(word, memory_order_acquire) != value)
                return true;
            if (!fetch_wanted(pool, spinner))
                relax();
        }
        int64_t now = now_ns();
        if (start == 0)
            start = now;
        else if (now - start >= spinner->limit_ns)
            return false;
    }
}

/* Waits until *word is no longer `value`. `count` is raised before each sleep, so that the
 * other side knows whom to wake. */
static void wait_change(const struct nosa_cpu_pool *pool, struct spinner *spinner,
                        _Atomic uint32_t *word, uint32_t value, _Atomic int32_t *count)
{
    if (spin_while(pool, spinner, word, value))
        return;
    int64_t start = now_ns();
    while (atomic_load(word) == value) {
        atomic_fetch_add(count, 1);
        futex_sleep(word, value, spinner->nap_ns);
    }
    if (!spinner->enabled)
        return;
    /* A longer spin would have caught what came soon after; what came late cost the spin for
     * nothing. */
    if (now_ns() - start < SPIN_NS_MAX)
        spinner->limit_ns = SPIN_NS_MAX;
    else
        spinner->limit_ns =
            spinner->limit_ns / 2 > SPIN_NS_MIN ? spinner->limit_ns / 2 : SPIN_NS_MIN;
}

/* Takes items until none is left. */
static void take_items(struct nosa_cpu_pool *pool, int32_t thread)
{
    uint32_t finished = 0;
    uint32_t n_items = 0;
    for (;;) {
        uint64_t claim = atomic_fetch_add(&pool->claim, 1);
        uint32_t item = (uint32_t)claim;
        if (item >= (uint32_t)(claim >> 32))
            break;
        n_items = (uint32_t)(claim >> 32);
        pool->task(pool->context, (int32_t)item, thread);
        finished++;
    }
    if (finished == 0)
        return;
    uint32_t before = atomic_fetch_add(&pool->done, finished);
    if (thread != 0 && before + finished == n_items && atomic_load(&pool->owner_sleeps))
        futex_wake(&pool->done, 1);
}

static void *worker_main(void *argument)
{
    struct nosa_cpu_pool *pool = argument;
    int32_t thread = 1 + atomic_fetch_add(&pool->next_index, 1);
    struct spinner spinner = pool->worker_spinner;
    spinner.thread = thread;
    for (;;) {
        uint32_t seen = atomic_load(&pool->epoch);
        if (atomic_load(&pool->stop))
            return NULL;
        take_items(pool, thread);
        wait_change(pool, &spinner, &pool->epoch, seen, &pool->sleepers);
    }
}

/* Tells the workers that something is new; wakes at most `threads` of those asleep. */
static void announce(struct nosa_cpu_pool *pool, int32_t threads)
{
    atomic_fetch_add(&pool->epoch, 1);
    int32_t asleep = atomic_load(&pool->sleepers);
    if (asleep <= 0)
        return;
    int32_t woken = asleep < threads ? asleep : threads;
    atomic_fetch_sub(&pool->sleepers, woken);
    futex_wake(&pool->epoch, woken);
}

void nosa_cpu_pool_run(struct nosa_cpu_pool *pool, int32_t n_items, nosa_cpu_task task,
                       void *context)
{
    NOSA_ASSERT(n_items >= 0);
    if (pool->threads == 1 || n_items <= 1) {
        for (int32_t item = 0; item < n_items; item++)
            task(context, item, 0);
        return;
    }
    pool->task = task;
    pool->context = context;
    atomic_store_explicit(&pool->done, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->claim, (uint64_t)n_items << 32, memory_order_release);
    announce(pool, n_items - 1);
    take_items(pool, 0);
    uint32_t done = atomic_load(&pool->done);
    while (done != (uint32_t)n_items) {
        wait_change(pool, &pool->owner_spinner, &pool->done, done, &pool->owner_sleeps);
        done = atomic_load(&pool->done);
    }
    if (atomic_load_explicit(&pool->owner_sleeps, memory_order_relaxed) != 0)
        atomic_store(&pool->owner_sleeps, 0);
}

void nosa_cpu_pool_want(struct nosa_cpu_pool *pool, const void *data, int32_t units,
                        size_t unit_bytes)
{
    atomic_store_explicit(&pool->want_data, (const char *)data, memory_order_relaxed);
    atomic_store_explicit(&pool->want_unit_bytes, unit_bytes, memory_order_relaxed);
    atomic_store_explicit(&pool->want_units, units, memory_order_relaxed);
    atomic_fetch_add_explicit(&pool->want_version, 1, memory_order_release);
}

/* Starts the workers with every signal blocked, so that signals reach the program's own threads. */
static enum nosa_status start_workers(struct nosa_cpu_pool *pool, struct nosa_error *error)
{
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failure = 0;
    while (failure == 0 && pool->workers_started < pool->threads - 1) {
        pthread_t *thread = &pool->worker[pool->workers_started];
        failure = pthread_create(thread, NULL, worker_main, pool);
        if (failure == 0)
            pool->workers_started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failure != 0)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "cannot start thread %d of %d: %s",
                              pool->workers_started + 2, pool->threads, strerror(failure));
    return NOSA_OK;
}

enum nosa_status nosa_cpu_pool_create(int32_t threads, struct nosa_cpu_pool **out,
                                      struct nosa_error *error)
{
    *out = NULL;
    if (threads < 1 || threads > THREADS_MAX)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "threads is %d; it must be 1 to %d",
                              threads, THREADS_MAX);
    struct nosa_cpu_pool *pool = aligned_alloc(CACHE_LINE, sizeof *pool);
    if (pool == NULL)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the thread pool");
    memset(pool, 0, sizeof *pool);
    pool->threads = threads;
    pool->owner_spinner.enabled = threads <= nosa_cpu_count();
    pool->owner_spinner.limit_ns = pool->owner_spinner.enabled ? SPIN_NS_MAX : 0;
    pool->worker_spinner = pool->owner_spinner;
    pool->owner_spinner.nap_ns = NAP_NS;
    enum nosa_status status = NOSA_OK;
    pool->worker = calloc((size_t)threads, sizeof *pool->worker);
    if (pool->worker == NULL)
        status = nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the thread pool");
    else
        status = start_workers(pool, error);
    if (status != NOSA_OK) {
        nosa_cpu_pool_destroy(pool);
        return status;
    }
    *out = pool;
    return NOSA_OK;
}

void nosa_cpu_pool_destroy(struct nosa_cpu_pool *pool)
{
    if (pool == NULL)
        return;
    atomic_store(&pool->stop, true);
    atomic_fetch_add(&pool->epoch, 1);
    futex_wake(&pool->epoch, INT_MAX);
    for (int32_t i = 0; i < pool->workers_started; i++)
        pthread_join(pool->worker[i], NULL);
    free(pool->worker);
    free(pool);
}

int32_t nosa_cpu_pool_threads(const struct nosa_cpu_pool *pool)
{
    return pool->threads;
}
