/*
 * nosa-bench: how close the engine comes to the machine's limits.
 *
 * Every subcommand measures limit and result in one run and prints both. Rates of the model are
 * medians over rounds; rates of single kernels, ours and the yardstick's alike, are those of the
 * best repetition. Nothing here decides whether a test passes.
 */
#ifndef NOSA_BENCH_H
#define NOSA_BENCH_H

#include <stdbool.h>
#include <stdint.h>

#include "base/flags.h"
#include "base/status.h"
#include "device.h"
#include "model/config.h"

/* Subcommands; each prints tables on stdout and, with --json, one JSON object instead. */
enum nosa_status bench_limits(const struct nosa_flags *flags, struct nosa_error *error);
enum nosa_status bench_kernels(const struct nosa_flags *flags, struct nosa_error *error);
enum nosa_status bench_model(const struct nosa_flags *flags, struct nosa_error *error);
enum nosa_status bench_batch(const struct nosa_flags *flags, struct nosa_error *error);
enum nosa_status bench_context(const struct nosa_flags *flags, struct nosa_error *error);
enum nosa_status bench_extents(const struct nosa_flags *flags, struct nosa_error *error);
enum nosa_status bench_tiers(const struct nosa_flags *flags, struct nosa_error *error);
enum nosa_status bench_policy(const struct nosa_flags *flags, struct nosa_error *error);
enum nosa_status bench_quality(const struct nosa_flags *flags, struct nosa_error *error);
enum nosa_status bench_rpc(const struct nosa_flags *flags, struct nosa_error *error);

/* The flags that only `quality` has. */
extern const struct nosa_flag bench_quality_flags[];
extern const size_t bench_quality_flag_count;

/* The flags that only `rpc` has. */
extern const struct nosa_flag bench_rpc_flags[];
extern const size_t bench_rpc_flag_count;

/* ---- limits.c ---- */

struct bench_limits {
    int32_t threads;
    double fma_gflops;  /* float32 fused multiply-add, all threads */
    double bf16_gflops; /* vdpbf16ps, all threads; 0 where the processor has none */
    double read_gbs;    /* reading memory far larger than the caches, all threads */
};

/* Measures on the threads that --threads names; takes about a second and 768 MiB of memory. Sets
 * oneDNN to as many threads. */
enum nosa_status bench_measure_limits(const struct nosa_flags *flags, struct bench_limits *out,
                                      struct nosa_error *error);

/* One line for people. */
void bench_print_limits(const struct bench_limits *limits);

/* ---- yardstick.c ---- */

/* oneDNN uses this many threads from now on (where it was built with OpenMP). */
void bench_onednn_set_threads(int32_t threads);

/* GFLOP/s of oneDNN's matrix product [rows, k] x [k, n] in bf16 or float32, weights in the layout
 * it chooses: the best of a few repetitions, which go round `copies` copies of the weights (more
 * than one: so many bytes that they come from memory). 0 when oneDNN refuses. */
double bench_onednn_gflops(bool bf16, int32_t rows, int32_t k, int32_t n, int32_t copies);

/* ---- step_bytes.c ---- */

/* Bytes that one decode step must read: the weights once, and of each of `batch` sequences at
 * `context` tokens what its mode reads of the KV arena. `weight_bytes` without an embedding that
 * is not also the output head. */
double bench_step_bytes(const struct nosa_model_config *config,
                        const struct nosa_kv_geometry *geometry, enum nosa_attention_mode mode,
                        bool has_bias, double weight_bytes, int32_t batch, int32_t context);

/* ---- random_kv.c ---- */

/* Fills the arrays of a bf16 arena with finite values of the size that a model's have: keys and
 * values of variance 1, compressed keys of a quarter, biases of both signs. */
void bench_fill_kv(const struct nosa_kv_view *view);

/* Block ids 0 .. n - 1 in a scattered order, as a pool in use for long hands them out. */
void bench_scatter_blocks(int32_t *blocks, int32_t n);

/* ---- statistics.c ---- */

/* Sorts in place. */
double bench_median(double *values, int32_t n);

#endif
