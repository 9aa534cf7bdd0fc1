/*
 * Names of prefixes: a chain of SHA-256 over blocks of 64 token ids.
 *
 *   root      = SHA-256(identity [32] || salt bytes as uint64 || salt)
 *   key of b  = SHA-256(key of b - 1, or root || 64 token ids as uint32)
 *
 * Integers are little-endian, so that a key means the same on every machine and on disk. A key
 * names the tokens of its block and of all blocks before it, the salt and the identity.
 */
#ifndef NOSA_KVSTORE_CHAIN_KEY_H
#define NOSA_KVSTORE_CHAIN_KEY_H

#include <stddef.h>
#include <stdint.h>

#include "base/hash.h"
#include "base/status.h"

#define NOSA_CHAIN_KEY_BYTES 32

struct nosa_chain_key {
    uint8_t bytes[NOSA_CHAIN_KEY_BYTES];
};

_Static_assert(NOSA_CHAIN_KEY_BYTES == NOSA_SHA256_SIZE, "a chain key is a SHA-256 digest");
_Static_assert(sizeof(struct nosa_chain_key) == 32, "arrays of keys have no padding");

/* `hash` is the caller's, started and between two hashes. NOSA_INTERNAL if libcrypto fails. */
enum nosa_status nosa_chain_key_root(struct nosa_sha256 *hash, const uint8_t identity[32],
                                     const void *salt, size_t salt_bytes,
                                     struct nosa_chain_key *out, struct nosa_error *error);
/* `tokens` holds the 64 ids of the block; `out` may not be `parent`. */
enum nosa_status nosa_chain_key_next(struct nosa_sha256 *hash, const struct nosa_chain_key *parent,
                                     const uint32_t *tokens, struct nosa_chain_key *out,
                                     struct nosa_error *error);

#endif
