/*
 * The KV ops under test beside the references: every op runs on each subject, the reference first,
 * with the same parameters on tiers that are alike, and must say and leave the same.
 */
#ifndef NOSA_TESTS_KERNELS_TIER_BENCH_H
#define NOSA_TESTS_KERNELS_TIER_BENCH_H

#include "kv_tiers.h"
#include "op_devices.h"

#define TIER_FETCH_MAX  300
#define TIER_ROWS_MAX   96
#define TIER_SEQS_MAX   4
#define TIER_TABLE_MAX  64
#define TIER_ABSENT_MAX 512

/* One implementation and the tier that it works on. */
struct tier_subject {
    const struct nosa_op_table *ops;
    struct nosa_stream *stream;
    struct tier *tier;
};

struct tier_bench {
    const struct tier_case *tier_case;
    enum nosa_kv_policy policy;
    uint32_t step;                   /* passed to every op; records are fresh since two before */
    struct tier_subject subjects[3]; /* the reference; the CPU with one thread, and with several */
    int32_t n_subjects;
    struct op_device devices[OP_DEVICES_MAX];
    int32_t n_devices;
    struct tier_model model;
    char what[96];     /* the op in progress, for messages */
    uint64_t random;   /* state of whoever drives the bench by a seed */
    uint32_t versions; /* given out by the same */
};

void tier_bench_open(struct tier_bench *bench, const struct tier_case *tier_case,
                     enum nosa_kv_policy policy);
void tier_bench_close(struct tier_bench *bench);

/* Fails the test unless all tiers are equal; then also unless they are what the model says. */
void tier_bench_assert_same(const struct tier_bench *bench);
void tier_bench_check(const struct tier_bench *bench);

/* The reference's view. */
static inline const struct nosa_kv_view *tier_bench_view(const struct tier_bench *bench)
{
    return &bench->subjects[0].tier->view;
}

/* The ops, with the bench's policy and step. */
void tier_update(struct tier_bench *bench, int32_t n_forget, const int32_t *forget,
                 int32_t n_states, const struct nosa_kv_block_state *states);
void tier_set_state(struct tier_bench *bench, int32_t block, int32_t image,
                    enum nosa_kv_class kv_class);
void tier_place(struct tier_bench *bench, int32_t n, const int32_t *blocks);
void tier_load(struct tier_bench *bench, int32_t n, const struct nosa_kv_block_image *moves);
void tier_save(struct tier_bench *bench, int32_t n, const struct nosa_kv_block_image *moves);
/* Returns the number of records copied. */
uint64_t tier_fetch(struct tier_bench *bench, int32_t n, const struct nosa_kv_record_name *records);
/* A step computed the block: its records and summaries are those of the version. */
void tier_compute(struct tier_bench *bench, int32_t block, uint32_t version);

/* Rows of a few sequences, what they select, and how a resolve found it. */
struct tier_rows {
    struct nosa_batch_view view;
    int32_t row_pos[TIER_ROWS_MAX];
    int32_t row_seq[TIER_ROWS_MAX];
    int32_t table[TIER_SEQS_MAX][TIER_TABLE_MAX];
    int32_t *selected; /* [rows][heads][topk] */
    int32_t *count;    /* [rows][heads] */
    int32_t topk;
    int32_t entry_first; /* of the part to resolve */
    int32_t entry_count; /* 0: all */
    struct nosa_kv_hits hits[TIER_SEQS_MAX];
    struct nosa_kv_absent absent[TIER_ABSENT_MAX]; /* sorted */
    int32_t n_absent;
};

/* No rows; tier_rows_lists makes room for the lists of those added since. */
struct tier_rows *tier_rows_create(void);
void tier_rows_lists(struct tier_rows *rows, int32_t n_kv_heads, int32_t topk);
void tier_rows_destroy(struct tier_rows *rows);

/* Resolves rows, with their lists or without, and fills the absent records as the host does. */
void tier_resolve(struct tier_bench *bench, struct tier_rows *rows, int32_t layer,
                  int32_t row_first, int32_t n_rows, bool full);

#endif
