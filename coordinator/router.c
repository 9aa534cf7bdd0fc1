#include "router.h"

#define PREFILL_TOKENS_PER_S 2000.0 /* until a worker has measured its own */
#define TIER_SPEEDUP         8.0    /* of a lower tier against computing, until measured */
#define STREAM_TOKENS        64.0   /* what one more stream costs the others, in prefill tokens */
#define OVERLOAD_RATIO       1.3    /* above the mean by this, and by OVERLOAD_STREAMS */
#define OVERLOAD_STREAMS     2.0
#define PRESSURE_FREE        0.8 /* KV pressure that costs nothing */
#define RATE_NOISE           1.5 /* rates within this factor of their mean are one rate */
#define RECENT_FEW           4.0 /* requests that say little */
#define RECENT_WEIGHT        0.5 /* of a prompt, when twice the mean was sent lately */

static double rate(double measured, double otherwise)
{
    return measured > 0 && measured < 1e12 ? measured : otherwise;
}

double nosa_router_cost_s(const struct nosa_route_candidate *candidate, uint32_t prompt_tokens)
{
    double prefill = rate(candidate->prefill_tokens_per_s, PREFILL_TOKENS_PER_S);
    double host = rate(candidate->host_tokens_per_s, TIER_SPEEDUP * prefill);
    double nvme = rate(candidate->nvme_tokens_per_s, TIER_SPEEDUP * prefill);
    double held = (double)candidate->gpu_tokens + candidate->host_tokens + candidate->nvme_tokens +
                  candidate->expected_tokens;
    double remaining = prompt_tokens > held ? prompt_tokens - held : 0;
    double seconds = (remaining + (double)candidate->prefill_tokens_pending +
                      STREAM_TOKENS * candidate->streams) /
                     prefill;
    /* A tier that is slower than computing is not read: the worker takes the cheaper way. */
    seconds += candidate->host_tokens / (host > prefill ? host : prefill);
    seconds += candidate->nvme_tokens / (nvme > prefill ? nvme : prefill);
    if (candidate->streams > candidate->batch_max && candidate->batch_max > 0)
        seconds *= (double)candidate->streams / candidate->batch_max;
    if (candidate->kv_pressure > PRESSURE_FREE)
        seconds += (remaining + STREAM_TOKENS) / prefill *
                   (candidate->kv_pressure - PRESSURE_FREE) / (1 - PRESSURE_FREE);
    return seconds;
}

/* 0: fine; 1: carries clearly more than the mean; 2: its queue is full, as far as is known. */
static int burden(const struct nosa_route_candidate *candidate, double mean_streams)
{
    if (candidate->queue_max > 0 && candidate->waiting >= candidate->queue_max)
        return 2;
    return candidate->streams > OVERLOAD_RATIO * mean_streams &&
           candidate->streams > mean_streams + OVERLOAD_STREAMS;
}

/* Means over the candidates. */
struct means {
    double streams;
    double recent;
    double rate; /* of those that have measured it; 0: none has */
};

static struct means means_of(const struct nosa_route_candidate *candidates, size_t count)
{
    struct means means = {0};
    size_t measured = 0;
    for (size_t i = 0; i < count; i++) {
        double own = rate(candidates[i].prefill_tokens_per_s, 0);
        means.streams += (double)candidates[i].streams / (double)count;
        means.recent += candidates[i].recent / (double)count;
        means.rate += own;
        measured += own > 0;
    }
    means.rate = measured > 0 ? means.rate / (double)measured : 0;
    return means;
}

/* The cost beside the others. A measured rate moves with every step: unless it is clearly another
 * one it counts as the mean, or the luckiest worker would get all that is new. The share for recent
 * requests is less than a prefix that is worth something. */
static double cost_among(const struct nosa_route_candidate *candidate, const struct means *means,
                         uint32_t prompt_tokens)
{
    struct nosa_route_candidate damped = *candidate;
    double own = rate(candidate->prefill_tokens_per_s, means->rate);
    if (own < RATE_NOISE * means->rate && means->rate < RATE_NOISE * own)
        own = means->rate;
    damped.prefill_tokens_per_s = own;
    double excess = (candidate->recent - means->recent) / (means->recent + RECENT_FEW);
    excess = excess < 0 ? 0 : excess > 1 ? 1 : excess;
    return nosa_router_cost_s(&damped, prompt_tokens) +
           RECENT_WEIGHT * excess * prompt_tokens / rate(own, PREFILL_TOKENS_PER_S);
}

size_t nosa_router_choose(const struct nosa_route_candidate *candidates, size_t count,
                          uint32_t prompt_tokens)
{
    size_t best = NOSA_ROUTER_NONE;
    int best_burden = 0;
    double best_cost = 0;
    const struct means means = means_of(candidates, count);
    for (size_t i = 0; i < count; i++) {
        int own_burden = burden(&candidates[i], means.streams);
        double cost = cost_among(&candidates[i], &means, prompt_tokens);
        bool better = best == NOSA_ROUTER_NONE || own_burden < best_burden ||
                      (own_burden == best_burden && cost < best_cost) ||
                      (own_burden == best_burden && cost <= best_cost &&
                       candidates[i].tie < candidates[best].tie);
        if (!better)
            continue;
        best = i;
        best_burden = own_burden;
        best_cost = cost;
    }
    return best;
}
