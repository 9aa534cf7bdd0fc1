/*
 * The least worker that a scheduler test needs: it carries out actions at once (unless told to hold
 * moves back), computes rows, and keeps count of blocks. Every call checks nothing; the tests do.
 */
#ifndef NOSA_TESTS_UNIT_SCHEDULER_WORKER_DOUBLE_H
#define NOSA_TESTS_UNIT_SCHEDULER_WORKER_DOUBLE_H

#include <stdbool.h>
#include <stdint.h>

#include "scheduler/scheduler.h"

#define REQUESTS_MAX 128
#define MS           UINT64_C(1000000)

enum double_place { NOWHERE, OPENED, SAVED };

struct worker_double {
    struct nosa_scheduler_options options;
    struct nosa_scheduler *scheduler;
    uint64_t now_ns;
    bool hold_moves; /* OPEN, RESUME and SUSPEND are not answered */
    bool saves_fail;
    /* by tag */
    uint64_t ids[REQUESTS_MAX];
    enum double_place places[REQUESTS_MAX];
    int32_t working_sets[REQUESTS_MAX];                  /* reported with each row; 0: none */
    enum nosa_scheduler_end ends[REQUESTS_MAX];          /* reported with the next token */
    struct nosa_scheduler_prefix prefixes[REQUESTS_MAX]; /* what the probe answers */
    /* of the last arrange and step */
    struct nosa_scheduler_actions actions;
    struct nosa_scheduler_rows rows;
};

/* Options of a roomy worker: 4 in a batch, 8 sessions, steps of 256 tokens, chunks of 128, 64
 * blocks and 64 below, a context of 4096. Tests change them before worker_open. */
void worker_init(struct worker_double *worker);
void worker_open(struct worker_double *worker);
void worker_close(struct worker_double *worker);

/* Submits with priority 0 at now_ns unless the request says otherwise. */
enum nosa_status worker_submit(struct worker_double *worker, struct nosa_scheduler_request request);
/* The common case, which must succeed. */
void worker_add(struct worker_double *worker, uint64_t tag, int32_t known, int32_t max_new);

/* Arranges and carries out. */
void worker_arrange(struct worker_double *worker);
/* Chooses rows; then computes them. */
void worker_choose(struct worker_double *worker);
void worker_compute(struct worker_double *worker);
/* Arrange, rows, results; n times. */
void worker_steps(struct worker_double *worker, int n);

/* The action on `tag` of the last arrange, or NULL; the tokens of its row in the last step, or 0.
 */
const struct nosa_scheduler_action *worker_action(const struct worker_double *worker, uint64_t tag);
int32_t worker_row(const struct worker_double *worker, uint64_t tag);
struct nosa_scheduler_info worker_info(const struct worker_double *worker, uint64_t tag);

#endif
