/* Chain keys that collide: the root is exact, a block adds three bits of its tokens and forgets
 * all blocks before it. The KV store must still share equal prefixes only. */
#include "chain_key.h"

#include <string.h>

#include "kv_layout.h"

enum nosa_status nosa_chain_key_root(struct nosa_sha256 *hash, const uint8_t identity[32],
                                     const void *salt, size_t salt_bytes,
                                     struct nosa_chain_key *out, struct nosa_error *error)
{
    (void)hash;
    (void)identity;
    if (salt_bytes > 16)
        return nosa_error_set(error, NOSA_INTERNAL, "salt of %zu bytes", salt_bytes);
    memset(out, 0, sizeof *out);
    out->bytes[8] = (uint8_t)salt_bytes;
    if (salt_bytes > 0)
        memcpy(out->bytes + 9, salt, salt_bytes);
    return NOSA_OK;
}

enum nosa_status nosa_chain_key_next(struct nosa_sha256 *hash, const struct nosa_chain_key *parent,
                                     const uint32_t *tokens, struct nosa_chain_key *out,
                                     struct nosa_error *error)
{
    (void)hash;
    (void)error;
    uint32_t sum = 0;
    for (int32_t i = 0; i < NOSA_BLOCK_TOKENS; i++)
        sum += tokens[i];
    *out = *parent;
    out->bytes[0] = (uint8_t)(sum & 7);
    out->bytes[1] = (uint8_t)(parent->bytes[1] + 1); /* depth */
    return NOSA_OK;
}
