#include <stdio.h>
#include <string.h>

#include "bench.h"

static const char *const attention_choices[] = {"full", "infllmv2", "nosa", NULL};

static const struct nosa_flag flag_table[] = {
    {.name = "threads",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .range.integer = {1, 1024},
     .group = "All",
     .help = "threads of the engine, of the limits and of oneDNN; default: the cores of this "
             "process"},
    {.name = "rounds",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .default_text = "5",
     .range.integer = {1, 1000},
     .group = "All",
     .help = "rounds of which the median counts (model, context)"},
    {.name = "json",
     .kind = NOSA_FLAG_BOOL,
     .group = "All",
     .help = "print one JSON object instead of a table"},
    {.name = "only",
     .kind = NOSA_FLAG_STRING,
     .value_name = "NAME,...",
     .group = "All",
     .help = "model: prefill-512, prefill-4096, decode-128, decode-4096 (after so many tokens), "
             "decode-128x8, decode-4096x8 (batch 8); kernels: matmul, kv (ops over the KV arena), "
             "rows (norms, sampling); default: all"},
    {.name = "model",
     .kind = NOSA_FLAG_STRING,
     .value_name = "DIR",
     .group = "model",
     .help = "Hugging Face directory of the model"},
    {.name = "attention",
     .kind = NOSA_FLAG_CHOICE,
     .choices = attention_choices,
     .default_text = "full",
     .group = "model",
     .help = "attention mode"},
    {.name = "prefill-chunk",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .default_text = "512",
     .range.integer = {1, 65536},
     .group = "model",
     .help = "prompt tokens computed in one step"},
    {.name = "context",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .default_text = "131072",
     .range.integer = {8192, 131072},
     .group = "context",
     .help = "longest context, in tokens; 131072 take 3.7 GB of memory"},
};

static const struct {
    const char *name;
    enum nosa_status (*run)(const struct nosa_flags *flags, struct nosa_error *error);
} subcommands[] = {
    {"limits", bench_limits},
    {"kernels", bench_kernels},
    {"model", bench_model},
    {"context", bench_context},
};

static enum nosa_status run(const struct nosa_flags *flags, struct nosa_error *error)
{
    const char *name = nosa_flags_positional(flags, 0);
    if (!name)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "name what to measure: limits, kernels, model or context");
    for (size_t i = 0; i < sizeof subcommands / sizeof *subcommands; i++)
        if (strcmp(subcommands[i].name, name) == 0)
            return subcommands[i].run(flags, error);
    return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                          "'%s' is not limits, kernels, model or context", name);
}

static int exit_code(enum nosa_status status)
{
    switch (status) {
    case NOSA_OK: return 0;
    case NOSA_INVALID_ARGUMENT:
    case NOSA_NOT_FOUND:
    case NOSA_UNSUPPORTED:
    case NOSA_CORRUPT:
    case NOSA_IO_ERROR: return 2;
    default: return 1;
    }
}

int main(int argc, char **argv)
{
    const struct nosa_flag_table tables[] = {NOSA_FLAG_TABLE(flag_table)};
    const struct nosa_flags_program program = {
        .name = "nosa-bench",
        .summary = "Measures the engine beside the limits of the machine.",
        .usage = "limits|kernels|model|context [flags]",
        .tables = tables,
        .table_count = 1,
        .positional_max = 1,
    };
    struct nosa_error error = {0};
    struct nosa_flags *flags;
    enum nosa_status status = nosa_flags_parse(&flags, &program, argc, argv, &error);
    if (status == NOSA_OK && nosa_flags_action(flags) != NOSA_FLAGS_RUN)
        nosa_flags_print(flags, stdout);
    else if (status == NOSA_OK)
        status = run(flags, &error);
    nosa_flags_free(flags);
    if (status != NOSA_OK)
        fprintf(stderr, "nosa-bench: %s\n", error.text);
    return exit_code(status);
}
