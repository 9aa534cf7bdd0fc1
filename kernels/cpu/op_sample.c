/*
 * Sampling: one row per item, in the item's thread.
 *
 * Nothing is sorted. Tokens are ranked by (distance, id), distance = (largest logit - logit) /
 * temperature in float32: its bits ascend as an unsigned integer, so every filter (top-k, top-p,
 * min-p) ends in a cut of that order, and where the cut lies is found digit by digit over a
 * histogram of counts or of probability mass.
 *
 * The draw is the Gumbel-max rule (token of the largest -distance - log(-log u)), with u a function
 * of seed, position and token (philox.h). As -log(-log u) <= -log(1 - u), a token can win only if
 * 1 - u < e^-distance / e^best: the first word of its block decides that for nearly every token,
 * and the logarithms are taken for a handful.
 *
 * Scratch of a thread: logits or distances [vocab], weights e^-distance [vocab] (counts of the
 * history before that), one histogram. A row of a 49k vocabulary is about 200 KB, read five to ten
 * times from cache.
 */
#include <float.h>
#include <math.h>
#include <string.h>

#include "cpu/cpu_internal.h"
#include "cpu/logits.h"
#include "cpu/vec.h"
#include "cpu/vec_philox.h"

#define BINS           2048
#define DIGITS         3
#define IN_PROMPT      0x80000000u /* beside the count of a token in the output */
#define LARGEST_FINITE 0x7f7fffffu /* bits of FLT_MAX: greater keys are not drawn */
#define PRUNE_SLACK    1.0001      /* covers the rounding of weights and of e^best */

/* Bits of a key that each pass looks at, from the top. */
static const int digit_shift[DIGITS] = {20, 10, 0};
static const uint32_t digit_mask[DIGITS] = {0x7ff, 0x3ff, 0x3ff};

struct histogram {
    double mass[BINS];
    uint32_t count[BINS];
};

struct scratch {
    float *distance; /* [vocab] logits after penalties, then distances */
    float *weight;   /* [vocab] e^-distance */
    uint32_t *count; /* [vocab], the memory of weight */
    struct histogram *histogram;
};

/* Where the order ends: kept are tokens of smaller distance bits than `key`, and of those with
 * equal bits the ids up to `last`. */
struct cut {
    uint32_t key;
    int32_t last;
};

struct region {
    const struct nosa_sample_params *params;
    struct nosa_cpu_device *device;
};

static size_t padded(int32_t vocab)
{
    return ((size_t)vocab + NOSA_VEC_LANES - 1) / NOSA_VEC_LANES * NOSA_VEC_LANES;
}

size_t NOSA_CPU_NAME(nosa_cpu_sample_scratch_bytes)(const struct nosa_step_limits *limits)
{
    return sizeof(struct histogram) + 2 * sizeof(float) * padded(limits->vocab_max);
}

/* Puts the token into the descending list of n if it belongs there; equal logits stay behind. */
static void insert_top(struct nosa_sample_result *result, int32_t n, int32_t token, float logit)
{
    int32_t place = result->n_top;
    if (place == n) {
        if (!(logit > result->top_logprob[n - 1]))
            return;
        place = n - 1;
    } else {
        result->n_top++;
    }
    for (; place > 0 && logit > result->top_logprob[place - 1]; place--) {
        result->top_logprob[place] = result->top_logprob[place - 1];
        result->top_token[place] = result->top_token[place - 1];
    }
    result->top_logprob[place] = logit;
    result->top_token[place] = token;
}

static void find_top(const float *logits, int32_t vocab, int32_t n, double log_sum,
                     struct nosa_sample_result *result)
{
    n = n < vocab ? n : vocab;
    n = n < NOSA_TOP_LOGPROBS_MAX ? n : NOSA_TOP_LOGPROBS_MAX;
    if (n <= 0)
        return;
    int32_t i = 0;
    for (; i < vocab && i < 2 * NOSA_VEC_LANES; i++)
        insert_top(result, n, i, nosa_logits_clean(logits[i]));
    for (; i < vocab; i += NOSA_VEC_LANES) {
        nosa_vec value = nosa_logits_load(logits, i, vocab);
        nosa_vec least = nosa_vec_set1(result->top_logprob[n - 1]);
        uint32_t above = nosa_vec_mask_bits(nosa_vec_less(least, value));
        for (; above != 0; above &= above - 1) {
            int32_t token = i + __builtin_ctz(above);
            insert_top(result, n, token, nosa_logits_clean(logits[token]));
        }
    }
    for (int32_t place = 0; place < n; place++)
        result->top_logprob[place] = (float)(result->top_logprob[place] - log_sum);
}

static float penalised(const struct nosa_sampling *sampling, float logit, uint32_t count)
{
    if (sampling->repetition_penalty > 0 && sampling->repetition_penalty != 1)
        logit =
            logit > 0 ? logit / sampling->repetition_penalty : logit * sampling->repetition_penalty;
    if ((count & ~IN_PROMPT) != 0) {
        logit -= sampling->presence_penalty;
        logit -= sampling->frequency_penalty * (float)(count & ~IN_PROMPT);
    }
    return nosa_logits_clean(logit);
}

static inline bool is_token(int32_t token, int32_t vocab)
{
    return token >= 0 && token < vocab;
}

/* Penalises each token of the history once: the counts are cleared, raised and used by walking the
 * history only, so that the vocabulary's size costs nothing. */
static void apply_penalties(const struct nosa_sample_params *params, int32_t row,
                            const struct scratch *scratch)
{
    const struct nosa_sampling *sampling = &params->sampling[row];
    const int32_t *history = params->history_tokens + params->history_start[row];
    int32_t length = params->history_start[row + 1] - params->history_start[row];
    int32_t vocab = params->vocab, prompt = params->prompt_length[row];
    for (int32_t i = 0; i < length; i++)
        if (is_token(history[i], vocab))
            scratch->count[history[i]] = 0;
    for (int32_t i = 0; i < length; i++) {
        if (!is_token(history[i], vocab))
            continue;
        if (i < prompt)
            scratch->count[history[i]] |= IN_PROMPT;
        else
            scratch->count[history[i]]++;
    }
    for (int32_t i = 0; i < length; i++) {
        if (!is_token(history[i], vocab) || scratch->count[history[i]] == 0)
            continue;
        float *logit = &scratch->distance[history[i]];
        *logit = penalised(sampling, *logit, scratch->count[history[i]]);
        scratch->count[history[i]] = 0;
    }
}

static void copy_logits(const float *logits, int32_t vocab, float *to)
{
    for (int32_t i = 0; i < vocab; i += NOSA_VEC_LANES)
        nosa_vec_store(to + i, nosa_logits_load(logits, i, vocab));
}

/* Turns logits (in distance) into distances and weights, padding included. */
static void weigh(const struct scratch *scratch, int32_t vocab, float top, float temperature)
{
    nosa_vec largest = nosa_vec_set1(top);
    nosa_vec divisor = nosa_vec_set1(temperature < FLT_MAX ? temperature : FLT_MAX);
    for (int32_t i = 0; i < vocab; i += NOSA_VEC_LANES) {
        nosa_vec below = nosa_vec_sub(largest, nosa_logits_load(scratch->distance, i, vocab));
        nosa_vec distance = nosa_vec_max(nosa_vec_div(below, divisor), nosa_vec_zero()); /* no -0 */
        nosa_vec_store(scratch->distance + i, distance);
        nosa_vec_store(scratch->weight + i, nosa_vec_exp(nosa_vec_sub(nosa_vec_zero(), distance)));
    }
}

static inline uint32_t key_of(float distance)
{
    uint32_t key;
    memcpy(&key, &distance, sizeof key);
    return key;
}

static inline bool is_kept(struct cut cut, uint32_t key, int32_t token)
{
    return key < cut.key || (key == cut.key && token <= cut.last);
}

static inline float distance_of(uint32_t key)
{
    float distance;
    memcpy(&distance, &key, sizeof distance);
    return distance;
}

/* The tokens among 16 from `first` on whose keys are low .. high. Bit i is token first + i. */
NOSA_VEC_INLINE uint32_t in_range(const struct scratch *scratch, int32_t first, uint32_t low,
                                  uint32_t high)
{
    nosa_vec distance = nosa_vec_load(scratch->distance + first);
    nosa_vec_mask below = nosa_vec_less(distance, nosa_vec_set1(distance_of(low)));
    nosa_vec_mask above = nosa_vec_less(nosa_vec_set1(distance_of(high)), distance);
    return ~(nosa_vec_mask_bits(below) | nosa_vec_mask_bits(above)) & 0xffffu;
}

/* Counts (and, if asked, weighs) kept tokens whose upper digits are `prefix`, by digit `digit`. */
static void fill_histogram(const struct scratch *scratch, int32_t vocab, struct cut cut, int digit,
                           uint32_t prefix, bool with_mass)
{
    struct histogram *histogram = scratch->histogram;
    int shift = digit_shift[digit];
    int prefix_shift = digit == 0 ? 31 : digit_shift[digit - 1];
    uint32_t low = prefix << prefix_shift, high = low | ((1u << prefix_shift) - 1);
    high = high < cut.key ? high : cut.key;
    memset(histogram, 0, sizeof *histogram);
    for (int32_t first = 0; first < vocab; first += NOSA_VEC_LANES) {
        uint32_t bits = in_range(scratch, first, low, high);
        for (; bits != 0; bits &= bits - 1) {
            int32_t token = first + __builtin_ctz(bits);
            uint32_t key = key_of(scratch->distance[token]);
            if (!is_kept(cut, key, token))
                continue;
            uint32_t bin = key >> shift & digit_mask[digit];
            histogram->count[bin]++;
            if (with_mass)
                histogram->mass[bin] += scratch->weight[token];
        }
    }
}

/* Moves the cut to the n-th kept token with this key (from 1). */
static struct cut cut_at(const struct scratch *scratch, int32_t vocab, struct cut cut, uint32_t key,
                         uint32_t n)
{
    struct cut moved = {key, INT32_MAX};
    for (int32_t first = 0; first < vocab; first += NOSA_VEC_LANES) {
        uint32_t bits = in_range(scratch, first, key, key);
        for (; bits != 0; bits &= bits - 1) {
            moved.last = first + __builtin_ctz(bits);
            NOSA_ASSERT(is_kept(cut, key, moved.last));
            if (--n == 0)
                return moved;
        }
    }
    return moved;
}

/* Keeps the k first of the order. */
static struct cut cut_top_k(const struct scratch *scratch, int32_t vocab, struct cut cut,
                            uint32_t k)
{
    uint32_t prefix = 0, left = k;
    for (int digit = 0; digit < DIGITS; digit++) {
        fill_histogram(scratch, vocab, cut, digit, prefix, false);
        uint32_t bin = 0;
        while (bin <= digit_mask[digit] && scratch->histogram->count[bin] < left)
            left -= scratch->histogram->count[bin++];
        if (bin > digit_mask[digit])
            return cut; /* fewer than k can be drawn */
        prefix = prefix << 10 | bin;
    }
    return cut_at(scratch, vocab, cut, prefix, left);
}

/* Keeps the shortest beginning of the order whose mass is at least `share` of the kept mass. */
static struct cut cut_top_p(const struct scratch *scratch, int32_t vocab, struct cut cut,
                            float share)
{
    const struct histogram *histogram = scratch->histogram;
    uint32_t prefix = 0, bin = 0;
    double wanted = 0, sum = 0;
    for (int digit = 0; digit < DIGITS; digit++) {
        fill_histogram(scratch, vocab, cut, digit, prefix, true);
        uint32_t last = digit_mask[digit];
        while (histogram->count[last] == 0)
            last--; /* the least kept token is somewhere */
        if (digit == 0) {
            for (uint32_t i = 0; i <= last; i++)
                wanted += histogram->mass[i];
            wanted *= share;
        }
        for (bin = 0; bin < last && sum + histogram->mass[bin] < wanted; bin++)
            sum += histogram->mass[bin];
        prefix = prefix << 10 | bin;
    }
    uint32_t equal = histogram->count[bin], n = 1;
    double each = histogram->mass[bin] / equal;
    for (sum += each; n < equal && sum < wanted; n++)
        sum += each;
    return cut_at(scratch, vocab, cut, prefix, n);
}

static struct cut apply_filters(const struct scratch *scratch, int32_t vocab,
                                const struct nosa_sampling *sampling)
{
    struct cut cut = {LARGEST_FINITE, INT32_MAX};
    if (sampling->top_k > 0 && sampling->top_k < vocab)
        cut = cut_top_k(scratch, vocab, cut, (uint32_t)sampling->top_k);
    if (sampling->top_p > 0 && sampling->top_p < 1)
        cut = cut_top_p(scratch, vocab, cut, sampling->top_p);
    if (sampling->min_p > 0) {
        float furthest = (float)-log((double)sampling->min_p);
        uint32_t key = furthest > 0 ? key_of(furthest) : 0;
        if (key < cut.key)
            cut = (struct cut){key, INT32_MAX};
    }
    return cut;
}

struct drawing {
    const struct nosa_sampling *sampling;
    int64_t position;
    int32_t winner;
    double best;
    double reach; /* e^best: a token of this weight or more can win whatever u is near 1 */
};

static void try_token(struct drawing *drawing, int32_t token, float distance)
{
    uint32_t block[4];
    nosa_philox_sampling(drawing->sampling->seed, drawing->position, (uint32_t)token, block);
    double value = -distance - log(-log(nosa_philox_unit(block)));
    if (value > drawing->best || (value == drawing->best && token < drawing->winner)) {
        drawing->winner = token;
        drawing->best = value;
        drawing->reach = exp(value);
    }
}

/* The kept tokens among 16 from `first` on that may still win by their weight alone: 1 - u is at
 * least 2^-53. Bit i is token first + i. */
static inline uint32_t candidates(const struct scratch *scratch, struct cut cut, int32_t first,
                                  double reach)
{
    nosa_vec distance = nosa_vec_load(scratch->distance + first);
    nosa_vec furthest = nosa_vec_set1(distance_of(cut.key));
    nosa_vec weight = nosa_vec_load(scratch->weight + first);
    nosa_vec least = nosa_vec_set1((float)(0x1p-53 * reach / PRUNE_SLACK));
    uint32_t near = nosa_vec_mask_bits(nosa_vec_less(distance, furthest));
    uint32_t at_cut = nosa_vec_mask_bits(nosa_vec_equal(distance, furthest));
    if (cut.last < first)
        at_cut = 0;
    else if (cut.last - first < NOSA_VEC_LANES - 1)
        at_cut &= (2u << (cut.last - first)) - 1;
    return (near | at_cut) & ~nosa_vec_mask_bits(nosa_vec_less(weight, least));
}

static int32_t draw(const struct scratch *scratch, int32_t vocab, struct cut cut,
                    struct drawing *drawing)
{
    try_token(drawing, drawing->winner, 0);
    for (int32_t first = 0; first < vocab; first += NOSA_VEC_LANES) {
        uint32_t bits = candidates(scratch, cut, first, drawing->reach);
        uint32_t words[NOSA_VEC_LANES];
        if (bits != 0)
            nosa_vec_philox_sampling(drawing->sampling->seed, drawing->position, (uint32_t)first,
                                     words);
        for (; bits != 0; bits &= bits - 1) {
            int lane = __builtin_ctz(bits);
            double least = (double)(0xffffffffu - words[lane]) * 0x1p-32; /* of 1 - u */
            if (least * drawing->reach <= scratch->weight[first + lane] * PRUNE_SLACK)
                try_token(drawing, first + lane, scratch->distance[first + lane]);
        }
    }
    return drawing->winner;
}

static int32_t choose(const struct nosa_sample_params *params, int32_t row,
                      const struct scratch *scratch, int32_t raw_winner)
{
    const struct nosa_sampling *sampling = &params->sampling[row];
    const float *logits = params->logits + (int64_t)row * params->vocab;
    bool greedy = !(sampling->temperature > 0), penalties = nosa_sampling_has_penalties(sampling);
    if (greedy && !penalties)
        return raw_winner;
    copy_logits(logits, params->vocab, scratch->distance);
    if (penalties)
        apply_penalties(params, row, scratch);
    float top;
    struct drawing drawing = {.sampling = sampling,
                              .position = params->position[row],
                              .winner = nosa_logits_largest(scratch->distance, params->vocab, &top),
                              .best = -INFINITY};
    if (greedy || top == -INFINITY)
        return drawing.winner;
    weigh(scratch, params->vocab, top, sampling->temperature);
    struct cut cut = apply_filters(scratch, params->vocab, sampling);
    return draw(scratch, params->vocab, cut, &drawing);
}

static void sample_item(void *context, int32_t item, int32_t thread)
{
    const struct region *region = context;
    const struct nosa_sample_params *params = region->params;
    char *memory = nosa_cpu_thread_scratch(region->device, thread);
    struct scratch scratch = {.histogram = (struct histogram *)(void *)memory};
    scratch.distance = (float *)(void *)(memory + sizeof(struct histogram));
    scratch.weight = scratch.distance + padded(params->vocab);
    scratch.count = (uint32_t *)(void *)scratch.weight;

    const float *logits = params->logits + (int64_t)item * params->vocab;
    struct nosa_sample_result *result = &params->result[item];
    float top;
    memset(result, 0, sizeof *result);
    int32_t winner = nosa_logits_largest(logits, params->vocab, &top);
    double log_sum = nosa_logits_log_sum_exp(logits, params->vocab, top);
    find_top(logits, params->vocab, params->n_top[item], log_sum, result);
    result->token = choose(params, item, &scratch, winner);
    result->logprob = nosa_logits_broken(logits, params->vocab) || top == -INFINITY
                          ? NAN
                          : (float)(nosa_logits_clean(logits[result->token]) - log_sum);
}

enum nosa_status NOSA_CPU_NAME(nosa_cpu_sample)(struct nosa_stream *stream,
                                                const struct nosa_sample_params *params)
{
    struct nosa_cpu_device *device = stream->device;
    if (params->vocab < 1 || params->vocab > device->scratch.limits.vocab_max)
        return NOSA_INVALID_ARGUMENT;
    struct region region = {.params = params, .device = device};
    nosa_cpu_pool_run(device->pool, params->n_rows, sample_item, &region);
    return NOSA_OK;
}
