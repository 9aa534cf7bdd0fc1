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
     .help = "rounds of which the median counts (model, context, extents, tiers)"},
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
             "tiers (ops between its tiers), rows (norms, sampling); default: all"},
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
     .help = "prompt tokens computed in one step; quality: 128 when not given"},
    {.name = "sequences",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .default_text = "32",
     .range.integer = {1, 4096},
     .group = "batch",
     .help = "sequences that are computed together"},
    {.name = "prompt-tokens",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .default_text = "128",
     .range.integer = {1, 131072},
     .group = "batch",
     .help = "tokens of each prompt"},
    {.name = "output-tokens",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .default_text = "64",
     .range.integer = {1, 131072},
     .group = "batch",
     .help = "tokens that follow it"},
    {.name = "context",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .default_text = "131072",
     .range.integer = {8192, 131072},
     .group = "context",
     .help = "longest context, in tokens; 131072 take 3.7 GB of memory"},
    {.name = "points",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .default_text = "16",
     .range.integer = {1, 4096},
     .group = "policy",
     .help = "points of the trace at which a first tier starts empty"},
    {.name = "horizon",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .default_text = "64",
     .range.integer = {1, INT32_MAX},
     .group = "policy",
     .help = "steps that are followed after each of them"},
    {.name = "touch-shift",
     .kind = NOSA_FLAG_INT32,
     .value_name = "K",
     .default_text = "0",
     .range.integer = {0, 31},
     .group = "policy",
     .help = "recency in units of 2^K steps: uses within one count as equally recent"},
};

static const struct subcommand {
    const char *name;
    const char *takes; /* flags, each between blanks */
    enum nosa_status (*run)(const struct nosa_flags *flags, struct nosa_error *error);
} subcommands[] = {
    {"limits", " threads json ", bench_limits},
    {"kernels", " threads json only ", bench_kernels},
    {"model", " threads json only rounds model attention prefill-chunk ", bench_model},
    {"batch",
     " threads json rounds model attention prefill-chunk sequences prompt-tokens output-tokens ",
     bench_batch},
    {"context", " threads json rounds context ", bench_context},
    {"extents", " json rounds ", bench_extents},
    {"tiers", " threads json rounds model attention texts ", bench_tiers},
    {"policy", " json points horizon touch-shift ", bench_policy},
    {"quality",
     " threads json model prefill-chunk texts modes sizes window windows documents tasks haystacks "
     "agree-every seed ",
     bench_quality},
    {"rpc",
     " threads json address kind at-once seconds payload-bytes interval-us tls-cert tls-key "
     "tls-ca ",
     bench_rpc},
};

static enum nosa_status check_flag(const struct nosa_flags *flags,
                                   const struct subcommand *subcommand, const char *name,
                                   struct nosa_error *error)
{
    char word[40];
    snprintf(word, sizeof word, " %s ", name);
    if (!strstr(subcommand->takes, word) && nosa_flags_is_set(flags, name) &&
        strncmp(nosa_flags_source(flags, name), "--", 2) == 0)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "--%s means nothing to '%s'", name,
                              subcommand->name);
    return NOSA_OK;
}

/* What the command line asks for in vain is refused; the environment may serve several programs. */
static enum nosa_status check_flags(const struct nosa_flags *flags,
                                    const struct subcommand *subcommand,
                                    const struct nosa_flag_table *flag_tables, size_t table_count,
                                    struct nosa_error *error)
{
    for (size_t i = 0; i < table_count; i++)
        for (size_t j = 0; j < flag_tables[i].count; j++)
            NOSA_TRY(check_flag(flags, subcommand, flag_tables[i].flags[j].name, error));
    return NOSA_OK;
}

static enum nosa_status run(const struct nosa_flags *flags, const struct nosa_flag_table *tables,
                            size_t table_count, struct nosa_error *error)
{
    const char *name = nosa_flags_positional(flags, 0);
    if (!name)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "name what to measure: limits, kernels, model, batch, context, "
                              "extents, tiers, policy, quality or rpc");
    const char *extra = nosa_flags_positional(flags, 1);
    if (extra && strcmp(name, "policy") != 0 && strcmp(name, "extents") != 0 &&
        strcmp(name, "tiers") != 0)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "'%s': %s takes no file", extra, name);
    for (size_t i = 0; i < sizeof subcommands / sizeof *subcommands; i++) {
        if (strcmp(subcommands[i].name, name) == 0) {
            NOSA_TRY(check_flags(flags, &subcommands[i], tables, table_count, error));
            return subcommands[i].run(flags, error);
        }
    }
    return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                          "'%s' is not limits, kernels, model, batch, context, extents, tiers, "
                          "policy, quality or rpc",
                          name);
}

int main(int argc, char **argv)
{
    const struct nosa_flag_table tables[] = {NOSA_FLAG_TABLE(flag_table),
                                             {bench_quality_flags, bench_quality_flag_count},
                                             {bench_rpc_flags, bench_rpc_flag_count}};
    const struct nosa_flags_program program = {
        .name = "nosa-bench",
        .summary = "Measures the engine beside the limits of the machine.",
        .usage = "limits|kernels|model|batch|context|extents DIR|tiers DIR|policy FILE|quality|rpc "
                 "[flags]",
        .tables = tables,
        .table_count = sizeof tables / sizeof *tables,
        .positional_max = 2,
    };
    struct nosa_error error = {0};
    struct nosa_flags *flags;
    enum nosa_status status = nosa_flags_parse(&flags, &program, argc, argv, &error);
    if (status == NOSA_OK && nosa_flags_action(flags) != NOSA_FLAGS_RUN)
        nosa_flags_print(flags, stdout);
    else if (status == NOSA_OK)
        status = run(flags, tables, sizeof tables / sizeof *tables, &error);
    nosa_flags_free(flags);
    if (status != NOSA_OK)
        fprintf(stderr, "nosa-bench: %s\n", error.text);
    return nosa_status_exit_code(status);
}
