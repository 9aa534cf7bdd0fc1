#include "worker_double.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static void probe(void *context, uint64_t tag, struct nosa_scheduler_prefix *out)
{
    *out = ((const struct worker_double *)context)->prefixes[tag];
}

void worker_init(struct worker_double *worker)
{
    memset(worker, 0, sizeof *worker);
    worker->now_ns = 1000 * MS;
    worker->options = (struct nosa_scheduler_options){
        .queue_max = 64,
        .sequences_max = 8,
        .batch_max = 4,
        .step_tokens_max = 256,
        .prefill_chunk_max = 128,
        .context_max = 4096,
        .blocks_total = 64,
        .lower_blocks_total = 64,
        .outsize_blocks = 16,
        .slots = 0,
        .working_set_guess = 8,
        .run_steps_min = 0,
        .reader_tokens_max = 1000,
        .priority_max = 10,
        .ageing_ns = 100 * MS,
        .prefix_wait_ns = 500 * MS,
        .probe = probe,
        .probe_context = worker,
    };
}

void worker_open(struct worker_double *worker)
{
    assert_int_equal(nosa_scheduler_create(&worker->options, &worker->scheduler, NULL), NOSA_OK);
}

void worker_close(struct worker_double *worker)
{
    nosa_scheduler_destroy(worker->scheduler);
}

enum nosa_status worker_submit(struct worker_double *worker, struct nosa_scheduler_request request)
{
    if (request.arrival_ns == 0)
        request.arrival_ns = worker->now_ns;
    if (request.deadline_ns == 0)
        request.deadline_ns = NOSA_SCHEDULER_NO_DEADLINE;
    return nosa_scheduler_submit(worker->scheduler, &request, &worker->ids[request.tag], NULL);
}

void worker_add(struct worker_double *worker, uint64_t tag, int32_t known, int32_t max_new)
{
    assert_int_equal(
        worker_submit(worker, (struct nosa_scheduler_request){.tag = tag,
                                                              .known_tokens = known,
                                                              .max_new_tokens = max_new}),
        NOSA_OK);
}

struct nosa_scheduler_info worker_info(const struct worker_double *worker, uint64_t tag)
{
    struct nosa_scheduler_info info;
    nosa_scheduler_info(worker->scheduler, worker->ids[tag], &info);
    return info;
}

static struct nosa_scheduler_store report(const struct worker_double *worker)
{
    struct nosa_scheduler_store store = {worker->options.blocks_total,
                                         worker->options.lower_blocks_total};
    for (uint64_t tag = 0; tag < REQUESTS_MAX; tag++) {
        if (worker->places[tag] == NOWHERE)
            continue;
        struct nosa_scheduler_info info = worker_info(worker, tag);
        int32_t blocks = (info.computed_tokens + 63) / 64, resident = blocks;
        if (info.outsize && resident > worker->options.outsize_blocks)
            resident = worker->options.outsize_blocks;
        store.blocks_available -= worker->places[tag] == OPENED ? resident : 0;
        store.lower_blocks_available -= worker->places[tag] == SAVED ? blocks : blocks - resident;
    }
    return store;
}

static void carry_out(struct worker_double *worker, const struct nosa_scheduler_action *action)
{
    enum double_place *place = &worker->places[action->tag];
    int32_t computed = worker_info(worker, action->tag).computed_tokens;

    switch (action->kind) {
    case NOSA_SCHEDULER_CLOSE:
    case NOSA_SCHEDULER_DROP: *place = NOWHERE; break;
    case NOSA_SCHEDULER_SUSPEND:
        if (worker->hold_moves)
            break;
        *place = worker->saves_fail ? OPENED : SAVED;
        nosa_scheduler_suspended(worker->scheduler, action->id, !worker->saves_fail);
        break;
    case NOSA_SCHEDULER_SPILL: break;
    case NOSA_SCHEDULER_OPEN:
    case NOSA_SCHEDULER_RESUME:
        *place = OPENED;
        if (!worker->hold_moves)
            nosa_scheduler_loaded(worker->scheduler, action->id, computed);
        break;
    }
}

void worker_arrange(struct worker_double *worker)
{
    struct nosa_scheduler_store store = report(worker);

    worker->actions = nosa_scheduler_arrange(worker->scheduler, worker->now_ns, &store);
    for (int32_t i = 0; i < worker->actions.n_actions; i++)
        carry_out(worker, &worker->actions.actions[i]);
}

void worker_choose(struct worker_double *worker)
{
    struct nosa_scheduler_store store = report(worker);
    worker->rows = nosa_scheduler_step(worker->scheduler, &store);
}

void worker_compute(struct worker_double *worker)
{
    struct nosa_scheduler_result results[REQUESTS_MAX];

    worker->now_ns += 10 * MS;
    for (int32_t i = 0; i < worker->rows.n_rows; i++) {
        const struct nosa_scheduler_row *row = &worker->rows.rows[i];
        struct nosa_scheduler_info info = worker_info(worker, row->tag);
        bool reached = info.computed_tokens + row->n_tokens == info.known_tokens;
        results[i] = (struct nosa_scheduler_result){
            .appended = reached && info.known_tokens < worker->options.context_max,
            .end = reached ? worker->ends[row->tag] : NOSA_SCHEDULER_END_NONE,
            .working_set = worker->working_sets[row->tag],
        };
    }
    nosa_scheduler_step_done(worker->scheduler, results, worker->rows.n_rows);
}

void worker_steps(struct worker_double *worker, int n)
{
    for (int i = 0; i < n; i++) {
        worker_arrange(worker);
        worker_choose(worker);
        worker_compute(worker);
    }
}

const struct nosa_scheduler_action *worker_action(const struct worker_double *worker, uint64_t tag)
{
    for (int32_t i = 0; i < worker->actions.n_actions; i++)
        if (worker->actions.actions[i].tag == tag)
            return &worker->actions.actions[i];
    return NULL;
}

int32_t worker_row(const struct worker_double *worker, uint64_t tag)
{
    for (int32_t i = 0; i < worker->rows.n_rows; i++)
        if (worker->rows.rows[i].tag == tag)
            return worker->rows.rows[i].n_tokens;
    return 0;
}
