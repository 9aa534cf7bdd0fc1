#include "base/flags.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "base/flags_internal.h"
#include "base/version.h"

#define VARIABLE_NAME_MAX 80

enum value_origin { ORIGIN_DEFAULT, ORIGIN_ARGUMENT, ORIGIN_ENVIRONMENT };

struct entry {
    const struct nosa_flag *flag; /* borrowed from the table */
    union nosa_flag_value value;  /* text: borrowed from owned_text or default_text */
    enum value_origin origin;
    char *owned_text; /* owned: the copy that a string value points to */
    char source[VARIABLE_NAME_MAX + 24];
};

/* All of it is fixed after nosa_flags_parse. */
struct nosa_flags {
    const struct nosa_flags_program *program; /* borrowed */
    enum nosa_flags_action action;
    struct entry *entries; /* owned, [entry_count] */
    size_t entry_count;
    char **positional; /* owned, [positional_count], each owned */
    int positional_count;
};

static struct entry *find_entry(const struct nosa_flags *flags, const char *name, size_t length)
{
    for (size_t i = 0; i < flags->entry_count; i++) {
        const char *candidate = flags->entries[i].flag->name;
        if (strlen(candidate) == length && memcmp(candidate, name, length) == 0)
            return &flags->entries[i];
    }
    return NULL;
}

static void variable_name(const struct nosa_flag *flag, char name[VARIABLE_NAME_MAX])
{
    int length = snprintf(name, VARIABLE_NAME_MAX, "NOSA_%s", flag->name);
    NOSA_ASSERT(length > 0 && length < VARIABLE_NAME_MAX);
    for (char *cursor = name; *cursor; cursor++)
        *cursor = *cursor == '-' ? '_' : (char)toupper((unsigned char)*cursor);
}

/* Fills the entry's default; a table whose defaults do not parse is a defect of ours. */
static void set_default(struct entry *entry, const struct nosa_flag *flag)
{
    entry->flag = flag;
    entry->origin = ORIGIN_DEFAULT;
    snprintf(entry->source, sizeof entry->source, "--%s", flag->name);
    NOSA_ASSERT(flag->kind != NOSA_FLAG_CHOICE || flag->choices);
    if (flag->kind == NOSA_FLAG_CHOICE)
        entry->value.integer = -1;
    if (flag->default_text)
        NOSA_ASSERT(nosa_flag_parse_value(flag, flag->default_text, &entry->value, NULL) ==
                    NOSA_OK);
}

static enum nosa_status create(struct nosa_flags **out, const struct nosa_flags_program *program,
                               int argc, struct nosa_error *error)
{
    struct nosa_flags *flags = calloc(1, sizeof *flags);
    if (!flags)
        goto out_of_memory;
    flags->program = program;
    size_t total = 0;
    for (size_t t = 0; t < program->table_count; t++)
        total += program->tables[t].count;
    flags->entries = calloc(total + 1, sizeof *flags->entries);
    flags->positional = calloc((size_t)(argc > 0 ? argc : 1), sizeof *flags->positional);
    if (!flags->entries || !flags->positional)
        goto out_of_memory;
    for (size_t t = 0; t < program->table_count; t++) {
        for (size_t i = 0; i < program->tables[t].count; i++) {
            const struct nosa_flag *flag = &program->tables[t].flags[i];
            NOSA_ASSERT(!find_entry(flags, flag->name, strlen(flag->name)));
            set_default(&flags->entries[flags->entry_count++], flag);
        }
    }
    *out = flags;
    return NOSA_OK;
out_of_memory:
    nosa_flags_free(flags);
    return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for flags");
}

static enum nosa_status store_value(struct entry *entry, const char *text, enum value_origin origin,
                                    struct nosa_error *error)
{
    char *copy = NULL;
    if (entry->flag->kind == NOSA_FLAG_STRING) {
        copy = strdup(text);
        if (!copy)
            return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for flags");
        text = copy;
    }
    if (origin == ORIGIN_ENVIRONMENT) {
        char name[VARIABLE_NAME_MAX];
        variable_name(entry->flag, name);
        snprintf(entry->source, sizeof entry->source, "environment variable %s", name);
    }
    enum nosa_status status = nosa_flag_parse_value(entry->flag, text, &entry->value, error);
    if (status != NOSA_OK) {
        free(copy);
        nosa_error_prefix(error, "%s", entry->source);
        return status;
    }
    free(entry->owned_text);
    entry->owned_text = copy;
    entry->origin = origin;
    return NOSA_OK;
}

/* Handles argv[*index], which starts with "--"; moves *index past a value it consumed. */
static enum nosa_status parse_flag(struct nosa_flags *flags, int argc, char *const *argv,
                                   int *index, struct nosa_error *error)
{
    const char *name = argv[*index] + 2;
    const char *equals = strchr(name, '=');
    size_t length = equals ? (size_t)(equals - name) : strlen(name);
    struct entry *entry = find_entry(flags, name, length);
    if (!entry)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "unknown flag --%.*s (see --help)",
                              (int)(length < 80 ? length : 80), name);
    if (entry->origin == ORIGIN_ARGUMENT)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "--%s is given more than once",
                              entry->flag->name);
    const char *value = equals ? equals + 1 : NULL;
    if (!value && entry->flag->kind == NOSA_FLAG_BOOL)
        value = "true";
    if (!value) {
        /* A following flag is not a value; a lone or numeric dash ("-1") is. */
        if (*index + 1 >= argc || strncmp(argv[*index + 1], "--", 2) == 0)
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "--%s needs a value",
                                  entry->flag->name);
        value = argv[++*index];
    }
    return store_value(entry, value, ORIGIN_ARGUMENT, error);
}

static enum nosa_status add_positional(struct nosa_flags *flags, const char *word,
                                       struct nosa_error *error)
{
    if (flags->positional_count >= flags->program->positional_max)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "unexpected argument \"%.80s\"", word);
    char *copy = strdup(word);
    if (!copy)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for flags");
    flags->positional[flags->positional_count++] = copy;
    return NOSA_OK;
}

/* --help and --version count wherever they stand before `--`, except as another flag's value. */
static enum nosa_flags_action find_action(const struct nosa_flags *flags, int argc,
                                          char *const *argv)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            return NOSA_FLAGS_HELP;
        if (strcmp(argv[i], "--version") == 0)
            return NOSA_FLAGS_VERSION;
        if (strncmp(argv[i], "--", 2) != 0 || strchr(argv[i], '='))
            continue;
        struct entry *entry = find_entry(flags, argv[i] + 2, strlen(argv[i] + 2));
        if (entry && entry->flag->kind != NOSA_FLAG_BOOL && i + 1 < argc &&
            strncmp(argv[i + 1], "--", 2) != 0)
            i++;
    }
    return NOSA_FLAGS_RUN;
}

static enum nosa_status parse_arguments(struct nosa_flags *flags, int argc, char *const *argv,
                                        struct nosa_error *error)
{
    bool flags_ended = false;
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        if (!flags_ended && strcmp(word, "--") == 0) {
            flags_ended = true;
        } else if (!flags_ended && strncmp(word, "--", 2) == 0) {
            NOSA_TRY(parse_flag(flags, argc, argv, &i, error));
        } else if (!flags_ended && word[0] == '-' && word[1] != '\0') {
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "unknown flag %.80s (see --help)",
                                  word);
        } else {
            NOSA_TRY(add_positional(flags, word, error));
        }
    }
    return NOSA_OK;
}

static enum nosa_status parse_environment(struct nosa_flags *flags, struct nosa_error *error)
{
    for (size_t i = 0; i < flags->entry_count; i++) {
        struct entry *entry = &flags->entries[i];
        if (entry->origin != ORIGIN_DEFAULT)
            continue;
        char name[VARIABLE_NAME_MAX];
        variable_name(entry->flag, name);
        const char *text = getenv(name);
        if (text)
            NOSA_TRY(store_value(entry, text, ORIGIN_ENVIRONMENT, error));
    }
    return NOSA_OK;
}

enum nosa_status nosa_flags_parse(struct nosa_flags **out, const struct nosa_flags_program *program,
                                  int argc, char *const *argv, struct nosa_error *error)
{
    struct nosa_flags *flags = NULL;
    *out = NULL;
    NOSA_TRY(create(&flags, program, argc, error));
    flags->action = find_action(flags, argc, argv);
    enum nosa_status status = NOSA_OK;
    if (flags->action == NOSA_FLAGS_RUN) {
        status = parse_arguments(flags, argc, argv, error);
        if (status == NOSA_OK)
            status = parse_environment(flags, error);
    }
    if (status != NOSA_OK) {
        nosa_flags_free(flags);
        return status;
    }
    *out = flags;
    return NOSA_OK;
}

void nosa_flags_free(struct nosa_flags *flags)
{
    if (!flags)
        return;
    for (int i = 0; i < flags->positional_count; i++)
        free(flags->positional[i]);
    free(flags->positional);
    for (size_t i = 0; i < flags->entry_count; i++)
        free(flags->entries[i].owned_text);
    free(flags->entries);
    free(flags);
}

enum nosa_flags_action nosa_flags_action(const struct nosa_flags *flags)
{
    return flags->action;
}

void nosa_flags_print(const struct nosa_flags *flags, FILE *stream)
{
    if (flags->action == NOSA_FLAGS_HELP)
        nosa_flags_print_help(flags->program, stream);
    else if (flags->action == NOSA_FLAGS_VERSION)
        fprintf(stream, "%s %s\n", flags->program->name, nosa_version());
}

static const struct entry *get(const struct nosa_flags *flags, const char *name)
{
    const struct entry *entry = find_entry(flags, name, strlen(name));
    NOSA_ASSERT(entry);
    return entry;
}

static const union nosa_flag_value *value_of(const struct nosa_flags *flags, const char *name,
                                             enum nosa_flag_kind kind)
{
    const struct entry *entry = get(flags, name);
    NOSA_ASSERT(entry->flag->kind == kind);
    return &entry->value;
}

bool nosa_flags_bool(const struct nosa_flags *flags, const char *name)
{
    return value_of(flags, name, NOSA_FLAG_BOOL)->boolean;
}

int32_t nosa_flags_int32(const struct nosa_flags *flags, const char *name)
{
    return (int32_t)value_of(flags, name, NOSA_FLAG_INT32)->integer;
}

int64_t nosa_flags_int64(const struct nosa_flags *flags, const char *name)
{
    return value_of(flags, name, NOSA_FLAG_INT64)->integer;
}

uint64_t nosa_flags_uint64(const struct nosa_flags *flags, const char *name)
{
    return value_of(flags, name, NOSA_FLAG_UINT64)->count;
}

double nosa_flags_double(const struct nosa_flags *flags, const char *name)
{
    return value_of(flags, name, NOSA_FLAG_DOUBLE)->number;
}

const char *nosa_flags_string(const struct nosa_flags *flags, const char *name)
{
    return value_of(flags, name, NOSA_FLAG_STRING)->text;
}

uint64_t nosa_flags_size(const struct nosa_flags *flags, const char *name)
{
    return value_of(flags, name, NOSA_FLAG_SIZE)->count;
}

int nosa_flags_choice(const struct nosa_flags *flags, const char *name)
{
    return (int)value_of(flags, name, NOSA_FLAG_CHOICE)->integer;
}

const char *nosa_flags_choice_text(const struct nosa_flags *flags, const char *name)
{
    int index = nosa_flags_choice(flags, name);
    return index < 0 ? NULL : get(flags, name)->flag->choices[index];
}

bool nosa_flags_is_set(const struct nosa_flags *flags, const char *name)
{
    return get(flags, name)->origin != ORIGIN_DEFAULT;
}

const char *nosa_flags_source(const struct nosa_flags *flags, const char *name)
{
    return get(flags, name)->source;
}

const struct nosa_flag *nosa_flags_next_unavailable(const struct nosa_flags *flags,
                                                    const struct nosa_flag *previous)
{
    bool past = previous == NULL;
    for (size_t i = 0; i < flags->entry_count; i++) {
        const struct entry *entry = &flags->entries[i];
        if (past && entry->flag->unavailable && entry->origin != ORIGIN_DEFAULT)
            return entry->flag;
        if (entry->flag == previous)
            past = true;
    }
    return NULL;
}

int nosa_flags_positional_count(const struct nosa_flags *flags)
{
    return flags->positional_count;
}

const char *nosa_flags_positional(const struct nosa_flags *flags, int index)
{
    return index >= 0 && index < flags->positional_count ? flags->positional[index] : NULL;
}
