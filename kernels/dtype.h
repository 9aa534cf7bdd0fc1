/* Element types of tensors and of the KV cache, and conversions of single values. */
#ifndef NOSA_KERNELS_DTYPE_H
#define NOSA_KERNELS_DTYPE_H

#include <stdint.h>
#include <string.h>

enum nosa_dtype {
    NOSA_DTYPE_F32 = 0,
    NOSA_DTYPE_BF16 = 1,
    NOSA_DTYPE_F16 = 2,
};

/* Bytes of one element. */
static inline int32_t nosa_dtype_bytes(enum nosa_dtype type)
{
    return type == NOSA_DTYPE_F32 ? 4 : 2;
}

/* "f32", "bf16" or "f16". */
static inline const char *nosa_dtype_name(enum nosa_dtype type)
{
    return type == NOSA_DTYPE_F32 ? "f32" : type == NOSA_DTYPE_BF16 ? "bf16" : "f16";
}

static inline float nosa_bf16_to_f32(uint16_t value)
{
    uint32_t bits = (uint32_t)value << 16;
    float result;
    memcpy(&result, &bits, sizeof result);
    return result;
}

/* Rounds to nearest, ties to even; NaN stays a (quiet) NaN, overflow becomes infinity. */
static inline uint16_t nosa_f32_to_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((bits >> 16) | 0x40u);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/* IEEE 754 binary16, exact. */
static inline float nosa_f16_to_f32(uint16_t value)
{
    uint32_t sign = (uint32_t)(value & 0x8000u) << 16;
    uint32_t magnitude = value & 0x7fffu;
    uint32_t bits;
    if (magnitude >= 0x7c00u) {
        bits = sign | 0x7f800000u | (magnitude & 0x3ffu) << 13;
    } else if (magnitude >= 0x400u) {
        bits = sign | ((magnitude << 13) + (112u << 23));
    } else {
        float subnormal = (float)magnitude * 0x1p-24f;
        memcpy(&bits, &subnormal, sizeof bits);
        bits |= sign;
    }
    float result;
    memcpy(&result, &bits, sizeof result);
    return result;
}

/* Rounds to nearest, ties to even; too large becomes infinity, NaN stays a quiet NaN. */
static inline uint16_t nosa_f32_to_f16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t sign = bits >> 16 & 0x8000u;
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) /* 65520 and above */
        return (uint16_t)(sign | 0x7c00u);
    if (magnitude < 0x38800000u) { /* below 2^-14: adding 1/2 leaves multiples of 2^-24 */
        float absolute;
        memcpy(&absolute, &magnitude, sizeof absolute);
        absolute += 0.5f;
        uint32_t shifted;
        memcpy(&shifted, &absolute, sizeof shifted);
        return (uint16_t)(sign | (shifted - 0x3f000000u));
    }
    uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
    return (uint16_t)(sign | ((rounded - (112u << 23)) >> 13));
}

/* Element `index` of an array of `type` as float32. */
static inline float nosa_dtype_load(enum nosa_dtype type, const void *array, int64_t index)
{
    if (type == NOSA_DTYPE_F32)
        return ((const float *)array)[index];
    uint16_t bits = ((const uint16_t *)array)[index];
    return type == NOSA_DTYPE_BF16 ? nosa_bf16_to_f32(bits) : nosa_f16_to_f32(bits);
}

#endif
