#include "text_table.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

#define GAP 2 /* columns between two cells */

/* The bytes of the character at `text`, and whether it can be printed as it is. */
static size_t character_at(const char *text, size_t size, bool *printable)
{
    uint32_t code;
    int length = nosa_utf8_decode(text, size, &code);
    *printable = length > 0 && code >= 0x20 && (code < 0x7f || code >= 0xa0);
    return length > 0 ? (size_t)length : nosa_utf8_invalid_length(text, size);
}

size_t nosa_text_width(const char *text)
{
    size_t size = strlen(text), width = 0;
    bool printable;
    for (size_t at = 0; at < size; width++)
        at += character_at(text + at, size - at, &printable);
    return width;
}

size_t nosa_text_append_cut(struct nosa_buffer *out, const char *text, size_t width)
{
    size_t size = strlen(text), whole = nosa_text_width(text);
    size_t shown = whole <= width ? whole : width > 0 ? width - 1 : 0;
    bool printable;
    for (size_t at = 0, i = 0; i < shown; i++) {
        size_t length = character_at(text + at, size - at, &printable);
        nosa_buffer_append(out, printable ? text + at : "?", printable ? length : 1);
        at += length;
    }
    if (whole <= width || width == 0)
        return shown;
    nosa_buffer_append(out, "~", 1);
    return width;
}

void nosa_table_cell(struct nosa_table *table, const char *format, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    nosa_buffer_append(&table->text, text, strlen(text) + 1);
    table->cell_count++;
}

void nosa_table_free(struct nosa_table *table)
{
    nosa_buffer_free(&table->text);
    table->cell_count = 0;
}

/* How wide each column would be; returns the whole line's width. */
static size_t measure(const struct nosa_table *table, size_t rows, size_t *widths)
{
    size_t line = GAP * (table->column_count - 1);
    const char *cell = table->text.data;
    for (size_t c = 0; c < table->column_count; c++)
        widths[c] = nosa_text_width(table->columns[c].title);
    for (size_t i = 0; i < rows * table->column_count; i++) {
        size_t width = nosa_text_width(cell);
        if (width > widths[i % table->column_count])
            widths[i % table->column_count] = width;
        cell += strlen(cell) + 1;
    }
    for (size_t c = 0; c < table->column_count; c++)
        line += widths[c];
    return line;
}

/* Takes columns from those that may be cut until the line fits or none is left. */
static void shrink(const struct nosa_table *table, size_t line, size_t width_max, size_t *widths)
{
    while (line > width_max) {
        size_t widest = table->column_count;
        for (size_t c = 0; c < table->column_count; c++)
            if (table->columns[c].width_min && widths[c] > table->columns[c].width_min &&
                (widest == table->column_count || widths[c] > widths[widest]))
                widest = c;
        if (widest == table->column_count)
            return;
        widths[widest]--;
        line--;
    }
}

static void print_spaces(struct nosa_buffer *out, size_t count)
{
    static const char spaces[] = "                                ";
    for (size_t part; count > 0; count -= part) {
        part = count < sizeof spaces - 1 ? count : sizeof spaces - 1;
        nosa_buffer_append(out, spaces, part);
    }
}

/* One line of `cells`, which follow each other; NULL: the titles. Returns the cell after. */
static const char *print_row(const struct nosa_table *table, const char *cells,
                             const size_t *widths, size_t width_max, struct nosa_buffer *out)
{
    size_t at = 0, owed = 0; /* columns written, and spaces that the next cell needs before it */
    for (size_t c = 0; c < table->column_count; c++) {
        const char *text = cells ? cells : table->columns[c].title;
        size_t width = nosa_text_width(text) < widths[c] ? nosa_text_width(text) : widths[c];
        size_t before = owed + (table->columns[c].right ? widths[c] - width : 0);
        if (width > 0 && at + before < width_max) {
            size_t room = width_max - at - before;
            print_spaces(out, before);
            at += before + nosa_text_append_cut(out, text, width < room ? width : room);
            owed = table->columns[c].right ? 0 : widths[c] - width;
        } else {
            owed += widths[c];
        }
        owed += GAP;
        if (cells)
            cells += strlen(cells) + 1;
    }
    nosa_buffer_append(out, "\n", 1);
    return cells;
}

enum nosa_status nosa_table_print(const struct nosa_table *table, uint32_t width_max,
                                  uint32_t rows_max, struct nosa_buffer *out)
{
    size_t widths[NOSA_TABLE_COLUMNS_MAX];
    NOSA_ASSERT(table->column_count > 0 && table->column_count <= NOSA_TABLE_COLUMNS_MAX);
    if (nosa_buffer_failed(&table->text))
        return NOSA_OUT_OF_MEMORY;
    NOSA_ASSERT(table->cell_count % table->column_count == 0);
    size_t rows = table->cell_count / table->column_count;
    rows = rows < rows_max ? rows : rows_max;
    size_t line = measure(table, rows, widths);
    shrink(table, line, width_max, widths);
    print_row(table, NULL, widths, width_max, out);
    const char *cells = table->text.data;
    for (size_t row = 0; row < rows; row++)
        cells = print_row(table, cells, widths, width_max, out);
    return nosa_buffer_failed(out) ? NOSA_OUT_OF_MEMORY : NOSA_OK;
}
