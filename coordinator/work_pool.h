/*
 * A few threads for what must not hold up the threads of gRPC: encoding a long prompt, opening a
 * tokenizer. Bounded: a full pool refuses. Any thread submits.
 */
#ifndef NOSA_COORDINATOR_WORK_POOL_H
#define NOSA_COORDINATOR_WORK_POOL_H

#include <stddef.h>

#include "base/status.h"

struct nosa_work_pool; /* opaque */

typedef void (*nosa_work)(void *argument);

enum nosa_status nosa_work_pool_create(struct nosa_work_pool **pool, int threads,
                                       size_t waiting_max, struct nosa_error *error);

/* Runs work(argument) on one of the threads, later. NOSA_RESOURCE_EXHAUSTED: full, or ending. */
enum nosa_status nosa_work_pool_submit(struct nosa_work_pool *pool, nosa_work work, void *argument);

/* Runs what was submitted to its end and ends the threads; submits are refused from then on. */
void nosa_work_pool_stop(struct nosa_work_pool *pool);

/* Stops, and frees. NULL is allowed. */
void nosa_work_pool_free(struct nosa_work_pool *pool);

#endif
