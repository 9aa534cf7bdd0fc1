/*
 * Which worker takes a request: a pure function of what each worker holds of the prompt, by tier,
 * of its queue and of the pressure on its KV. No state, no clock, no lock; the registry gathers the
 * candidates, tests drive it in a simulation.
 *
 * For each candidate the time to the first token is estimated: what waits before the request and
 * what of the prompt remains to be computed, at the worker's prefill rate; what comes back from
 * lower tiers at their rates; and a share for each stream that runs there. A worker that carries
 * clearly more than the others is taken only when every other one does too, so that a popular
 * prefix spreads instead of drowning its holder. What nobody holds goes to those that got fewer
 * requests lately, so that prefixes are spread from the beginning.
 */
#ifndef NOSA_COORDINATOR_ROUTER_H
#define NOSA_COORDINATOR_ROUTER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct nosa_route_candidate {
    uint32_t gpu_tokens; /* of the prompt that it holds, by the best tier of each block */
    uint32_t host_tokens;
    uint32_t nvme_tokens;
    uint32_t expected_tokens; /* of a request that went there a moment ago */
    uint32_t streams;         /* running, waiting and suspended, what was just sent included */
    uint32_t waiting;         /* of them, in its queue */
    double recent;            /* requests that it was sent lately */
    uint32_t batch_max;
    uint32_t queue_max;
    uint64_t prefill_tokens_pending; /* what was just sent included */
    double prefill_tokens_per_s;     /* 0: not measured yet */
    double host_tokens_per_s;        /* at which a prefix comes back */
    double nvme_tokens_per_s;
    double kv_pressure; /* share of KV that running sequences hold: 0 to 1 */
    uint64_t tie;       /* any number: among equals the smallest is taken */
};

#define NOSA_ROUTER_NONE SIZE_MAX

/* Seconds to the first token, as estimated; for tests and for people. */
double nosa_router_cost_s(const struct nosa_route_candidate *candidate, uint32_t prompt_tokens);

/* Index of the candidate to take; NOSA_ROUTER_NONE when there is none (count 0). */
size_t nosa_router_choose(const struct nosa_route_candidate *candidates, size_t count,
                          uint32_t prompt_tokens);

#endif
