/* vec.h on every instruction set that this processor has, against scalar arithmetic: same bits. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <sys/mman.h>

#include "cpu_device.h"
#include "dtype.h"
#include "vec_apply.h"

#define LANES 16

struct isa {
    enum nosa_cpu_isa isa;
    const struct vec_functions *functions;
};

static const struct isa isas[] = {
    {NOSA_CPU_ISA_PORTABLE, &vec_functions_portable},
    {NOSA_CPU_ISA_AVX2, &vec_functions_avx2},
    {NOSA_CPU_ISA_AVX512, &vec_functions_avx512},
};

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t next_random(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state ^ *state >> 15;
}

/* Any bit pattern at times, moderate numbers mostly, edges often. */
static float draw(uint32_t *state)
{
    static const float edges[] = {0.0f,  -0.0f,    1.0f,        -1.0f,   INFINITY,  -INFINITY,
                                  NAN,   FLT_MAX,  -FLT_MAX,    FLT_MIN, 0x1p-149f, 0x1p-140f,
                                  88.7f, -103.97f, 1.00390625f, 3.0f};
    uint32_t kind = next_random(state) % 8;
    if (kind == 0)
        return edges[next_random(state) % (sizeof edges / sizeof *edges)];
    if (kind == 1)
        return float_of(next_random(state));
    return ((float)(next_random(state) >> 8) - 0x1p23f) * 0x1p-20f;
}

static float scalar(enum vec_primitive primitive, float a, float b, float c)
{
    switch (primitive) {
    case VEC_ADD: return a + b;
    case VEC_SUB: return a - b;
    case VEC_MUL: return a * b;
    case VEC_DIV: return a / b;
    case VEC_SQRT: return sqrtf(a);
    case VEC_MAX: return a > b ? a : b;
    case VEC_MIN: return a < b ? a : b;
    case VEC_FMA: return fmaf(a, b, c);
    case VEC_SELECT_LESS: return a < b ? b : c;
    case VEC_SELECT_EQUAL: return a == b ? b : c;
    case VEC_BF16: return nosa_bf16_to_f32(nosa_f32_to_bf16(a));
    case VEC_BF16_PAIRS:
        return nosa_bf16_to_f32(nosa_f32_to_bf16(a)) + nosa_bf16_to_f32(nosa_f32_to_bf16(b)) * 0.0f;
    default: abort();
    }
}

static bool same(float a, float b)
{
    return bits_of(a) == bits_of(b) || (isnan(a) && isnan(b));
}

static void test_primitives_equal_scalar_bits(void **state)
{
    (void)state;
    static const enum vec_primitive lanewise[] = {
        VEC_ADD, VEC_SUB, VEC_MUL,         VEC_DIV,          VEC_SQRT, VEC_MAX,
        VEC_MIN, VEC_FMA, VEC_SELECT_LESS, VEC_SELECT_EQUAL, VEC_BF16, VEC_BF16_PAIRS};
    for (size_t s = 0; s < sizeof isas / sizeof *isas; s++) {
        if (!nosa_cpu_isa_available(isas[s].isa))
            continue;
        uint32_t random = 7;
        for (int round = 0; round < 20000; round++) {
            float a[LANES], b[LANES], c[LANES], out[LANES];
            for (int i = 0; i < LANES; i++) {
                a[i] = draw(&random);
                b[i] = next_random(&random) % 8 == 0 ? a[i] : draw(&random);
                c[i] = draw(&random);
            }
            enum vec_primitive primitive =
                lanewise[(size_t)round % (sizeof lanewise / sizeof *lanewise)];
            isas[s].functions->apply(primitive, a, b, c, out);
            for (int i = 0; i < LANES; i++) {
                float expected = scalar(primitive, a[i], b[i], c[i]);
                if (!same(out[i], expected))
                    fail_msg("%s, primitive %d of %a, %a, %a: %a, not %a",
                             nosa_cpu_isa_name(isas[s].isa), (int)primitive, (double)a[i],
                             (double)b[i], (double)c[i], (double)out[i], (double)expected);
            }
        }
    }
}

static void test_mask_bits_name_the_lanes(void **state)
{
    (void)state;
    for (size_t s = 0; s < sizeof isas / sizeof *isas; s++) {
        if (!nosa_cpu_isa_available(isas[s].isa))
            continue;
        for (uint32_t mask = 0; mask < 0x10000u; mask += 257) {
            float a[LANES], b[LANES], out[LANES];
            for (int i = 0; i < LANES; i++) {
                a[i] = (float)i;
                b[i] = (mask >> i & 1u) ? (float)i + 1.0f : (float)i;
            }
            isas[s].functions->apply(VEC_MASK_BITS, a, b, b, out);
            assert_true(out[0] == (float)mask);
        }
    }
}

static void test_sum_and_max_lane_follow_the_tree(void **state)
{
    (void)state;
    for (size_t s = 0; s < sizeof isas / sizeof *isas; s++) {
        if (!nosa_cpu_isa_available(isas[s].isa))
            continue;
        uint32_t random = 11;
        for (int round = 0; round < 5000; round++) {
            float a[LANES], sum[LANES], largest[LANES], out[LANES];
            for (int i = 0; i < LANES; i++)
                sum[i] = largest[i] = a[i] = draw(&random);
            for (int half = LANES / 2; half > 0; half /= 2)
                for (int i = 0; i < half; i++) {
                    sum[i] = sum[i] + sum[i + half];
                    largest[i] = largest[i] > largest[i + half] ? largest[i] : largest[i + half];
                }
            isas[s].functions->apply(VEC_SUM, a, a, a, out);
            assert_true(same(out[0], sum[0]));
            isas[s].functions->apply(VEC_MAX_LANE, a, a, a, out);
            assert_true(same(out[0], largest[0]));
        }
    }
}

/* Distance of a finite result from the true value, in units of its last place. */
static double ulps(float result, double truth)
{
    int exponent;
    frexp(truth, &exponent);
    double unit = ldexp(1.0, exponent - 24 < -149 ? -149 : exponent - 24);
    return fabs((double)result - truth) / unit;
}

/* Every 1021st of all bit patterns: the same bits on every instruction set, within 1 ulp. */
static void test_exp_is_accurate_and_the_same_everywhere(void **state)
{
    (void)state;
    double worst = 0;
    float in[LANES], out[3][LANES];
    for (uint64_t first = 0; first < 0x100000000u; first += 1021u * LANES) {
        for (int i = 0; i < LANES; i++)
            in[i] = float_of((uint32_t)(first + 1021u * (uint32_t)i));
        for (size_t s = 0; s < 3; s++)
            if (nosa_cpu_isa_available(isas[s].isa))
                isas[s].functions->apply(VEC_EXP, in, in, in, out[s]);
            else
                memcpy(out[s], out[0], sizeof out[s]);
        for (int i = 0; i < LANES; i++) {
            assert_true(same(out[1][i], out[0][i]) && same(out[2][i], out[0][i]));
            double truth = exp((double)in[i]);
            if (isnan(in[i])) {
                assert_true(isnan(out[0][i]));
            } else if (truth >= 0x1.ffffffp127) {
                assert_true(isinf(out[0][i]) && out[0][i] > 0);
            } else {
                double distance = ulps(out[0][i], truth);
                worst = distance > worst ? distance : worst;
            }
        }
    }
    printf("largest error of exp: %.3f ulp\n", worst);
    assert_true(worst < 1.0);
}

static void test_exp_at_its_edges(void **state)
{
    (void)state;
    const float in[LANES] = {-INFINITY, INFINITY, 0.0f,    -0.0f,   -104.0f,    -103.0f,
                             -1000.0f,  1000.0f,  88.723f, 88.722f, -87.33655f, NAN,
                             0x1p-149f, 1.0f,     -1.0f,   -FLT_MAX};
    for (size_t s = 0; s < sizeof isas / sizeof *isas; s++) {
        if (!nosa_cpu_isa_available(isas[s].isa))
            continue;
        float out[LANES];
        isas[s].functions->apply(VEC_EXP, in, in, in, out);
        assert_int_equal(bits_of(out[0]), 0);
        assert_true(isinf(out[1]));
        assert_true(out[2] == 1.0f && out[3] == 1.0f && out[12] == 1.0f);
        assert_int_equal(bits_of(out[4]), 0);
        assert_int_equal(bits_of(out[5]), 1);
        assert_int_equal(bits_of(out[6]), 0);
        assert_true(isinf(out[7]) && isinf(out[8]) && isfinite(out[9]));
        assert_true(isnan(out[11]));
        assert_int_equal(bits_of(out[15]), 0);
    }
}

static void test_silu_is_accurate_and_the_same_everywhere(void **state)
{
    (void)state;
    uint32_t random = 5;
    for (int round = 0; round < 20000; round++) {
        float in[LANES], first[LANES], out[LANES];
        for (int i = 0; i < LANES; i++)
            in[i] = ((float)(next_random(&random) >> 8) - 0x1p23f) * 0x1p-17f;
        isas[0].functions->apply(VEC_SILU, in, in, in, first);
        for (size_t s = 1; s < sizeof isas / sizeof *isas; s++)
            if (nosa_cpu_isa_available(isas[s].isa)) {
                isas[s].functions->apply(VEC_SILU, in, in, in, out);
                assert_memory_equal(out, first, sizeof out);
            }
        for (int i = 0; i < LANES; i++) {
            double truth = (double)in[i] / (1.0 + exp(-(double)in[i]));
            assert_true(ulps(first[i], truth) < 3.0);
        }
    }
}

/* The lanes lie at the end of a page that nothing follows: reading behind them would trap. */
static void test_partial_access_stays_within_its_lanes(void **state)
{
    (void)state;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *memory = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(memory != MAP_FAILED);
    assert_int_equal(mprotect(memory + page, page, PROT_NONE), 0);
    for (size_t s = 0; s < sizeof isas / sizeof *isas; s++) {
        if (!nosa_cpu_isa_available(isas[s].isa))
            continue;
        for (int n = 0; n <= LANES; n++) {
            float *last = (float *)(void *)(memory + page) - n;
            float out[LANES + 1];
            for (int i = 0; i < n; i++)
                last[i] = (float)i + 0.5f;
            for (int i = 0; i <= LANES; i++)
                out[i] = -1.0f;
            isas[s].functions->copy_first(last, n, out);
            for (int i = 0; i <= LANES; i++)
                assert_true(out[i] == (i < n ? (float)i + 0.5f : -1.0f));
            isas[s].functions->copy_first(out, n, last);
        }
    }
    munmap(memory, 2 * page);
}

static void test_every_binary16_value_converts_exactly(void **state)
{
    (void)state;
    for (size_t s = 0; s < sizeof isas / sizeof *isas; s++) {
        if (!nosa_cpu_isa_available(isas[s].isa))
            continue;
        for (uint32_t first = 0; first < 0x10000u; first += LANES) {
            uint16_t in[LANES];
            float out[LANES];
            for (uint32_t i = 0; i < LANES; i++)
                in[i] = (uint16_t)(first + i);
            isas[s].functions->from_f16(in, out);
            for (int i = 0; i < LANES; i++)
                assert_true(same(out[i], nosa_f16_to_f32(in[i])));
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_primitives_equal_scalar_bits),
        cmocka_unit_test(test_mask_bits_name_the_lanes),
        cmocka_unit_test(test_sum_and_max_lane_follow_the_tree),
        cmocka_unit_test(test_exp_is_accurate_and_the_same_everywhere),
        cmocka_unit_test(test_exp_at_its_edges),
        cmocka_unit_test(test_silu_is_accurate_and_the_same_everywhere),
        cmocka_unit_test(test_partial_access_stays_within_its_lanes),
        cmocka_unit_test(test_every_binary16_value_converts_exactly),
    };
    return cmocka_run_group_tests_name("vec", tests, NULL, NULL);
}
