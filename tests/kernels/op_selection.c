/* Comparison of block selections by margin. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "op_cases.h"

#define AMBIGUOUS_MAX 20

/* A selection under examination. */
struct examined {
    const struct nosa_select_blocks_params *params;
    int32_t n_visible;
    int32_t places; /* of the query-aware cut, beside the forced blocks */
    const float *score;
    const float *bias;
    bool *got;     /* [n_visible], owned */
    bool *forced;  /* [n_visible], owned */
    bool *certain; /* [n_visible] in the query-aware cut whatever the rounding, owned */
    bool *in_cut;  /* [n_visible] scratch, owned */
    int32_t n_certain;
    int32_t ambiguous[AMBIGUOUS_MAX]; /* those within the margin that were selected */
    int32_t n_ambiguous;
};

static bool better(const float *score, int32_t a, int32_t b)
{
    return score[a] != score[b] ? score[a] > score[b] : a < b;
}

/* How many blocks that are not in `set` come before `block` by score, then index. */
static int32_t rank_outside(const float *score, const bool *set, int32_t n, int32_t block)
{
    int32_t rank = 0;
    for (int32_t b = 0; b < n; b++)
        rank += !set[b] && b != block && better(score, b, block);
    return rank;
}

/* Fills got and forced; checks order, range, count and the forced blocks. */
static bool read_selection(struct examined *e, int32_t pos, const int32_t *got, int32_t got_count,
                           char *why, size_t why_bytes)
{
    const struct nosa_select_blocks_params *params = e->params;
    int32_t expected = e->n_visible < params->topk ? e->n_visible : params->topk;
    if (got_count != expected) {
        snprintf(why, why_bytes, "%d blocks selected, not %d", got_count, expected);
        return false;
    }
    for (int32_t i = 0; i < got_count; i++) {
        if (got[i] < 0 || got[i] >= e->n_visible || (i > 0 && got[i] <= got[i - 1])) {
            snprintf(why, why_bytes, "entry %d is block %d: not ascending or not visible", i,
                     got[i]);
            return false;
        }
        e->got[got[i]] = true;
    }
    int32_t own = pos / NOSA_BLOCK_TOKENS;
    for (int32_t b = 0; b < e->n_visible; b++) {
        e->forced[b] = b < params->init_blocks || (b >= own - params->window_blocks && b <= own);
        if (e->forced[b] && !e->got[b]) {
            snprintf(why, why_bytes, "forced block %d is not selected", b);
            return false;
        }
        e->places -= e->forced[b];
    }
    return true;
}

/* Sorts blocks into certain, ambiguous and out by their distance to the query-aware cut. */
static bool find_ambiguous(struct examined *e, double epsilon, char *why, size_t why_bytes)
{
    double worst_in = 1e30, best_out = -1;
    for (int32_t b = 0; b < e->n_visible; b++) {
        if (e->forced[b])
            continue;
        if (rank_outside(e->score, e->forced, e->n_visible, b) < e->places)
            worst_in = e->score[b] < worst_in ? e->score[b] : worst_in;
        else
            best_out = e->score[b] > best_out ? e->score[b] : best_out;
    }
    for (int32_t b = 0; b < e->n_visible; b++) {
        if (e->forced[b])
            continue;
        double score = e->score[b], margin = 2 * epsilon * score;
        if (score > best_out + margin) {
            e->certain[b] = true;
            e->n_certain++;
            if (!e->got[b]) {
                snprintf(why, why_bytes, "block %d (B %.9g, best outside %.9g) is missing", b,
                         score, best_out);
                return false;
            }
        } else if (e->got[b] && score >= worst_in - 2 * epsilon * worst_in) {
            if (e->n_ambiguous == AMBIGUOUS_MAX) {
                snprintf(why, why_bytes, "more than %d blocks at the cut", AMBIGUOUS_MAX);
                return false;
            }
            e->ambiguous[e->n_ambiguous++] = b;
        }
    }
    return true;
}

/* Whether the query-aware cut with the ambiguous blocks of `mask` leads to what was selected. */
static bool explains(struct examined *e, uint32_t mask)
{
    const struct nosa_select_blocks_params *params = e->params;
    for (int32_t b = 0; b < e->n_visible; b++)
        e->in_cut[b] = e->forced[b] || e->certain[b];
    for (int32_t i = 0; i < e->n_ambiguous; i++)
        if (mask >> i & 1)
            e->in_cut[e->ambiguous[i]] = true;
    for (int32_t i = 0; i < e->n_ambiguous; i++) {
        int32_t in = e->ambiguous[i];
        for (int32_t b = 0; (mask >> i & 1) && b < in; b++)
            if (!e->in_cut[b] && e->score[b] == e->score[in])
                return false;
    }
    int32_t left = params->mode == NOSA_ATTENTION_NOSA ? params->topk - params->first_cut : 0;
    for (int32_t b = 0; b < e->n_visible; b++) {
        bool in = e->in_cut[b] || rank_outside(e->bias, e->in_cut, e->n_visible, b) < left;
        if (in != e->got[b])
            return false;
    }
    return true;
}

static bool examine(struct examined *e, double epsilon, char *why, size_t why_bytes)
{
    if (e->n_visible <= e->params->topk)
        return true;
    if (!find_ambiguous(e, epsilon, why, why_bytes))
        return false;
    for (uint32_t mask = 0; mask < 1u << e->n_ambiguous; mask++)
        if (__builtin_popcount(mask) == e->places - e->n_certain && explains(e, mask))
            return true;
    snprintf(why, why_bytes, "no query-aware cut within the margin explains the selection");
    return false;
}

bool op_selection_matches(const struct nosa_select_blocks_params *params, int32_t pos,
                          const float *block_score, const float *block_bias, const int32_t *got,
                          int32_t got_count, double epsilon, char *why, size_t why_bytes)
{
    struct examined e = {.params = params, .score = block_score, .bias = block_bias};
    e.n_visible = pos / NOSA_BLOCK_TOKENS + 1;
    e.places = params->mode == NOSA_ATTENTION_NOSA ? params->first_cut : params->topk;
    size_t n = (size_t)e.n_visible;
    bool *flags = op_alloc(4 * n * sizeof *flags);
    e.got = flags;
    e.forced = flags + n;
    e.certain = flags + 2 * n;
    e.in_cut = flags + 3 * n;
    bool matches = read_selection(&e, pos, got, got_count, why, why_bytes) &&
                   examine(&e, epsilon, why, why_bytes);
    free(flags);
    return matches;
}
