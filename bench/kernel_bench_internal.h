/*
 * What the parts of `nosa-bench kernels` share: the shape of a model, the device that runs its ops,
 * timing, and the table of results.
 */
#ifndef NOSA_KERNEL_BENCH_INTERNAL_H
#define NOSA_KERNEL_BENCH_INTERNAL_H

#include <jansson.h>

#include "bench.h"

#define KERNEL_ROWS_MAX    512
#define KERNEL_CONTEXT_MAX 131072
#define KERNEL_SLOTS_MAX   1024 /* of a pool of the first tier */
#define KERNEL_POOLS_MAX   64

/* Operands that count as read from memory go round so many bytes: more than any cache holds. */
#define KERNEL_COLD_BYTES ((size_t)512 << 20)

/* Sizes of a model; sparse sizes as in its config. */
struct kernel_shape {
    const char *name;
    int32_t hidden, n_heads, n_kv_heads, head_dim, intermediate, vocab;
    struct nosa_sparse_config sparse;
};

extern const struct kernel_shape kernel_shapes[];
extern const int kernel_shape_count;

/* One line of the table. */
struct kernel_result {
    const char *op;
    char detail[64];
    double seconds;
    double operations;    /* multiplications and additions, or 0 */
    double bytes;         /* read and written at least once; weights and KV from memory */
    bool cached;          /* the operands stay in the caches: no share of memory's rate */
    double onednn_gflops; /* the yardstick at the same shape and type; 0: none */
};

struct kernel_bench {
    const struct kernel_shape *shape;
    struct bench_limits limits;
    struct nosa_device *device; /* owned, as is the stream; one for each shape */
    struct nosa_stream *stream;
    json_t *rows; /* owned array with --json, else NULL: lines are printed at once */
};

/* Creates the device for bench->shape with scratch for every case, and its stream. */
enum nosa_status kernel_device_open(struct kernel_bench *bench, struct nosa_error *error);
void kernel_device_close(struct kernel_bench *bench);

/* Random float32 [n] of variance 1 in device memory; the caller gives it back with the same n. */
enum nosa_status kernel_floats(struct kernel_bench *bench, size_t n, float **out,
                               struct nosa_error *error);
void kernel_floats_free(struct kernel_bench *bench, float *floats, size_t n);

/* Enqueues an op; `repetition` says which of the operands' copies it should use. */
typedef enum nosa_status (*kernel_call)(void *context, int32_t repetition);

/* Seconds of the best of some repetitions after one that does not count. */
enum nosa_status kernel_time(struct kernel_bench *bench, kernel_call call, void *context,
                             double *best_s, struct nosa_error *error);

void kernel_report_head(const struct kernel_bench *bench);
void kernel_report(struct kernel_bench *bench, const struct kernel_result *result);

/* The cases: matrix products; ops over the KV arena, and between its tiers; norms and sampling. */
enum nosa_status kernel_bench_matmul(struct kernel_bench *bench, struct nosa_error *error);
enum nosa_status kernel_bench_kv(struct kernel_bench *bench, struct nosa_error *error);
enum nosa_status kernel_bench_tiers(struct kernel_bench *bench, struct nosa_error *error);
enum nosa_status kernel_bench_rows(struct kernel_bench *bench, struct nosa_error *error);

#endif
