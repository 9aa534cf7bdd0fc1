/* Values of flags: text to number, with ranges. strtol and its kin do the digits, this file the
 * strictness: nothing before or after the number, no overflow, no NaN. */
#include "base/flags_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/size.h"

static enum nosa_status set_bad_value(struct nosa_error *error, const char *text, const char *what)
{
    return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "\"%.64s\" is not %s", text, what);
}

static enum nosa_status set_out_of_range(const struct nosa_flag *flag, const char *text,
                                         struct nosa_error *error)
{
    char range[96];
    nosa_flag_format_range(flag, false, range, sizeof range);
    return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%.64s is out of range (%s)", text, range);
}

static enum nosa_status parse_bool(const char *text, bool *value, struct nosa_error *error)
{
    static const char *const words[] = {"false", "true", "0", "1", "no", "yes", "off", "on"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (strcasecmp(text, words[i]) == 0) {
            *value = i % 2 == 1;
            return NOSA_OK;
        }
    }
    return set_bad_value(error, text, "true or false");
}

static void integer_range(const struct nosa_flag *flag, int64_t *min, int64_t *max)
{
    bool narrow = flag->kind == NOSA_FLAG_INT32;
    *min = narrow ? INT32_MIN : INT64_MIN;
    *max = narrow ? INT32_MAX : INT64_MAX;
    if (nosa_flag_has_range(flag)) {
        *min = flag->range.integer.min;
        *max = flag->range.integer.max;
    }
}

static void count_range(const struct nosa_flag *flag, uint64_t *min, uint64_t *max)
{
    *min = 0;
    *max = UINT64_MAX;
    if (nosa_flag_has_range(flag)) {
        *min = flag->range.count.min;
        *max = flag->range.count.max;
    }
    /* The last value of a size stands for `auto`. */
    if (flag->kind == NOSA_FLAG_SIZE && *max == NOSA_FLAG_SIZE_AUTO)
        *max = NOSA_FLAG_SIZE_AUTO - 1;
}

static bool all_digits(const char *text)
{
    return *text != '\0' && text[strspn(text, "0123456789")] == '\0';
}

static enum nosa_status parse_integer(const struct nosa_flag *flag, const char *text,
                                      int64_t *value, struct nosa_error *error)
{
    int64_t min, max;
    integer_range(flag, &min, &max);
    if (!all_digits(*text == '-' ? text + 1 : text))
        return set_bad_value(error, text, "a whole number");
    errno = 0;
    *value = strtoll(text, NULL, 10);
    if (errno == ERANGE || *value < min || *value > max)
        return set_out_of_range(flag, text, error);
    return NOSA_OK;
}

static enum nosa_status parse_count(const struct nosa_flag *flag, const char *text, uint64_t *value,
                                    struct nosa_error *error)
{
    uint64_t min, max;
    count_range(flag, &min, &max);
    if (*text == '-' && all_digits(text + 1))
        return set_out_of_range(flag, text, error);
    if (!all_digits(text))
        return set_bad_value(error, text, "a whole number");
    errno = 0;
    *value = strtoull(text, NULL, 10);
    if (errno == ERANGE || *value < min || *value > max)
        return set_out_of_range(flag, text, error);
    return NOSA_OK;
}

static enum nosa_status parse_size(const struct nosa_flag *flag, const char *text, uint64_t *value,
                                   struct nosa_error *error)
{
    uint64_t min, max;
    if (strcasecmp(text, "auto") == 0) {
        *value = NOSA_FLAG_SIZE_AUTO;
        return NOSA_OK;
    }
    count_range(flag, &min, &max);
    NOSA_TRY(nosa_size_parse(text, value, error));
    if (*value < min || *value > max)
        return set_out_of_range(flag, text, error);
    return NOSA_OK;
}

static enum nosa_status parse_double(const struct nosa_flag *flag, const char *text, double *value,
                                     struct nosa_error *error)
{
    /* strtod also takes blanks, hexadecimal, "nan" and "inf": only decimal digits may pass. */
    if (*text == '\0' || text[strspn(text, "+-.0123456789eE")] != '\0')
        return set_bad_value(error, text, "a finite number");
    char *end;
    *value = strtod(text, &end);
    if (end == text || *end != '\0' || !isfinite(*value))
        return set_bad_value(error, text, "a finite number");
    if (nosa_flag_has_range(flag) &&
        (*value < flag->range.number.min || *value > flag->range.number.max))
        return set_out_of_range(flag, text, error);
    return NOSA_OK;
}

static enum nosa_status parse_choice(const struct nosa_flag *flag, const char *text, int64_t *index,
                                     struct nosa_error *error)
{
    char words[256] = "";
    for (int64_t i = 0; flag->choices[i]; i++) {
        if (strcmp(text, flag->choices[i]) == 0) {
            *index = i;
            return NOSA_OK;
        }
        size_t length = strlen(words);
        snprintf(words + length, sizeof words - length, "%s%s", i ? ", " : "", flag->choices[i]);
    }
    return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "\"%.64s\" is not one of %s", text, words);
}

enum nosa_status nosa_flag_parse_value(const struct nosa_flag *flag, const char *text,
                                       union nosa_flag_value *value, struct nosa_error *error)
{
    switch (flag->kind) {
    case NOSA_FLAG_BOOL: return parse_bool(text, &value->boolean, error);
    case NOSA_FLAG_INT32:
    case NOSA_FLAG_INT64: return parse_integer(flag, text, &value->integer, error);
    case NOSA_FLAG_UINT64: return parse_count(flag, text, &value->count, error);
    case NOSA_FLAG_DOUBLE: return parse_double(flag, text, &value->number, error);
    case NOSA_FLAG_SIZE: return parse_size(flag, text, &value->count, error);
    case NOSA_FLAG_CHOICE: return parse_choice(flag, text, &value->integer, error);
    case NOSA_FLAG_STRING: value->text = text; return NOSA_OK;
    }
    return nosa_error_set(error, NOSA_INTERNAL, "flag of an unknown kind");
}

bool nosa_flag_has_range(const struct nosa_flag *flag)
{
    switch (flag->kind) {
    case NOSA_FLAG_INT32:
    case NOSA_FLAG_INT64: return flag->range.integer.min != 0 || flag->range.integer.max != 0;
    case NOSA_FLAG_UINT64:
    case NOSA_FLAG_SIZE: return flag->range.count.min != 0 || flag->range.count.max != 0;
    case NOSA_FLAG_DOUBLE: return flag->range.number.min != 0 || flag->range.number.max != 0;
    case NOSA_FLAG_BOOL:
    case NOSA_FLAG_STRING:
    case NOSA_FLAG_CHOICE: break;
    }
    return false;
}

static void format_integer_range(const struct nosa_flag *flag, bool brief, char *text, size_t size)
{
    int64_t min, max;
    integer_range(flag, &min, &max);
    int64_t limit = flag->kind == NOSA_FLAG_INT32 ? INT32_MAX : INT64_MAX;
    if (brief && max == limit)
        snprintf(text, size, "at least %" PRId64, min);
    else
        snprintf(text, size, "%" PRId64 " to %" PRId64, min, max);
}

static void format_count_range(const struct nosa_flag *flag, bool brief, char *text, size_t size)
{
    uint64_t min, max;
    char low[NOSA_SIZE_TEXT_MAX], high[NOSA_SIZE_TEXT_MAX];
    count_range(flag, &min, &max);
    if (flag->kind == NOSA_FLAG_SIZE) {
        nosa_size_format(min, low);
        nosa_size_format(max, high);
    } else {
        snprintf(low, sizeof low, "%" PRIu64, min);
        snprintf(high, sizeof high, "%" PRIu64, max);
    }
    if (brief && max >= NOSA_FLAG_SIZE_AUTO - 1)
        snprintf(text, size, "at least %s", low);
    else
        snprintf(text, size, "%s to %s", low, high);
}

void nosa_flag_format_range(const struct nosa_flag *flag, bool brief, char *text, size_t size)
{
    if (flag->kind == NOSA_FLAG_DOUBLE)
        snprintf(text, size, "%g to %g", flag->range.number.min, flag->range.number.max);
    else if (flag->kind == NOSA_FLAG_INT32 || flag->kind == NOSA_FLAG_INT64)
        format_integer_range(flag, brief, text, size);
    else
        format_count_range(flag, brief, text, size);
}
