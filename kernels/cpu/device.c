/*
 * The CPU device: memory, streams, events and copies, and the choice of the instruction set.
 *
 * All work runs before the enqueueing call returns, so streams are all alike, every event is done
 * at once and a stream never has an error to report later.
 */
#include <cpuid.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "cpu/cpu_internal.h"

#define PAGE_BYTES      ((size_t)4096)
#define HUGE_PAGE_BYTES ((size_t)2 * 1024 * 1024)
#define COPY_ITEM_BYTES ((size_t)512 * 1024) /* copies are cut into items of this size */

/* Part of the fingerprint: raised whenever an op of this backend changes a bit of its results. */
#define NOSA_CPU_KERNELS_VERSION 1

static struct nosa_cpu_device *cpu_device(struct nosa_device *device)
{
    return (struct nosa_cpu_device *)(void *)device;
}

static size_t round_up(size_t bytes, size_t unit)
{
    return (bytes + unit - 1) / unit * unit;
}

/* ---- memory ---- */

/* Maps zeroed memory; large ranges start on a huge page and ask for huge pages. NULL: none left. */
static void *map_memory(size_t bytes)
{
    size_t wanted = round_up(bytes, PAGE_BYTES);
    size_t slack = bytes >= HUGE_PAGE_BYTES ? HUGE_PAGE_BYTES : 0;
    if (bytes == 0 || wanted < bytes || wanted + slack < wanted)
        return NULL;
    char *base =
        mmap(NULL, wanted + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        return NULL;
    if (slack == 0)
        return base;
    char *start = (char *)round_up((size_t)base, HUGE_PAGE_BYTES);
    size_t before = (size_t)(start - base);
    if (before > 0)
        munmap(base, before);
    if (slack > before)
        munmap(start + wanted, slack - before);
    (void)madvise(start, wanted, MADV_HUGEPAGE); /* without it the memory is only slower */
    return start;
}

static void unmap_memory(void *memory, size_t bytes)
{
    if (memory != NULL)
        munmap(memory, round_up(bytes, PAGE_BYTES));
}

static enum nosa_status memory_alloc(struct nosa_device *device, enum nosa_memory_kind kind,
                                     size_t bytes, void **out, struct nosa_error *error)
{
    (void)device;
    (void)kind;
    *out = map_memory(bytes > 0 ? bytes : 1);
    if (*out == NULL)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "cannot take %zu bytes of memory", bytes);
    return NOSA_OK;
}

static void memory_free(struct nosa_device *device, enum nosa_memory_kind kind, void *memory,
                        size_t bytes)
{
    (void)device;
    (void)kind;
    unmap_memory(memory, bytes > 0 ? bytes : 1);
}

/* ---- streams, events, copies ---- */

static enum nosa_status stream_create(struct nosa_device *device, struct nosa_stream **out,
                                      struct nosa_error *error)
{
    (void)error;
    *out = &cpu_device(device)->stream0;
    return NOSA_OK;
}

static void stream_destroy(struct nosa_stream *stream)
{
    (void)stream;
}

static enum nosa_status stream_synchronize(struct nosa_stream *stream, struct nosa_error *error)
{
    (void)stream;
    (void)error;
    return NOSA_OK;
}

static enum nosa_status event_create(struct nosa_device *device, struct nosa_event **out,
                                     struct nosa_error *error)
{
    (void)error;
    *out = &cpu_device(device)->event0;
    return NOSA_OK;
}

static void event_destroy(struct nosa_event *event)
{
    (void)event;
}

static void event_record(struct nosa_event *event, struct nosa_stream *stream)
{
    (void)event;
    (void)stream;
}

static void event_wait(struct nosa_stream *stream, struct nosa_event *event)
{
    (void)stream;
    (void)event;
}

static bool event_done(struct nosa_event *event)
{
    (void)event;
    return true;
}

struct copy_job {
    char *to;
    const char *from; /* NULL: fill with zero bytes */
    size_t bytes;
};

static void copy_item(void *context, int32_t item, int32_t thread)
{
    const struct copy_job *job = context;
    (void)thread;
    size_t start = (size_t)item * COPY_ITEM_BYTES;
    size_t left = job->bytes - start;
    size_t bytes = left < COPY_ITEM_BYTES ? left : COPY_ITEM_BYTES;
    if (job->from != NULL)
        memcpy(job->to + start, job->from + start, bytes);
    else
        memset(job->to + start, 0, bytes);
}

static void run_copy(struct nosa_stream *stream, struct copy_job *job)
{
    size_t items = (job->bytes + COPY_ITEM_BYTES - 1) / COPY_ITEM_BYTES;
    NOSA_ASSERT(items <= INT32_MAX);
    nosa_cpu_pool_run(stream->device->pool, (int32_t)items, copy_item, job);
}

static void copy(struct nosa_stream *stream, void *to, const void *from, size_t bytes)
{
    run_copy(stream, &(struct copy_job){.to = to, .from = from, .bytes = bytes});
}

struct copy_rows_job {
    char *to;
    const char *from;
    size_t to_stride, from_stride, row_bytes;
};

static void copy_rows_item(void *context, int32_t item, int32_t thread)
{
    const struct copy_rows_job *job = context;
    (void)thread;
    memcpy(job->to + (size_t)item * job->to_stride, job->from + (size_t)item * job->from_stride,
           job->row_bytes);
}

static void copy_rows(struct nosa_stream *stream, void *to, size_t to_stride, const void *from,
                      size_t from_stride, size_t row_bytes, int32_t n_rows)
{
    struct copy_rows_job job = {to, from, to_stride, from_stride, row_bytes};
    nosa_cpu_pool_run(stream->device->pool, n_rows, copy_rows_item, &job);
}

static void clear(struct nosa_stream *stream, void *memory, size_t bytes)
{
    run_copy(stream, &(struct copy_job){.to = memory, .from = NULL, .bytes = bytes});
}

/* ---- scratch ---- */

static size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

static void scratch_free(struct nosa_cpu_device *device)
{
    struct nosa_cpu_scratch *scratch = &device->scratch;
    size_t threads = (size_t)nosa_cpu_pool_threads(device->pool);
    unmap_memory(scratch->thread_memory, threads * scratch->thread_bytes);
    unmap_memory(scratch->attention_partials, scratch->attention_partial_count * sizeof(float));
    unmap_memory(scratch->counters, scratch->counter_count * sizeof(int32_t));
    unmap_memory(scratch->kv_words, scratch->kv_word_count * sizeof(int32_t));
    *scratch = (struct nosa_cpu_scratch){0};
}

static enum nosa_status reserve(struct nosa_device *base, const struct nosa_step_limits *limits,
                                size_t *bytes_out, struct nosa_error *error)
{
    struct nosa_cpu_device *device = cpu_device(base);
    const struct nosa_cpu_isa_ops *ops = device->isa_ops;
    struct nosa_cpu_scratch *scratch = &device->scratch;
    NOSA_ASSERT(scratch->thread_memory == NULL);
    size_t bytes =
        max_size(max_size(ops->matmul_scratch_bytes(limits), ops->select_scratch_bytes(limits)),
                 max_size(ops->attention_scratch_bytes(limits), ops->sample_scratch_bytes(limits)));
    bytes = max_size(bytes, nosa_cpu_kv_thread_bytes(limits));
    scratch->limits = *limits;
    scratch->thread_bytes = round_up(bytes + 1, PAGE_BYTES);
    scratch->attention_partial_count = ops->attention_partial_floats(limits) + 1;
    scratch->counter_count = ops->attention_counter_count(limits) + 1;
    size_t thread_total = scratch->thread_bytes * (size_t)nosa_cpu_pool_threads(device->pool);
    size_t partial_bytes = scratch->attention_partial_count * sizeof(float);
    size_t counter_bytes = scratch->counter_count * sizeof(int32_t);
    scratch->kv_word_count = nosa_cpu_kv_shared_words(limits) + 1;
    size_t kv_bytes = scratch->kv_word_count * sizeof(int32_t);
    size_t total = thread_total + partial_bytes + counter_bytes + kv_bytes;
    scratch->thread_memory = map_memory(thread_total);
    scratch->attention_partials = map_memory(partial_bytes);
    scratch->counters = map_memory(counter_bytes);
    scratch->kv_words = map_memory(kv_bytes);
    if (scratch->thread_memory == NULL || scratch->attention_partials == NULL ||
        scratch->counters == NULL || scratch->kv_words == NULL) {
        scratch_free(device);
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "cannot take %zu bytes of scratch memory",
                              total);
    }
    *bytes_out = total;
    return NOSA_OK;
}

/* ---- identity ---- */

/* The processor's name without padding, e.g. "Intel(R) Xeon(R) Processor". */
static void processor_name(char text[64])
{
    unsigned int words[12] = {0};
    unsigned int *w = words;
    for (unsigned int leaf = 0x80000002u; leaf <= 0x80000004u; leaf++, w += 4)
        if (!__get_cpuid(leaf, &w[0], &w[1], &w[2], &w[3]))
            memcpy(w, "", 1);
    char raw[sizeof words + 1];
    memcpy(raw, words, sizeof words);
    raw[sizeof words] = '\0';
    const char *first = raw + strspn(raw, " ");
    size_t length = strlen(first);
    while (length > 0 && first[length - 1] == ' ')
        length--;
    if (length == 0)
        snprintf(text, 64, "x86-64 processor");
    else
        snprintf(text, 64, "%.*s", (int)length, first);
}

static void describe(struct nosa_device *base, char *text, size_t text_bytes)
{
    struct nosa_cpu_device *device = cpu_device(base);
    char name[64];
    processor_name(name);
    int32_t threads = nosa_cpu_pool_threads(device->pool);
    snprintf(text, text_bytes, "%s, %s, %d thread%s", name, nosa_cpu_isa_name(device->isa), threads,
             threads == 1 ? "" : "s");
}

static void fingerprint(struct nosa_device *device, char *text, size_t text_bytes)
{
    (void)device;
    snprintf(text, text_bytes, "cpu kernels=%d", NOSA_CPU_KERNELS_VERSION);
}

bool nosa_cpu_isa_available(enum nosa_cpu_isa isa)
{
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi") &&
                __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("lzcnt");
    switch (isa) {
    case NOSA_CPU_ISA_BEST:
    case NOSA_CPU_ISA_PORTABLE: return true;
    case NOSA_CPU_ISA_AVX2: return avx2;
    case NOSA_CPU_ISA_AVX512:
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    }
    return false;
}

const char *nosa_cpu_isa_name(enum nosa_cpu_isa isa)
{
    switch (isa) {
    case NOSA_CPU_ISA_BEST: return "best";
    case NOSA_CPU_ISA_PORTABLE: return "portable";
    case NOSA_CPU_ISA_AVX2: return "AVX2";
    case NOSA_CPU_ISA_AVX512: return "AVX-512";
    }
    return "unknown";
}

/* ---- creation ---- */

static void destroy(struct nosa_device *base)
{
    if (base == NULL)
        return;
    struct nosa_cpu_device *device = cpu_device(base);
    if (device->pool != NULL)
        scratch_free(device);
    nosa_cpu_pool_destroy(device->pool);
    free(device);
}

static const struct nosa_device_table cpu_table = {
    .name = "cpu",
    .memory_alloc = memory_alloc,
    .memory_free = memory_free,
    .stream_create = stream_create,
    .stream_destroy = stream_destroy,
    .stream_synchronize = stream_synchronize,
    .event_create = event_create,
    .event_destroy = event_destroy,
    .event_record = event_record,
    .event_wait = event_wait,
    .event_done = event_done,
    .copy = copy,
    .copy_rows = copy_rows,
    .clear = clear,
    .reserve = reserve,
    .weight_pack = nosa_cpu_weight_pack,
    .describe = describe,
    .fingerprint = fingerprint,
    .destroy = destroy,
};

static enum nosa_cpu_isa best_isa(void)
{
    if (nosa_cpu_isa_available(NOSA_CPU_ISA_AVX512))
        return NOSA_CPU_ISA_AVX512;
    if (nosa_cpu_isa_available(NOSA_CPU_ISA_AVX2))
        return NOSA_CPU_ISA_AVX2;
    return NOSA_CPU_ISA_PORTABLE;
}

static const struct nosa_cpu_isa_ops *ops_of(enum nosa_cpu_isa isa)
{
    if (isa == NOSA_CPU_ISA_AVX512)
        return &nosa_cpu_ops_avx512;
    if (isa == NOSA_CPU_ISA_AVX2)
        return &nosa_cpu_ops_avx2;
    return &nosa_cpu_ops_portable;
}

enum nosa_status nosa_cpu_device_create(const struct nosa_cpu_options *options,
                                        struct nosa_device **out, struct nosa_error *error)
{
    *out = NULL;
    if (!nosa_cpu_isa_available(options->isa))
        return nosa_error_set(error, NOSA_UNSUPPORTED, "this processor does not have %s",
                              nosa_cpu_isa_name(options->isa));
    struct nosa_cpu_device *device = calloc(1, sizeof *device);
    if (device == NULL)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the CPU device");
    device->isa = options->isa == NOSA_CPU_ISA_BEST ? best_isa() : options->isa;
    device->isa_ops = ops_of(device->isa);
    device->table = cpu_table;
    device->table.ops = &device->isa_ops->table;
    device->base.table = &device->table;
    device->stream0.device = device;
    device->event0.device = device;
    int32_t threads = options->threads == 0 ? nosa_cpu_count() : options->threads;
    enum nosa_status status = nosa_cpu_pool_create(threads, &device->pool, error);
    if (status != NOSA_OK) {
        destroy(&device->base);
        return status;
    }
    *out = &device->base;
    return NOSA_OK;
}
