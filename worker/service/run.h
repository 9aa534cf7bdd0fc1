/*
 * One generation on a worker: what was asked, and the tokens on their way to its stream.
 *
 * A run belongs to its call (until the call is done) and to whoever else holds a reference. The
 * engine's thread puts tokens in; what the call has no room for waits in a bounded ring and leaves
 * from the call's own thread when it becomes writable. The scheduler is told how many wait and
 * stops a run whose reader does not read, so the ring never overflows. When the generation has
 * ended, the engine lets go of the run at once and the rest leaves the ring by itself.
 */
#ifndef NOSA_SERVICE_RUN_H
#define NOSA_SERVICE_RUN_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/engine.h"
#include "nosa/cluster/v1/cluster.pb-c.h"
#include "rpc/server.h"
#include "scheduler/scheduler.h"

/* Tokens of one stream that wait for its reader, beyond what the transport holds. */
#define NOSA_RUN_TOKENS_WAITING_MAX 256

struct nosa_loop;

/* What a worker can run; constant. */
struct nosa_run_limits {
    uint64_t incarnation;
    uint8_t model_hash[32];
    uint32_t vocab;
    int32_t context_max;
};

/* Owned by the engine's thread alone. */
struct nosa_run_engine {
    uint64_t scheduler_id;
    struct nosa_session *session; /* owned */
    uint32_t *tokens;             /* owned: all that is known, while there is no session; or NULL */
    int32_t n_tokens;
    bool cancel_asked; /* before it was submitted */
    bool submitted;
    bool loading; /* its prefix is being read */
    bool started;
    int32_t suspended_blocks;  /* that it has below; 0 unless it is suspended */
    struct nosa_error failure; /* what ends it, if its status is not OK */
    uint64_t opened_ns;        /* first time, or 0 */
    uint64_t first_token_ns;   /* or 0 */
    uint64_t last_token_ns;
    uint64_t loading_ns;      /* when the reading began */
    uint64_t stalled_ns;      /* waited for KV to be read */
    uint64_t suspended_at_ns; /* 0: it is not, as the next but one */
    uint64_t suspended_ns;    /* spent so */
    uint64_t paused_at_ns;    /* its reader does not read */
    uint64_t paused_ns;
    int32_t hoped_tokens;       /* whose KV was counted on when the session was opened or resumed */
    uint32_t recomputed_blocks; /* counted on, and lost */
    struct nosa_session_kv kv;  /* of sessions before the present one */
    int32_t cached_tokens;
    int32_t n_output; /* resumed ones included */
    int32_t slot;     /* in the engine's list of open runs; -1: not there */
};

struct nosa_run {
    atomic_uint references;
    /* fixed after create */
    struct nosa_loop *loop; /* borrowed: that it was submitted to */
    struct nosa_rpc_call *call;
    const Nosa__Cluster__V1__RunRequest *message; /* borrowed: valid until the call is done */
    char *id;                                     /* owned */
    uint64_t arrival_ns;                          /* in the cluster */
    uint64_t received_ns;
    int32_t n_prompt;
    int32_t n_known; /* prompt and output that exists already */
    int32_t n_new;   /* tokens to generate at most; 0: it is complete already */
    struct nosa_sampling sampling;
    uint64_t *hashes; /* owned: of the known tokens' complete blocks */
    size_t n_hashes;
    struct nosa_run_engine engine;
    /* for lists */
    atomic_int state; /* enum nosa_scheduler_state */
    atomic_uint output_tokens;
    struct nosa_run *previous, *next; /* under the mutex of the loop's list */
    bool listed;
    atomic_bool wake_queued;   /* a word of its reader is on its way to the engine's thread */
    atomic_bool cancel_queued; /* an operator has ended it */
    pthread_mutex_t mutex;
    /* under mutex */
    struct nosa_run_token *ring; /* owned: [NOSA_RUN_TOKENS_WAITING_MAX * 2] */
    int32_t *top_token;          /* owned: [ring][logprobs], as the next; or NULL */
    float *top_logprob;
    uint32_t first, count;
    uint32_t next_index; /* of the first waiting token in the whole output */
    bool started_waiting;
    uint32_t started_cached;
    double started_queue_ms;
    bool ended;    /* nothing comes after what is in the ring */
    bool finished; /* the call is */
    enum nosa_rpc_code code;
    char text[NOSA_RPC_TEXT_MAX];
    enum nosa_scheduler_end reason; /* of a generation that ended with OK */
    struct nosa_run_usage {
        uint32_t prompt_tokens, cached_tokens, output_tokens;
        double queue_ms, ttft_ms, decode_ms, stall_ms;
        uint32_t recomputed_blocks;
        struct nosa_session_kv kv;
    } usage;
};

/* Checks the request against the worker and makes a run with one reference, the call's. The error's
 * text names the field; *code says how to end the call. */
enum nosa_status nosa_run_create(struct nosa_run **run, struct nosa_rpc_call *call,
                                 const Nosa__Cluster__V1__RunRequest *message,
                                 const struct nosa_run_limits *limits, enum nosa_rpc_code *code,
                                 struct nosa_error *error);
void nosa_run_retain(struct nosa_run *run);
void nosa_run_release(struct nosa_run *run);

/* All its known tokens, prompt then output: fills tokens [n_known]. */
void nosa_run_known_tokens(const struct nosa_run *run, uint32_t *tokens);
/* Whether a token ends it (its stop tokens; end-of-text ids are the caller's). */
bool nosa_run_stops_at(const struct nosa_run *run, uint32_t token);

/* ---- tokens; any thread, and none after nosa_run_end ------------------------------------------
 */

/* Says that the run has left the queue. */
void nosa_run_start(struct nosa_run *run, uint32_t cached_tokens, double queue_ms);
/* Puts a token into the ring and sends what the call has room for. Returns how many wait. */
uint32_t nosa_run_push(struct nosa_run *run, const struct nosa_sample_result *result);
/* Nothing follows. With NOSA_RPC_OK what waits is delivered first, however long the reader takes;
 * with another code it is dropped. `text` may be NULL. */
void nosa_run_end(struct nosa_run *run, enum nosa_rpc_code code, const char *text,
                  enum nosa_scheduler_end reason, const struct nosa_run_usage *usage);

/* ---- events of the call ------------------------------------------------------------------------
 */

/* It is writable: sends what it has room for. Returns how many tokens wait still. */
uint32_t nosa_run_flush(struct nosa_run *run);
/* Its caller is gone. True: the generation goes on and somebody has to end it. */
bool nosa_run_cancelled(struct nosa_run *run);
/* Tokens that wait now. */
uint32_t nosa_run_waiting(struct nosa_run *run);

#endif
