#include "service/load_message.h"

static const Nosa__Cluster__V1__Tier tier_names[NOSA_DIGEST_TIERS] = {
    NOSA__CLUSTER__V1__TIER__TIER_GPU, NOSA__CLUSTER__V1__TIER__TIER_HOST,
    NOSA__CLUSTER__V1__TIER__TIER_NVME};

static void add_tier(struct nosa_load_message *message, int tier, uint64_t used, uint64_t pinned)
{
    Nosa__Cluster__V1__TierLoad *load = &message->tiers[message->load.n_tiers];
    nosa__cluster__v1__tier_load__init(load);
    load->tier = tier_names[tier];
    load->used_bytes = used;
    load->pinned_bytes = pinned;
    message->pointers[message->load.n_tiers++] = load;
}

static uint64_t part(uint64_t bytes, int64_t count, int64_t total)
{
    if (total <= 0 || count <= 0)
        return 0;
    return (uint64_t)((double)bytes * (double)(count < total ? count : total) / (double)total);
}

static void fill_kv(struct nosa_load_message *message, const struct nosa_loop_load *load)
{
    Nosa__Cluster__V1__KvTotals *kv = &message->kv;
    nosa__cluster__v1__kv_totals__init(kv);
    kv->gpu_hits = load->hits[0];
    kv->host_hits = load->hits[1];
    kv->nvme_hits = load->hits[2];
    kv->gpu_to_host_bytes = load->traffic.first_to_host_bytes;
    kv->host_to_gpu_bytes = load->traffic.host_to_first_bytes;
    kv->host_to_nvme_bytes = load->traffic.nvme_written_bytes;
    kv->nvme_to_host_bytes = load->traffic.nvme_read_bytes;
    kv->corrupt_blocks = load->traffic.corrupt_blocks;
    kv->recomputed_blocks = load->traffic.recomputed_blocks;
    kv->prefix_lookup_tokens = load->kv.prefix_lookup_tokens;
    kv->prefix_hit_tokens = load->kv.prefix_hit_tokens;
    kv->evicted_blocks = load->kv.evicted_blocks;
    message->load.kv = kv;
}

void nosa_load_message_fill(struct nosa_load_message *message, const struct nosa_loop_load *load,
                            const struct nosa_engine_info *info)
{
    const struct nosa_scheduler_counters *scheduler = &load->scheduler;
    const struct nosa_kv_store_counters *kv = &load->kv;
    nosa__cluster__v1__load__init(&message->load);
    message->load.running = (uint32_t)scheduler->running;
    message->load.waiting = (uint32_t)(scheduler->queued + scheduler->loading + scheduler->ready);
    message->load.suspended = (uint32_t)scheduler->suspended;
    message->load.prefill_tokens_pending = (uint64_t)scheduler->prefill_tokens_pending;
    message->load.prefill_tokens_per_s = load->prefill_tokens_per_s;
    message->load.decode_tokens_per_s = load->decode_tokens_per_s;
    message->load.host_tokens_per_s = load->host_tokens_per_s;
    message->load.nvme_tokens_per_s = load->nvme_tokens_per_s;
    message->load.tiers = message->pointers;
    fill_kv(message, load);
    add_tier(message, 0,
             part(info->kv_bytes, kv->blocks_used + (int64_t)kv->blocks_cached, kv->blocks_total),
             part(info->kv_bytes, kv->blocks_used, kv->blocks_total));
    if (info->host_kv_bytes > 0)
        add_tier(message, 1,
                 part(info->host_kv_bytes, kv->images_held + (int64_t)kv->images_cached,
                      kv->images_total),
                 part(info->host_kv_bytes, kv->images_held, kv->images_total));
    if (info->nvme_kv_bytes > 0)
        add_tier(
            message, 2,
            part(info->nvme_kv_bytes, (int64_t)load->traffic.nvme_blocks_held, info->nvme_blocks),
            0);
}

void nosa_prefix_message_fill(struct nosa_prefix_message *message,
                              const struct nosa_digest_batch *batch,
                              const struct nosa_digest_change *changes)
{
    nosa__cluster__v1__prefix_delta__init(&message->delta);
    message->delta.reset = batch->reset;
    message->delta.partial = batch->partial;
    message->delta.tiers = message->pointers;
    for (int tier = 0; tier < NOSA_DIGEST_TIERS; tier++) {
        Nosa__Cluster__V1__TierPrefixes *prefixes = &message->tiers[tier];
        nosa__cluster__v1__tier_prefixes__init(prefixes);
        prefixes->tier = tier_names[tier];
        prefixes->added = message->added[tier];
        prefixes->removed = message->removed[tier];
        for (size_t i = 0; i < batch->n; i++) {
            if (changes[i].tier != tier)
                continue;
            if (changes[i].added)
                prefixes->added[prefixes->n_added++] = changes[i].hash;
            else
                prefixes->removed[prefixes->n_removed++] = changes[i].hash;
        }
        if (prefixes->n_added + prefixes->n_removed > 0)
            message->pointers[message->delta.n_tiers++] = prefixes;
    }
}
