/* Compiled once per instruction set. */
#include "vec_apply.h"

#include "cpu/cpu_internal.h"
#include "cpu/vec.h"

static nosa_vec round_trip_pairs(nosa_vec even, nosa_vec odd)
{
    uint16_t pairs[2 * NOSA_VEC_LANES];
    nosa_vec_store_bf16_pairs(pairs, even, odd);
    nosa_vec_load_bf16_pairs(pairs, &even, &odd);
    return nosa_vec_add(even, nosa_vec_mul(odd, nosa_vec_zero()));
}

static nosa_vec round_trip(nosa_vec a)
{
    uint16_t values[NOSA_VEC_LANES];
    nosa_vec_store_bf16(values, a);
    return nosa_vec_load_bf16(values);
}

static void apply(enum vec_primitive primitive, const float *from_a, const float *from_b,
                  const float *from_c, float *out)
{
    nosa_vec a = nosa_vec_load(from_a);
    nosa_vec b = nosa_vec_load(from_b);
    nosa_vec c = nosa_vec_load(from_c);
    nosa_vec result = nosa_vec_zero();
    switch (primitive) {
    case VEC_ADD: result = nosa_vec_add(a, b); break;
    case VEC_SUB: result = nosa_vec_sub(a, b); break;
    case VEC_MUL: result = nosa_vec_mul(a, b); break;
    case VEC_DIV: result = nosa_vec_div(a, b); break;
    case VEC_SQRT: result = nosa_vec_sqrt(a); break;
    case VEC_MAX: result = nosa_vec_max(a, b); break;
    case VEC_MIN: result = nosa_vec_min(a, b); break;
    case VEC_FMA: result = nosa_vec_fma(a, b, c); break;
    case VEC_SELECT_LESS: result = nosa_vec_select(nosa_vec_less(a, b), b, c); break;
    case VEC_SELECT_EQUAL: result = nosa_vec_select(nosa_vec_equal(a, b), b, c); break;
    case VEC_MASK_BITS:
        result = nosa_vec_set1((float)nosa_vec_mask_bits(nosa_vec_less(a, b)));
        break;
    case VEC_SUM: result = nosa_vec_set1(nosa_vec_sum(a)); break;
    case VEC_MAX_LANE: result = nosa_vec_set1(nosa_vec_max_lane(a)); break;
    case VEC_EXP: result = nosa_vec_exp(a); break;
    case VEC_SILU: result = nosa_vec_silu(a); break;
    case VEC_BF16: result = round_trip(a); break;
    case VEC_BF16_PAIRS: result = round_trip_pairs(a, b); break;
    case VEC_PRIMITIVES: break;
    }
    nosa_vec_store(out, result);
}

static void copy_first(const float *from, int n, float *out)
{
    nosa_vec_store_first(out, nosa_vec_load_first(from, n), n);
}

static void from_f16(const uint16_t *from, float *out)
{
    nosa_vec_store(out, nosa_vec_load_f16(from));
}

const struct vec_functions NOSA_CPU_NAME(vec_functions) = {apply, copy_first, from_f16};
