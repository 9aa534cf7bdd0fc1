/*
 * The calls of etcd that membership makes, to one endpoint at a time. Every call has a deadline;
 * answers are bounded, and what does not look like etcd's is an error that names the endpoint. The
 * client goes to the next endpoint only when it is told to (nosa_etcd_client_move_on).
 *
 * Endpoints of two clusters among one list are a mistake that would split what coordinators know:
 * the first cluster that answered is kept to. Another one is taken only when no endpoint of the
 * known cluster answers (it was set up anew).
 *
 * One thread calls; `hint` comes on the runtime's threads.
 */
#ifndef NOSA_COORDINATOR_ETCD_CLIENT_H
#define NOSA_COORDINATOR_ETCD_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "membership_book.h"
#include "rpc/runtime.h"
#include "rpc/tls.h"

#define NOSA_ETCD_ENDPOINTS_MAX 16
#define NOSA_ETCD_PREFIX_MAX    128 /* bytes, with NUL */
#define NOSA_ETCD_WRITES_MAX    64  /* of one transaction; etcd takes 128 */

struct nosa_etcd_client; /* opaque */

/* Texts are borrowed until nosa_etcd_client_free. */
struct nosa_etcd_options {
    const char *endpoints;   /* "HOST:PORT,...", each with http:// or https:// before it or not */
    const char *prefix;      /* of every key: "/nosa" */
    struct nosa_rpc_tls tls; /* all NULL: none; https needs ca_path */
    uint32_t lease_s;
};

/* Checks the endpoints and the prefix, and makes a client; calls nobody. NOSA_INVALID_ARGUMENT
 * begins with the flag's name. `hint`: something has changed, or the watch has ended. */
enum nosa_status nosa_etcd_client_create(struct nosa_etcd_client **client,
                                         struct nosa_rpc_runtime *runtime,
                                         const struct nosa_etcd_options *options,
                                         void (*hint)(void *context), void *context,
                                         struct nosa_error *error);
/* Ends the watch and waits for its end. NULL is allowed. */
void nosa_etcd_client_free(struct nosa_etcd_client *client);

uint32_t nosa_etcd_client_endpoint_count(const struct nosa_etcd_client *client);
/* Where calls go; valid as long as the client. */
const char *nosa_etcd_client_endpoint(const struct nosa_etcd_client *client);
/* Lets the connection go; the next call makes one to the next endpoint. */
void nosa_etcd_client_move_on(struct nosa_etcd_client *client);

/*
 * Calls. Each returns NOSA_OK, NOSA_NOT_FOUND (the lease does not exist any more), or another
 * status, whose text names endpoint and reason. All block up to a few seconds.
 */
enum nosa_status nosa_etcd_client_grant(struct nosa_etcd_client *client, int64_t *lease,
                                        uint32_t *ttl_s, struct nosa_error *error);
enum nosa_status nosa_etcd_client_keep_alive(struct nosa_etcd_client *client, int64_t lease,
                                             uint32_t *ttl_s, struct nosa_error *error);
enum nosa_status nosa_etcd_client_revoke(struct nosa_etcd_client *client, int64_t lease,
                                         struct nosa_error *error);

/* Everything below the prefix at one revision, into `list`. */
enum nosa_status nosa_etcd_client_list(struct nosa_etcd_client *client,
                                       struct nosa_membership_list *list, int64_t *revision,
                                       struct nosa_error *error);

/* Makes the marker with this value, unless there is one. */
enum nosa_status nosa_etcd_client_mark(struct nosa_etcd_client *client, const char *value,
                                       struct nosa_error *error);

/* All of the writes or none. */
enum nosa_status nosa_etcd_client_write(struct nosa_etcd_client *client,
                                        const struct nosa_membership_write *writes, size_t count,
                                        int64_t lease, struct nosa_error *error);

/* Asks to be told of changes after this revision, in place of an earlier watch; whether it could be
 * begun shows by nosa_etcd_client_is_watching. */
enum nosa_status nosa_etcd_client_watch(struct nosa_etcd_client *client, int64_t revision,
                                        struct nosa_error *error);
bool nosa_etcd_client_is_watching(struct nosa_etcd_client *client);

#endif
