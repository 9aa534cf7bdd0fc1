/*
 * Philox4x32-10 for 16 consecutive tokens at once: integer arithmetic, hence the same words as
 * philox.h on every instruction set.
 *
 * A 32-bit word lies in the low half of a 64-bit lane. What a product leaves in the high half is
 * never looked at: products read low halves only, and the other operations keep the halves apart.
 */
#ifndef NOSA_KERNELS_CPU_VEC_PHILOX_H
#define NOSA_KERNELS_CPU_VEC_PHILOX_H

#include "cpu/vec.h"
#include "philox.h"

#if defined(NOSA_VEC_AVX512)

typedef __m512i nosa_words;
#define NOSA_WORDS_LANES        8
#define nosa_words_set1(value)  _mm512_set1_epi64((long long)(value))
#define nosa_words_load(from)   _mm512_loadu_si512(from)
#define nosa_words_store(to, a) _mm512_storeu_si512(to, a)
#define nosa_words_mul(a, b)    _mm512_mul_epu32(a, b)
#define nosa_words_xor(a, b)    _mm512_xor_si512(a, b)
#define nosa_words_high(a)      _mm512_srli_epi64(a, 32)

#elif defined(NOSA_VEC_AVX2)

typedef __m256i nosa_words;
#define NOSA_WORDS_LANES        4
#define nosa_words_set1(value)  _mm256_set1_epi64x((long long)(value))
#define nosa_words_load(from)   _mm256_loadu_si256((const __m256i *)(const void *)(from))
#define nosa_words_store(to, a) _mm256_storeu_si256((__m256i *)(void *)(to), a)
#define nosa_words_mul(a, b)    _mm256_mul_epu32(a, b)
#define nosa_words_xor(a, b)    _mm256_xor_si256(a, b)
#define nosa_words_high(a)      _mm256_srli_epi64(a, 32)

#else

typedef uint64_t nosa_words;
#define NOSA_WORDS_LANES        1
#define nosa_words_set1(value)  ((uint64_t)(value))
#define nosa_words_load(from)   (*(from))
#define nosa_words_store(to, a) (*(to) = (a))
#define nosa_words_mul(a, b)    (((a)&0xffffffffu) * ((b)&0xffffffffu))
#define nosa_words_xor(a, b)    ((a) ^ (b))
#define nosa_words_high(a)      ((a) >> 32)

#endif

#define NOSA_WORDS_COUNT (NOSA_VEC_LANES / NOSA_WORDS_LANES)

/* words[i] = the first word of nosa_philox_sampling(seed, position, first + i, ..). */
NOSA_VEC_INLINE void nosa_vec_philox_sampling(uint64_t seed, int64_t position, uint32_t first,
                                              uint32_t words[NOSA_VEC_LANES])
{
    nosa_words c0[NOSA_WORDS_COUNT], c1[NOSA_WORDS_COUNT], c2[NOSA_WORDS_COUNT];
    nosa_words c3[NOSA_WORDS_COUNT];
    nosa_words m0 = nosa_words_set1(NOSA_PHILOX_MULTIPLIER0);
    nosa_words m1 = nosa_words_set1(NOSA_PHILOX_MULTIPLIER1);
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    uint64_t lanes[NOSA_VEC_LANES];
    for (uint32_t i = 0; i < NOSA_VEC_LANES; i++)
        lanes[i] = (uint32_t)(first + i);
    for (int i = 0; i < NOSA_WORDS_COUNT; i++) {
        c0[i] = nosa_words_set1((uint32_t)(uint64_t)position);
        c1[i] = nosa_words_set1((uint64_t)position >> 32);
        c2[i] = nosa_words_load(lanes + i * NOSA_WORDS_LANES);
        c3[i] = nosa_words_set1(0);
    }
    for (int round = 0; round < NOSA_PHILOX_ROUNDS; round++) {
        for (int i = 0; i < NOSA_WORDS_COUNT; i++) {
            nosa_words product0 = nosa_words_mul(c0[i], m0), product1 = nosa_words_mul(c2[i], m1);
            c0[i] = nosa_words_xor(nosa_words_xor(nosa_words_high(product1), c1[i]),
                                   nosa_words_set1(k0));
            c1[i] = product1;
            c2[i] = nosa_words_xor(nosa_words_xor(nosa_words_high(product0), c3[i]),
                                   nosa_words_set1(k1));
            c3[i] = product0;
        }
        k0 += NOSA_PHILOX_WEYL0;
        k1 += NOSA_PHILOX_WEYL1;
    }
    for (int i = 0; i < NOSA_WORDS_COUNT; i++)
        nosa_words_store(lanes + i * NOSA_WORDS_LANES, c0[i]);
    for (int i = 0; i < NOSA_VEC_LANES; i++)
        words[i] = (uint32_t)lanes[i];
}

#endif
