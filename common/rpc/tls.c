/* The one place of the room that knows OpenSSL: gRPC takes PEM texts and tells nothing about them.
 */
#include "rpc/tls.h"

#include <stdlib.h>
#include <string.h>

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include "base/file.h"
#include "rpc/tls_internal.h"

#define PEM_BYTES_MAX (4u << 20) /* of one file; bundles of CAs have some 200 KiB */

bool nosa_rpc_tls_is_on(const struct nosa_rpc_tls *tls)
{
    return tls && (tls->cert_path || tls->key_path || tls->ca_path);
}

/* An encrypted key must not make OpenSSL ask at the terminal. */
static int no_passphrase(char *buffer, int size, int writing, void *context)
{
    (void)buffer;
    (void)size;
    (void)writing;
    (void)context;
    return -1;
}

static enum nosa_status read_pem(const char *path, char **pem, struct nosa_error *error)
{
    size_t size;
    NOSA_TRY(nosa_file_read(path, PEM_BYTES_MAX, pem, &size, error));
    if (strlen(*pem) != size)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: not a PEM file", path);
    return NOSA_OK;
}

/* The first certificate of a file, and that it and those after it are in date. */
static enum nosa_status check_certificates(const char *path, const char *pem, X509 **first,
                                           struct nosa_error *error)
{
    BIO *bio = BIO_new_mem_buf(pem, -1);
    if (!bio)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory to read %s", path);
    ERR_clear_error();
    enum nosa_status status = NOSA_OK;
    X509 *found = NULL;
    X509 *certificate;
    while (status == NOSA_OK && (certificate = PEM_read_bio_X509(bio, NULL, no_passphrase, NULL))) {
        if (X509_cmp_current_time(X509_get0_notAfter(certificate)) <= 0 && !found)
            status = nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: the certificate has expired",
                                    path);
        else if (X509_cmp_current_time(X509_get0_notBefore(certificate)) > 0 && !found)
            status = nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                    "%s: the certificate is not valid yet", path);
        if (found || status != NOSA_OK)
            X509_free(certificate);
        else
            found = certificate;
    }
    unsigned long code = ERR_peek_last_error();
    bool at_end = ERR_GET_LIB(code) == ERR_LIB_PEM && ERR_GET_REASON(code) == PEM_R_NO_START_LINE;
    ERR_clear_error();
    BIO_free(bio);
    if (status == NOSA_OK && (!found || !at_end))
        status = nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: not a certificate in PEM format",
                                path);
    if (first && status == NOSA_OK)
        *first = found;
    else
        X509_free(found);
    return status;
}

static enum nosa_status check_key(const struct nosa_rpc_tls *tls, const char *pem, X509 *owner,
                                  struct nosa_error *error)
{
    BIO *bio = BIO_new_mem_buf(pem, -1);
    if (!bio)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory to read %s", tls->key_path);
    EVP_PKEY *key = PEM_read_bio_PrivateKey(bio, NULL, no_passphrase, NULL);
    enum nosa_status status = NOSA_OK;
    if (!key)
        status =
            nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                           "%s: not a private key in PEM format without passphrase", tls->key_path);
    else if (X509_check_private_key(owner, key) != 1)
        status = nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s does not belong to %s",
                                tls->key_path, tls->cert_path);
    ERR_clear_error();
    EVP_PKEY_free(key);
    BIO_free(bio);
    return status;
}

static enum nosa_status load(const struct nosa_rpc_tls *tls, struct nosa_rpc_pem *pem,
                             struct nosa_error *error)
{
    if (tls->cert_path) {
        X509 *own = NULL;
        NOSA_TRY(read_pem(tls->cert_path, &pem->cert, error));
        NOSA_TRY(read_pem(tls->key_path, &pem->key, error));
        NOSA_TRY(check_certificates(tls->cert_path, pem->cert, &own, error));
        enum nosa_status status = check_key(tls, pem->key, own, error);
        X509_free(own);
        NOSA_TRY(status);
    }
    if (tls->ca_path) {
        NOSA_TRY(read_pem(tls->ca_path, &pem->ca, error));
        NOSA_TRY(check_certificates(tls->ca_path, pem->ca, NULL, error));
    }
    return NOSA_OK;
}

enum nosa_status nosa_rpc_tls_load(const struct nosa_rpc_tls *tls, bool for_server,
                                   struct nosa_rpc_pem *pem, struct nosa_error *error)
{
    memset(pem, 0, sizeof *pem);
    if (!tls->cert_path != !tls->key_path)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "a TLS certificate and its key are given together: the %s is missing",
                              tls->cert_path ? "key" : "certificate");
    if (for_server && !tls->cert_path)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "a TLS server needs a certificate and its key beside the CA");
    enum nosa_status status = load(tls, pem, error);
    if (status != NOSA_OK)
        nosa_rpc_pem_free(pem);
    return status;
}

void nosa_rpc_pem_free(struct nosa_rpc_pem *pem)
{
    free(pem->cert);
    if (pem->key)
        explicit_bzero(pem->key, strlen(pem->key));
    free(pem->key);
    free(pem->ca);
    memset(pem, 0, sizeof *pem);
}

enum nosa_status nosa_rpc_tls_check(const struct nosa_rpc_tls *tls, bool for_server,
                                    struct nosa_error *error)
{
    if (!nosa_rpc_tls_is_on(tls))
        return NOSA_OK;
    struct nosa_rpc_pem pem;
    NOSA_TRY(nosa_rpc_tls_load(tls, for_server, &pem, error));
    nosa_rpc_pem_free(&pem);
    return NOSA_OK;
}
