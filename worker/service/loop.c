#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "service/loop_internal.h"

/* Between looks at what the lower tiers have done, while they may do something. */
#define POLL_NS (20 * NOSA_NS_PER_MS)

/* Between publishings of the runs' states while steps are computed. */
#define STATES_NS (20 * NOSA_NS_PER_MS)

/* Running requests that get no step for so long are made room for: what lies in the first tier
 * alone, as the last blocks of paused ones do, takes it from them though block ids are left. */
#define TIGHT_NS (40 * NOSA_NS_PER_MS)

/* Those that get none for so long cannot go on together. */
#define STALL_NS (10 * NOSA_NS_PER_S)

#define READER_TOKENS_MAX NOSA_RUN_TOKENS_WAITING_MAX

/* ---- words ------------------------------------------------------------------------------------
 */

static void push(struct nosa_loop *loop, enum nosa_loop_word word, struct nosa_run *run)
{
    const struct nosa_loop_input input = {word, run};
    if (run)
        nosa_run_retain(run);
    enum nosa_status status = nosa_queue_try_push(loop->inputs, &input);
    NOSA_ASSERT(status == NOSA_OK || status == NOSA_CANCELLED); /* room for all there can be */
    if (status != NOSA_OK && run)
        nosa_run_release(run);
}

void nosa_loop_submit(struct nosa_loop *loop, struct nosa_run *run)
{
    pthread_mutex_lock(&loop->mutex);
    run->listed = true;
    run->previous = loop->newest;
    run->next = NULL;
    *(loop->newest ? &loop->newest->next : &loop->oldest) = run;
    loop->newest = run;
    nosa_run_retain(run); /* until it is closed */
    pthread_mutex_unlock(&loop->mutex);
    push(loop, NOSA_LOOP_SUBMIT, run);
}

void nosa_loop_cancel(struct nosa_loop *loop, struct nosa_run *run)
{
    push(loop, NOSA_LOOP_CANCEL, run);
}

void nosa_loop_read(struct nosa_loop *loop, struct nosa_run *run)
{
    if (!atomic_exchange(&run->wake_queued, true))
        push(loop, NOSA_LOOP_READ, run);
}

void nosa_loop_wake(struct nosa_loop *loop)
{
    if (!atomic_exchange(&loop->wake_queued, true))
        push(loop, NOSA_LOOP_WAKE, NULL);
}

void nosa_loop_unlist(struct nosa_loop *loop, struct nosa_run *run)
{
    pthread_mutex_lock(&loop->mutex);
    NOSA_ASSERT(run->listed);
    run->listed = false;
    *(run->previous ? &run->previous->next : &loop->oldest) = run->next;
    *(run->next ? &run->next->previous : &loop->newest) = run->previous;
    pthread_mutex_unlock(&loop->mutex);
}

bool nosa_loop_cancel_id(struct nosa_loop *loop, const char *id)
{
    bool found = false;
    pthread_mutex_lock(&loop->mutex);
    for (struct nosa_run *run = loop->oldest; run; run = run->next)
        if (strcmp(run->id, id) == 0 && !atomic_exchange(&run->cancel_queued, true)) {
            push(loop, NOSA_LOOP_CANCEL, run);
            found = true;
        }
    pthread_mutex_unlock(&loop->mutex);
    return found;
}

void nosa_loop_visit(struct nosa_loop *loop, void (*visit)(void *context, const struct nosa_run *),
                     void *context)
{
    pthread_mutex_lock(&loop->mutex);
    for (const struct nosa_run *run = loop->oldest; run; run = run->next)
        visit(context, run);
    pthread_mutex_unlock(&loop->mutex);
}

void nosa_loop_load(struct nosa_loop *loop, struct nosa_loop_load *out)
{
    pthread_mutex_lock(&loop->mutex);
    *out = loop->load;
    pthread_mutex_unlock(&loop->mutex);
}

/* ---- the thread --------------------------------------------------------------------------------
 */

static void take_input(struct nosa_loop *loop, const struct nosa_loop_input *input)
{
    struct nosa_run *run = input->run;
    switch (input->word) {
    case NOSA_LOOP_SUBMIT: nosa_loop_take(loop, run); break;
    case NOSA_LOOP_CANCEL:
        run->engine.cancel_asked = true;
        if (run->engine.submitted)
            nosa_scheduler_end(loop->scheduler, run->engine.scheduler_id,
                               NOSA_SCHEDULER_END_CANCELLED);
        break;
    case NOSA_LOOP_READ:
        atomic_store(&run->wake_queued, false);
        if (run->engine.submitted)
            nosa_loop_note_reader(loop, run);
        break;
    case NOSA_LOOP_WAKE: atomic_store(&loop->wake_queued, false); break;
    }
    if (run)
        nosa_run_release(run);
}

static void take_inputs(struct nosa_loop *loop)
{
    struct nosa_loop_input input;
    while (nosa_queue_try_pop(loop->inputs, &input) == NOSA_OK)
        take_input(loop, &input);
}

void nosa_loop_break(struct nosa_loop *loop, const struct nosa_error *error)
{
    if (loop->broken)
        return;
    loop->broken = true;
    nosa_log(NOSA_LOG_ERROR, "worker", "the engine cannot go on: %s", error->text);
    nosa_gate_fail(loop->options.gate, error);
}

/* Runs that are still inside when a drain's time is over go on elsewhere. */
static uint64_t let_go(struct nosa_loop *loop)
{
    struct nosa_gate_view view;
    nosa_gate_view(loop->options.gate, &view);
    if (view.let_go_ns > nosa_monotonic_ns())
        return view.let_go_ns;
    for (int32_t i = 0; i < loop->n_open; i++)
        nosa_scheduler_end(loop->scheduler, loop->open[i]->engine.scheduler_id,
                           NOSA_SCHEDULER_END_MOVED);
    return NOSA_GATE_NEVER;
}

/* Blocks of KV that the first tier and the host hold together: ids may be more, since a block needs
 * its records somewhere. With NVMe the tail of one long sequence may lie there. */
static int32_t capacity(const struct nosa_engine_info *info)
{
    int32_t context = (info->context_max + 63) / 64;
    int32_t working = info->attention == NOSA_ATTENTION_FULL ? NOSA_ATTENTION_RUN_BLOCKS
                                                             : (int32_t)info->config->sparse.topk;
    if (info->kv_slots >= info->kv_blocks)
        return info->kv_blocks;
    working = working < context ? working : context;
    int32_t kept = info->kv_slots - working + info->kv_images;
    kept = kept > context ? kept : context;
    return kept < info->kv_blocks ? kept : info->kv_blocks;
}

void nosa_loop_store(const struct nosa_loop *loop, bool for_step,
                     struct nosa_scheduler_store *store)
{
    struct nosa_kv_store_counters kv;
    nosa_engine_kv_counters(loop->options.engine, &kv);
    int32_t available = loop->capacity - kv.blocks_used;
    int32_t at_once = nosa_engine_blocks_available(loop->options.engine);
    int32_t held = kv.blocks_used < kv.images_total ? kv.blocks_used : kv.images_total;
    int32_t lower = kv.images_total - held - loop->suspended_blocks;
    if (for_step && at_once < available)
        available = at_once;
    *store = (struct nosa_scheduler_store){
        .blocks_available = available > 0 ? available : 0,
        .lower_blocks_available = lower > 0 ? lower : 0,
    };
}

bool nosa_loop_is_stalled(const struct nosa_loop *loop)
{
    return loop->now.scheduler.running > 0 && loop->n_loading == 0 &&
           nosa_monotonic_ns() - loop->progress_ns >= TIGHT_NS;
}

static void publish_states(struct nosa_loop *loop)
{
    for (int32_t i = 0; i < loop->n_open; i++) {
        struct nosa_scheduler_info info;
        struct nosa_run *run = loop->open[i];
        nosa_scheduler_info(loop->scheduler, run->engine.scheduler_id, &info);
        atomic_store(&run->state, info.state);
        atomic_store(&run->output_tokens, (unsigned)run->engine.n_output);
    }
}

static void publish(struct nosa_loop *loop, bool idle)
{
    struct nosa_worker_metrics *metrics = loop->options.metrics;
    struct nosa_loop_load *now = &loop->now;
    nosa_scheduler_counters(loop->scheduler, &now->scheduler);
    nosa_engine_kv_counters(loop->options.engine, &now->kv);
    nosa_engine_kv_traffic(loop->options.engine, &now->traffic);
    for (int tier = 0; tier < NOSA_METRIC_TIERS; tier++)
        now->hits[tier] = nosa_counter_value(metrics->hits[tier]);
    pthread_mutex_lock(&loop->mutex);
    loop->load = *now;
    pthread_mutex_unlock(&loop->mutex);
    nosa_gauge_set(metrics->running, now->scheduler.running);
    nosa_gauge_set(metrics->waiting, now->scheduler.queued + now->scheduler.loading +
                                         now->scheduler.ready + now->scheduler.suspended);
    nosa_gauge_set(metrics->suspended, now->scheduler.suspended);
    nosa_counter_add(metrics->suspends, now->scheduler.suspends - loop->seen.suspends);
    nosa_counter_add(metrics->drops, now->scheduler.drops - loop->seen.drops);
    nosa_counter_add(metrics->decode_stalls,
                     now->scheduler.decode_stalls - loop->seen.decode_stalls);
    loop->seen = now->scheduler;
    nosa_worker_metrics_set_kv(metrics, loop->info, &now->kv, &now->traffic);
    uint64_t now_ns = nosa_monotonic_ns();
    if (idle || now_ns - loop->states_ns >= STATES_NS) {
        publish_states(loop);
        loop->states_ns = now_ns;
    }
}

/* Moves the lower tiers on, which steps do otherwise. */
static void poll_engine(struct nosa_loop *loop)
{
    struct nosa_error error = {0};
    if (loop->broken || loop->info->kv_images == 0)
        return;
    if (nosa_engine_poll(loop->options.engine, loop->n_loading > 0 ? 2 : 0, &error) != NOSA_OK)
        nosa_loop_break(loop, &error);
}

/* Sleeps until a word comes or something is due. */
static void wait_for_input(struct nosa_loop *loop, uint64_t due_ns)
{
    struct nosa_loop_input input;
    uint64_t wake_ns = nosa_scheduler_wake_ns(loop->scheduler);
    wake_ns = wake_ns < due_ns ? wake_ns : due_ns;
    /* With KV in lower tiers something may have become possible that no word tells of. */
    if ((loop->info->nvme_directory || (loop->n_open > 0 && loop->info->kv_images > 0)) &&
        !loop->broken) {
        uint64_t poll_ns = nosa_monotonic_ns() + (loop->n_loading > 0 ? 0 : POLL_NS);
        wake_ns = wake_ns < poll_ns ? wake_ns : poll_ns;
    }
    if (nosa_queue_pop(loop->inputs, &input, wake_ns) == NOSA_OK)
        take_input(loop, &input);
}

/* Requests that run and get no blocks for their next tokens, however long they wait: the tiers are
 * smaller than was counted on. Better one of them ends with a clear word than all wait. */
static void break_stall(struct nosa_loop *loop)
{
    struct nosa_run *last = NULL;
    struct nosa_error error = {0};
    uint64_t now_ns = nosa_monotonic_ns();
    if (loop->now.scheduler.running == 0 || loop->n_loading > 0)
        loop->progress_ns = now_ns;
    if (now_ns - loop->progress_ns < STALL_NS)
        return;
    loop->progress_ns = now_ns;
    for (int32_t i = 0; i < loop->n_open; i++)
        if (loop->open[i]->engine.session &&
            (!last || loop->open[i]->arrival_ns > last->arrival_ns))
            last = loop->open[i];
    if (!last)
        return;
    nosa_error_set(&error, NOSA_RESOURCE_EXHAUSTED,
                   "the KV tiers have no room for its next tokens beside %d others",
                   loop->n_open - 1);
    nosa_log(NOSA_LOG_WARN, "worker", "request %s ends: %s", last->id, error.text);
    nosa_loop_fail(loop, last, &error);
}

static void *run_thread(void *context)
{
    struct nosa_loop *loop = context;
    while (!atomic_load(&loop->stopping)) {
        take_inputs(loop);
        uint64_t due_ns = let_go(loop);
        if (loop->n_loading > 0)
            nosa_loop_look_at_loading(loop);
        int32_t n_actions = nosa_loop_arrange(loop);
        bool worked = nosa_loop_step(loop) || n_actions > 0;
        publish(loop, !worked);
        if (worked) {
            loop->progress_ns = nosa_monotonic_ns();
            continue;
        }
        poll_engine(loop);
        break_stall(loop);
        wait_for_input(loop, due_ns);
    }
    return NULL;
}

/* ---- life --------------------------------------------------------------------------------------
 */

/* Leading blocks that both have: a hash names all that is before it. */
static int32_t common_blocks(const struct nosa_run *a, const struct nosa_run *b, int32_t most)
{
    int32_t same = 0, end = most;
    while (same < end) {
        int32_t middle = (same + end + 1) / 2;
        if (a->hashes[middle - 1] == b->hashes[middle - 1])
            same = middle;
        else
            end = middle - 1;
    }
    return same;
}

static int32_t least(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

/* Blocks of its prefix that open sessions hold; its last token is computed in any case. */
static int32_t shared_blocks(const struct nosa_loop *loop, const struct nosa_run *run)
{
    int32_t shared = 0, own = (run->engine.n_tokens - 1) / NOSA_DIGEST_BLOCK_TOKENS;
    own = least(own, (int32_t)run->n_hashes);
    for (int32_t i = 0; i < loop->n_open; i++) {
        const struct nosa_run *other = loop->open[i];
        struct nosa_session *session = other->engine.session;
        if (other == run || !session || other->engine.loading || nosa_session_suspended(session))
            continue;
        int32_t held = nosa_session_computed(session) / NOSA_DIGEST_BLOCK_TOKENS;
        int32_t most = least(least(held, (int32_t)other->n_hashes), own);
        if (most > shared)
            most = common_blocks(run, other, most);
        shared = most > shared ? most : shared;
    }
    return shared;
}

/* Asked for those that could be let in. A suspended one brings its own blocks back. */
static void probe(void *context, uint64_t tag, struct nosa_scheduler_prefix *out)
{
    const struct nosa_loop *loop = context;
    const struct nosa_run *run = nosa_loop_run_of(tag);
    size_t known = nosa_digest_known(loop->options.digest, run->hashes, run->n_hashes);
    out->known_tokens = (int32_t)(known * NOSA_DIGEST_BLOCK_TOKENS);
    if (!run->engine.session)
        out->shared_blocks = shared_blocks(loop, run);
}

static enum nosa_status create_scheduler(struct nosa_loop *loop, struct nosa_error *error)
{
    const struct nosa_loop_options *options = &loop->options;
    const struct nosa_engine_info *info = loop->info;
    const struct nosa_scheduler_options scheduler = {
        .queue_max = options->queue_max,
        .sequences_max = options->sequences_max,
        .batch_max = options->batch_max,
        .step_tokens_max = options->step_tokens_max,
        .prefill_chunk_max = options->prefill_chunk,
        .context_max = info->context_max,
        .blocks_total = loop->capacity,
        .lower_blocks_total = info->kv_images,
        .slots = info->kv_slots < info->kv_blocks ? info->kv_slots : 0,
        .working_set_guess = info->attention == NOSA_ATTENTION_FULL
                                 ? (info->context_max + 63) / 64
                                 : (int32_t)info->config->sparse.topk,
        .run_steps_min = 16,
        .reader_tokens_max = READER_TOKENS_MAX,
        .priority_max = 16,
        .ageing_ns = 5 * NOSA_NS_PER_S,
        .prefix_wait_ns = 30 * NOSA_NS_PER_S,
        .probe = probe,
        .probe_context = loop,
    };
    return nosa_scheduler_create(&scheduler, &loop->scheduler, error);
}

enum nosa_status nosa_loop_create(struct nosa_loop **out, const struct nosa_loop_options *options,
                                  struct nosa_error *error)
{
    *out = NULL;
    struct nosa_loop *loop = calloc(1, sizeof *loop);
    if (!loop)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the engine's thread");
    loop->options = *options;
    loop->info = nosa_engine_info(options->engine);
    loop->capacity = capacity(loop->info);
    loop->open_max = options->queue_max + options->batch_max + options->sequences_max;
    pthread_mutex_init(&loop->mutex, NULL);
    enum nosa_status status = create_scheduler(loop, error);
    /* Of each run: its coming, its going twice, its reader; and wakes. */
    if (status == NOSA_OK)
        status = nosa_queue_create(&loop->inputs, 4 * (size_t)options->calls_max + 16,
                                   sizeof(struct nosa_loop_input), error);
    loop->open = calloc((size_t)loop->open_max, sizeof *loop->open);
    loop->items = calloc((size_t)options->batch_max, sizeof *loop->items);
    loop->results = calloc((size_t)options->batch_max, sizeof *loop->results);
    if (status == NOSA_OK && (!loop->open || !loop->items || !loop->results))
        status =
            nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for %d requests", loop->open_max);
    if (status != NOSA_OK) {
        nosa_loop_free(loop);
        return status;
    }
    publish(loop, true);
    *out = loop;
    return NOSA_OK;
}

enum nosa_status nosa_loop_start(struct nosa_loop *loop, struct nosa_error *error)
{
    if (pthread_create(&loop->thread, NULL, run_thread, loop) != 0)
        return nosa_error_set(error, NOSA_IO_ERROR, "the engine's thread cannot be started");
    loop->thread_started = true;
    return NOSA_OK;
}

void nosa_loop_stop(struct nosa_loop *loop)
{
    if (!loop->thread_started)
        return;
    atomic_store(&loop->stopping, true);
    nosa_loop_wake(loop);
    pthread_join(loop->thread, NULL);
    loop->thread_started = false;
    NOSA_ASSERT(loop->n_open == 0);
    take_inputs(loop); /* late words of runs that have ended */
}

void nosa_loop_free(struct nosa_loop *loop)
{
    if (!loop)
        return;
    nosa_loop_stop(loop);
    if (loop->inputs) {
        nosa_queue_close(loop->inputs);
        take_inputs(loop);
    }
    nosa_queue_free(loop->inputs);
    nosa_scheduler_destroy(loop->scheduler);
    free(loop->results);
    free(loop->items);
    free(loop->open);
    pthread_mutex_destroy(&loop->mutex);
    free(loop);
}
