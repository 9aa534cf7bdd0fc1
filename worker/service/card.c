#include "service/card.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/version.h"
#include "service/registry.h"

static void host_name(char *name, size_t size)
{
    if (gethostname(name, size) != 0 || name[0] == '\0')
        snprintf(name, size, "localhost");
    name[size - 1] = '\0';
}

/* NULL unless the host of a listening address stands for all addresses; else their loopback. */
static const char *loopback_of(const char *host)
{
    if (host[0] == '\0' || strcmp(host, "0.0.0.0") == 0)
        return "127.0.0.1";
    return strcmp(host, "::") == 0 ? "::1" : NULL;
}

static void write_address(char address[NOSA_RPC_ADDRESS_MAX], const char *host, uint16_t port)
{
    bool brackets = strchr(host, ':') != NULL;
    snprintf(address, NOSA_RPC_ADDRESS_MAX, "%s%.253s%s:%u", brackets ? "[" : "", host,
             brackets ? "]" : "", port);
}

void nosa_worker_own_address(const char *address, uint16_t port, char own[NOSA_RPC_ADDRESS_MAX])
{
    char host[NOSA_RPC_HOST_MAX] = "";
    uint16_t ignored;
    nosa_rpc_address_split(address, host, &ignored, NULL);
    const char *loopback = loopback_of(host);
    write_address(own, loopback ? loopback : host, port);
}

/* Wall clock, its lowest bits random, so that two starts never share it. */
static uint64_t draw_incarnation(void)
{
    uint32_t low = 0;
    if (getrandom(&low, sizeof low, GRND_NONBLOCK) != (ssize_t)sizeof low)
        low = (uint32_t)getpid();
    return (nosa_clock_wall_ns(nosa_clock_system()) & ~UINT64_C(0xfffff)) | (low & 0xfffff);
}

static void name_worker(struct nosa_worker_card *card, const struct nosa_worker_options *options,
                        uint16_t port)
{
    char host[NOSA_RPC_HOST_MAX] = "", own[100];
    uint16_t ignored;
    host_name(own, sizeof own);
    nosa_rpc_address_split(options->listen, host, &ignored, NULL);
    if (options->advertise)
        snprintf(card->address, sizeof card->address, "%s", options->advertise);
    else
        write_address(card->address, loopback_of(host) ? own : host, port);
    if (options->id)
        snprintf(card->id, sizeof card->id, "%s", options->id);
    else
        snprintf(card->id, sizeof card->id, "%s-%u", own, port);
}

/* The last part of the model's directory, without slashes at its end. */
static void name_model(struct nosa_worker_card *card, const struct nosa_worker_options *options)
{
    const char *text = options->engine.model_directory;
    size_t end = strlen(text);
    while (end > 1 && text[end - 1] == '/')
        end--;
    size_t begin = end;
    while (begin > 0 && text[begin - 1] != '/')
        begin--;
    if (options->model_name)
        snprintf(card->model_id, sizeof card->model_id, "%s", options->model_name);
    else
        snprintf(card->model_id, sizeof card->model_id, "%.*s", (int)(end - begin), text + begin);
}

void nosa_worker_card_name(struct nosa_worker_card *card, const struct nosa_worker_options *options,
                           uint16_t port)
{
    Nosa__Cluster__V1__JoinRequest *join = &card->starting;
    name_worker(card, options, port);
    name_model(card, options);
    nosa__cluster__v1__model_card__init(&card->starting_model);
    card->starting_model.id = card->model_id;
    nosa__cluster__v1__join_request__init(join);
    join->protocol = NOSA_CLUSTER_PROTOCOL;
    join->version = (char *)(uintptr_t)nosa_version();
    join->worker_id = card->id;
    join->incarnation = draw_incarnation();
    join->address = card->address;
    join->model = &card->starting_model;
}

static void fill_sampling(Nosa__V1__Sampling *sampling, const struct nosa_generation_config *from)
{
    nosa__v1__sampling__init(sampling);
    if (!from->do_sample)
        return;
    sampling->temperature = (float)from->temperature;
    sampling->top_p = (float)from->top_p;
    sampling->top_k = from->top_k;
    sampling->min_p = (float)from->min_p;
    sampling->repetition_penalty = (float)from->repetition_penalty;
}

static void fill_model(struct nosa_worker_card *card, const struct nosa_engine_info *info)
{
    Nosa__Cluster__V1__ModelCard *model = &card->model;
    nosa__cluster__v1__model_card__init(model);
    model->id = card->model_id;
    model->model_hash.data = card->model_hash;
    model->model_hash.len = sizeof card->model_hash;
    model->files_hash.data = card->files_hash;
    model->files_hash.len = sizeof card->files_hash;
    model->vocab_size = info->config->vocab;
    model->max_context_tokens = (uint32_t)info->context_max;
    model->attention = (char *)(uintptr_t)nosa_attention_mode_name(info->attention);
    model->n_eos_token_ids = info->config->n_eos;
    model->eos_token_ids = card->eos;
    for (uint32_t i = 0; i < info->config->n_eos; i++)
        card->eos[i] = (uint32_t)info->config->eos[i];
    fill_sampling(&card->sampling, info->generation);
    model->default_sampling = &card->sampling;
    model->block_tokens = NOSA_MODEL_BLOCK_SIZE;
}

static void add_tier(struct nosa_worker_card *card, Nosa__Cluster__V1__Tier tier, uint64_t bytes,
                     int32_t blocks)
{
    Nosa__Cluster__V1__TierCapacity *capacity = &card->tiers[card->capacity.n_tiers];
    if (blocks <= 0)
        return;
    nosa__cluster__v1__tier_capacity__init(capacity);
    capacity->tier = tier;
    capacity->bytes = bytes;
    capacity->blocks = (uint64_t)blocks;
    card->tier_pointers[card->capacity.n_tiers++] = capacity;
}

void nosa_worker_card_fill(struct nosa_worker_card *card, const struct nosa_worker_options *options,
                           const struct nosa_engine_info *info,
                           const struct nosa_model_files *files, const uint8_t model_hash[32])
{
    memcpy(card->model_hash, model_hash, sizeof card->model_hash);
    memcpy(card->files_hash, files->hash, sizeof card->files_hash);
    fill_model(card, info);
    nosa__cluster__v1__capacity__init(&card->capacity);
    card->capacity.batch_max = (uint32_t)options->batch_max;
    card->capacity.queue_max = (uint32_t)options->queue_max;
    card->capacity.step_tokens_max = (uint32_t)info->rows_max;
    card->capacity.prefill_chunk_tokens = (uint32_t)options->engine.prefill_chunk;
    card->capacity.tensor_parallel = (uint32_t)options->engine.tp;
    card->capacity.tiers = card->tier_pointers;
    add_tier(card, NOSA__CLUSTER__V1__TIER__TIER_GPU, info->kv_bytes, info->kv_slots);
    add_tier(card, NOSA__CLUSTER__V1__TIER__TIER_HOST, info->host_kv_bytes, info->kv_images);
    add_tier(card, NOSA__CLUSTER__V1__TIER__TIER_NVME, info->nvme_kv_bytes, info->nvme_blocks);
    card->join = card->starting;
    card->join.model = &card->model;
    card->join.capacity = &card->capacity;
    card->join.fingerprint = (char *)(uintptr_t)info->fingerprint;
    card->join.device = (char *)(uintptr_t)info->device;
}
