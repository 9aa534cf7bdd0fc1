#include "engine/tiers.h"

#include <string.h>

static size_t hits_bytes(const struct nosa_step_tiers *tiers)
{
    return sizeof *tiers->hits * (size_t)tiers->n_ranks * (size_t)tiers->seqs_max;
}

static size_t fetched_bytes(const struct nosa_step_tiers *tiers)
{
    return sizeof *tiers->fetched * (size_t)tiers->n_ranks;
}

static enum nosa_status take(struct nosa_step_tiers *tiers, size_t bytes, void **out,
                             struct nosa_error *error)
{
    return tiers->device->table->memory_alloc(tiers->device, NOSA_MEMORY_HOST_PINNED, bytes, out,
                                              error);
}

static size_t absent_bytes(const struct nosa_step_tiers *tiers)
{
    return sizeof *tiers->absent * (size_t)tiers->n_ranks * (size_t)tiers->absent_max;
}

static size_t n_absent_bytes(const struct nosa_step_tiers *tiers)
{
    return sizeof *tiers->n_absent * (size_t)tiers->n_ranks;
}

enum nosa_status nosa_step_tiers_create(struct nosa_kv_store *store, enum nosa_kv_policy policy,
                                        int32_t n_ranks, int32_t seqs_max, int32_t absent_max,
                                        size_t records, struct nosa_device *device,
                                        struct nosa_step_tiers *out, struct nosa_error *error)
{
    void *hits = NULL, *fetched = NULL, *absent = NULL, *n_absent = NULL;
    void *record_use = NULL, *record_weight = NULL, *record_slot = NULL;

    *out = (struct nosa_step_tiers){.policy = policy,
                                    .n_ranks = n_ranks,
                                    .seqs_max = seqs_max,
                                    .absent_max = absent_max,
                                    .records = records,
                                    .store = store,
                                    .device = device};
    enum nosa_status status = nosa_kv_moves_create(store, device, &out->moves, error);
    if (status == NOSA_OK)
        status = take(out, hits_bytes(out), &hits, error);
    if (status == NOSA_OK)
        status = take(out, fetched_bytes(out), &fetched, error);
    if (status == NOSA_OK && absent_max > 0)
        status = take(out, absent_bytes(out), &absent, error);
    if (status == NOSA_OK)
        status = take(out, n_absent_bytes(out), &n_absent, error);
    if (status == NOSA_OK && records > 0)
        status = take(out, records * sizeof *out->record_use, &record_use, error);
    if (status == NOSA_OK && records > 0)
        status = take(out, records * sizeof *out->record_weight, &record_weight, error);
    if (status == NOSA_OK && records > 0)
        status = take(out, records * sizeof *out->record_slot, &record_slot, error);
    out->hits = hits;
    out->fetched = fetched;
    out->absent = absent;
    out->n_absent = n_absent;
    out->record_use = record_use;
    out->record_weight = record_weight;
    out->record_slot = record_slot;
    if (status != NOSA_OK)
        nosa_step_tiers_destroy(out);
    return status;
}

void nosa_step_tiers_destroy(struct nosa_step_tiers *tiers)
{
    struct nosa_device *device = tiers->device;

    if (!device)
        return;
    device->table->memory_free(device, NOSA_MEMORY_HOST_PINNED, tiers->record_slot,
                               tiers->records * sizeof *tiers->record_slot);
    device->table->memory_free(device, NOSA_MEMORY_HOST_PINNED, tiers->record_weight,
                               tiers->records * sizeof *tiers->record_weight);
    device->table->memory_free(device, NOSA_MEMORY_HOST_PINNED, tiers->record_use,
                               tiers->records * sizeof *tiers->record_use);
    device->table->memory_free(device, NOSA_MEMORY_HOST_PINNED, tiers->n_absent,
                               n_absent_bytes(tiers));
    device->table->memory_free(device, NOSA_MEMORY_HOST_PINNED, tiers->absent, absent_bytes(tiers));
    device->table->memory_free(device, NOSA_MEMORY_HOST_PINNED, tiers->fetched,
                               fetched_bytes(tiers));
    device->table->memory_free(device, NOSA_MEMORY_HOST_PINNED, tiers->hits, hits_bytes(tiers));
    nosa_kv_moves_destroy(&tiers->moves);
    *tiers = (struct nosa_step_tiers){0};
}

/* The part of a tight first tier: forgets, states, places and fetches. */
static enum nosa_status begin_tight(struct nosa_rank *rank, const struct nosa_step_tiers *tiers)
{
    const struct nosa_kv_moves *moves = &tiers->moves;
    const struct nosa_op_table *ops = rank->device->table->ops;
    const struct nosa_kv_view *view = &rank->arena.view;

    rank->device->table->clear(rank->stream, rank->kv_hits,
                               sizeof *rank->kv_hits * (size_t)tiers->seqs_max);
    rank->device->table->clear(rank->stream, rank->kv_fetched, sizeof *rank->kv_fetched);
    if (moves->n_forget + moves->n_states > 0)
        NOSA_TRY(ops->kv_update(rank->stream,
                                &(struct nosa_kv_update_params){.kv = view,
                                                                .n_forget = moves->n_forget,
                                                                .forget = moves->forget,
                                                                .n_states = moves->n_states,
                                                                .states = moves->states}));
    if (moves->n_place > 0)
        NOSA_TRY(
            ops->kv_place(rank->stream, &(struct nosa_kv_place_params){.kv = view,
                                                                       .policy = tiers->policy,
                                                                       .step = moves->step,
                                                                       .n = moves->n_place,
                                                                       .blocks = moves->place}));
    if (moves->n_fetch == 0)
        return NOSA_OK;
    return ops->kv_fetch(rank->stream, &(struct nosa_kv_fetch_params){.kv = view,
                                                                      .policy = tiers->policy,
                                                                      .step = moves->step,
                                                                      .n = moves->n_fetch,
                                                                      .records = moves->fetch,
                                                                      .fetched = rank->kv_fetched});
}

enum nosa_status nosa_rank_tiers_begin(struct nosa_rank *rank, const struct nosa_step_plan *plan)
{
    const struct nosa_step_tiers *tiers = plan->tiers;
    if (!tiers)
        return NOSA_OK;
    if (rank->arena.view.slot_block)
        NOSA_TRY(begin_tight(rank, tiers));
    if (tiers->moves.n_loads == 0)
        return NOSA_OK;
    return rank->device->table->ops->kv_load(
        rank->stream, &(struct nosa_kv_load_params){.kv = &rank->arena.view,
                                                    .n = tiers->moves.n_loads,
                                                    .moves = tiers->moves.loads});
}

enum nosa_status nosa_rank_tiers_resolve(struct nosa_rank *rank, const struct nosa_step_plan *plan,
                                         const struct nosa_batch_view *batch, int32_t layer,
                                         const struct nosa_tier_pass *pass)
{
    const struct nosa_step_tiers *tiers = plan->tiers;
    bool sparse = rank->options.mode != NOSA_ATTENTION_FULL;
    size_t index = (size_t)rank->options.shard.rank;
    struct nosa_kv_resolve_params params = {
        .batch = batch,
        .kv = &rank->arena.view,
        .layer = layer,
        .row_first = pass->row_first,
        .n_rows = pass->n_rows,
        .entry_first = pass->entry_first,
        .entry_count = pass->entry_count,
        .policy = tiers->policy,
        .step = tiers->moves.step + (uint32_t)pass->number,
        .fresh_since = tiers->fresh_since,
        .selected = sparse ? rank->selected : NULL,
        .selected_count = sparse ? rank->selected_count : NULL,
        .topk = rank->topk,
        .hits = rank->kv_hits,
    };
    if (tiers->moves.cold) {
        params.absent = tiers->absent + index * (size_t)tiers->absent_max;
        params.n_absent = tiers->n_absent + index;
        params.absent_max = tiers->absent_max;
    }
    return rank->device->table->ops->kv_resolve(rank->stream, &params);
}

enum nosa_status nosa_rank_tiers_read_absent(struct nosa_rank *rank,
                                             const struct nosa_step_plan *plan,
                                             struct nosa_error *error)
{
    const struct nosa_step_tiers *tiers = plan->tiers;
    size_t index = (size_t)rank->options.shard.rank;

    NOSA_TRY(rank->device->table->stream_synchronize(rank->stream, error));
    nosa_kv_store_fetch(tiers->store, &rank->arena.view,
                        tiers->absent + index * (size_t)tiers->absent_max, tiers->n_absent[index]);
    return NOSA_OK;
}

/* Ranks that hold replicas of a KV head write the same bytes: the first of them does. */
static bool writes_images(const struct nosa_rank *rank)
{
    return rank->options.shard.attend_first == 0;
}

enum nosa_status nosa_rank_tiers_remember(struct nosa_rank *rank, struct nosa_step_tiers *tiers,
                                          struct nosa_kv_sequence *sequence,
                                          struct nosa_error *error)
{
    const struct nosa_device_table *table = rank->device->table;
    if (!rank->arena.view.slot_block || !writes_images(rank))
        return NOSA_OK;
    table->copy(rank->stream, tiers->record_use, rank->arena.view.record_use,
                tiers->records * sizeof *tiers->record_use);
    NOSA_TRY(table->stream_synchronize(rank->stream, error));
    nosa_kv_sequence_remember(sequence, &rank->arena.view, tiers->record_use);
    return NOSA_OK;
}

enum nosa_status nosa_rank_tiers_report_use(struct nosa_rank *rank, struct nosa_step_tiers *tiers,
                                            struct nosa_error *error)
{
    const struct nosa_device_table *table = rank->device->table;
    struct nosa_kv_view view = rank->arena.view;
    if (!writes_images(rank))
        return NOSA_OK;
    table->copy(rank->stream, tiers->record_use, view.record_use,
                tiers->records * sizeof *tiers->record_use);
    table->copy(rank->stream, tiers->record_weight, view.record_weight,
                tiers->records * sizeof *tiers->record_weight);
    table->copy(rank->stream, tiers->record_slot, view.record_slot,
                tiers->records * sizeof *tiers->record_slot);
    NOSA_TRY(table->stream_synchronize(rank->stream, error));
    view.record_use = tiers->record_use;
    view.record_weight = tiers->record_weight;
    view.record_slot = tiers->record_slot;
    nosa_kv_store_report_use(tiers->store, &view, rank->options.shard.rank == 0);
    return NOSA_OK;
}

enum nosa_status nosa_rank_tiers_end(struct nosa_rank *rank, const struct nosa_step_plan *plan)
{
    const struct nosa_step_tiers *tiers = plan->tiers;
    const struct nosa_device_table *table = rank->device->table;
    int32_t index = rank->options.shard.rank;

    if (!tiers)
        return NOSA_OK;
    if (rank->arena.view.slot_block) {
        table->copy(rank->stream, tiers->hits + (size_t)index * (size_t)tiers->seqs_max,
                    rank->kv_hits, sizeof *rank->kv_hits * (size_t)tiers->seqs_max);
        table->copy(rank->stream, tiers->fetched + index, rank->kv_fetched,
                    sizeof *rank->kv_fetched);
    }
    if (tiers->moves.n_saves == 0 || !writes_images(rank))
        return NOSA_OK;
    return table->ops->kv_save(rank->stream,
                               &(struct nosa_kv_save_params){.kv = &rank->arena.view,
                                                             .n = tiers->moves.n_saves,
                                                             .moves = tiers->moves.saves});
}
