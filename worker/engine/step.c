#include "engine/engine_internal.h"

#include <string.h>

#include "base/clock.h"

/* Steps of so many tokens say how fast prompts are computed. */
#define COMPUTE_ROWS 64

/* Steps over which the records that a session selects are counted as its working set. */
#define WINDOW_STEPS 8

/* How long a step waits for blocks to reach NVMe when it has no place else. */
#define PLACE_WAIT_MS 10000

static enum nosa_status check_items(struct nosa_engine *engine, struct nosa_step_item *items,
                                    int32_t n_items, struct nosa_error *error)
{
    if (n_items < 1 || n_items > engine->info.sessions_max)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "a step of %d sessions; at most %d",
                              n_items, engine->info.sessions_max);
    int64_t rows = 0, traced = 0;
    for (int32_t i = 0; i < n_items; i++) {
        struct nosa_session *session = items[i].session;
        NOSA_ASSERT(session->engine == engine);
        int32_t left = nosa_session_length(session) - nosa_session_computed(session);
        if (items[i].n_tokens < 1 || items[i].n_tokens > left)
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                  "item %d asks for %d tokens of a session that has %d to compute",
                                  i, items[i].n_tokens, left);
        if (!nosa_session_ready(session))
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                  "item %d is a session whose prefix is being read", i);
        if (nosa_kv_sequence_suspended(session->sequence))
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "item %d is a suspended session",
                                  i);
        if (session->step_mark >= 0)
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                  "items %d and %d of a step are the same session",
                                  session->step_mark, i);
        session->step_mark = i;
        rows += items[i].n_tokens;
        if (session->trace.row)
            traced += nosa_step_trace_count(&session->trace, nosa_session_computed(session),
                                            items[i].n_tokens);
    }
    if (engine->info.attention != NOSA_ATTENTION_FULL && traced > engine->trace.rows_max)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "a step that traces the selection of %lld rows; at most %d",
                              (long long)traced, engine->trace.rows_max);
    if (rows > engine->info.rows_max)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "a step of %lld tokens; at most %d",
                              (long long)rows, engine->info.rows_max);
    return NOSA_OK;
}

/* While blocks are on their way out of the first tier, waits for place: nothing else gives it. */
static enum nosa_status wait_for_place(struct nosa_engine *engine, int64_t needed,
                                       struct nosa_error *error)
{
    uint64_t end = nosa_monotonic_ns() + PLACE_WAIT_MS * NOSA_NS_PER_MS;
    while (engine->extents && needed > nosa_engine_blocks_available(engine) &&
           needed <= engine->info.kv_slots && nosa_kv_store_unsaved(engine->store) > 0 &&
           nosa_monotonic_ns() < end)
        NOSA_TRY(nosa_engine_poll(engine, 10, error));
    return NOSA_OK;
}

/* All blocks of the step, or none. *n_blocks becomes those of its longest sequence. */
static enum nosa_status reserve_blocks(struct nosa_engine *engine, struct nosa_step_item *items,
                                       int32_t n_items, int32_t *n_blocks, struct nosa_error *error)
{
    int64_t needed = 0;
    for (int32_t i = 0; i < n_items; i++)
        needed += nosa_session_blocks_needed(items[i].session, items[i].n_tokens);
    NOSA_TRY(wait_for_place(engine, needed, error));
    int32_t available = nosa_engine_blocks_available(engine);
    if (needed > available)
        return nosa_error_set(error, NOSA_RESOURCE_EXHAUSTED,
                              "a step of %d sessions needs %lld KV blocks; %d of %d are free",
                              n_items, (long long)needed, available, engine->info.kv_blocks);
    for (int32_t i = 0; i < n_items; i++) {
        struct nosa_session *session = items[i].session;
        int32_t end = nosa_session_computed(session) + items[i].n_tokens;
        NOSA_TRY(nosa_kv_sequence_reserve(session->sequence, end, error));
        int32_t blocks = (end + NOSA_BLOCK_TOKENS - 1) / NOSA_BLOCK_TOKENS;
        *n_blocks = blocks > *n_blocks ? blocks : *n_blocks;
    }
    return NOSA_OK;
}

/* Rows whose next token is known are scored. */
static void plan_scores(struct nosa_step_plan *plan, const struct nosa_session *session,
                        int32_t row_first, int32_t first, int32_t count)
{
    const uint32_t *tokens = nosa_session_tokens(session);
    for (int32_t i = 0; i < count && first + i + 1 < session->score_count; i++) {
        plan->score_row[plan->n_score] = row_first + i;
        plan->score_token[plan->n_score++] = (int32_t)tokens[first + i + 1];
    }
}

static void plan_sample(struct nosa_step_plan *plan, const struct nosa_session *session)
{
    nosa_step_plan_add_sample(plan, &(struct nosa_plan_sample){
                                        .sampling = &session->sampling,
                                        .tokens = nosa_session_tokens(session),
                                        .n_tokens = nosa_session_length(session),
                                        .prompt_length = session->prompt_length,
                                        .n_top = session->n_top,
                                        .keep = session->logits != NULL,
                                    });
}

static void trace_rows(struct nosa_engine *engine, const struct nosa_session *session,
                       int32_t row_first, int32_t first, int32_t count)
{
    if (engine->trace.rows_max > 0 && session->trace.row)
        nosa_step_trace_add(&engine->trace, &session->trace, row_first, first, count);
}

static int32_t least(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static void plan_step(struct nosa_engine *engine, struct nosa_step_item *items, int32_t n_items,
                      int32_t n_blocks)
{
    struct nosa_step_plan *plan = &engine->plan;
    int32_t n_rows = 0;
    for (int32_t i = 0; i < n_items; i++)
        n_rows += items[i].n_tokens;
    nosa_step_plan_begin(plan, n_rows, n_items, n_blocks);
    if (plan->tiers && plan->tiers->moves.cold)
        plan->tile_rows_max = least(NOSA_BLOCK_TOKENS, plan->tiers->moves.rows_per_pass);
    for (int32_t i = 0; i < n_items; i++) {
        struct nosa_session *session = items[i].session;
        int32_t first = nosa_session_computed(session);
        int32_t held;
        const int32_t *blocks = nosa_kv_sequence_blocks(session->sequence, &held);
        int32_t row_first = plan->n_rows;
        nosa_step_plan_add(plan, nosa_session_tokens(session), first, items[i].n_tokens, blocks,
                           held);
        trace_rows(engine, session, row_first, first, items[i].n_tokens);
        items[i].sampled = false;
        items[i].appended = false;
        items[i].recompute = false;
        if (session->scores)
            plan_scores(plan, session, row_first, first, items[i].n_tokens);
        else if (first + items[i].n_tokens == nosa_session_length(session)) {
            items[i].sampled = true;
            plan_sample(plan, session);
        }
    }
}

/* Records that positions [first, end) attend over: every visible block, or topk of them. */
static uint64_t count_records(const struct nosa_engine_info *info, int32_t first, int32_t end)
{
    uint64_t blocks = 0;
    int32_t most =
        info->attention == NOSA_ATTENTION_FULL ? INT32_MAX : (int32_t)info->config->sparse.topk;
    for (int32_t position = first; position < end; position++) {
        int32_t visible = position / NOSA_BLOCK_TOKENS + 1;
        blocks += (uint64_t)(visible < most ? visible : most);
    }
    return blocks * info->config->n_layers * info->config->n_kv_heads;
}

/* Adds what the ranks counted of item `index`; replicas of a KV head count once. */
static void add_hits(struct nosa_engine *engine, struct nosa_session *session, int32_t index)
{
    const struct nosa_step_tiers *tiers = &engine->tiers;
    for (int32_t i = 0; i < tiers->n_ranks; i++) {
        if (nosa_rank_group_rank(engine->group, i)->options.shard.attend_first != 0)
            continue;
        const struct nosa_kv_hits *hits = &tiers->hits[(size_t)i * (size_t)tiers->seqs_max + index];
        session->kv.first_hits += hits->first;
        session->kv.host_hits += hits->host + hits->in_place;
        session->kv.nvme_hits += hits->absent;
        session->kv.prefetched_used += hits->prefetched_used;
        session->window_records += hits->fresh;
        engine->traffic.host_to_first_bytes += hits->host * engine->info.kv_record_bytes;
    }
}

/* The session's first step in a window ends the one that it was in before. */
static void enter_window(const struct nosa_engine *engine, struct nosa_session *session)
{
    if (session->window == engine->window)
        return;
    session->working_records = session->window_records;
    session->window_records = 0;
    session->window = engine->window;
}

static void count_hits(struct nosa_engine *engine, struct nosa_session *session, int32_t index,
                       int32_t first, int32_t end)
{
    if (engine->sizes.n_slots) {
        enter_window(engine, session);
        add_hits(engine, session, index);
    } else {
        session->kv.first_hits += count_records(&engine->info, first, end);
    }
}

static void take_results(struct nosa_engine *engine, struct nosa_step_item *items, int32_t n_items)
{
    const struct nosa_step_plan *plan = &engine->plan;
    size_t vocab = engine->info.config->vocab;
    int32_t sample = 0;
    int32_t score = 0;
    for (int32_t i = 0; i < n_items; i++) {
        struct nosa_session *session = items[i].session;
        int32_t first = nosa_session_computed(session);
        int32_t end = first + items[i].n_tokens;
        if (session->scores)
            for (int32_t at = first + 1; at <= end && at < session->score_count; at++)
                session->scores[at] = plan->score[score++];
        items[i].recompute = nosa_kv_sequence_take_loss(session->sequence);
        if (items[i].recompute) {
            sample += items[i].sampled;
            items[i].sampled = false;
            continue;
        }
        nosa_kv_sequence_commit(session->sequence, end);
        count_hits(engine, session, i, first, end);
        if (!items[i].sampled)
            continue;
        if (session->logits)
            memcpy(session->logits, plan->logits + (size_t)sample * vocab, sizeof(float) * vocab);
        items[i].result = plan->result[sample++];
        items[i].appended =
            nosa_kv_sequence_append(session->sequence, (uint32_t)items[i].result.token, NULL) ==
            NOSA_OK;
    }
    NOSA_ASSERT(sample == plan->n_sample && score == plan->n_score);
}

const float *nosa_engine_score_logits(const struct nosa_engine *engine, int32_t *n_rows)
{
    *n_rows = engine->plan.score_logits ? engine->plan.n_score : 0;
    return engine->plan.score_logits;
}

int32_t nosa_engine_blocks_available(const struct nosa_engine *engine)
{
    return nosa_kv_store_blocks_available(engine->store);
}

static void clear_marks(struct nosa_step_item *items, int32_t n_items)
{
    for (int32_t i = 0; i < n_items; i++)
        items[i].session->step_mark = -1;
}

/* The tiers' part of the step that is about to be handed out. */
static void begin_tiers(struct nosa_engine *engine, struct nosa_step_item *items, int32_t n_items)
{
    if (!engine->host.images)
        return;
    for (int32_t i = 0; i < n_items; i++)
        engine->kv_items[i] = (struct nosa_kv_step_item){
            .sequence = items[i].session->sequence,
            .end = nosa_session_computed(items[i].session) + items[i].n_tokens};
    nosa_kv_store_begin_step(engine->store, engine->kv_items, n_items, &engine->tiers.moves);
    if (n_items > 0 && engine->window_steps++ % WINDOW_STEPS == 0) {
        engine->window++;
        engine->tiers.fresh_since = engine->tiers.moves.step;
    }
    engine->plan.tiers = &engine->tiers;
}

static void finish_tiers(struct nosa_engine *engine)
{
    if (!engine->host.images)
        return;
    const struct nosa_kv_moves *moves = &engine->tiers.moves;
    struct nosa_engine_kv_traffic *traffic = &engine->traffic;
    nosa_kv_store_end_step(engine->store);
    if (engine->plan.n_rows >= COMPUTE_ROWS)
        nosa_kv_store_report_compute(engine->store, engine->plan.n_rows,
                                     nosa_monotonic_ns() - engine->step_start_ns);
    traffic->first_to_host_bytes += engine->host.image_bytes * (size_t)moves->n_saves;
    if (!engine->sizes.n_slots) {
        traffic->host_to_first_bytes += engine->host.image_bytes * (size_t)moves->n_loads;
        return;
    }
    for (int32_t i = 0; i < engine->tiers.n_ranks; i++) {
        traffic->prefetched_records += engine->tiers.fetched[i];
        traffic->host_to_first_bytes += engine->tiers.fetched[i] * engine->info.kv_record_bytes;
    }
}

/* What goes to NVMe is chosen by use. */
static enum nosa_status report_use(struct nosa_engine *engine, struct nosa_error *error)
{
    if (!engine->host.images || !nosa_kv_store_wants_use(engine->store))
        return NOSA_OK;
    for (int32_t i = 0; i < nosa_rank_group_count(engine->group); i++)
        NOSA_TRY(nosa_rank_tiers_report_use(nosa_rank_group_member(engine->group, i),
                                            &engine->tiers, error));
    return NOSA_OK;
}

enum nosa_status nosa_engine_step_moves(struct nosa_engine *engine, struct nosa_error *error)
{
    NOSA_ASSERT(!engine->items);
    if (engine->broken)
        return nosa_error_set(error, NOSA_INTERNAL, "an earlier step of this engine failed");
    if (!engine->host.images)
        return NOSA_OK;
    nosa_step_plan_begin_moves(&engine->plan);
    begin_tiers(engine, NULL, 0);
    nosa_rank_group_begin(engine->group, &engine->plan);
    enum nosa_status status = nosa_rank_group_finish(engine->group, error);
    finish_tiers(engine);
    engine->broken = status != NOSA_OK;
    return status;
}

enum nosa_status nosa_engine_step_begin(struct nosa_engine *engine, struct nosa_step_item *items,
                                        int32_t n_items, struct nosa_error *error)
{
    if (engine->broken)
        return nosa_error_set(error, NOSA_INTERNAL, "an earlier step of this engine failed");
    if (engine->items)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "a step is in flight already");
    int32_t n_blocks = 1;
    enum nosa_status status = check_items(engine, items, n_items, error);
    if (status == NOSA_OK)
        status = reserve_blocks(engine, items, n_items, &n_blocks, error);
    if (status != NOSA_OK) {
        clear_marks(items, n_items);
        return status;
    }
    engine->step_start_ns = nosa_monotonic_ns();
    begin_tiers(engine, items, n_items);
    plan_step(engine, items, n_items, n_blocks);
    engine->plan.trace = &engine->trace;
    engine->plan.score_logits =
        engine->plan.n_score <= engine->score_rows_kept ? engine->score_logits : NULL;
    engine->items = items;
    engine->n_items = n_items;
    nosa_rank_group_begin(engine->group, &engine->plan);
    return NOSA_OK;
}

enum nosa_status nosa_engine_step_finish(struct nosa_engine *engine, struct nosa_error *error)
{
    if (!engine->items)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "no step is in flight");
    enum nosa_status status = nosa_rank_group_finish(engine->group, error);
    if (status == NOSA_OK) {
        finish_tiers(engine);
        take_results(engine, engine->items, engine->n_items);
        status = report_use(engine, error);
    }
    clear_marks(engine->items, engine->n_items);
    if (status == NOSA_OK)
        nosa_step_trace_deliver(&engine->trace, engine->group);
    engine->items = NULL;
    engine->broken = status != NOSA_OK;
    return status;
}

enum nosa_status nosa_engine_step(struct nosa_engine *engine, struct nosa_step_item *items,
                                  int32_t n_items, struct nosa_error *error)
{
    NOSA_TRY(nosa_engine_step_begin(engine, items, n_items, error));
    return nosa_engine_step_finish(engine, error);
}
