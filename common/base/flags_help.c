/* --help, printed from the flag tables. */
#include <string.h>

#include "base/flags_internal.h"

#define HELP_COLUMNS 100
#define HELP_INDENT  30 /* where the explanation starts */

static const char *value_name(const struct nosa_flag *flag)
{
    if (flag->value_name)
        return flag->value_name;
    switch (flag->kind) {
    case NOSA_FLAG_BOOL:
    case NOSA_FLAG_CHOICE: return "";
    case NOSA_FLAG_DOUBLE: return "X";
    case NOSA_FLAG_STRING: return "TEXT";
    case NOSA_FLAG_SIZE: return "SIZE";
    case NOSA_FLAG_INT32:
    case NOSA_FLAG_INT64:
    case NOSA_FLAG_UINT64: break;
    }
    return "N";
}

/* Writes "--name VALUE" or "--name a|b|c". */
static void format_synopsis(const struct nosa_flag *flag, char *text, size_t size)
{
    int length = snprintf(text, size, "  --%s%s%s", flag->name, *value_name(flag) ? " " : "",
                          value_name(flag));
    if (flag->kind != NOSA_FLAG_CHOICE || flag->value_name)
        return;
    for (size_t i = 0; flag->choices[i] && length >= 0 && (size_t)length < size; i++)
        length +=
            snprintf(text + length, size - (size_t)length, "%s%s", i ? "|" : " ", flag->choices[i]);
}

/* Prints words from column `column` on, breaking lines before HELP_COLUMNS. */
static void print_wrapped(FILE *stream, const char *text, size_t column)
{
    if (column + 2 > HELP_INDENT) {
        fputc('\n', stream);
        column = 0;
    }
    fprintf(stream, "%*s", (int)(HELP_INDENT - column), "");
    column = HELP_INDENT;
    while (*text) {
        size_t word = strcspn(text, " ");
        if (column > HELP_INDENT && column + 1 + word > HELP_COLUMNS) {
            fprintf(stream, "\n%*s", HELP_INDENT, "");
            column = HELP_INDENT;
        } else if (column > HELP_INDENT) {
            fputc(' ', stream);
            column++;
        }
        fwrite(text, 1, word, stream);
        column += word;
        text += word;
        text += strspn(text, " ");
    }
    fputc('\n', stream);
}

static void print_flag(FILE *stream, const struct nosa_flag *flag)
{
    char synopsis[256];
    char text[1024];
    format_synopsis(flag, synopsis, sizeof synopsis);
    int length = snprintf(text, sizeof text, "%s", flag->help ? flag->help : "");
    size_t used = length < 0 ? 0 : (size_t)length < sizeof text ? (size_t)length : sizeof text - 1;
    char range[96] = "";
    if (nosa_flag_has_range(flag))
        nosa_flag_format_range(flag, true, range, sizeof range);
    if (*range || flag->default_text)
        snprintf(text + used, sizeof text - used, " (%s%s%s%s)", range,
                 *range && flag->default_text ? "; " : "", flag->default_text ? "default " : "",
                 flag->default_text ? flag->default_text : "");
    used = strlen(text);
    if (flag->unavailable)
        snprintf(text + used, sizeof text - used, " [%s]", flag->unavailable);
    fputs(synopsis, stream);
    print_wrapped(stream, text, strlen(synopsis));
}

static const char *group_of(const struct nosa_flag *flag)
{
    return flag->group ? flag->group : "Flags";
}

static const struct nosa_flag *flag_at(const struct nosa_flags_program *program, size_t index)
{
    for (size_t t = 0; t < program->table_count; t++) {
        if (index < program->tables[t].count)
            return &program->tables[t].flags[index];
        index -= program->tables[t].count;
    }
    return NULL;
}

static bool group_seen_before(const struct nosa_flags_program *program, size_t index,
                              const char *group)
{
    for (size_t i = 0; i < index; i++)
        if (strcmp(group_of(flag_at(program, i)), group) == 0)
            return true;
    return false;
}

void nosa_flags_print_help(const struct nosa_flags_program *program, FILE *stream)
{
    fprintf(stream, "Usage: %s %s\n", program->name, program->usage ? program->usage : "[flags]");
    if (program->summary)
        fprintf(stream, "%s\n", program->summary);
    const struct nosa_flag *first;
    for (size_t i = 0; (first = flag_at(program, i)) != NULL; i++) {
        const char *group = group_of(first);
        if (group_seen_before(program, i, group))
            continue;
        fprintf(stream, "\n%s:\n", group);
        const struct nosa_flag *flag;
        for (size_t j = i; (flag = flag_at(program, j)) != NULL; j++)
            if (strcmp(group_of(flag), group) == 0)
                print_flag(stream, flag);
    }
    fputs("\nGeneral:\n", stream);
    fputs("  --help, -h", stream);
    print_wrapped(stream, "print this and exit", strlen("  --help, -h"));
    fputs("  --version", stream);
    print_wrapped(stream, "print the version and exit", strlen("  --version"));
    fputs("\nEvery flag can also be set in the environment: --max-tokens as NOSA_MAX_TOKENS.\n"
          "SIZE is a whole number of bytes with an optional suffix K, M, G or T, or `auto`.\n",
          stream);
}
