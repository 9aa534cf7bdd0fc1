#include <stdlib.h>
#include <string.h>

#include "kv_policy.h"
#include "quality.h"

enum nosa_status quality_hits_create(struct quality_hits *hits,
                                     const struct nosa_model_config *config, int32_t context,
                                     struct nosa_error *error)
{
    *hits = (struct quality_hits){
        .step_first = (int32_t)config->sparse.topk * NOSA_BLOCK_TOKENS + 1,
        .n_pools = (int32_t)(config->n_layers * config->n_kv_heads),
        .n_blocks = (context + NOSA_BLOCK_TOKENS - 1) / NOSA_BLOCK_TOKENS,
        .capacity = (int32_t)(config->sparse.topk + config->sparse.topk / 2),
    };
    size_t cells = (size_t)hits->n_pools * (size_t)hits->n_blocks;
    hits->touch = calloc(cells, sizeof *hits->touch);
    hits->weight = calloc(cells, sizeof *hits->weight);
    hits->held = calloc(cells, sizeof *hits->held);
    hits->n_held = calloc((size_t)hits->n_pools, sizeof *hits->n_held);
    if (hits->touch && hits->weight && hits->held && hits->n_held) {
        quality_hits_restart(hits);
        return NOSA_OK;
    }
    quality_hits_destroy(hits);
    return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for hit rates");
}

void quality_hits_destroy(struct quality_hits *hits)
{
    free(hits->weight);
    free(hits->touch);
    free(hits->held);
    free(hits->n_held);
    *hits = (struct quality_hits){0};
}

void quality_hits_restart(struct quality_hits *hits)
{
    size_t cells = (size_t)hits->n_pools * (size_t)hits->n_blocks;
    memset(hits->touch, 0, sizeof *hits->touch * cells);
    memset(hits->weight, 0, sizeof *hits->weight * cells);
    memset(hits->held, 0, sizeof *hits->held * cells);
    memset(hits->n_held, 0, sizeof *hits->n_held * (size_t)hits->n_pools);
    hits->row = 0;
    hits->own_block = -1;
}

/* Gives up what eddma gives up first until the pool fits; nothing that this row touched goes. */
static void shrink(struct quality_hits *hits, int32_t pool, const float *e)
{
    const uint32_t *touch = hits->touch + (size_t)pool * (size_t)hits->n_blocks;
    const float *weight = hits->weight + (size_t)pool * (size_t)hits->n_blocks;
    bool *held = hits->held + (size_t)pool * (size_t)hits->n_blocks;
    for (; hits->n_held[pool] > hits->capacity; hits->n_held[pool]--) {
        int32_t victim = -1;
        uint64_t smallest = UINT64_MAX;
        for (int32_t block = 0; block <= hits->own_block; block++) {
            if (!held[block] || touch[block] == hits->row)
                continue;
            uint64_t key = nosa_kv_policy_key(
                NOSA_KV_POLICY_EDDMA, (struct nosa_kv_policy_input){.last_touch = touch[block],
                                                                    .weight = weight[block],
                                                                    .e = e[block]});
            if (victim >= 0 && key >= smallest)
                continue;
            victim = block;
            smallest = key;
        }
        NOSA_ASSERT(victim >= 0);
        held[victim] = false;
    }
}

static void see_pool(struct quality_hits *hits, int32_t pool, int32_t made_first,
                     const struct nosa_trace_row *row)
{
    const int32_t *selected = row->selected + (int64_t)pool * row->topk;
    uint32_t *touch = hits->touch + (size_t)pool * (size_t)hits->n_blocks;
    float *weight = hits->weight + (size_t)pool * (size_t)hits->n_blocks;
    bool *held = hits->held + (size_t)pool * (size_t)hits->n_blocks;
    bool counts = row->position >= hits->step_first;
    for (int32_t block = made_first; block < row->n_blocks; block++) {
        hits->n_held[pool] += !held[block];
        held[block] = true;
    }
    for (int32_t i = 0; i < row->selected_count[pool]; i++) {
        int32_t block = selected[i];
        bool before = block >= made_first || touch[block] + 1 == hits->row;
        hits->selected += counts;
        hits->hits_exact += counts && before;
        hits->hits_larger += counts && held[block];
        hits->n_held[pool] += !held[block];
        held[block] = true;
        weight[block] = nosa_kv_policy_weight(weight[block], touch[block], hits->row);
        touch[block] = hits->row;
    }
    shrink(hits, pool, row->e + pool * row->e_stride);
}

void quality_hits_row(void *context, const struct nosa_trace_row *row)
{
    struct quality_hits *hits = context;
    int32_t made_first = hits->own_block + 1;
    hits->row++;
    hits->own_block = row->n_blocks - 1;
    for (int32_t pool = 0; pool < hits->n_pools; pool++)
        see_pool(hits, pool, made_first, row);
}
