/*
 * One rank of the engine: its device, its part of the weights, its KV arena, and the forward step.
 *
 * A rank is created and run by one thread. nosa_rank_enqueue puts a whole step on the rank's
 * stream, the copies of what the engine reads into the plan (rank 0) included; nosa_rank_wait waits
 * for its end. No one else touches the stream.
 */
#ifndef NOSA_ENGINE_RANK_H
#define NOSA_ENGINE_RANK_H

#include "comm/comm.h"
#include "device.h"
#include "engine/step_plan.h"
#include "engine/trace.h"
#include "engine/weights.h"
#include "kv_store.h"

struct nosa_rank_options {
    const struct nosa_checkpoint *checkpoint;
    struct nosa_shard shard;
    struct nosa_device *device; /* borrowed */
    struct nosa_comm *comm;     /* borrowed; NULL for a single rank */
    enum nosa_attention_mode mode;
    struct nosa_plan_limits limits;
    int32_t context_max;
    int32_t n_blocks;     /* of the KV arena: block ids */
    int32_t n_slots;      /* of one of its pools; 0: one for every id */
    bool kv_cold;         /* sequences may be larger than first tier and host: NVMe has the rest */
    int32_t kv_fetch_max; /* records that one step brings up ahead; 0 with a slot for every id */
    int32_t trace_rows_max;      /* rows of a step whose selection may be traced; or 0 */
    nosa_load_progress progress; /* or NULL */
    void *progress_context;
};

struct nosa_rank {
    struct nosa_rank_options options;
    const struct nosa_model_config *config;
    struct nosa_device *device;
    struct nosa_stream *stream; /* owned */
    struct nosa_model_weights weights;
    struct nosa_kv_arena arena;
    /* device memory, owned */
    char *inputs;      /* the plan's image */
    float *rope_table; /* [rows][head_dim / 2][2] */
    float *residual;   /* [rows][hidden] */
    float *normed;     /* [rows][hidden] */
    float *qkv;        /* [rows][qkv.n] */
    float *attended; /* [rows][output heads * head_dim], rows padded as of qkv, normed, activated */
    float *activated;  /* [rows][intermediate of this rank] */
    float *partial;    /* [rows][hidden], with several ranks: this rank's summand */
    int32_t *selected; /* [rows][kv heads][topk], in sparse modes */
    int32_t *selected_count;
    float *logits_part; /* [logit_rows_max][vocab_stride], with several ranks */
    float *logits_all;  /* [n_ranks][logit_rows_max][vocab_stride], with several ranks */
    float *logits;      /* [logit_rows_max][vocab], on rank 0 */
    int32_t logit_rows_max;
    float *score_out;                  /* [logit_rows_max], on rank 0 */
    struct nosa_sample_result *result; /* [seqs_max], on rank 0 */
    float *attention_state;       /* [rows][output heads][head_dim + 2], of `full` with kv_cold */
    struct nosa_kv_hits *kv_hits; /* [seqs_max], in a first tier with fewer slots than ids */
    uint64_t *kv_fetched;         /* [1] likewise */
    struct nosa_rank_trace trace;
    int32_t topk; /* blocks that selection may choose: no more than there are */
    size_t bytes; /* of activations and scratch, without weights and KV */
};

/* Lets the rank's ops reach the images of `host`, which outlives it. Before the first step, while
 * the rank's thread rests. */
void nosa_rank_attach_host(struct nosa_rank *rank, const struct nosa_kv_host_pool *host);

/* KV geometry of a rank of this model. */
struct nosa_kv_geometry nosa_rank_kv_geometry(const struct nosa_checkpoint *checkpoint,
                                              const struct nosa_shard *shard);

/* Rows of logits that a rank forms at a time at most. */
int32_t nosa_rank_logit_rows(const struct nosa_plan_limits *limits);

/* Takes all memory and packs the weights. Blocks. On failure *rank is empty. */
enum nosa_status nosa_rank_create(const struct nosa_rank_options *options, struct nosa_rank *rank,
                                  struct nosa_error *error);
void nosa_rank_destroy(struct nosa_rank *rank);

/* Enqueues a step, at most one at a time; the plan must not change until nosa_rank_wait is over.
 * Rank 0 fills plan->result, plan->score and plan->logits. Allocates nothing. After an error
 * nosa_rank_wait is still due. */
enum nosa_status nosa_rank_enqueue(struct nosa_rank *rank, struct nosa_step_plan *plan,
                                   struct nosa_error *error);

/* Blocks until the enqueued step is over; returns the first error of its work. */
enum nosa_status nosa_rank_wait(struct nosa_rank *rank, struct nosa_error *error);

#endif
