/*
 * The engine: sessions and tokens in, tokens and log probabilities out.
 *
 * An engine holds one model on one tensor-parallel group of devices, with its KV store. A session
 * is one sequence of tokens. Each call of nosa_engine_step computes a packed batch: for every item
 * the next tokens of one session that are known but not computed, a prefill chunk or a single
 * decode token alike, and, where that reaches the end of what is known, draws the next token and
 * appends it. What a token gets does not depend on how the prompt was cut into steps, on what else
 * is in the batch or on the number of threads, to the last bit (with several ranks: of the same
 * number).
 *
 * One thread owns an engine and its sessions. A step is begun and finished, one at a time; in
 * between its sessions must stay as they are, while others may be opened, appended to and closed.
 * Nothing in a step allocates.
 */
#ifndef NOSA_ENGINE_ENGINE_H
#define NOSA_ENGINE_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "engine/backend.h"
#include "engine/kv_sizes.h"
#include "engine/trace.h"
#include "engine/weights.h"
#include "kv_store.h"
#include "model/config.h"

struct nosa_engine;
struct nosa_session;

/* What nosa_engine_options.attention may hold beside the modes of ops.h. */
#define NOSA_ENGINE_ATTENTION_DEFAULT (-1) /* nosa with an eviction head, else full */

struct nosa_engine_options {
    const char *model_directory;
    int attention;                  /* enum nosa_attention_mode, or NOSA_ENGINE_ATTENTION_DEFAULT */
    int32_t tp;                     /* ranks; at least 1 */
    struct nosa_device_spec device; /* what the ranks run on */
    int32_t context_max;            /* tokens of one session; 0: the model's positions */
    int32_t rows_max;               /* tokens of one step */
    int32_t sessions_max;           /* open at a time; also the sequences of one step */
    /* KV tiers. The first one is each rank's own; auto: sessions_max sessions of context_max. */
    uint64_t kv_bytes;      /* 0 or NOSA_KV_BYTES_AUTO: auto */
    uint64_t host_kv_bytes; /* pinned host memory; 0: none; NOSA_KV_BYTES_AUTO: what the first
                               tier cannot hold */
    enum nosa_kv_policy kv_policy; /* what the first tier gives up */
    bool kv_no_prefetch;           /* first steps bring up what they need: to measure */
    const char *nvme_directory;    /* of the third tier, which outlives the engine; NULL: none */
    uint64_t nvme_kv_bytes;        /* NOSA_KV_BYTES_AUTO: as it is, else some tens of contexts */
    uint64_t nvme_write_bytes_per_day; /* endurance budget; 0: none */
    bool ignore_head;                  /* c = 0, as if the checkpoint had no eviction head */
    struct nosa_sparse_sizes sparse;   /* in place of the checkpoint's; zeros keep those */
    int32_t trace_rows_max;            /* rows of one step that sessions may trace; 0: none ever */
    int32_t score_rows_kept;           /* scored rows of one step whose logits are kept, see
                                          nosa_engine_score_logits; 0: none ever */
    nosa_load_progress progress;       /* or NULL */
    void *progress_context;
};

struct nosa_engine_info {
    const struct nosa_model_config *config;
    const struct nosa_generation_config *generation;
    enum nosa_attention_mode attention;
    int32_t context_max;
    int32_t rows_max;
    int32_t sessions_max;
    char device[160];      /* one line for people, about all ranks */
    char fingerprint[160]; /* equal on engines that compute equal bits for this model */
    uint64_t weight_bytes; /* over all ranks, as the next two */
    uint64_t kv_bytes;
    uint64_t scratch_bytes;
    int32_t kv_blocks; /* block ids of 64 tokens: what sessions and cached prefixes share */
    int32_t kv_slots;  /* blocks whose records the first tier holds */
    int32_t kv_images; /* blocks that the host tier holds */
    uint64_t host_kv_bytes;
    const char *nvme_directory; /* borrowed from the options, or NULL; then the next are 0 */
    const char *nvme_method;    /* "io_uring", "threads" */
    uint64_t nvme_kv_bytes;
    int32_t nvme_blocks;
    uint64_t kv_record_bytes; /* K and V of a block, layer and KV head */
};

/* Opens the checkpoint and makes the engine ready. Blocks. On failure *out is NULL and the error is
 * one line that names what the caller must change. */
enum nosa_status nosa_engine_open(const struct nosa_engine_options *options,
                                  struct nosa_engine **out, struct nosa_error *error);

/* Closes it; all sessions must be closed. NULL is allowed. */
void nosa_engine_close(struct nosa_engine *engine);

/* Constant while the engine lives. */
const struct nosa_engine_info *nosa_engine_info(const struct nosa_engine *engine);

/* The KV store's counters now. */
void nosa_engine_kv_counters(const struct nosa_engine *engine, struct nosa_kv_store_counters *out);

/* Bytes that the engine moved between tiers so far. */
struct nosa_engine_kv_traffic {
    uint64_t prefetched_records; /* brought up before a step asked for them */
    uint64_t host_to_first_bytes;
    uint64_t first_to_host_bytes;
    uint64_t nvme_read_bytes;
    uint64_t nvme_written_bytes;
    uint64_t recomputed_blocks; /* counted on, and lost to a failed or spoilt read */
    uint64_t corrupt_blocks;    /* whose checksums did not match */
    uint64_t nvme_stall_ns;     /* steps waited so long for records that NVMe alone had */
    uint64_t nvme_blocks_held;  /* now: findable, those of earlier engines and others included */
    uint64_t nvme_refused_full; /* writes that found no place, or were beyond the day's budget */
    uint64_t nvme_refused_budget;
    uint64_t nvme_failed_writes;
    uint64_t nvme_budget_left_bytes; /* UINT64_MAX without a budget */
};
void nosa_engine_kv_traffic(const struct nosa_engine *engine, struct nosa_engine_kv_traffic *out);

/* "nosa", "infllmv2" or "full". */
const char *nosa_attention_mode_name(enum nosa_attention_mode mode);

struct nosa_session_options {
    const uint32_t *tokens; /* prompt, then output delivered earlier; copied */
    int32_t n_tokens;       /* at least 1, at most context_max */
    int32_t prompt_length;  /* of n_tokens; what follows counts as output for penalties */
    const void *salt;       /* sessions with different salts share no KV; may be empty */
    size_t salt_bytes;
    struct nosa_sampling sampling;
    int32_t n_top;    /* top log probabilities with each token, at most NOSA_TOP_LOGPROBS_MAX */
    bool keep_logits; /* nosa_session_logits is wanted */
    bool score;       /* log probabilities of the known tokens are wanted; computes every row's
                         logits and shares no KV with other sessions */
    const struct nosa_trace_sink *trace; /* copied; or NULL. In `full` nothing is selected and the
                                            sink is never called. */
};

/* Opens a session; KV of the longest prefix known from other sessions is shared. INVALID_ARGUMENT
 * names a token past the vocabulary, a length past the context, a sampling value out of range;
 * RESOURCE_EXHAUSTED when sessions_max are open. */
enum nosa_status nosa_session_open(struct nosa_engine *engine,
                                   const struct nosa_session_options *options,
                                   struct nosa_session **out, struct nosa_error *error);

/* Whether steps may use the session: false while KV of its prefix is read from NVMe. What cannot be
 * read is computed: nosa_session_computed then shrinks. */
bool nosa_session_ready(struct nosa_session *session);

/* Gives the session's KV back. NULL is allowed; a session in a step in flight is not. */
void nosa_session_close(struct nosa_session *session);

int32_t nosa_session_length(const struct nosa_session *session);   /* tokens known */
int32_t nosa_session_computed(const struct nosa_session *session); /* of them with KV */
int32_t nosa_session_cached(const struct nosa_session *session);   /* taken over at open */
const uint32_t *nosa_session_tokens(const struct nosa_session *session);

/* Where the block records that attention read were found so far, over all layers and KV heads. */
struct nosa_session_kv {
    uint64_t first_hits;      /* in the first tier */
    uint64_t host_hits;       /* in the host tier: brought up, or read in place */
    uint64_t nvme_hits;       /* on NVMe */
    uint64_t prefetched_used; /* of the first hits, brought up before they were asked for */
};
void nosa_session_kv(const struct nosa_session *session, struct nosa_session_kv *out);

/* Slots, in blocks, of the distinct records that the session's last steps selected (of the last 8
 * or so, over all layers and KV heads); what several sessions selected counts for one of them. 0
 * before its first step, and where the first tier has a slot for every block. */
int32_t nosa_session_working_set(const struct nosa_session *session);

/* Logits [vocab] from which the last token was drawn, with keep_logits; else NULL. Valid until the
 * session's next step. */
const float *nosa_session_logits(const struct nosa_session *session);

/* With `score`: log probability of token i given those before it, at [i], for 1 <= i and i <=
 * computed tokens and i < length; [0] is 0. */
const float *nosa_session_scores(const struct nosa_session *session);

/* Logits [*n_rows][vocab] of the rows that the last step scored, in the order of its items; 0 rows
 * when score_rows_kept is 0 or they were more. Valid until the next step. */
const float *nosa_engine_score_logits(const struct nosa_engine *engine, int32_t *n_rows);

/* Appends a token that the caller knows (instead of one drawn), e.g. to go on from a given text.
 * INVALID_ARGUMENT while the session's step is in flight. */
enum nosa_status nosa_session_append(struct nosa_session *session, uint32_t token,
                                     struct nosa_error *error);

/* Moves the NVMe tier on: takes what has ended, starts what waits, and runs a step that only moves
 * blocks when that helps. When nothing has happened waits up to wait_ms. Nothing while a step is in
 * flight (steps do it themselves). */
enum nosa_status nosa_engine_poll(struct nosa_engine *engine, uint32_t wait_ms,
                                  struct nosa_error *error);
/* Has everything that the NVMe tier takes written to it; blocks up to timeout_ms, then
 * DEADLINE_EXCEEDED. Before closing an engine whose prefixes are to be found again. */
enum nosa_status nosa_engine_flush(struct nosa_engine *engine, uint32_t timeout_ms,
                                   struct nosa_error *error);

/* Takes the session's KV out of the first tier, so that its place is free for others: complete
 * blocks stay in the host tier (without one they are only cached), fewer than 64 tokens are
 * computed again. Runs a step that moves blocks; none may be in flight. A suspended session takes
 * part in no step until it is resumed. */
enum nosa_status nosa_session_suspend(struct nosa_session *session, struct nosa_error *error);
bool nosa_session_suspended(const struct nosa_session *session);
/* Brings it back: nosa_session_computed says how far its KV was kept. RESOURCE_EXHAUSTED, and it
 * stays suspended, when the first tier has too little place. */
enum nosa_status nosa_session_resume(struct nosa_session *session, struct nosa_error *error);

struct nosa_step_item {
    struct nosa_session *session; /* each at most once in a step */
    int32_t n_tokens;             /* to compute now, at least 1, at most length - computed */
    /* results */
    bool sampled;                     /* the step reached the end of the known tokens */
    bool appended;                    /* and the context had room for the drawn token */
    struct nosa_sample_result result; /* if sampled */
    bool recompute; /* KV of the session that only NVMe held could not be read: the step did nothing
                       for it, and nosa_session_computed says from where on it is computed again */
};

/* KV blocks that a step would take for the next n_tokens of the session, and how many steps can
 * have, blocks that are only cached included. */
int32_t nosa_session_blocks_needed(const struct nosa_session *session, int32_t n_tokens);
int32_t nosa_engine_blocks_available(const struct nosa_engine *engine);

/* Plans a step and hands it to the ranks, without waiting for a device (the CPU backend with one
 * rank has no other place to work than this call), but for one case: where sequences are larger
 * than first tier and host, it waits up to ten seconds for blocks on their way to NVMe, since
 * nothing else makes place. `items` are borrowed until the step is finished.
 * INVALID_ARGUMENT (an item names it, or a step is in flight) and RESOURCE_EXHAUSTED (fewer KV
 * blocks than the whole step needs) change nothing. */
enum nosa_status nosa_engine_step_begin(struct nosa_engine *engine, struct nosa_step_item *items,
                                        int32_t n_items, struct nosa_error *error);

/* Waits for the step, stores the items' results and advances their sessions. A result whose
 * logprob is NaN says that the session's logits were not finite: its token means nothing, and the
 * session is best closed; others are not touched by it. INVALID_ARGUMENT when no step is in flight;
 * any other error leaves every session where it was and the engine unusable but for closing. */
enum nosa_status nosa_engine_step_finish(struct nosa_engine *engine, struct nosa_error *error);

/* Both. */
enum nosa_status nosa_engine_step(struct nosa_engine *engine, struct nosa_step_item *items,
                                  int32_t n_items, struct nosa_error *error);

#endif
