#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "quality.h"

enum nosa_status quality_config_open(struct quality_config *config, const char *model_directory,
                                     int32_t threads, int32_t context, int32_t chunk,
                                     struct nosa_error *error)
{
    struct nosa_engine_options options = {
        .model_directory = model_directory,
        .attention = (int)config->mode,
        .tp = 1,
        .device = {.threads = threads},
        .context_max = context,
        .rows_max = chunk,
        .sessions_max = 1,
        .ignore_head = config->plain,
        .sparse = config->sizes,
        .trace_rows_max = config->mode == NOSA_ATTENTION_FULL ? 0 : chunk,
        .score_rows_kept = chunk,
    };
    NOSA_TRY(nosa_engine_open(&options, &config->engine, error));
    if (config->mode == NOSA_ATTENTION_FULL)
        return NOSA_OK;
    return quality_hits_create(&config->hits, nosa_engine_info(config->engine)->config, context,
                               error);
}

void quality_config_close(struct quality_config *config)
{
    quality_hits_destroy(&config->hits);
    nosa_engine_close(config->engine);
    config->engine = NULL;
}

static enum nosa_status open_session(struct quality_config *config,
                                     const struct quality_case *subject, struct nosa_error *error)
{
    struct nosa_trace_sink sink = {
        .step_first = config->hits.step_first, .row = quality_hits_row, .context = &config->hits};
    struct nosa_session_options options = {
        .tokens = subject->ids,
        .n_tokens = subject->n,
        .prompt_length = subject->n,
        .score = true,
        .trace = config->mode == NOSA_ATTENTION_FULL ? NULL : &sink,
    };
    if (options.trace)
        quality_hits_restart(&config->hits);
    return nosa_session_open(config->engine, &options, &config->session, error);
}

/* ---- rows of logits ------------------------------------------------------------------------- */

static int32_t likeliest(const float *logits, int32_t vocab)
{
    int32_t best = 0;
    for (int32_t i = 1; i < vocab; i++)
        best = logits[i] > logits[best] ? i : best;
    return best;
}

/* log sum exp, terms summed in double. */
static double normaliser(const float *logits, int32_t vocab)
{
    float top = logits[likeliest(logits, vocab)];
    double sum = 0;
    for (int32_t i = 0; i < vocab; i++)
        sum += (double)expf(logits[i] - top);
    return (double)top + log(sum);
}

static void compare_row(const float *full, const float *logits, int32_t vocab,
                        struct quality_score *score)
{
    double full_total = normaliser(full, vocab), total = normaliser(logits, vocab), sum = 0;
    for (int32_t i = 0; i < vocab; i++) {
        double log_full = (double)full[i] - full_total;
        sum += (double)expf((float)log_full) * (log_full - ((double)logits[i] - total));
    }
    score->divergence += sum;
    score->agreed += likeliest(full, vocab) == likeliest(logits, vocab);
    score->compared++;
}

/* The answers whose tokens are predicted by the row at `position`. */
static void check_probes(const struct quality_case *subject, int32_t position, const float *logits,
                         int32_t vocab, struct quality_score *score)
{
    for (int32_t i = 0; i < subject->n_probes; i++) {
        const struct quality_probe *probe = &subject->probes[i];
        if (position + 1 < probe->begin || position + 1 >= probe->end)
            continue;
        bool right = true;
        for (int32_t other = 1; other < probe->n_choices; other++)
            right = right && logits[probe->choice[0]] > logits[probe->choice[other]];
        if (probe->n_choices == 0)
            right = likeliest(logits, vocab) == (int32_t)subject->ids[position + 1];
        score->answered[i] = score->answered[i] && right;
    }
}

/* ---- a case --------------------------------------------------------------------------------- */

struct case_run {
    struct quality_config *configs;
    int32_t n;
    const struct quality_case *subject;
    int32_t compare_first, compare_every;
    struct quality_score *scores;
};

/* Looks at the rows of positions [first, first + count), which every configuration has computed. */
static enum nosa_status look_at_rows(const struct case_run *run, int32_t first, int32_t count,
                                     struct nosa_error *error)
{
    const float *full = NULL;
    int32_t vocab = (int32_t)nosa_engine_info(run->configs[0].engine)->config->vocab;
    for (int32_t i = 0; i < run->n; i++) {
        int32_t n_rows;
        const float *logits = nosa_engine_score_logits(run->configs[i].engine, &n_rows);
        NOSA_ASSERT(n_rows == (first + count < run->subject->n ? count : count - 1));
        full = i == 0 ? logits : full;
        for (int32_t row = 0; row < n_rows; row++) {
            const float *at = logits + (int64_t)row * vocab;
            int32_t position = first + row;
            if (!isfinite(at[0]))
                return nosa_error_set(error, NOSA_CORRUPT,
                                      "the model's logits at position %d are not finite numbers",
                                      position);
            check_probes(run->subject, position, at, vocab, &run->scores[i]);
            if (i > 0 && run->compare_every > 0 && position >= run->compare_first &&
                (position - run->compare_first) % run->compare_every == 0)
                compare_row(full + (int64_t)row * vocab, at, vocab, &run->scores[i]);
        }
    }
    return NOSA_OK;
}

static enum nosa_status run_chunks(const struct case_run *run, int32_t chunk,
                                   struct nosa_error *error)
{
    for (int32_t first = 0; first < run->subject->n; first += chunk) {
        int32_t left = run->subject->n - first, count = left < chunk ? left : chunk;
        for (int32_t i = 0; i < run->n; i++) {
            struct nosa_step_item item = {.session = run->configs[i].session, .n_tokens = count};
            NOSA_TRY(nosa_engine_step(run->configs[i].engine, &item, 1, error));
        }
        NOSA_TRY(look_at_rows(run, first, count, error));
    }
    for (int32_t i = 0; i < run->n; i++) {
        const float *logprobs = nosa_session_scores(run->configs[i].session);
        for (int32_t at = 1; at < run->subject->n; at++)
            run->scores[i].loss[at / QUALITY_BUCKET] -= (double)logprobs[at];
    }
    return NOSA_OK;
}

enum nosa_status quality_run_case(struct quality_config *configs, int32_t n,
                                  const struct quality_case *subject, int32_t chunk,
                                  int32_t compare_first, int32_t compare_every,
                                  struct quality_score *scores, struct nosa_error *error)
{
    const struct case_run run = {configs, n, subject, compare_first, compare_every, scores};
    int32_t buckets = (subject->n + QUALITY_BUCKET - 1) / QUALITY_BUCKET;
    enum nosa_status status = NOSA_OK;
    for (int32_t i = 0; i < n; i++) {
        double *loss = scores[i].loss;
        scores[i] = (struct quality_score){.loss = loss};
        memset(loss, 0, sizeof *loss * (size_t)buckets);
        memset(scores[i].answered, true, sizeof scores[i].answered);
    }
    for (int32_t i = 0; status == NOSA_OK && i < n; i++)
        status = open_session(&configs[i], subject, error);
    if (status == NOSA_OK)
        status = run_chunks(&run, chunk, error);
    for (int32_t i = 0; i < n; i++) {
        nosa_session_close(configs[i].session);
        configs[i].session = NULL;
    }
    return status;
}
