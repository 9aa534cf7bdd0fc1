/*
 * Inside the CPU backend: the device object, its thread pool and the per-instruction-set op tables.
 *
 * Ops live in kernels/cpu/op_<name>.c. Each of these files is compiled once per instruction set
 * with NOSA_CPU_SUFFIX set to portable, avx2 or avx512, uses the vectors of vec.h, and defines its
 * public function through NOSA_CPU_NAME so that the copies do not collide.
 */
#ifndef NOSA_KERNELS_CPU_INTERNAL_H
#define NOSA_KERNELS_CPU_INTERNAL_H

#include "cpu_device.h"

#define NOSA_CPU_PASTE2(name, suffix) name##_##suffix
#define NOSA_CPU_PASTE(name, suffix)  NOSA_CPU_PASTE2(name, suffix)
#define NOSA_CPU_NAME(name)           NOSA_CPU_PASTE(name, NOSA_CPU_SUFFIX)

struct nosa_cpu_pool;

/* One unit of work: `item` of the region's items, run by pool thread `thread` (0 is the caller). */
typedef void (*nosa_cpu_task)(void *context, int32_t item, int32_t thread);

/* Starts threads - 1 workers. */
enum nosa_status nosa_cpu_pool_create(int32_t threads, struct nosa_cpu_pool **out,
                                      struct nosa_error *error);
void nosa_cpu_pool_destroy(struct nosa_cpu_pool *pool);
int32_t nosa_cpu_pool_threads(const struct nosa_cpu_pool *pool);

/* Runs task(context, 0 .. n_items - 1), items handed out one by one in ascending order, and returns
 * when all are done. One item, or one thread, runs in the caller without waking anyone. Waiting
 * threads spin for a short bounded time, then sleep, so that shared cores are given up. One region
 * at a time; called by the pool's owner only. */
void nosa_cpu_pool_run(struct nosa_cpu_pool *pool, int32_t n_items, nosa_cpu_task task,
                       void *context);

/* How many of the units that are left the next item of a region takes: long runs first, so that a
 * thread streams, and single units at the end, so that all threads end together. */
static inline int32_t nosa_cpu_run_length(int32_t left, int32_t threads)
{
    int32_t run = left / (2 * threads);
    return run > 1 ? run : 1;
}

/* Says what a later region will read, cut into items by nosa_cpu_run_length: threads that wait
 * fetch their first items of it. Only a hint; the memory may even go away. Called by the owner. */
void nosa_cpu_pool_want(struct nosa_cpu_pool *pool, const void *data, int32_t units,
                        size_t unit_bytes);

struct nosa_stream {
    struct nosa_cpu_device *device;
};

struct nosa_event {
    struct nosa_cpu_device *device; /* nothing is ever pending, so an event has no state */
};

/* Scratch taken by reserve(); each thread has its own region, 64-byte aligned. */
struct nosa_cpu_scratch {
    struct nosa_step_limits limits;
    char *thread_memory; /* [threads][thread_bytes], owned */
    size_t thread_bytes;
    float *attention_partials;      /* for rows whose runs are spread over threads, owned */
    size_t attention_partial_count; /* floats */
    int32_t *counters;              /* zeroed between uses, owned */
    size_t counter_count;
    int32_t *kv_words; /* lists of the KV ops, owned */
    size_t kv_word_count;
};

struct nosa_cpu_device {
    struct nosa_device base;
    struct nosa_device_table table; /* of this device: its ops are those of the instruction set */
    enum nosa_cpu_isa isa;
    const struct nosa_cpu_isa_ops *isa_ops;
    struct nosa_cpu_pool *pool; /* owned */
    struct nosa_cpu_scratch scratch;
    struct nosa_stream stream0; /* streams and events are all alike */
    struct nosa_event event0;
};

static inline void *nosa_cpu_thread_scratch(struct nosa_cpu_device *device, int32_t thread)
{
    return device->scratch.thread_memory + (size_t)thread * device->scratch.thread_bytes;
}

/*
 * One instruction set's copies of the ops, and what they need from reserve(). Sizes may depend on
 * the instruction set (register tiles differ). Op files define these with NOSA_CPU_NAME, for
 * example size_t NOSA_CPU_NAME(nosa_cpu_matmul_scratch_bytes)(const struct nosa_step_limits
 * *limits).
 */
struct nosa_cpu_isa_ops {
    struct nosa_op_table table;
    /* Bytes of per-thread scratch within `limits`; reserve() takes the largest of them. */
    size_t (*matmul_scratch_bytes)(const struct nosa_step_limits *limits);
    size_t (*select_scratch_bytes)(const struct nosa_step_limits *limits);
    size_t (*attention_scratch_bytes)(const struct nosa_step_limits *limits);
    size_t (*sample_scratch_bytes)(const struct nosa_step_limits *limits);
    /* Floats of partial results that attention shares between threads within `limits`. */
    size_t (*attention_partial_floats)(const struct nosa_step_limits *limits);
    /* Counters that attention uses to find a row's last run. */
    size_t (*attention_counter_count)(const struct nosa_step_limits *limits);
};

#define NOSA_CPU_DECLARE_OPS(isa)                                                                  \
    enum nosa_status nosa_cpu_embed_##isa(struct nosa_stream *, const struct nosa_embed_params *); \
    enum nosa_status nosa_cpu_rms_norm_##isa(struct nosa_stream *,                                 \
                                             const struct nosa_rms_norm_params *);                 \
    enum nosa_status nosa_cpu_matmul_##isa(struct nosa_stream *,                                   \
                                           const struct nosa_matmul_params *);                     \
    enum nosa_status nosa_cpu_rope_table_##isa(struct nosa_stream *,                               \
                                               const struct nosa_rope_table_params *);             \
    enum nosa_status nosa_cpu_qkv_write_##isa(struct nosa_stream *,                                \
                                              const struct nosa_qkv_write_params *);               \
    enum nosa_status nosa_cpu_compress_keys_##isa(struct nosa_stream *,                            \
                                                  const struct nosa_compress_keys_params *);       \
    enum nosa_status nosa_cpu_select_blocks_##isa(struct nosa_stream *,                            \
                                                  const struct nosa_select_blocks_params *);       \
    enum nosa_status nosa_cpu_attention_##isa(struct nosa_stream *,                                \
                                              const struct nosa_attention_params *);               \
    enum nosa_status nosa_cpu_add_##isa(struct nosa_stream *, const struct nosa_add_params *);     \
    enum nosa_status nosa_cpu_sample_##isa(struct nosa_stream *,                                   \
                                           const struct nosa_sample_params *);                     \
    enum nosa_status nosa_cpu_log_prob_##isa(struct nosa_stream *,                                 \
                                             const struct nosa_log_prob_params *);                 \
    size_t nosa_cpu_matmul_scratch_bytes_##isa(const struct nosa_step_limits *limits);             \
    size_t nosa_cpu_select_scratch_bytes_##isa(const struct nosa_step_limits *limits);             \
    size_t nosa_cpu_attention_scratch_bytes_##isa(const struct nosa_step_limits *limits);          \
    size_t nosa_cpu_sample_scratch_bytes_##isa(const struct nosa_step_limits *limits);             \
    size_t nosa_cpu_attention_partial_floats_##isa(const struct nosa_step_limits *limits);         \
    size_t nosa_cpu_attention_counter_count_##isa(const struct nosa_step_limits *limits);          \
    extern const struct nosa_cpu_isa_ops nosa_cpu_ops_##isa;

NOSA_CPU_DECLARE_OPS(portable)
NOSA_CPU_DECLARE_OPS(avx2)
NOSA_CPU_DECLARE_OPS(avx512)

/* Ops that move bytes and integers only: one copy serves every instruction set (kv_*.c). */
enum nosa_status nosa_cpu_kv_update(struct nosa_stream *stream,
                                    const struct nosa_kv_update_params *params);
enum nosa_status nosa_cpu_kv_load(struct nosa_stream *stream,
                                  const struct nosa_kv_load_params *params);
enum nosa_status nosa_cpu_kv_place(struct nosa_stream *stream,
                                   const struct nosa_kv_place_params *params);
enum nosa_status nosa_cpu_kv_fetch(struct nosa_stream *stream,
                                   const struct nosa_kv_fetch_params *params);
enum nosa_status nosa_cpu_kv_resolve(struct nosa_stream *stream,
                                     const struct nosa_kv_resolve_params *params);
enum nosa_status nosa_cpu_kv_save(struct nosa_stream *stream,
                                  const struct nosa_kv_save_params *params);

/* What they need of reserve(): bytes of each thread, and words that threads share. */
size_t nosa_cpu_kv_thread_bytes(const struct nosa_step_limits *limits);
size_t nosa_cpu_kv_shared_words(const struct nosa_step_limits *limits);

/* The packing entry of the device table (weight_pack.c). */
enum nosa_status nosa_cpu_weight_pack(struct nosa_device *device, struct nosa_weight *weight,
                                      enum nosa_weight_placement placement, int32_t first,
                                      int32_t rows, int64_t stride, int64_t k_first,
                                      enum nosa_dtype type, const void *source,
                                      struct nosa_error *error);

#endif
