/*
 * The KV file: reads of single records at random and of whole blocks in sequence, beside what fio
 * gets from the same file with the same depth and sizes. Rounds alternate and the median counts.
 * Checksums are verified in every read of ours; their rate alone stands beside it.
 */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "bench.h"
#include "extent_format.h"
#include "extent_store.h"

#define RECORD_DEPTH 32
#define IMAGE_DEPTH  8
#define ROUND_S      1.5
#define ROUNDS_MAX   15
#define FILE_BYTES   (UINT64_C(2) << 30)
#define WRITES_BUSY  4

/* 30 layers of 3 KV heads of 64 at 16 bits; 32 layers of 2 KV heads of 128. */
static const struct shape {
    const char *name;
    struct nosa_extent_geometry geometry;
} shapes[] = {
    {"demo", {.n_records = 90, .record_bytes = 16384, .summary_bytes = 4480}},
    {"8B", {.n_records = 64, .record_bytes = 32768, .summary_bytes = 1296}},
};

struct extents_bench {
    const struct shape *shape;
    const char *directory;
    struct nosa_extent_store_options options;
    struct nosa_extent_store *store;
    struct nosa_extent_store_info info;
    struct nosa_extent_handle *handles; /* owned, [n_extents] */
    uint32_t n_extents;
    char *pool; /* owned: 2 * IMAGE_DEPTH images */
    size_t image_bytes;
    uint64_t random;
};

static uint32_t draw(struct extents_bench *bench, uint32_t n)
{
    bench->random = bench->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)((bench->random >> 32) * n >> 32);
}

static enum nosa_status fail(const char *what, enum nosa_extent_result result,
                             struct nosa_error *error)
{
    return nosa_error_set(error, NOSA_IO_ERROR, "%s: %s", what, nosa_extent_result_name(result));
}

/* ---- ours ---- */

static enum nosa_status write_one(struct extents_bench *bench, uint32_t extent,
                                  struct nosa_error *error)
{
    uint32_t tokens[NOSA_BLOCK_TOKENS] = {extent};
    char *image = bench->pool + extent % WRITES_BUSY * bench->image_bytes;
    struct nosa_extent_write write = {.tokens = tokens, .image = image, .use = extent};

    for (size_t i = 0; i < bench->image_bytes; i += sizeof(uint32_t)) {
        uint32_t word = draw(bench, UINT32_MAX);
        memcpy(image + i, &word, sizeof word);
    }
    memcpy(write.key.bytes, &extent, sizeof extent);
    enum nosa_status status = nosa_extent_store_write(bench->store, extent, &write);
    if (status != NOSA_OK)
        return nosa_error_set(error, status, "extent %u cannot be written", extent);
    return NOSA_OK;
}

/* Fills the file; handles[i] is extent i afterwards. */
static enum nosa_status fill(struct extents_bench *bench, double *gbs, struct nosa_error *error)
{
    struct nosa_extent_completion completion;
    uint32_t begun = 0, done = 0;
    double moving_s = 0;

    while (done < bench->n_extents) {
        while (begun < bench->n_extents && begun - done < WRITES_BUSY)
            NOSA_TRY(write_one(bench, begun++, error));
        uint64_t start_ns = nosa_monotonic_ns();
        for (uint32_t busy = begun - done; busy > 0; busy--, done++) {
            while (nosa_extent_store_poll(bench->store, &completion, 1, 60000) == 0)
                continue;
            if (completion.result != NOSA_EXTENT_OK)
                return fail("a write", completion.result, error);
            bench->handles[completion.token] = completion.handle;
        }
        moving_s += nosa_seconds_between(start_ns, nosa_monotonic_ns());
    }
    *gbs = (double)bench->image_bytes * bench->n_extents / moving_s / 1e9;
    return NOSA_OK;
}

static enum nosa_status begin_read(struct extents_bench *bench, bool whole, uint64_t token,
                                   uint64_t number)
{
    char *memory = bench->pool + token * bench->image_bytes;
    if (whole)
        return nosa_extent_store_read_image(bench->store, token,
                                            bench->handles[number % bench->n_extents], memory);
    uint32_t record = draw(bench, bench->shape->geometry.n_records);
    void *buffer = bench->pool + token * bench->shape->geometry.record_bytes;
    return nosa_extent_store_read_records(
        bench->store, token, bench->handles[draw(bench, bench->n_extents)], &record, &buffer, 1);
}

/* GB/s with so many reads at the device all the time, and as many waiting in the store. */
static enum nosa_status read_ours(struct extents_bench *bench, bool whole, uint32_t depth,
                                  double *gbs, struct nosa_error *error)
{
    struct nosa_extent_completion completions[2 * RECORD_DEPTH];
    uint64_t start_ns = nosa_monotonic_ns(), bytes = 0, number = 0;
    double seconds = 0;

    for (uint64_t token = 0; token < 2 * depth; token++)
        NOSA_TRY(begin_read(bench, whole, token, number++));
    for (uint32_t busy = 2 * depth; busy > 0;) {
        uint32_t n = nosa_extent_store_poll(bench->store, completions, 2 * depth, 60000);
        seconds = nosa_seconds_between(start_ns, nosa_monotonic_ns());
        for (uint32_t i = 0; i < n; i++, busy--) {
            if (completions[i].result != NOSA_EXTENT_OK)
                return fail("a read", completions[i].result, error);
            bytes += completions[i].bytes;
            if (seconds >= ROUND_S)
                continue;
            NOSA_TRY(begin_read(bench, whole, completions[i].token, number++));
            busy++;
        }
        nosa_extent_store_submit(bench->store);
    }
    *gbs = (double)bytes / seconds / 1e9;
    return NOSA_OK;
}

static enum nosa_status open_bench(struct extents_bench *bench, uint32_t depth,
                                   struct nosa_error *error)
{
    bench->options.depth = depth;
    NOSA_TRY(nosa_extent_store_open(&bench->options, &bench->store, error));
    nosa_extent_store_info(bench->store, &bench->info);
    return NOSA_OK;
}

static void close_bench(struct extents_bench *bench)
{
    nosa_extent_store_close(bench->store);
    bench->store = NULL;
}

/* GB/s of the checksum over one image in memory. */
static double checksum_gbs(const struct extents_bench *bench)
{
    const struct nosa_extent_geometry *geometry = &bench->shape->geometry;
    uint64_t start_ns = nosa_monotonic_ns(), bytes = 0, sum = 0;
    double seconds = 0;

    for (uint32_t image = 0; seconds < 0.3; image = (image + 1) % IMAGE_DEPTH) {
        for (uint32_t i = 0; i < geometry->n_records; i++)
            sum ^= nosa_extent_sum(bench->pool + image * bench->image_bytes +
                                       nosa_extent_record_offset(geometry, i),
                                   geometry->record_bytes);
        bytes += (uint64_t)geometry->n_records * geometry->record_bytes;
        seconds = nosa_seconds_between(start_ns, nosa_monotonic_ns());
    }
    return sum == 1 ? 0 : (double)bytes / seconds / 1e9;
}

/* ---- fio ---- */

static void exec_fio(const struct extents_bench *bench, bool whole, uint32_t depth, int out)
{
    char file[4096], size[32], block[32], queue[32], runtime[32];
    uint64_t bytes = whole ? bench->image_bytes : bench->shape->geometry.record_bytes;

    snprintf(file, sizeof file, "--filename=%s/%s", bench->directory, NOSA_EXTENT_FILE_NAME);
    snprintf(
        size, sizeof size, "--size=%llu",
        (unsigned long long)nosa_extent_file_bytes(&bench->shape->geometry, bench->info.n_extents));
    snprintf(block, sizeof block, "--bs=%llu", (unsigned long long)bytes);
    snprintf(queue, sizeof queue, "--iodepth=%u", depth);
    snprintf(runtime, sizeof runtime, "--runtime=%gs", ROUND_S);
    dup2(out, 1);
    int null = open("/dev/null", O_WRONLY);
    dup2(null, 2);
    execlp("fio", "fio", "--name=read", file, size, block, queue, runtime, "--readonly",
           "--direct=1", "--ioengine=io_uring", "--registerfiles=1", "--fixedbufs=1",
           "--time_based", whole ? "--rw=read" : "--rw=randread", "--output-format=json",
           (char *)NULL);
    _exit(127);
}

/* GB/s that fio reports, 0 when it is not here or fails. */
static double read_fio(const struct extents_bench *bench, bool whole, uint32_t depth)
{
    int out[2], status;
    if (pipe2(out, O_CLOEXEC) != 0)
        return 0;
    pid_t child = fork();
    if (child == 0)
        exec_fio(bench, whole, depth, out[1]);
    close(out[1]);
    FILE *stream = fdopen(out[0], "r");
    json_t *report = stream ? json_loadf(stream, 0, NULL) : NULL;
    const json_t *job = json_array_get(json_object_get(report, "jobs"), 0);
    double gbs = json_number_value(json_object_get(json_object_get(job, "read"), "bw_bytes")) / 1e9;
    json_decref(report);
    if (stream)
        fclose(stream);
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0)
        return 0;
    return gbs;
}

/* ---- report ---- */

struct line {
    double ours, fio;
};

static enum nosa_status measure(struct extents_bench *bench, bool whole, int32_t rounds,
                                struct line *line, struct nosa_error *error)
{
    uint32_t depth = whole ? IMAGE_DEPTH : RECORD_DEPTH;
    double ours[ROUNDS_MAX], fio[ROUNDS_MAX];

    for (int32_t i = 0; i < rounds; i++) {
        /* Whoever comes second may find more in the caches below the file system. */
        if (i % 2 == 1)
            fio[i] = read_fio(bench, whole, depth);
        NOSA_TRY(open_bench(bench, depth, error));
        NOSA_TRY(read_ours(bench, whole, depth, &ours[i], error));
        close_bench(bench);
        if (i % 2 == 0)
            fio[i] = read_fio(bench, whole, depth);
    }
    line->ours = bench_median(ours, rounds);
    line->fio = bench_median(fio, rounds);
    return NOSA_OK;
}

static void print_line(const struct extents_bench *bench, const char *what, const struct line *line)
{
    printf("%-5s %-28s %8.3f GB/s", bench->shape->name, what, line->ours);
    if (line->fio > 0)
        printf("   fio %8.3f GB/s   %5.1f %%\n", line->fio, 100 * line->ours / line->fio);
    else
        printf("   fio is not here\n");
}

static void print_json(const struct extents_bench *bench, double write_gbs, double sum_gbs,
                       const struct line lines[2])
{
    printf("{\"shape\": \"%s\", \"method\": \"%s\", \"write_gbs\": %.4f, \"checksum_gbs\": %.3f, "
           "\"record_read_gbs\": %.4f, \"record_read_fio_gbs\": %.4f, \"image_read_gbs\": %.4f, "
           "\"image_read_fio_gbs\": %.4f}\n",
           bench->shape->name, bench->info.io_method, write_gbs, sum_gbs, lines[0].ours,
           lines[0].fio, lines[1].ours, lines[1].fio);
}

static enum nosa_status run_shape(struct extents_bench *bench, int32_t rounds, bool json,
                                  struct nosa_error *error)
{
    struct line lines[2] = {{0}};
    double write_gbs = 0;

    NOSA_TRY(open_bench(bench, 4 * WRITES_BUSY, error));
    NOSA_TRY(fill(bench, &write_gbs, error));
    close_bench(bench);
    NOSA_TRY(measure(bench, false, rounds, &lines[0], error));
    NOSA_TRY(measure(bench, true, rounds, &lines[1], error));
    double sum_gbs = checksum_gbs(bench);
    if (json) {
        print_json(bench, write_gbs, sum_gbs, lines);
        return NOSA_OK;
    }
    print_line(bench, "record at random, depth 32", &lines[0]);
    print_line(bench, "block in sequence, depth 8", &lines[1]);
    printf("%-5s %-28s %8.3f GB/s   checksums alone %.1f GB/s\n", bench->shape->name,
           "block written, flushed", write_gbs, sum_gbs);
    return NOSA_OK;
}

static enum nosa_status prepare(struct extents_bench *bench, const struct shape *shape,
                                const char *directory, struct nosa_error *error)
{
    memset(bench, 0, sizeof *bench);
    bench->shape = shape;
    bench->directory = directory;
    bench->image_bytes = nosa_extent_image_bytes(&shape->geometry);
    bench->n_extents = nosa_extent_count_in(&shape->geometry, FILE_BYTES) * 15 / 16;
    size_t pool_bytes = 2 * IMAGE_DEPTH * bench->image_bytes;
    bench->pool = aligned_alloc(NOSA_IO_ALIGNMENT, pool_bytes);
    bench->handles = calloc(bench->n_extents, sizeof *bench->handles);
    if (!bench->pool || !bench->handles)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for %zu bytes", pool_bytes);
    bench->options = (struct nosa_extent_store_options){
        .directory = directory,
        .bytes = FILE_BYTES,
        .geometry = shape->geometry,
        .pool = bench->pool,
        .pool_bytes = pool_bytes,
        .deadline_ms = 60000,
    };
    return NOSA_OK;
}

enum nosa_status bench_extents(const struct nosa_flags *flags, struct nosa_error *error)
{
    const char *parent = nosa_flags_positional(flags, 1);
    int32_t rounds = nosa_flags_int32(flags, "rounds");
    bool json = nosa_flags_bool(flags, "json");
    char directory[4096];
    enum nosa_status status = NOSA_OK;

    if (rounds > ROUNDS_MAX)
        rounds = ROUNDS_MAX;
    if (!parent)
        return nosa_error_set(
            error, NOSA_INVALID_ARGUMENT,
            "extents: name a directory on the disk to measure, with %llu GiB free",
            (unsigned long long)(FILE_BYTES >> 30));
    if ((size_t)snprintf(directory, sizeof directory, "%s/nosa-bench-XXXXXX", parent) >=
            sizeof directory ||
        !mkdtemp(directory))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "'%s' cannot be written: %s", parent,
                              strerror(errno));
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes && status == NOSA_OK; i++) {
        struct extents_bench bench;
        status = prepare(&bench, &shapes[i], directory, error);
        if (status == NOSA_OK)
            status = run_shape(&bench, rounds, json, error);
        close_bench(&bench);
        free(bench.handles);
        free(bench.pool);
    }
    char file[4200];
    snprintf(file, sizeof file, "%s/%s", directory, NOSA_EXTENT_FILE_NAME);
    unlink(file);
    rmdir(directory);
    return status;
}
