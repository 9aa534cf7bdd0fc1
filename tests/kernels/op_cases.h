/*
 * What the op tests share: one list of shapes with ragged edges, builders of batches and KV caches
 * for them, and the comparison of selections by margin.
 *
 * A case is a model shape and several sequences of ragged length; a fixture is the case built: KV
 * memory in a shuffled order, filled by the references up to each sequence's first row. All values
 * are a function of (seed, sequence, position), so that the same token gets the same numbers in
 * whatever batch it is. Memory that nothing has written holds NaN, so that reading it shows.
 * Builders abort when memory runs out.
 */
#ifndef NOSA_TESTS_KERNELS_OP_CASES_H
#define NOSA_TESTS_KERNELS_OP_CASES_H

#include <stddef.h>
#include <stdint.h>

#include "ops.h"

#define OP_CASE_SEQS_MAX 16

/* Rows first .. first + rows - 1 of sequence `seq` of the case. */
struct op_span {
    int32_t seq;
    int32_t first;
    int32_t rows;
};

struct op_case {
    const char *name;
    int32_t n_heads;
    int32_t n_kv_heads;
    int32_t head_dim;
    int32_t kernel_stride;
    enum nosa_dtype type;
    bool has_bias;
    int32_t init_blocks;
    int32_t window_blocks;
    int32_t select_blocks;
    int32_t topk;
    int32_t n_seqs;
    struct {
        int32_t
            first; /* position of the first row in the batch; what is before lies in the cache */
        int32_t rows;
    } seqs[OP_CASE_SEQS_MAX];
};

extern const struct op_case op_cases[];
extern const size_t op_case_count;

#define OP_CASE_LAYERS 2 /* every cache has two layers; tests use the second */
#define OP_CASE_LAYER  1

/* KV memory of its own; `view` points into it. */
struct op_kv {
    struct nosa_kv_view view;
    size_t n_records;
    size_t n_slots;
    int32_t *record_slot;
};

struct op_fixture {
    const struct op_case *op_case;
    uint64_t seed;
    struct op_kv kv;
    int32_t table_stride;
    int32_t *tables;       /* [n_seqs][table_stride], -1 beyond a sequence's blocks */
    float *eviction_scale; /* A [n_kv_heads], or NULL */
    float scale;           /* 1 / sqrt(head_dim) */
};

struct op_batch {
    struct nosa_batch_view view;
    int32_t *row_pos;
    int32_t *row_seq;
    int32_t *tile_row;
    int32_t *tile_rows;
    int32_t *block_table;
    int32_t *row_case_seq; /* [n_rows] sequence of the case, whatever its place in this batch */
};

/* Zeroed memory aligned to 4096; aborts without memory. Freed with free(). */
void *op_alloc(size_t bytes);

/* Random numbers that are a function of their arguments: uniform in [-1, 1), about normal. */
float op_uniform(uint64_t seed, uint64_t a, uint64_t b);
float op_normal(uint64_t seed, uint64_t a, uint64_t b);

/* Builds KV memory for the case and fills it up to each sequence's first row. */
struct op_fixture *op_fixture_create(const struct op_case *op_case, uint64_t seed);
void op_fixture_destroy(struct op_fixture *fixture);

/* A copy of the cache, bytes and all; ended with op_kv_destroy. */
void op_kv_copy(const struct op_kv *from, struct op_kv *to);
void op_kv_destroy(struct op_kv *kv);

/* Moves a share of the records, chosen at random, from their slots into images, which are taken
 * once. What is left in their slots is NaN. */
void op_kv_offload(struct op_kv *kv, float share, uint64_t seed);

/* A batch of the spans, in order; spans of one sequence must not follow one another. */
struct op_batch *op_batch_create(const struct op_fixture *fixture, const struct op_span *spans,
                                 int32_t n_spans);
/* The batch that the case describes. */
struct op_batch *op_batch_of_case(const struct op_fixture *fixture);
void op_batch_destroy(struct op_batch *batch);

/* Columns of a QKV row of the case, and a stride that is no multiple of anything. */
int32_t op_qkv_columns(const struct op_case *op_case);
int64_t op_qkv_stride(const struct op_case *op_case);

/* The QKV product's rows of the batch, before rotation: [n_rows][op_qkv_stride]. What lies between
 * the columns and the stride is NaN. Freed with free(). */
float *op_batch_qkv(const struct op_fixture *fixture, const struct op_batch *batch);

/* The rotation table of the batch: [n_rows][head_dim / 2][2]. Freed with free(). */
float *op_batch_rope(const struct op_fixture *fixture, const struct op_batch *batch);

/* Parameters of the KV ops for this fixture and batch, on OP_CASE_LAYER; outputs are left NULL. */
struct nosa_qkv_write_params op_qkv_write_params(const struct op_fixture *fixture,
                                                 const struct op_batch *batch,
                                                 const struct op_kv *kv, float *qkv,
                                                 const float *rope);
struct nosa_compress_keys_params op_compress_keys_params(const struct op_fixture *fixture,
                                                         const struct op_batch *batch,
                                                         const struct op_kv *kv);
struct nosa_select_blocks_params
op_select_blocks_params(const struct op_fixture *fixture, const struct op_batch *batch,
                        const struct op_kv *kv, enum nosa_attention_mode mode, const float *q);
struct nosa_attention_params op_attention_params(const struct op_fixture *fixture,
                                                 const struct op_batch *batch,
                                                 const struct op_kv *kv, const float *q);

/*
 * Whether `got` is a right selection for a row at `pos`, given the reference's scores of the
 * visible blocks. Scores B of the backend under test may differ from the reference's by `epsilon`
 * relative; E must be equal. So a block may be in or out of the query-aware cut only if its B is
 * within that margin of the cut, equal scores go to the lower block, and the query-agnostic cut
 * must follow exactly. Writes the reason to `why` when it is not.
 */
bool op_selection_matches(const struct nosa_select_blocks_params *params, int32_t pos,
                          const float *block_score, const float *block_bias, const int32_t *got,
                          int32_t got_count, double epsilon, char *why, size_t why_bytes);

#endif
