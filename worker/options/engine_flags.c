#include "options/engine_flags.h"

#include <assert.h>
#include <string.h>

#include "base/log.h"
#include "policy.h"

static_assert(NOSA_KV_BYTES_AUTO == NOSA_FLAG_SIZE_AUTO, "one word for both");

static const char *const attention_choices[] = {"full", "infllmv2", "nosa", NULL};

static const struct nosa_flag flag_table[] = {
    {.name = "model",
     .kind = NOSA_FLAG_STRING,
     .value_name = "DIR",
     .group = "Input",
     .help = "Hugging Face directory of the model"},

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
     .help = "tokens of prompt and answer together; default: the model's positions, or what a "
             "single run needs"},
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
     .help = "second tier, pinned host memory; auto: what the first tier cannot hold"},
    {.name = "kv-policy",
     .kind = NOSA_FLAG_CHOICE,
     .choices = nosa_kv_policy_names,
     .default_text = "eddma",
     .group = "KV cache",
     .help = "which records the first tier gives up"},
    {.name = "nvme-dir",
     .kind = NOSA_FLAG_STRING,
     .value_name = "DIR",
     .group = "KV cache",
     .help = "third tier: a directory for KV that outlives the process"},
    {.name = "nvme-kv-bytes",
     .kind = NOSA_FLAG_SIZE,
     .value_name = "SIZE",
     .default_text = "auto",
     .group = "KV cache",
     .help = "third tier's size; auto: as it is, else some tens of contexts"},
    {.name = "nvme-write-bytes-per-day",
     .kind = NOSA_FLAG_SIZE,
     .value_name = "SIZE",
     .default_text = "0",
     .group = "KV cache",
     .help = "writes to the third tier end for the day beyond this; 0: no limit; no auto"},
};

const struct nosa_flag_table nosa_engine_flag_table = NOSA_FLAG_TABLE(flag_table);

static enum nosa_status check_model(const struct nosa_flags *flags, const char *directory,
                                    struct nosa_error *error)
{
    if (!directory)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "--model is missing");
    if (directory[0] == '\0')
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "%s is empty; it names the directory that holds config.json",
                              nosa_flags_source(flags, "model"));
    return NOSA_OK;
}

/* "cpu", "auto", "cuda", "cuda:N[,N...]" */
static enum nosa_status check_device(const char *device, const char *subsystem,
                                     struct nosa_error *error)
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
    nosa_log(NOSA_LOG_WARN, subsystem, "--device %s: this build has no CUDA backend; using the CPU",
             device);
    return NOSA_OK;
}

static void say_unavailable(const struct nosa_flags *flags, const char *subsystem)
{
    const struct nosa_flag *flag = NULL;
    while ((flag = nosa_flags_next_unavailable(flags, flag)) != NULL)
        nosa_log(NOSA_LOG_WARN, subsystem, "%s has no effect: %s",
                 nosa_flags_source(flags, flag->name), flag->unavailable);
}

enum nosa_status nosa_engine_flags_read(const struct nosa_flags *flags, const char *subsystem,
                                        struct nosa_engine_flags *out, struct nosa_error *error)
{
    *out = (struct nosa_engine_flags){
        .model_directory = nosa_flags_string(flags, "model"),
        .attention = nosa_flags_is_set(flags, "attention") ? nosa_flags_choice(flags, "attention")
                                                           : NOSA_ENGINE_ATTENTION_DEFAULT,
        .tp = nosa_flags_int32(flags, "tp"),
        .threads = nosa_flags_int32(flags, "threads"),
        .prefill_chunk = nosa_flags_int32(flags, "prefill-chunk"),
        .context_max = nosa_flags_int32(flags, "max-context"),
        .kv_bytes = nosa_flags_size(flags, "gpu-kv-bytes"),
        .host_kv_bytes = nosa_flags_size(flags, "host-kv-bytes"),
        .kv_policy = (enum nosa_kv_policy)nosa_flags_choice(flags, "kv-policy"),
        .nvme_directory = nosa_flags_string(flags, "nvme-dir"),
        .nvme_kv_bytes = nosa_flags_size(flags, "nvme-kv-bytes"),
        .nvme_write_bytes_per_day = nosa_flags_size(flags, "nvme-write-bytes-per-day"),
    };
    if (out->nvme_write_bytes_per_day == NOSA_FLAG_SIZE_AUTO)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "%s auto: a size is wanted, or 0 for no limit",
                              nosa_flags_source(flags, "nvme-write-bytes-per-day"));
    NOSA_TRY(check_model(flags, out->model_directory, error));
    if (out->kv_bytes == 0)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "%s 0: the first tier must hold at least one sequence",
                              nosa_flags_source(flags, "gpu-kv-bytes"));
    NOSA_TRY(check_device(nosa_flags_string(flags, "device"), subsystem, error));
    say_unavailable(flags, subsystem);
    return NOSA_OK;
}

void nosa_engine_flags_options(const struct nosa_engine_flags *flags,
                               struct nosa_engine_options *out)
{
    *out = (struct nosa_engine_options){
        .model_directory = flags->model_directory,
        .attention = flags->attention,
        .tp = flags->tp,
        .device = {.threads = flags->threads},
        .context_max = flags->context_max,
        .rows_max = flags->prefill_chunk,
        .sessions_max = 1,
        .kv_bytes = flags->kv_bytes,
        .host_kv_bytes = flags->host_kv_bytes,
        .kv_policy = flags->kv_policy,
        .nvme_directory = flags->nvme_directory,
        .nvme_kv_bytes = flags->nvme_kv_bytes,
        .nvme_write_bytes_per_day = flags->nvme_write_bytes_per_day,
    };
}
