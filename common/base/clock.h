/*
 * Time behind an interface, so that tests can drive it. Code that waits or times out holds a
 * `const struct nosa_clock *`; code that only measures may call nosa_clock_system's readings
 * through nosa_monotonic_ns. Any thread.
 */
#ifndef NOSA_BASE_CLOCK_H
#define NOSA_BASE_CLOCK_H

#include <pthread.h>
#include <stdint.h>

#define NOSA_NS_PER_S  UINT64_C(1000000000)
#define NOSA_NS_PER_MS UINT64_C(1000000)
#define NOSA_NS_PER_US UINT64_C(1000)

struct nosa_clock {
    /* fixed after init */
    uint64_t (*monotonic_ns)(void *context); /* never goes back; its zero means nothing */
    uint64_t (*wall_ns)(void *context);      /* since 1970-01-01 UTC; may jump */
    void *context;                           /* borrowed by the clock */
};

/* The machine's clocks (CLOCK_MONOTONIC, CLOCK_REALTIME); never NULL, never freed. */
const struct nosa_clock *nosa_clock_system(void);

/* Readings of `clock`. */
uint64_t nosa_clock_monotonic_ns(const struct nosa_clock *clock);
uint64_t nosa_clock_wall_ns(const struct nosa_clock *clock);

/* The system's monotonic clock, for measurements. */
uint64_t nosa_monotonic_ns(void);

/* Seconds between two monotonic readings. */
double nosa_seconds_between(uint64_t start_ns, uint64_t end_ns);

/* A clock that stands still until it is told to move. */
struct nosa_manual_clock {
    struct nosa_clock clock; /* hand out &manual.clock */
    pthread_mutex_t mutex;
    /* under mutex */
    uint64_t monotonic_ns;
    uint64_t wall_ns;
};

void nosa_manual_clock_init(struct nosa_manual_clock *manual, uint64_t monotonic_ns,
                            uint64_t wall_ns);
/* Moves both readings forward. */
void nosa_manual_clock_advance(struct nosa_manual_clock *manual, uint64_t ns);
void nosa_manual_clock_destroy(struct nosa_manual_clock *manual);

#endif
