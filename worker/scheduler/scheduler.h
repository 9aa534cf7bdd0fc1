/*
 * The scheduler of a worker: which requests hold KV, and which tokens the next step computes.
 *
 * It is a pure state machine. Time comes in as an argument, and what the KV store holds as reports;
 * decisions go out as a list of actions and a list of rows that the caller carries out. It knows
 * neither engine nor store, starts no thread and does no I/O, so the same inputs give the same
 * decisions and a simulation can drive it. One thread owns it; all memory is taken at create. The
 * caller's loop, with no step in flight at its top:
 *
 *     hand in what came: nosa_scheduler_submit, _end, _reader, _loaded, _suspended, ...
 *     actions = nosa_scheduler_arrange(...)    carry them out in order, report their results
 *     rows = nosa_scheduler_step(...)          compute them
 *     nosa_scheduler_step_done(...)
 *     no rows and no actions: wait for an event, or until nosa_scheduler_wake_ns
 *
 * A second arrange before the step lets blocks that the first one freed be used in that same step.
 *
 * Order. Every request has a rank, fixed at submit: its arrival, moved forward by ageing_ns for
 * each level of priority (clamped to +-priority_max). So waiting for ageing_ns raises a request
 * by one level against newcomers, and once it has waited 2 * priority_max * ageing_ns nothing that
 * arrives later ranks before it. The order of two requests never changes, which is why preemption
 * cannot go back and forth between them; the best of them always runs on to its end.
 *
 * Places. RUNNING requests get rows: at most batch_max, with working sets that together fit the
 * first tier's slots. READY ones hold blocks but no place in the batch. Both, and LOADING ones
 * whose KV is on its way up, are resident: they hold block ids of the first tier and host together
 * (blocks_total). SUSPENDED ones have their KV in the place below. A waiting request is let in when
 * the blocks of all its known tokens can be had; what ranks behind it leaves the batch or is
 * suspended for that, the last in rank first, but not before it has run run_steps_min steps.
 * Requests whose reader does not read are out of the batch and give up their place to anyone. When
 * the place below is full, a request is dropped instead: its KV is forgotten and computed again. So
 * is the last one behind a request that finds all sessions open: sequences_max a few times
 * batch_max avoids that. A waiting request that does not fit holds up no smaller one behind it
 * (what is let in past it can be preempted by it), but for the run_steps_min steps after which it
 * would fit.
 *
 * Steps. Every running request with one token left to compute gets its row first; prefill chunks
 * fill the rest of step_tokens_max, at most prefill_chunk_max tokens of them while others decode.
 *
 * Outsize. A request whose known tokens need more than blocks_total runs in steps of its own, which
 * take turns with those of the others; it keeps outsize_blocks resident and the rest below.
 */
#ifndef NOSA_SCHEDULER_SCHEDULER_H
#define NOSA_SCHEDULER_SCHEDULER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

#define NOSA_SCHEDULER_BLOCK_TOKENS 64
#define NOSA_SCHEDULER_NO_DEADLINE  UINT64_MAX
#define NOSA_SCHEDULER_NO_WAKE      UINT64_MAX

struct nosa_scheduler;

/* What the scheduler may be told about a request's prefix: asked for few requests in each arrange,
 * those that could be let in. */
struct nosa_scheduler_prefix {
    int32_t shared_blocks; /* blocks of it that other open sequences hold: they cost none */
    int32_t known_tokens;  /* KV of so many first tokens exists, in any tier */
};

/* Fills *out (zeroed before) for the request that was submitted with `tag`. */
typedef void (*nosa_scheduler_probe)(void *context, uint64_t tag,
                                     struct nosa_scheduler_prefix *out);

struct nosa_scheduler_options {
    int32_t queue_max;          /* requests that wait; at least 1 */
    int32_t sequences_max;      /* open sessions, suspended ones included; at least batch_max */
    int32_t batch_max;          /* sequences of one step; at least 1 */
    int32_t step_tokens_max;    /* tokens of one step; at least batch_max */
    int32_t prefill_chunk_max;  /* prefill tokens of a step in which others decode; at least 1 */
    int32_t context_max;        /* tokens of one sequence */
    int32_t blocks_total;       /* block ids: KV of the first tier and the host together */
    int32_t lower_blocks_total; /* blocks that suspended sequences can take; may be 0 */
    int32_t outsize_blocks;     /* resident part of an outsize sequence; 0: none can run */
    int32_t slots;              /* blocks' worth of first-tier slots; 0: as many as blocks */
    int32_t working_set_guess;  /* slots of a sequence before its first step; at least 1 */
    int32_t run_steps_min;      /* steps before a request that was let in is preempted */
    int32_t reader_tokens_max; /* a reader with so many tokens waiting is paused; goes on at half */
    int32_t priority_max;      /* larger and smaller priorities count as +-this */
    uint64_t ageing_ns;        /* waiting so long equals one level of priority */
    uint64_t prefix_wait_ns;   /* a request waits so long for a prefix that another computes */
    nosa_scheduler_probe probe; /* or NULL: nothing is shared */
    void *probe_context;
};

/* Takes all memory. INVALID_ARGUMENT names an option out of range. */
enum nosa_status nosa_scheduler_create(const struct nosa_scheduler_options *options,
                                       struct nosa_scheduler **out, struct nosa_error *error);
/* NULL is allowed; requests that are left end with it. */
void nosa_scheduler_destroy(struct nosa_scheduler *scheduler);

/* ---- inputs ------------------------------------------------------------------------------- */

struct nosa_scheduler_request {
    uint64_t tag; /* the caller's name for it, repeated in actions and rows */
    int32_t priority;
    uint64_t arrival_ns;    /* when it came to the cluster: waiting elsewhere counts */
    uint64_t deadline_ns;   /* or NOSA_SCHEDULER_NO_DEADLINE */
    int32_t known_tokens;   /* prompt and output that exists already */
    int32_t max_new_tokens; /* at least 1 */
    uint64_t prefix_key;    /* equal in requests whose first prefix_tokens are equal; 0: none */
    int32_t prefix_tokens;
};

/* Queues a request; *id names it until its CLOSE. RESOURCE_EXHAUSTED: the queue is full, or the
 * tiers together can never hold it (the text names the need). INVALID_ARGUMENT: no tokens, more
 * than the context, or nothing to generate. */
enum nosa_status nosa_scheduler_submit(struct nosa_scheduler *scheduler,
                                       const struct nosa_scheduler_request *request, uint64_t *id,
                                       struct nosa_error *error);

enum nosa_scheduler_end {
    NOSA_SCHEDULER_END_NONE = 0,
    NOSA_SCHEDULER_END_STOP = 1,      /* the caller saw a stop token or text */
    NOSA_SCHEDULER_END_LENGTH = 2,    /* max_new_tokens or the context is reached */
    NOSA_SCHEDULER_END_CANCELLED = 3, /* the client cancelled or is gone */
    NOSA_SCHEDULER_END_DEADLINE = 4,
    NOSA_SCHEDULER_END_FAILED = 5, /* its session cannot go on */
    NOSA_SCHEDULER_END_MOVED = 6,  /* it goes on elsewhere: the worker drains */
};

/* All calls below that name an id ignore one that has been closed: news of a request may cross its
 * end. */

/* Ends a request, in any place and also while its step is in flight: the next arrange closes it.
 * The first reason counts. */
void nosa_scheduler_end(struct nosa_scheduler *scheduler, uint64_t id,
                        enum nosa_scheduler_end reason);

/* So many tokens wait for the reader now. */
void nosa_scheduler_reader(struct nosa_scheduler *scheduler, uint64_t id, int32_t waiting_tokens);

/* The KV of the first n_tokens of a request that was just opened is on its way up, and its blocks
 * are taken: to be said when nosa_scheduler_loaded does not follow at once, or they count twice. */
void nosa_scheduler_loading(struct nosa_scheduler *scheduler, uint64_t id, int32_t n_tokens);

/* An OPEN or RESUME is complete: KV of the first n_tokens is there, 0 <= n_tokens < known tokens.
 * Fewer than were hoped for are computed again. */
void nosa_scheduler_loaded(struct nosa_scheduler *scheduler, uint64_t id, int32_t n_tokens);

/* A SUSPEND is complete. With `moved` false its KV could not be moved and is where it was. */
void nosa_scheduler_suspended(struct nosa_scheduler *scheduler, uint64_t id, bool moved);

/* ---- decisions ---------------------------------------------------------------------------- */

/* The store at this moment. */
struct nosa_scheduler_store {
    int32_t blocks_available;       /* block ids that can be had, cached ones included */
    int32_t lower_blocks_available; /* blocks that can still be suspended, ditto */
};

enum nosa_scheduler_action_kind {
    /* The request has ended for `reason`: give back everything, session, KV, loads and saves under
     * way. Its id is forgotten. */
    NOSA_SCHEDULER_CLOSE = 0,
    /* Close the session, forget its KV, keep the request: it is opened again. */
    NOSA_SCHEDULER_DROP = 1,
    /* Move the KV below and free its block ids; then nosa_scheduler_suspended. */
    NOSA_SCHEDULER_SUSPEND = 2,
    /* It has grown outsize: move all but outsize_blocks of its KV below, now. */
    NOSA_SCHEDULER_SPILL = 3,
    /* Open a session over the known tokens and load what is known of its prefix; then
     * nosa_scheduler_loaded (at once if nothing needs loading). */
    NOSA_SCHEDULER_OPEN = 4,
    /* Bring the KV of a suspended one back; then nosa_scheduler_loaded. */
    NOSA_SCHEDULER_RESUME = 5,
};

struct nosa_scheduler_action {
    enum nosa_scheduler_action_kind kind;
    uint64_t id;
    uint64_t tag;
    enum nosa_scheduler_end reason; /* CLOSE */
    bool has_session;               /* CLOSE: it was opened and not dropped since */
    bool outsize;                   /* OPEN, RESUME: keep only outsize_blocks resident */
};

struct nosa_scheduler_actions {
    const struct nosa_scheduler_action *actions; /* valid until the next arrange */
    int32_t n_actions;
};

/* Ends what is past its deadline, closes what has ended, moves requests between places. No rows may
 * be outstanding. Actions are carried out in order and before the next report: a CLOSE or DROP
 * frees place below that a SUSPEND behind it takes. */
struct nosa_scheduler_actions nosa_scheduler_arrange(struct nosa_scheduler *scheduler,
                                                     uint64_t now_ns,
                                                     const struct nosa_scheduler_store *store);

struct nosa_scheduler_row {
    uint64_t id;
    uint64_t tag;
    int32_t n_tokens; /* the next ones that are known but not computed */
    bool outsize;     /* then it is the only row */
};

struct nosa_scheduler_rows {
    const struct nosa_scheduler_row *rows; /* valid until the next step; each request once */
    int32_t n_rows;
    int32_t n_tokens; /* of all rows; at most step_tokens_max */
};

/* Chooses the rows of a step, decode rows first; together they need no more blocks than are
 * available. Rows must be answered by nosa_scheduler_step_done. */
struct nosa_scheduler_rows nosa_scheduler_step(struct nosa_scheduler *scheduler,
                                               const struct nosa_scheduler_store *store);

struct nosa_scheduler_result {
    bool appended; /* the step reached the end of the known tokens and drew one more */
    enum nosa_scheduler_end end; /* NONE, STOP, LENGTH or FAILED, as the caller sees it */
    int32_t working_set;         /* slots, in blocks, of what the sequence selected; 0: as before */
};

/* results[i] is of rows[i]. A request whose last token this was is closed by the next arrange. */
void nosa_scheduler_step_done(struct nosa_scheduler *scheduler,
                              const struct nosa_scheduler_result *results, int32_t n_results);

/* The step could not be computed and nothing has changed, as if it had not been chosen. */
void nosa_scheduler_step_failed(struct nosa_scheduler *scheduler);

/* When arrange has something to do though no event came: a deadline, the end of a wait for a
 * prefix; 0: at once (it can do more than before the last step, or a request was ended).
 * NOSA_SCHEDULER_NO_WAKE: never. */
uint64_t nosa_scheduler_wake_ns(const struct nosa_scheduler *scheduler);

/* ---- for people and metrics --------------------------------------------------------------- */

enum nosa_scheduler_state {
    NOSA_SCHEDULER_QUEUED = 0, /* also: waits for a prefix that another request computes */
    NOSA_SCHEDULER_LOADING = 1,
    NOSA_SCHEDULER_PREFILL = 2,
    NOSA_SCHEDULER_DECODE = 3,
    NOSA_SCHEDULER_PAUSED = 4, /* its reader does not read, wherever its KV is */
    NOSA_SCHEDULER_SUSPENDED = 5,
    NOSA_SCHEDULER_ENDED = 6, /* closed with the next arrange, or not known */
};

struct nosa_scheduler_info {
    enum nosa_scheduler_state state;
    bool running; /* has a place in the batch */
    bool outsize;
    int32_t known_tokens;    /* prompt and output */
    int32_t computed_tokens; /* of them with KV */
    int32_t new_tokens;      /* generated here */
    int32_t working_set;     /* slots, in blocks: as reported, else the guess */
};

void nosa_scheduler_info(const struct nosa_scheduler *scheduler, uint64_t id,
                         struct nosa_scheduler_info *out);

struct nosa_scheduler_counters {
    int32_t queued; /* all that hold no KV, parked and dropped ones included */
    int32_t parked; /* of them, those that wait for another's prefix */
    int32_t loading;
    int32_t ready; /* resident without a place in the batch */
    int32_t running;
    int32_t suspended;              /* moving there, or there */
    int32_t paused;                 /* in any place */
    int64_t prefill_tokens_pending; /* known but not computed, of all */
    uint64_t suspends;              /* since create, as the rest */
    uint64_t resumes;
    uint64_t drops;
    uint64_t decode_stalls; /* running requests that got no row for want of a block */
};

void nosa_scheduler_counters(const struct nosa_scheduler *scheduler,
                             struct nosa_scheduler_counters *out);

/* "QUEUED", "LOADING", ...; never NULL. */
const char *nosa_scheduler_state_name(enum nosa_scheduler_state state);
/* "STOP", "LENGTH", ...; never NULL. */
const char *nosa_scheduler_end_name(enum nosa_scheduler_end reason);

#endif
