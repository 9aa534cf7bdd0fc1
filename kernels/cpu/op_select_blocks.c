/*
 * Selection of the blocks that each row attends to: window scores, block scores, two cuts.
 *
 * Windows are counted by the slot that holds them, h = j + 1: block b holds slots r b .. r b + r -
 * 1 and is scored by slots r b .. r b + r; slot 0 does not exist. Compressed keys of 64 slots are
 * widened to a panel [head_dim][64] and multiplied with all query vectors of a set by the tiles of
 * kv_tile.h. Weights are formed over runs of NOSA_SELECT_RUN slots, e = exp(x - m_run), l = sum e,
 * and merged with runs ascending: M = max m, L = sum l exp(m - M); p = e * (exp(m - M) / L).
 * S is one chain over the heads of the group.
 *
 * A set is some rows of one tile, one KV head and its group; a tile of one row is split by runs
 * over threads, and the part that ends last selects. The cuts are found by bisection of the score's
 * bits, so a cut costs the same whatever the scores are.
 *
 * Bound: a decode row reads r * head_dim KV values per block and head once; a prefill set is bound
 * by 2 * r * head_dim FLOPs per block and vector.
 */
#include "cpu/kv_tile.h"

#define VECTORS_MAX   96        /* of a set */
#define WEIGHT_FLOATS (1 << 19) /* of a set's weights, unless one row needs more */
#define PART_ITEMS    8 /* parts that a thread takes of a split row, at least, if there are */
#define PANELS        (NOSA_SELECT_RUN / NOSA_PANEL)
#define LANES         NOSA_VEC_LANES

/* What the items of one tile are. Lives in thread 0's scratch during the region. */
struct tile_plan {
    int32_t tile;
    int32_t first_item;
    int32_t n_parts;       /* sets of rows, or parts of the one row's runs */
    int32_t set_rows;      /* rows of a set */
    int32_t part_runs;     /* runs of a part */
    int64_t partial_first; /* where the row's weights lie, -1 if it is not split */
};

struct select_job {
    const struct nosa_select_blocks_params *params;
    struct nosa_cpu_device *device;
    const struct tile_plan *plan;
    int32_t n_tiles;
};

/* A thread's scratch. blocks_pad: visible blocks, rounded up to lanes, and 16 more. */
struct select_scratch {
    struct nosa_tile_mask mask;
    float first_bias[NOSA_PANEL]; /* hides slot 0 of panel 0 */
    float no_bias[NOSA_PANEL];
    float top[VECTORS_MAX * LANES];
    float *panel;        /* [head_dim][64] */
    float *weight;       /* what set_place describes */
    float *window_score; /* S [runs * NOSA_SELECT_RUN + 64] */
    float *block_score;  /* B [blocks_pad] */
    float *block_bias;   /* E [blocks_pad] */
    float *shared_bias;  /* E that all rows of the set share [blocks_pad] */
    uint16_t *chosen;    /* [blocks_pad / 16] bit per block */
};

/* Rows of one tile that are scored together, for one KV head. */
struct row_set {
    const struct nosa_select_blocks_params *params;
    struct select_scratch *scratch;
    const int32_t *table;
    int32_t kv_head;
    int32_t row; /* first */
    int32_t n_rows;
    int32_t group;     /* query heads */
    int32_t r;         /* windows per block */
    int32_t own_block; /* of all rows */
    int32_t n_runs;
    int32_t ahead_end; /* blocks before this one are worth asking for */
    float *weight;     /* [vector][n_runs * NOSA_SELECT_RUN]; scratch or shared */
    float *run_top;    /* m [vector][n_runs] */
    float *run_total;  /* l [vector][n_runs] */
    float *bias;       /* C [n_runs * NOSA_SELECT_RUN], -inf in slot 0 */
};

/* ---- scratch ---- */

static size_t plan_bytes(const struct nosa_step_limits *limits)
{
    return ((size_t)limits->rows_max * sizeof(struct tile_plan) + 63) / 64 * 64;
}

static size_t fixed_bytes(void)
{
    return (sizeof(struct select_scratch) + 63) / 64 * 64;
}

static int32_t blocks_max(const struct nosa_step_limits *limits)
{
    return limits->context_max / NOSA_BLOCK_TOKENS + 1;
}

static size_t blocks_pad(const struct nosa_step_limits *limits)
{
    return ((size_t)blocks_max(limits) + 2 * LANES - 1) / LANES * LANES;
}

static size_t weight_floats(const struct nosa_step_limits *limits)
{
    int32_t runs = nosa_select_runs(blocks_max(limits), limits->windows_per_block);
    size_t row = nosa_select_row_floats(runs, limits->n_heads / limits->n_kv_heads);
    return row > WEIGHT_FLOATS ? row : WEIGHT_FLOATS;
}

static size_t window_floats(const struct nosa_step_limits *limits)
{
    int32_t runs = nosa_select_runs(blocks_max(limits), limits->windows_per_block);
    return (size_t)runs * NOSA_SELECT_RUN + NOSA_PANEL;
}

size_t NOSA_CPU_NAME(nosa_cpu_select_scratch_bytes)(const struct nosa_step_limits *limits)
{
    size_t floats = NOSA_PANEL * (size_t)limits->head_dim + weight_floats(limits) +
                    window_floats(limits) + 3 * blocks_pad(limits);
    return plan_bytes(limits) + fixed_bytes() + sizeof(float) * floats +
           sizeof(uint16_t) * blocks_pad(limits) / LANES;
}

static struct select_scratch *thread_scratch(const struct select_job *job, int32_t thread)
{
    const struct nosa_step_limits *limits = &job->device->scratch.limits;
    char *memory = nosa_cpu_thread_scratch(job->device, thread);
    memory += plan_bytes(limits);
    struct select_scratch *scratch = (struct select_scratch *)(void *)memory;
    scratch->panel = (float *)(void *)(memory + fixed_bytes());
    scratch->weight = scratch->panel + NOSA_PANEL * (size_t)job->params->kv->geometry.head_dim;
    scratch->window_score = scratch->weight + weight_floats(limits);
    scratch->block_score = scratch->window_score + window_floats(limits);
    scratch->block_bias = scratch->block_score + blocks_pad(limits);
    scratch->shared_bias = scratch->block_bias + blocks_pad(limits);
    scratch->chosen = (uint16_t *)(void *)(scratch->shared_bias + blocks_pad(limits));
    nosa_tile_mask_fill(&scratch->mask);
    memset(scratch->no_bias, 0, sizeof scratch->no_bias);
    memset(scratch->first_bias, 0, sizeof scratch->first_bias);
    scratch->first_bias[0] = -INFINITY;
    return scratch;
}

/* ---- panels of compressed keys ---- */

static const char *compressed_keys(const struct row_set *set, int32_t block)
{
    const struct nosa_kv_view *kv = set->params->kv;
    int64_t record = nosa_kv_record_index(kv, set->params->layer, set->kv_head, set->table[block]);
    return kv->compressed_keys + (size_t)record * nosa_kv_compressed_key_bytes(&kv->geometry);
}

static const float *window_biases(const struct row_set *set, int32_t block)
{
    const struct nosa_kv_view *kv = set->params->kv;
    return kv->window_bias +
           set->r * nosa_kv_record_index(kv, set->params->layer, set->kv_head, set->table[block]);
}

/* One block's keys [head_dim / pair][r][pair] into `columns` [head_dim][64]. */
static void spread_block(const struct nosa_kv_geometry *geometry, int32_t r, const char *keys,
                         float *columns)
{
    if (geometry->type == NOSA_DTYPE_F32) {
        for (int32_t dim = 0; dim < geometry->head_dim; dim++)
            memcpy(columns + dim * NOSA_PANEL, (const float *)(const void *)keys + dim * r,
                   sizeof(float) * (size_t)r);
        return;
    }
    const uint16_t *pairs = (const uint16_t *)(const void *)keys;
    for (int32_t dim = 0; dim < geometry->head_dim; dim += 2) {
        float *low = columns + dim * NOSA_PANEL, *high = low + NOSA_PANEL;
        for (int32_t i = 0; i < r; i++) {
            low[i] = nosa_bf16_to_f32(pairs[2 * i]);
            high[i] = nosa_bf16_to_f32(pairs[2 * i + 1]);
        }
        pairs += 2 * r;
    }
}

/* The same of bfloat16 with r = 16, 32 or 64. */
static void spread_wide(int32_t head_dim, int32_t r, const char *keys, float *columns)
{
    const uint16_t *pairs = (const uint16_t *)(const void *)keys;
    for (int32_t dim = 0; dim < head_dim; dim += 2) {
        float *low = columns + dim * NOSA_PANEL, *high = low + NOSA_PANEL;
        for (int32_t i = 0; i < r; i += LANES) {
            nosa_vec even, odd;
            nosa_vec_load_bf16_pairs(pairs, &even, &odd);
            nosa_vec_store(low + i, even);
            nosa_vec_store(high + i, odd);
            pairs += 2 * LANES;
        }
    }
}

/* Four blocks of bfloat16 with r = 4 into 16 columns: a vector of a block holds 4 pairs of
 * dimensions of its 4 windows. */
static void spread_four(int32_t head_dim, const char *const keys[4], float *columns)
{
    for (int32_t dim = 0; dim < head_dim; dim += 8) {
        nosa_vec quad[4];
        for (int i = 0; i < 4; i++)
            quad[i] = nosa_vec_load((const float *)(const void *)(keys[i] + dim * 8));
        nosa_vec_transpose_quads(quad);
        for (int i = 0; i < 4; i++) {
            nosa_vec even, odd;
            nosa_vec_split_bf16_pairs(quad[i], &even, &odd);
            nosa_vec_store(columns + (dim + 2 * i) * NOSA_PANEL, even);
            nosa_vec_store(columns + (dim + 2 * i + 1) * NOSA_PANEL, odd);
        }
    }
}

/* Asks for a block's compressed keys and biases, if they are wanted. Always inlined, since the
 * compiler drops calls of a function that only prefetches. */
NOSA_VEC_INLINE void ask_for_block(const struct row_set *set, int32_t block)
{
    if (block >= set->ahead_end)
        return;
    size_t bytes = nosa_kv_compressed_key_bytes(&set->params->kv->geometry);
    const char *keys = compressed_keys(set, block);
    for (size_t at = 0; at < bytes; at += 64)
        nosa_tile_prefetch(keys + at);
    if (set->params->has_bias)
        nosa_tile_prefetch((const char *)window_biases(set, block));
}

/* Widens the compressed keys of slots 64 index .. 64 index + 63, and asks for those of the
 * next panel. Columns of blocks that the rows do not see, and slot 0, become zero. */
static void build_panel(const struct row_set *set, int32_t index)
{
    const struct nosa_kv_geometry *geometry = &set->params->kv->geometry;
    int32_t head_dim = geometry->head_dim, r = set->r;
    float *panel = set->scratch->panel;
    int32_t n_blocks = NOSA_PANEL / r, first = index * n_blocks;
    if (first + n_blocks > set->own_block + 1) {
        memset(panel, 0, sizeof(float) * NOSA_PANEL * (size_t)head_dim);
        n_blocks = set->own_block + 1 - first;
    }
    int32_t done = 0;
    if (geometry->type == NOSA_DTYPE_BF16 && r == 4) {
        for (; done + 4 <= n_blocks; done += 4) {
            const char *keys[4];
            for (int32_t i = 0; i < 4; i++)
                keys[i] = compressed_keys(set, first + done + i);
            spread_four(head_dim, keys, panel + done * r);
            for (int32_t i = 0; i < 4; i++)
                ask_for_block(set, first + NOSA_PANEL / r + done + i);
        }
    }
    for (; done < n_blocks; done++) {
        const char *keys = compressed_keys(set, first + done);
        if (geometry->type == NOSA_DTYPE_BF16 && r >= LANES)
            spread_wide(head_dim, r, keys, panel + done * r);
        else
            spread_block(geometry, r, keys, panel + done * r);
        ask_for_block(set, first + NOSA_PANEL / r + done);
    }
    if (index == 0)
        for (int32_t dim = 0; dim < head_dim; dim++)
            panel[dim * NOSA_PANEL] = 0;
}

/* ---- window scores ---- */

/* Slots that hold a window visible to the row: 1 .. the result. */
static int32_t visible_slots(const struct row_set *set, int32_t row)
{
    const struct nosa_kv_geometry *geometry = &set->params->kv->geometry;
    int32_t first = set->params->batch->row_pos[set->row + row] + 1 - geometry->kernel_size;
    return first < 0 ? 0 : first / geometry->kernel_stride + 1;
}

static void score_panel(const struct row_set *set, int32_t run, int32_t index)
{
    const struct nosa_select_blocks_params *params = set->params;
    struct select_scratch *scratch = set->scratch;
    int32_t head_dim = params->kv->geometry.head_dim, filled = 0;
    int32_t slot = run * NOSA_SELECT_RUN + index * NOSA_PANEL;
    const float *bias = slot == 0 ? scratch->first_bias : scratch->no_bias;
    struct nosa_score_rows tile;
    build_panel(set, slot / NOSA_PANEL);
    const char *ahead = (const char *)scratch->panel; /* asks for nothing new */
    for (int32_t row = 0; row < set->n_rows; row++) {
        const float *q = params->q + (int64_t)(set->row + row) * params->q_stride +
                         (int64_t)set->kv_head * set->group * head_dim;
        int32_t visible = visible_slots(set, row) + 1 - slot;
        visible = visible < 0 ? 0 : visible > NOSA_PANEL ? NOSA_PANEL : visible;
        for (int32_t head = 0; head < set->group; head++) {
            int32_t vector = row * set->group + head;
            tile.q[filled] = q + (int64_t)head * head_dim;
            tile.score[filled] =
                set->weight + (int64_t)vector * set->n_runs * NOSA_SELECT_RUN + slot;
            tile.top[filled] = scratch->top + vector * LANES;
            tile.visible[filled] = visible;
            if (++filled == NOSA_TILE_ROWS) {
                nosa_tile_score(filled, &tile, scratch->panel, head_dim, params->scale, bias,
                                &scratch->mask, ahead);
                filled = 0;
            }
        }
    }
    if (filled > 0)
        nosa_tile_score(filled, &tile, scratch->panel, head_dim, params->scale, bias,
                        &scratch->mask, ahead);
}

/* Collects C of a run's slots. */
static void gather_run(const struct row_set *set, int32_t run)
{
    int32_t r = set->r, n_blocks = NOSA_SELECT_RUN / r, first = run * n_blocks;
    float *to = set->bias + (int64_t)run * NOSA_SELECT_RUN;
    for (int32_t block = first; block < first + n_blocks && block <= set->own_block; block++) {
        const float *from = window_biases(set, block);
        int32_t i = 0;
        for (; i + 4 <= r; i += 4)
            memcpy(to + i, from + i, 4 * sizeof *to);
        for (; i < r; i++)
            to[i] = from[i];
        to += r;
    }
    if (run == 0)
        set->bias[0] = -INFINITY;
}

/* Weights of one run of slots for all vectors of the set. */
static void score_run(const struct row_set *set, int32_t run)
{
    struct select_scratch *scratch = set->scratch;
    int32_t last = visible_slots(set, set->n_rows - 1) - run * NOSA_SELECT_RUN;
    int32_t n_panels = last / NOSA_PANEL + 1 < PANELS ? last / NOSA_PANEL + 1 : PANELS;
    for (int32_t i = 0; i < set->n_rows * set->group * LANES; i++)
        scratch->top[i] = -INFINITY;
    for (int32_t index = 0; index < n_panels; index++)
        score_panel(set, run, index);
    if (set->params->has_bias)
        gather_run(set, run);
    for (int32_t row = 0; row < set->n_rows; row++) {
        int32_t visible = visible_slots(set, row);
        if (visible < run * NOSA_SELECT_RUN || visible == 0)
            continue;
        for (int32_t head = 0; head < set->group; head++) {
            int32_t vector = row * set->group + head, cell = vector * set->n_runs + run;
            set->run_top[cell] = nosa_tile_softmax(
                set->weight + (int64_t)cell * NOSA_SELECT_RUN, n_panels * NOSA_PANEL,
                scratch->top + vector * LANES, &set->run_total[cell]);
        }
    }
}

/* m and l of the row's runs become the factors exp(m - M) / L, in place of m. */
static void merge_runs(const struct row_set *set, int32_t row, int32_t n_runs)
{
    for (int32_t head = 0; head < set->group; head++) {
        float *top = set->run_top + (int64_t)(row * set->group + head) * set->n_runs;
        const float *total = set->run_total + (int64_t)(row * set->group + head) * set->n_runs;
        float most = top[0], sum = 0;
        for (int32_t run = 1; run < n_runs; run++)
            most = top[run] > most ? top[run] : most;
        for (int32_t run = 0; run < n_runs; run++) {
            top[run] = nosa_tile_exp1(top[run] - most);
            sum = fmaf(total[run], top[run], sum);
        }
        for (int32_t run = 0; run < n_runs; run++)
            top[run] /= sum;
    }
}

/* S of the row's slots 0 .. visible, with zeros behind. */
static void sum_heads(const struct row_set *set, int32_t row, int32_t visible)
{
    float *out = set->scratch->window_score;
    int32_t end = (visible / LANES + 1) * LANES;
    int64_t stride = (int64_t)set->n_runs * NOSA_SELECT_RUN;
    const float *weight = set->weight + (int64_t)row * set->group * stride;
    const float *factor = set->run_top + (int64_t)row * set->group * set->n_runs;
    for (int32_t run = 0; run * NOSA_SELECT_RUN < end; run++) {
        int32_t stop = (run + 1) * NOSA_SELECT_RUN < end ? (run + 1) * NOSA_SELECT_RUN : end;
        for (int32_t i = run * NOSA_SELECT_RUN; i < stop; i += LANES) {
            nosa_vec sum = nosa_vec_zero();
            for (int32_t head = 0; head < set->group; head++)
                sum = nosa_vec_fma(nosa_vec_load(weight + head * stride + i),
                                   nosa_vec_set1(factor[head * set->n_runs + run]), sum);
            nosa_vec_store(out + i, sum);
        }
    }
    memset(out + end, 0, sizeof(float) * NOSA_PANEL);
}

/* ---- block scores ---- */

/* The largest of n values and `most`; a NaN counts for nothing. */
static float largest(const float *value, int32_t n, float most)
{
    if (n >= LANES) {
        nosa_vec lanes = nosa_vec_set1(most);
        for (; n >= LANES; n -= LANES, value += LANES)
            lanes = nosa_vec_max(nosa_vec_load(value), lanes);
        most = nosa_vec_max_lane(lanes);
    }
    for (int32_t i = 0; i < n; i++)
        most = value[i] > most ? value[i] : most;
    return most;
}

/* out[b] = the largest of slots r b .. r b + r and `least`, of blocks first .. end - 1. */
static void largest_of_blocks(const float *slot, int32_t r, int32_t first, int32_t end, float least,
                              float *out)
{
    int32_t block = first, together = LANES / r; /* blocks whose slots fill a vector */
    for (; together > 1 && block + together <= end; block += together) {
        float top[LANES];
        nosa_vec lanes = nosa_vec_set1(least);
        for (int32_t i = 0; i <= r; i++)
            lanes = nosa_vec_max(nosa_vec_load(slot + block * r + i), lanes);
        nosa_vec_store(top, lanes);
        for (int32_t i = 0; i < together; i++)
            out[block + i] = top[i * r];
    }
    for (; block < end; block++)
        out[block] = largest(slot + (int64_t)block * r, r + 1, least);
}

/* B of each visible block: the largest S of slots r b .. r b + r. Slots that are not visible have
 * S = 0. */
static void score_blocks(const struct row_set *set, int32_t visible)
{
    float *out = set->scratch->block_score;
    int32_t n_visible = set->own_block + 1;
    int32_t n_scored = visible == 0 ? 0 : visible / set->r + 1;
    n_scored = n_scored < n_visible ? n_scored : n_visible;
    largest_of_blocks(set->scratch->window_score, set->r, 0, n_scored, 0, out);
    for (int32_t block = n_scored; block < n_visible; block++)
        out[block] = 0;
}

/* E of the blocks whose slots all rows of the set see; returns their number. */
static int32_t share_biases(const struct row_set *set)
{
    if (!set->params->has_bias)
        return 0;
    int32_t n_full = visible_slots(set, 0) / set->r;
    largest_of_blocks(set->bias, set->r, 0, n_full, -INFINITY, set->scratch->shared_bias);
    return n_full;
}

/* E of each visible block of a row. C of a broken model may be NaN; E is not. */
static void bias_blocks(const struct row_set *set, int32_t visible, int32_t n_full)
{
    float *out = set->scratch->block_bias;
    int32_t n_visible = set->own_block + 1, r = set->r;
    memcpy(out, set->scratch->shared_bias, sizeof(float) * (size_t)n_full);
    for (int32_t block = n_full; block < n_visible; block++) {
        int32_t n = set->params->has_bias && visible > 0 ? visible + 1 - block * r : 0;
        out[block] = largest(set->bias + (int64_t)block * r, n < r + 1 ? n : r + 1, -INFINITY);
    }
}

/* ---- cuts ---- */

/* The float whose bits are `key` in an order in which keys ascend with values. */
static float value_of_key(int64_t key)
{
    int32_t bits = (int32_t)(key >= 0 ? key : key ^ 0x7fffffff);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

#define KEY_INFINITY ((int64_t)0x7f800000)

/* How many of the first n values (a multiple of 16) are above the threshold. NaN never is. */
static int32_t count_above(const float *value, int32_t n, float threshold)
{
    nosa_vec limit = nosa_vec_set1(threshold);
    int32_t count = 0;
    for (int32_t i = 0; i < n; i += LANES)
        count +=
            __builtin_popcount(nosa_vec_mask_bits(nosa_vec_less(limit, nosa_vec_load(value + i))));
    return count;
}

/* Chooses the `wanted` largest of n values (NaN: not a candidate), ties to the lower index. There
 * are at least `wanted` candidates. */
static void choose_largest(const float *value, int32_t n, int32_t wanted, uint16_t *chosen)
{
    /* More than `wanted` are above the low key; at most that many above the high one. */
    int64_t low = -KEY_INFINITY - 2, high = KEY_INFINITY;
    int32_t above = 0;
    while (high - low > 1 && above != wanted) {
        int64_t middle = low + (high - low) / 2;
        int32_t count = count_above(value, n, value_of_key(middle));
        if (count > wanted) {
            low = middle;
        } else {
            high = middle;
            above = count;
        }
    }
    nosa_vec limit = nosa_vec_set1(value_of_key(high));
    int32_t ties = wanted - above;
    for (int32_t i = 0; i < n; i += LANES) {
        nosa_vec v = nosa_vec_load(value + i);
        uint32_t bits = nosa_vec_mask_bits(nosa_vec_less(limit, v));
        uint32_t equal = nosa_vec_mask_bits(nosa_vec_equal(limit, v));
        for (; equal != 0 && ties > 0; equal &= equal - 1, ties--)
            bits |= equal & -equal;
        chosen[i / LANES] |= (uint16_t)bits;
    }
}

/* Takes the chosen blocks out of the candidates. */
static void exclude_chosen(const uint16_t *chosen, int32_t n, float *value)
{
    for (int32_t i = 0; i < n / LANES; i++)
        for (uint32_t bits = chosen[i]; bits != 0; bits &= bits - 1)
            value[i * LANES + __builtin_ctz(bits)] = NAN;
}

static void choose_blocks(const struct row_set *set)
{
    const struct nosa_select_blocks_params *params = set->params;
    struct select_scratch *scratch = set->scratch;
    int32_t n_visible = set->own_block + 1, n = (n_visible + LANES - 1) / LANES * LANES;
    memset(scratch->chosen, 0, sizeof(uint16_t) * (size_t)(n / LANES));
    int32_t local = set->own_block - params->window_blocks, n_chosen = 0;
    for (int32_t block = 0; block < n_visible; block++) {
        if (block == params->init_blocks && local > block)
            block = local;
        scratch->chosen[block / LANES] |= (uint16_t)(1u << block % LANES);
        n_chosen++;
    }
    for (int32_t block = n_visible; block < n; block++)
        scratch->block_score[block] = scratch->block_bias[block] = NAN;
    bool by_bias = params->mode == NOSA_ATTENTION_NOSA;
    int32_t first_cut = by_bias ? params->first_cut : params->topk;
    exclude_chosen(scratch->chosen, n, scratch->block_score);
    choose_largest(scratch->block_score, n, first_cut - n_chosen, scratch->chosen);
    if (by_bias) {
        exclude_chosen(scratch->chosen, n, scratch->block_bias);
        choose_largest(scratch->block_bias, n, params->topk - params->first_cut, scratch->chosen);
    }
}

/* ---- rows ---- */

static void write_scores(const struct row_set *set, int64_t cell)
{
    const struct nosa_select_blocks_params *params = set->params;
    size_t bytes = sizeof(float) * (size_t)(set->own_block + 1);
    if (params->block_score != NULL)
        memcpy(params->block_score + cell * params->score_stride, set->scratch->block_score, bytes);
    if (params->block_bias != NULL)
        memcpy(params->block_bias + cell * params->score_stride, set->scratch->block_bias, bytes);
}

static void select_row(const struct row_set *set, int32_t row, int32_t n_full, bool scored)
{
    const struct nosa_select_blocks_params *params = set->params;
    int32_t visible = visible_slots(set, row), n_visible = set->own_block + 1, count = 0;
    int64_t cell = (int64_t)(set->row + row) * params->kv->geometry.n_kv_heads + set->kv_head;
    int32_t *selected = params->selected + cell * params->topk;
    if (scored) {
        if (visible > 0) {
            merge_runs(set, row, visible / NOSA_SELECT_RUN + 1);
            sum_heads(set, row, visible);
        }
        score_blocks(set, visible);
        bias_blocks(set, visible, n_full);
        write_scores(set, cell);
    }
    if (n_visible <= params->topk) {
        for (; count < n_visible; count++)
            selected[count] = count;
    } else {
        choose_blocks(set);
        for (int32_t i = 0; i * LANES < n_visible; i++)
            for (uint32_t bits = set->scratch->chosen[i]; bits != 0; bits &= bits - 1)
                selected[count++] = i * LANES + __builtin_ctz(bits);
        NOSA_ASSERT(count == params->topk);
    }
    params->selected_count[cell] = count;
}

/* Whether rows of the tile need scores at all. */
static bool needs_scores(const struct nosa_select_blocks_params *params, int32_t tile)
{
    int32_t pos = params->batch->row_pos[params->batch->tile_row[tile]];
    return pos / NOSA_BLOCK_TOKENS + 1 > params->topk || params->block_score != NULL ||
           params->block_bias != NULL;
}

static void set_open(struct row_set *set, const struct select_job *job, int32_t row, int32_t n_rows,
                     int32_t kv_head, int32_t thread)
{
    const struct nosa_select_blocks_params *params = job->params;
    const struct nosa_batch_view *batch = params->batch;
    *set = (struct row_set){.params = params, .kv_head = kv_head, .row = row, .n_rows = n_rows};
    set->scratch = thread_scratch(job, thread);
    set->table = batch->block_table + (int64_t)batch->row_seq[row] * batch->table_stride;
    set->group = params->n_heads / params->kv->geometry.n_kv_heads;
    set->r = nosa_kv_windows_per_block(&params->kv->geometry);
    set->own_block = batch->row_pos[row] / NOSA_BLOCK_TOKENS;
    set->n_runs = nosa_select_runs(set->own_block + 1, set->r);
    set->ahead_end = set->own_block + 1;
}

/* Places the set's weights, m, l and C in `memory`. */
static void set_place(struct row_set *set, float *memory)
{
    size_t cells = (size_t)set->n_rows * (size_t)set->group * (size_t)set->n_runs;
    set->weight = memory;
    set->run_top = memory + cells * NOSA_SELECT_RUN;
    set->run_total = set->run_top + cells;
    set->bias = set->run_total + cells;
}

static void select_set(const struct select_job *job, int32_t row, int32_t n_rows, int32_t kv_head,
                       bool scored, int32_t thread)
{
    struct row_set set;
    int32_t n_full = 0;
    set_open(&set, job, row, n_rows, kv_head, thread);
    set_place(&set, set.scratch->weight);
    if (scored) {
        int32_t visible = visible_slots(&set, n_rows - 1);
        for (int32_t run = 0; visible > 0 && run * NOSA_SELECT_RUN <= visible; run++)
            score_run(&set, run);
        n_full = share_biases(&set);
    }
    for (int32_t i = 0; i < n_rows; i++)
        select_row(&set, i, n_full, scored);
}

/* Part `part` of a split row. */
static void select_part(const struct select_job *job, const struct tile_plan *plan, int32_t row,
                        int32_t kv_head, int32_t part, int32_t thread)
{
    struct row_set set;
    set_open(&set, job, row, 1, kv_head, thread);
    set_place(&set, job->device->scratch.attention_partials + plan->partial_first +
                        (size_t)kv_head * nosa_select_row_floats(set.n_runs, set.group));
    int32_t visible = visible_slots(&set, 0), end = (part + 1) * plan->part_runs;
    end = end < set.n_runs ? end : set.n_runs;
    if (set.ahead_end > end * NOSA_SELECT_RUN / set.r)
        set.ahead_end = end * NOSA_SELECT_RUN / set.r;
    for (int32_t run = part * plan->part_runs; run < end; run++)
        if (run * NOSA_SELECT_RUN <= visible)
            score_run(&set, run);
    int32_t n_kv_heads = job->params->kv->geometry.n_kv_heads;
    int32_t *counter = job->device->scratch.counters + (int64_t)plan->tile * n_kv_heads + kv_head;
    if (__atomic_add_fetch(counter, 1, __ATOMIC_ACQ_REL) != plan->n_parts)
        return;
    __atomic_store_n(counter, 0, __ATOMIC_RELAXED);
    select_row(&set, 0, share_biases(&set), true);
}

static void select_item(void *context, int32_t item, int32_t thread)
{
    const struct select_job *job = context;
    int32_t low = 0, high = job->n_tiles - 1;
    while (low < high) {
        int32_t middle = (low + high + 1) / 2;
        if (job->plan[middle].first_item <= item)
            low = middle;
        else
            high = middle - 1;
    }
    const struct tile_plan *plan = &job->plan[low];
    const struct nosa_batch_view *batch = job->params->batch;
    int32_t local = item - plan->first_item;
    int32_t kv_head = local / plan->n_parts, part = local % plan->n_parts;
    int32_t row = batch->tile_row[plan->tile];
    if (plan->partial_first >= 0) {
        select_part(job, plan, row, kv_head, part, thread);
        return;
    }
    int32_t first = part * plan->set_rows, left = batch->tile_rows[plan->tile] - first;
    select_set(job, row + first, left < plan->set_rows ? left : plan->set_rows, kv_head,
               needs_scores(job->params, plan->tile), thread);
}

/* ---- the plan ---- */

static void plan_tile(const struct select_job *job, struct tile_plan *plan, size_t *partial_used)
{
    const struct nosa_select_blocks_params *params = job->params;
    const struct nosa_kv_geometry *geometry = &params->kv->geometry;
    const struct nosa_cpu_scratch *scratch = &job->device->scratch;
    int32_t n_rows = params->batch->tile_rows[plan->tile];
    int32_t row = params->batch->tile_row[plan->tile];
    int32_t n_runs = nosa_select_runs(params->batch->row_pos[row] / NOSA_BLOCK_TOKENS + 1,
                                      nosa_kv_windows_per_block(geometry));
    int32_t group = params->n_heads / geometry->n_kv_heads;
    plan->partial_first = -1;
    plan->n_parts = 1;
    plan->set_rows = n_rows;
    if (!needs_scores(params, plan->tile))
        return;
    size_t row_floats = nosa_select_row_floats(n_runs, group);
    size_t shared = row_floats * (size_t)geometry->n_kv_heads;
    if (n_rows == 1) {
        if (n_runs == 1 || *partial_used + shared > scratch->attention_partial_count)
            return;
        plan->partial_first = (int64_t)*partial_used;
        int32_t items = PART_ITEMS * nosa_cpu_pool_threads(job->device->pool);
        plan->part_runs = n_runs * geometry->n_kv_heads / items;
        plan->part_runs = plan->part_runs > 1 ? plan->part_runs : 1;
        plan->n_parts = (n_runs + plan->part_runs - 1) / plan->part_runs;
        *partial_used += shared;
        return;
    }
    int32_t most = (int32_t)(weight_floats(&scratch->limits) / row_floats);
    most = most < VECTORS_MAX / group ? most : VECTORS_MAX / group;
    most = most < 1 ? 1 : most;
    plan->n_parts = (n_rows + most - 1) / most;
    plan->set_rows = (n_rows + plan->n_parts - 1) / plan->n_parts;
    plan->n_parts = (n_rows + plan->set_rows - 1) / plan->set_rows;
}

enum nosa_status
NOSA_CPU_NAME(nosa_cpu_select_blocks)(struct nosa_stream *stream,
                                      const struct nosa_select_blocks_params *params)
{
    struct nosa_cpu_device *device = stream->device;
    const struct nosa_batch_view *batch = params->batch;
    struct tile_plan *plan = nosa_cpu_thread_scratch(device, 0);
    struct select_job job = {params, device, plan, batch->n_tiles};
    NOSA_ASSERT(batch->n_rows <= device->scratch.limits.rows_max);
    NOSA_ASSERT(params->n_heads / params->kv->geometry.n_kv_heads <= VECTORS_MAX);

    /* Later tiles of a prompt have more to read: they go first. */
    int32_t n_items = 0;
    bool scored = false;
    size_t partial_used = 0;
    for (int32_t i = 0; i < batch->n_tiles; i++) {
        plan[i] = (struct tile_plan){.tile = batch->n_tiles - 1 - i, .first_item = n_items};
        plan_tile(&job, &plan[i], &partial_used);
        n_items += plan[i].n_parts * params->kv->geometry.n_kv_heads;
        scored = scored || needs_scores(params, plan[i].tile);
    }
    if (scored) {
        nosa_cpu_pool_run(device->pool, n_items, select_item, &job);
        return NOSA_OK;
    }
    for (int32_t item = 0; item < n_items; item++)
        select_item(&job, item, 0);
    return NOSA_OK;
}
