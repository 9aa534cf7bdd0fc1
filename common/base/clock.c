#include "base/clock.h"

#include <stddef.h>
#include <time.h>

static uint64_t read_clock(clockid_t id)
{
    struct timespec now;
    clock_gettime(id, &now);
    return (uint64_t)now.tv_sec * NOSA_NS_PER_S + (uint64_t)now.tv_nsec;
}

static uint64_t system_monotonic_ns(void *context)
{
    (void)context;
    return read_clock(CLOCK_MONOTONIC);
}

static uint64_t system_wall_ns(void *context)
{
    (void)context;
    return read_clock(CLOCK_REALTIME);
}

const struct nosa_clock *nosa_clock_system(void)
{
    static const struct nosa_clock system_clock = {system_monotonic_ns, system_wall_ns, NULL};
    return &system_clock;
}

uint64_t nosa_clock_monotonic_ns(const struct nosa_clock *clock)
{
    return clock->monotonic_ns(clock->context);
}

uint64_t nosa_clock_wall_ns(const struct nosa_clock *clock)
{
    return clock->wall_ns(clock->context);
}

uint64_t nosa_monotonic_ns(void)
{
    return read_clock(CLOCK_MONOTONIC);
}

double nosa_seconds_between(uint64_t start_ns, uint64_t end_ns)
{
    if (end_ns < start_ns)
        return -(double)(start_ns - end_ns) / (double)NOSA_NS_PER_S;
    return (double)(end_ns - start_ns) / (double)NOSA_NS_PER_S;
}

static uint64_t manual_monotonic_ns(void *context)
{
    struct nosa_manual_clock *manual = context;
    pthread_mutex_lock(&manual->mutex);
    uint64_t now = manual->monotonic_ns;
    pthread_mutex_unlock(&manual->mutex);
    return now;
}

static uint64_t manual_wall_ns(void *context)
{
    struct nosa_manual_clock *manual = context;
    pthread_mutex_lock(&manual->mutex);
    uint64_t now = manual->wall_ns;
    pthread_mutex_unlock(&manual->mutex);
    return now;
}

void nosa_manual_clock_init(struct nosa_manual_clock *manual, uint64_t monotonic_ns,
                            uint64_t wall_ns)
{
    manual->clock = (struct nosa_clock){manual_monotonic_ns, manual_wall_ns, manual};
    pthread_mutex_init(&manual->mutex, NULL);
    manual->monotonic_ns = monotonic_ns;
    manual->wall_ns = wall_ns;
}

void nosa_manual_clock_advance(struct nosa_manual_clock *manual, uint64_t ns)
{
    pthread_mutex_lock(&manual->mutex);
    manual->monotonic_ns += ns;
    manual->wall_ns += ns;
    pthread_mutex_unlock(&manual->mutex);
}

void nosa_manual_clock_destroy(struct nosa_manual_clock *manual)
{
    pthread_mutex_destroy(&manual->mutex);
}
