/*
 * Ops between the first tier and host memory: what a decode step pays for knowing where its records
 * are, and how fast records are gathered beside a plain copy of as many bytes on the same threads.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernel_bench_internal.h"
#include "kv_store.h"

#define TIER_BLOCKS    2048
#define TIER_LISTS     512 /* selections that follow one another; then again from the first */
#define TIER_MISSES    3   /* records per head that are new in each */
#define PREFILL_BLOCKS 64  /* context of the prefill case, in blocks */
#define LAYERS_MAX     6
#define SAVE_BLOCKS    8 /* written behind at once: a prefill chunk's */

struct tier_bench {
    struct kernel_bench *bench;
    struct nosa_kv_arena arena;
    struct nosa_kv_host_pool host;
    int32_t *order;                    /* owned [TIER_BLOCKS] block ids, scattered */
    int32_t *row_pos;                  /* owned [KERNEL_ROWS_MAX] */
    int32_t *row_seq;                  /* owned [KERNEL_ROWS_MAX], zeros */
    int32_t *selected;                 /* owned [TIER_LISTS or KERNEL_ROWS_MAX][n_kv_heads][topk] */
    int32_t *count;                    /* owned [TIER_LISTS or KERNEL_ROWS_MAX][n_kv_heads] */
    struct nosa_kv_record_name *names; /* owned [pools][n_slots] */
    struct nosa_kv_hits hits;
    uint64_t fetched;
    uint32_t step;
    int32_t n_rows;
    int32_t n_calls; /* of kv_resolve in this case */
    bool moving;     /* calls take one list after the other, else all the first */
};

static int32_t pools_of(const struct tier_bench *tier)
{
    return tier->arena.view.geometry.n_layers * tier->arena.view.geometry.n_kv_heads;
}

static void close_tier(struct tier_bench *tier)
{
    free(tier->names);
    free(tier->count);
    free(tier->selected);
    free(tier->row_seq);
    free(tier->row_pos);
    free(tier->order);
    nosa_kv_arena_destroy(&tier->arena);
    nosa_kv_host_pool_destroy(&tier->host);
}

/* Every block lies in an image of its own and may be given up. */
static enum nosa_status set_states(struct tier_bench *tier, struct nosa_error *error)
{
    struct nosa_kv_block_state *states = calloc(TIER_BLOCKS, sizeof *states);
    if (!states)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for block states");
    for (int32_t i = 0; i < TIER_BLOCKS; i++)
        states[i] = (struct nosa_kv_block_state){i, i, NOSA_KV_CLASS_IN_USE};
    enum nosa_status status = tier->bench->device->table->ops->kv_update(
        tier->bench->stream, &(struct nosa_kv_update_params){.kv = &tier->arena.view,
                                                             .n_states = TIER_BLOCKS,
                                                             .states = states});
    free(states);
    return status == NOSA_OK ? status : nosa_error_set(error, status, "kv_update refused");
}

static enum nosa_status open_tier(struct tier_bench *tier, int32_t n_slots,
                                  struct nosa_error *error)
{
    const struct kernel_shape *shape = tier->bench->shape;
    struct nosa_kv_arena_options options = {
        .geometry = {.n_kv_heads = shape->n_kv_heads,
                     .head_dim = shape->head_dim,
                     .kernel_size = (int32_t)shape->sparse.kernel_size,
                     .kernel_stride = (int32_t)shape->sparse.kernel_stride,
                     .type = NOSA_DTYPE_BF16},
        .n_blocks = TIER_BLOCKS,
        .n_slots = n_slots};
    size_t layer_bytes =
        nosa_kv_record_bytes(&options.geometry) * TIER_BLOCKS * (size_t)shape->n_kv_heads;
    size_t layers = (KERNEL_COLD_BYTES + layer_bytes - 1) / layer_bytes;
    size_t cells = KERNEL_ROWS_MAX * (size_t)shape->n_kv_heads;
    options.geometry.n_layers = layers < LAYERS_MAX ? (int32_t)layers : LAYERS_MAX;
    NOSA_TRY(nosa_kv_arena_create(tier->bench->device, &options, &tier->arena, error));
    NOSA_TRY(nosa_kv_host_pool_create(tier->bench->device, &options.geometry, shape->n_kv_heads,
                                      TIER_BLOCKS, &tier->host, error));
    nosa_kv_arena_attach(&tier->arena, &tier->host, 0);
    memset(tier->host.images, 1, (size_t)TIER_BLOCKS * tier->host.image_bytes);
    memset(tier->arena.view.records, 1,
           (size_t)(pools_of(tier) * n_slots) * nosa_kv_record_bytes(&options.geometry));
    tier->order = calloc(TIER_BLOCKS, sizeof *tier->order);
    tier->row_pos = calloc(KERNEL_ROWS_MAX, sizeof *tier->row_pos);
    tier->row_seq = calloc(KERNEL_ROWS_MAX, sizeof *tier->row_seq);
    tier->selected = calloc(cells * shape->sparse.topk, sizeof *tier->selected);
    tier->count = calloc(cells, sizeof *tier->count);
    tier->names = calloc((size_t)(pools_of(tier) * n_slots), sizeof *tier->names);
    if (!tier->order || !tier->row_pos || !tier->row_seq || !tier->selected || !tier->count ||
        !tier->names)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for selections");
    bench_scatter_blocks(tier->order, TIER_BLOCKS);
    return set_states(tier, error);
}

/* ---- calls ---------------------------------------------------------------------------------- */

static enum nosa_status call_resolve(void *context, int32_t repetition)
{
    struct tier_bench *tier = context;
    const struct kernel_shape *shape = tier->bench->shape;
    int32_t n_layers = tier->arena.view.geometry.n_layers, call = tier->n_calls++;
    int32_t list = tier->moving ? call / n_layers % TIER_LISTS : 0;
    int64_t cells = (int64_t)list * shape->n_kv_heads;
    (void)repetition;
    struct nosa_batch_view batch = {.n_rows = tier->n_rows,
                                    .n_seqs = 1,
                                    .row_pos = tier->row_pos,
                                    .row_seq = tier->row_seq,
                                    .block_table = tier->order,
                                    .table_stride = TIER_BLOCKS};
    tier->step++;
    return tier->bench->device->table->ops->kv_resolve(
        tier->bench->stream,
        &(struct nosa_kv_resolve_params){.batch = &batch,
                                         .kv = &tier->arena.view,
                                         .layer = call % n_layers,
                                         .n_rows = tier->n_rows,
                                         .policy = NOSA_KV_POLICY_EDDMA,
                                         .step = tier->step,
                                         .selected = tier->selected + cells * shape->sparse.topk,
                                         .selected_count = tier->count + cells,
                                         .topk = (int32_t)shape->sparse.topk,
                                         .hits = &tier->hits});
}

/* Other blocks in each repetition, as many as there are slots. */
static enum nosa_status call_fetch(void *context, int32_t repetition)
{
    struct tier_bench *tier = context;
    const struct nosa_kv_view *kv = &tier->arena.view;
    int32_t n = 0;
    for (int32_t pool = 0; pool < pools_of(tier); pool++)
        for (int32_t i = 0; i < kv->n_slots; i++)
            tier->names[n++] = (struct nosa_kv_record_name){
                tier->order[(repetition * kv->n_slots + i) % TIER_BLOCKS],
                pool / kv->geometry.n_kv_heads, pool % kv->geometry.n_kv_heads};
    tier->step++;
    return tier->bench->device->table->ops->kv_fetch(
        tier->bench->stream, &(struct nosa_kv_fetch_params){.kv = kv,
                                                            .policy = NOSA_KV_POLICY_EDDMA,
                                                            .step = tier->step,
                                                            .n = n,
                                                            .records = tier->names,
                                                            .fetched = &tier->fetched});
}

static size_t slots_bytes(const struct tier_bench *tier)
{
    return (size_t)(pools_of(tier) * tier->arena.view.n_slots) *
           nosa_kv_record_bytes(&tier->arena.view.geometry);
}

/* Blocks that lie in slots go to other images than their own. */
static enum nosa_status call_save(void *context, int32_t repetition)
{
    struct tier_bench *tier = context;
    struct nosa_kv_block_image moves[SAVE_BLOCKS];
    for (int32_t i = 0; i < SAVE_BLOCKS; i++)
        moves[i] = (struct nosa_kv_block_image){tier->arena.view.slot_block[i],
                                                (repetition * SAVE_BLOCKS + i) % (TIER_BLOCKS / 2)};
    return tier->bench->device->table->ops->kv_save(
        tier->bench->stream,
        &(struct nosa_kv_save_params){.kv = &tier->arena.view, .n = SAVE_BLOCKS, .moves = moves});
}

/* The yardstick: as many bytes in one piece, other ones each time. */
static enum nosa_status call_copy(void *context, int32_t repetition)
{
    struct tier_bench *tier = context;
    size_t bytes = slots_bytes(tier);
    size_t places = (size_t)TIER_BLOCKS * tier->host.image_bytes / bytes;
    tier->bench->device->table->copy(tier->bench->stream, tier->arena.view.records,
                                     tier->host.images + (size_t)repetition % places * bytes,
                                     bytes);
    return NOSA_OK;
}

/* ---- cases ---------------------------------------------------------------------------------- */

/* List `list` selects the topk blocks from place TIER_MISSES * list of the row's table, ascending;
 * each has TIER_MISSES that the one before has not. */
static void make_lists(struct tier_bench *tier)
{
    int32_t heads = tier->bench->shape->n_kv_heads, topk = (int32_t)tier->bench->shape->sparse.topk;
    for (int32_t cell = 0; cell < TIER_LISTS * heads; cell++) {
        int32_t first = cell / heads * TIER_MISSES;
        tier->count[cell] = topk;
        for (int32_t i = 0; i < topk; i++)
            tier->selected[cell * topk + i] = first + i;
    }
    tier->row_pos[0] = TIER_BLOCKS * NOSA_BLOCK_TOKENS - 1;
    tier->n_rows = 1;
}

/* Rows of a prefill chunk: each selects topk of the blocks before it, another set than its
 * neighbours. */
static void make_prefill(struct tier_bench *tier)
{
    int32_t heads = tier->bench->shape->n_kv_heads, topk = (int32_t)tier->bench->shape->sparse.topk;
    int32_t blocks = topk < PREFILL_BLOCKS ? PREFILL_BLOCKS : topk;
    for (int32_t row = 0; row < KERNEL_ROWS_MAX; row++) {
        tier->row_pos[row] = blocks * NOSA_BLOCK_TOKENS - KERNEL_ROWS_MAX + row;
        for (int32_t head = 0; head < heads; head++) {
            int32_t cell = row * heads + head, visible = tier->row_pos[row] / NOSA_BLOCK_TOKENS + 1;
            int32_t skipped = visible > topk ? visible - topk : 0, start = row % (topk / 2);
            tier->count[cell] = visible - skipped;
            for (int32_t i = 0; i < visible - skipped; i++)
                tier->selected[cell * topk + i] = i < start ? i : i + skipped;
        }
    }
    tier->n_rows = KERNEL_ROWS_MAX;
}

static enum nosa_status time_resolve(struct tier_bench *tier, bool moving, const char *detail,
                                     struct nosa_error *error)
{
    const struct nosa_kv_view *kv = &tier->arena.view;
    struct kernel_result result = {.op = "kv_resolve", .cached = !moving};
    tier->moving = moving;
    tier->n_calls = 0;
    for (int32_t i = 0; i < 2 * kv->geometry.n_layers; i++) /* every layer has what it wants */
        if (call_resolve(tier, i) != NOSA_OK)
            return nosa_error_set(error, NOSA_INTERNAL, "kv_resolve refused a case");
    NOSA_TRY(kernel_time(tier->bench, call_resolve, tier, &result.seconds, error));
    if (moving)
        result.bytes = 2.0 * TIER_MISSES * kv->geometry.n_kv_heads *
                       (double)nosa_kv_record_bytes(&kv->geometry);
    snprintf(result.detail, sizeof result.detail, "%s, %d slots", detail, kv->n_slots);
    kernel_report(tier->bench, &result);
    return NOSA_OK;
}

static enum nosa_status time_gather(struct tier_bench *tier, struct nosa_error *error)
{
    struct kernel_result fetch = {.op = "kv_fetch", .bytes = 2.0 * (double)slots_bytes(tier)};
    struct kernel_result copy = {.op = "copy", .bytes = fetch.bytes};
    NOSA_TRY(kernel_time(tier->bench, call_copy, tier, &copy.seconds, error));
    NOSA_TRY(kernel_time(tier->bench, call_fetch, tier, &fetch.seconds, error));
    struct kernel_result save = {.op = "kv_save"};
    save.bytes = 2.0 * SAVE_BLOCKS * (double)tier->host.image_bytes;
    NOSA_TRY(kernel_time(tier->bench, call_save, tier, &save.seconds, error));
    snprintf(save.detail, sizeof save.detail, "%d blocks", SAVE_BLOCKS);
    snprintf(fetch.detail, sizeof fetch.detail, "%d records, scattered",
             pools_of(tier) * tier->arena.view.n_slots);
    snprintf(copy.detail, sizeof copy.detail, "as many bytes in one piece");
    kernel_report(tier->bench, &fetch);
    kernel_report(tier->bench, &save);
    kernel_report(tier->bench, &copy);
    return NOSA_OK;
}

static enum nosa_status time_slots(struct kernel_bench *bench, int32_t n_slots, bool small,
                                   struct nosa_error *error)
{
    struct tier_bench tier = {.bench = bench};
    enum nosa_status status = open_tier(&tier, n_slots, error);
    if (status == NOSA_OK) {
        make_lists(&tier);
        status = time_resolve(&tier, false, "1 row, all hits", error);
    }
    if (status == NOSA_OK)
        status = time_resolve(&tier, true, "1 row, 3 misses per head", error);
    if (status == NOSA_OK && small)
        status = time_gather(&tier, error);
    if (status == NOSA_OK && !small) {
        make_prefill(&tier);
        status = time_resolve(&tier, false, "512 rows, all hits", error);
    }
    close_tier(&tier);
    return status;
}

enum nosa_status kernel_bench_tiers(struct kernel_bench *bench, struct nosa_error *error)
{
    int32_t topk = (int32_t)bench->shape->sparse.topk;
    NOSA_TRY(time_slots(bench, topk + topk / 2, true, error));
    return time_slots(bench, KERNEL_SLOTS_MAX, false, error);
}
