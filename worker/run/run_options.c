#include "run/run_options.h"

#include <float.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/log.h"

static const char *const attention_choices[] = {"full", "infllmv2", "nosa", NULL};

#define NO_TIERS "this build keeps KV in the first tier only"

static const struct nosa_flag flag_table[] = {
    {.name = "model",
     .kind = NOSA_FLAG_STRING,
     .value_name = "DIR",
     .group = "Input",
     .help = "Hugging Face directory of the model"},
    {.name = "prompt",
     .kind = NOSA_FLAG_STRING,
     .value_name = "TEXT",
     .group = "Input",
     .help = "text to continue"},
    {.name = "prompt-file",
     .kind = NOSA_FLAG_STRING,
     .value_name = "FILE",
     .group = "Input",
     .help = "file with the text to continue, UTF-8"},
    {.name = "prompt-tokens",
     .kind = NOSA_FLAG_STRING,
     .value_name = "IDS",
     .group = "Input",
     .help = "token ids to continue, separated by commas"},
    {.name = "score",
     .kind = NOSA_FLAG_STRING,
     .value_name = "FILE",
     .group = "Input",
     .help = "instead of a prompt: print the log-likelihood of this text"},
    {.name = "chat",
     .kind = NOSA_FLAG_BOOL,
     .group = "Input",
     .help = "wrap the text prompt in the model's chat format"},

    {.name = "max-tokens",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .default_text = "128",
     .range.integer = {1, INT32_MAX},
     .group = "Generation",
     .help = "tokens to generate at most"},
    {.name = "temperature",
     .kind = NOSA_FLAG_DOUBLE,
     .value_name = "T",
     .range.number = {0, 100},
     .group = "Generation",
     .help = "0 is greedy; without any sampling flag the model's generation_config decides"},
    {.name = "top-p",
     .kind = NOSA_FLAG_DOUBLE,
     .value_name = "P",
     .range.number = {0, 1},
     .group = "Generation",
     .help = "keep the most likely tokens that reach probability P; 0 is off"},
    {.name = "top-k",
     .kind = NOSA_FLAG_INT32,
     .value_name = "K",
     .range.integer = {0, INT32_MAX},
     .group = "Generation",
     .help = "keep the K most likely tokens; 0 is off"},
    {.name = "min-p",
     .kind = NOSA_FLAG_DOUBLE,
     .value_name = "P",
     .range.number = {0, 1},
     .group = "Generation",
     .help = "drop tokens less likely than P times the most likely one; 0 is off"},
    {.name = "repetition-penalty",
     .kind = NOSA_FLAG_DOUBLE,
     .value_name = "P",
     .range.number = {0, 100},
     .group = "Generation",
     .help = "divide the logits of tokens seen before; 0 or 1 is off"},
    {.name = "presence-penalty",
     .kind = NOSA_FLAG_DOUBLE,
     .value_name = "P",
     .range.number = {-100, 100},
     .group = "Generation",
     .help = "subtract from the logits of tokens generated before"},
    {.name = "frequency-penalty",
     .kind = NOSA_FLAG_DOUBLE,
     .value_name = "P",
     .range.number = {-100, 100},
     .group = "Generation",
     .help = "the same, for each time that they were generated"},
    {.name = "seed",
     .kind = NOSA_FLAG_UINT64,
     .value_name = "S",
     .group = "Generation",
     .help = "seed of the draws; 0 or none: one is drawn"},
    {.name = "ignore-eos",
     .kind = NOSA_FLAG_BOOL,
     .group = "Generation",
     .help = "go on past end tokens"},

    {.name = "attention",
     .kind = NOSA_FLAG_CHOICE,
     .choices = attention_choices,
     .group = "Engine",
     .help = "default: nosa with an eviction head, else full"},
    {.name = "device",
     .kind = NOSA_FLAG_STRING,
     .value_name = "DEVICE",
     .default_text = "auto",
     .group = "Engine",
     .help = "auto, cpu, cuda or cuda:0,1"},
    {.name = "tp",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .default_text = "1",
     .range.integer = {1, 1024},
     .group = "Engine",
     .help = "tensor-parallel ranks"},
    {.name = "threads",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .range.integer = {1, 1024},
     .group = "Engine",
     .help = "threads of the CPU backend; default: the cores of this process"},
    {.name = "prefill-chunk",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .default_text = "512",
     .range.integer = {1, 65536},
     .group = "Engine",
     .help = "prompt tokens computed in one step"},
    {.name = "max-context",
     .kind = NOSA_FLAG_INT32,
     .value_name = "N",
     .range.integer = {1, INT32_MAX},
     .group = "Engine",
     .help = "tokens of prompt and answer together; default: what the run needs, at most the "
             "model's positions"},
    {.name = "deterministic",
     .kind = NOSA_FLAG_BOOL,
     .group = "Engine",
     .help = "fix every order of summation; the CPU backend always does"},

    {.name = "gpu-kv-bytes",
     .kind = NOSA_FLAG_SIZE,
     .value_name = "SIZE",
     .default_text = "auto",
     .group = "KV cache",
     .help = "first tier, for each rank; on the CPU backend its fast arena"},
    {.name = "host-kv-bytes",
     .kind = NOSA_FLAG_SIZE,
     .value_name = "SIZE",
     .default_text = "auto",
     .group = "KV cache",
     .help = "second tier, pinned host memory",
     .unavailable = NO_TIERS},
    {.name = "nvme-dir",
     .kind = NOSA_FLAG_STRING,
     .value_name = "DIR",
     .group = "KV cache",
     .help = "third tier's directory",
     .unavailable = NO_TIERS},
    {.name = "nvme-kv-bytes",
     .kind = NOSA_FLAG_SIZE,
     .value_name = "SIZE",
     .default_text = "auto",
     .group = "KV cache",
     .help = "third tier's size",
     .unavailable = NO_TIERS},

    {.name = "json",
     .kind = NOSA_FLAG_BOOL,
     .group = "Output",
     .help = "print one JSON object instead of text"},
    {.name = "dump-logits",
     .kind = NOSA_FLAG_STRING,
     .value_name = "FILE",
     .group = "Output",
     .help = "write the logits of each token chosen as a .npy file, float32 [rows, vocab]"},
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

static enum nosa_status check_input(const struct nosa_run_options *options,
                                    struct nosa_error *error)
{
    if (!options->model_directory)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "--model is missing");
    if (options->model_directory[0] == '\0')
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "%s is empty; it names the directory that holds config.json",
                              nosa_flags_source(options->flags, "model"));
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
    return NOSA_OK;
}

/* "cpu", "auto", "cuda", "cuda:N[,N...]" */
static enum nosa_status check_device(const char *device, struct nosa_error *error)
{
    if (strcmp(device, "auto") == 0 || strcmp(device, "cpu") == 0)
        return NOSA_OK;
    bool valid = strncmp(device, "cuda", 4) == 0;
    const char *rest = device + 4;
    if (valid && *rest == ':') {
        do {
            rest++;
            size_t digits = strspn(rest, "0123456789");
            valid = digits >= 1 && digits <= 4;
            rest += digits;
        } while (valid && *rest == ',');
    }
    if (!valid || *rest != '\0')
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "--device '%s' is not auto, cpu, cuda or cuda:0,1", device);
    nosa_log(NOSA_LOG_WARN, "run", "--device %s: this build has no CUDA backend; using the CPU",
             device);
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
    static const char *const names[] = {
        "temperature",      "top-p", "top-k", "min-p", "repetition-penalty", "presence-penalty",
        "frequency-penalty"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        out->has_sampling = out->has_sampling || nosa_flags_is_set(flags, names[i]);
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
    out->model_directory = nosa_flags_string(flags, "model");
    out->prompt = nosa_flags_string(flags, "prompt");
    out->prompt_file = nosa_flags_string(flags, "prompt-file");
    out->prompt_tokens = nosa_flags_string(flags, "prompt-tokens");
    out->score_file = nosa_flags_string(flags, "score");
    out->chat = nosa_flags_bool(flags, "chat");
    out->ignore_eos = nosa_flags_bool(flags, "ignore-eos");
    out->json = nosa_flags_bool(flags, "json");
    out->dump_logits = nosa_flags_string(flags, "dump-logits");
    out->max_tokens = nosa_flags_int32(flags, "max-tokens");
    out->context_max = nosa_flags_int32(flags, "max-context");
    out->prefill_chunk = nosa_flags_int32(flags, "prefill-chunk");
    out->threads = nosa_flags_int32(flags, "threads");
    out->tp = nosa_flags_int32(flags, "tp");
    out->attention = nosa_flags_is_set(flags, "attention") ? nosa_flags_choice(flags, "attention")
                                                           : NOSA_ENGINE_ATTENTION_DEFAULT;
    uint64_t kv_bytes = nosa_flags_size(flags, "gpu-kv-bytes");
    out->kv_bytes = kv_bytes == NOSA_FLAG_SIZE_AUTO ? 0 : kv_bytes;
    read_sampling(out);
}

static enum nosa_status check_kv_bytes(const struct nosa_run_options *options,
                                       struct nosa_error *error)
{
    if (nosa_flags_size(options->flags, "gpu-kv-bytes") == 0)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "%s 0: the first tier must hold at least one sequence",
                              nosa_flags_source(options->flags, "gpu-kv-bytes"));
    return NOSA_OK;
}

static void say_unavailable(const struct nosa_flags *flags)
{
    const struct nosa_flag *flag = NULL;
    while ((flag = nosa_flags_next_unavailable(flags, flag)) != NULL)
        nosa_log(NOSA_LOG_WARN, "run", "%s has no effect: %s", nosa_flags_source(flags, flag->name),
                 flag->unavailable);
}

enum nosa_status nosa_run_options_parse(int argc, char *const *argv, struct nosa_run_options *out,
                                        enum nosa_run_action *action, struct nosa_error *error)
{
    *out = (struct nosa_run_options){0};
    const struct nosa_flag_table tables[] = {NOSA_FLAG_TABLE(flag_table)};
    const struct nosa_flags_program program = {
        .name = "nosa-run",
        .summary = "Runs a model on one prompt, in this process, without a network.",
        .usage = "--model DIR (--prompt TEXT | --prompt-file F | --prompt-tokens IDS | --score F) "
                 "...",
        .tables = tables,
        .table_count = 1,
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
    enum nosa_status status = check_input(out, error);
    if (status == NOSA_OK)
        status = check_kv_bytes(out, error);
    if (status == NOSA_OK)
        status = check_device(nosa_flags_string(out->flags, "device"), error);
    if (status != NOSA_OK) {
        nosa_run_options_free(out);
        return status;
    }
    say_unavailable(out->flags);
    return NOSA_OK;
}

void nosa_run_options_free(struct nosa_run_options *options)
{
    nosa_flags_free(options->flags);
    *options = (struct nosa_run_options){0};
}
