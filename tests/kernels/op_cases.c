/* The list of shapes, and the builders of their batches and caches. */
#include "op_cases.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "reference/reference.h"

#define F32  NOSA_DTYPE_F32
#define BF16 NOSA_DTYPE_BF16

/* A sanitizer makes the portable code many times slower: the shapes that cost most then have fewer
 * heads and dimensions, at the same positions and with the same blocks. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SIZE(whole, sanitized) (sanitized)
#else
#define SIZE(whole, sanitized) (whole)
#endif

/* clang-format off */
const struct op_case op_cases[] = {
    /* name, heads, kv heads, head_dim, stride, type, bias, init, window, select, topk, sequences */
    {"one_token", 4, 2, 64, 16, F32, true, 1, 1, 1, 4, 1,
        {{0, 1}}},
    {"decode_edges_bf16", 6, 2, 32, 16, BF16, true, 1, 1, 1, 3, 16,
        {{0, 1}, {1, 1}, {30, 1}, {31, 1}, {32, 1}, {46, 1}, {47, 1}, {62, 1}, {63, 1}, {64, 1},
        {65, 1}, {78, 1}, {79, 1}, {80, 1}, {127, 1}, {128, 1}}},
    {"decode_edges_f32", 4, 4, 16, 16, F32, true, 1, 1, 1, 3, 12,
        {{0, 1}, {1, 1}, {31, 1}, {32, 1}, {63, 1}, {64, 1}, {65, 1}, {79, 1}, {80, 1},
        {255, 1}, {256, 1}, {319, 1}}},
    {"prefill_ragged", 3, 1, 80, 16, F32, true, 1, 1, 2, 5, 6,
        {{0, 63}, {0, 64}, {0, 65}, {0, 1}, {0, 31}, {0, 130}}},
    {"prefill_ragged_bf16", SIZE(8, 4), 2, 80, 16, BF16, true, 1, 1, 2, 5, 6,
        {{0, 32}, {0, 80}, {0, 79}, {0, 2}, {0, 33}, {0, 193}}},
    {"mixed_batch", SIZE(8, 4), 2, SIZE(64, 32), 16, BF16, true, 1, 2, 3, 8, 7,
        {{700, 1}, {50, 40}, {1000, 1}, {0, 17}, {511, 66}, {64, 64}, {37, 1}}},
    {"mixed_batch_f32", 4, 2, SIZE(64, 32), 16, F32, true, 1, 2, 3, 8, 5,
        {{700, 1}, {600, 70}, {1023, 1}, {1024, 2}, {1087, 1}}},
    {"windows_16_per_block", SIZE(9, 3), SIZE(3, 1), 64, 4, BF16, true, 1, 2, 3, 8, 5,
        {{1100, 1}, {831, 3}, {6, 1}, {7, 1}, {620, 24}}},
    {"windows_32_per_block", SIZE(9, 3), SIZE(3, 1), 64, 2, BF16, true, 1, 2, 3, 8, 5,
        {{1100, 1}, {831, 3}, {2, 1}, {3, 1}, {620, 24}}},
    {"windows_2_per_block", 2, 2, 256, 32, F32, true, 1, 2, 2, 7, 4,
        {{900, 1}, {63, 1}, {700, 5}, {127, 2}}},
    {"windows_1_per_block", SIZE(32, 16), SIZE(2, 1), 128, 64, BF16, true, 1, 1, 2, 6, 4,
        {{900, 1}, {126, 3}, {640, 1}, {575, 2}}},
    {"no_eviction_head", 6, 2, 64, 16, F32, false, 1, 2, 3, 8, 4,
        {{990, 2}, {0, 70}, {575, 2}, {0, 1}}},
    {"no_eviction_head_bf16", SIZE(16, 8), 4, SIZE(128, 64), 16, BF16, false, 2, 1, 2, 7, 4,
        {{777, 1}, {100, 30}, {447, 2}, {31, 1}}},
    {"topk_exactly_full", 4, 1, 32, 16, F32, true, 1, 2, 3, 8, 3,
        {{511, 1}, {512, 1}, {505, 14}}},
    {"first_cut_only", 4, 2, 16, 16, F32, true, 1, 1, 2, 4, 3,
        {{400, 1}, {250, 12}, {639, 2}}},
    {"no_forced_but_own", 4, 2, 16, 8, BF16, true, 0, 0, 3, 9, 2,
        {{1500, 1}, {760, 12}}},
    {"run_lengths", 2, 1, 48, 16, BF16, true, 1, 1, 9, 17, 6,
        {{450, 1}, {511, 2}, {1023, 2}, {1088, 1}, {1600, 1}, {2040, 9}}},
    {"released_8b", SIZE(32, 8), 2, SIZE(128, 32), 16, BF16, true, 1, 16, 16, 64, 2,
        {{4500, 1}, {4093, 5}}},
};
/* clang-format on */
const size_t op_case_count = sizeof op_cases / sizeof op_cases[0];

void *op_alloc(size_t bytes)
{
    size_t rounded = (bytes + 4096) / 4096 * 4096;
    void *memory = aligned_alloc(4096, rounded);
    NOSA_ASSERT(memory != NULL);
    return memset(memory, 0, rounded);
}

static uint64_t mix(uint64_t value)
{
    value += 0x9e3779b97f4a7c15u;
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9u;
    value = (value ^ value >> 27) * 0x94d049bb133111ebu;
    return value ^ value >> 31;
}

static uint64_t random_bits(uint64_t seed, uint64_t a, uint64_t b)
{
    return mix(mix(mix(seed) ^ a) ^ b);
}

float op_uniform(uint64_t seed, uint64_t a, uint64_t b)
{
    return (float)(random_bits(seed, a, b) >> 40) * 0x1p-23f - 1.0f;
}

float op_normal(uint64_t seed, uint64_t a, uint64_t b)
{
    uint64_t bits = random_bits(seed, a, b);
    float sum = 0;
    for (int i = 0; i < 4; i++)
        sum += (float)(bits >> (16 * i) & 0xffff) * 0x1p-16f;
    return (sum - 2.0f) * 1.7320508f;
}

/* A random order of 0 .. n - 1. */
static void shuffle(int32_t *order, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++)
        order[i] = (int32_t)i;
    for (size_t i = n; i > 1; i--) {
        size_t other = (size_t)(random_bits(seed, i, 0) % i);
        int32_t swapped = order[i - 1];
        order[i - 1] = order[other];
        order[other] = swapped;
    }
}

static size_t summary_floats(const struct op_kv *kv, int32_t per_record)
{
    return kv->n_records * (size_t)per_record;
}

/* Takes the arrays of a cache whose geometry, n_records and n_slots are set; all bytes 0xff: NaN in
 * every type. */
static void allocate_kv(struct op_kv *kv)
{
    const struct nosa_kv_geometry *geometry = &kv->view.geometry;
    int32_t r = nosa_kv_windows_per_block(geometry);
    size_t records_bytes = kv->n_slots * nosa_kv_record_bytes(geometry);
    size_t keys_bytes = kv->n_records * nosa_kv_compressed_key_bytes(geometry);
    size_t window_bytes = sizeof(float) * summary_floats(kv, r);
    size_t token_bytes = sizeof(float) * summary_floats(kv, NOSA_BLOCK_TOKENS);
    kv->view.records = memset(op_alloc(records_bytes), 0xff, records_bytes);
    kv->view.compressed_keys = memset(op_alloc(keys_bytes), 0xff, keys_bytes);
    kv->view.window_bias = memset(op_alloc(window_bytes), 0xff, window_bytes);
    kv->view.token_bias = memset(op_alloc(token_bytes), 0xff, token_bytes);
    kv->record_slot = op_alloc(kv->n_slots * sizeof *kv->record_slot);
    kv->view.record_slot = kv->record_slot;
}

void op_kv_destroy(struct op_kv *kv)
{
    free(kv->view.images);
    free(kv->view.block_image);
    free(kv->record_slot);
    free(kv->view.token_bias);
    free(kv->view.window_bias);
    free(kv->view.compressed_keys);
    free(kv->view.records);
}

void op_kv_copy(const struct op_kv *from, struct op_kv *to)
{
    const struct nosa_kv_geometry *geometry = &from->view.geometry;
    int32_t r = nosa_kv_windows_per_block(geometry);
    NOSA_ASSERT(from->view.images == NULL);
    *to = *from;
    allocate_kv(to);
    memcpy(to->record_slot, from->record_slot, from->n_slots * sizeof *to->record_slot);
    memcpy(to->view.records, from->view.records, from->n_slots * nosa_kv_record_bytes(geometry));
    memcpy(to->view.compressed_keys, from->view.compressed_keys,
           from->n_records * nosa_kv_compressed_key_bytes(geometry));
    memcpy(to->view.window_bias, from->view.window_bias, sizeof(float) * summary_floats(from, r));
    memcpy(to->view.token_bias, from->view.token_bias,
           sizeof(float) * summary_floats(from, NOSA_BLOCK_TOKENS));
}

void op_kv_offload(struct op_kv *kv, float share, uint64_t seed)
{
    struct nosa_kv_view *view = &kv->view;
    size_t bytes = nosa_kv_record_bytes(&view->geometry), n_blocks = (size_t)view->n_blocks;
    view->image_kv_heads = view->geometry.n_kv_heads + 2;
    view->image_kv_head_first = 1;
    view->image_bytes = nosa_kv_image_bytes(&view->geometry, view->image_kv_heads);
    view->images =
        memset(op_alloc(n_blocks * view->image_bytes), 0xff, n_blocks * view->image_bytes);
    view->block_image = op_alloc(n_blocks * sizeof *view->block_image);
    shuffle(view->block_image, n_blocks, seed);
    for (int32_t layer = 0; layer < view->geometry.n_layers; layer++) {
        for (int32_t head = 0; head < view->geometry.n_kv_heads; head++) {
            for (int32_t block = 0; block < view->n_blocks; block++) {
                int64_t record = nosa_kv_record_index(view, layer, head, block);
                if (op_uniform(seed, 1, (uint64_t)record) * 0.5f + 0.5f >= share)
                    continue;
                char *slot = nosa_kv_record(view, layer, head, block);
                memcpy(nosa_kv_image_record(view, view->block_image[block], layer, head), slot,
                       bytes);
                memset(slot, 0xff, bytes);
                kv->record_slot[record] = NOSA_KV_SLOT_NONE;
            }
        }
    }
}

static int32_t seq_blocks(const struct op_case *op_case, int32_t seq)
{
    int32_t tokens = op_case->seqs[seq].first + op_case->seqs[seq].rows;
    return (tokens + NOSA_BLOCK_TOKENS - 1) / NOSA_BLOCK_TOKENS;
}

/* Deals shuffled block ids to the sequences and shuffled slots to the records. */
static void lay_out(struct op_fixture *fixture)
{
    const struct op_case *op_case = fixture->op_case;
    struct op_kv *kv = &fixture->kv;
    int32_t n_blocks = 3, next = 0;
    for (int32_t seq = 0; seq < op_case->n_seqs; seq++) {
        int32_t blocks = seq_blocks(op_case, seq);
        n_blocks += blocks;
        fixture->table_stride = blocks > fixture->table_stride ? blocks : fixture->table_stride;
    }
    fixture->table_stride += 1;
    kv->view.geometry = (struct nosa_kv_geometry){
        .n_layers = OP_CASE_LAYERS,
        .n_kv_heads = op_case->n_kv_heads,
        .head_dim = op_case->head_dim,
        .kernel_size = 2 * op_case->kernel_stride,
        .kernel_stride = op_case->kernel_stride,
        .type = op_case->type,
    };
    kv->view.n_blocks = n_blocks;
    kv->n_records = (size_t)OP_CASE_LAYERS * (size_t)op_case->n_kv_heads * (size_t)n_blocks;
    kv->n_slots = kv->n_records + 5;
    allocate_kv(kv);
    shuffle(kv->record_slot, kv->n_slots, fixture->seed ^ 1);

    int32_t *ids = op_alloc((size_t)n_blocks * sizeof *ids);
    shuffle(ids, (size_t)n_blocks, fixture->seed ^ 2);
    fixture->tables =
        op_alloc((size_t)op_case->n_seqs * (size_t)fixture->table_stride * sizeof *fixture->tables);
    for (int32_t seq = 0; seq < op_case->n_seqs; seq++)
        for (int32_t b = 0; b < fixture->table_stride; b++)
            fixture->tables[seq * fixture->table_stride + b] =
                b < seq_blocks(op_case, seq) ? ids[next++] : -1;
    free(ids);
}

/* Runs the references over everything before the case's first rows. */
static void fill_context(struct op_fixture *fixture)
{
    const struct op_case *op_case = fixture->op_case;
    for (int32_t seq = 0; seq < op_case->n_seqs; seq++) {
        struct op_span span = {seq, 0, op_case->seqs[seq].first};
        if (span.rows == 0)
            continue;
        struct op_batch *batch = op_batch_create(fixture, &span, 1);
        float *qkv = op_batch_qkv(fixture, batch), *rope = op_batch_rope(fixture, batch);
        struct nosa_qkv_write_params write =
            op_qkv_write_params(fixture, batch, &fixture->kv, qkv, rope);
        struct nosa_compress_keys_params compress =
            op_compress_keys_params(fixture, batch, &fixture->kv);
        for (int32_t layer = 0; layer < OP_CASE_LAYERS; layer++) {
            write.layer = compress.layer = layer;
            NOSA_ASSERT(nosa_reference_ops.qkv_write(NULL, &write) == NOSA_OK);
            NOSA_ASSERT(nosa_reference_ops.compress_keys(NULL, &compress) == NOSA_OK);
        }
        free(rope);
        free(qkv);
        op_batch_destroy(batch);
    }
}

struct op_fixture *op_fixture_create(const struct op_case *op_case, uint64_t seed)
{
    struct op_fixture *fixture = op_alloc(sizeof *fixture);
    fixture->op_case = op_case;
    fixture->seed = seed;
    fixture->scale = 1.0f / sqrtf((float)op_case->head_dim);
    if (op_case->has_bias) {
        fixture->eviction_scale = op_alloc((size_t)op_case->n_kv_heads * sizeof(float));
        for (int32_t head = 0; head < op_case->n_kv_heads; head++)
            fixture->eviction_scale[head] =
                (head % 2 ? -1.0f : 1.0f) * (1.25f + op_uniform(seed, 3, (uint64_t)head));
    }
    lay_out(fixture);
    fill_context(fixture);
    return fixture;
}

void op_fixture_destroy(struct op_fixture *fixture)
{
    if (fixture == NULL)
        return;
    op_kv_destroy(&fixture->kv);
    free(fixture->tables);
    free(fixture->eviction_scale);
    free(fixture);
}

/* Cuts the rows of one span into tiles at block borders. */
static void add_tiles(struct op_batch *batch, int32_t row, const struct op_span *span)
{
    int32_t pos = span->first, end = span->first + span->rows;
    while (pos < end) {
        int32_t border = (pos / NOSA_BLOCK_TOKENS + 1) * NOSA_BLOCK_TOKENS;
        int32_t rows = (border < end ? border : end) - pos;
        batch->tile_row[batch->view.n_tiles] = row;
        batch->tile_rows[batch->view.n_tiles++] = rows;
        row += rows;
        pos += rows;
    }
}

struct op_batch *op_batch_create(const struct op_fixture *fixture, const struct op_span *spans,
                                 int32_t n_spans)
{
    struct op_batch *batch = op_alloc(sizeof *batch);
    size_t n_rows = 0, stride = (size_t)fixture->table_stride;
    for (int32_t i = 0; i < n_spans; i++)
        n_rows += (size_t)spans[i].rows;
    batch->row_pos = op_alloc(n_rows * sizeof(int32_t));
    batch->row_seq = op_alloc(n_rows * sizeof(int32_t));
    batch->row_case_seq = op_alloc(n_rows * sizeof(int32_t));
    batch->tile_row = op_alloc(n_rows * sizeof(int32_t));
    batch->tile_rows = op_alloc(n_rows * sizeof(int32_t));
    batch->block_table = op_alloc((size_t)n_spans * stride * sizeof(int32_t));
    int32_t row = 0;
    for (int32_t i = 0; i < n_spans; i++) {
        memcpy(batch->block_table + (size_t)i * stride,
               fixture->tables + (size_t)spans[i].seq * stride, stride * sizeof(int32_t));
        add_tiles(batch, row, &spans[i]);
        for (int32_t offset = 0; offset < spans[i].rows; offset++, row++) {
            batch->row_pos[row] = spans[i].first + offset;
            batch->row_seq[row] = i;
            batch->row_case_seq[row] = spans[i].seq;
        }
    }
    batch->view.n_rows = row;
    batch->view.n_seqs = n_spans;
    batch->view.row_pos = batch->row_pos;
    batch->view.row_seq = batch->row_seq;
    batch->view.tile_row = batch->tile_row;
    batch->view.tile_rows = batch->tile_rows;
    batch->view.block_table = batch->block_table;
    batch->view.table_stride = fixture->table_stride;
    return batch;
}

struct op_batch *op_batch_of_case(const struct op_fixture *fixture)
{
    struct op_span spans[OP_CASE_SEQS_MAX];
    for (int32_t seq = 0; seq < fixture->op_case->n_seqs; seq++)
        spans[seq] = (struct op_span){seq, fixture->op_case->seqs[seq].first,
                                      fixture->op_case->seqs[seq].rows};
    return op_batch_create(fixture, spans, fixture->op_case->n_seqs);
}

void op_batch_destroy(struct op_batch *batch)
{
    if (batch == NULL)
        return;
    free(batch->row_case_seq);
    free(batch->block_table);
    free(batch->tile_rows);
    free(batch->tile_row);
    free(batch->row_seq);
    free(batch->row_pos);
    free(batch);
}

int32_t op_qkv_columns(const struct op_case *op_case)
{
    int32_t heads = op_case->n_heads + 2 * op_case->n_kv_heads;
    return heads * op_case->head_dim + (op_case->has_bias ? 2 * op_case->n_kv_heads : 0);
}

int64_t op_qkv_stride(const struct op_case *op_case)
{
    return op_qkv_columns(op_case) + 3;
}

float *op_batch_qkv(const struct op_fixture *fixture, const struct op_batch *batch)
{
    const struct op_case *op_case = fixture->op_case;
    int64_t stride = op_qkv_stride(op_case);
    int32_t columns = op_qkv_columns(op_case);
    int32_t low_parts = op_case->has_bias ? columns - op_case->n_kv_heads : columns;
    float *qkv = op_alloc((size_t)batch->view.n_rows * (size_t)stride * sizeof *qkv);
    for (int32_t row = 0; row < batch->view.n_rows; row++) {
        uint64_t token = (uint64_t)batch->row_case_seq[row] << 32 | (uint64_t)batch->row_pos[row];
        for (int32_t column = 0; column < stride; column++) {
            float value = op_normal(fixture->seed, token, (uint64_t)column);
            if (column >= low_parts)
                value *= 0x1p-9f;
            qkv[row * stride + column] = column < columns ? value : NAN;
        }
    }
    return qkv;
}

float *op_batch_rope(const struct op_fixture *fixture, const struct op_batch *batch)
{
    int32_t head_dim = fixture->op_case->head_dim;
    float *table = op_alloc((size_t)batch->view.n_rows * (size_t)head_dim * sizeof *table);
    double inv_freq[128];
    for (int32_t i = 0; i < head_dim / 2; i++)
        inv_freq[i] = pow(10000.0, -2.0 * i / head_dim);
    struct nosa_rope_table_params params = {
        .n_rows = batch->view.n_rows,
        .head_dim = head_dim,
        .row_pos = batch->row_pos,
        .inv_freq = inv_freq,
        .scale = 1,
        .table = table,
    };
    NOSA_ASSERT(nosa_reference_ops.rope_table(NULL, &params) == NOSA_OK);
    return table;
}

struct nosa_qkv_write_params op_qkv_write_params(const struct op_fixture *fixture,
                                                 const struct op_batch *batch,
                                                 const struct op_kv *kv, float *qkv,
                                                 const float *rope)
{
    return (struct nosa_qkv_write_params){
        .batch = &batch->view,
        .kv = &kv->view,
        .layer = OP_CASE_LAYER,
        .n_heads = fixture->op_case->n_heads,
        .qkv = qkv,
        .qkv_stride = op_qkv_stride(fixture->op_case),
        .rope_table = rope,
        .eviction_scale = fixture->eviction_scale,
    };
}

struct nosa_compress_keys_params op_compress_keys_params(const struct op_fixture *fixture,
                                                         const struct op_batch *batch,
                                                         const struct op_kv *kv)
{
    return (struct nosa_compress_keys_params){
        .batch = &batch->view,
        .kv = &kv->view,
        .layer = OP_CASE_LAYER,
        .has_bias = fixture->op_case->has_bias,
    };
}

struct nosa_select_blocks_params
op_select_blocks_params(const struct op_fixture *fixture, const struct op_batch *batch,
                        const struct op_kv *kv, enum nosa_attention_mode mode, const float *q)
{
    const struct op_case *op_case = fixture->op_case;
    return (struct nosa_select_blocks_params){
        .batch = &batch->view,
        .kv = &kv->view,
        .layer = OP_CASE_LAYER,
        .mode = mode,
        .has_bias = op_case->has_bias,
        .n_heads = op_case->n_heads,
        .q = q,
        .q_stride = op_qkv_stride(op_case),
        .scale = fixture->scale,
        .init_blocks = op_case->init_blocks,
        .window_blocks = op_case->window_blocks,
        .first_cut = op_case->init_blocks + op_case->window_blocks + op_case->select_blocks,
        .topk = op_case->topk,
    };
}

struct nosa_attention_params op_attention_params(const struct op_fixture *fixture,
                                                 const struct op_batch *batch,
                                                 const struct op_kv *kv, const float *q)
{
    const struct op_case *op_case = fixture->op_case;
    int32_t group = op_case->n_heads / op_case->n_kv_heads;
    return (struct nosa_attention_params){
        .batch = &batch->view,
        .kv = &kv->view,
        .layer = OP_CASE_LAYER,
        .has_bias = op_case->has_bias,
        .n_heads = op_case->n_heads,
        .head_first = 0,
        .head_count = group,
        .q = q,
        .q_stride = op_qkv_stride(op_case),
        .scale = fixture->scale,
        .topk = op_case->topk,
        .out_stride = (int64_t)op_case->n_heads * op_case->head_dim,
    };
}
