/*
 * The ranks of an engine and the threads that run them.
 *
 * A single rank is created and run by the engine's own thread. Several ranks have a thread each; a
 * step is handed to all of them, and it is over when the last one is done with it. A rank that
 * fails aborts the communicator, so that none waits for it for ever.
 */
#ifndef NOSA_ENGINE_RANK_GROUP_H
#define NOSA_ENGINE_RANK_GROUP_H

#include "engine/backend.h"
#include "engine/rank.h"

struct nosa_rank_group;

/* Creates devices, communicator and ranks; `options` is the same for all but shard, device, comm
 * and progress (rank 0 reports). Blocks until all weights are packed. */
enum nosa_status nosa_rank_group_create(const struct nosa_rank_options *options, int32_t n_ranks,
                                        const struct nosa_device_spec *spec,
                                        struct nosa_rank_group **out, struct nosa_error *error);
void nosa_rank_group_destroy(struct nosa_rank_group *group);

/* Has every rank enqueue a step, one at a time: nosa_rank_group_finish comes before the next, and
 * before the plan changes. Does not wait for the device. */
void nosa_rank_group_begin(struct nosa_rank_group *group, struct nosa_step_plan *plan);

/* Waits until the step is over on every rank; returns its first error. Blocks. */
enum nosa_status nosa_rank_group_finish(struct nosa_rank_group *group, struct nosa_error *error);

int32_t nosa_rank_group_count(const struct nosa_rank_group *group);

/* Before the first step, while the ranks rest. */
struct nosa_rank *nosa_rank_group_member(struct nosa_rank_group *group, int32_t rank);

/* For sizes, and for the device of rank 0. */
const struct nosa_rank *nosa_rank_group_rank(const struct nosa_rank_group *group, int32_t rank);

#endif
