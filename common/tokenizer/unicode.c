/* Character properties, normal forms, repair and the byte alphabet; see tokenizer_internal.h. */
#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "base/utf8.h"
#include "tokenizer/tokenizer_internal.h"

#define SHORT_RUN 24 /* combining marks: runs up to this long are sorted by insertion */

bool nosa_unicode_is_space(uint32_t c)
{
    if (c < 0x80)
        return c == ' ' || (c >= '\t' && c <= '\r');
    return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
           c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool nosa_unicode_is_numeric(uint32_t c)
{
    if (c < 0x80)
        return c >= '0' && c <= '9';
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)c);
    return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL ||
           category == UTF8PROC_CATEGORY_NO;
}

bool nosa_unicode_is_punctuation(uint32_t c)
{
    if (c < 0x80)
        return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') ||
               (c >= '{' && c <= '~');
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)c);
    return category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO;
}

static bool is_other_alphabetic_symbol(uint32_t c)
{
    return (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
           (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189);
}

bool nosa_unicode_is_word(uint32_t c)
{
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC: return true;
    default: return c == 0x200C || c == 0x200D || is_other_alphabetic_symbol(c);
    }
}

bool nosa_unicode_is_mark(uint32_t c)
{
    if (c < 0x80)
        return false;
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)c);
    return category >= UTF8PROC_CATEGORY_MN && category <= UTF8PROC_CATEGORY_ME;
}

size_t nosa_unicode_next(const char *text, size_t size, size_t at, uint32_t *code_point)
{
    uint8_t first = (uint8_t)text[at];
    if (first < 0x80) {
        *code_point = first;
        return 1;
    }
    int length = nosa_utf8_decode(text + at, size - at, code_point);
    return length > 0 ? (size_t)length : 1;
}

size_t nosa_unicode_previous(const char *text, size_t at, uint32_t *code_point)
{
    size_t start = at - 1;
    while (start > 0 && at - start < NOSA_UTF8_LENGTH_MAX && ((uint8_t)text[start] & 0xC0) == 0x80)
        start--;
    nosa_unicode_next(text, at, start, code_point);
    return at - start;
}

static enum nosa_status append_char(struct nosa_buffer *out, uint32_t code_point)
{
    char bytes[NOSA_UTF8_LENGTH_MAX];
    size_t length = (size_t)nosa_utf8_encode(code_point, bytes);
    return nosa_buffer_append(out, bytes, length);
}

enum nosa_status nosa_unicode_repair(const char *text, size_t size, struct nosa_buffer *out)
{
    size_t at = 0;
    while (at < size) {
        size_t valid = nosa_utf8_valid_prefix(text + at, size - at);
        NOSA_TRY(nosa_buffer_append(out, text + at, valid));
        at += valid;
        if (at < size) {
            NOSA_TRY(append_char(out, NOSA_UTF8_REPLACEMENT));
            at += nosa_utf8_invalid_length(text + at, size - at);
        }
    }
    return NOSA_OK;
}

enum nosa_status nosa_unicode_lower(const char *text, size_t size, struct nosa_buffer *out)
{
    NOSA_TRY(nosa_buffer_reserve(out, size));
    for (size_t at = 0; at < size;) {
        uint32_t c;
        at += nosa_unicode_next(text, size, at, &c);
        if (c == 0x130) { /* the one character whose lower case is two */
            NOSA_TRY(append_char(out, 'i'));
            c = 0x307;
        } else {
            c = (uint32_t)utf8proc_tolower((utf8proc_int32_t)c);
        }
        NOSA_TRY(append_char(out, c));
    }
    return NOSA_OK;
}

/* Code points that grow; the decomposed text. */
struct points {
    utf8proc_int32_t *items;
    size_t count;
    size_t capacity;
};

static enum nosa_status decompose(const char *text, size_t size, utf8proc_option_t options,
                                  struct points *points)
{
    int last_bound_class = 0;
    for (size_t at = 0; at < size;) {
        uint32_t c;
        at += nosa_unicode_next(text, size, at, &c);
        for (;;) {
            size_t room = points->capacity - points->count;
            utf8proc_ssize_t length =
                utf8proc_decompose_char((utf8proc_int32_t)c, points->items + points->count,
                                        (utf8proc_ssize_t)room, options, &last_bound_class);
            if (length >= 0 && (size_t)length <= room) {
                points->count += (size_t)length;
                break;
            }
            size_t capacity = points->capacity + points->capacity / 2 + 64;
            utf8proc_int32_t *items = realloc(points->items, capacity * sizeof *items);
            if (items == NULL)
                return NOSA_OUT_OF_MEMORY;
            points->items = items;
            points->capacity = capacity;
        }
    }
    return NOSA_OK;
}

static unsigned combining_class(utf8proc_int32_t c)
{
    return (unsigned)utf8proc_get_property(c)->combining_class & 0xFF;
}

/* Stable sort of one run of marks by combining class; counting keeps long runs linear. */
static void sort_run(utf8proc_int32_t *run, size_t count, utf8proc_int32_t *spare)
{
    if (count <= SHORT_RUN) {
        for (size_t i = 1; i < count; i++) {
            utf8proc_int32_t mark = run[i];
            unsigned mark_class = combining_class(mark);
            size_t j = i;
            for (; j > 0 && combining_class(run[j - 1]) > mark_class; j--)
                run[j] = run[j - 1];
            run[j] = mark;
        }
        return;
    }
    size_t starts[257] = {0};
    for (size_t i = 0; i < count; i++)
        starts[combining_class(run[i]) + 1]++;
    for (size_t i = 1; i < 257; i++)
        starts[i] += starts[i - 1];
    for (size_t i = 0; i < count; i++)
        spare[starts[combining_class(run[i])]++] = run[i];
    memcpy(run, spare, count * sizeof *run);
}

static enum nosa_status order_marks(struct points *points)
{
    utf8proc_int32_t *spare = NULL;
    enum nosa_status status = NOSA_OK;
    for (size_t i = 0; i < points->count;) {
        size_t end = i;
        while (end < points->count && points->items[end] >= 0x300 &&
               combining_class(points->items[end]) != 0)
            end++;
        if (end - i > SHORT_RUN && spare == NULL) {
            spare = malloc(points->count * sizeof *spare);
            if (spare == NULL) {
                status = NOSA_OUT_OF_MEMORY;
                break;
            }
        }
        if (end - i > 1)
            sort_run(points->items + i, end - i, spare);
        i = end + 1;
    }
    free(spare);
    return status;
}

/* Whether the text has its form already by its range alone: what lies below U+0300 is composed. */
static bool is_trivially_normal(enum nosa_unicode_form form, const char *text, size_t size)
{
    uint8_t limit = form == FORM_NFC ? 0xCC : 0x80; /* 0xCC begins U+0300 */
    for (size_t i = 0; i < size; i++) {
        if ((uint8_t)text[i] >= limit)
            return false;
    }
    return true;
}

enum nosa_status nosa_unicode_normalize(enum nosa_unicode_form form, const char *text, size_t size,
                                        struct nosa_buffer *out)
{
    if (is_trivially_normal(form, text, size))
        return nosa_buffer_append(out, text, size);
    bool compose = form == FORM_NFC || form == FORM_NFKC;
    bool compatible = form == FORM_NFKC || form == FORM_NFKD;
    unsigned options = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE;
    if (compatible)
        options |= UTF8PROC_COMPAT;
    struct points points = {.capacity = size + 32};
    points.items = malloc(points.capacity * sizeof *points.items);
    enum nosa_status status = points.items == NULL ? NOSA_OUT_OF_MEMORY : NOSA_OK;
    if (status == NOSA_OK)
        status = decompose(text, size, (utf8proc_option_t)options, &points);
    if (status == NOSA_OK)
        status = order_marks(&points);
    if (status == NOSA_OK && compose) {
        utf8proc_ssize_t count =
            utf8proc_normalize_utf32(points.items, (utf8proc_ssize_t)points.count,
                                     (utf8proc_option_t)(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
        points.count = count > 0 ? (size_t)count : 0;
    }
    for (size_t i = 0; i < points.count && status == NOSA_OK; i++)
        status = append_char(out, (uint32_t)points.items[i]);
    free(points.items);
    return status;
}

static bool is_own_char(uint32_t byte)
{
    return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD && byte <= 0xFF);
}

uint32_t nosa_byte_to_char(uint8_t byte)
{
    /* The bytes that print stand for themselves; the others, in order, for U+0100 onward. */
    if (is_own_char(byte))
        return byte;
    if (byte <= 0x20)
        return 0x100u + byte;
    if (byte <= 0xA0)
        return 0x121u + (byte - 0x7Fu);
    return 0x143; /* 0xAD */
}

int nosa_char_to_byte(uint32_t c)
{
    if (is_own_char(c))
        return (int)c;
    if (c >= 0x100 && c <= 0x120)
        return (int)(c - 0x100);
    if (c >= 0x121 && c <= 0x142)
        return (int)(c - 0x121 + 0x7F);
    return c == 0x143 ? 0xAD : -1;
}

enum nosa_status nosa_bytes_to_alphabet(const char *text, size_t size, struct nosa_buffer *out)
{
    NOSA_TRY(nosa_buffer_reserve(out, 2 * size));
    for (size_t i = 0; i < size; i++) {
        uint32_t c = nosa_byte_to_char((uint8_t)text[i]);
        if (c < 0x80) {
            out->data[out->size++] = (char)c;
        } else {
            out->data[out->size++] = (char)(0xC0 | (c >> 6));
            out->data[out->size++] = (char)(0x80 | (c & 0x3F));
        }
    }
    return NOSA_OK;
}
