#include "generation_json.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"

/* What JSON has no number for is null. */
static json_t *number(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

/* As text where it exceeds a signed 64-bit integer. */
static json_t *whole(uint64_t value)
{
    char text[24];
    if (value <= INT64_MAX)
        return json_integer((json_int_t)value);
    snprintf(text, sizeof text, "%" PRIu64, value);
    return json_string(text);
}

static json_t *ids_array(const uint32_t *ids, size_t count)
{
    json_t *array = json_array();
    for (size_t i = 0; i < count && array; i++)
        if (json_array_append_new(array, json_integer(ids[i])) != 0) {
            json_decref(array);
            array = NULL;
        }
    return array;
}

static enum nosa_status no_memory(struct nosa_error *error)
{
    return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the output");
}

/* ---- collecting ---- */

enum nosa_status nosa_generation_json_accepted(void *context, const Nosa__V1__Accepted *accepted,
                                               struct nosa_error *error)
{
    struct nosa_generation_json *json = context;
    json->prompt_tokens = ids_array(accepted->prompt_token_ids, accepted->n_prompt_token_ids);
    if (json->logprobs_asked) {
        json->logprobs = json_array();
        json->top_logprobs = json_array();
    }
    bool complete =
        json->prompt_tokens && (!json->logprobs_asked || (json->logprobs && json->top_logprobs));
    return complete ? NOSA_OK : no_memory(error);
}

static json_t *top_array(const Nosa__V1__TokenLogprob *entry)
{
    json_t *array = json_array();
    for (size_t i = 0; i < entry->n_top && array; i++) {
        json_t *top = json_pack("{s:I s:o}", "token_id", (json_int_t)entry->top[i]->token_id,
                                "logprob", number((double)entry->top[i]->logprob));
        if (json_array_append_new(array, top) != 0) {
            json_decref(array);
            array = NULL;
        }
    }
    return array;
}

enum nosa_status nosa_generation_json_delta(void *context, const Nosa__V1__Delta *delta,
                                            struct nosa_error *error)
{
    struct nosa_generation_json *json = context;
    if (nosa_buffer_append_text(&json->text, delta->text) != NOSA_OK)
        return no_memory(error);
    for (size_t i = 0; i < delta->n_logprobs && json->logprobs_asked; i++)
        if (json_array_append_new(json->logprobs, number((double)delta->logprobs[i]->logprob)) ||
            json_array_append_new(json->top_logprobs, top_array(delta->logprobs[i])))
            return no_memory(error);
    return NOSA_OK;
}

/* ---- the object ---- */

const char *nosa_generation_reason(const struct nosa_resumed_result *result)
{
    if (result->finished)
        return result->finished->reason == NOSA__V1__FINISHED__REASON__REASON_LENGTH ? "length"
                                                                                     : "stop";
    return result->interrupted                  ? "interrupted"
           : result->code == NOSA_RPC_CANCELLED ? "cancelled"
                                                : "failed";
}

static json_t *usage_object(const Nosa__V1__Usage *usage)
{
    if (!usage)
        return json_null();
    return json_pack("{s:I s:I s:I s:o s:o s:o s:o s:o s:o s:o s:o}", "prompt_tokens",
                     (json_int_t)usage->prompt_tokens, "cached_prompt_tokens",
                     (json_int_t)usage->cached_prompt_tokens, "completion_tokens",
                     (json_int_t)usage->completion_tokens, "queue_ms", number(usage->queue_ms),
                     "ttft_ms", number(usage->ttft_ms), "decode_ms", number(usage->decode_ms),
                     "kv_gpu_hits", whole(usage->kv_gpu_hits), "kv_host_hits",
                     whole(usage->kv_host_hits), "kv_nvme_hits", whole(usage->kv_nvme_hits),
                     "kv_recomputed_blocks", whole(usage->kv_recomputed_blocks), "kv_stall_ms",
                     number(usage->kv_stall_ms));
}

/* Seconds as this side saw them. */
static json_t *timing_object(const struct nosa_resumed_result *result)
{
    bool any = result->first_ns > 0;
    return json_pack(
        "{s:o s:o s:o}", "ttft_s",
        any ? number(nosa_seconds_between(result->start_ns, result->first_ns)) : json_null(),
        "decode_s",
        any ? number(nosa_seconds_between(result->first_ns, result->end_ns)) : json_null(),
        "total_s", number(nosa_seconds_between(result->start_ns, result->end_ns)));
}

json_t *nosa_generation_json_take(struct nosa_generation_json *json,
                                  const struct nosa_resumed_result *result, const char *failure)
{
    const Nosa__V1__Finished *finished = result->finished;
    json_t *object = json_pack(
        "{s:s s:s s:o s:O? s:o s:s% s:s s:s s:o s:I s:o}", "request_id", result->request_id,
        "worker_id", result->worker_id, "seed", whole(result->seed), "prompt_tokens",
        json->prompt_tokens, "tokens", ids_array(result->tokens, result->token_count), "text",
        json->text.data ? json->text.data : "", json->text.size, "finish_reason",
        nosa_generation_reason(result), "stop_sequence", finished ? finished->stop_sequence : "",
        "usage", usage_object(finished ? finished->usage : NULL), "breaks",
        (json_int_t)result->breaks, "timing", timing_object(result));
    bool complete = object != NULL;
    if (complete && json->logprobs_asked)
        complete = json_object_set(object, "logprobs", json->logprobs) == 0 &&
                   json_object_set(object, "top_logprobs", json->top_logprobs) == 0;
    if (complete && failure[0])
        complete = json_object_set_new(object, "error", json_string(failure)) == 0;
    if (!complete) {
        json_decref(object);
        return NULL;
    }
    return object;
}

void nosa_generation_json_free(struct nosa_generation_json *json)
{
    json_decref(json->prompt_tokens);
    json_decref(json->logprobs);
    json_decref(json->top_logprobs);
    nosa_buffer_free(&json->text);
}
