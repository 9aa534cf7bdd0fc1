/* The references of the ops against cases small enough to work out by hand. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "op_cases.h"
#include "philox.h"
#include "reference/reference.h"

#define OPS nosa_reference_ops

/* Unlike cmocka's comparison of floats this one fails for NaN. */
#define assert_near(got, expected, tolerance)                                                      \
    assert_true(fabs((double)(got) - (double)(expected)) <= (double)(tolerance))

/* One sequence in blocks 2, 0, 1, ... of a cache with one layer; memory starts as NaN. */
struct small {
    struct nosa_kv_view kv;
    int32_t slots[64];
    int32_t table[64];
    int32_t row_pos[256];
    int32_t row_seq[256];
    struct nosa_batch_view batch;
};

static void small_create(struct small *small, enum nosa_dtype type, int32_t stride,
                         int32_t n_blocks)
{
    memset(small, 0, sizeof *small);
    small->kv.geometry = (struct nosa_kv_geometry){1, 1, 16, 2 * stride, stride, type};
    small->kv.n_blocks = n_blocks;
    for (int32_t i = 0; i < n_blocks; i++) {
        small->slots[i] = n_blocks - 1 - i;
        small->table[i] = (i + 2) % n_blocks;
    }
    size_t n = (size_t)n_blocks;
    size_t records = n * nosa_kv_record_bytes(&small->kv.geometry);
    size_t keys = n * nosa_kv_compressed_key_bytes(&small->kv.geometry);
    size_t windows = n * sizeof(float) * (size_t)nosa_kv_windows_per_block(&small->kv.geometry);
    size_t biases = n * sizeof(float) * NOSA_BLOCK_TOKENS;
    small->kv.records = memset(op_alloc(records), 0xff, records);
    small->kv.compressed_keys = memset(op_alloc(keys), 0xff, keys);
    small->kv.window_bias = memset(op_alloc(windows), 0xff, windows);
    small->kv.token_bias = memset(op_alloc(biases), 0xff, biases);
    small->kv.record_slot = small->slots;
    small->batch = (struct nosa_batch_view){.n_seqs = 1,
                                            .row_pos = small->row_pos,
                                            .row_seq = small->row_seq,
                                            .block_table = small->table,
                                            .table_stride = 64};
}

static void small_destroy(struct small *small)
{
    free(small->kv.records);
    free(small->kv.compressed_keys);
    free(small->kv.window_bias);
    free(small->kv.token_bias);
}

static void small_rows(struct small *small, int32_t first, int32_t rows)
{
    small->batch.n_rows = rows;
    for (int32_t i = 0; i < rows; i++)
        small->row_pos[i] = first + i;
}

/* Value `dim` of a key or value as the layout comment of kv_layout.h states it. */
static float stored(const struct small *small, bool value, int32_t pos, int32_t dim)
{
    int32_t block = small->table[pos / 64], token = pos % 64;
    const char *record =
        small->kv.records + (size_t)small->slots[block] * nosa_kv_record_bytes(&small->kv.geometry);
    if (small->kv.geometry.type == NOSA_DTYPE_F32) {
        const float *f32 = (const float *)(const void *)record;
        return value ? f32[64 * 16 + token * 16 + dim] : f32[dim * 64 + token];
    }
    const uint16_t *bf16 = (const uint16_t *)(const void *)record;
    return nosa_bf16_to_f32(value ? bf16[64 * 16 + (token / 2 * 16 + dim) * 2 + token % 2]
                                  : bf16[(dim / 2 * 64 + token) * 2 + dim % 2]);
}

static void test_embed_formats_and_ranks(void **state)
{
    (void)state;
    /* Column 33 of [34, 3] is lane 1 of panel 1. */
    float f32[2 * 3 * 32] = {0};
    uint16_t bf16[2 * 2 * 32 * 2] = {0}, f16[2 * 3 * 32] = {0};
    const float row[3] = {1.5f, -2.0f, 0.25f};
    const uint16_t row_f16[3] = {0x3e00, 0xc000, 0x3400};
    for (int k = 0; k < 3; k++) {
        f32[(3 + k) * 32 + 1] = row[k];
        f16[(3 + k) * 32 + 1] = row_f16[k];
        bf16[((2 + k / 2) * 32 + 1) * 2 + k % 2] = nosa_f32_to_bf16(row[k]);
    }
    void *data[3] = {f32, bf16, f16};
    for (int format = 0; format < 3; format++) {
        struct nosa_weight weight = {(enum nosa_weight_format)format, 34, 3, data[format], 0};
        int32_t token[3] = {133, 99, 134};
        float out[9];
        memset(out, 0xff, sizeof out);
        struct nosa_embed_params params = {3, token, &weight, 100, out};
        assert_int_equal(OPS.embed(NULL, &params), NOSA_OK);
        for (int k = 0; k < 3; k++) {
            assert_near(out[k], row[k], 0);
            assert_near(out[3 + k], 0, 0);
            assert_near(out[6 + k], 0, 0);
        }
    }
}

static void test_rms_norm_rows(void **state)
{
    (void)state;
    const float x[4] = {1, 1, 3, 4}, weight[2] = {1, 2};
    const int32_t rows[1] = {1};
    float out[2];
    struct nosa_rms_norm_params params = {1, 2, 0.0f, x, rows, weight, out, 2};
    assert_int_equal(OPS.rms_norm(NULL, &params), NOSA_OK);
    assert_near(out[0], 3 / sqrt(12.5), 1e-7);
    assert_near(out[1], 8 / sqrt(12.5), 2e-7);
    params.eps = 3.5f;
    assert_int_equal(OPS.rms_norm(NULL, &params), NOSA_OK);
    assert_near(out[0], 0.75, 1e-7);
}

static void test_matmul_epilogues(void **state)
{
    (void)state;
    /* W = [[1, 2], [3, 4]] as columns 0 and 1; as a gated pair, gate is column 0, up column 16. */
    float data[2 * 32] = {0};
    data[0] = 1, data[32] = 2, data[1] = 3, data[33] = 4;
    struct nosa_weight weight = {NOSA_WEIGHT_F32, 2, 2, data, sizeof data};
    const float x[3] = {10, 1, 77}, bias[2] = {0.5f, -0.5f};
    float out[2] = {100, 200};
    struct nosa_matmul_params params = {1, &weight, x, 3, bias, NOSA_MATMUL_ADD, 2, out, 2, NULL};
    assert_int_equal(OPS.matmul(NULL, &params), NOSA_OK);
    assert_near(out[0], 112.5, 0);
    assert_near(out[1], 233.5, 0);
    params.epilogue = NOSA_MATMUL_STORE;
    params.bias = NULL;
    assert_int_equal(OPS.matmul(NULL, &params), NOSA_OK);
    assert_near(out[0], 12, 0);
    assert_near(out[1], 34, 0);

    memset(data, 0, sizeof data);
    data[0] = 0.1f, data[16] = 3, data[48] = 4;
    weight.n = 32;
    params.epilogue = NOSA_MATMUL_SWIGLU;
    params.n_out = 1;
    assert_int_equal(OPS.matmul(NULL, &params), NOSA_OK);
    assert_near(out[0], 34 / (1 + exp(-1.0)), 1e-5);
}

static void test_rope_table_angles(void **state)
{
    (void)state;
    const int32_t pos[2] = {0, 3};
    const double inv_freq[2] = {1.5707963267948966, 0.5};
    float table[8];
    struct nosa_rope_table_params params = {2, 4, pos, inv_freq, 2.0, table};
    assert_int_equal(OPS.rope_table(NULL, &params), NOSA_OK);
    const double expected[8] = {2, 0, 2, 0, 0, -2, 2 * cos(1.5), 2 * sin(1.5)};
    for (int i = 0; i < 8; i++)
        assert_near(table[i], expected[i], 1e-6);
}

static void check_qkv_write(enum nosa_dtype type)
{
    struct small small;
    small_create(&small, type, 16, 3);
    /* Two rows at positions 64, 65: one query head, K, V, high and low. A quarter turn. */
    float qkv[2][16 * 3 + 2], rope[2][8][2];
    const float scale[1] = {-2.0f};
    for (int row = 0; row < 2; row++) {
        for (int i = 0; i < 48; i++)
            qkv[row][i] = (float)(i + 100 * row) + 0.001f;
        qkv[row][48] = row == 0 ? 0.75f : 1.0f;
        qkv[row][49] = row == 0 ? -0.75f : 0.25f;
        for (int i = 0; i < 8; i++)
            rope[row][i][0] = 0, rope[row][i][1] = 1;
    }
    small_rows(&small, 64, 2);
    struct nosa_qkv_write_params params = {&small.batch, &small.kv,      0,    1, &qkv[0][0],
                                           16 * 3 + 2,   &rope[0][0][0], scale};
    assert_int_equal(OPS.qkv_write(NULL, &params), NOSA_OK);
    assert_near(qkv[0][0], -8.001f, 0);
    assert_near(qkv[0][8], 0.001f, 0);
    assert_near(qkv[1][15], 107.001f, 0);
    float tolerance = type == NOSA_DTYPE_F32 ? 0 : 0.5f;
    assert_near(stored(&small, false, 64, 0), -24.001f, tolerance / 4);
    assert_near(stored(&small, false, 64, 8), 16.001f, tolerance / 4);
    assert_near(stored(&small, true, 65, 3), 135.001f, tolerance);
    if (type == NOSA_DTYPE_BF16)
        assert_near(stored(&small, true, 65, 3), 135.0f, 0);
    assert_near(stored(&small, false, 66, 5), 0, 0);
    assert_near(stored(&small, true, 127, 15), 0, 0);
    assert_true(isnan(stored(&small, true, 63, 15)));
    const float *bias = small.kv.token_bias + small.table[1] * 64;
    assert_near(bias[0], -2 * log(2.0), 1e-6);
    assert_near(bias[1], -2 * log(1 + exp(1.25)), 1e-6);
    assert_true(isnan(bias[2]));

    small_rows(&small, 66, 1);
    assert_int_equal(OPS.qkv_write(NULL, &params), NOSA_OK);
    assert_near(stored(&small, true, 65, 3), 135.001f, tolerance);
    small_destroy(&small);
}

static void test_qkv_write_f32(void **state)
{
    (void)state;
    check_qkv_write(NOSA_DTYPE_F32);
}

static void test_qkv_write_bf16(void **state)
{
    (void)state;
    check_qkv_write(NOSA_DTYPE_BF16);
}

/* Keys that equal their position (times 1, or 0 beyond dimension 0); biases likewise. */
static void write_ramp(struct small *small, int32_t n_tokens)
{
    float *qkv = op_alloc(sizeof(float) * 50 * (size_t)n_tokens);
    float *rope = op_alloc(sizeof(float) * 16 * (size_t)n_tokens);
    small_rows(small, 0, n_tokens);
    for (int32_t row = 0; row < n_tokens; row++) {
        qkv[row * 50 + 16] = (float)row;
        for (int i = 0; i < 8; i++)
            rope[row * 16 + 2 * i] = 1;
    }
    struct nosa_qkv_write_params params = {&small->batch, &small->kv, 0, 1, qkv, 50, rope, NULL};
    assert_int_equal(OPS.qkv_write(NULL, &params), NOSA_OK);
    for (int32_t pos = 0; pos < n_tokens; pos++)
        small->kv.token_bias[small->table[pos / 64] * 64 + pos % 64] = (float)pos;
    free(rope);
    free(qkv);
}

static void check_compress_keys(enum nosa_dtype type, int32_t stride)
{
    struct small small;
    small_create(&small, type, stride, 3);
    write_ramp(&small, 192);
    /* Only windows that end inside 70 .. 190 are formed. */
    small_rows(&small, 70, 121);
    struct nosa_compress_keys_params params = {&small.batch, &small.kv, 0, true};
    assert_int_equal(OPS.compress_keys(NULL, &params), NOSA_OK);
    int32_t r = 64 / stride, formed = 0;
    for (int32_t window = 0; stride * (window + 2) <= 192; window++) {
        int32_t last = stride * (window + 2) - 1;
        int32_t block = small.table[last / 64], place = (window + 1) % r;
        float mean = (float)(stride * window) + (float)(2 * stride - 1) / 2;
        float bias = small.kv.window_bias[block * r + place];
        const char *keys = small.kv.compressed_keys +
                           (size_t)block * (size_t)r * 16 * (size_t)nosa_dtype_bytes(type);
        float key = type == NOSA_DTYPE_F32
                        ? ((const float *)(const void *)keys)[place]
                        : nosa_bf16_to_f32(((const uint16_t *)(const void *)keys)[2 * place]);
        if (last < 70 || last > 190) {
            assert_true(isnan(bias) && isnan(key));
            continue;
        }
        formed++;
        assert_near(bias, mean, 0);
        if (type == NOSA_DTYPE_F32)
            assert_near(key, mean, 0);
        else
            assert_near(key, mean, 1);
    }
    assert_int_equal(formed, 191 / stride - 70 / stride);
    small_destroy(&small);
}

static void test_compress_keys_windows(void **state)
{
    (void)state;
    static const int32_t strides[] = {4, 16, 32, 64};
    for (size_t i = 0; i < 4; i++) {
        check_compress_keys(NOSA_DTYPE_F32, strides[i]);
        check_compress_keys(NOSA_DTYPE_BF16, strides[i]);
    }
}

/* Sets ck_j = (value, 0, ...) and C_j directly. */
static void set_window(struct small *small, int32_t window, float key, float bias)
{
    int32_t block = small->table[(window + 1) / 4], place = (window + 1) % 4;
    float *keys = (float *)(void *)small->kv.compressed_keys + (int64_t)block * 4 * 16;
    for (int32_t dim = 0; dim < 16; dim++)
        keys[dim * 4 + place] = dim == 0 ? key : 0;
    small->kv.window_bias[block * 4 + place] = bias;
}

struct selected {
    struct nosa_select_blocks_params params;
    float q[16];
    int32_t blocks[16];
    int32_t count;
    float score[16];
    float bias[16];
};

static void small_select(struct small *small, struct selected *s, enum nosa_attention_mode mode)
{
    s->params = (struct nosa_select_blocks_params){.batch = &small->batch,
                                                   .kv = &small->kv,
                                                   .mode = mode,
                                                   .has_bias = true,
                                                   .n_heads = 1,
                                                   .q = s->q,
                                                   .q_stride = 16,
                                                   .scale = 0.25f,
                                                   .init_blocks = 1,
                                                   .window_blocks = 1,
                                                   .first_cut = 4,
                                                   .topk = 5,
                                                   .selected = s->blocks,
                                                   .selected_count = &s->count,
                                                   .block_score = s->score,
                                                   .block_bias = s->bias,
                                                   .score_stride = 16};
    assert_int_equal(OPS.select_blocks(NULL, &s->params), NOSA_OK);
}

static void assert_selected(const struct selected *s, const int32_t *blocks, int32_t count)
{
    assert_int_equal(s->count, count);
    assert_memory_equal(s->blocks, blocks, sizeof(int32_t) * (size_t)count);
}

/*
 * Position 645: blocks 0 .. 10, windows 0 .. 38. Every window scores the same but 22 (inside block
 * 5), whose logit is ln 114: its probability is 114 / (38 + 114). C is 0 but at window 13 (inside
 * block 3).
 */
static void test_select_blocks_two_cuts(void **state)
{
    (void)state;
    struct small small;
    struct selected s = {.q = {4}};
    small_create(&small, NOSA_DTYPE_F32, 16, 11);
    small_rows(&small, 645, 1);
    for (int32_t j = 0; j <= 38; j++)
        set_window(&small, j, j == 22 ? logf(114) : 0, j == 13 ? 7 : 0);
    small_select(&small, &s, NOSA_ATTENTION_NOSA);
    assert_selected(&s, (const int32_t[]){0, 3, 5, 9, 10}, 5);
    for (int32_t b = 0; b < 11; b++) {
        double score = b == 5 ? 0.75 : b == 10 ? 0 : 1.0 / 152;
        assert_near(s.score[b], score, 1e-6);
        if (b == 10)
            assert_true(isinf(s.bias[b]) && s.bias[b] < 0);
        else
            assert_near(s.bias[b], b == 3 ? 7 : 0, 0);
    }
    small_select(&small, &s, NOSA_ATTENTION_INFLLMV2);
    assert_selected(&s, (const int32_t[]){0, 1, 5, 9, 10}, 5);
    small_destroy(&small);
}

/* Window 23 belongs to blocks 5 and 6, window 15 to blocks 3 and 4: the lower one wins both cuts.
 */
static void test_select_blocks_shared_windows_tie(void **state)
{
    (void)state;
    struct small small;
    struct selected s = {.q = {4}};
    small_create(&small, NOSA_DTYPE_F32, 16, 11);
    small_rows(&small, 645, 1);
    for (int32_t j = 0; j <= 38; j++)
        set_window(&small, j, j == 23 ? 5 : 0, j == 15 ? 7 : 0);
    small_select(&small, &s, NOSA_ATTENTION_NOSA);
    assert_selected(&s, (const int32_t[]){0, 3, 5, 9, 10}, 5);
    assert_true(s.score[5] == s.score[6] && s.bias[3] == s.bias[4]);
    small_select(&small, &s, NOSA_ATTENTION_INFLLMV2);
    assert_selected(&s, (const int32_t[]){0, 5, 6, 9, 10}, 5);
    small_destroy(&small);
}

/* A window counts from its last token on: at 638 window 38 (608 .. 639) is not visible yet. */
static void test_select_blocks_window_visibility(void **state)
{
    (void)state;
    struct small small;
    struct selected s = {.q = {4}};
    small_create(&small, NOSA_DTYPE_F32, 16, 11);
    for (int32_t j = 0; j <= 37; j++)
        set_window(&small, j, 0, (float)j);
    small_rows(&small, 638, 1);
    small_select(&small, &s, NOSA_ATTENTION_NOSA);
    assert_near(s.bias[9], 37, 0);
    assert_near(s.score[9], 1.0 / 38, 1e-7);
    set_window(&small, 38, 0, 38);
    small_rows(&small, 639, 1);
    small_select(&small, &s, NOSA_ATTENTION_NOSA);
    assert_near(s.bias[9], 38, 0);
    assert_near(s.score[9], 1.0 / 39, 1e-7);

    small_rows(&small, 30, 1);
    small_select(&small, &s, NOSA_ATTENTION_NOSA);
    assert_near(s.score[0], 0, 0);
    assert_true(isinf(s.bias[0]));
    small_rows(&small, 319, 1);
    small_select(&small, &s, NOSA_ATTENTION_NOSA);
    assert_selected(&s, (const int32_t[]){0, 1, 2, 3, 4}, 5);
    small_destroy(&small);
}

/* Two query heads of a group: S adds their probabilities. */
static void test_select_blocks_group_sum(void **state)
{
    (void)state;
    struct small small;
    struct selected s = {0};
    const float q[32] = {[0] = 4, [16] = -4};
    small_create(&small, NOSA_DTYPE_F32, 16, 11);
    small_rows(&small, 47, 1);
    set_window(&small, 0, logf(3), 0);
    set_window(&small, 1, 0, 0);
    small_select(&small, &s, NOSA_ATTENTION_NOSA);
    s.params.n_heads = 2;
    s.params.q = q;
    s.params.q_stride = 32;
    assert_int_equal(OPS.select_blocks(NULL, &s.params), NOSA_OK);
    assert_near(s.score[0], 1.0, 1e-6);
    small_destroy(&small);
}

static void test_attention_bias_and_causality(void **state)
{
    (void)state;
    struct small small;
    small_create(&small, NOSA_DTYPE_F32, 16, 3);
    /* v_t = t in dimension 2, all keys 0 but token 1: q . k / 4 = ln 2. */
    float qkv[3][48] = {{0}}, rope[3][16], out[3][16];
    for (int row = 0; row < 3; row++) {
        qkv[row][0] = 4;
        qkv[row][16] = row == 1 ? logf(2) : 0;
        qkv[row][34] = (float)row;
        for (int i = 0; i < 16; i++)
            rope[row][i] = i % 2 == 0;
    }
    small_rows(&small, 0, 3);
    struct nosa_qkv_write_params write = {&small.batch, &small.kv, 0,           1,
                                          qkv[0],       48,        &rope[0][0], NULL};
    assert_int_equal(OPS.qkv_write(NULL, &write), NOSA_OK);
    float *bias = small.kv.token_bias + small.table[0] * 64;
    bias[0] = 0, bias[1] = 0, bias[2] = logf(5);
    struct nosa_attention_params params = {.batch = &small.batch,
                                           .kv = &small.kv,
                                           .has_bias = true,
                                           .n_heads = 1,
                                           .head_count = 1,
                                           .q = qkv[0],
                                           .q_stride = 48,
                                           .scale = 0.25f,
                                           .out = out[0],
                                           .out_stride = 16};
    assert_int_equal(OPS.attention(NULL, &params), NOSA_OK);
    assert_near(out[0][2], 0, 0);
    assert_near(out[1][2], 2.0 / 3, 1e-6);
    assert_near(out[2][2], 12.0 / 8, 1e-6);
    params.has_bias = false;
    assert_int_equal(OPS.attention(NULL, &params), NOSA_OK);
    assert_near(out[2][2], 4.0 / 4, 1e-6);
    small_destroy(&small);
}

/* Equal keys: the output is the mean over the tokens of the chosen blocks, up to the row. */
static void test_attention_selected_blocks(void **state)
{
    (void)state;
    struct small small;
    small_create(&small, NOSA_DTYPE_F32, 16, 3);
    float *qkv = op_alloc(sizeof(float) * 48 * 140), *rope = op_alloc(sizeof(float) * 16 * 140);
    for (int row = 0; row < 140; row++)
        qkv[row * 48 + 32] = (float)row;
    small_rows(&small, 0, 140);
    struct nosa_qkv_write_params write = {&small.batch, &small.kv, 0, 1, qkv, 48, rope, NULL};
    assert_int_equal(OPS.qkv_write(NULL, &write), NOSA_OK);
    small_rows(&small, 139, 1);
    const int32_t selected[4] = {0, 2, 99, 99}, count[1] = {2};
    float out[16];
    struct nosa_attention_params params = {.batch = &small.batch,
                                           .kv = &small.kv,
                                           .n_heads = 1,
                                           .head_count = 1,
                                           .q = qkv,
                                           .q_stride = 48,
                                           .scale = 0.25f,
                                           .selected = selected,
                                           .selected_count = count,
                                           .topk = 4,
                                           .out = out,
                                           .out_stride = 16};
    assert_int_equal(OPS.attention(NULL, &params), NOSA_OK);
    double sum = 64 * 31.5 + 12 * 133.5;
    assert_near(out[0], sum / 76, 1e-4);
    params.selected = NULL;
    assert_int_equal(OPS.attention(NULL, &params), NOSA_OK);
    assert_near(out[0], 69.5, 1e-4);
    free(rope);
    free(qkv);
    small_destroy(&small);
}

/* The heads of a group that a rank attends with, and where they go. */
static void test_attention_head_range(void **state)
{
    (void)state;
    const struct op_case *op_case = &op_cases[1];
    struct op_fixture *fixture = op_fixture_create(op_case, 7);
    struct op_batch *batch = op_batch_of_case(fixture);
    float *qkv = op_batch_qkv(fixture, batch), *rope = op_batch_rope(fixture, batch);
    struct nosa_qkv_write_params write =
        op_qkv_write_params(fixture, batch, &fixture->kv, qkv, rope);
    assert_int_equal(OPS.qkv_write(NULL, &write), NOSA_OK);
    int32_t heads = op_case->n_heads, dim = op_case->head_dim, rows = batch->view.n_rows;
    float *all = op_alloc(sizeof(float) * (size_t)(rows * heads * dim));
    float *part = op_alloc(sizeof(float) * (size_t)(rows * heads * dim));
    struct nosa_attention_params params = op_attention_params(fixture, batch, &fixture->kv, qkv);
    params.out = all;
    assert_int_equal(OPS.attention(NULL, &params), NOSA_OK);
    params.out = part;
    params.head_first = 1;
    params.head_count = 2;
    assert_int_equal(OPS.attention(NULL, &params), NOSA_OK);
    for (int32_t row = 0; row < rows; row++)
        for (int32_t kv_head = 0; kv_head < 2; kv_head++)
            assert_memory_equal(part + row * heads * dim + kv_head * 2 * dim,
                                all + row * heads * dim + (kv_head * 3 + 1) * dim,
                                sizeof(float) * (size_t)(2 * dim));
    free(part);
    free(all);
    free(rope);
    free(qkv);
    op_batch_destroy(batch);
    op_fixture_destroy(fixture);
}

static void test_sample_greedy_and_penalties(void **state)
{
    (void)state;
    const float logits[4] = {logf(1), logf(2), logf(5), -1.0f};
    struct nosa_sampling sampling = {0};
    const int64_t position[1] = {9};
    const int32_t n_top[1] = {2}, start[2] = {0, 3}, prompt[1] = {1};
    const int32_t history[3] = {3, 2, 2};
    struct nosa_sample_result result;
    struct nosa_sample_params params = {1,     4,     logits,  &sampling, position,
                                        n_top, start, history, prompt,    &result};
    assert_int_equal(OPS.sample(NULL, &params), NOSA_OK);
    double sum = 8 + exp(-1.0);
    assert_int_equal(result.token, 2);
    assert_near(result.logprob, log(5 / sum), 1e-6);
    assert_int_equal(result.n_top, 2);
    assert_int_equal(result.top_token[1], 1);
    assert_near(result.top_logprob[1], log(2 / sum), 1e-6);

    /* ln 5 - 0.5 - 2 * 0.25 is still above ln 2 minus nothing; 0.3 more is not. */
    sampling.presence_penalty = 0.5f;
    sampling.frequency_penalty = 0.2f;
    assert_int_equal(OPS.sample(NULL, &params), NOSA_OK);
    assert_int_equal(result.token, 2);
    sampling.frequency_penalty = 0.3f;
    assert_int_equal(OPS.sample(NULL, &params), NOSA_OK);
    assert_int_equal(result.token, 1);
    assert_near(result.logprob, log(2 / sum), 1e-6);

    /* Token 3 (in the prompt only) has a negative logit: -1 * 0.001 is above the others' logits
     * once they are below it, and presence does not touch it. */
    const float low[4] = {-2, -3, -4, -1500};
    params.logits = low;
    sampling = (struct nosa_sampling){.repetition_penalty = 0.001f, .presence_penalty = 1};
    assert_int_equal(OPS.sample(NULL, &params), NOSA_OK);
    assert_int_equal(result.token, 2);
    sampling.presence_penalty = 2.5f;
    assert_int_equal(OPS.sample(NULL, &params), NOSA_OK);
    assert_int_equal(result.token, 3);
}

static void test_log_prob_rows(void **state)
{
    (void)state;
    const float logits[6] = {logf(1), logf(2), logf(5), 1000, 1000, -INFINITY};
    const int32_t target[2] = {2, 1};
    float logprob[2];
    struct nosa_log_prob_params params = {2, 3, logits, target, logprob};
    assert_int_equal(OPS.log_prob(NULL, &params), NOSA_OK);
    assert_near(logprob[0], log(5.0 / 8), 1e-6);
    assert_near(logprob[1], -log(2.0), 1e-6);
}

static void test_selection_matches_margin(void **state)
{
    (void)state;
    struct nosa_select_blocks_params params = {.mode = NOSA_ATTENTION_NOSA,
                                               .init_blocks = 1,
                                               .window_blocks = 1,
                                               .first_cut = 5,
                                               .topk = 6};
    /* Forced 0, 8, 9; the first cut has two places: 3 and then 5 before 6 by a hair. */
    const float score[10] = {9, 0, 0, 0.5f, 0.1f, 0.2f, 0.2f * (1 - 1e-6f), 0, 0, 0};
    const float bias[10] = {0, 1, 0.5f, 0, 0, 0, 9, 0, 0, 0};
    char why[128] = "";
    const int32_t right[6] = {0, 3, 5, 6, 8, 9};
    const int32_t near[6] = {0, 1, 3, 6, 8, 9};
    const int32_t no_best[6] = {0, 1, 5, 6, 8, 9};
    const int32_t bad_second[6] = {0, 2, 3, 5, 8, 9};
    const int32_t unforced[6] = {0, 1, 3, 5, 6, 9};
    const int32_t unsorted[6] = {0, 3, 6, 5, 8, 9};
    assert_true(op_selection_matches(&params, 640 - 1, score, bias, right, 6, 0, why, 128));
    assert_false(op_selection_matches(&params, 639, score, bias, near, 6, 0, why, 128));
    assert_true(op_selection_matches(&params, 639, score, bias, near, 6, 1e-5, why, 128));
    assert_false(op_selection_matches(&params, 639, score, bias, no_best, 6, 1e-5, why, 128));
    assert_false(op_selection_matches(&params, 639, score, bias, bad_second, 6, 1e-5, why, 128));
    assert_false(op_selection_matches(&params, 639, score, bias, unforced, 6, 1e-5, why, 128));
    assert_false(op_selection_matches(&params, 639, score, bias, unsorted, 6, 1e-5, why, 128));
    assert_false(op_selection_matches(&params, 639, score, bias, right, 5, 1e-5, why, 128));

    /* Equal scores: the lower block, whatever the margin. */
    const float tied[10] = {9, 0, 0, 0.5f, 0.1f, 0.2f, 0.2f, 0, 0, 0};
    assert_true(op_selection_matches(&params, 639, tied, bias, right, 6, 1e-5, why, 128));
    assert_false(op_selection_matches(&params, 639, tied, bias, near, 6, 1e-5, why, 128));

    params.mode = NOSA_ATTENTION_INFLLMV2;
    assert_true(op_selection_matches(&params, 639, tied, bias, right, 6, 0, why, 128));
    const int32_t lower[6] = {0, 3, 4, 5, 8, 9};
    assert_false(op_selection_matches(&params, 639, tied, bias, lower, 6, 1e-5, why, 128));
}

/* The reference's own selections on every case, and the fixtures' promise: the same token has the
 * same values in any batch, and no NaN is left where a case must not read one. */
static void test_references_on_all_cases(void **state)
{
    (void)state;
    for (size_t i = 0; i < op_case_count; i++) {
        const struct op_case *op_case = &op_cases[i];
        struct op_fixture *fixture = op_fixture_create(op_case, i);
        struct op_batch *batch = op_batch_of_case(fixture);
        float *qkv = op_batch_qkv(fixture, batch), *rope = op_batch_rope(fixture, batch);
        struct nosa_qkv_write_params write =
            op_qkv_write_params(fixture, batch, &fixture->kv, qkv, rope);
        struct nosa_compress_keys_params compress =
            op_compress_keys_params(fixture, batch, &fixture->kv);
        assert_int_equal(OPS.qkv_write(NULL, &write), NOSA_OK);
        assert_int_equal(OPS.compress_keys(NULL, &compress), NOSA_OK);
        int32_t rows = batch->view.n_rows, kv_heads = op_case->n_kv_heads;
        size_t cells = (size_t)rows * (size_t)kv_heads, blocks = (size_t)fixture->table_stride;
        int32_t *selected = op_alloc(cells * (size_t)op_case->topk * sizeof *selected);
        int32_t *count = op_alloc(cells * sizeof *count);
        float *score = op_alloc(cells * blocks * sizeof *score);
        float *bias = op_alloc(cells * blocks * sizeof *bias);
        struct nosa_select_blocks_params select =
            op_select_blocks_params(fixture, batch, &fixture->kv, NOSA_ATTENTION_NOSA, qkv);
        select.selected = selected;
        select.selected_count = count;
        select.block_score = score;
        select.block_bias = bias;
        select.score_stride = (int64_t)blocks;
        for (int pass = 0; pass < 2; pass++) {
            select.mode = pass == 0 ? NOSA_ATTENTION_NOSA : NOSA_ATTENTION_INFLLMV2;
            assert_int_equal(OPS.select_blocks(NULL, &select), NOSA_OK);
            for (size_t cell = 0; cell < cells; cell++) {
                char why[128] = "";
                bool matches = op_selection_matches(
                    &select, batch->row_pos[cell / (size_t)kv_heads], score + cell * blocks,
                    bias + cell * blocks, selected + cell * (size_t)op_case->topk, count[cell], 0,
                    why, sizeof why);
                if (!matches)
                    fail_msg("%s, cell %zu: %s", op_case->name, cell, why);
            }
        }
        size_t out_count = (size_t)rows * (size_t)(op_case->n_heads * op_case->head_dim);
        float *out = op_alloc(out_count * sizeof *out);
        struct nosa_attention_params attention =
            op_attention_params(fixture, batch, &fixture->kv, qkv);
        attention.selected = selected;
        attention.selected_count = count;
        attention.out = out;
        assert_int_equal(OPS.attention(NULL, &attention), NOSA_OK);
        for (size_t value = 0; value < out_count; value++)
            assert_true(fabsf(out[value]) < 8);
        free(out);
        free(bias);
        free(score);
        free(count);
        free(selected);
        free(rope);
        free(qkv);
        op_batch_destroy(batch);
        op_fixture_destroy(fixture);
    }
}

/* The known answers that accompany the published generator. */
static void test_philox_known_answers(void **state)
{
    (void)state;
    static const uint32_t counters[3][4] = {{0, 0, 0, 0},
                                            {0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu},
                                            {0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}};
    static const uint32_t keys[3][2] = {
        {0, 0}, {0xffffffffu, 0xffffffffu}, {0xa4093822u, 0x299f31d0u}};
    static const uint32_t answers[3][4] = {{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u},
                                           {0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu},
                                           {0xd16cfe09u, 0x94fdcceb, 0x5001e420u, 0x24126ea1u}};
    for (int i = 0; i < 3; i++) {
        uint32_t out[4];
        nosa_philox4x32(counters[i], keys[i], out);
        assert_memory_equal(out, answers[i], sizeof out);
    }
}

static void test_philox_unit_is_open(void **state)
{
    (void)state;
    const uint32_t lowest[4] = {0}, highest[4] = {0xffffffffu, 0xffffffffu, 0, 0};
    assert_true(nosa_philox_unit(lowest) > 0);
    assert_true(nosa_philox_unit(highest) < 1);
    const uint32_t middle[4] = {0x80000000u, 0, 0, 0};
    assert_true(fabs(nosa_philox_unit(middle) - 0.5) < 0x1p-51);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_embed_formats_and_ranks),
        cmocka_unit_test(test_rms_norm_rows),
        cmocka_unit_test(test_matmul_epilogues),
        cmocka_unit_test(test_rope_table_angles),
        cmocka_unit_test(test_qkv_write_f32),
        cmocka_unit_test(test_qkv_write_bf16),
        cmocka_unit_test(test_compress_keys_windows),
        cmocka_unit_test(test_select_blocks_two_cuts),
        cmocka_unit_test(test_select_blocks_shared_windows_tie),
        cmocka_unit_test(test_select_blocks_window_visibility),
        cmocka_unit_test(test_select_blocks_group_sum),
        cmocka_unit_test(test_attention_bias_and_causality),
        cmocka_unit_test(test_attention_selected_blocks),
        cmocka_unit_test(test_attention_head_range),
        cmocka_unit_test(test_sample_greedy_and_penalties),
        cmocka_unit_test(test_log_prob_rows),
        cmocka_unit_test(test_selection_matches_margin),
        cmocka_unit_test(test_references_on_all_cases),
        cmocka_unit_test(test_philox_known_answers),
        cmocka_unit_test(test_philox_unit_is_open),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
