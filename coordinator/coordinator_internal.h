/* The inside of a coordinator, for the files of this folder. Locks, in the order in which one may
 * be taken under another: a generation's mutex, then the table's or the registry's. */
#ifndef NOSA_COORDINATOR_COORDINATOR_INTERNAL_H
#define NOSA_COORDINATOR_COORDINATOR_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "auth.h"
#include "coordinator.h"
#include "http/http.h"
#include "membership.h"
#include "nosa/v1/admin.pb-c.h"
#include "output.h"
#include "registry.h"
#include "rpc/client.h"
#include "rpc/server.h"
#include "telemetry.h"
#include "validate.h"
#include "work_pool.h"

#define NOSA_TABLE_BUCKETS   4096
#define NOSA_INLINE_BYTES    4096 /* texts up to this are encoded on gRPC's threads */
#define NOSA_CLIENT_NAME_MAX 128

/* The generations that have begun and not ended, oldest first, and by request_id. */
struct nosa_generation_table {
    pthread_mutex_t mutex;
    pthread_cond_t empty;
    /* under mutex */
    struct nosa_generation *first;
    struct nosa_generation *last;
    struct nosa_generation *buckets[NOSA_TABLE_BUCKETS];
    uint32_t count;
    uint32_t waiting; /* not started by a worker yet */
    uint64_t prompt_bytes;
};

struct nosa_coordinator {
    /* fixed after start */
    struct nosa_coordinator_options options;
    struct nosa_request_limits limits;
    uint64_t epoch;
    char id[32];
    uint64_t start_ns;
    struct nosa_rpc_runtime *runtime;
    struct nosa_rpc_server *server;
    struct nosa_http *http;
    struct nosa_registry *registry;
    struct nosa_membership *membership;
    struct nosa_work_pool *pool;
    struct nosa_auth *auth; /* NULL: everyone */
    struct nosa_telemetry *telemetry;
    struct nosa_generation_table table;
    char probe_address[64]; /* where /healthz dials */
    uint16_t port;
    pthread_t ticker;
    bool ticking;
    uint64_t drains_seen; /* owned by the ticker: of membership's version */
    /* any thread */
    atomic_bool draining;
    atomic_uint links; /* calls to workers under way that are no generations */
    /* the ticker's alarm */
    pthread_mutex_t tick_mutex;
    pthread_cond_t tick_changed;
    /* under tick_mutex */
    bool stopping;
    bool tick_now;
};

/* ---- coordinator.c ---- */

/* Lets the ticker look after workers and waiting generations now. Any thread. */
void nosa_coordinator_wake(struct nosa_coordinator *coordinator);

/* The name of a caller's token or certificate, "" for none. */
void nosa_coordinator_client_name(struct nosa_coordinator *coordinator, struct nosa_rpc_call *call,
                                  char name[NOSA_CLIENT_NAME_MAX]);

/* ---- link.c: calls to workers that are no generations ---- */

void *nosa_link_open(void *coordinator, const char *address, struct nosa_error *error);
void nosa_link_close(void *link);

/* Fetches the files of the worker's model and makes it READY; takes the reference. */
void nosa_link_fetch_model(struct nosa_coordinator *coordinator, struct nosa_worker *worker);
/* Tells the worker to drain; takes the reference. */
void nosa_link_drain(struct nosa_coordinator *coordinator, struct nosa_worker *worker,
                     uint64_t timeout_ms);
/* Tells the worker to work again, and answers an operator's call (NULL: nobody waits); takes the
 * reference. */
void nosa_link_resume(struct nosa_coordinator *coordinator, struct nosa_worker *worker,
                      struct nosa_rpc_call *call);

/* ---- share.c: this coordinator among others ---- */

/* Makes membership; the port is known. */
enum nosa_status nosa_share_start(struct nosa_coordinator *coordinator, struct nosa_error *error);
/* For the registry: whether operators have drained the id; `coordinator` as void. */
bool nosa_share_is_drained(void *coordinator, const char *worker_id);
/* An operator drains a worker, of this coordinator or of another. NOSA_NOT_FOUND;
 * NOSA_RESOURCE_EXHAUSTED; NOSA_OUT_OF_MEMORY. */
enum nosa_status nosa_share_drain(struct nosa_coordinator *coordinator, const char *worker_id,
                                  Nosa__V1__WorkerState *state, struct nosa_error *error);
/* An operator resumes an id whose worker cannot be told from here: true, if it was drained. */
bool nosa_share_forget_drain(struct nosa_coordinator *coordinator, const char *worker_id,
                             Nosa__V1__WorkerState *state);
/* The ticker: carries out what has changed, and once a second tells others of the workers here. */
void nosa_share_tick(struct nosa_coordinator *coordinator);
void nosa_share_second(struct nosa_coordinator *coordinator);

/* ---- generation.c, generation_table.c ---- */

/* A Generate call begins. */
void nosa_generation_start(struct nosa_coordinator *coordinator, struct nosa_rpc_call *call,
                           const Nosa__V1__GenerateRequest *request);

/* The streams of a worker go on elsewhere: it died, or (drained) its time is over. */
void nosa_relay_leave_worker(struct nosa_coordinator *coordinator, struct nosa_worker *worker,
                             bool died);

/* Tries again for what waits for a worker, and ends what has waited for too long. */
void nosa_relay_tick(struct nosa_coordinator *coordinator);

/* Ends every generation. */
void nosa_relay_end_all(struct nosa_coordinator *coordinator, enum nosa_rpc_code code,
                        const char *text);

/* NOSA_NOT_FOUND. */
enum nosa_status nosa_relay_cancel(struct nosa_coordinator *coordinator, const char *request_id,
                                   struct nosa_error *error);

/* Generations as operators see them; the caller frees the message's parts by protobuf-c. */
enum nosa_status nosa_relay_list(struct nosa_coordinator *coordinator,
                                 Nosa__V1__RequestInfo ***infos, size_t *count);

/* ---- prompt.c ---- */

/* Ids of a text or chat; tokens->count_max bounds them. Errors name the field. */
enum nosa_status nosa_prompt_encode_text(const struct nosa_model *model, const char *text,
                                         struct nosa_tokens *tokens, struct nosa_error *error);
enum nosa_status nosa_prompt_encode_chat(const struct nosa_model *model, const Nosa__V1__Chat *chat,
                                         struct nosa_tokens *tokens, struct nosa_error *error);

/* The buffer's bytes as a string that protobuf-c can pack: a NUL, which a token may stand for,
 * becomes U+FFFD. Valid until the buffer changes; NULL: no memory. */
const char *nosa_text_string(struct nosa_buffer *text);

/* ---- services ---- */

enum nosa_status nosa_inference_add(struct nosa_coordinator *coordinator, struct nosa_error *error);
enum nosa_status nosa_admin_add(struct nosa_coordinator *coordinator, struct nosa_error *error);
enum nosa_status nosa_cluster_add(struct nosa_coordinator *coordinator, struct nosa_error *error);

#endif
