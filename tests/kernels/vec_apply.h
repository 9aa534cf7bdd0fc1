/* The vector primitives of every instruction set behind one signature, for test_vec.c. */
#ifndef NOSA_TESTS_KERNELS_VEC_APPLY_H
#define NOSA_TESTS_KERNELS_VEC_APPLY_H

#include <stdint.h>

enum vec_primitive {
    VEC_ADD,
    VEC_SUB,
    VEC_MUL,
    VEC_DIV,
    VEC_SQRT,
    VEC_MAX,
    VEC_MIN,
    VEC_FMA,
    VEC_SELECT_LESS,  /* a < b ? b : c */
    VEC_SELECT_EQUAL, /* a == b ? b : c */
    VEC_MASK_BITS,    /* out[0]: the bits of a < b */
    VEC_SUM,          /* out[0] */
    VEC_MAX_LANE,     /* out[0] */
    VEC_EXP,
    VEC_SILU,
    VEC_BF16,       /* rounded to bfloat16 and back */
    VEC_BF16_PAIRS, /* even lanes from a, odd from b: out is the even half after a round trip */
    VEC_PRIMITIVES,
};

/* out = primitive(a, b, c), 16 lanes each. */
typedef void (*vec_apply)(enum vec_primitive primitive, const float *a, const float *b,
                          const float *c, float *out);
/* Copies the first n of 16 lanes through a partial load and a partial store; out[n ..] is kept. */
typedef void (*vec_copy_first)(const float *from, int n, float *out);
/* 16 binary16 values as float32. */
typedef void (*vec_from_f16)(const uint16_t *from, float *out);

struct vec_functions {
    vec_apply apply;
    vec_copy_first copy_first;
    vec_from_f16 from_f16;
};

extern const struct vec_functions vec_functions_portable;
extern const struct vec_functions vec_functions_avx2;
extern const struct vec_functions vec_functions_avx512;

#endif
