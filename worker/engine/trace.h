/*
 * What a step can hand out beside tokens: which blocks its rows selected, and whole rows of logits.
 *
 * A session that is opened with a trace sink gets, for each of its rows that is to be traced, the
 * blocks that every layer and KV head of the model chose, and the blocks' E. A replay of residency
 * policies needs every row from some position on (its steps), and of what came before only how
 * recent each block is: there the last row of each block is enough, and the row before the first
 * step. Rows that no one traces cost nothing, and an engine that was opened without room for
 * traced rows takes no memory for them.
 *
 * The selection is copied on the rank's stream, layer by layer, into pinned memory; the engine
 * brings the ranks' KV heads together when the step is finished and calls the sink, on the thread
 * that owns it.
 */
#ifndef NOSA_ENGINE_TRACE_H
#define NOSA_ENGINE_TRACE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "device.h"

/* One row: the token at `position`, and what it attended to. Valid during the call. */
struct nosa_trace_row {
    int32_t position;
    int32_t n_blocks; /* visible: position / 64 + 1 */
    int32_t n_layers;
    int32_t n_kv_heads;            /* of the model */
    int32_t topk;                  /* stride of `selected` */
    const int32_t *selected;       /* [n_layers][n_kv_heads][topk] logical blocks, ascending */
    const int32_t *selected_count; /* [n_layers][n_kv_heads] */
    const float *e;                /* [n_layers][n_kv_heads][e_stride], the first n_blocks count */
    int64_t e_stride;
};

struct nosa_trace_sink {
    int32_t step_first; /* every row from this position on is traced */
    /* Called on the engine's thread as steps finish, positions ascending. */
    void (*row)(void *context, const struct nosa_trace_row *row);
    void *context;
};

/* Whether a sink wants the row at `position`. */
static inline bool nosa_trace_wants(const struct nosa_trace_sink *sink, int32_t position)
{
    return position >= sink->step_first - 1 ||
           position % NOSA_BLOCK_TOKENS == NOSA_BLOCK_TOKENS - 1;
}

/* ---- inside the engine --------------------------------------------------------------------- */

/* Rows of the step in flight that are traced, and where one is put together. */
struct nosa_step_trace {
    int32_t rows_max;
    int32_t n_rows;
    int32_t *row;                        /* [rows_max] owned: of the batch, ascending */
    int32_t *position;                   /* [rows_max] owned */
    const struct nosa_trace_sink **sink; /* [rows_max] owned; the sinks are borrowed */
    int32_t n_blocks;                    /* visible to the one that sees most */
    /* owned, of one row over all ranks */
    int32_t *selected;
    int32_t *selected_count;
    float *e;
};

/* A rank's part; all zero when the engine traces nothing. */
struct nosa_rank_trace {
    int32_t rows_max;
    int32_t blocks_max; /* stride of e and block_bias */
    float *block_bias;  /* [rows of a step][kv heads][blocks_max] device memory */
    size_t block_bias_bytes;
    /* pinned: [n_layers][rows_max][kv heads][topk | 1 | blocks_max] */
    int32_t *selected;
    int32_t *selected_count;
    float *e;
    size_t selected_bytes, count_bytes, e_bytes;
};

struct nosa_rank;
struct nosa_rank_group;
struct nosa_step_plan;

/* Memory for rows_max traced rows of a step; nothing for 0. On failure the caller destroys. */
enum nosa_status nosa_rank_trace_create(struct nosa_rank *rank, struct nosa_error *error);
void nosa_rank_trace_destroy(struct nosa_rank *rank);
/* Where selection shall write E, with rows of trace.blocks_max: NULL in a step that traces no row.
 */
float *nosa_rank_trace_bias(const struct nosa_rank *rank, const struct nosa_step_plan *plan);
/* Enqueues the copies of the traced rows after the selection of `layer`. */
void nosa_rank_trace_copy(struct nosa_rank *rank, const struct nosa_step_plan *plan, int32_t layer);

enum nosa_status nosa_step_trace_create(struct nosa_step_trace *trace,
                                        const struct nosa_rank_group *group, int32_t rows_max,
                                        struct nosa_error *error);
void nosa_step_trace_destroy(struct nosa_step_trace *trace);
/* Rows of positions [first, first + count) that `sink` wants; sink may be NULL. */
int32_t nosa_step_trace_count(const struct nosa_trace_sink *sink, int32_t first, int32_t count);
/* Lists them; the first row of the positions is row_first of the batch. */
void nosa_step_trace_add(struct nosa_step_trace *trace, const struct nosa_trace_sink *sink,
                         int32_t row_first, int32_t first, int32_t count);
/* After the step: hands every traced row to its sink, and empties the list. */
void nosa_step_trace_deliver(struct nosa_step_trace *trace, const struct nosa_rank_group *group);

#endif
