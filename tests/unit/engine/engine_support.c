#include "engine_support.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

void tiny_write(const struct nosa_tiny_checkpoint *tiny, char path[TINY_PATH_MAX])
{
    struct nosa_error error = {0};
    snprintf(path, TINY_PATH_MAX, "/tmp/nosa-engine-XXXXXX");
    assert_non_null(mkdtemp(path));
    if (nosa_tiny_checkpoint_write(path, tiny, &error) != NOSA_OK)
        fail_msg("%s", error.text);
}

void tiny_sparse_defaults(struct nosa_tiny_checkpoint *tiny)
{
    nosa_tiny_checkpoint_defaults(tiny);
    tiny->sparse = (struct nosa_sparse_config){.kernel_size = 8,
                                               .kernel_stride = 4,
                                               .init_blocks = 1,
                                               .block_size = 64,
                                               .window_size = 128,
                                               .topk = 6,
                                               .select_blocks = 2};
}

struct nosa_engine *tiny_engine(const char *path, int attention, int32_t tp, int32_t threads,
                                int32_t rows_max, int32_t sessions_max, int32_t context_max)
{
    struct nosa_engine_options options = {
        .model_directory = path,
        .attention = attention,
        .tp = tp,
        .device = {.threads = threads},
        .rows_max = rows_max,
        .sessions_max = sessions_max,
        .context_max = context_max,
    };
    struct nosa_engine *engine;
    struct nosa_error error = {0};
    if (nosa_engine_open(&options, &engine, &error) != NOSA_OK)
        fail_msg("%s", error.text);
    return engine;
}

void random_tokens(uint32_t seed, uint32_t vocab, uint32_t *tokens, int32_t n)
{
    uint64_t state = seed;
    for (int32_t i = 0; i < n; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        tokens[i] = (uint32_t)(state >> 33) % vocab;
    }
}

void logits_after(struct nosa_engine *engine, const uint32_t *tokens, int32_t n, int32_t chunk,
                  int salt, float *logits)
{
    char salt_text[16];
    int salt_bytes = snprintf(salt_text, sizeof salt_text, "s%d", salt);
    struct nosa_session_options options = {.tokens = tokens,
                                           .n_tokens = n,
                                           .prompt_length = n,
                                           .salt = salt_text,
                                           .salt_bytes = (size_t)salt_bytes,
                                           .keep_logits = true};
    struct nosa_session *session;
    struct nosa_error error = {0};
    if (nosa_session_open(engine, &options, &session, &error) != NOSA_OK)
        fail_msg("%s", error.text);
    bool sampled = false;
    while (!sampled) {
        int32_t left = n - nosa_session_computed(session);
        struct nosa_step_item step = {.session = session, .n_tokens = left < chunk ? left : chunk};
        if (nosa_engine_step(engine, &step, 1, &error) != NOSA_OK)
            fail_msg("%s", error.text);
        sampled = step.sampled;
    }
    memcpy(logits, nosa_session_logits(session),
           sizeof *logits * nosa_engine_info(engine)->config->vocab);
    nosa_session_close(session);
}
