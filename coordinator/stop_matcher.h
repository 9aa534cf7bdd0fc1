/*
 * Finds stop strings in a text that comes in pieces. Text that may yet turn out to begin a stop
 * string is held back, so that none of a match is ever given out; what is given out depends on the
 * bytes alone and not on how they were cut. One Knuth-Morris-Pratt automaton per string. Not shared
 * between threads.
 */
#ifndef NOSA_COORDINATOR_STOP_MATCHER_H
#define NOSA_COORDINATOR_STOP_MATCHER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/status.h"

struct nosa_stop_string {
    const char *text;  /* borrowed */
    uint32_t size;     /* bytes, at least 1 */
    uint32_t matched;  /* length of the longest beginning of it that the text now ends with */
    uint32_t *failure; /* [size]: that length after a mismatch; inside the matcher's allocation */
};

/* All zero is a valid matcher without strings. */
struct nosa_stop_matcher {
    struct nosa_stop_string *strings; /* owned, [count] */
    size_t count;
    uint32_t *failures;      /* owned */
    struct nosa_buffer held; /* what may begin a match */
    int found;               /* index of the string that matched; -1: none yet */
};

/* Texts are borrowed until free. NOSA_OUT_OF_MEMORY leaves an empty matcher. */
enum nosa_status nosa_stop_matcher_init(struct nosa_stop_matcher *matcher, char *const *texts,
                                        size_t count, struct nosa_error *error);

/*
 * Takes the next bytes and appends to `out` what cannot be part of a match. *found: a string
 * matched; all text before it was given out, and what followed it is dropped, now and later. Of
 * strings that end at the same byte the longest counts. NOSA_OUT_OF_MEMORY.
 */
enum nosa_status nosa_stop_matcher_push(struct nosa_stop_matcher *matcher, const char *text,
                                        size_t size, struct nosa_buffer *out, bool *found);

/* The text ends: appends what was held back. */
enum nosa_status nosa_stop_matcher_finish(struct nosa_stop_matcher *matcher,
                                          struct nosa_buffer *out);

/* The string that matched; NULL: none. */
const char *nosa_stop_matcher_found(const struct nosa_stop_matcher *matcher);

void nosa_stop_matcher_free(struct nosa_stop_matcher *matcher);

#endif
