/*
 * Register tiles over panels of 64 keys: what attention and block selection have in common.
 *
 * A panel is float32 [k][columns], one row per step of the reduction: the widened K of a block
 * [head_dim][64], its V [64][head_dim], or the compressed keys of 64 windows [head_dim][64]. A tile
 * multiplies up to NOSA_TILE_ROWS vectors, each found through its own pointer, with all columns of
 * a panel. Every output element is one chain of fused multiply-adds over k ascending, whatever the
 * tile's size, so rows can be grouped freely without changing a bit.
 *
 * Included by the op files, once per instruction set.
 */
#ifndef NOSA_KERNELS_CPU_KV_TILE_H
#define NOSA_KERNELS_CPU_KV_TILE_H

#include <math.h>

#include "cpu/cpu_internal.h"
#include "cpu/vec.h"

#define NOSA_PANEL 64 /* columns of a panel of keys */

/* A tile holds NOSA_TILE_ROWS rows of NOSA_TILE_VECS vectors of columns in registers. Portable code
 * gains nothing from either. NOSA_TILE_CASES(CASE, ...) is one case label per number of rows. */
#if defined(NOSA_VEC_PORTABLE)
#define NOSA_TILE_ROWS             1
#define NOSA_TILE_UNROLL           _Pragma("GCC unroll 1")
#define NOSA_TILE_CASES(CASE, ...) CASE(1, __VA_ARGS__)
#else
#define NOSA_TILE_ROWS   6
#define NOSA_TILE_UNROLL _Pragma("GCC unroll 8")
#define NOSA_TILE_CASES(CASE, ...)                                                                 \
    CASE(1, __VA_ARGS__)                                                                           \
    CASE(2, __VA_ARGS__)                                                                           \
    CASE(3, __VA_ARGS__)                                                                           \
    CASE(4, __VA_ARGS__)                                                                           \
    CASE(5, __VA_ARGS__)                                                                           \
    CASE(6, __VA_ARGS__)
#endif
#if defined(NOSA_VEC_AVX512)
#define NOSA_TILE_VECS 4
#else
#define NOSA_TILE_VECS 1
#endif

/* +inf for the first 64, -inf for the next 64: a minimum with 64 values from [64 - n] hides all
 * columns but the first n. */
struct nosa_tile_mask {
    float value[2 * NOSA_PANEL];
};

NOSA_VEC_INLINE void nosa_tile_mask_fill(struct nosa_tile_mask *mask)
{
    for (int32_t i = 0; i < NOSA_PANEL; i++) {
        mask->value[i] = INFINITY;
        mask->value[NOSA_PANEL + i] = -INFINITY;
    }
}

/*
 * e^a for a <= 0, within 3 units of 2^-24 relative for a > -10 and 2e-6 below; 0 from -87.7 down,
 * so also for -inf.
 *
 * e^a = 2^n 2^f with n + f = a log2(e), |f| <= 1/2; 2^f = 1 + f q(f), q the polynomial of degree 4
 * with the least largest relative error of the result (9e-8). A sum of softmax weights needs no
 * more, and this is a third faster than nosa_vec_exp.
 */
NOSA_VEC_INLINE nosa_vec nosa_tile_exp(nosa_vec a)
{
    nosa_vec round = nosa_vec_set1(0x1.8p23f + 127.0f); /* leaves n + 127 in the lowest bits */
    nosa_vec log2e = nosa_vec_set1(0x1.715476p+0f);
    nosa_vec x = nosa_vec_max(a, nosa_vec_set1(-88.0f));
    nosa_vec t = nosa_vec_fma(x, log2e, round);
    nosa_vec f = nosa_vec_fma(x, log2e, nosa_vec_sub(round, t));
    nosa_vec q = nosa_vec_set1(0x1.5bba0ep-10f);
    q = nosa_vec_fma(q, f, nosa_vec_set1(0x1.3cea88p-7f));
    q = nosa_vec_fma(q, f, nosa_vec_set1(0x1.c6b752p-5f));
    q = nosa_vec_fma(q, f, nosa_vec_set1(0x1.ebf9bcp-3f));
    q = nosa_vec_fma(q, f, nosa_vec_set1(0x1.62e42ap-1f));
    q = nosa_vec_fma(q, f, nosa_vec_set1(1.0f));
    return nosa_vec_mul(q, nosa_vec_low_to_exponent(t));
}

/* The same of one value. */
NOSA_VEC_INLINE float nosa_tile_exp1(float a)
{
    float lanes[NOSA_VEC_LANES];
    nosa_vec_store(lanes, nosa_tile_exp(nosa_vec_set1(a)));
    return lanes[0];
}

/* One line of memory that will be read soon, into the second-level cache: the first holds the panel
 * at work. Any address is allowed. */
NOSA_VEC_INLINE void nosa_tile_prefetch(const char *at)
{
    __builtin_prefetch(at, 0, 2);
}

/*
 * Widens [n_rows][row_units][2] bfloat16 to [2 * n_rows][row_units] float32, row_units a multiple
 * of 16. `ahead` is memory that is wanted next: half of its lines are asked for on the way.
 */
NOSA_VEC_INLINE void nosa_tile_widen(const uint16_t *pairs, int32_t n_rows, int32_t row_units,
                                     float *out, const char *ahead)
{
    for (int32_t row = 0; row < n_rows; row++) {
        for (int32_t i = 0; i < row_units; i += NOSA_VEC_LANES) {
            nosa_vec even, odd;
            nosa_vec_load_bf16_pairs(pairs, &even, &odd);
            nosa_vec_store(out + i, even);
            nosa_vec_store(out + row_units + i, odd);
            if (i / NOSA_VEC_LANES % 2 == 0) {
                nosa_tile_prefetch(ahead);
                ahead += 64;
            }
            pairs += 2 * NOSA_VEC_LANES;
        }
        out += 2 * row_units;
    }
}

/* acc[r][v] += sum over i < k of row[r][i] * panel[i * stride + 16 v ..]; R and V are constants.
 * One line of `ahead` is asked for at each step. Unrolled over i, sums would be spilled. */
#define NOSA_TILE_CHAIN(R, V)                                                                      \
    _Pragma("GCC unroll 1") for (int64_t i = 0; i < k; i++)                                        \
    {                                                                                              \
        nosa_vec b[NOSA_TILE_VECS];                                                                \
        NOSA_TILE_UNROLL for (int v = 0; v < (V); v++)                                             \
        {                                                                                          \
            b[v] = nosa_vec_load(panel + v * NOSA_VEC_LANES);                                      \
            nosa_vec_keep(&b[v]);                                                                  \
        }                                                                                          \
        NOSA_TILE_UNROLL for (int r = 0; r < (R); r++)                                             \
        {                                                                                          \
            nosa_vec x = nosa_vec_set1(row[r][i]);                                                 \
            NOSA_TILE_UNROLL for (int v = 0; v < (V); v++) acc[r][v] =                             \
                nosa_vec_fma(x, b[v], acc[r][v]);                                                  \
        }                                                                                          \
        nosa_tile_prefetch(ahead);                                                                 \
        panel += stride;                                                                           \
        ahead += 64;                                                                               \
    }

/* Rows of a score tile, in ascending position, and what becomes of each row's 64 scores. */
struct nosa_score_rows {
    const float *q[NOSA_TILE_ROWS];  /* [head_dim] */
    float *score[NOSA_TILE_ROWS];    /* [64] out */
    float *top[NOSA_TILE_ROWS];      /* [16] largest score per lane, updated */
    int32_t visible[NOSA_TILE_ROWS]; /* columns that count, 0 .. 64; others become -inf */
};

NOSA_VEC_INLINE void nosa_tile_score_body(const int R, const int V, const bool hides,
                                          const struct nosa_score_rows *t, const float *panel,
                                          int32_t k, nosa_vec scale, const float *bias,
                                          const struct nosa_tile_mask *mask, int column,
                                          const char *ahead)
{
    const int32_t stride = NOSA_PANEL;
    const float *row[NOSA_TILE_ROWS];
    nosa_vec acc[NOSA_TILE_ROWS][NOSA_TILE_VECS];
    NOSA_TILE_UNROLL
    for (int r = 0; r < R; r++) {
        row[r] = t->q[r];
        NOSA_TILE_UNROLL
        for (int v = 0; v < V; v++)
            acc[r][v] = nosa_vec_zero();
    }
    panel += column;
    NOSA_TILE_CHAIN(R, V)
    NOSA_TILE_UNROLL
    for (int r = 0; r < R; r++) {
        nosa_vec top = nosa_vec_load(t->top[r]);
        const float *hide = mask->value + NOSA_PANEL - t->visible[r] + column;
        NOSA_TILE_UNROLL
        for (int v = 0; v < V; v++) {
            nosa_vec s =
                nosa_vec_fma(acc[r][v], scale, nosa_vec_load(bias + column + v * NOSA_VEC_LANES));
            if (hides)
                s = nosa_vec_min(s, nosa_vec_load(hide + v * NOSA_VEC_LANES));
            top = nosa_vec_max(top, s);
            nosa_vec_store(t->score[r] + column + v * NOSA_VEC_LANES, s);
        }
        nosa_vec_store(t->top[r], top);
    }
}

/* score[r] = (q[r] . panel column) * scale + bias, for n_rows <= NOSA_TILE_ROWS rows over the 64
 * columns of `panel` [k][64], k a multiple of 4. Vectors of columns that no row sees are not
 * computed. */
static inline void nosa_tile_score(int32_t n_rows, const struct nosa_score_rows *t,
                                   const float *panel, int32_t k, float scale, const float *bias,
                                   const struct nosa_tile_mask *mask, const char *ahead)
{
    nosa_vec factor = nosa_vec_set1(scale);
    int32_t most = t->visible[n_rows - 1], column = 0;
    int32_t end = (most + NOSA_VEC_LANES - 1) / NOSA_VEC_LANES * NOSA_VEC_LANES;
#define NOSA_SCORE_CASE(R, V, HIDES)                                                               \
    case R:                                                                                        \
        nosa_tile_score_body(R, V, HIDES, t, panel, k, factor, bias, mask, column, ahead);         \
        break;
#define NOSA_SCORE_CASES(V, HIDES)                                                                 \
    for (; column + (V)*NOSA_VEC_LANES <= end; column += (V)*NOSA_VEC_LANES) {                     \
        switch (n_rows) {                                                                          \
            NOSA_TILE_CASES(NOSA_SCORE_CASE, V, HIDES)                                             \
        default: NOSA_ASSERT(false);                                                               \
        }                                                                                          \
    }
    if (t->visible[0] == NOSA_PANEL)
        NOSA_SCORE_CASES(NOSA_TILE_VECS, false)
    NOSA_SCORE_CASES(NOSA_TILE_VECS, true)
#if NOSA_TILE_VECS > 1
    NOSA_SCORE_CASES(2, true)
    NOSA_SCORE_CASES(1, true)
#endif
#undef NOSA_SCORE_CASES
#undef NOSA_SCORE_CASE
    for (; column < NOSA_PANEL; column += NOSA_VEC_LANES)
        for (int32_t r = 0; r < n_rows; r++)
            nosa_vec_store(t->score[r] + column, nosa_vec_set1(-INFINITY));
}

/* Rows of a value tile. */
struct nosa_value_rows {
    const float *p[NOSA_TILE_ROWS]; /* [k] weights */
    float *acc[NOSA_TILE_ROWS];     /* [columns] updated */
};

NOSA_VEC_INLINE void nosa_tile_value_body(const int R, const int V, const struct nosa_value_rows *t,
                                          const float *panel, int32_t k, int32_t stride,
                                          int32_t column, const char *ahead)
{
    const float *row[NOSA_TILE_ROWS];
    nosa_vec acc[NOSA_TILE_ROWS][NOSA_TILE_VECS];
    NOSA_TILE_UNROLL
    for (int r = 0; r < R; r++) {
        row[r] = t->p[r];
        NOSA_TILE_UNROLL
        for (int v = 0; v < V; v++)
            acc[r][v] = nosa_vec_load(t->acc[r] + column + v * NOSA_VEC_LANES);
    }
    panel += column;
    NOSA_TILE_CHAIN(R, V)
    NOSA_TILE_UNROLL
    for (int r = 0; r < R; r++)
        NOSA_TILE_UNROLL
    for (int v = 0; v < V; v++)
        nosa_vec_store(t->acc[r] + column + v * NOSA_VEC_LANES, acc[r][v]);
}

/* acc[r] += p[r] . panel, for n_rows <= NOSA_TILE_ROWS rows over all `columns` (a multiple of 16)
 * of `panel` [k][columns], k a multiple of 4. */
static inline void nosa_tile_value(int32_t n_rows, const struct nosa_value_rows *t,
                                   const float *panel, int32_t k, int32_t columns,
                                   const char *ahead)
{
    int32_t column = 0;
#define NOSA_VALUE_CASE(R, V)                                                                      \
    case R:                                                                                        \
        nosa_tile_value_body(R, V, t, panel, k, columns, column, ahead);                           \
        break;
#define NOSA_VALUE_CASES(V)                                                                        \
    for (; column + (V)*NOSA_VEC_LANES <= columns; column += (V)*NOSA_VEC_LANES) {                 \
        switch (n_rows) {                                                                          \
            NOSA_TILE_CASES(NOSA_VALUE_CASE, V)                                                    \
        default: NOSA_ASSERT(false);                                                               \
        }                                                                                          \
        ahead += 64 * k;                                                                           \
    }
    NOSA_VALUE_CASES(NOSA_TILE_VECS)
#if NOSA_TILE_VECS > 1
    NOSA_VALUE_CASES(2)
    NOSA_VALUE_CASES(1)
#endif
#undef NOSA_VALUE_CASES
#undef NOSA_VALUE_CASE
}

/* p = e^(score - m) of the 64 scores of a panel, added to the 16 lanes of `sum` in turn. */
NOSA_VEC_INLINE void nosa_tile_weigh(const float *score, float m, float *p, float *sum)
{
    nosa_vec shift = nosa_vec_set1(m), total = nosa_vec_load(sum);
#pragma GCC unroll 4
    for (int v = 0; v < NOSA_PANEL / NOSA_VEC_LANES; v++) {
        int i = v * NOSA_VEC_LANES;
        nosa_vec e = nosa_tile_exp(nosa_vec_sub(nosa_vec_load(score + i), shift));
        nosa_vec_store(p + i, e);
        total = nosa_vec_add(total, e);
    }
    nosa_vec_store(sum, total);
}

/* Turns n scores (a multiple of 64) into weights p = e^(score - m), m the largest of `top`; returns
 * m and, in *total, the sum of the weights: 16 interleaved lanes, then the fixed tree. */
NOSA_VEC_INLINE float nosa_tile_softmax(float *score, int32_t n, const float *top, float *total)
{
    float m = nosa_vec_max_lane(nosa_vec_load(top));
    nosa_vec shift = nosa_vec_set1(m), sum = nosa_vec_zero();
    for (int32_t i = 0; i < n; i += 4 * NOSA_VEC_LANES) {
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) {
            float *at = score + i + v * NOSA_VEC_LANES;
            nosa_vec p = nosa_tile_exp(nosa_vec_sub(nosa_vec_load(at), shift));
            nosa_vec_store(at, p);
            sum = nosa_vec_add(sum, p);
        }
    }
    *total = nosa_vec_sum(sum);
    return m;
}

/* ---- memory that selection shares between threads, taken together with attention's ---- */

#define NOSA_SELECT_RUN 256 /* windows whose softmax is formed at once */

/* Runs of windows that a sequence of `blocks` blocks needs, `r` of them held by each block. */
static inline int32_t nosa_select_runs(int32_t blocks, int32_t r)
{
    return (blocks * r + NOSA_SELECT_RUN - 1) / NOSA_SELECT_RUN;
}

/* Floats of one row's scores for the query heads of a group: their weights, then m and l of each
 * run, then the window biases. */
static inline size_t nosa_select_row_floats(int32_t runs, int32_t group)
{
    return (size_t)runs * ((size_t)group * (NOSA_SELECT_RUN + 2) + NOSA_SELECT_RUN);
}

#endif
