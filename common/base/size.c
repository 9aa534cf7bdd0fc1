#include "base/size.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

/* Bits to shift by for a suffix such as "", "K", "KB" or "KiB"; -1 when it is none. */
static int suffix_shift(const char *suffix)
{
    static const char letters[] = "KMGT";
    if (*suffix == '\0' || strcasecmp(suffix, "B") == 0)
        return 0;
    for (int i = 0; letters[i]; i++) {
        if ((*suffix & ~0x20) != letters[i])
            continue;
        const char *rest = suffix + 1;
        bool known = *rest == '\0' || strcasecmp(rest, "B") == 0 || strcasecmp(rest, "iB") == 0;
        return known ? 10 * (i + 1) : -1;
    }
    return -1;
}

enum nosa_status nosa_size_parse(const char *text, uint64_t *bytes, struct nosa_error *error)
{
    uint64_t value = 0;
    const char *cursor = text;
    *bytes = 0;
    for (; *cursor >= '0' && *cursor <= '9'; cursor++) {
        if (__builtin_mul_overflow(value, 10, &value) ||
            __builtin_add_overflow(value, (uint64_t)(*cursor - '0'), &value))
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "\"%.64s\" is too large", text);
    }
    int shift = cursor == text ? -1 : suffix_shift(cursor);
    if (shift < 0)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "\"%.64s\" is not a size (a whole number and K, M, G or T)", text);
    if (value > UINT64_MAX >> shift)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "\"%.64s\" is too large", text);
    *bytes = value << shift;
    return NOSA_OK;
}

const char *nosa_size_format(uint64_t bytes, char text[NOSA_SIZE_TEXT_MAX])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    size_t unit = 0;
    while (unit + 1 < sizeof units / sizeof *units && bytes >> (10 * (unit + 1)) > 0)
        unit++;
    uint64_t scale = (uint64_t)1 << (10 * unit);
    if (bytes % scale == 0)
        snprintf(text, NOSA_SIZE_TEXT_MAX, "%llu %s", (unsigned long long)(bytes / scale),
                 units[unit]);
    else
        snprintf(text, NOSA_SIZE_TEXT_MAX, "%.1f %s", (double)bytes / (double)scale, units[unit]);
    return text;
}
