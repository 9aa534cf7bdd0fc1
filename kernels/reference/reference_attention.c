/*
 * Reference of attention over selected blocks: out = sum w v / sum w,
 * w = exp(q . k / sqrt(head_dim) + c), in double, one softmax over the whole list, or over each
 * part and what the state holds of those before.
 */
#include <math.h>
#include <stdlib.h>

#include "reference_internal.h"

/* One row, KV head and query head. */
struct query {
    const struct nosa_attention_params *params;
    int32_t row;
    int32_t kv_head;
    const float *q;
    int32_t n_blocks;
    const int32_t *blocks; /* [n_blocks] logical, or NULL: 0 .. n_blocks - 1 */
    int32_t first;         /* entries of this part: first .. end - 1 */
    int32_t end;
    float *state; /* [head_dim + 2] acc, m, l, or NULL */
};

/* Scores of the tokens of entry `entry`; returns how many count (those at or before the row). */
static int32_t score_block(const struct query *query, int32_t entry, double *scores,
                           int32_t *block_out)
{
    const struct nosa_attention_params *params = query->params;
    const struct nosa_kv_view *kv = params->kv;
    int32_t logical = query->blocks == NULL ? entry : query->blocks[entry];
    int32_t block = nosa_reference_block(params->batch, query->row, logical);
    int32_t pos = params->batch->row_pos[query->row];
    int32_t count = pos - logical * NOSA_BLOCK_TOKENS + 1;
    count = count > NOSA_BLOCK_TOKENS ? NOSA_BLOCK_TOKENS : count;
    int64_t record = nosa_kv_record_index(kv, params->layer, query->kv_head, block);
    for (int32_t token = 0; token < count; token++) {
        double sum = 0;
        for (int32_t dim = 0; dim < kv->geometry.head_dim; dim++)
            sum += (double)query->q[dim] *
                   nosa_reference_k_at(kv, params->layer, query->kv_head, block, token, dim);
        scores[token] = sum * params->scale;
        if (params->has_bias)
            scores[token] += kv->token_bias[record * NOSA_BLOCK_TOKENS + token];
    }
    *block_out = block;
    return count;
}

static void attend(const struct query *query, float *out)
{
    const struct nosa_kv_view *kv = query->params->kv;
    int32_t head_dim = kv->geometry.head_dim, block;
    double scores[NOSA_BLOCK_TOKENS], acc[256] = {0}, top = -INFINITY, total = 0;
    NOSA_ASSERT(head_dim <= 256);
    if (query->first > 0)
        top = query->state[head_dim];
    for (int32_t entry = query->first; entry < query->end; entry++) {
        int32_t count = score_block(query, entry, scores, &block);
        for (int32_t token = 0; token < count; token++)
            top = fmax(top, scores[token]);
    }
    if (query->first > 0) {
        double factor = exp(query->state[head_dim] - top);
        total = query->state[head_dim + 1] * factor;
        for (int32_t dim = 0; dim < head_dim; dim++)
            acc[dim] = query->state[dim] * factor;
    }
    for (int32_t entry = query->first; entry < query->end; entry++) {
        int32_t count = score_block(query, entry, scores, &block);
        for (int32_t token = 0; token < count; token++) {
            double weight = exp(scores[token] - top);
            total += weight;
            for (int32_t dim = 0; dim < head_dim; dim++)
                acc[dim] += weight * nosa_reference_v_at(kv, query->params->layer, query->kv_head,
                                                         block, token, dim);
        }
    }
    bool last = query->end == query->n_blocks;
    for (int32_t dim = 0; dim < head_dim; dim++)
        *(last ? &out[dim] : &query->state[dim]) = (float)(last ? acc[dim] / total : acc[dim]);
    if (!last) {
        query->state[head_dim] = (float)top;
        query->state[head_dim + 1] = (float)total;
    }
}

/* Whether the list has entries in the part that the call names; sets them. */
static bool find_part(struct query *query)
{
    const struct nosa_attention_params *params = query->params;
    query->first = params->entry_first;
    query->end = query->n_blocks;
    if (params->entry_count > 0 && params->entry_first + params->entry_count < query->n_blocks)
        query->end = params->entry_first + params->entry_count;
    return query->first < query->end;
}

enum nosa_status nosa_reference_attention(struct nosa_stream *stream,
                                          const struct nosa_attention_params *params)
{
    (void)stream;
    int32_t n_kv_heads = params->kv->geometry.n_kv_heads;
    int32_t head_dim = params->kv->geometry.head_dim;
    int32_t group = params->n_heads / n_kv_heads;
    NOSA_ASSERT(params->head_first + params->head_count <= group);
    for (int32_t row = 0; row < params->batch->n_rows; row++) {
        for (int32_t kv_head = 0; kv_head < n_kv_heads; kv_head++) {
            struct query query = {.params = params, .row = row, .kv_head = kv_head};
            int64_t cell = (int64_t)row * n_kv_heads + kv_head;
            query.n_blocks = params->batch->row_pos[row] / NOSA_BLOCK_TOKENS + 1;
            if (params->selected != NULL) {
                query.blocks = params->selected + cell * params->topk;
                query.n_blocks = params->selected_count[cell];
            }
            for (int32_t i = 0; i < params->head_count && find_part(&query); i++) {
                int32_t head = kv_head * group + params->head_first + i;
                int64_t out_head = kv_head * params->head_count + i;
                int64_t out_row = (int64_t)row * n_kv_heads * params->head_count;
                if (params->state != NULL)
                    query.state = params->state + (out_row + out_head) * (head_dim + 2);
                query.q = params->q + row * params->q_stride + (int64_t)head * head_dim;
                attend(&query, params->out + row * params->out_stride + out_head * head_dim);
            }
        }
    }
    return NOSA_OK;
}
