#include "base/utf8.h"

#include "base/status.h"

/* The lead byte decides the length and the range of the second byte (Unicode, table 3-7). */
struct lead {
    size_t length; /* 0: no character begins with this byte */
    uint8_t second_min;
    uint8_t second_max;
    uint8_t payload; /* bits of the code point in the lead byte */
};

static struct lead lead_of(uint8_t byte)
{
    if (byte < 0x80)
        return (struct lead){1, 0, 0, byte};
    if (byte < 0xC2)
        return (struct lead){0, 0, 0, 0};
    if (byte < 0xE0)
        return (struct lead){2, 0x80, 0xBF, byte & 0x1F};
    if (byte < 0xF0)
        return (struct lead){3, byte == 0xE0 ? 0xA0 : 0x80, byte == 0xED ? 0x9F : 0xBF,
                             byte & 0x0F};
    if (byte < 0xF5)
        return (struct lead){4, byte == 0xF0 ? 0x90 : 0x80, byte == 0xF4 ? 0x8F : 0xBF,
                             byte & 0x07};
    return (struct lead){0, 0, 0, 0};
}

/* Bytes at the start of `text` that fit the lead byte, up to the character's length. */
static size_t matching_length(const char *text, size_t size, struct lead lead)
{
    size_t length = 1;
    while (length < lead.length && length < size) {
        uint8_t byte = (uint8_t)text[length];
        uint8_t min = length == 1 ? lead.second_min : 0x80;
        uint8_t max = length == 1 ? lead.second_max : 0xBF;
        if (byte < min || byte > max)
            break;
        length++;
    }
    return length;
}

int nosa_utf8_decode(const char *text, size_t size, uint32_t *code_point)
{
    *code_point = NOSA_UTF8_REPLACEMENT;
    if (size == 0)
        return 0;
    struct lead lead = lead_of((uint8_t)text[0]);
    if (lead.length == 0)
        return NOSA_UTF8_INVALID;
    size_t matching = matching_length(text, size, lead);
    if (matching < lead.length)
        return matching == size ? NOSA_UTF8_INCOMPLETE : NOSA_UTF8_INVALID;
    uint32_t value = lead.payload;
    for (size_t i = 1; i < lead.length; i++)
        value = value << 6 | ((uint8_t)text[i] & 0x3F);
    *code_point = value;
    return (int)lead.length;
}

size_t nosa_utf8_invalid_length(const char *text, size_t size)
{
    NOSA_ASSERT(size > 0);
    struct lead lead = lead_of((uint8_t)text[0]);
    return lead.length == 0 ? 1 : matching_length(text, size, lead);
}

size_t nosa_utf8_encode(uint32_t code_point, char bytes[NOSA_UTF8_LENGTH_MAX])
{
    if (code_point > 0x10FFFF || (code_point >= 0xD800 && code_point <= 0xDFFF))
        code_point = NOSA_UTF8_REPLACEMENT;
    if (code_point < 0x80) {
        bytes[0] = (char)code_point;
        return 1;
    }
    size_t length = code_point < 0x800 ? 2 : code_point < 0x10000 ? 3 : 4;
    static const uint8_t marks[] = {0, 0, 0xC0, 0xE0, 0xF0};
    for (size_t i = length - 1; i > 0; i--) {
        bytes[i] = (char)(0x80 | (code_point & 0x3F));
        code_point >>= 6;
    }
    bytes[0] = (char)(marks[length] | code_point);
    return length;
}

size_t nosa_utf8_valid_prefix(const char *text, size_t size)
{
    size_t offset = 0;
    while (offset < size) {
        uint32_t code_point;
        int length = nosa_utf8_decode(text + offset, size - offset, &code_point);
        if (length <= 0)
            break;
        offset += (size_t)length;
    }
    return offset;
}

bool nosa_utf8_is_valid(const char *text, size_t size)
{
    return nosa_utf8_valid_prefix(text, size) == size;
}

size_t nosa_utf8_incomplete_tail(const char *text, size_t size)
{
    size_t tail_max = size < 3 ? size : 3;
    for (size_t tail = 1; tail <= tail_max; tail++) {
        uint32_t code_point;
        const char *start = text + size - tail;
        if (((uint8_t)*start & 0xC0) == 0x80)
            continue;
        return nosa_utf8_decode(start, tail, &code_point) == NOSA_UTF8_INCOMPLETE ? tail : 0;
    }
    return 0;
}
