/*
 * What one step computes, as flat host arrays: made by the engine, read by every rank.
 *
 * Rows are tokens, packed sequence after sequence (ops.h: nosa_batch_view). All arrays that ranks
 * read lie in one image in pinned host memory, which one copy brings to a rank's device. Where an
 * array lies in the image depends on the step's buckets alone: the numbers of rows, of sequences
 * and of blocks of the longest sequence, each rounded up to a power of two (at most its bound). So
 * a copy is not much larger than what the step uses, and the device addresses and strides of a
 * bucket never change: a recorded step can be replayed for any other of its bucket.
 *
 * A plan belongs to the step in flight until that is over.
 */
#ifndef NOSA_ENGINE_STEP_PLAN_H
#define NOSA_ENGINE_STEP_PLAN_H

#include <stddef.h>
#include <stdint.h>

#include "device.h"
#include "ops.h"

struct nosa_step_tiers;
struct nosa_step_trace;

/* Bounds of a plan; taken once at open. */
struct nosa_plan_limits {
    int32_t rows_max;
    int32_t seqs_max;
    int32_t blocks_max; /* logical blocks of the longest sequence */
    int32_t vocab;      /* columns of logits that a step may keep; 0: none are ever kept */
};

struct nosa_step_plan {
    struct nosa_plan_limits limits;
    struct nosa_device *device; /* borrowed: whose pinned memory it is */
    char *image;                /* owned */
    size_t image_bytes;
    /* Of this step: places in the image. A rank's device addresses are at the same offsets. */
    int32_t *token;                 /* [n_rows] */
    int32_t *row_pos;               /* [n_rows] */
    int32_t *row_seq;               /* [n_rows] */
    int32_t *tile_row;              /* [n_tiles] */
    int32_t *tile_rows;             /* [n_tiles] */
    int32_t *score_row;             /* [n_score] rows whose known next token is scored */
    int32_t *score_token;           /* [n_score] that token */
    int32_t *sample_row;            /* [n_sample] rows whose next token is drawn, ascending */
    int32_t *block_table;           /* [n_seqs][table_stride] */
    struct nosa_sampling *sampling; /* [n_sample]; this and all below only rank 0 needs */
    int64_t *position;              /* [n_sample] */
    int32_t *n_top;                 /* [n_sample] */
    int32_t *prompt_length;         /* [n_sample] */
    int32_t *history_start;         /* [n_sample + 1] */
    int32_t *history_tokens;        /* [history_start[n_sample]] last in the image */
    size_t shared_bytes;            /* of the image, from its start: what every rank reads */
    size_t used_bytes;              /* likewise: what rank 0 reads */
    int32_t n_rows;
    int32_t n_seqs;
    int32_t n_tiles;
    int32_t n_sample;
    int32_t n_score;
    int32_t tile_rows_max; /* of the tiles to be added: NOSA_BLOCK_TOKENS, or what a pass takes */
    int32_t table_stride;  /* a bucket */
    bool *keep;            /* [seqs_max] owned: the logits of sampled row i are wanted */
    const struct nosa_step_tiers *tiers; /* what the step moves, borrowed; or NULL: one tier */
    const struct nosa_step_trace *trace; /* rows whose selection is wanted, borrowed; or NULL */
    /* Results, in pinned memory: rank 0 copies them here; valid when its stream is empty. */
    struct nosa_sample_result *result; /* [seqs_max] owned: [n_sample] of this step */
    float *score;                      /* [rows_max] owned: log probability of score_token */
    float *logits;                     /* [seqs_max][vocab] owned: row i if keep[i] */
    float *score_logits;               /* [n_score][vocab] borrowed, or NULL: not wanted */
};

/* Smallest power of two that is at least n, but at most `max`. */
int32_t nosa_step_plan_bucket(int32_t n, int32_t max);

/* Bytes of the largest image within the limits: what a rank takes for its copy. */
size_t nosa_step_plan_bytes(const struct nosa_plan_limits *limits);

/* Takes all memory of a plan; on failure the plan is empty. `device` outlives it. Blocks. */
enum nosa_status nosa_step_plan_create(const struct nosa_plan_limits *limits,
                                       struct nosa_device *device, struct nosa_step_plan *out,
                                       struct nosa_error *error);
/* No step that uses it may be in flight. An empty plan is allowed. */
void nosa_step_plan_destroy(struct nosa_step_plan *plan);

/* Empties the plan and lays its arrays out for a step of at most n_rows rows of n_seqs sequences,
 * the longest of n_blocks blocks. The caller keeps to the limits, and to these numbers. */
void nosa_step_plan_begin(struct nosa_step_plan *plan, int32_t n_rows, int32_t n_seqs,
                          int32_t n_blocks);

/* Makes it a step that computes nothing and only moves blocks between tiers. */
void nosa_step_plan_begin_moves(struct nosa_step_plan *plan);

/* Adds positions [first, first + count) of one sequence with its block ids; returns its index in
 * the batch. */
int32_t nosa_step_plan_add(struct nosa_step_plan *plan, const uint32_t *tokens, int32_t first,
                           int32_t count, const int32_t *blocks, int32_t n_blocks);

struct nosa_plan_sample {
    const struct nosa_sampling *sampling;
    const uint32_t *tokens; /* [n_tokens] prompt and output */
    int32_t n_tokens;       /* also the position of the token that is drawn */
    int32_t prompt_length;
    int32_t n_top;
    bool keep; /* the logits are wanted */
};

/* Has the token after the last row drawn. The tokens are copied only where penalties need them. */
void nosa_step_plan_add_sample(struct nosa_step_plan *plan, const struct nosa_plan_sample *sample);

#endif
