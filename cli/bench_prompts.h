/* Prompts from a file of JSON lines: {"prompt": "text", "output_tokens": 100}, the number only
 * where it is wanted. Read once, then constant; any thread. */
#ifndef NOSA_CLI_BENCH_PROMPTS_H
#define NOSA_CLI_BENCH_PROMPTS_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct nosa_bench_prompt {
    char *text;             /* owned */
    uint32_t output_tokens; /* 0: as the plan draws it */
};

struct nosa_bench_prompts {
    struct nosa_bench_prompt *list; /* owned, [count] */
    size_t count;
};

/* Reads a file of up to 1 GiB with at least one prompt; empty lines are skipped. The error names
 * the file, and the line that is wrong. On error *prompts is empty. */
enum nosa_status nosa_bench_prompts_read(const char *path, struct nosa_bench_prompts *prompts,
                                         struct nosa_error *error);
void nosa_bench_prompts_free(struct nosa_bench_prompts *prompts);

#endif
