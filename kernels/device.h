/*
 * The device table: memory, streams and events of one backend, and its ops.
 *
 * A rank of the engine owns one device and enqueues all its work on streams of it, from one thread.
 * Ops and copies run in stream order. A backend may run them before the enqueueing call returns
 * (the CPU backend does) or later; callers must assume the latter: parameter structs, and the views
 * and weight descriptions that they point to, are read during the call, arrays when the op runs.
 * Errors that appear later are returned by the next synchronisation.
 */
#ifndef NOSA_KERNELS_DEVICE_H
#define NOSA_KERNELS_DEVICE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "ops.h"
#include "weight.h"

enum nosa_memory_kind {
    NOSA_MEMORY_DEVICE,      /* what ops read fastest */
    NOSA_MEMORY_HOST_PINNED, /* host memory that the device reaches and copies at full rate */
};

struct nosa_device; /* one backend instance; opaque, created by nosa_cpu_device_create etc. */
struct nosa_stream; /* an ordered queue of work on one device */
struct nosa_event;  /* a point in a stream */

/* Largest sizes of one step; the backend takes its scratch memory from it once, so that a step
 * allocates nothing. */
struct nosa_step_limits {
    int32_t rows_max;    /* tokens of all sequences in one step */
    int32_t seqs_max;    /* sequences in one step */
    int32_t context_max; /* tokens of one sequence */
    int32_t n_heads;     /* query heads of this rank */
    int32_t n_kv_heads;
    int32_t head_dim;
    int32_t k_max;     /* largest k of any weight */
    int32_t n_max;     /* largest n of any weight */
    int32_t topk_max;  /* blocks that selection may choose */
    int32_t vocab_max; /* columns of the logits that sampling sees */
    int32_t windows_per_block;
    /* Of a first tier with fewer slots than blocks (ops_kv.h); else 0. */
    int32_t kv_pools_max; /* layers times KV heads of this rank */
    int32_t kv_slots_max; /* slots of one pool */
    int32_t kv_fetch_max; /* records of one list of kv_fetch */
};

struct nosa_device_table {
    const char *name; /* "cpu", "cuda" */

    /* Takes `bytes` of zeroed memory, aligned to 4096; pinned memory serves every device of the
     * same kind. Any thread. Blocks. */
    enum nosa_status (*memory_alloc)(struct nosa_device *device, enum nosa_memory_kind kind,
                                     size_t bytes, void **out, struct nosa_error *error);
    /* Gives it back; NULL is allowed. No work that uses it may be pending. Any thread. */
    void (*memory_free)(struct nosa_device *device, enum nosa_memory_kind kind, void *memory,
                        size_t bytes);

    enum nosa_status (*stream_create)(struct nosa_device *device, struct nosa_stream **out,
                                      struct nosa_error *error);
    void (*stream_destroy)(struct nosa_stream *stream);
    /* Blocks until the stream is empty; returns the first error of work on it since the last call.
     */
    enum nosa_status (*stream_synchronize)(struct nosa_stream *stream, struct nosa_error *error);

    enum nosa_status (*event_create)(struct nosa_device *device, struct nosa_event **out,
                                     struct nosa_error *error);
    void (*event_destroy)(struct nosa_event *event);
    void (*event_record)(struct nosa_event *event, struct nosa_stream *stream);
    void (*event_wait)(struct nosa_stream *stream, struct nosa_event *event);
    bool (*event_done)(struct nosa_event *event); /* does not block */

    /* Enqueues a copy between device memory and host memory, in any direction. With pinned memory
     * it is asynchronous: what is copied from is read, and what is copied to is written, when its
     * turn comes, so both must stay as they are until the stream has passed it. With other host
     * memory the call may block. */
    void (*copy)(struct nosa_stream *stream, void *to, const void *from, size_t bytes);
    /* The same for n_rows rows of row_bytes, each a stride (in bytes) after the one before. */
    void (*copy_rows)(struct nosa_stream *stream, void *to, size_t to_stride, const void *from,
                      size_t from_stride, size_t row_bytes, int32_t n_rows);
    /* Enqueues filling with zero bytes. */
    void (*clear)(struct nosa_stream *stream, void *memory, size_t bytes);

    /* Takes the scratch memory that steps within `limits` need; called once, before the first op.
     * Blocks. Returns the bytes taken in *bytes_out. */
    enum nosa_status (*reserve)(struct nosa_device *device, const struct nosa_step_limits *limits,
                                size_t *bytes_out, struct nosa_error *error);

    /* Packs `rows` rows of `source` (row stride in elements, host memory, `type`) into weight
     * columns; columns never written stay zero. `k_first` offsets the inputs, for weights split by
     * column: element (row, i) comes from source[row * stride + k_first + i], i < weight->k.
     * Values that the format cannot hold exactly are rounded to nearest. Blocks. */
    enum nosa_status (*weight_pack)(struct nosa_device *device, struct nosa_weight *weight,
                                    enum nosa_weight_placement placement, int32_t first,
                                    int32_t rows, int64_t stride, int64_t k_first,
                                    enum nosa_dtype type, const void *source,
                                    struct nosa_error *error);

    /* One line for people: processor, instruction set, threads. */
    void (*describe)(struct nosa_device *device, char *text, size_t text_bytes);
    /* Bytes that decide a row's bits beside the model: kind, kernel version, and what else the
     * backend's results depend on. Two devices with equal fingerprints compute equal bits. */
    void (*fingerprint)(struct nosa_device *device, char *text, size_t text_bytes);

    void (*destroy)(struct nosa_device *device);

    const struct nosa_op_table *ops;
};

struct nosa_device {
    const struct nosa_device_table *table;
};

#endif
