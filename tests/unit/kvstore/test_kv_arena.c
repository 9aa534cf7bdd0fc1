/* The arrays of one rank on the CPU device: sizes, alignment, zeroed contents and slots, refused
 * geometries; and with a device that lacks memory, nothing is left behind. */
#include "kv_store.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cpu_device.h"

/* The CPU device, except that memory is counted and the Nth request of it can be refused. */
struct limited_device {
    struct nosa_device device; /* first: what the arena gets */
    struct nosa_device_table table;
    struct nosa_device *cpu;
    int32_t allocations_until_failure; /* negative: none fails */
    size_t bytes_held[2];              /* by kind */
    size_t bytes_most[2];
};

static enum nosa_status limited_alloc(struct nosa_device *device, enum nosa_memory_kind kind,
                                      size_t bytes, void **out, struct nosa_error *error)
{
    struct limited_device *limited = (struct limited_device *)device;
    if (limited->allocations_until_failure >= 0 && limited->allocations_until_failure-- == 0)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for %zu bytes", bytes);
    NOSA_TRY(limited->cpu->table->memory_alloc(limited->cpu, kind, bytes, out, error));
    limited->bytes_held[kind] += bytes;
    if (limited->bytes_most[kind] < limited->bytes_held[kind])
        limited->bytes_most[kind] = limited->bytes_held[kind];
    return NOSA_OK;
}

static void limited_free(struct nosa_device *device, enum nosa_memory_kind kind, void *memory,
                         size_t bytes)
{
    struct limited_device *limited = (struct limited_device *)device;
    if (memory)
        limited->bytes_held[kind] -= bytes;
    limited->cpu->table->memory_free(limited->cpu, kind, memory, bytes);
}

static enum nosa_status limited_stream_create(struct nosa_device *device, struct nosa_stream **out,
                                              struct nosa_error *error)
{
    struct nosa_device *cpu = ((struct limited_device *)device)->cpu;
    return cpu->table->stream_create(cpu, out, error);
}

static struct limited_device limited;

static int create_device(void **state)
{
    (void)state;
    struct nosa_cpu_options options = {.threads = 1, .isa = NOSA_CPU_ISA_PORTABLE};
    memset(&limited, 0, sizeof limited);
    if (nosa_cpu_device_create(&options, &limited.cpu, NULL) != NOSA_OK)
        return 1;
    limited.table = *limited.cpu->table;
    limited.table.memory_alloc = limited_alloc;
    limited.table.memory_free = limited_free;
    limited.table.stream_create = limited_stream_create;
    limited.device.table = &limited.table;
    limited.allocations_until_failure = -1;
    return 0;
}

static int destroy_device(void **state)
{
    (void)state;
    limited.cpu->table->destroy(limited.cpu);
    return 0;
}

static struct nosa_kv_geometry geometry_of(int32_t head_dim, int32_t stride, enum nosa_dtype type)
{
    return (struct nosa_kv_geometry){.n_layers = 3,
                                     .n_kv_heads = 2,
                                     .head_dim = head_dim,
                                     .kernel_size = 2 * stride,
                                     .kernel_stride = stride,
                                     .type = type};
}

static bool all_zero(const void *memory, size_t bytes)
{
    const char *text = memory;
    for (size_t i = 0; i < bytes; i++)
        if (text[i])
            return false;
    return true;
}

static enum nosa_status create_arena(struct nosa_device *device,
                                     const struct nosa_kv_geometry *geometry, int32_t n_blocks,
                                     struct nosa_kv_arena *out, struct nosa_error *error)
{
    struct nosa_kv_arena_options options = {.geometry = *geometry, .n_blocks = n_blocks};
    return nosa_kv_arena_create(device, &options, out, error);
}

static void test_create_takes_what_block_bytes_says(void **state)
{
    (void)state;
    /* K and V, compressed keys, window biases, token biases, slot number; 3 layers x 2 heads. */
    static const struct {
        int32_t head_dim, stride;
        enum nosa_dtype type;
        size_t block_bytes;
    } cases[] = {
        {16, 16, NOSA_DTYPE_BF16, 6 * (2 * 64 * 16 * 2 + 4 * 16 * 2 + 4 * 4 + 64 * 4 + 4)},
        {128, 16, NOSA_DTYPE_BF16, 6 * (2 * 64 * 128 * 2 + 4 * 128 * 2 + 4 * 4 + 64 * 4 + 4)},
        {64, 4, NOSA_DTYPE_F32, 6 * (2 * 64 * 64 * 4 + 16 * 64 * 4 + 16 * 4 + 64 * 4 + 4)},
        {256, 64, NOSA_DTYPE_F32, 6 * (2 * 64 * 256 * 4 + 1 * 256 * 4 + 1 * 4 + 64 * 4 + 4)},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct nosa_kv_geometry geometry =
            geometry_of(cases[i].head_dim, cases[i].stride, cases[i].type);
        struct nosa_kv_arena arena;
        assert_int_equal(nosa_kv_block_bytes(&geometry), cases[i].block_bytes);
        assert_int_equal(nosa_kv_record_bytes(&geometry) % 4096, 0);
        assert_int_equal(create_arena(&limited.device, &geometry, 5, &arena, NULL), NOSA_OK);
        assert_int_equal(arena.bytes, 5 * cases[i].block_bytes);
        assert_int_equal(limited.bytes_held[NOSA_MEMORY_DEVICE], arena.bytes);
        assert_int_equal(limited.bytes_held[NOSA_MEMORY_HOST_PINNED], 0);
        assert_int_equal((uintptr_t)arena.view.records % 4096, 0);
        assert_true(all_zero(arena.view.records, 30 * nosa_kv_record_bytes(&geometry)));
        assert_true(
            all_zero(arena.view.compressed_keys, 30 * nosa_kv_compressed_key_bytes(&geometry)));
        assert_true(all_zero(arena.view.token_bias, sizeof(float) * 30 * 64));
        for (int32_t record = 0; record < 30; record++)
            assert_int_equal(arena.view.record_slot[record], record);
        nosa_kv_arena_destroy(&arena);
        assert_int_equal(limited.bytes_held[NOSA_MEMORY_DEVICE], 0);
        nosa_kv_arena_destroy(&arena); /* an arena of zero bytes */
    }
}

/* Writes every record and summary of one (layer, head, block) at a time and reads all others. */
static void test_records_and_summaries_do_not_overlap(void **state)
{
    (void)state;
    struct nosa_kv_geometry geometry = geometry_of(32, 16, NOSA_DTYPE_BF16);
    struct nosa_kv_arena arena;
    assert_int_equal(create_arena(&limited.device, &geometry, 4, &arena, NULL), NOSA_OK);
    size_t bytes = nosa_kv_record_bytes(&geometry);
    for (int32_t i = 0; i < 24; i++)
        memset(nosa_kv_record(&arena.view, i / 8, i / 4 % 2, i % 4), i + 1, bytes);
    for (int32_t i = 0; i < 24; i++) {
        const char *record = nosa_kv_record(&arena.view, i / 8, i / 4 % 2, i % 4);
        for (size_t j = 0; j < bytes; j++)
            assert_int_equal(record[j], i + 1);
    }
    nosa_kv_arena_destroy(&arena);
}

static void test_create_with_each_allocation_failing_holds_nothing(void **state)
{
    (void)state;
    struct nosa_kv_geometry geometry = geometry_of(64, 16, NOSA_DTYPE_BF16);
    for (int32_t n = 0; n < 6; n++) {
        struct nosa_kv_arena arena;
        struct nosa_error error = {0};
        limited.allocations_until_failure = n;
        assert_int_equal(create_arena(&limited.device, &geometry, 7, &arena, &error),
                         NOSA_OUT_OF_MEMORY);
        assert_non_null(strstr(error.text, "KV arena of 7 blocks"));
        assert_int_equal(limited.bytes_held[NOSA_MEMORY_DEVICE], 0);
        assert_int_equal(limited.bytes_held[NOSA_MEMORY_HOST_PINNED], 0);
        assert_null(arena.view.records);
    }
    limited.allocations_until_failure = -1;
}

static void test_create_refuses_a_geometry_outside_the_bounds(void **state)
{
    (void)state;
    struct nosa_kv_geometry good = geometry_of(64, 16, NOSA_DTYPE_BF16);
    struct nosa_kv_geometry bad[9];
    for (size_t i = 0; i < 9; i++)
        bad[i] = good;
    bad[0].n_layers = 0;
    bad[1].n_kv_heads = -1;
    bad[2].head_dim = 8;
    bad[3].head_dim = 272;
    bad[4].head_dim = 72;
    bad[5].kernel_stride = 0;
    bad[6].kernel_stride = 24;
    bad[6].kernel_size = 48;
    bad[7].kernel_size = 64;
    bad[8].n_layers = INT32_MAX;
    for (size_t i = 0; i < 9; i++) {
        struct nosa_kv_arena arena;
        struct nosa_error error = {0};
        assert_int_equal(create_arena(&limited.device, &bad[i], 4, &arena, &error),
                         NOSA_INVALID_ARGUMENT);
        assert_true(strlen(error.text) > 0);
    }
    struct nosa_kv_arena arena;
    assert_int_equal(create_arena(&limited.device, &good, 0, &arena, NULL), NOSA_INVALID_ARGUMENT);
    good.type = NOSA_DTYPE_F16;
    assert_int_equal(create_arena(&limited.device, &good, 4, &arena, NULL), NOSA_UNSUPPORTED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_create_takes_what_block_bytes_says),
        cmocka_unit_test(test_records_and_summaries_do_not_overlap),
        cmocka_unit_test(test_create_with_each_allocation_failing_holds_nothing),
        cmocka_unit_test(test_create_refuses_a_geometry_outside_the_bounds),
    };
    return cmocka_run_group_tests(tests, create_device, destroy_device);
}
