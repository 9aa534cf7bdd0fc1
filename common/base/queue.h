/*
 * A bounded queue of fixed-size items between threads: any number push, any number pop. The only
 * way in which threads of a program hand work to each other. Pushing never waits: full is a status,
 * so that the caller can refuse work at once. Memory is taken in create; push and pop allocate
 * nothing. Under one mutex, since an item is a whole request or step, not a byte.
 */
#ifndef NOSA_BASE_QUEUE_H
#define NOSA_BASE_QUEUE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define NOSA_QUEUE_WAIT_FOREVER UINT64_MAX

struct nosa_queue; /* opaque */

/* Makes a queue of at most `capacity` (at least 1) items of `item_size` (at least 1) bytes. */
enum nosa_status nosa_queue_create(struct nosa_queue **queue, size_t capacity, size_t item_size,
                                   struct nosa_error *error);

/* Frees the queue and what is left in it; no thread may be inside a call. NULL is allowed. */
void nosa_queue_free(struct nosa_queue *queue);

/* Copies an item in. NOSA_RESOURCE_EXHAUSTED: full; NOSA_CANCELLED: closed. Does not wait. */
enum nosa_status nosa_queue_try_push(struct nosa_queue *queue, const void *item);

/*
 * Copies the oldest item out. NOSA_UNAVAILABLE: empty for now; NOSA_CANCELLED: closed and empty,
 * so nothing will come. Does not wait.
 */
enum nosa_status nosa_queue_try_pop(struct nosa_queue *queue, void *item);

/*
 * As try_pop, but waits for an item until nosa_monotonic_ns() reaches `deadline_ns`
 * (NOSA_QUEUE_WAIT_FOREVER: without end). NOSA_DEADLINE_EXCEEDED: nothing came.
 */
enum nosa_status nosa_queue_pop(struct nosa_queue *queue, void *item, uint64_t deadline_ns);

/* Refuses pushes from now on and wakes who waits; what is inside can still be popped. */
void nosa_queue_close(struct nosa_queue *queue);

/* Items inside at this moment. */
size_t nosa_queue_count(struct nosa_queue *queue);

size_t nosa_queue_capacity(const struct nosa_queue *queue);

#endif
