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
    uint64_t kv_bytes;           /* of each rank's arena; 0: sessions_max sessions of context_max */
    nosa_load_progress progress; /* or NULL */
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
    int32_t kv_blocks;
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
};

/* Opens a session; KV of the longest prefix known from other sessions is shared. INVALID_ARGUMENT
 * names a token past the vocabulary, a length past the context, a sampling value out of range;
 * RESOURCE_EXHAUSTED when sessions_max are open. */
enum nosa_status nosa_session_open(struct nosa_engine *engine,
                                   const struct nosa_session_options *options,
                                   struct nosa_session **out, struct nosa_error *error);

/* Gives the session's KV back. NULL is allowed; a session in a step in flight is not. */
void nosa_session_close(struct nosa_session *session);

int32_t nosa_session_length(const struct nosa_session *session);   /* tokens known */
int32_t nosa_session_computed(const struct nosa_session *session); /* of them with KV */
int32_t nosa_session_cached(const struct nosa_session *session);   /* taken over at open */
const uint32_t *nosa_session_tokens(const struct nosa_session *session);
/* Block records that attention read in the first tier so far, over all layers and KV heads. */
uint64_t nosa_session_gpu_hits(const struct nosa_session *session);

/* Logits [vocab] from which the last token was drawn, with keep_logits; else NULL. Valid until the
 * session's next step. */
const float *nosa_session_logits(const struct nosa_session *session);

/* With `score`: log probability of token i given those before it, at [i], for 1 <= i and i <=
 * computed tokens and i < length; [0] is 0. */
const float *nosa_session_scores(const struct nosa_session *session);

/* Appends a token that the caller knows (instead of one drawn), e.g. to go on from a given text.
 * INVALID_ARGUMENT while the session's step is in flight. */
enum nosa_status nosa_session_append(struct nosa_session *session, uint32_t token,
                                     struct nosa_error *error);

struct nosa_step_item {
    struct nosa_session *session; /* each at most once in a step */
    int32_t n_tokens;             /* to compute now, at least 1, at most length - computed */
    /* results */
    bool sampled;                     /* the step reached the end of the known tokens */
    bool appended;                    /* and the context had room for the drawn token */
    struct nosa_sample_result result; /* if sampled */
};

/* KV blocks that a step would take for the next n_tokens of the session, and how many steps can
 * have, blocks that are only cached included. */
int32_t nosa_session_blocks_needed(const struct nosa_session *session, int32_t n_tokens);
int32_t nosa_engine_blocks_available(const struct nosa_engine *engine);

/* Plans a step and hands it to the ranks, without waiting for a device (the CPU backend with one
 * rank has no other place to work than this call). `items` are borrowed until the step is finished.
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
