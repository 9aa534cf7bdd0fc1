/*
 * Text in columns that are as wide as their cells, or as the screen allows. Control characters in a
 * cell become '?', so that nothing a server says can steer a terminal. Not shared between threads.
 */
#ifndef NOSA_CLI_TEXT_TABLE_H
#define NOSA_CLI_TEXT_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"

#define NOSA_TABLE_COLUMNS_MAX 16

struct nosa_table_column {
    const char *title;
    bool right;        /* numbers stand right */
    uint8_t width_min; /* 0: never narrower than its cells; else it may be cut to this */
};

/* All zero but `columns` and `column_count` is an empty table. */
struct nosa_table {
    const struct nosa_table_column *columns; /* [column_count], borrowed */
    size_t column_count;
    struct nosa_buffer text; /* owned: the cells in rows, each ended by NUL */
    size_t cell_count;
};

/* Adds the next cell; column_count of them are a row. No memory shows at print. */
void nosa_table_cell(struct nosa_table *table, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/*
 * Appends a line of titles and at most `rows_max` rows to `out`, no line wider than `width_max`
 * (UINT32_MAX: no bound of either): columns that may be cut are, the widest first, and end with
 * "~"; what is still too wide is cut off. Rows must be complete (assertion). Trailing spaces are
 * left out. NOSA_OUT_OF_MEMORY.
 */
enum nosa_status nosa_table_print(const struct nosa_table *table, uint32_t width_max,
                                  uint32_t rows_max, struct nosa_buffer *out);

void nosa_table_free(struct nosa_table *table);

/* ---- for lines that are no table ---- */

/* Columns that a text takes: its characters. */
size_t nosa_text_width(const char *text);

/* Appends at most `width` characters of `text`, "~" in place of the last when more were there;
 * control characters as '?'. Returns how many columns were written. */
size_t nosa_text_append_cut(struct nosa_buffer *out, const char *text, size_t width);

#endif
