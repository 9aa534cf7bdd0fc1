#include "extent_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

const struct nosa_extent_geometry fixture_geometry = {
    .n_records = 3, .record_bytes = 4096, .summary_bytes = 100};

static uint64_t mix(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

static void key_of(uint32_t number, struct nosa_chain_key *key)
{
    for (uint32_t i = 0; i < sizeof key->bytes / 8; i++) {
        uint64_t word = mix((uint64_t)number * 4 + i);
        memcpy(key->bytes + 8 * i, &word, 8);
    }
}

void fixture_block(uint32_t number, struct fixture_block *out)
{
    key_of(number, &out->key);
    key_of(number - 1, &out->parent);
    for (uint32_t i = 0; i < NOSA_BLOCK_TOKENS; i++)
        out->tokens[i] = number * NOSA_BLOCK_TOKENS + i;
}

void fixture_fill(const struct nosa_extent_geometry *geometry, uint32_t number, void *image)
{
    size_t words = nosa_extent_image_bytes(geometry) / 8;
    for (size_t i = 0; i < words; i++) {
        uint64_t word = mix((uint64_t)number << 32 | i);
        memcpy((char *)image + 8 * i, &word, 8);
    }
}

static bool part_is(const struct nosa_extent_geometry *geometry, uint32_t number, size_t offset,
                    const void *data, size_t bytes)
{
    char *image = fixture_pages(nosa_extent_image_bytes(geometry));
    fixture_fill(geometry, number, image);
    bool same = memcmp(image + offset, data, bytes) == 0;
    free(image);
    return same;
}

bool fixture_image_is(const struct nosa_extent_geometry *geometry, uint32_t number,
                      const void *image)
{
    return part_is(geometry, number, 0, image,
                   nosa_extent_summary_offset(geometry, geometry->n_records));
}

bool fixture_record_is(const struct nosa_extent_geometry *geometry, uint32_t number,
                       uint32_t record, const void *data)
{
    return part_is(geometry, number, nosa_extent_record_offset(geometry, record), data,
                   geometry->record_bytes);
}

bool fixture_summaries_are(const struct nosa_extent_geometry *geometry, uint32_t number,
                           const void *data)
{
    return part_is(geometry, number, nosa_extent_summary_offset(geometry, 0), data,
                   (size_t)geometry->n_records * geometry->summary_bytes);
}

void *fixture_pages(size_t bytes)
{
    void *pages = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    assert_non_null(pages);
    memset(pages, 0xa5, bytes);
    return pages;
}

struct nosa_extent_store_options fixture_options(const char *directory, uint32_t n_extents)
{
    struct nosa_extent_store_options options = {
        .directory = directory,
        .bytes = nosa_extent_file_bytes(&fixture_geometry, n_extents),
        .geometry = fixture_geometry,
        .depth = 8,
        .requests_max = 16,
        .deadline_ms = 30000,
    };
    memset(options.identity, 1, sizeof options.identity);
    return options;
}

struct nosa_extent_handle fixture_find(struct nosa_extent_store *store, uint32_t number)
{
    struct fixture_block block;
    fixture_block(number, &block);
    return nosa_extent_store_find(store, &block.key, &block.parent, block.tokens);
}

enum nosa_status fixture_write(struct nosa_extent_store *store, uint64_t token, uint32_t number,
                               void *image, uint64_t use, float value)
{
    struct fixture_block block;
    fixture_block(number, &block);
    struct nosa_extent_write write = {.key = block.key,
                                      .parent = block.parent,
                                      .tokens = block.tokens,
                                      .image = image,
                                      .use = use,
                                      .value = value};
    return nosa_extent_store_write(store, token, &write);
}

struct nosa_extent_completion fixture_wait(struct nosa_extent_store *store, uint64_t token)
{
    struct nosa_extent_completion completion;
    for (int i = 0; i < 100; i++) {
        if (nosa_extent_store_poll(store, &completion, 1, 1000) == 0)
            continue;
        assert_int_equal(completion.token, token);
        return completion;
    }
    fail_msg("no completion of %llu comes", (unsigned long long)token);
    return completion;
}

struct nosa_extent_completion fixture_put(struct nosa_extent_store *store, uint32_t number,
                                          uint64_t use, float value)
{
    const struct nosa_extent_geometry *geometry = &fixture_geometry;
    void *image = fixture_pages(nosa_extent_image_bytes(geometry));
    fixture_fill(geometry, number, image);
    assert_int_equal(fixture_write(store, number, number, image, use, value), NOSA_OK);
    struct nosa_extent_completion completion = fixture_wait(store, number);
    assert_false(completion.buffer_held);
    free(image);
    return completion;
}

enum nosa_extent_result fixture_get(struct nosa_extent_store *store, uint32_t number)
{
    struct nosa_extent_handle handle = fixture_find(store, number);
    if (handle.index == NOSA_EXTENT_NONE)
        return NOSA_EXTENT_CANCELLED;
    void *image = fixture_pages(nosa_extent_image_bytes(&fixture_geometry));
    assert_int_equal(nosa_extent_store_read_image(store, number, handle, image), NOSA_OK);
    struct nosa_extent_completion completion = fixture_wait(store, number);
    assert_false(completion.buffer_held);
    if (completion.result == NOSA_EXTENT_OK) {
        assert_true(fixture_image_is(&fixture_geometry, number, image));
        assert_int_equal(completion.bytes, nosa_extent_image_bytes(&fixture_geometry));
    }
    free(image);
    return completion.result;
}

void fixture_settle(struct nosa_extent_store *store)
{
    struct nosa_extent_store_counters counters;
    struct nosa_extent_completion completion;

    for (int i = 0; i < 1000; i++) {
        nosa_extent_store_poll(store, &completion, 1, 1);
        nosa_extent_store_counters(store, &counters);
        if (nosa_extent_store_pending(store) == 0 && counters.operations_in_flight == 0 &&
            counters.flushes_waiting == 0)
            return;
        usleep(200);
    }
    fail_msg("the store does not settle");
}

void fixture_make_directory(char path[64])
{
    const char *parent = getenv("TMPDIR");
    snprintf(path, 64, "%s/nosa-extent-XXXXXX", parent && strlen(parent) < 40 ? parent : "/tmp");
    assert_non_null(mkdtemp(path));
}

void fixture_remove_directory(const char *path)
{
    char file[256];
    snprintf(file, sizeof file, "%s/%s", path, NOSA_EXTENT_FILE_NAME);
    unlink(file);
    assert_int_equal(rmdir(path), 0);
}
