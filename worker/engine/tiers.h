/*
 * What a step does to the KV tiers beside its arithmetic: the moves that the store planned at its
 * start and end, and before each layer's attention the look-up of what was selected.
 *
 * The lists lie in pinned host memory and the ops read them there: they are few bytes, read once.
 */
#ifndef NOSA_ENGINE_TIERS_H
#define NOSA_ENGINE_TIERS_H

#include "engine/rank.h"
#include "kv_store.h"

struct nosa_step_tiers {
    enum nosa_kv_policy policy;
    struct nosa_kv_moves moves; /* owned */
    uint32_t fresh_since;       /* step from which distinct records are counted */
    /* Results of a tight first tier, in pinned memory, owned: each rank copies its own here. */
    struct nosa_kv_hits *hits; /* [n_ranks][seqs_max] */
    uint64_t *fetched;         /* [n_ranks] */
    /* Records that are on NVMe alone, in pinned memory, owned: a rank's ops write its own. */
    struct nosa_kv_absent *absent; /* [n_ranks][absent_max] */
    int32_t *n_absent;             /* [n_ranks] */
    int32_t absent_max;            /* 0 without an NVMe tier */
    /* A rank's arrays of these names, for the host to read; pinned, owned; NULL unless the first
     * tier is tight. */
    uint32_t *record_use;
    float *record_weight;
    int32_t *record_slot;
    size_t records;              /* entries of each */
    struct nosa_kv_store *store; /* borrowed: reads them */
    int32_t n_ranks;
    int32_t seqs_max;
    struct nosa_device *device; /* whose pinned memory it is */
};

/* Memory for the lists and results of any step of `store`; records: those of one rank's arena, or 0
 * where the first tier is not tight. `device` outlives it. Blocks. */
enum nosa_status nosa_step_tiers_create(struct nosa_kv_store *store, enum nosa_kv_policy policy,
                                        int32_t n_ranks, int32_t seqs_max, int32_t absent_max,
                                        size_t records, struct nosa_device *device,
                                        struct nosa_step_tiers *out, struct nosa_error *error);
/* Zero bytes are allowed. */
void nosa_step_tiers_destroy(struct nosa_step_tiers *tiers);

/* What one look-up is for: rows, and with entry_count a part of their lists. */
struct nosa_tier_pass {
    int32_t number; /* among the step's: 0 unless the step is cold */
    int32_t row_first;
    int32_t n_rows;
    int32_t entry_first;
    int32_t entry_count;
};

/* Enqueue the moves of the step's start and end, and the look-up after the selection of `layer`.
 * Nothing without tiers. */
enum nosa_status nosa_rank_tiers_begin(struct nosa_rank *rank, const struct nosa_step_plan *plan);
enum nosa_status nosa_rank_tiers_resolve(struct nosa_rank *rank, const struct nosa_step_plan *plan,
                                         const struct nosa_batch_view *batch, int32_t layer,
                                         const struct nosa_tier_pass *pass);
/* After a look-up of a cold step (struct nosa_kv_moves): reads what lies on NVMe alone. Waits for
 * the stream and the device. */
enum nosa_status nosa_rank_tiers_read_absent(struct nosa_rank *rank,
                                             const struct nosa_step_plan *plan,
                                             struct nosa_error *error);
enum nosa_status nosa_rank_tiers_end(struct nosa_rank *rank, const struct nosa_step_plan *plan);

/* Between steps: tells the store which of the sequence's records the rank used last; and, before
 * blocks are left to NVMe, which of all. Both wait for the stream. */
enum nosa_status nosa_rank_tiers_remember(struct nosa_rank *rank, struct nosa_step_tiers *tiers,
                                          struct nosa_kv_sequence *sequence,
                                          struct nosa_error *error);
enum nosa_status nosa_rank_tiers_report_use(struct nosa_rank *rank, struct nosa_step_tiers *tiers,
                                            struct nosa_error *error);

#endif
