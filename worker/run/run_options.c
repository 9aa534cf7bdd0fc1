#include "run/run_options.h"

#include <float.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/generation_flags.h"
#include "base/log.h"

static const struct nosa_flag flag_table[] = {
    {.name = "prompt",
     .kind = NOSA_FLAG_STRING,
     .value_name = "TEXT",
     .group = "Input",
     .help = "text to continue"},
    {.name = "prompt-file",
     .kind = NOSA_FLAG_STRING,
     .value_name = "FILE",
     .group = "Input",
     .help = "file with the text to continue, UTF-8; - is standard input"},
    {.name = "prompt-tokens",
     .kind = NOSA_FLAG_STRING,
     .value_name = "IDS",
     .group = "Input",
     .help = "token ids to continue, separated by commas"},
    {.name = "score",
     .kind = NOSA_FLAG_STRING,
     .value_name = "FILE",
     .group = "Input",
     .help = "instead of a prompt: print the log-likelihood of this text; - is standard input"},
    {.name = "chat",
     .kind = NOSA_FLAG_BOOL,
     .group = "Input",
     .help = "wrap the text prompt in the model's chat format"},

    NOSA_GENERATION_FLAGS,
    {.name = "ignore-eos",
     .kind = NOSA_FLAG_BOOL,
     .group = "Generation",
     .help = "go on past end tokens"},

    {.name = "json",
     .kind = NOSA_FLAG_BOOL,
     .group = "Output",
     .help = "print one JSON object instead of text"},
    {.name = "dump-logits",
     .kind = NOSA_FLAG_STRING,
     .value_name = "FILE",
     .group = "Output",
     .help = "write the logits of each token chosen as a .npy file, float32 [rows, vocab]"},
    {.name = "trace-selection",
     .kind = NOSA_FLAG_STRING,
     .value_name = "FILE",
     .group = "Output",
     .help = "write the blocks that each layer and KV head selects, for nosa-bench policy"},
    {.name = "trace-from",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .range.integer = {0, INT32_MAX},
     .group = "Output",
     .help = "trace every token from position N on; default: from the first generated one"},
};

/* One kind of input on the command line sets aside those that the environment names. */
static void prefer_command_line(struct nosa_run_options *options)
{
    const struct {
        const char *name;
        const char **value;
    } inputs[] = {{"prompt", &options->prompt},
                  {"prompt-file", &options->prompt_file},
                  {"prompt-tokens", &options->prompt_tokens},
                  {"score", &options->score_file}};
    bool on_command_line[4], any = false;
    for (int i = 0; i < 4; i++) {
        on_command_line[i] =
            *inputs[i].value &&
            strncmp(nosa_flags_source(options->flags, inputs[i].name), "--", 2) == 0;
        any = any || on_command_line[i];
    }
    for (int i = 0; i < 4 && any; i++)
        if (!on_command_line[i])
            *inputs[i].value = NULL;
}

static const char *const sampling_flags[] = {
    "temperature",      "top-p", "top-k", "min-p", "repetition-penalty", "presence-penalty",
    "frequency-penalty"};

#define N_SAMPLING_FLAGS (sizeof sampling_flags / sizeof *sampling_flags)

/* A text that is scored is not sampled from. What the environment says about sampling is for runs
 * that do, and no conflict. */
static enum nosa_status check_score(const struct nosa_run_options *options,
                                    struct nosa_error *error)
{
    for (size_t i = 0; i < N_SAMPLING_FLAGS; i++)
        if (nosa_flags_is_set(options->flags, sampling_flags[i]) &&
            strncmp(nosa_flags_source(options->flags, sampling_flags[i]), "--", 2) == 0)
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                  "--%s goes with a prompt, not with --score", sampling_flags[i]);
    return NOSA_OK;
}

static enum nosa_status check_input(const struct nosa_run_options *options,
                                    struct nosa_error *error)
{
    int inputs = (options->prompt != NULL) + (options->prompt_file != NULL) +
                 (options->prompt_tokens != NULL) + (options->score_file != NULL);
    if (inputs != 1)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "give exactly one of --prompt, --prompt-file, --prompt-tokens and "
                              "--score (%d given)",
                              inputs);
    if (options->chat && (options->prompt_tokens || options->score_file))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "--chat wraps a text prompt, not %s",
                              options->prompt_tokens ? "--prompt-tokens" : "--score");
    if (options->score_file && options->dump_logits)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "--dump-logits goes with a prompt, not with --score");
    return options->score_file ? check_score(options, error) : NOSA_OK;
}

static enum nosa_status check_trace(const struct nosa_run_options *options,
                                    struct nosa_error *error)
{
    if (options->trace_from >= 0 && !options->trace_selection)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "%s without --trace-selection has nothing to trace into",
                              nosa_flags_source(options->flags, "trace-from"));
    if (options->trace_selection && options->engine.attention == NOSA_ATTENTION_FULL)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "--trace-selection %s: full attention selects no blocks",
                              options->trace_selection);
    return NOSA_OK;
}

/* Below 2^53, so that every JSON reader gets it back unchanged from --json. */
static uint64_t draw_seed(void)
{
    uint64_t seed = 0;
    while (seed == 0) {
        if (getrandom(&seed, sizeof seed, 0) != (ssize_t)sizeof seed)
            seed = nosa_monotonic_ns() | 1;
        seed &= ((uint64_t)1 << 53) - 1;
    }
    return seed;
}

/* A share that is too small for a float is not 0, which would turn the filter off. */
static float share(double value)
{
    return value > 0 && value < (double)FLT_MIN ? FLT_MIN : (float)value;
}

static void read_sampling(struct nosa_run_options *out)
{
    const struct nosa_flags *flags = out->flags;
    for (size_t i = 0; i < N_SAMPLING_FLAGS; i++)
        out->has_sampling = out->has_sampling || nosa_flags_is_set(flags, sampling_flags[i]);
    bool filtered = nosa_flags_is_set(flags, "top-p") || nosa_flags_is_set(flags, "top-k") ||
                    nosa_flags_is_set(flags, "min-p");
    out->sampling = (struct nosa_sampling){
        .temperature = nosa_flags_is_set(flags, "temperature")
                           ? (float)nosa_flags_double(flags, "temperature")
                           : (float)filtered, /* a filter without a temperature means 1 */
        .top_p = share(nosa_flags_double(flags, "top-p")),
        .top_k = nosa_flags_int32(flags, "top-k"),
        .min_p = (float)nosa_flags_double(flags, "min-p"),
        .repetition_penalty = (float)nosa_flags_double(flags, "repetition-penalty"),
        .presence_penalty = (float)nosa_flags_double(flags, "presence-penalty"),
        .frequency_penalty = (float)nosa_flags_double(flags, "frequency-penalty"),
        .seed = nosa_flags_uint64(flags, "seed"),
    };
    if (out->sampling.seed == 0) {
        out->seed_drawn = true;
        out->sampling.seed = draw_seed();
    }
}

static void read_flags(struct nosa_run_options *out)
{
    const struct nosa_flags *flags = out->flags;
    out->prompt = nosa_flags_string(flags, "prompt");
    out->prompt_file = nosa_flags_string(flags, "prompt-file");
    out->prompt_tokens = nosa_flags_string(flags, "prompt-tokens");
    out->score_file = nosa_flags_string(flags, "score");
    out->chat = nosa_flags_bool(flags, "chat");
    out->ignore_eos = nosa_flags_bool(flags, "ignore-eos");
    out->json = nosa_flags_bool(flags, "json");
    out->dump_logits = nosa_flags_string(flags, "dump-logits");
    out->trace_selection = nosa_flags_string(flags, "trace-selection");
    out->trace_from =
        nosa_flags_is_set(flags, "trace-from") ? nosa_flags_int32(flags, "trace-from") : -1;
    out->max_tokens = nosa_flags_int32(flags, "max-tokens");
    read_sampling(out);
}

enum nosa_status nosa_run_options_parse(int argc, char *const *argv, struct nosa_run_options *out,
                                        enum nosa_run_action *action, struct nosa_error *error)
{
    *out = (struct nosa_run_options){0};
    const struct nosa_flag_table tables[] = {nosa_engine_flag_table, NOSA_FLAG_TABLE(flag_table)};
    const struct nosa_flags_program program = {
        .name = "nosa-run",
        .summary = "Runs a model on one prompt, in this process, without a network.",
        .usage = "--model DIR (--prompt TEXT | --prompt-file F | --prompt-tokens IDS | --score F) "
                 "...",
        .tables = tables,
        .table_count = 2,
    };
    NOSA_TRY(nosa_flags_parse(&out->flags, &program, argc, argv, error));
    *action = NOSA_RUN_GO;
    if (nosa_flags_action(out->flags) != NOSA_FLAGS_RUN) {
        nosa_flags_print(out->flags, stdout);
        nosa_run_options_free(out);
        *action = NOSA_RUN_PRINTED;
        return NOSA_OK;
    }
    read_flags(out);
    prefer_command_line(out);
    enum nosa_status status = nosa_engine_flags_read(out->flags, "run", &out->engine, error);
    if (status == NOSA_OK)
        status = check_input(out, error);
    if (status == NOSA_OK)
        status = check_trace(out, error);
    if (status != NOSA_OK) {
        nosa_run_options_free(out);
        return status;
    }
    return NOSA_OK;
}

void nosa_run_options_free(struct nosa_run_options *options)
{
    nosa_flags_free(options->flags);
    *options = (struct nosa_run_options){0};
}
