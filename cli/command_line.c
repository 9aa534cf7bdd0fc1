#include "command_line.h"

#include <string.h>

#define NAME_MAX_BYTES 32

const struct nosa_command *nosa_command_find(const struct nosa_command *commands, const char *name)
{
    for (const struct nosa_command *command = commands; command->name; command++)
        if (strcmp(command->name, name) == 0)
            return command;
    return NULL;
}

static const struct nosa_flag *find_flag(const struct nosa_flag *flags, size_t count,
                                         const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(flags[i].name, name) == 0)
            return &flags[i];
    return NULL;
}

/* Whether the flag of this name, of whichever command, takes the next word as its value. */
static bool takes_value(const struct nosa_command *commands, const char *name)
{
    const struct nosa_flag *flag =
        find_flag(nosa_connection_flags, nosa_connection_flag_count, name);
    for (const struct nosa_command *command = commands; command->name && !flag; command++)
        flag = find_flag(command->flags, command->flag_count, name);
    return flag && flag->kind != NOSA_FLAG_BOOL;
}

const char *nosa_command_word(const struct nosa_command *commands, int argc, char *const *argv)
{
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        if (strcmp(word, "--") == 0)
            return i + 1 < argc ? argv[i + 1] : NULL;
        if (word[0] != '-' || !word[1])
            return word;
        bool apart = strncmp(word, "--", 2) == 0 && !strchr(word, '=');
        if (apart && takes_value(commands, word + 2))
            i++;
    }
    return NULL;
}

/* How many characters must be put in, taken out or replaced to make one word of the other. */
static size_t distance(const char *a, const char *b)
{
    size_t row[NAME_MAX_BYTES + 1];
    size_t length = strlen(b);
    if (length > NAME_MAX_BYTES || strlen(a) > NAME_MAX_BYTES)
        return NAME_MAX_BYTES;
    for (size_t j = 0; j <= length; j++)
        row[j] = j;
    for (size_t i = 0; a[i]; i++) {
        size_t diagonal = row[0];
        row[0] = i + 1;
        for (size_t j = 0; j < length; j++) {
            size_t least = diagonal + (a[i] != b[j]);
            if (row[j] + 1 < least)
                least = row[j] + 1;
            if (row[j + 1] + 1 < least)
                least = row[j + 1] + 1;
            diagonal = row[j + 1];
            row[j + 1] = least;
        }
    }
    return row[length];
}

const char *nosa_command_suggest(const struct nosa_command *commands, const char *word)
{
    const char *best = NULL;
    size_t best_distance = 3;
    for (const struct nosa_command *command = commands; command->name; command++) {
        size_t slips = distance(word, command->name);
        if (slips < best_distance && slips < strlen(command->name)) {
            best = command->name;
            best_distance = slips;
        }
    }
    return best;
}
