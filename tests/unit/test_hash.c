#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/hash.h"

/* Published vectors: FIPS 180-2 appendix B and its empty message. */
static const char digest_abc[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
static const char digest_empty[] =
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
static const char digest_million_a[] =
    "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";

static void check_digest(const uint8_t *digest, const char *expected)
{
    char text[NOSA_SHA256_TEXT_SIZE];
    nosa_sha256_text(digest, text);
    assert_string_equal(text, expected);
}

static void test_sha256_vectors(void **state)
{
    (void)state;
    uint8_t digest[NOSA_SHA256_SIZE];
    assert_int_equal(nosa_sha256("abc", 3, digest, NULL), NOSA_OK);
    check_digest(digest, digest_abc);
    assert_int_equal(nosa_sha256("", 0, digest, NULL), NOSA_OK);
    check_digest(digest, digest_empty);
}

static void test_sha256_update_pieces(void **state)
{
    (void)state;
    struct nosa_sha256 hash;
    uint8_t digest[NOSA_SHA256_SIZE];
    char piece[1000];
    memset(piece, 'a', sizeof piece);
    assert_int_equal(nosa_sha256_init(&hash, NULL), NOSA_OK);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(nosa_sha256_update(&hash, piece, sizeof piece, NULL), NOSA_OK);
    assert_int_equal(nosa_sha256_final(&hash, digest, NULL), NOSA_OK);
    check_digest(digest, digest_million_a);
    /* The context starts anew. */
    assert_int_equal(nosa_sha256_update(&hash, "abc", 3, NULL), NOSA_OK);
    assert_int_equal(nosa_sha256_final(&hash, digest, NULL), NOSA_OK);
    check_digest(digest, digest_abc);
    nosa_sha256_free(&hash);
    assert_null(hash.context);
    nosa_sha256_free(&hash);
}

static void test_hash64_known_values(void **state)
{
    (void)state;
    /* XXH3-64 of the empty input, with seed 0, is part of the algorithm's published tests. */
    assert_true(nosa_hash64("", 0, 0) == UINT64_C(0x2D06800538D394C2));
    assert_true(nosa_hash64(NULL, 0, 0) == UINT64_C(0x2D06800538D394C2));
}

static void test_hash64_depends_on_all(void **state)
{
    (void)state;
    uint8_t data[4096];
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i * 7);
    uint64_t whole = nosa_hash64(data, sizeof data, 0);
    assert_true(whole == nosa_hash64(data, sizeof data, 0));
    assert_true(whole != nosa_hash64(data, sizeof data, 1));
    assert_true(whole != nosa_hash64(data, sizeof data - 1, 0));
    for (size_t i = 0; i < sizeof data; i += 511) {
        data[i] ^= 1;
        assert_true(whole != nosa_hash64(data, sizeof data, 0));
        data[i] ^= 1;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sha256_vectors),
        cmocka_unit_test(test_sha256_update_pieces),
        cmocka_unit_test(test_hash64_known_values),
        cmocka_unit_test(test_hash64_depends_on_all),
    };
    return cmocka_run_group_tests_name("hash", tests, NULL, NULL);
}
