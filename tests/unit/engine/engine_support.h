/* Shared by the engine's tests: tiny checkpoints in a temporary directory, and sessions run to the
 * end of their tokens. */
#ifndef NOSA_TESTS_ENGINE_SUPPORT_H
#define NOSA_TESTS_ENGINE_SUPPORT_H

#include "engine/engine.h"
#include "support/tiny_checkpoint.h"

#define TINY_PATH_MAX 64

/* Writes `tiny` into a fresh directory, whose path is stored; asserts on failure. */
void tiny_write(const struct nosa_tiny_checkpoint *tiny, char path[TINY_PATH_MAX]);

/* Defaults with sparse sizes that make selection work from a few hundred tokens on: windows of
 * 8 at a stride of 4, window 128, topk 6, select_blocks 2; 4096 positions. */
void tiny_sparse_defaults(struct nosa_tiny_checkpoint *tiny);

/* Opens an engine on the directory; asserts on failure. */
struct nosa_engine *tiny_engine(const char *path, int attention, int32_t tp, int32_t threads,
                                int32_t rows_max, int32_t sessions_max, int32_t context_max);

/* n tokens below `vocab` from a seed. */
void random_tokens(uint32_t seed, uint32_t vocab, uint32_t *tokens, int32_t n);

/* Logits after tokens[0 .. n), computed in chunks of `chunk`, with salt "s<salt>"; [vocab] values
 * are stored in `logits`. */
void logits_after(struct nosa_engine *engine, const uint32_t *tokens, int32_t n, int32_t chunk,
                  int salt, float *logits);

#endif
