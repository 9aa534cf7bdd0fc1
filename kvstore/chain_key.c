#include "chain_key.h"

#include <endian.h>

#include "kv_layout.h"

enum nosa_status nosa_chain_key_root(struct nosa_sha256 *hash, const uint8_t identity[32],
                                     const void *salt, size_t salt_bytes,
                                     struct nosa_chain_key *out, struct nosa_error *error)
{
    uint64_t length = htole64((uint64_t)salt_bytes);

    NOSA_TRY(nosa_sha256_update(hash, identity, 32, error));
    NOSA_TRY(nosa_sha256_update(hash, &length, sizeof length, error));
    if (salt_bytes > 0)
        NOSA_TRY(nosa_sha256_update(hash, salt, salt_bytes, error));
    return nosa_sha256_final(hash, out->bytes, error);
}

enum nosa_status nosa_chain_key_next(struct nosa_sha256 *hash, const struct nosa_chain_key *parent,
                                     const uint32_t *tokens, struct nosa_chain_key *out,
                                     struct nosa_error *error)
{
    uint32_t ids[NOSA_BLOCK_TOKENS];

    for (int32_t i = 0; i < NOSA_BLOCK_TOKENS; i++)
        ids[i] = htole32(tokens[i]);
    NOSA_TRY(nosa_sha256_update(hash, parent->bytes, sizeof parent->bytes, error));
    NOSA_TRY(nosa_sha256_update(hash, ids, sizeof ids, error));
    return nosa_sha256_final(hash, out->bytes, error);
}
