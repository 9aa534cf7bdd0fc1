/*
 * TLS by files in PEM format. They are read and checked when a listener or channel is made: gRPC
 * itself only says that a port could not be opened. Any thread.
 */
#ifndef NOSA_RPC_TLS_H
#define NOSA_RPC_TLS_H

#include <stdbool.h>

#include "base/status.h"

/* Borrowed until the call that takes it returns. All NULL is no TLS. */
struct nosa_rpc_tls {
    const char *cert_path;   /* own certificate chain; a server needs one */
    const char *key_path;    /* its private key, without passphrase; with cert_path or not at all */
    const char *ca_path;     /* a server: who signs clients, and then a client's certificate is
                                compulsory; a client: who signs servers (NULL: the system's) */
    const char *server_name; /* client: the name in the server's certificate, when it is not the
                                host dialled; else NULL */
};

/* Whether any file is named (NULL: none). */
bool nosa_rpc_tls_is_on(const struct nosa_rpc_tls *tls);

/*
 * Checks what would be loaded: files that can be read, certificates that parse and are in date, a
 * key that belongs to the certificate, a CA file with a certificate; for_server: cert_path is
 * there. NOSA_INVALID_ARGUMENT or NOSA_NOT_FOUND; the text names the file. Listen and channel
 * creation do this themselves; a program may do it first, to fail before it loads a model.
 */
enum nosa_status nosa_rpc_tls_check(const struct nosa_rpc_tls *tls, bool for_server,
                                    struct nosa_error *error);

#endif
