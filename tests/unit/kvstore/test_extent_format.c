/* The disk format: places, superblock and header, and what makes each of them void. */
#include "extent_format.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "extent_fixture.h"

static void test_places_do_not_overlap(void **state)
{
    (void)state;
    static const struct nosa_extent_geometry geometries[] = {
        {1, 4096, 0}, {3, 4096, 100}, {64, 32768, 2368}, {240, 16384, 1000}, {640, 8192, 1}};
    for (size_t g = 0; g < sizeof geometries / sizeof *geometries; g++) {
        const struct nosa_extent_geometry *geometry = &geometries[g];
        uint64_t header = nosa_extent_header_bytes(geometry);
        uint64_t image = nosa_extent_image_bytes(geometry);
        assert_int_equal(header % 4096 + image % 4096, 0);
        assert_true(header >= 448 + 16 * (uint64_t)geometry->n_records);
        assert_true(image >= geometry->n_records *
                                 ((uint64_t)geometry->record_bytes + geometry->summary_bytes));
        assert_int_equal(nosa_extent_header_offset(geometry, 0), 4096);
        for (uint32_t i = 1; i < 200; i++) {
            bool first = i % NOSA_EXTENT_SEGMENT == 0;
            uint64_t before = nosa_extent_payload_offset(geometry, i - 1) + image;
            if (first) {
                assert_int_equal(nosa_extent_header_offset(geometry, i), before);
            } else {
                assert_int_equal(nosa_extent_payload_offset(geometry, i), before);
                assert_int_equal(nosa_extent_header_offset(geometry, i),
                                 nosa_extent_header_offset(geometry, i - 1) + header);
            }
        }
    }
}

static void test_count_in_inverts_file_bytes(void **state)
{
    (void)state;
    const struct nosa_extent_geometry *geometry = &fixture_geometry;
    for (uint32_t n = 1; n < 300; n++) {
        uint64_t bytes = nosa_extent_file_bytes(geometry, n);
        assert_int_equal(nosa_extent_count_in(geometry, bytes), n);
        assert_int_equal(nosa_extent_count_in(geometry, bytes - 1), n - 1);
        assert_int_equal(
            nosa_extent_payload_offset(geometry, n - 1) + nosa_extent_image_bytes(geometry), bytes);
    }
    assert_int_equal(nosa_extent_count_in(geometry, 0), 0);
    assert_int_equal(nosa_extent_count_in(geometry, 4096), 0);
    assert_int_equal(nosa_extent_count_in(geometry, UINT64_MAX), INT32_MAX);
}

static void test_superblock_check_tells_files_apart(void **state)
{
    (void)state;
    struct nosa_extent_superblock superblock = {0};
    struct nosa_extent_geometry other = fixture_geometry;
    assert_int_equal(nosa_extent_superblock_check(&superblock, &fixture_geometry),
                     NOSA_EXTENT_FILE_BLANK);
    nosa_extent_superblock_make(&superblock, &fixture_geometry, 1);
    assert_int_equal(nosa_extent_superblock_check(&superblock, &fixture_geometry),
                     NOSA_EXTENT_FILE_OURS);
    uint64_t id = superblock.layout_id;
    other.n_records++;
    assert_int_equal(nosa_extent_superblock_check(&superblock, &other), NOSA_EXTENT_FILE_OTHER);
    nosa_extent_superblock_make(&superblock, &fixture_geometry, 1);
    assert_true(superblock.layout_id != id);
    uint8_t *bytes = (uint8_t *)&superblock;
    for (size_t i = 0; i < sizeof superblock; i++) {
        bytes[i] ^= 0x10;
        enum nosa_extent_file_kind kind =
            nosa_extent_superblock_check(&superblock, &fixture_geometry);
        assert_int_equal(kind, i < 8 ? NOSA_EXTENT_FILE_FOREIGN : NOSA_EXTENT_FILE_DAMAGED);
        bytes[i] ^= 0x10;
    }
}

static void test_header_valid_only_whole_and_in_place(void **state)
{
    (void)state;
    struct nosa_extent_geometry geometry = {300, 4096, 8};
    struct nosa_extent_superblock superblock = {0}, later;
    uint64_t bytes = nosa_extent_header_bytes(&geometry);
    struct nosa_extent_header *header = fixture_pages(bytes);
    assert_int_equal(bytes, 8192);
    nosa_extent_superblock_make(&superblock, &geometry, 1);
    later = superblock;
    nosa_extent_superblock_make(&later, &geometry, 2);
    memset(header, 0, bytes);
    assert_false(nosa_extent_header_valid(header, bytes, &superblock, 0));
    header->n_records = geometry.n_records;
    header->layout_id = superblock.layout_id;
    header->number = 7;
    header->sums[599] = 1;
    nosa_extent_header_seal(header, bytes);
    assert_true(nosa_extent_header_valid(header, bytes, &superblock, 7));
    assert_false(nosa_extent_header_valid(header, bytes, &superblock, 8));
    assert_false(nosa_extent_header_valid(header, bytes, &later, 7));
    for (size_t i = 0; i < bytes; i++) {
        ((uint8_t *)header)[i] ^= 1;
        assert_false(nosa_extent_header_valid(header, bytes, &superblock, 7));
        ((uint8_t *)header)[i] ^= 1;
    }
    assert_true(nosa_extent_header_valid(header, bytes, &superblock, 7));
    free(header);
}

/* A file of one version must be readable by the next: these bytes may not change unnoticed. */
static void test_header_bytes_are_fixed(void **state)
{
    (void)state;
    struct nosa_extent_superblock superblock = {0};
    struct nosa_extent_header *header = fixture_pages(4096);
    nosa_extent_superblock_make(&superblock, &fixture_geometry, 0x1122334455667788);
    assert_memory_equal(&superblock, "NOSA-KV\n\1\0\0\0\x40\0\0\0", 16);
    assert_memory_equal((uint8_t *)&superblock + 24,
                        "\3\0\0\0\0\x10\0\0\x64\0\0\0\x40\0\0\0\x88\x77\x66\x55\x44\x33\x22\x11",
                        24);
    memset(header, 0, 4096);
    header->n_records = 3;
    header->number = 5;
    header->generation = 6;
    header->value = 1.0F;
    header->tokens[63] = 0x01020304;
    nosa_extent_header_seal(header, 4096);
    assert_memory_equal(header, "NOSAEXT\n\1\0\0\0\3\0\0\0", 16);
    assert_memory_equal((uint8_t *)header + 24, "\5\0\0\0\0\0\0\0\6\0\0\0\0\0\0\0", 16);
    assert_memory_equal((uint8_t *)header + 56, "\0\0\x80\x3f", 4);
    assert_memory_equal((uint8_t *)header + 412, "\4\3\2\1", 4);
    assert_true(header->checksum == UINT64_C(0x6f92f7b9ba7d55ce));
    free(header);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_places_do_not_overlap),
        cmocka_unit_test(test_count_in_inverts_file_bytes),
        cmocka_unit_test(test_superblock_check_tells_files_apart),
        cmocka_unit_test(test_header_valid_only_whole_and_in_place),
        cmocka_unit_test(test_header_bytes_are_fixed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
