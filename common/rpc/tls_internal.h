/* TLS files as texts, for those who hand them to gRPC. */
#ifndef NOSA_RPC_TLS_INTERNAL_H
#define NOSA_RPC_TLS_INTERNAL_H

#include <stdbool.h>

#include "base/status.h"
#include "rpc/tls.h"

/* Owned; NULL where no file was named. */
struct nosa_rpc_pem {
    char *cert;
    char *key;
    char *ca;
};

/* Reads and checks as nosa_rpc_tls_check does; `tls` is on. On error `pem` is empty. */
enum nosa_status nosa_rpc_tls_load(const struct nosa_rpc_tls *tls, bool for_server,
                                   struct nosa_rpc_pem *pem, struct nosa_error *error);

/* Frees the texts and wipes the key. */
void nosa_rpc_pem_free(struct nosa_rpc_pem *pem);

#endif
