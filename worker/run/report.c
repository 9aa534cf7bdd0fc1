#include "run/report.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/log.h"
#include "base/size.h"
#include "base/utf8.h"

static const char *finish_reason_name(enum nosa_finish_reason reason)
{
    switch (reason) {
    case NOSA_FINISH_STOP: return "stop";
    case NOSA_FINISH_LENGTH: return "length";
    case NOSA_FINISH_CANCELLED: return "cancelled";
    }
    return "unknown";
}

static void print_tier(const char *name, uint64_t bytes, int32_t blocks)
{
    char size[NOSA_SIZE_TEXT_MAX];
    fprintf(stderr, ", %s %s for %lld tokens", name, nosa_size_format(bytes, size),
            (long long)blocks * NOSA_BLOCK_TOKENS);
}

void nosa_report_start(const struct nosa_run_options *options, const struct nosa_engine_info *info,
                       bool has_tokenizer)
{
    if (!has_tokenizer)
        nosa_log(NOSA_LOG_WARN, "run", "%s has no tokenizer.json; printing no text",
                 options->engine.model_directory);
    if (info->attention == NOSA_ATTENTION_NOSA && !info->config->has_eviction_head)
        nosa_log(NOSA_LOG_WARN, "run",
                 "%s has no eviction head: nosa's second cut takes the lowest blocks; infllmv2 "
                 "selects by the query alone",
                 options->engine.model_directory);
    if (options->json)
        return;
    char weights[NOSA_SIZE_TEXT_MAX];
    fprintf(stderr, "%s; weights %s", info->device, nosa_size_format(info->weight_bytes, weights));
    print_tier("KV cache", info->kv_bytes, info->kv_slots);
    if (info->host_kv_bytes > 0)
        print_tier("host tier", info->host_kv_bytes, info->kv_images);
    if (info->nvme_kv_bytes > 0) {
        print_tier("NVMe tier", info->nvme_kv_bytes, info->nvme_blocks);
        fprintf(stderr, " (%s)", info->nvme_method);
    }
    fputc('\n', stderr);
}

/* Bytes that are no UTF-8 become U+FFFD: JSON has none. */
static json_t *json_name(const char *bytes, size_t size)
{
    struct nosa_buffer text = {0};
    while (size > 0) {
        uint32_t code_point;
        char character[NOSA_UTF8_LENGTH_MAX];
        int length = nosa_utf8_decode(bytes, size, &code_point);
        size_t step = length > 0 ? (size_t)length : nosa_utf8_invalid_length(bytes, size);
        nosa_buffer_append(&text, character, nosa_utf8_encode(code_point, character));
        bytes += step;
        size -= step;
    }
    char *taken = nosa_buffer_take(&text);
    json_t *name = taken ? json_string(taken) : NULL;
    free(taken);
    return name;
}

/* The last component of the model's directory. */
static json_t *json_model(const char *directory)
{
    size_t end = 0;
    size_t begin = 0;
    for (size_t i = 0; directory[i]; i++)
        if (directory[i] != '/')
            end = i + 1;
    for (size_t i = 0; i < end; i++)
        if (directory[i] == '/')
            begin = i + 1;
    return json_name(directory + begin, end - begin);
}

static json_t *json_ids(const uint32_t *ids, size_t count)
{
    json_t *array = json_array();
    for (size_t i = 0; i < count; i++)
        json_array_append_new(array, json_integer(ids[i]));
    return array;
}

/* A seed past JSON's signed integers is written as text: it must come back unchanged. */
static json_t *json_seed(uint64_t seed)
{
    char text[24];
    if (seed <= INT64_MAX)
        return json_integer((json_int_t)seed);
    snprintf(text, sizeof text, "%llu", (unsigned long long)seed);
    return json_string(text);
}

/* JSON has neither infinities nor NaN. */
static json_t *json_number(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

static json_t *json_floats(const float *values, size_t count)
{
    json_t *array = json_array();
    for (size_t i = 0; i < count; i++)
        json_array_append_new(array, json_number(values[i]));
    return array;
}

static enum nosa_status print_json(json_t *object, struct nosa_error *error)
{
    char *text = object ? json_dumps(object, JSON_REAL_PRECISION(9)) : NULL;
    json_decref(object);
    if (!text)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the JSON output");
    bool written = puts(text) >= 0 && fflush(stdout) == 0;
    free(text);
    return written ? NOSA_OK
                   : nosa_error_set(error, NOSA_IO_ERROR, "standard output: cannot write");
}

static json_t *json_kv(const struct nosa_generation *generation)
{
    const struct nosa_session_kv *kv = &generation->kv;
    const struct nosa_engine_kv_traffic *traffic = &generation->traffic;
    return json_pack(
        "{s:I s:I s:I s:I s:I s:I s:I s:I s:I s:f}", "gpu_hits", (json_int_t)kv->first_hits,
        "host_hits", (json_int_t)kv->host_hits, "nvme_hits", (json_int_t)kv->nvme_hits,
        "prefetched_blocks", (json_int_t)traffic->prefetched_records, "recomputed_blocks",
        (json_int_t)traffic->recomputed_blocks, "corrupt_blocks",
        (json_int_t)traffic->corrupt_blocks, "h2d_bytes", (json_int_t)traffic->host_to_first_bytes,
        "nvme_read_bytes", (json_int_t)traffic->nvme_read_bytes, "nvme_written_bytes",
        (json_int_t)traffic->nvme_written_bytes, "stall_s", generation->stall_s);
}

enum nosa_status nosa_report_generation_json(const struct nosa_run_report *report,
                                             const struct nosa_generation *generation,
                                             struct nosa_error *error)
{
    json_t *ttft = generation->n_tokens > 0 ? json_real(generation->ttft_s) : json_null();
    json_t *timing =
        json_pack("{s:f s:f s:o s:f}", "load_s", report->load_s, "prefill_s", generation->prefill_s,
                  "ttft_s", ttft, "decode_s", generation->decode_s);
    json_t *text = generation->text.size
                       ? json_stringn(generation->text.data, generation->text.size)
                       : json_string("");
    json_t *object = json_pack(
        "{s:o s:s s:s s:o s:i s:o s:o s:o s:s s:o s:o s:o}", "model",
        json_model(report->options->engine.model_directory), "attention",
        nosa_attention_mode_name(report->info->attention), "device", report->info->device,
        "prompt_tokens", json_ids((const uint32_t *)report->prompt->ids, report->prompt->count),
        "cached_prompt_tokens", generation->cached_prompt_tokens, "tokens",
        json_ids(generation->tokens, (size_t)generation->n_tokens), "text", text, "logprobs",
        json_floats(generation->logprobs, (size_t)generation->n_tokens), "finish_reason",
        finish_reason_name(generation->finish_reason), "seed",
        json_seed(report->options->sampling.seed), "timing", timing, "kv", json_kv(generation));
    return print_json(object, error);
}

static const char *plural(size_t count)
{
    return count == 1 ? "" : "s";
}

void nosa_report_generation_line(const struct nosa_run_report *report,
                                 const struct nosa_generation *generation)
{
    size_t prompt = report->prompt->count;
    int32_t computed = generation->prompt_computed - generation->cached_prompt_tokens;
    int32_t decoded = generation->n_tokens - 1;
    if (generation->n_tokens == 0 && generation->finish_reason == NOSA_FINISH_CANCELLED) {
        fprintf(stderr, "stopped after %d of %zu prompt tokens, %.2f s\n",
                generation->prompt_computed, prompt, generation->prefill_s);
        return;
    }
    fprintf(stderr, "%zu prompt token%s ", prompt, plural(prompt));
    if (generation->cached_prompt_tokens > 0)
        fprintf(stderr, "(%d of them cached) ", generation->cached_prompt_tokens);
    fprintf(stderr, "in %.2f s (%.0f tokens/s)", generation->prefill_s,
            generation->prefill_s > 0 ? computed / generation->prefill_s : 0.0);
    if (decoded > 0)
        fprintf(stderr, ", then the first token and %d more in %.2f s (%.1f tokens/s)", decoded,
                generation->decode_s,
                generation->decode_s > 0 ? decoded / generation->decode_s : 0.0);
    fprintf(stderr, "; %s attention, loaded in %.2f s, finished: %s",
            nosa_attention_mode_name(report->info->attention), report->load_s,
            finish_reason_name(generation->finish_reason));
    if (generation->sampled)
        fprintf(stderr, ", seed %llu", (unsigned long long)report->options->sampling.seed);
    fputc('\n', stderr);
}

enum nosa_status nosa_report_score(const struct nosa_run_report *report, const float *scores,
                                   struct nosa_error *error)
{
    size_t count = report->prompt->count;
    double sum = 0;
    for (size_t i = 1; i < count; i++)
        sum += scores[i];
    if (report->options->json)
        return print_json(json_pack("{s:I s:o s:o}", "tokens", (json_int_t)count, "log_likelihood",
                                    json_number(sum), "per_token",
                                    json_floats(scores + 1, count > 0 ? count - 1 : 0)),
                          error);
    double perplexity = count > 1 ? exp(-sum / (double)(count - 1)) : 0;
    bool written =
        printf("%zu tokens, log-likelihood %.6f, perplexity %.6f\n", count, sum, perplexity) > 0 &&
        fflush(stdout) == 0;
    return written ? NOSA_OK
                   : nosa_error_set(error, NOSA_IO_ERROR, "standard output: cannot write");
}
