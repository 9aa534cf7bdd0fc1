/*
 * The engine's thread: it alone touches scheduler, engine and KV. Others hand it words through one
 * bounded queue, and it hands tokens to the runs' rings.
 *
 *     take what came ─> scheduler arranges ─> actions on sessions ─> a step ─> tokens delivered
 *
 * With nothing to compute it sleeps until a word comes or the scheduler wants to be woken.
 */
#ifndef NOSA_SERVICE_LOOP_H
#define NOSA_SERVICE_LOOP_H

#include "engine/engine.h"
#include "scheduler/scheduler.h"
#include "service/digest.h"
#include "service/gate.h"
#include "service/metrics.h"
#include "service/run.h"

struct nosa_loop; /* opaque */

/* Everything is borrowed until nosa_loop_free. */
struct nosa_loop_options {
    struct nosa_engine *engine; /* opened for sequences_max sessions */
    struct nosa_gate *gate;
    struct nosa_digest *digest;
    struct nosa_worker_metrics *metrics;
    int32_t queue_max;
    int32_t batch_max;
    int32_t sequences_max;
    int32_t prefill_chunk;
    int32_t step_tokens_max;
    uint32_t calls_max; /* streams that can exist at a time */
    uint64_t slow_ns;   /* a request that takes longer gets a line in the log; 0: none */
};

/* A worker's state of a moment. */
struct nosa_loop_load {
    struct nosa_scheduler_counters scheduler;
    struct nosa_kv_store_counters kv;
    struct nosa_engine_kv_traffic traffic;
    uint64_t hits[3]; /* records read, by the tier they were found in: first, host, NVMe */
    double prefill_tokens_per_s; /* of the last steps; 0: not known, as the next */
    double decode_tokens_per_s;
    double host_tokens_per_s; /* of prefixes brought up from the host tier */
    double nvme_tokens_per_s; /* of prefixes read back */
};

enum nosa_status nosa_loop_create(struct nosa_loop **loop, const struct nosa_loop_options *options,
                                  struct nosa_error *error);
/* Starts the thread. */
enum nosa_status nosa_loop_start(struct nosa_loop *loop, struct nosa_error *error);
/* Ends the thread; no run may be inside (the gate is empty). */
void nosa_loop_stop(struct nosa_loop *loop);
/* NULL is allowed. */
void nosa_loop_free(struct nosa_loop *loop);

/* ---- words for the thread; any thread ----------------------------------------------------------
 */

/* A run that entered the gate; it leaves the gate when it ends. Takes a reference. */
void nosa_loop_submit(struct nosa_loop *loop, struct nosa_run *run);
/* The run's caller is gone. */
void nosa_loop_cancel(struct nosa_loop *loop, struct nosa_run *run);
/* The run's reader has read. */
void nosa_loop_read(struct nosa_loop *loop, struct nosa_run *run);
/* The gate has changed. */
void nosa_loop_wake(struct nosa_loop *loop);

/* ---- for people; any thread ---------------------------------------------------------------------
 */

/* Ends every run of this id; false when there is none. */
bool nosa_loop_cancel_id(struct nosa_loop *loop, const char *id);
/* Calls `visit` for each run, oldest first, under the list's lock. */
void nosa_loop_visit(struct nosa_loop *loop, void (*visit)(void *context, const struct nosa_run *),
                     void *context);
void nosa_loop_load(struct nosa_loop *loop, struct nosa_loop_load *out);

#endif
