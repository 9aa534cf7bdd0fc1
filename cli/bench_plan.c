#include "bench_plan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"

#define TWO_PI 6.283185307179586

enum purpose { ARRIVALS = 1, LENGTHS = 2, GROUP = 3, PREFIX = 4, PROMPT = 5 };

/* ---- numbers ---- */

struct nosa_bench_random nosa_bench_random_start(uint64_t seed, uint64_t purpose, uint64_t index)
{
    const uint64_t key[3] = {seed, purpose, index};
    return (struct nosa_bench_random){nosa_hash64(key, sizeof key, 0)};
}

/* SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014). */
uint64_t nosa_bench_random_next(struct nosa_bench_random *random)
{
    uint64_t z = (random->state += UINT64_C(0x9E3779B97F4A7C15));
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

double nosa_bench_random_uniform(struct nosa_bench_random *random)
{
    return (double)((nosa_bench_random_next(random) >> 11) + 1) * 0x1p-53;
}

uint64_t nosa_bench_random_below(struct nosa_bench_random *random, uint64_t bound)
{
    NOSA_ASSERT(bound > 0);
    return (uint64_t)(((unsigned __int128)nosa_bench_random_next(random) * bound) >> 64);
}

/* ---- lengths ---- */

/* Reads a number of tokens that ends at `end`; moves the cursor behind it. */
static bool read_tokens(const char **cursor, const char *ends, double *value)
{
    char *end;
    if (**cursor < '0' || **cursor > '9')
        return false;
    *value = strtod(*cursor, &end);
    *cursor = end;
    return strchr(ends, *end) && *value >= 0 && *value <= NOSA_BENCH_TOKENS_MAX;
}

static bool read_lengths(const char *text, struct nosa_bench_lengths *lengths)
{
    const char *cursor = text;
    *lengths = (struct nosa_bench_lengths){.shape = NOSA_BENCH_FIXED};
    if (strncmp(text, "normal:", 7) == 0) {
        lengths->shape = NOSA_BENCH_NORMAL;
        cursor += 7;
        return read_tokens(&cursor, ",", &lengths->first) && *cursor++ == ',' &&
               read_tokens(&cursor, "", &lengths->last) && lengths->first >= 1;
    }
    if (strncmp(text, "exponential:", 12) == 0) {
        lengths->shape = NOSA_BENCH_EXPONENTIAL;
        cursor += 12;
        return read_tokens(&cursor, "", &lengths->first) && lengths->first >= 1;
    }
    if (!read_tokens(&cursor, "-", &lengths->first))
        return false;
    lengths->last = lengths->first;
    if (*cursor == '-') {
        lengths->shape = NOSA_BENCH_UNIFORM;
        cursor++;
        if (!read_tokens(&cursor, "", &lengths->last))
            return false;
    }
    return lengths->first >= 1 && lengths->first <= lengths->last &&
           lengths->first == floor(lengths->first) && lengths->last == floor(lengths->last);
}

enum nosa_status nosa_bench_lengths_parse(const char *text, struct nosa_bench_lengths *lengths,
                                          struct nosa_error *error)
{
    if (read_lengths(text, lengths))
        return NOSA_OK;
    return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                          "'%.64s' is no length: it is written 512, 100-900, normal:512,64 or "
                          "exponential:512, in tokens from 1 to %u",
                          text, NOSA_BENCH_TOKENS_MAX);
}

static uint32_t to_tokens(double value)
{
    if (!(value >= 1))
        return 1;
    return value < NOSA_BENCH_TOKENS_MAX ? (uint32_t)value : NOSA_BENCH_TOKENS_MAX;
}

uint32_t nosa_bench_lengths_draw(const struct nosa_bench_lengths *lengths,
                                 struct nosa_bench_random *random)
{
    double first = nosa_bench_random_uniform(random);
    double second = nosa_bench_random_uniform(random);
    switch (lengths->shape) {
    case NOSA_BENCH_FIXED: break;
    case NOSA_BENCH_UNIFORM: {
        /* (0, 1] onto the whole numbers of the range. */
        double drawn = lengths->first + floor((1 - first) * (lengths->last - lengths->first + 1));
        return to_tokens(drawn < lengths->last ? drawn : lengths->last);
    }
    case NOSA_BENCH_NORMAL: /* Box and Muller's transform */
        return to_tokens(
            round(lengths->first + lengths->last * sqrt(-2 * log(first)) * cos(TWO_PI * second)));
    case NOSA_BENCH_EXPONENTIAL: return to_tokens(round(-log(first) * lengths->first));
    }
    return to_tokens(lengths->first);
}

uint32_t nosa_bench_lengths_max(const struct nosa_bench_lengths *lengths)
{
    bool bounded = lengths->shape == NOSA_BENCH_FIXED || lengths->shape == NOSA_BENCH_UNIFORM;
    return bounded ? to_tokens(lengths->last) : NOSA_BENCH_TOKENS_MAX;
}

/* ---- arrivals ---- */

void nosa_bench_arrivals_start(struct nosa_bench_arrivals *arrivals, uint64_t seed, double rate,
                               bool poisson)
{
    NOSA_ASSERT(rate > 0);
    *arrivals = (struct nosa_bench_arrivals){
        .random = nosa_bench_random_start(seed, ARRIVALS, 0), .rate = rate, .poisson = poisson};
}

uint64_t nosa_bench_arrivals_next(struct nosa_bench_arrivals *arrivals)
{
    double now_s = arrivals->next_s;
    double drawn = nosa_bench_random_uniform(&arrivals->random);
    arrivals->next_s += (arrivals->poisson ? -log(drawn) : 1) / arrivals->rate;
    return (uint64_t)(now_s * 1e9);
}

/* ---- requests ---- */

struct nosa_bench_request nosa_bench_plan_request(const struct nosa_bench_plan *plan,
                                                  uint64_t index)
{
    struct nosa_bench_request request = {.index = index};
    struct nosa_bench_random random = nosa_bench_random_start(plan->seed, LENGTHS, index);
    uint32_t own = nosa_bench_lengths_draw(&plan->prompt, &random);
    request.output_tokens = nosa_bench_lengths_draw(&plan->output, &random);
    if (plan->prefix_groups > 0) {
        random = nosa_bench_random_start(plan->seed, GROUP, index);
        request.group =
            (uint32_t)(plan->in_turn ? index % plan->prefix_groups
                                     : nosa_bench_random_below(&random, plan->prefix_groups));
        request.prefix_tokens = plan->prefix_tokens;
    }
    request.prompt_tokens = request.prefix_tokens + own;
    return request;
}

static void fill(uint64_t seed, enum purpose purpose, uint64_t index, uint32_t vocab_size,
                 uint32_t count, uint32_t *ids)
{
    struct nosa_bench_random random = nosa_bench_random_start(seed, purpose, index);
    for (uint32_t i = 0; i < count; i++)
        ids[i] = (uint32_t)nosa_bench_random_below(&random, vocab_size);
}

void nosa_bench_plan_prompt(const struct nosa_bench_plan *plan,
                            const struct nosa_bench_request *request, uint32_t *ids)
{
    /* Requests that warm up have prefixes of their own, so that they leave none behind. */
    uint64_t group = request->group | (request->index & NOSA_BENCH_WARM_UP_INDEX);
    uint32_t shared = request->prefix_tokens;
    fill(plan->seed, PREFIX, group, plan->vocab_size, shared, ids);
    fill(plan->seed, PROMPT, request->index, plan->vocab_size, request->prompt_tokens - shared,
         ids + shared);
}
