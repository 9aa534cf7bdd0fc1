/*
 * Vectors of 16 float32 lanes for the CPU ops, the same on every instruction set.
 *
 * One source, three meanings: AVX-512 (one register), AVX2 with FMA and F16C (two registers), and
 * portable C. Every function gives the same bits on all of them (the payload of a NaN aside), which
 * is what lets an op promise the same result on every processor. To keep that promise an op uses
 * only these functions, sums in an order that it fixes itself, and leaves no choice to the compiler
 * (contraction is off in the whole build).
 *
 * Denormals are kept. Comparisons with a NaN are false.
 */
#ifndef NOSA_KERNELS_CPU_VEC_H
#define NOSA_KERNELS_CPU_VEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "dtype.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) &&                      \
    defined(__AVX512VL__) && defined(__FMA__)
#define NOSA_VEC_AVX512 1
#include <immintrin.h>
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define NOSA_VEC_AVX2 1
#include <immintrin.h>
#else
#define NOSA_VEC_PORTABLE 1
#endif

#define NOSA_VEC_LANES 16

/* Instrumented lane loops, all inlined, would compile for minutes. */
#if defined(NOSA_VEC_PORTABLE) && (defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__))
#define NOSA_VEC_INLINE static __attribute__((noinline, unused))
#else
#define NOSA_VEC_INLINE static inline __attribute__((always_inline, unused))
#endif

/* What touches no memory but its arguments and is called most: the sanitizers pass over it. */
#define NOSA_VEC_UNCHECKED __attribute__((no_sanitize("address", "undefined", "thread")))

/* A fixed-trip loop over the lanes, portable code only. */
#define NOSA_VEC_EACH(i) for (int i = 0; i < NOSA_VEC_LANES; i++)

/* ---- types, loads and stores ---- */

#if defined(NOSA_VEC_AVX512)

typedef __m512 nosa_vec;
typedef __mmask16 nosa_vec_mask;

/* 16 values at any address. */
NOSA_VEC_INLINE nosa_vec nosa_vec_load(const float *from)
{
    return _mm512_loadu_ps(from);
}

NOSA_VEC_INLINE void nosa_vec_store(float *to, nosa_vec a)
{
    _mm512_storeu_ps(to, a);
}

NOSA_VEC_INLINE nosa_vec nosa_vec_set1(float value)
{
    return _mm512_set1_ps(value);
}

NOSA_VEC_INLINE nosa_vec nosa_vec_add(nosa_vec a, nosa_vec b)
{
    return _mm512_add_ps(a, b);
}

NOSA_VEC_INLINE nosa_vec nosa_vec_sub(nosa_vec a, nosa_vec b)
{
    return _mm512_sub_ps(a, b);
}

NOSA_VEC_INLINE nosa_vec nosa_vec_mul(nosa_vec a, nosa_vec b)
{
    return _mm512_mul_ps(a, b);
}

NOSA_VEC_INLINE nosa_vec nosa_vec_div(nosa_vec a, nosa_vec b)
{
    return _mm512_div_ps(a, b);
}

NOSA_VEC_INLINE nosa_vec nosa_vec_sqrt(nosa_vec a)
{
    return _mm512_sqrt_ps(a);
}

/* Keeps a loaded value in its register, where the compiler would rather load it at each use. */
NOSA_VEC_INLINE void nosa_vec_keep(nosa_vec *a)
{
    __asm__("" : "+v"(*a));
}

/* a > b ? a : b per lane: b where either is NaN. */
NOSA_VEC_INLINE nosa_vec nosa_vec_max(nosa_vec a, nosa_vec b)
{
    return _mm512_max_ps(a, b);
}

/* a < b ? a : b per lane: b where either is NaN. */
NOSA_VEC_INLINE nosa_vec nosa_vec_min(nosa_vec a, nosa_vec b)
{
    return _mm512_min_ps(a, b);
}

/* a * b + c, rounded once. */
NOSA_VEC_INLINE nosa_vec nosa_vec_fma(nosa_vec a, nosa_vec b, nosa_vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}

/* 2^a for integral a in -126 .. 127. */
NOSA_VEC_INLINE nosa_vec nosa_vec_power2(nosa_vec a)
{
    __m512i biased = _mm512_castps_si512(_mm512_add_ps(a, _mm512_set1_ps(0x1p23f + 127.0f)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
}

/* The lowest 9 bits of each lane moved to sign and exponent: 2^i for i + 127 = 0 .. 254 in them,
 * and +0 for 0. */
NOSA_VEC_INLINE nosa_vec nosa_vec_low_to_exponent(nosa_vec a)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a), 23));
}

/* Lanes 0 .. n - 1; none if n <= 0, all if n >= 16. */
NOSA_VEC_INLINE nosa_vec_mask nosa_vec_mask_first(int n)
{
    return n >= 16 ? (__mmask16)0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1u);
}

NOSA_VEC_INLINE nosa_vec_mask nosa_vec_less(nosa_vec a, nosa_vec b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
}

NOSA_VEC_INLINE nosa_vec_mask nosa_vec_equal(nosa_vec a, nosa_vec b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ);
}

/* Bit i is lane i. */
NOSA_VEC_INLINE uint32_t nosa_vec_mask_bits(nosa_vec_mask mask)
{
    return (uint32_t)mask;
}

/* mask ? a : b per lane. */
NOSA_VEC_INLINE nosa_vec nosa_vec_select(nosa_vec_mask mask, nosa_vec a, nosa_vec b)
{
    return _mm512_mask_blend_ps(mask, b, a);
}

/* The first n lanes (0 .. 16); the others are +0, and memory behind them is not read. */
NOSA_VEC_INLINE nosa_vec nosa_vec_load_first(const float *from, int n)
{
    return _mm512_maskz_loadu_ps(nosa_vec_mask_first(n), from);
}

NOSA_VEC_INLINE void nosa_vec_store_first(float *to, nosa_vec a, int n)
{
    _mm512_mask_storeu_ps(to, nosa_vec_mask_first(n), a);
}

/* 16 consecutive bfloat16 values. */
NOSA_VEC_INLINE nosa_vec nosa_vec_load_bf16(const uint16_t *from)
{
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

/* 32 bfloat16 values [16][2]: the first of each pair in *even, the second in *odd. */
NOSA_VEC_INLINE void nosa_vec_load_bf16_pairs(const uint16_t *from, nosa_vec *even, nosa_vec *odd)
{
    __m512i pairs = _mm512_loadu_si512(from);
    *even = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    *odd = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000u)));
}

/* The two values of each pair, as nosa_vec_load_bf16_pairs, from lanes loaded as bits. */
NOSA_VEC_INLINE void nosa_vec_split_bf16_pairs(nosa_vec pairs, nosa_vec *even, nosa_vec *odd)
{
    __m512i bits = _mm512_castps_si512(pairs);
    *even = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
    *odd = _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32((int)0xffff0000u)));
}

/* a[i] becomes the i-th four lanes of a[0], a[1], a[2], a[3]. Moves bits only. */
NOSA_VEC_INLINE void nosa_vec_transpose_quads(nosa_vec a[4])
{
    nosa_vec low01 = _mm512_shuffle_f32x4(a[0], a[1], 0x44);
    nosa_vec high01 = _mm512_shuffle_f32x4(a[0], a[1], 0xee);
    nosa_vec low23 = _mm512_shuffle_f32x4(a[2], a[3], 0x44);
    nosa_vec high23 = _mm512_shuffle_f32x4(a[2], a[3], 0xee);
    a[0] = _mm512_shuffle_f32x4(low01, low23, 0x88);
    a[1] = _mm512_shuffle_f32x4(low01, low23, 0xdd);
    a[2] = _mm512_shuffle_f32x4(high01, high23, 0x88);
    a[3] = _mm512_shuffle_f32x4(high01, high23, 0xdd);
}

/* 16 consecutive IEEE binary16 values. */
NOSA_VEC_INLINE nosa_vec nosa_vec_load_f16(const uint16_t *from)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)from));
}

/* Lanes rounded to bfloat16 as nosa_f32_to_bf16 does, in the low halves of 32-bit units. */
NOSA_VEC_INLINE __m512i nosa_vec_bf16_bits_(nosa_vec a)
{
    __m512i bits = _mm512_castps_si512(a);
    __m512i tie = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), tie);
    __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    return _mm512_srli_epi32(_mm512_mask_blend_epi32(nan, rounded, quiet), 16);
}

/* 16 values rounded to bfloat16 (nearest, ties to even; NaN stays NaN). */
NOSA_VEC_INLINE void nosa_vec_store_bf16(uint16_t *to, nosa_vec a)
{
    _mm256_storeu_si256((__m256i *)(void *)to, _mm512_cvtepi32_epi16(nosa_vec_bf16_bits_(a)));
}

/* The pair layout [16][2], rounded likewise. */
NOSA_VEC_INLINE void nosa_vec_store_bf16_pairs(uint16_t *to, nosa_vec even, nosa_vec odd)
{
    __m512i high = _mm512_slli_epi32(nosa_vec_bf16_bits_(odd), 16);
    _mm512_storeu_si512(to, _mm512_or_si512(nosa_vec_bf16_bits_(even), high));
}

/* Sum in the fixed tree: lanes i and i + 8, then i and i + 4, i + 2, i + 1. */
NOSA_VEC_INLINE float nosa_vec_sum(nosa_vec a)
{
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* Largest lane, in the same tree of nosa_vec_max. */
NOSA_VEC_INLINE float nosa_vec_max_lane(nosa_vec a)
{
    __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

#elif defined(NOSA_VEC_AVX2)

typedef struct {
    __m256 low, high; /* lanes 0 .. 7 and 8 .. 15 */
} nosa_vec;
typedef nosa_vec nosa_vec_mask; /* all bits of a lane set, or none */

NOSA_VEC_INLINE nosa_vec nosa_vec_load(const float *from)
{
    return (nosa_vec){_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
}

NOSA_VEC_INLINE void nosa_vec_store(float *to, nosa_vec a)
{
    _mm256_storeu_ps(to, a.low);
    _mm256_storeu_ps(to + 8, a.high);
}

NOSA_VEC_INLINE nosa_vec nosa_vec_set1(float value)
{
    return (nosa_vec){_mm256_set1_ps(value), _mm256_set1_ps(value)};
}

NOSA_VEC_INLINE nosa_vec nosa_vec_add(nosa_vec a, nosa_vec b)
{
    return (nosa_vec){_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}

NOSA_VEC_INLINE nosa_vec nosa_vec_sub(nosa_vec a, nosa_vec b)
{
    return (nosa_vec){_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}

NOSA_VEC_INLINE nosa_vec nosa_vec_mul(nosa_vec a, nosa_vec b)
{
    return (nosa_vec){_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}

NOSA_VEC_INLINE nosa_vec nosa_vec_div(nosa_vec a, nosa_vec b)
{
    return (nosa_vec){_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}

NOSA_VEC_INLINE nosa_vec nosa_vec_sqrt(nosa_vec a)
{
    return (nosa_vec){_mm256_sqrt_ps(a.low), _mm256_sqrt_ps(a.high)};
}

NOSA_VEC_INLINE void nosa_vec_keep(nosa_vec *a)
{
    __asm__("" : "+x"(a->low), "+x"(a->high));
}

NOSA_VEC_INLINE nosa_vec nosa_vec_max(nosa_vec a, nosa_vec b)
{
    return (nosa_vec){_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}

NOSA_VEC_INLINE nosa_vec nosa_vec_min(nosa_vec a, nosa_vec b)
{
    return (nosa_vec){_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}

NOSA_VEC_INLINE nosa_vec nosa_vec_fma(nosa_vec a, nosa_vec b, nosa_vec c)
{
    return (nosa_vec){_mm256_fmadd_ps(a.low, b.low, c.low),
                      _mm256_fmadd_ps(a.high, b.high, c.high)};
}

NOSA_VEC_INLINE __m256 nosa_vec_power2_half_(__m256 a)
{
    __m256i biased = _mm256_castps_si256(_mm256_add_ps(a, _mm256_set1_ps(0x1p23f + 127.0f)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}

NOSA_VEC_INLINE nosa_vec nosa_vec_power2(nosa_vec a)
{
    return (nosa_vec){nosa_vec_power2_half_(a.low), nosa_vec_power2_half_(a.high)};
}

NOSA_VEC_INLINE nosa_vec nosa_vec_low_to_exponent(nosa_vec a)
{
    return (nosa_vec){
        _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a.low), 23)),
        _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a.high), 23)),
    };
}

NOSA_VEC_INLINE nosa_vec_mask nosa_vec_mask_first(int n)
{
    __m256i count = _mm256_set1_epi32(n);
    __m256i low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i high = _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15);
    return (nosa_vec_mask){_mm256_castsi256_ps(_mm256_cmpgt_epi32(count, low)),
                           _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, high))};
}

NOSA_VEC_INLINE nosa_vec_mask nosa_vec_less(nosa_vec a, nosa_vec b)
{
    return (nosa_vec_mask){_mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ),
                           _mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ)};
}

NOSA_VEC_INLINE nosa_vec_mask nosa_vec_equal(nosa_vec a, nosa_vec b)
{
    return (nosa_vec_mask){_mm256_cmp_ps(a.low, b.low, _CMP_EQ_OQ),
                           _mm256_cmp_ps(a.high, b.high, _CMP_EQ_OQ)};
}

NOSA_VEC_INLINE uint32_t nosa_vec_mask_bits(nosa_vec_mask mask)
{
    return (uint32_t)_mm256_movemask_ps(mask.low) | (uint32_t)_mm256_movemask_ps(mask.high) << 8;
}

NOSA_VEC_INLINE nosa_vec nosa_vec_select(nosa_vec_mask mask, nosa_vec a, nosa_vec b)
{
    return (nosa_vec){_mm256_blendv_ps(b.low, a.low, mask.low),
                      _mm256_blendv_ps(b.high, a.high, mask.high)};
}

NOSA_VEC_INLINE nosa_vec nosa_vec_load_first(const float *from, int n)
{
    nosa_vec_mask mask = nosa_vec_mask_first(n);
    return (nosa_vec){_mm256_maskload_ps(from, _mm256_castps_si256(mask.low)),
                      _mm256_maskload_ps(from + 8, _mm256_castps_si256(mask.high))};
}

NOSA_VEC_INLINE void nosa_vec_store_first(float *to, nosa_vec a, int n)
{
    nosa_vec_mask mask = nosa_vec_mask_first(n);
    _mm256_maskstore_ps(to, _mm256_castps_si256(mask.low), a.low);
    _mm256_maskstore_ps(to + 8, _mm256_castps_si256(mask.high), a.high);
}

NOSA_VEC_INLINE __m256 nosa_vec_widen_bf16_(const uint16_t *from)
{
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

NOSA_VEC_INLINE nosa_vec nosa_vec_load_bf16(const uint16_t *from)
{
    return (nosa_vec){nosa_vec_widen_bf16_(from), nosa_vec_widen_bf16_(from + 8)};
}

NOSA_VEC_INLINE void nosa_vec_load_bf16_pairs(const uint16_t *from, nosa_vec *even, nosa_vec *odd)
{
    __m256i odd_bits = _mm256_set1_epi32((int)0xffff0000u);
    __m256i low = _mm256_loadu_si256((const __m256i *)(const void *)from);
    __m256i high = _mm256_loadu_si256((const __m256i *)(const void *)(from + 16));
    *even = (nosa_vec){_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)),
                       _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))};
    *odd = (nosa_vec){_mm256_castsi256_ps(_mm256_and_si256(low, odd_bits)),
                      _mm256_castsi256_ps(_mm256_and_si256(high, odd_bits))};
}

NOSA_VEC_INLINE void nosa_vec_split_bf16_pairs(nosa_vec pairs, nosa_vec *even, nosa_vec *odd)
{
    __m256i odd_bits = _mm256_set1_epi32((int)0xffff0000u);
    __m256i low = _mm256_castps_si256(pairs.low), high = _mm256_castps_si256(pairs.high);
    *even = (nosa_vec){_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)),
                       _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))};
    *odd = (nosa_vec){_mm256_castsi256_ps(_mm256_and_si256(low, odd_bits)),
                      _mm256_castsi256_ps(_mm256_and_si256(high, odd_bits))};
}

NOSA_VEC_INLINE void nosa_vec_transpose_quads(nosa_vec a[4])
{
    nosa_vec r[4];
    r[0].low = _mm256_permute2f128_ps(a[0].low, a[1].low, 0x20);
    r[0].high = _mm256_permute2f128_ps(a[2].low, a[3].low, 0x20);
    r[1].low = _mm256_permute2f128_ps(a[0].low, a[1].low, 0x31);
    r[1].high = _mm256_permute2f128_ps(a[2].low, a[3].low, 0x31);
    r[2].low = _mm256_permute2f128_ps(a[0].high, a[1].high, 0x20);
    r[2].high = _mm256_permute2f128_ps(a[2].high, a[3].high, 0x20);
    r[3].low = _mm256_permute2f128_ps(a[0].high, a[1].high, 0x31);
    r[3].high = _mm256_permute2f128_ps(a[2].high, a[3].high, 0x31);
    for (int i = 0; i < 4; i++)
        a[i] = r[i];
}

NOSA_VEC_INLINE nosa_vec nosa_vec_load_f16(const uint16_t *from)
{
    const __m128i *halves = (const __m128i *)(const void *)from;
    return (nosa_vec){_mm256_cvtph_ps(_mm_loadu_si128(halves)),
                      _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
}

NOSA_VEC_INLINE __m256i nosa_vec_bf16_bits_(__m256 a)
{
    __m256i bits = _mm256_castps_si256(a);
    __m256i tie = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), tie);
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
}

NOSA_VEC_INLINE void nosa_vec_store_bf16(uint16_t *to, nosa_vec a)
{
    __m256i packed = _mm256_packus_epi32(nosa_vec_bf16_bits_(a.low), nosa_vec_bf16_bits_(a.high));
    _mm256_storeu_si256((__m256i *)(void *)to, _mm256_permute4x64_epi64(packed, 0xd8));
}

NOSA_VEC_INLINE __m256i nosa_vec_join_bf16_(__m256 even, __m256 odd)
{
    return _mm256_or_si256(nosa_vec_bf16_bits_(even),
                           _mm256_slli_epi32(nosa_vec_bf16_bits_(odd), 16));
}

NOSA_VEC_INLINE void nosa_vec_store_bf16_pairs(uint16_t *to, nosa_vec even, nosa_vec odd)
{
    _mm256_storeu_si256((__m256i *)(void *)to, nosa_vec_join_bf16_(even.low, odd.low));
    _mm256_storeu_si256((__m256i *)(void *)(to + 16), nosa_vec_join_bf16_(even.high, odd.high));
}

NOSA_VEC_INLINE float nosa_vec_sum(nosa_vec a)
{
    __m256 eight = _mm256_add_ps(a.low, a.high);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

NOSA_VEC_INLINE float nosa_vec_max_lane(nosa_vec a)
{
    __m256 eight = _mm256_max_ps(a.low, a.high);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

#else /* portable */

typedef struct {
    float lane[NOSA_VEC_LANES];
} nosa_vec;
typedef uint32_t nosa_vec_mask; /* bit i is lane i */

NOSA_VEC_INLINE nosa_vec nosa_vec_load(const float *from)
{
    nosa_vec r;
    memcpy(r.lane, from, sizeof r.lane);
    return r;
}

NOSA_VEC_INLINE void nosa_vec_store(float *to, nosa_vec a)
{
    memcpy(to, a.lane, sizeof a.lane);
}

NOSA_VEC_INLINE nosa_vec nosa_vec_set1(float value)
{
    nosa_vec r;
    NOSA_VEC_EACH(i) r.lane[i] = value;
    return r;
}

NOSA_VEC_INLINE nosa_vec nosa_vec_add(nosa_vec a, nosa_vec b)
{
    NOSA_VEC_EACH(i) a.lane[i] = a.lane[i] + b.lane[i];
    return a;
}

NOSA_VEC_INLINE nosa_vec nosa_vec_sub(nosa_vec a, nosa_vec b)
{
    NOSA_VEC_EACH(i) a.lane[i] = a.lane[i] - b.lane[i];
    return a;
}

NOSA_VEC_INLINE nosa_vec nosa_vec_mul(nosa_vec a, nosa_vec b)
{
    NOSA_VEC_EACH(i) a.lane[i] = a.lane[i] * b.lane[i];
    return a;
}

NOSA_VEC_INLINE nosa_vec nosa_vec_div(nosa_vec a, nosa_vec b)
{
    NOSA_VEC_EACH(i) a.lane[i] = a.lane[i] / b.lane[i];
    return a;
}

NOSA_VEC_INLINE nosa_vec nosa_vec_sqrt(nosa_vec a)
{
    NOSA_VEC_EACH(i) a.lane[i] = __builtin_sqrtf(a.lane[i]);
    return a;
}

NOSA_VEC_INLINE void nosa_vec_keep(nosa_vec *a)
{
    (void)a;
}

NOSA_VEC_INLINE nosa_vec nosa_vec_max(nosa_vec a, nosa_vec b)
{
    NOSA_VEC_EACH(i) a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
    return a;
}

NOSA_VEC_INLINE nosa_vec nosa_vec_min(nosa_vec a, nosa_vec b)
{
    NOSA_VEC_EACH(i) a.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i];
    return a;
}

NOSA_VEC_UNCHECKED NOSA_VEC_INLINE nosa_vec nosa_vec_fma(nosa_vec a, nosa_vec b, nosa_vec c)
{
    NOSA_VEC_EACH(i) c.lane[i] = __builtin_fmaf(a.lane[i], b.lane[i], c.lane[i]);
    return c;
}

NOSA_VEC_INLINE nosa_vec nosa_vec_power2(nosa_vec a)
{
    NOSA_VEC_EACH(i)
    {
        float biased = a.lane[i] + (0x1p23f + 127.0f);
        uint32_t bits;
        memcpy(&bits, &biased, sizeof bits);
        bits <<= 23;
        memcpy(&a.lane[i], &bits, sizeof bits);
    }
    return a;
}

NOSA_VEC_INLINE nosa_vec nosa_vec_low_to_exponent(nosa_vec a)
{
    NOSA_VEC_EACH(i)
    {
        uint32_t bits;
        memcpy(&bits, &a.lane[i], sizeof bits);
        bits <<= 23;
        memcpy(&a.lane[i], &bits, sizeof bits);
    }
    return a;
}

NOSA_VEC_INLINE nosa_vec_mask nosa_vec_mask_first(int n)
{
    return n >= 16 ? 0xffffu : n <= 0 ? 0 : (1u << n) - 1u;
}

NOSA_VEC_INLINE nosa_vec_mask nosa_vec_less(nosa_vec a, nosa_vec b)
{
    nosa_vec_mask mask = 0;
    NOSA_VEC_EACH(i) mask |= (uint32_t)(a.lane[i] < b.lane[i]) << i;
    return mask;
}

NOSA_VEC_INLINE nosa_vec_mask nosa_vec_equal(nosa_vec a, nosa_vec b)
{
    nosa_vec_mask mask = 0;
    NOSA_VEC_EACH(i) mask |= (uint32_t)(a.lane[i] == b.lane[i]) << i;
    return mask;
}

NOSA_VEC_INLINE uint32_t nosa_vec_mask_bits(nosa_vec_mask mask)
{
    return mask;
}

NOSA_VEC_INLINE nosa_vec nosa_vec_select(nosa_vec_mask mask, nosa_vec a, nosa_vec b)
{
    NOSA_VEC_EACH(i) a.lane[i] = (mask >> i & 1u) ? a.lane[i] : b.lane[i];
    return a;
}

NOSA_VEC_INLINE nosa_vec nosa_vec_load_first(const float *from, int n)
{
    nosa_vec r;
    NOSA_VEC_EACH(i) r.lane[i] = i < n ? from[i] : 0.0f;
    return r;
}

NOSA_VEC_INLINE void nosa_vec_store_first(float *to, nosa_vec a, int n)
{
    for (int i = 0; i < n && i < NOSA_VEC_LANES; i++)
        to[i] = a.lane[i];
}

NOSA_VEC_INLINE nosa_vec nosa_vec_load_bf16(const uint16_t *from)
{
    nosa_vec r;
    NOSA_VEC_EACH(i) r.lane[i] = nosa_bf16_to_f32(from[i]);
    return r;
}

NOSA_VEC_INLINE void nosa_vec_load_bf16_pairs(const uint16_t *from, nosa_vec *even, nosa_vec *odd)
{
    NOSA_VEC_EACH(i) even->lane[i] = nosa_bf16_to_f32(from[2 * i]);
    NOSA_VEC_EACH(i) odd->lane[i] = nosa_bf16_to_f32(from[2 * i + 1]);
}

NOSA_VEC_INLINE void nosa_vec_split_bf16_pairs(nosa_vec pairs, nosa_vec *even, nosa_vec *odd)
{
    uint32_t bits[NOSA_VEC_LANES];
    memcpy(bits, pairs.lane, sizeof bits);
    NOSA_VEC_EACH(i) even->lane[i] = nosa_bf16_to_f32((uint16_t)bits[i]);
    NOSA_VEC_EACH(i) odd->lane[i] = nosa_bf16_to_f32((uint16_t)(bits[i] >> 16));
}

NOSA_VEC_INLINE void nosa_vec_transpose_quads(nosa_vec a[4])
{
    nosa_vec r[4];
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++)
            memcpy(&r[i].lane[4 * j], &a[j].lane[4 * i], 4 * sizeof(float));
    for (int i = 0; i < 4; i++)
        a[i] = r[i];
}

NOSA_VEC_INLINE nosa_vec nosa_vec_load_f16(const uint16_t *from)
{
    nosa_vec r;
    NOSA_VEC_EACH(i) r.lane[i] = nosa_f16_to_f32(from[i]);
    return r;
}

NOSA_VEC_INLINE void nosa_vec_store_bf16(uint16_t *to, nosa_vec a)
{
    NOSA_VEC_EACH(i) to[i] = nosa_f32_to_bf16(a.lane[i]);
}

NOSA_VEC_INLINE void nosa_vec_store_bf16_pairs(uint16_t *to, nosa_vec even, nosa_vec odd)
{
    NOSA_VEC_EACH(i) to[2 * i] = nosa_f32_to_bf16(even.lane[i]);
    NOSA_VEC_EACH(i) to[2 * i + 1] = nosa_f32_to_bf16(odd.lane[i]);
}

NOSA_VEC_INLINE float nosa_vec_sum(nosa_vec a)
{
    for (int half = NOSA_VEC_LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            a.lane[i] = a.lane[i] + a.lane[i + half];
    return a.lane[0];
}

NOSA_VEC_INLINE float nosa_vec_max_lane(nosa_vec a)
{
    for (int half = NOSA_VEC_LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            a.lane[i] = a.lane[i] > a.lane[i + half] ? a.lane[i] : a.lane[i + half];
    return a.lane[0];
}

#endif

/* ---- built from the above ---- */

NOSA_VEC_INLINE nosa_vec nosa_vec_zero(void)
{
    return nosa_vec_set1(0.0f);
}

/*
 * e^a, within 1 ulp: -inf (and what underflows) gives 0, overflow gives inf, NaN stays NaN, results
 * below the normal range are rounded once.
 *
 * a = n ln 2 + r with |r| <= ln 2 / 2; e^r = 1 + r + r^2 q(r), q the polynomial of degree 4 with
 * the least largest relative error (3e-9); 2^n is applied in two factors so that each is normal.
 */
NOSA_VEC_INLINE nosa_vec nosa_vec_exp(nosa_vec a)
{
    nosa_vec round = nosa_vec_set1(0x1.8p23f); /* adding it rounds to an integer */
    nosa_vec x = nosa_vec_max(nosa_vec_set1(-105.0f), nosa_vec_min(nosa_vec_set1(89.0f), a));
    nosa_vec n = nosa_vec_sub(nosa_vec_fma(x, nosa_vec_set1(0x1.715476p+0f), round), round);
    nosa_vec r = nosa_vec_fma(n, nosa_vec_set1(-0x1.62e43p-1f), x);
    r = nosa_vec_fma(n, nosa_vec_set1(0x1.05c61p-29f), r);
    nosa_vec q = nosa_vec_set1(0x1.6a1a6ap-10f);
    q = nosa_vec_fma(q, r, nosa_vec_set1(0x1.123fc8p-7f));
    q = nosa_vec_fma(q, r, nosa_vec_set1(0x1.555916p-5f));
    q = nosa_vec_fma(q, r, nosa_vec_set1(0x1.55548ap-3f));
    q = nosa_vec_fma(q, r, nosa_vec_set1(0x1.fffffcp-2f));
    nosa_vec p = nosa_vec_fma(nosa_vec_mul(r, r), q, r);
    p = nosa_vec_add(p, nosa_vec_set1(1.0f));
    nosa_vec half = nosa_vec_sub(nosa_vec_fma(n, nosa_vec_set1(0.5f), round), round);
    p = nosa_vec_mul(p, nosa_vec_power2(half));
    return nosa_vec_mul(p, nosa_vec_power2(nosa_vec_sub(n, half)));
}

/* x / (1 + e^-x), the gate of SwiGLU. */
NOSA_VEC_INLINE nosa_vec nosa_vec_silu(nosa_vec x)
{
    nosa_vec e = nosa_vec_exp(nosa_vec_sub(nosa_vec_zero(), x));
    return nosa_vec_div(x, nosa_vec_add(nosa_vec_set1(1.0f), e));
}

#endif
