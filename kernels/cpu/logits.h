/*
 * A row of logits as sampling and scoring read it: NaN counts as -inf and +inf as FLT_MAX, so that
 * a broken row gives a token rather than nonsense; nosa_logits_broken tells of such rows. Included
 * by op files, for their instruction set.
 */
#ifndef NOSA_KERNELS_CPU_LOGITS_H
#define NOSA_KERNELS_CPU_LOGITS_H

#include <float.h>
#include <math.h>

#include "cpu/vec.h"

/* Vectors that are summed in float32 before the sum goes on in double. */
#define NOSA_LOGITS_SUM_VECTORS 64

/* 16 logits from i on: NaN counts as -inf, +inf as FLT_MAX, what is beyond the vocabulary as -inf.
 */
NOSA_VEC_INLINE nosa_vec nosa_logits_load(const float *logits, int32_t i, int32_t vocab)
{
    nosa_vec lowest = nosa_vec_set1(-INFINITY), value;
    if (i + NOSA_VEC_LANES <= vocab)
        value = nosa_vec_load(logits + i);
    else
        value = nosa_vec_select(nosa_vec_mask_first(vocab - i),
                                nosa_vec_load_first(logits + i, vocab - i), lowest);
    return nosa_vec_min(nosa_vec_max(value, lowest), nosa_vec_set1(FLT_MAX));
}

NOSA_VEC_INLINE float nosa_logits_clean(float logit)
{
    return isnan(logit) ? -INFINITY : logit > FLT_MAX ? FLT_MAX : logit;
}

/* Whether a logit is NaN or +inf. */
NOSA_VEC_INLINE bool nosa_logits_broken(const float *logits, int32_t vocab)
{
    nosa_vec infinite = nosa_vec_set1(INFINITY);
    uint32_t fine = 0xffffu;
    int32_t i = 0;
    for (; i + NOSA_VEC_LANES <= vocab; i += NOSA_VEC_LANES)
        fine &= nosa_vec_mask_bits(nosa_vec_less(nosa_vec_load(logits + i), infinite));
    for (; i < vocab; i++)
        fine &= logits[i] < INFINITY ? 0xffffu : 0;
    return (fine & 0xffffu) != 0xffffu;
}

/* The first token with the largest logit; the logit in *top. */
NOSA_VEC_INLINE int32_t nosa_logits_largest(const float *logits, int32_t vocab, float *top)
{
    nosa_vec largest = nosa_vec_set1(-INFINITY);
    for (int32_t i = 0; i < vocab; i += NOSA_VEC_LANES)
        largest = nosa_vec_max(nosa_logits_load(logits, i, vocab), largest);
    *top = nosa_vec_max_lane(largest);
    nosa_vec wanted = nosa_vec_set1(*top);
    for (int32_t i = 0; i < vocab; i += NOSA_VEC_LANES) {
        uint32_t equal =
            nosa_vec_mask_bits(nosa_vec_equal(nosa_logits_load(logits, i, vocab), wanted));
        if (equal != 0)
            return i + __builtin_ctz(equal);
    }
    return 0;
}

/* log of the sum of e^logit; 0 if every logit is -inf. */
NOSA_VEC_INLINE double nosa_logits_log_sum_exp(const float *logits, int32_t vocab, float top)
{
    if (top == -INFINITY)
        return 0;
    nosa_vec largest = nosa_vec_set1(top);
    double total = 0;
    for (int32_t i = 0; i < vocab;) {
        nosa_vec sum = nosa_vec_zero();
        for (int n = 0; n < NOSA_LOGITS_SUM_VECTORS && i < vocab; n++, i += NOSA_VEC_LANES)
            sum = nosa_vec_add(
                sum, nosa_vec_exp(nosa_vec_sub(nosa_logits_load(logits, i, vocab), largest)));
        total += nosa_vec_sum(sum);
    }
    return top + log(total);
}

#endif
