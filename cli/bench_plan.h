/*
 * What a benchmark sends, as a pure function of its seed: when requests arrive, how long their
 * prompts and outputs are, and which tokens the prompts hold. Request n is the same whatever else
 * is in flight and however many requests are sent. Stateless but for what the caller holds; any
 * thread.
 */
#ifndef NOSA_CLI_BENCH_PLAN_H
#define NOSA_CLI_BENCH_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

#define NOSA_BENCH_TOKENS_MAX (UINT32_C(1) << 24) /* of one length */

/* ---- numbers ---- */

/* A stream of random numbers. */
struct nosa_bench_random {
    uint64_t state;
};

/* The stream of `seed` for one purpose and one index; different ones have nothing in common. */
struct nosa_bench_random nosa_bench_random_start(uint64_t seed, uint64_t purpose, uint64_t index);
uint64_t nosa_bench_random_next(struct nosa_bench_random *random);
/* In (0, 1]. */
double nosa_bench_random_uniform(struct nosa_bench_random *random);
/* In 0 .. bound - 1; `bound` is at least 1. */
uint64_t nosa_bench_random_below(struct nosa_bench_random *random, uint64_t bound);

/* ---- lengths ---- */

enum nosa_bench_shape {
    NOSA_BENCH_FIXED = 0,       /* first */
    NOSA_BENCH_UNIFORM = 1,     /* first .. last, both included */
    NOSA_BENCH_NORMAL = 2,      /* mean first, standard deviation last; at least 1 */
    NOSA_BENCH_EXPONENTIAL = 3, /* mean first; at least 1 */
};

struct nosa_bench_lengths {
    enum nosa_bench_shape shape;
    double first, last;
};

/* Reads "512", "100-900", "normal:512,64" or "exponential:512". NOSA_INVALID_ARGUMENT quotes the
 * text and leaves naming the flag to the caller. */
enum nosa_status nosa_bench_lengths_parse(const char *text, struct nosa_bench_lengths *lengths,
                                          struct nosa_error *error);

/* Draws a length, 1 .. NOSA_BENCH_TOKENS_MAX. */
uint32_t nosa_bench_lengths_draw(const struct nosa_bench_lengths *lengths,
                                 struct nosa_bench_random *random);

/* The longest that a draw gives; NOSA_BENCH_TOKENS_MAX where there is no bound below it. */
uint32_t nosa_bench_lengths_max(const struct nosa_bench_lengths *lengths);

/* ---- arrivals ---- */

struct nosa_bench_arrivals {
    struct nosa_bench_random random;
    double rate; /* requests per second */
    bool poisson;
    double next_s;
};

/* Arrivals at `rate` (more than 0): a Poisson process, or evenly spaced. */
void nosa_bench_arrivals_start(struct nosa_bench_arrivals *arrivals, uint64_t seed, double rate,
                               bool poisson);
/* When the next request arrives, in ns after the first one, which arrives at 0. */
uint64_t nosa_bench_arrivals_next(struct nosa_bench_arrivals *arrivals);

/* ---- requests ---- */

struct nosa_bench_plan {
    uint64_t seed;
    struct nosa_bench_lengths prompt; /* of a request's own part */
    struct nosa_bench_lengths output;
    uint32_t prefix_groups; /* 0: nothing is shared */
    uint32_t prefix_tokens; /* that the requests of a group begin with */
    uint32_t vocab_size;    /* ids are below this; at least 1 */
    bool in_turn;           /* groups take turns instead of being drawn */
};

/* The indices of requests that warm up begin here: they share nothing with those that count. */
#define NOSA_BENCH_WARM_UP_INDEX (UINT64_C(1) << 63)

struct nosa_bench_request {
    uint64_t index;
    uint32_t group;         /* of the prefix; 0 when there are none */
    uint32_t prefix_tokens; /* 0 when it shares nothing */
    uint32_t prompt_tokens; /* the prefix included */
    uint32_t output_tokens;
};

/* Request `index` of the plan. */
struct nosa_bench_request nosa_bench_plan_request(const struct nosa_bench_plan *plan,
                                                  uint64_t index);

/* Writes the prompt's ids, [request->prompt_tokens]. */
void nosa_bench_plan_prompt(const struct nosa_bench_plan *plan,
                            const struct nosa_bench_request *request, uint32_t *ids);

#endif
