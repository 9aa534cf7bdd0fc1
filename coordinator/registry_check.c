/* What workers' messages may hold. Every refusal names the field. Stateless. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "registry_internal.h"
#include "rpc/address.h"
#include "validate.h"

#define TEXT_BYTES_MAX 1024 /* of a version, a fingerprint, a device, an attention mode */
#define EOS_IDS_MAX    1024

/* INVALID_ARGUMENT, with a text that begins with the field. */
static enum nosa_rpc_code refuse(struct nosa_error *error, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static enum nosa_rpc_code refuse(struct nosa_error *error, const char *format, ...)
{
    char text[NOSA_ERROR_TEXT_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s", text);
    return NOSA_RPC_INVALID_ARGUMENT;
}

bool nosa_registry_is_report(Nosa__V1__WorkerState state)
{
    return state >= NOSA__V1__WORKER_STATE__WORKER_STATE_STARTING &&
           state <= NOSA__V1__WORKER_STATE__WORKER_STATE_DRAINED;
}

static bool is_tier(Nosa__Cluster__V1__Tier tier)
{
    return tier >= NOSA__CLUSTER__V1__TIER__TIER_GPU && tier <= NOSA__CLUSTER__V1__TIER__TIER_NVME;
}

/* Names go into logs, tables and metrics. */
static enum nosa_rpc_code check_text(const char *field, const char *text, size_t bytes_min,
                                     size_t bytes_max, struct nosa_error *error)
{
    size_t size = strlen(text);
    if (size < bytes_min)
        return refuse(error, "%s: is empty", field);
    if (size > bytes_max)
        return refuse(error, "%s: is longer than %zu bytes", field, bytes_max);
    for (const char *c = text; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            return refuse(error, "%s: has a control character", field);
    return NOSA_RPC_OK;
}

static enum nosa_rpc_code check_rate(const char *field, double rate, struct nosa_error *error)
{
    if (isfinite(rate) && rate >= 0)
        return NOSA_RPC_OK;
    return refuse(error, "load.%s: %g is no rate", field, rate);
}

static enum nosa_rpc_code check_load(const Nosa__Cluster__V1__Load *load, struct nosa_error *error)
{
    enum nosa_rpc_code code = NOSA_RPC_OK;
    if (!load)
        return code;
    const struct {
        const char *field;
        double rate;
    } rates[] = {{"prefill_tokens_per_s", load->prefill_tokens_per_s},
                 {"decode_tokens_per_s", load->decode_tokens_per_s},
                 {"host_tokens_per_s", load->host_tokens_per_s},
                 {"nvme_tokens_per_s", load->nvme_tokens_per_s}};
    for (size_t i = 0; i < sizeof rates / sizeof *rates && code == NOSA_RPC_OK; i++)
        code = check_rate(rates[i].field, rates[i].rate, error);
    for (size_t i = 0; i < load->n_tiers && code == NOSA_RPC_OK; i++)
        if (!is_tier(load->tiers[i]->tier))
            code = refuse(error, "load.tiers[%zu].tier: %d is no tier", i, load->tiers[i]->tier);
    return code;
}

static enum nosa_rpc_code check_capacity(const Nosa__Cluster__V1__Capacity *capacity,
                                         struct nosa_error *error)
{
    bool seen[NOSA_REGISTRY_TIERS_MAX + 1] = {false};
    for (size_t i = 0; capacity && i < capacity->n_tiers; i++) {
        Nosa__Cluster__V1__Tier tier = capacity->tiers[i]->tier;
        if (!is_tier(tier))
            return refuse(error, "capacity.tiers[%zu].tier: %d is no tier", i, tier);
        if (seen[tier])
            return refuse(error, "capacity.tiers[%zu].tier: %d is there twice", i, tier);
        seen[tier] = true;
    }
    return NOSA_RPC_OK;
}

/* A worker that loads its model knows the name alone. */
static enum nosa_rpc_code check_model(const Nosa__Cluster__V1__ModelCard *card, bool starting,
                                      struct nosa_error *error)
{
    if (!card)
        return refuse(error, "model: is missing");
    enum nosa_rpc_code code = check_text("model.id", card->id, 1, NOSA_WORKER_ID_BYTES_MAX, error);
    if (code == NOSA_RPC_OK)
        code = check_text("model.attention", card->attention, 0, TEXT_BYTES_MAX, error);
    if (code != NOSA_RPC_OK || (starting && card->model_hash.len == 0))
        return code;
    if (card->model_hash.len != NOSA_SHA256_SIZE)
        return refuse(error, "model.model_hash: is not 32 bytes");
    if (card->files_hash.len != NOSA_SHA256_SIZE)
        return refuse(error, "model.files_hash: is not 32 bytes");
    if (card->vocab_size == 0 || card->vocab_size > INT32_MAX)
        return refuse(error, "model.vocab_size: is not within 1 to 2^31-1");
    if (card->max_context_tokens == 0 || card->max_context_tokens > INT32_MAX)
        return refuse(error, "model.max_context_tokens: is not within 1 to 2^31-1");
    if (card->block_tokens == 0 || card->block_tokens > INT32_MAX)
        return refuse(error, "model.block_tokens: is not within 1 to 2^31-1");
    if (card->n_eos_token_ids > EOS_IDS_MAX)
        return refuse(error, "model.eos_token_ids: %zu ids, more than %d", card->n_eos_token_ids,
                      EOS_IDS_MAX);
    if (card->default_sampling &&
        nosa_validate_sampling(card->default_sampling, error) != NOSA_OK) {
        nosa_error_prefix(error, "model.default_sampling");
        return NOSA_RPC_INVALID_ARGUMENT;
    }
    return NOSA_RPC_OK;
}

static enum nosa_rpc_code check_address(const char *address, struct nosa_error *error)
{
    char host[NOSA_RPC_HOST_MAX];
    uint16_t port;
    if (nosa_rpc_address_split(address, host, &port, error) != NOSA_OK) {
        nosa_error_prefix(error, "address");
        return NOSA_RPC_INVALID_ARGUMENT;
    }
    if (!host[0] || port == 0)
        return refuse(error, "address: names no host or no port to dial");
    return NOSA_RPC_OK;
}

static enum nosa_rpc_code check_texts(const Nosa__Cluster__V1__JoinRequest *request,
                                      struct nosa_error *error)
{
    const struct {
        const char *field, *text;
    } texts[] = {{"version", request->version},
                 {"fingerprint", request->fingerprint},
                 {"device", request->device}};
    enum nosa_rpc_code code =
        check_text("worker_id", request->worker_id, 1, NOSA_WORKER_ID_BYTES_MAX, error);
    for (size_t i = 0; i < sizeof texts / sizeof *texts && code == NOSA_RPC_OK; i++)
        code = check_text(texts[i].field, texts[i].text, 0, TEXT_BYTES_MAX, error);
    return code;
}

enum nosa_rpc_code nosa_registry_check_join(const Nosa__Cluster__V1__JoinRequest *request,
                                            struct nosa_error *error)
{
    if (request->protocol != NOSA_CLUSTER_PROTOCOL) {
        nosa_error_set(error, NOSA_UNAVAILABLE,
                       "protocol: the worker (version %.64s) speaks %u, this coordinator %d",
                       request->version, request->protocol, NOSA_CLUSTER_PROTOCOL);
        return NOSA_RPC_FAILED_PRECONDITION;
    }
    enum nosa_rpc_code code = check_texts(request, error);
    if (code == NOSA_RPC_OK && request->incarnation == 0)
        code = refuse(error, "incarnation: is 0");
    if (code == NOSA_RPC_OK)
        code = check_address(request->address, error);
    if (code == NOSA_RPC_OK && !nosa_registry_is_report(request->state))
        code = refuse(error, "state: is none that a worker reports");
    if (code == NOSA_RPC_OK)
        code = check_model(request->model,
                           request->state == NOSA__V1__WORKER_STATE__WORKER_STATE_STARTING, error);
    if (code == NOSA_RPC_OK)
        code = check_capacity(request->capacity, error);
    if (code == NOSA_RPC_OK)
        code = check_load(request->load, error);
    return code;
}

enum nosa_rpc_code nosa_registry_check_heartbeat(const Nosa__Cluster__V1__HeartbeatRequest *request,
                                                 size_t hashes_max, struct nosa_error *error)
{
    size_t hashes = 0;
    const Nosa__Cluster__V1__PrefixDelta *prefixes = request->prefixes;
    if (!nosa_registry_is_report(request->state))
        return refuse(error, "state: is none that a worker reports");
    for (size_t i = 0; prefixes && i < prefixes->n_tiers; i++) {
        if (!is_tier(prefixes->tiers[i]->tier))
            return refuse(error, "prefixes.tiers[%zu].tier: %d is no tier", i,
                          prefixes->tiers[i]->tier);
        hashes += prefixes->tiers[i]->n_added + prefixes->tiers[i]->n_removed;
    }
    if (hashes > hashes_max)
        return refuse(error, "prefixes: %zu hashes, more than %zu", hashes, hashes_max);
    return check_load(request->load, error);
}
