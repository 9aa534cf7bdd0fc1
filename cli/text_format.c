#include "text_format.h"

#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>

const char *nosa_format_count(double value, char text[NOSA_FORMAT_MAX])
{
    static const char suffixes[] = "\0kMGTP";
    int power = 0;
    if (!isfinite(value)) {
        snprintf(text, NOSA_FORMAT_MAX, "-");
        return text;
    }
    /* 999.5 would be rounded to four digits. */
    for (; fabs(value) >= 999.5 && suffixes[power + 1]; power++)
        value /= 1000;
    bool small = fabs(value) < 9.95 && value != floor(value);
    snprintf(text, NOSA_FORMAT_MAX, "%.*f%c", small || (power > 0 && fabs(value) < 9.95), value,
             suffixes[power] ? suffixes[power] : '\0');
    return text;
}

const char *nosa_format_duration(uint64_t ms, char text[NOSA_FORMAT_MAX])
{
    uint64_t s = ms / 1000;
    if (ms < 1000)
        snprintf(text, NOSA_FORMAT_MAX, "%" PRIu64 "ms", ms);
    else if (s < 10)
        snprintf(text, NOSA_FORMAT_MAX, "%" PRIu64 ".%" PRIu64 "s", s, ms % 1000 / 100);
    else if (s < 60)
        snprintf(text, NOSA_FORMAT_MAX, "%" PRIu64 "s", s);
    else if (s < 3600)
        snprintf(text, NOSA_FORMAT_MAX, "%" PRIu64 "m%02" PRIu64 "s", s / 60, s % 60);
    else if (s < 86400)
        snprintf(text, NOSA_FORMAT_MAX, "%" PRIu64 "h%02" PRIu64 "m", s / 3600, s % 3600 / 60);
    else
        snprintf(text, NOSA_FORMAT_MAX, "%" PRIu64 "d%" PRIu64 "h", s / 86400, s % 86400 / 3600);
    return text;
}

const char *nosa_format_latency(double ms, char text[NOSA_FORMAT_MAX])
{
    if (!isfinite(ms) || ms >= 1e12)
        snprintf(text, NOSA_FORMAT_MAX, "-");
    else if (ms < 9.95)
        snprintf(text, NOSA_FORMAT_MAX, "%.1f ms", ms);
    else if (ms < 999.5)
        snprintf(text, NOSA_FORMAT_MAX, "%.0f ms", ms);
    else
        snprintf(text, NOSA_FORMAT_MAX, "%.1f s", ms / 1000);
    return text;
}

const char *nosa_format_share(uint64_t part, uint64_t whole, char text[NOSA_FORMAT_MAX])
{
    if (whole == 0)
        snprintf(text, NOSA_FORMAT_MAX, "-");
    else
        snprintf(text, NOSA_FORMAT_MAX, "%.0f%%", 100.0 * (double)part / (double)whole);
    return text;
}
