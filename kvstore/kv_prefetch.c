/*
 * What a sequence finds in slots before its first step. Of one that was suspended the blocks that
 * each layer and KV head selected last are known: what comes next is mostly the same. Of a prefix
 * that others computed nothing is known but E: sink and local blocks, which every step selects, and
 * the blocks of the largest E, which NOSA's second cut selects whatever the query is (docs/nosa.md,
 * what ED-DMA governs). E is known without the model: it is the largest of the window biases in the
 * block's summary, taken over the windows that end in the block.
 */
#include <math.h>

#include "kv_store_internal.h"

#define TOP_E_MAX 1024

float nosa_kv_image_e(const struct nosa_kv_tiers *tiers, int32_t image, int32_t layer,
                      int32_t kv_head)
{
    const struct nosa_kv_view *view = &tiers->images_view;
    int32_t r = nosa_kv_windows_per_block(&view->geometry);
    const float *bias = (const float *)(nosa_kv_image_summary(view, image, layer, kv_head) +
                                        nosa_kv_compressed_key_bytes(&view->geometry));
    float e = -INFINITY;
    for (int32_t i = 0; i < r; i++)
        e = bias[i] > e ? bias[i] : e;
    return e;
}

/* The n blocks of first .. last - 1 with the largest E, largest first; returns how many. */
static int32_t top_blocks(const struct nosa_kv_sequence *sequence, int32_t layer, int32_t kv_head,
                          int32_t first, int32_t last, int32_t n, int32_t *chosen)
{
    const struct nosa_kv_tiers *tiers = &sequence->store->tiers;
    float e_of[TOP_E_MAX];
    int32_t count = 0;

    for (int32_t i = last - 1; i >= first && n > 0; i--) { /* later ones first: they win ties */
        int32_t image = tiers->image[sequence->blocks[i]];
        if (image == NOSA_KV_IMAGE_NONE)
            continue;
        float e =
            tiers->options.has_bias ? nosa_kv_image_e(tiers, image, layer, kv_head) : (float)i;
        if (count == n && e <= e_of[n - 1])
            continue;
        int32_t place = count < n ? count++ : n - 1;
        for (; place > 0 && e > e_of[place - 1]; place--) {
            e_of[place] = e_of[place - 1];
            chosen[place] = chosen[place - 1];
        }
        e_of[place] = e;
        chosen[place] = i;
    }
    return count;
}

struct prefetch {
    const struct nosa_kv_sequence *sequence;
    struct nosa_kv_moves *moves;
    int32_t layer, kv_head;
};

static void add(const struct prefetch *prefetch, int32_t index)
{
    int32_t block = prefetch->sequence->blocks[index];
    if (prefetch->sequence->store->tiers.image[block] != NOSA_KV_IMAGE_NONE)
        prefetch->moves->fetch[prefetch->moves->n_fetch++] = (struct nosa_kv_record_name){
            .block = block, .layer = prefetch->layer, .kv_head = prefetch->kv_head};
}

int32_t nosa_kv_prefetch_max(const struct nosa_kv_tier_options *options)
{
    int32_t top = options->top_e_blocks < TOP_E_MAX ? options->top_e_blocks : TOP_E_MAX;
    return options->sink_blocks + options->local_blocks + top;
}

static int32_t *recent_of(const struct nosa_kv_sequence *sequence, int32_t layer, int32_t kv_head)
{
    const struct nosa_kv_store *store = sequence->store;
    int64_t pool = (int64_t)layer * store->options.tiers.geometry.n_kv_heads + kv_head;
    return sequence->recent + pool * store->recent_max;
}

/* Writes the blocks of the first `n` that were used last to `recent`, latest first. */
static void list_recent(const struct nosa_kv_sequence *sequence, int32_t n, const uint32_t *use,
                        int32_t *recent)
{
    int32_t most = sequence->store->recent_max, count = 0;
    for (int32_t i = n - 1; i >= 0; i--) { /* later ones first: they win ties */
        uint32_t used = use[sequence->blocks[i]];
        if (used == 0 || (count == most && used <= use[sequence->blocks[recent[most - 1]]]))
            continue;
        int32_t place = count < most ? count++ : most - 1;
        for (; place > 0 && used > use[sequence->blocks[recent[place - 1]]]; place--)
            recent[place] = recent[place - 1];
        recent[place] = i;
    }
    if (count < most)
        recent[count] = -1;
}

void nosa_kv_sequence_remember(struct nosa_kv_sequence *sequence, const struct nosa_kv_view *view,
                               const uint32_t *record_use)
{
    int32_t n = sequence->computed / NOSA_BLOCK_TOKENS;

    NOSA_ASSERT(sequence->open && !sequence->suspended);
    if (!sequence->recent)
        return;
    for (int32_t layer = 0; layer < view->geometry.n_layers; layer++)
        for (int32_t head = 0; head < view->geometry.n_kv_heads; head++)
            list_recent(sequence, n, record_use + nosa_kv_record_index(view, layer, head, 0),
                        recent_of(sequence, layer, view->image_kv_head_first + head));
    sequence->remembers = true;
}

/* Of the first n blocks, those that the pool's last steps selected. */
static void add_recent(const struct prefetch *prefetch, int32_t n)
{
    const int32_t *recent = recent_of(prefetch->sequence, prefetch->layer, prefetch->kv_head);
    int32_t most = prefetch->sequence->store->recent_max;
    for (int32_t i = 0; i < most && recent[i] >= 0; i++)
        if (recent[i] < n)
            add(prefetch, recent[i]);
}

/* Of the first n blocks sink, local and those of the largest E. */
static void add_by_e(const struct prefetch *prefetch, int32_t n)
{
    const struct nosa_kv_tier_options *options = &prefetch->sequence->store->tiers.options;
    int32_t sink = options->sink_blocks < n ? options->sink_blocks : n;
    int32_t local = options->local_blocks < n - sink ? options->local_blocks : n - sink;
    int32_t top = options->top_e_blocks < TOP_E_MAX ? options->top_e_blocks : TOP_E_MAX;
    int32_t chosen[TOP_E_MAX];

    for (int32_t i = n - 1; i >= n - local; i--)
        add(prefetch, i);
    for (int32_t i = 0; i < sink; i++)
        add(prefetch, i);
    int32_t count = top_blocks(prefetch->sequence, prefetch->layer, prefetch->kv_head, sink,
                               n - local, top, chosen);
    for (int32_t i = 0; i < count; i++)
        add(prefetch, chosen[i]);
}

bool nosa_kv_prefetch(struct nosa_kv_sequence *sequence, struct nosa_kv_moves *moves)
{
    const struct nosa_kv_tier_options *options = &sequence->store->tiers.options;
    int32_t n = sequence->computed / NOSA_BLOCK_TOKENS;
    int32_t pools = options->geometry.n_layers * options->geometry.n_kv_heads;
    int32_t most = nosa_kv_prefetch_max(options);

    if ((int64_t)pools * (most < n ? most : n) > moves->fetch_max - moves->n_fetch)
        return moves->n_fetch == 0; /* larger than any list: steps bring up what they need */
    struct prefetch prefetch = {.sequence = sequence, .moves = moves};
    for (int32_t layer = 0; layer < options->geometry.n_layers; layer++)
        for (int32_t kv_head = 0; kv_head < options->geometry.n_kv_heads; kv_head++) {
            prefetch.layer = layer;
            prefetch.kv_head = kv_head;
            if (sequence->remembers)
                add_recent(&prefetch, n);
            else
                add_by_e(&prefetch, n);
        }
    sequence->remembers = false;
    return true;
}
