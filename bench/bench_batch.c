/*
 * What the engine alone makes of a batch: so many prompts that come at once, computed to the end of
 * their outputs by continuous batching, without scheduler, network or client. It is the yardstick
 * that serving the same work is held to.
 *
 * A step takes a token of every sequence that decodes and fills up with prompt tokens.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "bench.h"
#include "engine/engine.h"

struct batch {
    int32_t sequences, prompt_tokens, output_tokens, rounds;
    struct nosa_engine *engine;
    const struct nosa_engine_info *info;
    uint32_t *tokens;               /* owned [sequences + prompt_tokens]; prompts overlap */
    struct nosa_session **sessions; /* owned [sequences], as the next */
    struct nosa_step_item *items;
    int32_t *item_sequence; /* whose item it is */
    int32_t *outputs;       /* tokens that each has */
    uint64_t salt;          /* new with every round, so that none finds another's KV */
    double *rates;          /* owned [rounds]: output tokens per second, prompts included */
    double *decode_rates;   /* owned [rounds]: from when all prompts were computed */
};

/* ---- a round -------------------------------------------------------------------------------- */

static enum nosa_status open_sessions(struct batch *batch, struct nosa_error *error)
{
    batch->salt++;
    for (int32_t i = 0; i < batch->sequences; i++) {
        const struct nosa_session_options options = {.tokens = batch->tokens + i,
                                                     .n_tokens = batch->prompt_tokens,
                                                     .prompt_length = batch->prompt_tokens,
                                                     .salt = &batch->salt,
                                                     .salt_bytes = sizeof batch->salt};
        batch->outputs[i] = 0;
        NOSA_TRY(nosa_session_open(batch->engine, &options, &batch->sessions[i], error));
    }
    return NOSA_OK;
}

static void close_sessions(struct batch *batch)
{
    for (int32_t i = 0; i < batch->sequences; i++) {
        nosa_session_close(batch->sessions[i]);
        batch->sessions[i] = NULL;
    }
}

/* Chooses the rows of the next step; how many items. */
static int32_t choose(struct batch *batch)
{
    int32_t n_items = 0, room = batch->info->rows_max;
    for (int pass = 0; pass < 2; pass++)
        for (int32_t i = 0; i < batch->sequences && room > 0; i++) {
            struct nosa_session *session = batch->sessions[i];
            int32_t left = nosa_session_length(session) - nosa_session_computed(session);
            bool decodes = batch->outputs[i] > 0;
            if (batch->outputs[i] == batch->output_tokens || decodes != (pass == 0))
                continue;
            batch->items[n_items] =
                (struct nosa_step_item){.session = session, .n_tokens = left < room ? left : room};
            room -= batch->items[n_items].n_tokens;
            batch->item_sequence[n_items++] = i;
        }
    return n_items;
}

/* Computes every sequence to its end; sets the round's rates. */
static enum nosa_status run_round(struct batch *batch, int32_t round, struct nosa_error *error)
{
    int32_t n_items, decoding = 0;
    double tokens = 0, decoded = 0;
    NOSA_TRY(open_sessions(batch, error));
    uint64_t start = nosa_monotonic_ns(), all_decode = 0;
    while ((n_items = choose(batch)) > 0) {
        NOSA_TRY(nosa_engine_step(batch->engine, batch->items, n_items, error));
        for (int32_t i = 0; i < n_items; i++) {
            if (!batch->items[i].sampled)
                continue;
            decoding += batch->outputs[batch->item_sequence[i]]++ == 0;
            tokens++;
            decoded += all_decode > 0;
        }
        if (decoding == batch->sequences && !all_decode)
            all_decode = nosa_monotonic_ns();
    }
    uint64_t end = nosa_monotonic_ns();
    batch->rates[round] = tokens / nosa_seconds_between(start, end);
    batch->decode_rates[round] =
        all_decode < end ? decoded / nosa_seconds_between(all_decode, end) : 0;
    return NOSA_OK;
}

/* ---- the subcommand ------------------------------------------------------------------------- */

static enum nosa_status open_engine(const struct nosa_flags *flags, struct batch *batch,
                                    struct nosa_error *error)
{
    const struct nosa_engine_options options = {
        .model_directory = nosa_flags_string(flags, "model"),
        .attention = nosa_flags_choice(flags, "attention"),
        .tp = 1,
        .device = {.threads = nosa_flags_int32(flags, "threads")},
        .context_max = batch->prompt_tokens + batch->output_tokens,
        .rows_max = nosa_flags_int32(flags, "prefill-chunk") + batch->sequences,
        .sessions_max = batch->sequences,
    };
    NOSA_TRY(nosa_engine_open(&options, &batch->engine, error));
    batch->info = nosa_engine_info(batch->engine);
    return NOSA_OK;
}

static enum nosa_status take_memory(struct batch *batch, struct nosa_error *error)
{
    size_t sequences = (size_t)batch->sequences, rounds = (size_t)batch->rounds;
    size_t count = sequences + (size_t)batch->prompt_tokens;
    uint64_t state = 1;
    batch->tokens = calloc(count, sizeof *batch->tokens);
    batch->sessions = calloc(sequences, sizeof(void *));
    batch->items = calloc(sequences, sizeof *batch->items);
    batch->item_sequence = calloc(sequences, sizeof *batch->item_sequence);
    batch->outputs = calloc(sequences, sizeof *batch->outputs);
    batch->rates = calloc(rounds, sizeof *batch->rates);
    batch->decode_rates = calloc(rounds, sizeof *batch->decode_rates);
    if (!batch->tokens || !batch->sessions || !batch->items || !batch->item_sequence ||
        !batch->outputs || !batch->rates || !batch->decode_rates)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for %d sequences",
                              batch->sequences);
    for (size_t i = 0; i < count; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        batch->tokens[i] = (uint32_t)(state >> 33) % batch->info->config->vocab;
    }
    return NOSA_OK;
}

static enum nosa_status print(struct batch *batch, bool json, struct nosa_error *error)
{
    double rate = bench_median(batch->rates, batch->rounds);
    double decode = bench_median(batch->decode_rates, batch->rounds);
    double lowest = batch->rates[0], highest = batch->rates[batch->rounds - 1];
    if (!json) {
        printf("%s, %s attention\n%d sequences, %d prompt and %d output tokens each\n"
               "output tokens/s, prompts included: %.1f (%.1f-%.1f)\n"
               "output tokens/s, decoding alone:   %.1f (%.1f-%.1f)\n",
               batch->info->device, nosa_attention_mode_name(batch->info->attention),
               batch->sequences, batch->prompt_tokens, batch->output_tokens, rate, lowest, highest,
               decode, batch->decode_rates[0], batch->decode_rates[batch->rounds - 1]);
        return NOSA_OK;
    }
    json_t *object =
        json_pack("{s:s s:s s:i s:i s:i s:f s:f s:f s:f}", "device", batch->info->device,
                  "attention", nosa_attention_mode_name(batch->info->attention), "sequences",
                  batch->sequences, "prompt_tokens", batch->prompt_tokens, "output_tokens",
                  batch->output_tokens, "output_tokens_per_s", rate, "lowest", lowest, "highest",
                  highest, "decode_tokens_per_s", decode);
    int failed = object ? json_dumpf(object, stdout, JSON_REAL_PRECISION(6)) : -1;
    putchar('\n');
    json_decref(object);
    return failed ? nosa_error_set(error, NOSA_IO_ERROR, "standard output: cannot write") : NOSA_OK;
}

enum nosa_status bench_batch(const struct nosa_flags *flags, struct nosa_error *error)
{
    struct batch batch = {.sequences = nosa_flags_int32(flags, "sequences"),
                          .prompt_tokens = nosa_flags_int32(flags, "prompt-tokens"),
                          .output_tokens = nosa_flags_int32(flags, "output-tokens"),
                          .rounds = nosa_flags_int32(flags, "rounds")};
    if (!nosa_flags_string(flags, "model"))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "--model is missing");
    enum nosa_status status = open_engine(flags, &batch, error);
    if (status == NOSA_OK)
        status = take_memory(&batch, error);
    for (int32_t round = -1; round < batch.rounds && status == NOSA_OK; round++) {
        status = run_round(&batch, round < 0 ? 0 : round, error); /* the first one warms up */
        close_sessions(&batch);
    }
    if (status == NOSA_OK)
        status = print(&batch, nosa_flags_bool(flags, "json"), error);
    nosa_engine_close(batch.engine);
    free(batch.tokens);
    free(batch.sessions);
    free(batch.items);
    free(batch.item_sequence);
    free(batch.outputs);
    free(batch.rates);
    free(batch.decode_rates);
    return status;
}
