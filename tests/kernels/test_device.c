/* The CPU device: memory, copies, streams, packing of weights, identity. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <sched.h>

#include "cpu_device.h"
#include "device.h"

static struct nosa_device *device_create(int32_t threads, enum nosa_cpu_isa isa)
{
    struct nosa_device *device;
    struct nosa_error error = {0};
    const struct nosa_cpu_options options = {threads, isa};
    if (nosa_cpu_device_create(&options, &device, &error) != NOSA_OK)
        fail_msg("%s", error.text);
    return device;
}

static void test_memory_alloc_gives_zeroed_aligned_memory(void **state)
{
    (void)state;
    struct nosa_device *device = device_create(1, NOSA_CPU_ISA_BEST);
    const size_t sizes[] = {1, 4096, 100000, 2097152, 2097153, 9000000};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int kind = 0; kind < 2; kind++) {
            void *memory;
            assert_int_equal(device->table->memory_alloc(device, (enum nosa_memory_kind)kind,
                                                         sizes[s], &memory, NULL),
                             NOSA_OK);
            assert_int_equal((uintptr_t)memory % 4096, 0);
            for (size_t i = 0; i < sizes[s]; i++)
                assert_int_equal(((char *)memory)[i], 0);
            memset(memory, 1, sizes[s]);
            device->table->memory_free(device, (enum nosa_memory_kind)kind, memory, sizes[s]);
        }
    device->table->memory_free(device, NOSA_MEMORY_DEVICE, NULL, 10);
    device->table->destroy(device);
}

static void test_memory_alloc_too_large_is_out_of_memory(void **state)
{
    (void)state;
    struct nosa_device *device = device_create(1, NOSA_CPU_ISA_BEST);
    const size_t sizes[] = {SIZE_MAX, SIZE_MAX - 5000, (size_t)1 << 60};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        void *memory;
        struct nosa_error error = {0};
        assert_int_equal(
            device->table->memory_alloc(device, NOSA_MEMORY_DEVICE, sizes[s], &memory, &error),
            NOSA_OUT_OF_MEMORY);
        assert_null(memory);
        assert_non_null(strstr(error.text, "bytes"));
    }
    device->table->destroy(device);
}

static void test_copy_and_clear_touch_exactly_their_bytes(void **state)
{
    (void)state;
    struct nosa_device *device = device_create(3, NOSA_CPU_ISA_BEST);
    struct nosa_stream *stream;
    struct nosa_event *event;
    assert_int_equal(device->table->stream_create(device, &stream, NULL), NOSA_OK);
    assert_int_equal(device->table->event_create(device, &event, NULL), NOSA_OK);
    const size_t sizes[] = {0, 1, 1000, 524288, 524289, 5000001};
    unsigned char *from = malloc(6000000);
    unsigned char *to = malloc(6000000);
    assert_true(from != NULL && to != NULL);
    for (size_t i = 0; i < 6000000; i++)
        from[i] = (unsigned char)(i * 7 + i / 255);
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        memset(to, 0xee, sizes[s] + 10);
        device->table->copy(stream, to + 3, from + 1, sizes[s]);
        device->table->event_record(event, stream);
        device->table->event_wait(stream, event);
        assert_int_equal(device->table->stream_synchronize(stream, NULL), NOSA_OK);
        assert_true(device->table->event_done(event));
        assert_true(to[2] == 0xee && to[3 + sizes[s]] == 0xee);
        assert_int_equal(memcmp(to + 3, from + 1, sizes[s]), 0);
        device->table->clear(stream, to + 3, sizes[s]);
        assert_true(to[2] == 0xee && to[3 + sizes[s]] == 0xee);
        for (size_t i = 0; i < sizes[s]; i++)
            if (to[3 + i] != 0)
                fail_msg("byte %zu of %zu is not cleared", i, sizes[s]);
    }
    free(from);
    free(to);
    device->table->event_destroy(event);
    device->table->stream_destroy(stream);
    device->table->destroy(device);
}

static void test_reserve_counts_what_it_takes(void **state)
{
    (void)state;
    const struct nosa_step_limits limits = {.rows_max = 64,
                                            .seqs_max = 2,
                                            .context_max = 1024,
                                            .n_heads = 4,
                                            .n_kv_heads = 2,
                                            .head_dim = 32,
                                            .k_max = 256,
                                            .n_max = 512,
                                            .topk_max = 8,
                                            .vocab_max = 1000,
                                            .windows_per_block = 4};
    struct nosa_device *device = device_create(2, NOSA_CPU_ISA_BEST);
    size_t bytes = 0;
    assert_int_equal(device->table->reserve(device, &limits, &bytes, NULL), NOSA_OK);
    assert_true(bytes >= 2 * 4096);
    device->table->destroy(device);
}

/* ---- packing ---- */

/* Value of (column, i) of a packed weight. */
static float packed_value(const struct nosa_weight *weight, int32_t column, int32_t i)
{
    size_t panel = (size_t)column / 32 *
                   nosa_weight_packed_bytes(weight->format, NOSA_PANEL_COLUMNS, weight->k);
    const char *data = (const char *)weight->data + panel;
    int64_t lane = column % 32;
    if (weight->format == NOSA_WEIGHT_BF16)
        return nosa_dtype_load(NOSA_DTYPE_BF16, data, ((int64_t)(i / 2) * 32 + lane) * 2 + i % 2);
    return nosa_dtype_load(weight->format == NOSA_WEIGHT_F32 ? NOSA_DTYPE_F32 : NOSA_DTYPE_F16,
                           data, (int64_t)i * 32 + lane);
}

/* Element of the source: small integers, exact in every type, distinct nearby. */
static float source_value(int64_t row, int64_t i)
{
    return (float)((row * 31 + i * 7) % 251 - 125);
}

static void *source_create(enum nosa_dtype type, int32_t rows, int64_t stride)
{
    void *source = malloc((size_t)rows * (size_t)stride * 4);
    assert_non_null(source);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < stride; i++) {
            int64_t at = row * stride + i;
            float value = source_value(row, i);
            if (type == NOSA_DTYPE_F32) {
                ((float *)source)[at] = value;
            } else if (type == NOSA_DTYPE_BF16) {
                ((uint16_t *)source)[at] = nosa_f32_to_bf16(value);
            } else {
                _Float16 half = (_Float16)value;
                memcpy((uint16_t *)source + at, &half, sizeof half);
            }
        }
    return source;
}

static struct nosa_weight weight_create(struct nosa_device *device, enum nosa_weight_format format,
                                        int32_t n, int32_t k)
{
    struct nosa_weight weight = {.format = format, .n = n, .k = k};
    weight.bytes = nosa_weight_packed_bytes(format, n, k);
    assert_int_equal(
        device->table->memory_alloc(device, NOSA_MEMORY_DEVICE, weight.bytes, &weight.data, NULL),
        NOSA_OK);
    return weight;
}

/* Two sources after one another (as q and k of one product are), from input 5 of rows of stride
 * k + 11; columns behind them and the padding stay zero. */
static void check_rows(struct nosa_device *device, enum nosa_weight_format format,
                       enum nosa_dtype type, int32_t rows, int32_t k)
{
    int64_t stride = k + 11;
    struct nosa_weight weight = weight_create(device, format, rows + 3, k);
    void *source = source_create(type, rows, stride);
    int32_t split = rows / 3;
    size_t skip = (size_t)split * (size_t)stride * (size_t)nosa_dtype_bytes(type);
    assert_int_equal(device->table->weight_pack(device, &weight, NOSA_PLACE_ROWS, 0, split, stride,
                                                5, type, source, NULL),
                     NOSA_OK);
    assert_int_equal(device->table->weight_pack(device, &weight, NOSA_PLACE_ROWS, split,
                                                rows - split, stride, 5, type,
                                                (char *)source + skip, NULL),
                     NOSA_OK);
    int32_t padded = (rows + 3 + 31) / 32 * 32;
    int32_t k_padded = format == NOSA_WEIGHT_BF16 ? (k + 1) / 2 * 2 : k;
    for (int32_t column = 0; column < padded; column++)
        for (int32_t i = 0; i < k_padded; i++) {
            float expected = column < rows && i < k ? source_value(column, i + 5) : 0.0f;
            assert_true(packed_value(&weight, column, i) == expected);
        }
    free(source);
    device->table->memory_free(device, NOSA_MEMORY_DEVICE, weight.data, weight.bytes);
}

static void check_gated(struct nosa_device *device, enum nosa_weight_format format,
                        enum nosa_dtype type, int32_t rows, int32_t k)
{
    struct nosa_weight weight = weight_create(device, format, (rows + 15) / 16 * 32, k);
    void *source = source_create(type, 2 * rows, k);
    size_t half = (size_t)rows * (size_t)k * (size_t)nosa_dtype_bytes(type);
    assert_int_equal(device->table->weight_pack(device, &weight, NOSA_PLACE_GATE, 0, rows, k, 0,
                                                type, source, NULL),
                     NOSA_OK);
    assert_int_equal(device->table->weight_pack(device, &weight, NOSA_PLACE_UP, 0, rows, k, 0, type,
                                                (char *)source + half, NULL),
                     NOSA_OK);
    for (int32_t column = 0; column < weight.n; column++) {
        int32_t row = column / 32 * 16 + column % 16;
        bool up = column % 32 >= 16;
        for (int32_t i = 0; i < k; i++) {
            float expected = row < rows ? source_value(up ? rows + row : row, i) : 0.0f;
            assert_true(packed_value(&weight, column, i) == expected);
        }
    }
    free(source);
    device->table->memory_free(device, NOSA_MEMORY_DEVICE, weight.data, weight.bytes);
}

static void test_weight_pack_places_every_value(void **state)
{
    (void)state;
    struct nosa_device *device = device_create(2, NOSA_CPU_ISA_BEST);
    const int32_t row_counts[] = {1, 15, 16, 17, 32, 33, 100};
    const int32_t ks[] = {1, 2, 31, 32, 33, 63, 64, 200};
    for (int format = 0; format < 3; format++)
        for (int type = 0; type < 3; type++)
            for (size_t r = 0; r < sizeof row_counts / sizeof *row_counts; r++)
                for (size_t k = 0; k < sizeof ks / sizeof *ks; k++) {
                    check_rows(device, (enum nosa_weight_format)format, (enum nosa_dtype)type,
                               row_counts[r], ks[k]);
                    check_gated(device, (enum nosa_weight_format)format, (enum nosa_dtype)type,
                                row_counts[r], ks[k]);
                }
    device->table->destroy(device);
}

static void test_weight_pack_rounds_to_nearest(void **state)
{
    (void)state;
    struct nosa_device *device = device_create(1, NOSA_CPU_ISA_BEST);
    const float source[] = {1.00390625f, 1.01171875f, 65519.0f,   65520.0f,     -1e9f,
                            0x1.8p-25f,  0x1p-25f,    0x1p-14f,   0x1.ffcp-15f, 0x1.ffep-15f,
                            -0x1p-24f,   INFINITY,    0x1.002p0f, 0x1.003p0f,   -0.0f};
    int32_t k = (int32_t)(sizeof source / sizeof *source);
    struct nosa_weight bf16 = weight_create(device, NOSA_WEIGHT_BF16, 1, k);
    struct nosa_weight f16 = weight_create(device, NOSA_WEIGHT_F16, 1, k);
    assert_int_equal(device->table->weight_pack(device, &bf16, NOSA_PLACE_ROWS, 0, 1, k, 0,
                                                NOSA_DTYPE_F32, source, NULL),
                     NOSA_OK);
    assert_int_equal(device->table->weight_pack(device, &f16, NOSA_PLACE_ROWS, 0, 1, k, 0,
                                                NOSA_DTYPE_F32, source, NULL),
                     NOSA_OK);
    for (int32_t i = 0; i < k; i++) {
        float expected_bf16 = nosa_bf16_to_f32(nosa_f32_to_bf16(source[i]));
        float expected_f16 = (float)(_Float16)source[i];
        float got_bf16 = packed_value(&bf16, 0, i);
        float got_f16 = packed_value(&f16, 0, i);
        assert_memory_equal(&got_bf16, &expected_bf16, sizeof got_bf16);
        assert_memory_equal(&got_f16, &expected_f16, sizeof got_f16);
    }
    device->table->memory_free(device, NOSA_MEMORY_DEVICE, bf16.data, bf16.bytes);
    device->table->memory_free(device, NOSA_MEMORY_DEVICE, f16.data, f16.bytes);
    device->table->destroy(device);
}

static void test_weight_pack_refuses_what_does_not_fit(void **state)
{
    (void)state;
    struct nosa_device *device = device_create(1, NOSA_CPU_ISA_BEST);
    struct nosa_weight weight = weight_create(device, NOSA_WEIGHT_F32, 40, 8);
    float source[64 * 8] = {0};
    const struct {
        enum nosa_weight_placement placement;
        int32_t first, rows;
        int64_t stride, k_first;
    } wrong[] = {
        {NOSA_PLACE_ROWS, 0, 41, 8, 0}, {NOSA_PLACE_ROWS, 39, 2, 8, 0},
        {NOSA_PLACE_ROWS, -1, 1, 8, 0}, {NOSA_PLACE_ROWS, 0, -1, 8, 0},
        {NOSA_PLACE_ROWS, 0, 1, 7, 0},  {NOSA_PLACE_ROWS, 0, 1, 8, 1},
        {NOSA_PLACE_ROWS, 0, 1, 8, -1}, {NOSA_PLACE_GATE, 0, 17, 8, 0},
        {NOSA_PLACE_UP, 16, 1, 8, 0},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct nosa_error error = {0};
        assert_int_equal(device->table->weight_pack(
                             device, &weight, wrong[i].placement, wrong[i].first, wrong[i].rows,
                             wrong[i].stride, wrong[i].k_first, NOSA_DTYPE_F32, source, &error),
                         NOSA_INVALID_ARGUMENT);
        assert_true(error.text[0] != '\0');
    }
    device->table->memory_free(device, NOSA_MEMORY_DEVICE, weight.data, weight.bytes);
    device->table->destroy(device);
}

/* ---- identity ---- */

static void test_describe_names_instruction_set_and_threads(void **state)
{
    (void)state;
    struct nosa_device *device = device_create(2, NOSA_CPU_ISA_PORTABLE);
    char text[128];
    device->table->describe(device, text, sizeof text);
    assert_non_null(strstr(text, ", portable, 2 threads"));
    char tiny[4];
    device->table->describe(device, tiny, sizeof tiny);
    assert_int_equal(strlen(tiny), 3);
    device->table->destroy(device);
}

static void test_fingerprint_is_the_same_on_every_instruction_set(void **state)
{
    (void)state;
    char first[64];
    char text[64];
    struct nosa_device *device = device_create(1, NOSA_CPU_ISA_PORTABLE);
    device->table->fingerprint(device, first, sizeof first);
    assert_non_null(strstr(first, "cpu"));
    device->table->destroy(device);
    device = device_create(3, NOSA_CPU_ISA_BEST);
    device->table->fingerprint(device, text, sizeof text);
    assert_string_equal(first, text);
    device->table->destroy(device);
}

static void test_cpu_count_is_bounded_by_affinity(void **state)
{
    (void)state;
    cpu_set_t before;
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    int32_t count = nosa_cpu_count();
    assert_true(count >= 1 && count <= CPU_COUNT(&before));
    cpu_set_t one;
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; cpu++)
        if (CPU_ISSET(cpu, &before))
            CPU_SET(cpu, &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    assert_int_equal(nosa_cpu_count(), 1);
    assert_int_equal(sched_setaffinity(0, sizeof before, &before), 0);
}

static void test_create_refuses_what_it_cannot_do(void **state)
{
    (void)state;
    struct nosa_device *device;
    struct nosa_error error = {0};
    struct nosa_cpu_options options = {-1, NOSA_CPU_ISA_BEST};
    assert_int_equal(nosa_cpu_device_create(&options, &device, &error), NOSA_INVALID_ARGUMENT);
    assert_null(device);
    nosa_error_clear(&error);
    options = (struct nosa_cpu_options){1, (enum nosa_cpu_isa)99};
    assert_int_equal(nosa_cpu_device_create(&options, &device, &error), NOSA_UNSUPPORTED);
    assert_null(device);
}

/* The flags of processor 0, a blank on either side of each. */
static void read_processor_flags(char *text, size_t text_bytes)
{
    FILE *file = fopen("/proc/cpuinfo", "r");
    assert_non_null(file);
    text[0] = '\0';
    while (strncmp(text, "flags", 5) != 0)
        assert_non_null(fgets(text, (int)text_bytes, file));
    fclose(file);
    char *end = strchr(text, '\n');
    assert_non_null(end);
    *end = ' ';
}

/* Whether the kernel says that the processor has all that the compiler was told to use. */
static bool has_all(const char *processor_flags, const char *compiler_flags)
{
    static const char *const names[][2] = {{"lzcnt", "abm"}, {"bmi", "bmi1"}};
    char flags[512];
    snprintf(flags, sizeof flags, "%s", compiler_flags);
    for (char *rest, *flag = strtok_r(flags, " ", &rest); flag; flag = strtok_r(NULL, " ", &rest)) {
        if (strncmp(flag, "-march", 6) == 0 || strncmp(flag, "-mprefer", 8) == 0)
            continue;
        assert_int_equal(strncmp(flag, "-m", 2), 0);
        const char *name = flag + 2;
        for (size_t i = 0; i < sizeof names / sizeof *names; i++)
            if (strcmp(name, names[i][0]) == 0)
                name = names[i][1];
        char word[64];
        snprintf(word, sizeof word, " %s ", name);
        if (!strstr(processor_flags, word))
            return false;
    }
    return true;
}

/* Each -m flag of the build is looked for before code compiled with it is taken. */
static void test_isa_available_agrees_with_the_compiler_flags(void **state)
{
    (void)state;
    char flags[16384];
    read_processor_flags(flags, sizeof flags);
    assert_true(nosa_cpu_isa_available(NOSA_CPU_ISA_PORTABLE));
    bool avx2 = has_all(flags, NOSA_CPU_FLAGS_avx2);
    assert_int_equal(nosa_cpu_isa_available(NOSA_CPU_ISA_AVX2), avx2);
    bool avx512 = has_all(flags, NOSA_CPU_FLAGS_avx512);
    assert_int_equal(nosa_cpu_isa_available(NOSA_CPU_ISA_AVX512), avx512);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory_alloc_gives_zeroed_aligned_memory),
        cmocka_unit_test(test_memory_alloc_too_large_is_out_of_memory),
        cmocka_unit_test(test_copy_and_clear_touch_exactly_their_bytes),
        cmocka_unit_test(test_reserve_counts_what_it_takes),
        cmocka_unit_test(test_weight_pack_places_every_value),
        cmocka_unit_test(test_weight_pack_rounds_to_nearest),
        cmocka_unit_test(test_weight_pack_refuses_what_does_not_fit),
        cmocka_unit_test(test_describe_names_instruction_set_and_threads),
        cmocka_unit_test(test_fingerprint_is_the_same_on_every_instruction_set),
        cmocka_unit_test(test_cpu_count_is_bounded_by_affinity),
        cmocka_unit_test(test_create_refuses_what_it_cannot_do),
        cmocka_unit_test(test_isa_available_agrees_with_the_compiler_flags),
    };
    return cmocka_run_group_tests_name("device", tests, NULL, NULL);
}
