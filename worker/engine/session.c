#include "engine/engine_internal.h"

#include <stdlib.h>

static enum nosa_status check_range(const char *name, float value, float min, float max,
                                    struct nosa_error *error)
{
    if (value >= min && value <= max) /* false for NaN */
        return NOSA_OK;
    return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s %g is not within %g and %g", name,
                          (double)value, (double)min, (double)max);
}

static enum nosa_status check_sampling(const struct nosa_session_options *options,
                                       struct nosa_error *error)
{
    const struct nosa_sampling *sampling = &options->sampling;
    NOSA_TRY(check_range("temperature", sampling->temperature, 0, 100, error));
    NOSA_TRY(check_range("top_p", sampling->top_p, 0, 1, error));
    NOSA_TRY(check_range("min_p", sampling->min_p, 0, 1, error));
    NOSA_TRY(check_range("repetition_penalty", sampling->repetition_penalty, 0, 100, error));
    NOSA_TRY(check_range("presence_penalty", sampling->presence_penalty, -100, 100, error));
    NOSA_TRY(check_range("frequency_penalty", sampling->frequency_penalty, -100, 100, error));
    if (sampling->top_k < 0)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "top_k %d is negative",
                              sampling->top_k);
    if (options->n_top < 0 || options->n_top > NOSA_TOP_LOGPROBS_MAX)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%d top log probabilities; at most %d",
                              options->n_top, NOSA_TOP_LOGPROBS_MAX);
    return NOSA_OK;
}

static enum nosa_status check_session(const struct nosa_engine *engine,
                                      const struct nosa_session_options *options,
                                      struct nosa_error *error)
{
    if (options->n_tokens < 1)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "the prompt is empty");
    if (options->n_tokens > engine->info.context_max)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "the prompt has %d tokens, more than the context of %d",
                              options->n_tokens, engine->info.context_max);
    NOSA_ASSERT(options->prompt_length >= 1 && options->prompt_length <= options->n_tokens);
    for (int32_t i = 0; i < options->n_tokens; i++)
        if (options->tokens[i] >= engine->info.config->vocab)
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                  "token %u at position %d is past the vocabulary of %u",
                                  options->tokens[i], i, engine->info.config->vocab);
    return check_sampling(options, error);
}

static enum nosa_status open_sequence(struct nosa_session *session,
                                      const struct nosa_session_options *options,
                                      struct nosa_error *error)
{
    struct nosa_engine *engine = session->engine;
    if (options->score) /* every token's logits are formed, so none may be taken over */
        return nosa_kv_sequence_open_private(engine->store, options->tokens, options->n_tokens,
                                             &session->sequence, error);
    return nosa_kv_sequence_open(engine->store, options->tokens, options->n_tokens, options->salt,
                                 options->salt_bytes, &session->sequence, &session->cached, error);
}

enum nosa_status nosa_session_open(struct nosa_engine *engine,
                                   const struct nosa_session_options *options,
                                   struct nosa_session **out, struct nosa_error *error)
{
    *out = NULL;
    NOSA_TRY(check_session(engine, options, error));
    struct nosa_session *session = calloc(1, sizeof *session);
    if (!session)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a session");
    session->engine = engine;
    engine->sessions_open++;
    session->sampling = options->sampling;
    session->n_top = options->n_top;
    session->prompt_length = options->prompt_length;
    session->step_mark = -1;
    if (options->trace)
        session->trace = *options->trace;
    if (options->keep_logits)
        session->logits = calloc(engine->info.config->vocab, sizeof *session->logits);
    if (options->score) {
        session->score_count = options->n_tokens;
        session->scores = calloc((size_t)options->n_tokens, sizeof *session->scores);
    }
    enum nosa_status status = NOSA_OK;
    if ((options->keep_logits && !session->logits) || (options->score && !session->scores))
        status = nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a session");
    if (status == NOSA_OK)
        status = open_sequence(session, options, error);
    if (status != NOSA_OK) {
        nosa_session_close(session);
        return status;
    }
    *out = session;
    return NOSA_OK;
}

static bool in_flight(const struct nosa_session *session)
{
    return session->engine->items && session->step_mark >= 0;
}

void nosa_session_close(struct nosa_session *session)
{
    if (!session)
        return;
    NOSA_ASSERT(!in_flight(session));
    nosa_kv_sequence_close(session->sequence);
    session->engine->sessions_open--;
    free(session->logits);
    free(session->scores);
    free(session);
}

int32_t nosa_session_length(const struct nosa_session *session)
{
    return nosa_kv_sequence_length(session->sequence);
}

int32_t nosa_session_computed(const struct nosa_session *session)
{
    return nosa_kv_sequence_computed(session->sequence);
}

int32_t nosa_session_cached(const struct nosa_session *session)
{
    return session->cached;
}

const uint32_t *nosa_session_tokens(const struct nosa_session *session)
{
    return nosa_kv_sequence_tokens(session->sequence);
}

bool nosa_session_ready(struct nosa_session *session)
{
    bool ready = nosa_kv_sequence_ready(session->sequence);
    int32_t computed = nosa_session_computed(session);
    session->cached = session->cached < computed ? session->cached : computed;
    return ready;
}

void nosa_session_kv(const struct nosa_session *session, struct nosa_session_kv *out)
{
    *out = session->kv;
}

int32_t nosa_session_working_set(const struct nosa_session *session)
{
    const struct nosa_model_config *config = session->engine->info.config;
    uint64_t pools = (uint64_t)config->n_layers * config->n_kv_heads;
    uint64_t records = session->window_records > session->working_records
                           ? session->window_records
                           : session->working_records;
    return (int32_t)((records + pools - 1) / pools);
}

const float *nosa_session_logits(const struct nosa_session *session)
{
    return session->logits;
}

const float *nosa_session_scores(const struct nosa_session *session)
{
    return session->scores;
}

enum nosa_status nosa_session_append(struct nosa_session *session, uint32_t token,
                                     struct nosa_error *error)
{
    if (in_flight(session))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "token %u for a session whose step is in flight", token);
    if (token >= session->engine->info.config->vocab)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "token %u is past the vocabulary of %u",
                              token, session->engine->info.config->vocab);
    return nosa_kv_sequence_append(session->sequence, token, error);
}

int32_t nosa_session_blocks_needed(const struct nosa_session *session, int32_t n_tokens)
{
    return nosa_kv_sequence_blocks_needed(session->sequence,
                                          nosa_session_computed(session) + n_tokens);
}

enum nosa_status nosa_session_suspend(struct nosa_session *session, struct nosa_error *error)
{
    struct nosa_engine *engine = session->engine;
    if (engine->items || nosa_kv_sequence_suspended(session->sequence))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "a session is suspended once, and between steps");
    if (!nosa_session_ready(session))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "a session whose prefix is being read cannot be suspended");
    nosa_kv_sequence_save(session->sequence);
    NOSA_TRY(nosa_engine_step_moves(engine, error));
    for (int32_t i = 0; i < nosa_rank_group_count(engine->group); i++)
        NOSA_TRY(nosa_rank_tiers_remember(nosa_rank_group_member(engine->group, i), &engine->tiers,
                                          session->sequence, error));
    nosa_kv_sequence_suspend(session->sequence);
    return NOSA_OK;
}

bool nosa_session_suspended(const struct nosa_session *session)
{
    return nosa_kv_sequence_suspended(session->sequence);
}

enum nosa_status nosa_session_resume(struct nosa_session *session, struct nosa_error *error)
{
    if (!nosa_kv_sequence_suspended(session->sequence))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "the session is not suspended");
    return nosa_kv_sequence_resume(session->sequence, error);
}
