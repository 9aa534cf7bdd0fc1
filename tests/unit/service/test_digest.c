#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/hash.h"
#include "service/digest.h"

#define HASHES 64

static struct nosa_digest *make(int32_t first, int32_t host, int32_t nvme)
{
    struct nosa_digest *digest;
    const int32_t blocks[] = {first, host, nvme};
    assert_int_equal(nosa_digest_create(&digest, blocks, NULL), NOSA_OK);
    return digest;
}

/* What a reader believes, by tier. */
struct reader {
    struct nosa_digest_cursor cursor;
    bool has[NOSA_DIGEST_TIERS][HASHES];
    int resets;
};

/* Reads all there is, `max` at a time; a batch may say a thing once only. */
static void follow(struct nosa_digest *digest, struct reader *reader, size_t max)
{
    struct nosa_digest_change changes[HASHES];
    struct nosa_digest_batch batch;
    do {
        bool said[NOSA_DIGEST_TIERS][HASHES] = {{false}};
        nosa_digest_read(digest, &reader->cursor, changes, max, &batch);
        assert_true(batch.n <= max);
        if (batch.reset) {
            memset(reader->has, 0, sizeof reader->has);
            reader->resets++;
        }
        for (size_t i = 0; i < batch.n; i++) {
            assert_true(changes[i].hash < HASHES);
            assert_false(said[changes[i].tier][changes[i].hash]);
            said[changes[i].tier][changes[i].hash] = true;
            reader->has[changes[i].tier][changes[i].hash] = changes[i].added;
        }
    } while (batch.partial);
}

static void check(struct nosa_digest *digest, const struct reader *reader)
{
    for (int tier = 0; tier < NOSA_DIGEST_TIERS; tier++) {
        size_t count = 0;
        for (int hash = 0; hash < HASHES; hash++)
            count += reader->has[tier][hash];
        assert_int_equal(count, nosa_digest_count(digest, tier));
    }
    for (uint64_t hash = 0; hash < HASHES; hash++) {
        int tiers = 0;
        for (int tier = 0; tier < NOSA_DIGEST_TIERS; tier++)
            tiers += reader->has[tier][hash];
        assert_int_equal(tiers, nosa_digest_known(digest, &hash, 1));
    }
}

static void test_chain_is_as_published(void **state)
{
    (void)state;
    uint32_t tokens[128];
    uint64_t hashes[2];
    for (uint32_t i = 0; i < 128; i++)
        tokens[i] = i * 7;
    nosa_digest_chain(nosa_digest_root("salt", 4), tokens, 2, hashes);
    uint64_t first = nosa_hash64(tokens, 256, nosa_hash64("salt", 4, 0));
    assert_true(hashes[0] == first);
    assert_true(hashes[1] == nosa_hash64(tokens + 64, 256, first));
    assert_true(nosa_digest_root("", 0) == nosa_hash64("", 0, 0));
}

static void test_touch_spills_the_oldest_down_and_out(void **state)
{
    (void)state;
    struct nosa_digest *digest = make(2, 0, 2);
    for (uint64_t hash = 0; hash < 5; hash++)
        nosa_digest_touch(digest, &hash, 1);
    struct reader reader = {0};
    follow(digest, &reader, 3);
    assert_true(reader.has[0][4] && reader.has[0][3] && reader.has[2][2] && reader.has[2][1]);
    check(digest, &reader);
    uint64_t back = 1;
    nosa_digest_touch(digest, &back, 1);
    follow(digest, &reader, 3);
    assert_true(reader.has[0][1] && reader.has[0][4] && reader.has[2][3]);
    assert_int_equal(reader.resets, 1);
    check(digest, &reader);
    nosa_digest_free(digest);
}

static void test_touch_keeps_beginnings_longest(void **state)
{
    (void)state;
    struct nosa_digest *digest = make(3, 0, 0);
    const uint64_t chain[] = {0, 1, 2}, other = 9;
    nosa_digest_touch(digest, chain, 3);
    nosa_digest_touch(digest, &other, 1);
    assert_int_equal(nosa_digest_known(digest, chain, 3), 2);
    nosa_digest_forget(digest, chain, 1);
    assert_int_equal(nosa_digest_known(digest, chain, 3), 0);
    nosa_digest_free(digest);
}

static void test_read_follows_random_changes(void **state)
{
    (void)state;
    struct nosa_digest *digest = make(10, 7, 13);
    struct reader often = {0}, seldom = {0};
    srand(5);
    for (int i = 0; i < 20000; i++) {
        uint64_t hashes[3] = {(uint64_t)rand() % HASHES};
        hashes[1] = (hashes[0] + 1) % HASHES;
        hashes[2] = (hashes[0] + 2) % HASHES;
        if (rand() % 5 == 0)
            nosa_digest_forget(digest, hashes, 1);
        else
            nosa_digest_touch(digest, hashes, 1 + (size_t)rand() % 3);
        if (rand() % 4 == 0)
            follow(digest, &often, 1 + (size_t)rand() % 20);
    }
    follow(digest, &often, 5);
    check(digest, &often);
    assert_int_equal(often.resets, 1);
    follow(digest, &seldom, 4);
    check(digest, &seldom);
    nosa_digest_free(digest);
}

static void test_read_begins_anew_when_left_behind(void **state)
{
    (void)state;
    struct nosa_digest *digest = make(4, 0, 0);
    struct reader reader = {0};
    follow(digest, &reader, 8);
    for (uint64_t i = 0; i < 20000; i++)
        nosa_digest_touch(digest, &(uint64_t){i % HASHES}, 1);
    follow(digest, &reader, 8);
    assert_int_equal(reader.resets, 2);
    check(digest, &reader);
    nosa_digest_free(digest);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chain_is_as_published),
        cmocka_unit_test(test_touch_spills_the_oldest_down_and_out),
        cmocka_unit_test(test_touch_keeps_beginnings_longest),
        cmocka_unit_test(test_read_follows_random_changes),
        cmocka_unit_test(test_read_begins_anew_when_left_behind),
    };
    return cmocka_run_group_tests_name("digest", tests, NULL, NULL);
}
