/*
 * Log probability of one token per row: l[t] - ln(sum e^l).
 *
 *   logits [n_rows][vocab] f32, read twice: bound by memory
 *
 * A row's sum is formed by one thread, so that its order is fixed.
 */
#include "cpu/cpu_internal.h"
#include "cpu/logits.h"

static void log_prob_row(void *context, int32_t row, int32_t thread)
{
    (void)thread;
    const struct nosa_log_prob_params *params = context;
    const float *logits = params->logits + (int64_t)row * params->vocab;
    float top;
    nosa_logits_largest(logits, params->vocab, &top);
    double log_sum = nosa_logits_log_sum_exp(logits, params->vocab, top);
    params->logprob[row] =
        nosa_logits_broken(logits, params->vocab) || top == -INFINITY
            ? NAN
            : (float)((double)nosa_logits_clean(logits[params->target[row]]) - log_sum);
}

enum nosa_status NOSA_CPU_NAME(nosa_cpu_log_prob)(struct nosa_stream *stream,
                                                  const struct nosa_log_prob_params *params)
{
    struct nosa_log_prob_params copy = *params;
    nosa_cpu_pool_run(stream->device->pool, params->n_rows, log_prob_row, &copy);
    return NOSA_OK;
}
