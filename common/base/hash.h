/*
 * Hashes: XXH3-64 for checksums (fast, not against an adversary) and SHA-256 for identities
 * (prefix chains, weights). Any thread; a nosa_sha256 belongs to one thread at a time.
 */
#ifndef NOSA_BASE_HASH_H
#define NOSA_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define NOSA_SHA256_SIZE      32                         /* bytes of a digest */
#define NOSA_SHA256_TEXT_SIZE (2 * NOSA_SHA256_SIZE + 1) /* of its hex text with NUL */

/* XXH3-64 of `size` bytes, by libxxhash, whose value is stable across versions and machines. */
uint64_t nosa_hash64(const void *data, size_t size, uint64_t seed);

/* SHA-256 of `size` bytes in one call. NOSA_INTERNAL or NOSA_OUT_OF_MEMORY if libcrypto fails. */
enum nosa_status nosa_sha256(const void *data, size_t size, uint8_t digest[NOSA_SHA256_SIZE],
                             struct nosa_error *error);

/* SHA-256 over several pieces: init, update any number of times, final; then free. */
struct nosa_sha256 {
    void *context; /* owned: an EVP_MD_CTX; NULL after free */
};

/* Starts a hash; the caller calls nosa_sha256_free whatever happens afterwards. */
enum nosa_status nosa_sha256_init(struct nosa_sha256 *hash, struct nosa_error *error);
enum nosa_status nosa_sha256_update(struct nosa_sha256 *hash, const void *data, size_t size,
                                    struct nosa_error *error);
/* Stores the digest and starts the hash anew, so that one context serves a chain of blocks. */
enum nosa_status nosa_sha256_final(struct nosa_sha256 *hash, uint8_t digest[NOSA_SHA256_SIZE],
                                   struct nosa_error *error);
void nosa_sha256_free(struct nosa_sha256 *hash);

/* Writes the digest as lower-case hex with a NUL. */
void nosa_sha256_text(const uint8_t digest[NOSA_SHA256_SIZE], char text[NOSA_SHA256_TEXT_SIZE]);

#endif
