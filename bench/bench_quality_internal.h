/* What the files of `nosa-bench quality` share: a run and its results. */
#ifndef NOSA_BENCH_QUALITY_INTERNAL_H
#define NOSA_BENCH_QUALITY_INTERNAL_H

#include "quality.h"

#define QUALITY_CONFIGS_MAX 16
#define QUALITY_DEPTHS      10 /* a probe's depth times 10; 0: none of its own */

struct quality_tally {
    uint64_t asked, right;
    uint64_t lost, won; /* right in the first configuration alone; right here alone */
    uint64_t depth_asked[QUALITY_DEPTHS], depth_right[QUALITY_DEPTHS];
};

/* What a configuration got over all cases. */
struct quality_result {
    double *loss; /* [documents][buckets] owned: sums of negative log probabilities */
    double divergence;
    uint64_t agreed, compared;
    uint64_t selected, hits_exact, hits_larger;
    struct quality_tally tasks[QUALITY_TASKS];
};

struct quality {
    const char *model_directory;
    int32_t context; /* tokens of a window */
    int32_t windows; /* of a document at most */
    int32_t documents_max;
    int32_t haystacks; /* of each task */
    int32_t compare_first, compare_every;
    int32_t chunk;
    int32_t threads;
    bool quiet;
    bool runs_task[QUALITY_TASKS];
    uint64_t random;
    struct nosa_tokenizer *tokenizer; /* owned, as all below */
    struct quality_texts texts;
    int32_t n_configs; /* the first is `full` without the head */
    struct quality_config configs[QUALITY_CONFIGS_MAX];
    struct quality_score scores[QUALITY_CONFIGS_MAX]; /* of the case that runs */
    struct quality_result results[QUALITY_CONFIGS_MAX];
    int32_t buckets;
    uint32_t *ids;             /* [context] of the case that runs */
    int32_t *document_windows; /* [documents] scored */
    bool has_head;             /* the checkpoint has an eviction head */
    bool no_head;              /* that it has none was said */
};

/* A configuration beside the first one over the first `length` tokens of the windows. */
struct quality_difference {
    double perplexity;
    double percent; /* above the first one's, by document */
    double error;   /* standard error of that; NaN with one document */
};

struct quality_difference quality_compare(const struct quality *quality, int32_t config,
                                          int32_t length);

/* ---- quality_report.c ---- */

enum nosa_status quality_print(const struct quality *quality, struct nosa_error *error);
enum nosa_status quality_print_json(const struct quality *quality, struct nosa_error *error);

#endif
