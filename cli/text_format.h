/* Numbers as people read them, in few columns. Stateless; any thread. */
#ifndef NOSA_CLI_TEXT_FORMAT_H
#define NOSA_CLI_TEXT_FORMAT_H

#include <stdint.h>

#define NOSA_FORMAT_MAX 24 /* bytes of any of these with NUL */

/* "0", "87", "9.5", "1.2k", "34M": at most 5 columns up to 10^15; for rates and counts. */
const char *nosa_format_count(double value, char text[NOSA_FORMAT_MAX]);

/* "350ms", "4.2s", "59s", "3m20s", "5h07m", "12d3h". */
const char *nosa_format_duration(uint64_t ms, char text[NOSA_FORMAT_MAX]);

/* "8.1 ms", "340 ms", "12.5 s": a latency. */
const char *nosa_format_latency(double ms, char text[NOSA_FORMAT_MAX]);

/* "45%"; "-" of nothing. */
const char *nosa_format_share(uint64_t part, uint64_t whole, char text[NOSA_FORMAT_MAX]);

#endif
