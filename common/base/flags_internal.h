/* What flags.c (parsing, access) shares with flags_value.c (values) and flags_help.c (--help). */
#ifndef NOSA_BASE_FLAGS_INTERNAL_H
#define NOSA_BASE_FLAGS_INTERNAL_H

#include "base/flags.h"

union nosa_flag_value {
    bool boolean;
    int64_t integer; /* INT32, INT64, and CHOICE as an index */
    uint64_t count;  /* UINT64, SIZE */
    double number;
    const char *text; /* borrowed: the text that was parsed */
};

/*
 * Parses `text` as a value of `flag`. The error's text says what is wrong with the value; the
 * caller names the flag or the variable.
 */
enum nosa_status nosa_flag_parse_value(const struct nosa_flag *flag, const char *text,
                                       union nosa_flag_value *value, struct nosa_error *error);

/* Whether the flag restricts the values of its kind. */
bool nosa_flag_has_range(const struct nosa_flag *flag);

/*
 * Writes "1 to 4096" or, for sizes, "0 B to 4 GiB"; with `brief` a range that only the kind ends is
 * "at least 1".
 */
void nosa_flag_format_range(const struct nosa_flag *flag, bool brief, char *text, size_t size);

#endif
