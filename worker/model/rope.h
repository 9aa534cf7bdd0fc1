/*
 * Inverse frequencies of the rotary positions, in double precision, for every rope type that a
 * checkpoint may name. The engine rounds them as its tables need. Any thread; no state.
 */
#ifndef NOSA_MODEL_ROPE_H
#define NOSA_MODEL_ROPE_H

#include "model/config.h"

/*
 * Fills inv_freq[head_dim / 2] and *attention_factor (the scale of cos and sin, 1 where the type
 * has none). Dimension pair i of a head at position p turns by p * inv_freq[i]; pairs are
 * (i, i + head_dim / 2). With d = head_dim, w_i = theta^(-2i/d):
 *
 *   none      w_i
 *   linear    w_i / factor
 *   llama3    w_i where the wavelength 2 pi / w_i is below L / high_freq_factor, w_i / factor
 *             where it is above L / low_freq_factor, and between them the mix of both by
 *             (L / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
 *             L is original_max_positions
 *   yarn      (1 - r_i) w_i + r_i w_i / factor, r a ramp from the dimension that turns beta_fast
 *             times in L tokens to the one that turns beta_slow times (arXiv 2309.00071)
 *   longrope  w_i / short_factor[i] (arXiv 2402.13753)
 *
 * attention_factor where the config does not give it: yarn m(factor, 1), or with mscale and
 * mscale_all_dim both set m(factor, mscale) / m(factor, mscale_all_dim), where
 * m(s, k) = 0.1 k ln s + 1 (1 for s <= 1); longrope sqrt(1 + ln factor / ln L) (1 for factor <= 1).
 * Cannot fail: a config that passed nosa_model_config_parse gives finite, positive values.
 */
void nosa_rope_frequencies(const struct nosa_model_config *config, double *inv_freq,
                           double *attention_factor);

#endif
