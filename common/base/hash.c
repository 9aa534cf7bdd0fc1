#include "base/hash.h"

#include <openssl/evp.h>
#include <xxhash.h>

uint64_t nosa_hash64(const void *data, size_t size, uint64_t seed)
{
    return XXH3_64bits_withSeed(data, size, seed);
}

static enum nosa_status set_crypto_error(struct nosa_error *error, const char *call)
{
    return nosa_error_set(error, NOSA_INTERNAL, "SHA-256: %s failed in libcrypto", call);
}

enum nosa_status nosa_sha256(const void *data, size_t size, uint8_t digest[NOSA_SHA256_SIZE],
                             struct nosa_error *error)
{
    if (EVP_Digest(data, size, digest, NULL, EVP_sha256(), NULL) != 1)
        return set_crypto_error(error, "EVP_Digest");
    return NOSA_OK;
}

enum nosa_status nosa_sha256_init(struct nosa_sha256 *hash, struct nosa_error *error)
{
    hash->context = EVP_MD_CTX_new();
    if (!hash->context)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "SHA-256: no memory for a context");
    if (EVP_DigestInit_ex(hash->context, EVP_sha256(), NULL) != 1)
        return set_crypto_error(error, "EVP_DigestInit_ex");
    return NOSA_OK;
}

enum nosa_status nosa_sha256_update(struct nosa_sha256 *hash, const void *data, size_t size,
                                    struct nosa_error *error)
{
    NOSA_ASSERT(hash->context);
    if (EVP_DigestUpdate(hash->context, data, size) != 1)
        return set_crypto_error(error, "EVP_DigestUpdate");
    return NOSA_OK;
}

enum nosa_status nosa_sha256_final(struct nosa_sha256 *hash, uint8_t digest[NOSA_SHA256_SIZE],
                                   struct nosa_error *error)
{
    NOSA_ASSERT(hash->context);
    if (EVP_DigestFinal_ex(hash->context, digest, NULL) != 1)
        return set_crypto_error(error, "EVP_DigestFinal_ex");
    if (EVP_DigestInit_ex(hash->context, EVP_sha256(), NULL) != 1)
        return set_crypto_error(error, "EVP_DigestInit_ex");
    return NOSA_OK;
}

void nosa_sha256_free(struct nosa_sha256 *hash)
{
    EVP_MD_CTX_free(hash->context);
    hash->context = NULL;
}

void nosa_sha256_text(const uint8_t digest[NOSA_SHA256_SIZE], char text[NOSA_SHA256_TEXT_SIZE])
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < NOSA_SHA256_SIZE; i++) {
        text[2 * i] = digits[digest[i] >> 4];
        text[2 * i + 1] = digits[digest[i] & 15];
    }
    text[2 * NOSA_SHA256_SIZE] = '\0';
}
