/*
 * Reference of sampling: every token is kept or dropped by walking a fully sorted list, and every
 * kept token gets its Gumbel noise. Logits after penalties, and the distance (largest - logit) /
 * temperature by which tokens are ranked, are float32; sums are double.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "philox.h"
#include "reference_internal.h"

struct ranked {
    float distance; /* (largest logit - logit) / temperature; infinite: cannot be drawn */
    int32_t token;
};

struct row {
    int32_t vocab;
    const struct nosa_sampling *sampling;
    int64_t position;
    float *raw;            /* [vocab] logits with NaN as -inf, owned */
    float *logits;         /* [vocab] after penalties, owned */
    int32_t *total_count;  /* [vocab] occurrences in prompt and output, owned */
    int32_t *output_count; /* [vocab] occurrences in the output, owned */
    struct ranked *ranked; /* [vocab], owned */
};

static int by_distance_then_token(const void *left, const void *right)
{
    const struct ranked *a = left, *b = right;
    if (a->distance != b->distance)
        return a->distance < b->distance ? -1 : 1;
    return a->token < b->token ? -1 : a->token > b->token;
}

static int32_t largest(const float *logits, int32_t vocab)
{
    int32_t best = 0;
    for (int32_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

/* NaN counts as -inf, +inf as the largest finite number. */
static float finite_or_lowest(float logit)
{
    if (isnan(logit))
        return -INFINITY;
    return fminf(logit, FLT_MAX);
}

static void apply_penalties(struct row *row, const int32_t *history, int32_t length,
                            int32_t prompt_length)
{
    const struct nosa_sampling *sampling = row->sampling;
    for (int32_t i = 0; i < length; i++) {
        if (history[i] < 0 || history[i] >= row->vocab)
            continue;
        row->total_count[history[i]]++;
        if (i >= prompt_length)
            row->output_count[history[i]]++;
    }
    for (int32_t i = 0; i < row->vocab; i++) {
        float logit = row->raw[i];
        if (row->total_count[i] > 0 && sampling->repetition_penalty > 0 &&
            sampling->repetition_penalty != 1)
            logit = logit > 0 ? logit / sampling->repetition_penalty
                              : logit * sampling->repetition_penalty;
        if (row->output_count[i] > 0) {
            logit -= sampling->presence_penalty;
            logit -= sampling->frequency_penalty * (float)row->output_count[i];
        }
        row->logits[i] = finite_or_lowest(logit);
    }
}

/* How many of the sorted list are kept by top-k, top-p and min-p, in this order. */
static int32_t kept(const struct row *row)
{
    const struct nosa_sampling *sampling = row->sampling;
    int32_t count = row->vocab;
    while (count > 0 && isinf(row->ranked[count - 1].distance))
        count--;
    if (sampling->top_k > 0 && sampling->top_k < count)
        count = sampling->top_k;
    if (sampling->top_p > 0 && sampling->top_p < 1) {
        double total = 0, sum = 0;
        for (int32_t i = 0; i < count; i++)
            total += exp(-(double)row->ranked[i].distance);
        int32_t needed = 0;
        while (needed < count && sum < sampling->top_p * total)
            sum += exp(-(double)row->ranked[needed++].distance);
        count = needed;
    }
    if (sampling->min_p > 0) {
        float furthest = (float)fmax(0, -log((double)sampling->min_p));
        while (row->ranked[count - 1].distance > furthest)
            count--;
    }
    return count;
}

static int32_t draw(struct row *row)
{
    int32_t best = largest(row->logits, row->vocab);
    if (!(row->sampling->temperature > 0) || row->logits[best] == -INFINITY)
        return best;
    float temperature = fminf(row->sampling->temperature, FLT_MAX);
    for (int32_t i = 0; i < row->vocab; i++)
        row->ranked[i] = (struct ranked){(row->logits[best] - row->logits[i]) / temperature, i};
    qsort(row->ranked, (size_t)row->vocab, sizeof *row->ranked, by_distance_then_token);

    int32_t count = kept(row), winner = row->ranked[0].token;
    double winner_value = -INFINITY;
    for (int32_t i = 0; i < count; i++) {
        uint32_t block[4];
        int32_t token = row->ranked[i].token;
        nosa_philox_sampling(row->sampling->seed, row->position, (uint32_t)token, block);
        double value = -row->ranked[i].distance - log(-log(nosa_philox_unit(block)));
        if (value > winner_value || (value == winner_value && token < winner)) {
            winner = token;
            winner_value = value;
        }
    }
    return winner;
}

static void write_logprobs(struct row *row, int32_t n_top, struct nosa_sample_result *result)
{
    float top = row->raw[largest(row->raw, row->vocab)];
    double sum = 0;
    for (int32_t i = 0; i < row->vocab; i++)
        sum += row->raw[i] == -INFINITY ? 0 : exp((double)row->raw[i] - top);
    double log_sum = top == -INFINITY ? 0 : top + log(sum);
    for (int32_t i = 0; i < row->vocab; i++)
        row->ranked[i] = (struct ranked){-row->raw[i], i};
    qsort(row->ranked, (size_t)row->vocab, sizeof *row->ranked, by_distance_then_token);
    result->logprob = (float)(row->raw[result->token] - log_sum);
    n_top = n_top < NOSA_TOP_LOGPROBS_MAX ? n_top : NOSA_TOP_LOGPROBS_MAX;
    result->n_top = n_top < row->vocab ? n_top : row->vocab;
    for (int32_t i = 0; i < result->n_top; i++) {
        result->top_token[i] = row->ranked[i].token;
        result->top_logprob[i] = (float)(-(double)row->ranked[i].distance - log_sum);
    }
}

/* Whether the logits are no distribution: one is NaN or +inf, or all are -inf. */
static bool is_broken(const float *logits, int32_t vocab)
{
    bool possible = false;
    for (int32_t i = 0; i < vocab; i++) {
        if (isnan(logits[i]) || (isinf(logits[i]) && logits[i] > 0))
            return true;
        possible = possible || !isinf(logits[i]);
    }
    return !possible;
}

static enum nosa_status sample_row(const struct nosa_sample_params *params, int32_t index)
{
    size_t vocab = (size_t)params->vocab;
    struct row row = {.vocab = params->vocab,
                      .sampling = &params->sampling[index],
                      .position = params->position[index]};
    row.raw = calloc(vocab, sizeof *row.raw);
    row.logits = calloc(vocab, sizeof *row.logits);
    row.total_count = calloc(vocab, sizeof *row.total_count);
    row.output_count = calloc(vocab, sizeof *row.output_count);
    row.ranked = calloc(vocab, sizeof *row.ranked);

    enum nosa_status status = NOSA_OUT_OF_MEMORY;
    if (!row.raw || !row.logits || !row.total_count || !row.output_count || !row.ranked)
        goto cleanup;
    for (size_t i = 0; i < vocab; i++)
        row.raw[i] = finite_or_lowest(params->logits[(size_t)index * vocab + i]);
    int32_t start = params->history_start[index];
    apply_penalties(&row, params->history_tokens + start, params->history_start[index + 1] - start,
                    params->prompt_length[index]);
    struct nosa_sample_result *result = &params->result[index];
    memset(result, 0, sizeof *result);
    result->token = draw(&row);
    write_logprobs(&row, params->n_top[index], result);
    if (is_broken(params->logits + (size_t)index * vocab, params->vocab))
        result->logprob = NAN;
    status = NOSA_OK;
cleanup:
    free(row.ranked);
    free(row.output_count);
    free(row.total_count);
    free(row.logits);
    free(row.raw);
    return status;
}

enum nosa_status nosa_reference_sample(struct nosa_stream *stream,
                                       const struct nosa_sample_params *params)
{
    (void)stream;
    for (int32_t index = 0; index < params->n_rows; index++)
        NOSA_TRY(sample_row(params, index));
    return NOSA_OK;
}
