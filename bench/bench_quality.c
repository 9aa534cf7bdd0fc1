/*
 * `nosa-bench quality`: what sparse attention costs in quality on a model and texts.
 *
 * Windows of the texts are scored in every configuration, `full` among them, token by token given
 * those before: perplexity, by position too; agreement with `full`; hit rates of a first tier. Then
 * haystacks are made of the same windows, and their answers counted. Differences to `full` are
 * paired: of each document, then their mean and its standard error over documents.
 */
#include "bench_quality_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "bench.h"

/* Tokens of a step: every row's logits are kept, in each configuration. */
#define CHUNK 128

const struct nosa_flag bench_quality_flags[] = {
    {.name = "texts",
     .kind = NOSA_FLAG_STRING,
     .value_name = "PATH",
     .group = "quality",
     .help = "a text in UTF-8, or a folder of *.txt, one document each; with --model"},
    {.name = "modes",
     .kind = NOSA_FLAG_STRING,
     .value_name = "MODE,...",
     .default_text = "infllmv2,nosa",
     .group = "quality",
     .help = "what is compared with full attention without the eviction head, which always runs, "
             "as does full attention with it"},
    {.name = "sizes",
     .kind = NOSA_FLAG_STRING,
     .value_name = "T/W/S,...",
     .group = "quality",
     .help = "topk / window in tokens / select_blocks to try in place of the checkpoint's; each "
             "with each mode keeps one more copy of the model in memory"},
    {.name = "window",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .default_text = "8192",
     .range.integer = {256, 1 << 20},
     .group = "quality",
     .help = "tokens of a window"},
    {.name = "windows",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .default_text = "1",
     .range.integer = {1, 4096},
     .group = "quality",
     .help = "windows of a document at most"},
    {.name = "documents",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .default_text = "60",
     .range.integer = {1, 4096},
     .group = "quality",
     .help = "documents at most"},
    {.name = "tasks",
     .kind = NOSA_FLAG_STRING,
     .value_name = "NAME,...",
     .default_text = "retrieval",
     .group = "quality",
     .help = "retrieval, multikey, variables, counting, or none"},
    {.name = "haystacks",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .default_text = "8",
     .range.integer = {1, 100000},
     .group = "quality",
     .help = "windows with planted facts, for each task; six questions each, variables four, "
             "counting one"},
    {.name = "agree-every",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .default_text = "8",
     .range.integer = {1, 1 << 20},
     .group = "quality",
     .help = "positions from one comparison of the whole distribution to the next"},
    {.name = "seed",
     .kind = NOSA_FLAG_UINT64,
     .value_name = "S",
     .default_text = "1",
     .group = "quality",
     .help = "seed of the planted facts"},
};
const size_t bench_quality_flag_count = sizeof bench_quality_flags / sizeof *bench_quality_flags;

/* ---- configurations ------------------------------------------------------------------------- */

/* "32/512/8": topk, window in tokens, select_blocks. */
static enum nosa_status parse_size(const char *text, struct nosa_sparse_sizes *out,
                                   struct nosa_error *error)
{
    char rest;
    if (sscanf(text, "%9u/%9u/%9u%c", &out->topk, &out->window_size, &out->select_blocks, &rest) ==
            3 &&
        out->topk > 0 && out->window_size > 0 && out->select_blocks > 0)
        return NOSA_OK;
    return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                          "--sizes: '%s' is not topk/window/select, such as 32/512/8", text);
}

static enum nosa_status add_config(struct quality *quality, enum nosa_attention_mode mode,
                                   const struct nosa_sparse_sizes *sizes, struct nosa_error *error)
{
    if (quality->n_configs == QUALITY_CONFIGS_MAX)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "--modes and --sizes make more than %d configurations",
                              QUALITY_CONFIGS_MAX);
    struct quality_config *config = &quality->configs[quality->n_configs++];
    config->mode = mode;
    if (sizes)
        config->sizes = *sizes;
    return NOSA_OK;
}

static enum nosa_status add_modes(struct quality *quality, const char *modes,
                                  const struct nosa_sparse_sizes *sizes, struct nosa_error *error)
{
    char list[64], *next = list;
    snprintf(list, sizeof list, "%s", modes);
    for (char *word; (word = strsep(&next, ",")) != NULL;) {
        if (strcmp(word, "full") == 0)
            continue; /* it always runs */
        bool nosa = strcmp(word, "nosa") == 0;
        if (!nosa && strcmp(word, "infllmv2") != 0)
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                  "--modes: '%s' is not full, infllmv2 or nosa", word);
        NOSA_TRY(add_config(quality, nosa ? NOSA_ATTENTION_NOSA : NOSA_ATTENTION_INFLLMV2, sizes,
                            error));
    }
    return NOSA_OK;
}

static enum nosa_status choose_configs(struct quality *quality, const struct nosa_flags *flags,
                                       struct nosa_error *error)
{
    const char *modes = nosa_flags_string(flags, "modes");
    const char *sizes = nosa_flags_string(flags, "sizes");
    if (strlen(modes) > 60 || (sizes && strlen(sizes) > 250))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "--modes or --sizes is too long");
    NOSA_TRY(add_config(quality, NOSA_ATTENTION_FULL, NULL, error));
    quality->configs[0].plain = true;
    if (quality->has_head)
        NOSA_TRY(add_config(quality, NOSA_ATTENTION_FULL, NULL, error));
    if (!sizes)
        return add_modes(quality, modes, NULL, error);
    char list[256], *next = list;
    snprintf(list, sizeof list, "%s", sizes);
    for (char *word; (word = strsep(&next, ",")) != NULL;) {
        struct nosa_sparse_sizes size;
        NOSA_TRY(parse_size(word, &size, error));
        NOSA_TRY(add_modes(quality, modes, &size, error));
    }
    return NOSA_OK;
}

static enum nosa_status choose_tasks(struct quality *quality, const char *tasks,
                                     struct nosa_error *error)
{
    char list[128], *next = list;
    snprintf(list, sizeof list, "%.120s", tasks);
    for (char *word; (word = strsep(&next, ",")) != NULL;) {
        int task = 0;
        while (task < QUALITY_TASKS && strcmp(word, quality_task_names[task]) != 0)
            task++;
        if (strcmp(word, "none") == 0)
            continue;
        if (task == QUALITY_TASKS)
            return nosa_error_set(
                error, NOSA_INVALID_ARGUMENT,
                "--tasks: '%s' is not retrieval, multikey, variables, counting or none", word);
        quality->runs_task[task] = true;
    }
    return NOSA_OK;
}

static enum nosa_status look_for_head(struct quality *quality, struct nosa_error *error)
{
    struct nosa_checkpoint *checkpoint;
    NOSA_TRY(nosa_checkpoint_open(quality->model_directory, &checkpoint, error));
    quality->has_head = nosa_checkpoint_config(checkpoint)->has_eviction_head;
    nosa_checkpoint_close(checkpoint);
    return NOSA_OK;
}

static enum nosa_status read_flags(struct quality *quality, const struct nosa_flags *flags,
                                   struct nosa_error *error)
{
    quality->model_directory = nosa_flags_string(flags, "model");
    quality->context = nosa_flags_int32(flags, "window");
    quality->windows = nosa_flags_int32(flags, "windows");
    quality->documents_max = nosa_flags_int32(flags, "documents");
    quality->haystacks = nosa_flags_int32(flags, "haystacks");
    quality->compare_every = nosa_flags_int32(flags, "agree-every");
    quality->chunk = nosa_flags_is_set(flags, "prefill-chunk")
                         ? nosa_flags_int32(flags, "prefill-chunk")
                         : CHUNK;
    quality->random = nosa_flags_uint64(flags, "seed");
    quality->threads = nosa_flags_is_set(flags, "threads") ? nosa_flags_int32(flags, "threads") : 0;
    quality->quiet = nosa_flags_bool(flags, "json");
    quality->chunk = quality->chunk < quality->context ? quality->chunk : quality->context;
    quality->compare_first = quality->context / 4 < 2048 ? quality->context / 4 : 2048;
    if (!quality->model_directory)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "--model is missing");
    if (!nosa_flags_string(flags, "texts"))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "--texts is missing; it names a text or a folder of *.txt");
    NOSA_TRY(look_for_head(quality, error));
    NOSA_TRY(choose_configs(quality, flags, error));
    return choose_tasks(quality, nosa_flags_string(flags, "tasks"), error);
}

static enum nosa_status open_all(struct quality *quality, const struct nosa_flags *flags,
                                 struct nosa_error *error)
{
    NOSA_TRY(nosa_tokenizer_open(quality->model_directory, &quality->tokenizer, error));
    NOSA_TRY(quality_texts_read(&quality->texts, nosa_flags_string(flags, "texts"),
                                quality->tokenizer, quality->context, quality->documents_max,
                                error));
    for (int32_t i = 0; i < quality->n_configs; i++)
        NOSA_TRY(quality_config_open(&quality->configs[i], quality->model_directory,
                                     quality->threads, quality->context, quality->chunk, error));
    return NOSA_OK;
}

static enum nosa_status take_memory(struct quality *quality, struct nosa_error *error)
{
    quality->buckets = (quality->context + QUALITY_BUCKET - 1) / QUALITY_BUCKET;
    size_t documents = (size_t)quality->texts.n, buckets = (size_t)quality->buckets;
    quality->ids = calloc((size_t)quality->context, sizeof *quality->ids);
    quality->document_windows = calloc(documents, sizeof *quality->document_windows);
    bool taken = quality->ids && quality->document_windows;
    for (int32_t i = 0; i < quality->n_configs; i++) {
        struct quality_result *result = &quality->results[i];
        result->loss = calloc(documents * buckets, sizeof *result->loss);
        quality->scores[i].loss = calloc(buckets, sizeof *quality->scores[i].loss);
        taken = taken && result->loss && quality->scores[i].loss;
    }
    return taken ? NOSA_OK : nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for results");
}

static void release(struct quality *quality)
{
    for (int32_t i = 0; i < quality->n_configs; i++) {
        quality_config_close(&quality->configs[i]);
        free(quality->results[i].loss);
        free(quality->scores[i].loss);
    }
    free(quality->ids);
    free(quality->document_windows);
    quality_texts_free(&quality->texts);
    nosa_tokenizer_close(quality->tokenizer);
}

/* ---- running -------------------------------------------------------------------------------- */

static void say(const struct quality *quality, const char *what, int32_t done, int32_t all,
                uint64_t start)
{
    double spent_s = nosa_seconds_between(start, nosa_monotonic_ns());
    if (!quality->quiet && done > 0)
        fprintf(stderr, "%s: %d of %d, %.0f s, about %.0f s left\n", what, done, all, spent_s,
                spent_s / done * (all - done));
}

static enum nosa_status run_window(struct quality *quality, int32_t document, int64_t first,
                                   struct nosa_error *error)
{
    const int32_t *ids = quality->texts.documents[document].ids.ids + first;
    memcpy(quality->ids, ids, sizeof *ids * (size_t)quality->context);
    struct quality_case subject = {.ids = quality->ids, .n = quality->context};
    NOSA_TRY(quality_run_case(quality->configs, quality->n_configs, &subject, quality->chunk,
                              quality->compare_first, quality->compare_every, quality->scores,
                              error));
    quality->document_windows[document]++;
    for (int32_t i = 0; i < quality->n_configs; i++) {
        struct quality_result *result = &quality->results[i];
        for (int32_t bucket = 0; bucket < quality->buckets; bucket++)
            result->loss[document * quality->buckets + bucket] += quality->scores[i].loss[bucket];
        result->divergence += quality->scores[i].divergence;
        result->agreed += quality->scores[i].agreed;
        result->compared += quality->scores[i].compared;
    }
    return NOSA_OK;
}

static enum nosa_status run_windows(struct quality *quality, struct nosa_error *error)
{
    int32_t all = 0, done = 0;
    uint64_t start = nosa_monotonic_ns();
    for (int32_t pass = 0; pass < 2; pass++)
        for (int32_t index = 0; index < quality->windows; index++)
            for (int32_t i = 0; i < quality->texts.n; i++) {
                int64_t first = quality_window(&quality->texts.documents[i], quality->context,
                                               quality->windows, index);
                if (first < 0)
                    continue;
                all += pass == 0;
                if (pass == 0)
                    continue;
                NOSA_TRY(run_window(quality, i, first, error));
                say(quality, "windows", ++done, all, start);
            }
    for (int32_t i = 0; i < quality->n_configs; i++) { /* haystacks do not count */
        struct quality_result *result = &quality->results[i];
        const struct quality_hits *hits = &quality->configs[i].hits;
        result->selected = hits->selected;
        result->hits_exact = hits->hits_exact;
        result->hits_larger = hits->hits_larger;
    }
    return NOSA_OK;
}

static void count_answers(struct quality *quality, enum quality_task task,
                          const struct quality_case *subject)
{
    for (int32_t at = 0; at < subject->n_probes; at++) {
        bool full = quality->scores[0].answered[at];
        int32_t depth = (int32_t)(subject->probes[at].depth * 10 + 0.5);
        for (int32_t i = 0; i < quality->n_configs; i++) {
            struct quality_tally *tally = &quality->results[i].tasks[task];
            bool right = quality->scores[i].answered[at];
            tally->asked++;
            tally->right += right;
            tally->lost += full && !right;
            tally->won += !full && right;
            tally->depth_asked[depth]++;
            tally->depth_right[depth] += right;
        }
    }
}

static enum nosa_status run_task(struct quality *quality, enum quality_task task,
                                 struct nosa_error *error)
{
    uint64_t start = nosa_monotonic_ns();
    for (int32_t i = 0; i < quality->haystacks; i++) {
        const struct quality_document *document = &quality->texts.documents[i % quality->texts.n];
        struct quality_case subject;
        NOSA_TRY(quality_haystack(task, quality->tokenizer, document->ids.ids, quality->context,
                                  &quality->random, quality->ids, &subject, error));
        NOSA_TRY(quality_run_case(quality->configs, quality->n_configs, &subject, quality->chunk, 0,
                                  0, quality->scores, error));
        count_answers(quality, task, &subject);
        say(quality, quality_task_names[task], i + 1, quality->haystacks, start);
    }
    return NOSA_OK;
}

static enum nosa_status run_all(struct quality *quality, struct nosa_error *error)
{
    for (int32_t i = 0; i < quality->n_configs && !quality->has_head; i++)
        if (quality->configs[i].mode == NOSA_ATTENTION_NOSA && !quality->no_head) {
            quality->no_head = true;
            fprintf(stderr,
                    "%s has no eviction head: in nosa mode every E ties, and the second cut takes "
                    "the lowest blocks\n",
                    quality->model_directory);
        }
    NOSA_TRY(run_windows(quality, error));
    for (int task = 0; task < QUALITY_TASKS; task++)
        if (quality->runs_task[task])
            NOSA_TRY(run_task(quality, (enum quality_task)task, error));
    return NOSA_OK;
}

enum nosa_status bench_quality(const struct nosa_flags *flags, struct nosa_error *error)
{
    struct quality *quality = calloc(1, sizeof *quality);
    if (!quality)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for results");
    enum nosa_status status = read_flags(quality, flags, error);
    if (status == NOSA_OK)
        status = open_all(quality, flags, error);
    if (status == NOSA_OK)
        status = take_memory(quality, error);
    if (status == NOSA_OK)
        status = run_all(quality, error);
    if (status == NOSA_OK)
        status = nosa_flags_bool(flags, "json") ? quality_print_json(quality, error)
                                                : quality_print(quality, error);
    release(quality);
    free(quality);
    return status;
}
