/* The machine's limits: rate of multiply-adds and of reading memory, on all threads at once. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "base/clock.h"
#include "bench.h"
#include "cpu_device.h"

#define READ_BYTES ((size_t)768 << 20)
#define READ_LINE  ((size_t)64)

/* A repetition is short, so that some escape the other programs of the machine; one of reading
 * takes the next part, whose bytes no cache has kept since the round before. */
#define READ_PARTS             4
#define READ_REPETITIONS       (6 * READ_PARTS)
#define ARITHMETIC_REPETITIONS 80

enum work { WORK_FMA512, WORK_FMA256, WORK_BF16, WORK_READ };

struct worker {
    pthread_t thread;
    pthread_barrier_t *barrier; /* borrowed */
    enum work work;
    const char *memory; /* READ_PARTS parts of this thread, for WORK_READ */
    size_t bytes;       /* of a part */
    double done;        /* operations or bytes of one repetition */
    double best_s;
};

#if defined(__x86_64__)
#define CHAINS 16

__attribute__((target("avx512f"))) static double fma512(void)
{
    __m512 sum[CHAINS], factor = _mm512_set1_ps(0.999f);
    for (int i = 0; i < CHAINS; i++)
        sum[i] = _mm512_set1_ps((float)i);
    const long rounds = 256 << 10;
    for (long r = 0; r < rounds; r++) {
#pragma GCC unroll 16
        for (int i = 0; i < CHAINS; i++)
            sum[i] = _mm512_fmadd_ps(sum[i], factor, factor);
        __asm__ volatile("" ::"v"(sum[0]));
    }
    for (int i = 1; i < CHAINS; i++)
        sum[0] = _mm512_add_ps(sum[0], sum[i]);
    volatile float keep = _mm512_reduce_add_ps(sum[0]);
    (void)keep;
    return 32.0 * CHAINS * (double)rounds;
}

__attribute__((target("avx2,fma"))) static double fma256(void)
{
    __m256 sum[CHAINS / 2], factor = _mm256_set1_ps(0.999f);
    for (int i = 0; i < CHAINS / 2; i++)
        sum[i] = _mm256_set1_ps((float)i);
    const long rounds = 512 << 10;
    for (long r = 0; r < rounds; r++) {
#pragma GCC unroll 8
        for (int i = 0; i < CHAINS / 2; i++)
            sum[i] = _mm256_fmadd_ps(sum[i], factor, factor);
        __asm__ volatile("" ::"x"(sum[0]));
    }
    for (int i = 1; i < CHAINS / 2; i++)
        sum[0] = _mm256_add_ps(sum[0], sum[i]);
    volatile float keep = _mm256_cvtss_f32(sum[0]);
    (void)keep;
    return 16.0 * (CHAINS / 2) * (double)rounds;
}

__attribute__((target("avx512f,avx512bf16"))) static double bf16(void)
{
    __m512 sum[CHAINS];
    __m512bh factor = (__m512bh)_mm512_set1_epi32(0x3f803f80);
    for (int i = 0; i < CHAINS; i++)
        sum[i] = _mm512_setzero_ps();
    const long rounds = 128 << 10;
    for (long r = 0; r < rounds; r++) {
#pragma GCC unroll 16
        for (int i = 0; i < CHAINS; i++)
            sum[i] = _mm512_dpbf16_ps(sum[i], factor, factor);
        __asm__ volatile("" ::"v"(sum[0]));
    }
    for (int i = 1; i < CHAINS; i++)
        sum[0] = _mm512_add_ps(sum[0], sum[i]);
    volatile float keep = _mm512_reduce_add_ps(sum[0]);
    (void)keep;
    return 64.0 * CHAINS * (double)rounds;
}

/* Reads with a prefetch ahead, as the engine's products of one row do. */
__attribute__((target("avx2"))) static double read_memory(const char *memory, size_t bytes)
{
    __m256i sum = _mm256_setzero_si256();
    for (size_t i = 0; i < bytes; i += 64) {
        _mm_prefetch(memory + i + 4096, _MM_HINT_T0);
        sum = _mm256_xor_si256(sum, _mm256_load_si256((const __m256i *)(const void *)(memory + i)));
        sum = _mm256_xor_si256(sum,
                               _mm256_load_si256((const __m256i *)(const void *)(memory + i + 32)));
    }
    volatile long long keep = _mm256_extract_epi64(sum, 0);
    (void)keep;
    return (double)bytes;
}
#else
static double fma512(void)
{
    return 0;
}
static double fma256(void)
{
    return 0;
}
static double bf16(void)
{
    return 0;
}
static double read_memory(const char *memory, size_t bytes)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < bytes; i += sizeof sum) {
        uint64_t word;
        memcpy(&word, memory + i, sizeof word);
        sum ^= word;
    }
    volatile uint64_t keep = sum;
    (void)keep;
    return (double)bytes;
}
#endif

static void *worker_main(void *argument)
{
    struct worker *worker = argument;
    worker->best_s = 1e30;
    int repetitions = worker->work == WORK_READ ? READ_REPETITIONS : ARITHMETIC_REPETITIONS;
    for (int i = 0; i < repetitions; i++) {
        pthread_barrier_wait(worker->barrier);
        uint64_t start = nosa_monotonic_ns();
        switch (worker->work) {
        case WORK_FMA512: worker->done = fma512(); break;
        case WORK_FMA256: worker->done = fma256(); break;
        case WORK_BF16: worker->done = bf16(); break;
        case WORK_READ:
            worker->done = read_memory(worker->memory + (size_t)(i % READ_PARTS) * worker->bytes,
                                       worker->bytes);
            break;
        }
        pthread_barrier_wait(worker->barrier);
        double seconds = nosa_seconds_between(start, nosa_monotonic_ns());
        worker->best_s = seconds < worker->best_s ? seconds : worker->best_s;
    }
    return NULL;
}

/* Work per second (in 1e9) of all threads together, the best repetition. */
static double measure(enum work work, int32_t threads, const char *memory)
{
    pthread_barrier_t barrier;
    struct worker *workers = calloc((size_t)threads, sizeof *workers);
    if (!workers || pthread_barrier_init(&barrier, NULL, (unsigned)threads) != 0) {
        free(workers);
        return 0;
    }
    size_t part = READ_BYTES / READ_PARTS / (size_t)threads / READ_LINE * READ_LINE;
    for (int32_t i = 0; i < threads; i++) {
        workers[i] = (struct worker){.barrier = &barrier, .work = work, .bytes = part};
        if (memory)
            workers[i].memory = memory + (size_t)i * READ_PARTS * part;
        if (i > 0 && pthread_create(&workers[i].thread, NULL, worker_main, &workers[i]) != 0)
            NOSA_ASSERT(!"threads");
    }
    worker_main(&workers[0]);
    double done = workers[0].done;
    for (int32_t i = 1; i < threads; i++) {
        pthread_join(workers[i].thread, NULL);
        done += workers[i].done;
    }
    double rate = done / workers[0].best_s / 1e9;
    pthread_barrier_destroy(&barrier);
    free(workers);
    return rate;
}

static bool has_bf16(void)
{
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx512bf16");
#else
    return false;
#endif
}

enum nosa_status bench_measure_limits(const struct nosa_flags *flags, struct bench_limits *out,
                                      struct nosa_error *error)
{
    int32_t threads = nosa_flags_int32(flags, "threads");
    if (threads == 0)
        threads = nosa_cpu_count();
    void *memory =
        mmap(NULL, READ_BYTES + 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory to measure reading it");
    madvise(memory, READ_BYTES, MADV_HUGEPAGE);
    memset(memory, 1, READ_BYTES);
    *out = (struct bench_limits){.threads = threads};
    if (nosa_cpu_isa_available(NOSA_CPU_ISA_AVX512))
        out->fma_gflops = measure(WORK_FMA512, threads, NULL);
    else if (nosa_cpu_isa_available(NOSA_CPU_ISA_AVX2))
        out->fma_gflops = measure(WORK_FMA256, threads, NULL);
    if (has_bf16())
        out->bf16_gflops = measure(WORK_BF16, threads, NULL);
    out->read_gbs = measure(WORK_READ, threads, memory);
    munmap(memory, READ_BYTES + 8192);
    bench_onednn_set_threads(threads);
    return NOSA_OK;
}

void bench_print_limits(const struct bench_limits *limits)
{
    printf("limits of %d threads: float32 FMA %.0f GFLOP/s, vdpbf16ps %.0f GFLOP/s, reading %.1f "
           "GB/s\n",
           limits->threads, limits->fma_gflops, limits->bf16_gflops, limits->read_gbs);
}

static enum nosa_status print_limits_json(const struct bench_limits *limits,
                                          struct nosa_error *error)
{
    int failed =
        printf("{\"threads\": %d, \"fma_gflops\": %.1f, \"bf16_gflops\": %.1f, "
               "\"read_gbs\": %.2f}\n",
               limits->threads, limits->fma_gflops, limits->bf16_gflops, limits->read_gbs) < 0;
    return failed ? nosa_error_set(error, NOSA_IO_ERROR, "standard output: cannot write") : NOSA_OK;
}

enum nosa_status bench_limits(const struct nosa_flags *flags, struct nosa_error *error)
{
    struct bench_limits limits;
    NOSA_TRY(bench_measure_limits(flags, &limits, error));
    if (nosa_flags_bool(flags, "json"))
        return print_limits_json(&limits, error);
    bench_print_limits(&limits);
    return NOSA_OK;
}
