/*
 * Reference of block selection (InfLLM-V2's query-aware score, NOSA's two cuts): each step as
 * stated, one row and one KV head at a time, then a plain sort by score and index.
 */
#include <math.h>
#include <stdlib.h>

#include "reference_internal.h"

/* One row and KV head at work. */
struct selection {
    const struct nosa_select_blocks_params *params;
    int32_t row;
    int32_t kv_head;
    int32_t pos;
    int32_t n_visible;    /* blocks 0 .. pos / 64 */
    int32_t n_windows;    /* windows that are complete and in the past */
    double *probability;  /* [windows of one query head], owned */
    double *window_score; /* S [n_windows], owned */
    float *score;         /* B [n_visible], owned */
    float *bias;          /* E [n_visible], owned */
    bool *chosen;         /* [n_visible], owned */
};

static int32_t visible_windows(const struct nosa_kv_geometry *geometry, int32_t pos)
{
    int32_t first = pos + 1 - geometry->kernel_size;
    return first < 0 ? 0 : first / geometry->kernel_stride + 1;
}

/* q_i . ck_j / sqrt(head_dim) */
static double window_logit(const struct selection *s, const float *q, int32_t window)
{
    const struct nosa_select_blocks_params *params = s->params;
    int32_t r = nosa_kv_windows_per_block(&params->kv->geometry);
    int32_t block = nosa_reference_block(params->batch, s->row, (window + 1) / r);
    double sum = 0;
    for (int32_t dim = 0; dim < params->kv->geometry.head_dim; dim++)
        sum += (double)q[dim] * nosa_reference_ck_at(params->kv, params->layer, s->kv_head, block,
                                                     (window + 1) % r, dim);
    return sum * params->scale;
}

/* S: the softmax of every query head of the group over the visible windows, added up. */
static void score_windows(struct selection *s)
{
    const struct nosa_select_blocks_params *params = s->params;
    int32_t group = params->n_heads / params->kv->geometry.n_kv_heads;
    int32_t head_dim = params->kv->geometry.head_dim;
    for (int32_t j = 0; j < s->n_windows; j++)
        s->window_score[j] = 0;
    for (int32_t i = 0; i < group; i++) {
        const float *q =
            params->q + s->row * params->q_stride + (int64_t)(s->kv_head * group + i) * head_dim;
        double top = -INFINITY, sum = 0;
        for (int32_t j = 0; j < s->n_windows; j++) {
            s->probability[j] = window_logit(s, q, j);
            top = fmax(top, s->probability[j]);
        }
        for (int32_t j = 0; j < s->n_windows; j++) {
            s->probability[j] = exp(s->probability[j] - top);
            sum += s->probability[j];
        }
        for (int32_t j = 0; j < s->n_windows; j++)
            s->window_score[j] += s->probability[j] / sum;
    }
}

/* C of a window. */
static float window_bias(const struct selection *s, int32_t window)
{
    const struct nosa_select_blocks_params *params = s->params;
    int32_t r = nosa_kv_windows_per_block(&params->kv->geometry);
    int32_t block = nosa_reference_block(params->batch, s->row, (window + 1) / r);
    int64_t record = nosa_kv_record_index(params->kv, params->layer, s->kv_head, block);
    return params->kv->window_bias[record * r + (window + 1) % r];
}

/* B and E: the largest S and C of the windows that touch the block. Both are float32. */
static void score_blocks(struct selection *s)
{
    int32_t r = nosa_kv_windows_per_block(&s->params->kv->geometry);
    for (int32_t b = 0; b < s->n_visible; b++) {
        s->score[b] = 0;
        s->bias[b] = -INFINITY;
        for (int32_t j = r * b - 1; j <= r * b + r - 1; j++) {
            if (j < 0 || j >= s->n_windows)
                continue;
            s->score[b] = fmaxf(s->score[b], (float)s->window_score[j]);
            if (s->params->has_bias)
                s->bias[b] = fmaxf(s->bias[b], window_bias(s, j));
        }
    }
}

static bool is_forced(const struct nosa_select_blocks_params *params, int32_t block, int32_t pos)
{
    int32_t own = pos / NOSA_BLOCK_TOKENS;
    return block < params->init_blocks || (block >= own - params->window_blocks && block <= own);
}

struct candidate {
    float score;
    int32_t block;
};

static int by_score_then_index(const void *left, const void *right)
{
    const struct candidate *a = left, *b = right;
    if (a->score != b->score)
        return a->score > b->score ? -1 : 1;
    return a->block < b->block ? -1 : a->block > b->block;
}

/* Chooses the best blocks not chosen yet until `total` are. Returns false without memory. */
static bool choose_best(struct selection *s, const float *score, int32_t total)
{
    struct candidate *candidates = calloc((size_t)s->n_visible, sizeof *candidates);
    if (candidates == NULL)
        return false;
    int32_t n_candidates = 0, n_chosen = 0;
    for (int32_t b = 0; b < s->n_visible; b++) {
        if (s->chosen[b])
            n_chosen++;
        else
            candidates[n_candidates++] = (struct candidate){score[b], b};
    }
    qsort(candidates, (size_t)n_candidates, sizeof *candidates, by_score_then_index);
    for (int32_t i = 0; i < n_candidates && n_chosen < total; i++, n_chosen++)
        s->chosen[candidates[i].block] = true;
    free(candidates);
    return true;
}

static bool choose_blocks(struct selection *s)
{
    const struct nosa_select_blocks_params *params = s->params;
    if (s->n_visible <= params->topk) {
        for (int32_t b = 0; b < s->n_visible; b++)
            s->chosen[b] = true;
        return true;
    }
    for (int32_t b = 0; b < s->n_visible; b++)
        s->chosen[b] = is_forced(params, b, s->pos);
    if (!choose_best(s, s->score, params->first_cut))
        return false;
    return choose_best(s, params->mode == NOSA_ATTENTION_NOSA ? s->bias : s->score, params->topk);
}

static void write_selection(const struct selection *s)
{
    const struct nosa_select_blocks_params *params = s->params;
    int64_t cell = (int64_t)s->row * params->kv->geometry.n_kv_heads + s->kv_head;
    int32_t count = 0;
    for (int32_t b = 0; b < s->n_visible; b++) {
        if (s->chosen[b])
            params->selected[cell * params->topk + count++] = b;
        if (params->block_score != NULL)
            params->block_score[cell * params->score_stride + b] = s->score[b];
        if (params->block_bias != NULL)
            params->block_bias[cell * params->score_stride + b] = s->bias[b];
    }
    params->selected_count[cell] = count;
}

static enum nosa_status select_one(const struct nosa_select_blocks_params *params, int32_t row,
                                   int32_t kv_head)
{
    struct selection s = {.params = params, .row = row, .kv_head = kv_head};
    s.pos = params->batch->row_pos[row];
    s.n_visible = s.pos / NOSA_BLOCK_TOKENS + 1;
    s.n_windows = visible_windows(&params->kv->geometry, s.pos);
    s.probability = calloc((size_t)s.n_windows + 1, sizeof *s.probability);
    s.window_score = calloc((size_t)s.n_windows + 1, sizeof *s.window_score);
    s.score = calloc((size_t)s.n_visible, sizeof *s.score);
    s.bias = calloc((size_t)s.n_visible, sizeof *s.bias);
    s.chosen = calloc((size_t)s.n_visible, sizeof *s.chosen);

    enum nosa_status status = NOSA_OUT_OF_MEMORY;
    if (!s.probability || !s.window_score || !s.score || !s.bias || !s.chosen)
        goto cleanup;
    score_windows(&s);
    score_blocks(&s);
    if (!choose_blocks(&s))
        goto cleanup;
    write_selection(&s);
    status = NOSA_OK;
cleanup:
    free(s.chosen);
    free(s.bias);
    free(s.score);
    free(s.window_score);
    free(s.probability);
    return status;
}

enum nosa_status nosa_reference_select_blocks(struct nosa_stream *stream,
                                              const struct nosa_select_blocks_params *params)
{
    (void)stream;
    if (params->mode != NOSA_ATTENTION_NOSA && params->mode != NOSA_ATTENTION_INFLLMV2)
        return NOSA_INVALID_ARGUMENT;
    for (int32_t row = 0; row < params->batch->n_rows; row++)
        for (int32_t kv_head = 0; kv_head < params->kv->geometry.n_kv_heads; kv_head++)
            NOSA_TRY(select_one(params, row, kv_head));
    return NOSA_OK;
}
