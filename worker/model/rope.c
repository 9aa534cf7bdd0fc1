#include "model/rope.h"

#include <math.h>

#define PI 3.14159265358979323846

/* The dimension (a fraction of one, perhaps) whose frequency turns `rotations` times in `length`
 * tokens: theta^(-2i/d) length = 2 pi rotations, solved for i. */
static double dimension_of_rotations(double rotations, uint32_t head_dim, double theta,
                                     double length)
{
    return head_dim * log(length / (rotations * 2 * PI)) / (2 * log(theta));
}

static double yarn_scale(double factor, double mscale)
{
    return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}

static void apply_llama3(const struct nosa_rope_config *rope, uint32_t count, double *inv_freq)
{
    double length = rope->original_max_positions;
    for (uint32_t i = 0; i < count; i++) {
        double wavelength = 2 * PI / inv_freq[i];
        if (wavelength < length / rope->high_freq_factor)
            continue;
        if (wavelength > length / rope->low_freq_factor) {
            inv_freq[i] /= rope->factor;
            continue;
        }
        double mix = (length / wavelength - rope->low_freq_factor) /
                     (rope->high_freq_factor - rope->low_freq_factor);
        inv_freq[i] = (1 - mix) * inv_freq[i] / rope->factor + mix * inv_freq[i];
    }
}

static void apply_yarn(const struct nosa_rope_config *rope, uint32_t head_dim, double *inv_freq,
                       double *attention_factor)
{
    double length = rope->original_max_positions;
    double low = dimension_of_rotations(rope->beta_fast, head_dim, rope->theta, length);
    double high = dimension_of_rotations(rope->beta_slow, head_dim, rope->theta, length);
    if (rope->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, head_dim - 1.0);
    if (low == high)
        high += 0.001;
    for (uint32_t i = 0; i < head_dim / 2; i++) {
        double ramp = fmin(fmax((i - low) / (high - low), 0), 1);
        inv_freq[i] = inv_freq[i] / rope->factor * ramp + inv_freq[i] * (1 - ramp);
    }
    if (rope->attention_factor == 0 && rope->mscale != 0 && rope->mscale_all_dim != 0)
        *attention_factor =
            yarn_scale(rope->factor, rope->mscale) / yarn_scale(rope->factor, rope->mscale_all_dim);
    else if (rope->attention_factor == 0)
        *attention_factor = yarn_scale(rope->factor, 1);
}

static void apply_longrope(const struct nosa_rope_config *rope, uint32_t count, double *inv_freq,
                           double *attention_factor)
{
    for (uint32_t i = 0; i < count; i++)
        inv_freq[i] /= rope->short_factor[i];
    if (rope->attention_factor == 0 && rope->factor > 1)
        *attention_factor = sqrt(1 + log(rope->factor) / log(rope->original_max_positions));
}

void nosa_rope_frequencies(const struct nosa_model_config *config, double *inv_freq,
                           double *attention_factor)
{
    const struct nosa_rope_config *rope = &config->rope;
    uint32_t count = config->head_dim / 2;
    for (uint32_t i = 0; i < count; i++)
        inv_freq[i] = pow(rope->theta, -2.0 * i / config->head_dim);
    *attention_factor = rope->attention_factor != 0 ? rope->attention_factor : 1;
    switch (rope->type) {
    case NOSA_ROPE_NONE: break;
    case NOSA_ROPE_LINEAR:
        for (uint32_t i = 0; i < count; i++)
            inv_freq[i] /= rope->factor;
        break;
    case NOSA_ROPE_LLAMA3: apply_llama3(rope, count, inv_freq); break;
    case NOSA_ROPE_YARN: apply_yarn(rope, config->head_dim, inv_freq, attention_factor); break;
    case NOSA_ROPE_LONGROPE: apply_longrope(rope, count, inv_freq, attention_factor); break;
    }
}
