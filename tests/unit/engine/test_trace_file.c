/*
 * Trace files: what is written is read back, and a file that is spoilt in any byte, cut off
 * anywhere, of another version or never closed is refused.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/hash.h"
#include "engine/trace_file.h"

#define LAYERS   2
#define KV_HEADS 2
#define POOLS    (LAYERS * KV_HEADS)
#define TOPK     5
#define STEP     8 /* kernel_stride */
#define BLOCKS   64
#define ROWS     10

static const struct nosa_trace_info info = {
    .attention = NOSA_ATTENTION_NOSA,
    .has_eviction_head = true,
    .n_layers = LAYERS,
    .n_kv_heads = KV_HEADS,
    .topk = TOPK,
    .init_blocks = 1,
    .window_blocks = 1,
    .first_cut = 4,
    .kernel_size = 2 * STEP,
    .kernel_stride = STEP,
    .prompt_tokens = 650,
    .step_first = 650,
};

/* Ends of blocks, the last token of the prompt, decoded tokens. */
static const int32_t positions[ROWS] = {127, 191, 319, 447, 575, 639, 649, 650, 651, 652};

static int32_t selected[POOLS][TOPK];
static int32_t selected_count[POOLS];
static float e[POOLS][BLOCKS];

/* Row `row` of a selection made up: forced blocks, and others that change with row and pool. */
static struct nosa_trace_row make_row(int32_t row)
{
    int32_t n_blocks = positions[row] / 64 + 1;
    for (int32_t pool = 0; pool < POOLS; pool++) {
        bool chosen[BLOCKS] = {false};
        chosen[0] = chosen[n_blocks - 1] = chosen[n_blocks - 2] = true;
        int32_t count = n_blocks == 2 ? 2 : 3;
        for (int32_t i = 0; count < TOPK && count < n_blocks; i++) {
            int32_t block = (row * 3 + pool + i * 13) % n_blocks;
            count += !chosen[block];
            chosen[block] = true;
        }
        selected_count[pool] = 0;
        for (int32_t block = 0; block < n_blocks; block++)
            if (chosen[block])
                selected[pool][selected_count[pool]++] = block;
        for (int32_t block = 0; block < n_blocks; block++)
            e[pool][block] = block == n_blocks - 1 ? -INFINITY : sinf((float)(pool * 100 + block));
    }
    return (struct nosa_trace_row){.position = positions[row],
                                   .n_blocks = n_blocks,
                                   .n_layers = LAYERS,
                                   .n_kv_heads = KV_HEADS,
                                   .topk = TOPK,
                                   .selected = selected[0],
                                   .selected_count = selected_count,
                                   .e = e[0],
                                   .e_stride = BLOCKS};
}

static char path[] = "/tmp/nosa-trace-XXXXXX";

static int setup(void **state)
{
    (void)state;
    int file = mkstemp(path);
    assert_true(file >= 0);
    close(file);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(path);
    return 0;
}

static void write_trace(int32_t rows)
{
    struct nosa_trace_writer writer;
    assert_int_equal(nosa_trace_writer_open(&writer, path, &info, NULL), NOSA_OK);
    for (int32_t i = 0; i < rows; i++) {
        struct nosa_trace_row row = make_row(i);
        nosa_trace_writer_row(&writer, &row);
    }
    assert_int_equal(nosa_trace_writer_close(&writer, NULL), NOSA_OK);
    assert_int_equal(nosa_trace_writer_close(&writer, NULL), NOSA_OK);
}

static char *read_all(size_t *size)
{
    char *data;
    assert_int_equal(nosa_file_read(path, 1 << 20, &data, size, NULL), NOSA_OK);
    return data;
}

static void write_all(const char *data, size_t size)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

static enum nosa_status open_status(char text[NOSA_ERROR_TEXT_MAX])
{
    struct nosa_trace_reader reader;
    struct nosa_error error = {0};
    enum nosa_status status = nosa_trace_reader_open(&reader, path, &error);
    if (text)
        strcpy(text, error.text);
    nosa_trace_reader_close(&reader);
    return status;
}

static void test_read_gives_back_what_was_written(void **state)
{
    (void)state;
    write_trace(ROWS);
    struct nosa_trace_reader reader;
    struct nosa_error error = {0};
    if (nosa_trace_reader_open(&reader, path, &error) != NOSA_OK)
        fail_msg("%s", error.text);
    assert_memory_equal(&reader.info, &info, sizeof info);
    assert_int_equal(reader.rows, ROWS);
    assert_int_equal(reader.steps, 3);
    assert_int_equal(reader.n_blocks_max, 652 / 64 + 1);
    float known[POOLS][BLOCKS];
    struct nosa_trace_record record;
    size_t offset = 0;
    for (int32_t i = 0; i < ROWS; i++) {
        assert_true(nosa_trace_reader_next(&reader, &offset, &record));
        struct nosa_trace_row row = make_row(i);
        assert_int_equal(record.position, row.position);
        assert_int_equal(record.n_blocks, row.n_blocks);
        for (int32_t pool = 0; pool < POOLS; pool++) {
            int32_t count = 0;
            for (int32_t block = 0; block < row.n_blocks; block++)
                if (nosa_trace_selected(&record, pool, block))
                    assert_int_equal(selected[pool][count++], block);
            assert_int_equal(count, selected_count[pool]);
            for (int32_t block = record.e_first; block < row.n_blocks; block++)
                known[pool][block] =
                    record.e[pool * (row.n_blocks - record.e_first) + block - record.e_first];
            assert_memory_equal(known[pool], e[pool], sizeof(float) * (size_t)row.n_blocks);
        }
    }
    assert_int_equal(record.e_first,
                     (651 + 1 - STEP) / 64); /* only what is not final comes again */
    assert_false(nosa_trace_reader_next(&reader, &offset, &record));
    nosa_trace_reader_close(&reader);
}

static void test_open_refuses_a_flipped_bit_in_any_byte(void **state)
{
    (void)state;
    write_trace(4);
    size_t size;
    char *data = read_all(&size);
    for (size_t at = 0; at < size; at++) {
        data[at] ^= (char)(1 << at % 8);
        write_all(data, size);
        enum nosa_status status = open_status(NULL);
        if (status != NOSA_CORRUPT && status != NOSA_UNSUPPORTED)
            fail_msg("byte %zu of %zu: status %d", at, size, status);
        data[at] ^= (char)(1 << at % 8);
    }
    write_all(data, size);
    assert_int_equal(open_status(NULL), NOSA_OK);
    free(data);
}

static void test_open_refuses_any_other_length(void **state)
{
    (void)state;
    write_trace(4);
    size_t size;
    char *data = read_all(&size);
    for (size_t length = 0; length < size; length++) {
        write_all(data, length);
        assert_int_equal(open_status(NULL), NOSA_CORRUPT);
    }
    char *longer = calloc(1, size + 1);
    memcpy(longer, data, size);
    write_all(longer, size + 1);
    char text[NOSA_ERROR_TEXT_MAX];
    assert_int_equal(open_status(text), NOSA_CORRUPT);
    assert_non_null(strstr(text, "bytes after the last row"));
    free(longer);
    free(data);
}

/* Changes a value of the header and makes its checksum fit. */
static void patch_header(size_t offset, uint32_t value)
{
    size_t size;
    char *data = read_all(&size);
    memcpy(data + offset, &value, sizeof value);
    uint64_t checksum = nosa_hash64(data, 88, 0);
    memcpy(data + 88, &checksum, sizeof checksum);
    write_all(data, size);
    free(data);
}

static void test_open_refuses_headers_that_contradict_themselves(void **state)
{
    (void)state;
    static const struct {
        size_t offset;
        uint32_t value;
        const char *says;
    } cases[] = {{8, 2, "version 2"},
                 {12, 0, "contradict"},
                 {16, 2, "contradict"},
                 {20, 0, "contradict"},
                 {20, 1u << 31, "contradict"},
                 {24, 0, "contradict"},
                 {28, 32, "contradict"},
                 {32, 3, "contradict"},
                 {44, 2, "contradict"},
                 {48, 9, "contradict"},
                 {52, 0, "contradict"},
                 {56, 0, "contradict"},
                 {60, 650, "contradict"},
                 {68, 1, "contradict"},
                 {20, 3, "row 0"},
                 {24, 1, "row 0"},
                 {32, 6, "selects what no"},
                 {40, 2, "selects what no"},
                 {72, 5, "cut off in row 4"},
                 {72, 3, "bytes after"},
                 {72, 0, "not closed"},
                 {64, 100, "missing"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[NOSA_ERROR_TEXT_MAX];
        write_trace(4);
        patch_header(cases[i].offset, cases[i].value);
        if (open_status(text) == NOSA_OK || !strstr(text, cases[i].says) || !strstr(text, path))
            fail_msg("offset %zu: '%s' does not say '%s'", cases[i].offset, text, cases[i].says);
    }
}

static void test_open_refuses_a_trace_that_was_not_closed(void **state)
{
    (void)state;
    struct nosa_trace_writer writer;
    char text[NOSA_ERROR_TEXT_MAX];
    assert_int_equal(nosa_trace_writer_open(&writer, path, &info, NULL), NOSA_OK);
    for (int32_t i = 0; i < 3; i++) {
        struct nosa_trace_row row = make_row(i);
        nosa_trace_writer_row(&writer, &row);
    }
    fflush(writer.file);
    assert_int_equal(open_status(text), NOSA_CORRUPT);
    assert_non_null(strstr(text, "not closed"));
    assert_int_equal(nosa_trace_writer_close(&writer, NULL), NOSA_OK);
    assert_int_equal(open_status(NULL), NOSA_OK);
}

static void test_writer_open_refuses_full_attention_and_bad_paths(void **state)
{
    (void)state;
    struct nosa_trace_writer writer;
    struct nosa_error error = {0};
    struct nosa_trace_info full = info;
    full.attention = NOSA_ATTENTION_FULL;
    assert_int_equal(nosa_trace_writer_open(&writer, path, &full, &error), NOSA_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "full attention"));
    nosa_error_clear(&error);
    assert_int_equal(nosa_trace_writer_open(&writer, "/nonexistent/trace", &info, &error),
                     NOSA_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "/nonexistent/trace"));
}

static void test_close_tells_of_a_full_disk(void **state)
{
    (void)state;
    struct nosa_trace_writer writer;
    struct nosa_error error = {0};
    enum nosa_status status = nosa_trace_writer_open(&writer, "/dev/full", &info, NULL);
    for (int32_t i = 0; status == NOSA_OK && i < ROWS; i++) {
        struct nosa_trace_row row = make_row(i);
        nosa_trace_writer_row(&writer, &row);
    }
    assert_int_equal(status, NOSA_OK);
    assert_int_equal(nosa_trace_writer_close(&writer, &error), NOSA_IO_ERROR);
    assert_non_null(strstr(error.text, "/dev/full: cannot write"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read_gives_back_what_was_written),
        cmocka_unit_test(test_open_refuses_a_flipped_bit_in_any_byte),
        cmocka_unit_test(test_open_refuses_any_other_length),
        cmocka_unit_test(test_open_refuses_headers_that_contradict_themselves),
        cmocka_unit_test(test_open_refuses_a_trace_that_was_not_closed),
        cmocka_unit_test(test_writer_open_refuses_full_attention_and_bad_paths),
        cmocka_unit_test(test_close_tells_of_a_full_disk),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
