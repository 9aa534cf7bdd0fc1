/*
 * UTF-8 as RFC 3629 defines it: no overlong forms, no surrogates, nothing above U+10FFFF.
 * Stateless, allocation-free; any thread. Texts are bytes with a length and may hold NUL.
 */
#ifndef NOSA_BASE_UTF8_H
#define NOSA_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NOSA_UTF8_REPLACEMENT 0xFFFDu /* stands for bytes that are no character */
#define NOSA_UTF8_LENGTH_MAX  4       /* bytes of one character at most */

/* What nosa_utf8_decode returns when there is no whole character. */
#define NOSA_UTF8_INVALID    (-1) /* no continuation can make these bytes a character */
#define NOSA_UTF8_INCOMPLETE (-2) /* a character's beginning, cut off by the end of the text */

/*
 * Decodes the character at the start of `text`. Returns its length in bytes (1-4) and stores the
 * code point; 0 when `size` is 0; NOSA_UTF8_INVALID or NOSA_UTF8_INCOMPLETE, and then
 * NOSA_UTF8_REPLACEMENT is stored. After INVALID a caller that goes on skips
 * nosa_utf8_invalid_length bytes.
 */
int nosa_utf8_decode(const char *text, size_t size, uint32_t *code_point);

/*
 * How many bytes (1-3) at the start of `text`, which do not decode, one U+FFFD stands for: the
 * longest beginning of a well-formed character, or one byte (Unicode 15.0, section 3.9,
 * "substitution of maximal subparts"). `size` must not be 0.
 */
size_t nosa_utf8_invalid_length(const char *text, size_t size);

/* Writes the character's bytes and returns how many (1-4); what is no Unicode scalar value is
 * written as U+FFFD. */
size_t nosa_utf8_encode(uint32_t code_point, char bytes[NOSA_UTF8_LENGTH_MAX]);

/* Length in bytes of the longest prefix that consists of whole characters. */
size_t nosa_utf8_valid_prefix(const char *text, size_t size);

/* Whether the whole text consists of whole characters. */
bool nosa_utf8_is_valid(const char *text, size_t size);

/*
 * How many bytes (0-3) at the end of `text` are the beginning of a character that more bytes could
 * complete. What stands before them is not examined.
 */
size_t nosa_utf8_incomplete_tail(const char *text, size_t size);

#endif
