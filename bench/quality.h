/*
 * Inside `nosa-bench quality`: what a mode of attention costs in quality, beside full attention on
 * the same model and the same texts.
 *
 * A case is a sequence of tokens that every configuration (mode and sparse sizes) computes in step:
 * a window of a text, or a window with facts planted in it and questions at its end (a haystack).
 * One engine per configuration; nothing is generated, all tokens are given. One thread.
 */
#ifndef NOSA_BENCH_QUALITY_H
#define NOSA_BENCH_QUALITY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "engine/engine.h"
#include "tokenizer/tokenizer.h"

#define QUALITY_BUCKET     512 /* positions of a bucket of the perplexity by position */
#define QUALITY_PROBES_MAX 8   /* of a haystack */
#define QUALITY_CHOICES    6   /* answers that a forced choice is among */

/* ---- quality_texts.c ---- */

struct quality_document {
    char *name;             /* owned: the file's name */
    struct nosa_tokens ids; /* owned */
};

struct quality_texts {
    struct quality_document *documents; /* owned: [n], those long enough for a window, by name */
    int32_t n;
    int32_t too_short; /* files that were left out */
};

/* Reads `path`, a text file, or a folder whose *.txt files, and those of its folders, are read in
 * the order of their paths, and tokenises them without special tokens; documents_max at most, each
 * with at least `context` tokens. Errors name the file: not UTF-8, empty; or the folder. */
enum nosa_status quality_texts_read(struct quality_texts *texts, const char *path,
                                    const struct nosa_tokenizer *tokenizer, int32_t context,
                                    int32_t documents_max, struct nosa_error *error);
void quality_texts_free(struct quality_texts *texts);

/* Window `index` of the `windows` that are spread evenly over a document, none over another: its
 * first token, or -1 when the document has fewer. */
int64_t quality_window(const struct quality_document *document, int32_t context, int32_t windows,
                       int32_t index);

/* ---- quality_hits.c ---- */

/* Hits of first tiers in one sequence, from its traced rows: of a tier that holds exactly what the
 * row before selected, and of one that is half as large again and kept by eddma. A block counts as
 * held in the row in which it is made. */
struct quality_hits {
    int32_t step_first; /* positions from here on count */
    int32_t n_pools;
    int32_t n_blocks;
    int32_t capacity; /* of the larger tier, in blocks of a pool */
    uint32_t row;     /* rows seen */
    int32_t own_block;
    uint32_t *touch; /* [n_pools][n_blocks] owned: the last row that selected it */
    float *weight;   /* [n_pools][n_blocks] owned: as of then (kv_policy.h) */
    bool *held;      /* [n_pools][n_blocks] owned: in the larger tier */
    int32_t *n_held; /* [n_pools] owned */
    uint64_t selected;
    uint64_t hits_exact;
    uint64_t hits_larger;
};

enum nosa_status quality_hits_create(struct quality_hits *hits,
                                     const struct nosa_model_config *config, int32_t context,
                                     struct nosa_error *error);
void quality_hits_destroy(struct quality_hits *hits);
/* Begins a sequence; the sums stay. */
void quality_hits_restart(struct quality_hits *hits);
/* A trace sink's row function. */
void quality_hits_row(void *context, const struct nosa_trace_row *row);

/* ---- quality_tasks.c ---- */

enum quality_task {
    QUALITY_RETRIEVAL, /* facts of different kinds, each asked for */
    QUALITY_MULTIKEY,  /* facts of one kind with different keys */
    QUALITY_VARIABLES, /* a value by the name of another variable that has it */
    QUALITY_COUNTING,  /* which of six words was marked most often: a forced choice */
    QUALITY_TASKS,
};

extern const char *const quality_task_names[QUALITY_TASKS + 1];

struct quality_probe {
    int32_t begin, end;              /* tokens of the answer; one for a forced choice */
    double depth;                    /* of the fact, as a share of the text; counting: 0 */
    int32_t n_choices;               /* 0: every token of the answer must be the likeliest of all */
    int32_t choice[QUALITY_CHOICES]; /* token ids; the first is right */
};

struct quality_case {
    const uint32_t *ids; /* borrowed: [n] */
    int32_t n;
    int32_t n_probes;
    struct quality_probe probes[QUALITY_PROBES_MAX];
};

/* Makes a haystack of exactly `context` tokens from a window of that many; the ids are stored in
 * `memory` [context], which out->ids points to. `random` is the state of the draws. */
enum nosa_status quality_haystack(enum quality_task task, const struct nosa_tokenizer *tokenizer,
                                  const int32_t *window, int32_t context, uint64_t *random,
                                  uint32_t *memory, struct quality_case *out,
                                  struct nosa_error *error);

/* ---- quality_run.c ---- */

/* A mode with its sizes, and its engine. */
struct quality_config {
    enum nosa_attention_mode mode;
    bool plain;                     /* without the eviction head: c = 0 */
    struct nosa_sparse_sizes sizes; /* 0: the checkpoint's */
    struct nosa_engine *engine;     /* owned */
    struct quality_hits hits;       /* not in `full` */
    struct nosa_session *session;   /* of the case that runs */
};

/* What one configuration got in one case. */
struct quality_score {
    double *loss;      /* [buckets] owned by the caller: sums of negative log probabilities */
    double divergence; /* sum over compared positions of KL(full || this), in nats */
    uint64_t agreed;   /* of them, with the same likeliest token */
    uint64_t compared;
    bool answered[QUALITY_PROBES_MAX];
};

/* Opens the engine of a configuration for cases of `context` tokens in chunks of `chunk`. */
enum nosa_status quality_config_open(struct quality_config *config, const char *model_directory,
                                     int32_t threads, int32_t context, int32_t chunk,
                                     struct nosa_error *error);
void quality_config_close(struct quality_config *config);

/* Computes a case in every configuration, the first of which is what others are compared with;
 * fills scores[n]. Every compare_every-th position is compared, from compare_first on; 0: none is.
 */
enum nosa_status quality_run_case(struct quality_config *configs, int32_t n,
                                  const struct quality_case *subject, int32_t chunk,
                                  int32_t compare_first, int32_t compare_every,
                                  struct quality_score *scores, struct nosa_error *error);

#endif
