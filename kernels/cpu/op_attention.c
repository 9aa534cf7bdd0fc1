/*
 * Attention over the blocks of each row's list, for prefill chunks and decode rows in one call.
 *
 * Work is done on sets: some rows of one tile (one row when decoding), one KV head, and the query
 * heads of its group; every (row, head) is a vector of the register tiles of kv_tile.h. A set walks
 * the union of its rows' lists a segment of entries at a time: scores of all blocks, then values,
 * where a tile's scores become weights just before they are used; each block is widened to float32
 * once for all vectors that want it. Runs of NOSA_ATTENTION_RUN_BLOCKS entries are counted per row,
 * so neither the set nor the segment changes a bit.
 *
 * A tile of one row is split into parts of PART_RUNS runs for different threads; each part leaves
 * its runs' (m, l, acc) in the shared partials, and the part that ends last merges them in order.
 *
 * Bound: a decode row reads each selected record once (head_dim * 256 bytes in bf16) for
 * 256 * head_dim * heads FLOPs; a prefill set of n vectors does n times that per record and is
 * bound by arithmetic.
 */
#include "cpu/kv_tile.h"

#define RUN            NOSA_ATTENTION_RUN_BLOCKS
#define RUN_TOKENS     (RUN * NOSA_BLOCK_TOKENS)
#define PART_RUNS      1   /* of one row, in one item */
#define DENSE_VECTORS  192 /* of a set whose rows share one list */
#define MIXED_VECTORS  96  /* of any other set */
#define SEGMENT_RUNS   4   /* most runs of a segment */
#define GROUP_MAX      NOSA_GROUP_MAX
#define ROW_PAD        16 /* floats, so that rows of scores do not share cache sets */
#define SCORE_FLOATS   (DENSE_VECTORS * (RUN_TOKENS + ROW_PAD) * 2)
#define UNION_MAX      (NOSA_BLOCK_TOKENS * SEGMENT_RUNS * RUN)
#define PARTIAL_BUDGET (4 << 20) /* floats, unless one row needs more */
#define SERIAL_RECORDS 4         /* fewer block records than this are not worth waking threads */

/* What the items of one tile are. Lives in thread 0's scratch during the region. */
struct tile_plan {
    int32_t tile;
    int32_t first_item;    /* of those of one KV head */
    int32_t n_parts;       /* sets of rows, or parts of the one row's runs */
    int32_t set_rows;      /* rows of a set */
    int64_t partial_first; /* where the row's partials lie, -1 if it is not split */
    int32_t n_runs;        /* of the row, any KV head's largest */
};

struct attention_job {
    const struct nosa_attention_params *params;
    struct nosa_cpu_device *device;
    const struct tile_plan *plan;
    int32_t n_tiles;
    int32_t
        head_items; /* of one KV head: all tiles, then the next head, whose KV is other memory */
};

/* A thread's scratch. */
struct attention_scratch {
    struct nosa_tile_mask mask;
    float no_bias[NOSA_BLOCK_TOKENS];
    int32_t block[UNION_MAX];                                   /* union of a segment, ascending */
    float lanes[DENSE_VECTORS * SEGMENT_RUNS * NOSA_VEC_LANES]; /* [vector][run][16] what m, then
                                                                   what l is made of */
    float run_top[DENSE_VECTORS * SEGMENT_RUNS];                /* m [vector][run] */
    float weight[NOSA_TILE_ROWS * NOSA_BLOCK_TOKENS];           /* of the tile at work */
    float row_top[DENSE_VECTORS];                               /* M of the runs merged so far */
    float row_total[DENSE_VECTORS];                             /* L */
    float score[SCORE_FLOATS];                                  /* [vector][entries * 64 + pad] */
    float *panel;                                               /* [64 * head_dim] widened K or V */
    float *acc;                                                 /* [vector][head_dim] of the run */
    float *merged;                                              /* [vector][head_dim] */
};

/* Rows of one tile that are attended to together, for one KV head. */
struct row_set {
    const struct nosa_attention_params *params;
    struct attention_scratch *scratch;
    const int32_t *table; /* block ids of the sequence */
    int32_t kv_head;
    int32_t row; /* first */
    int32_t n_rows;
    int32_t n_heads;
    int32_t own_block;  /* of all rows */
    int32_t part_first; /* entries of this call, of every row */
    int32_t part_end;
    int32_t seg_first; /* entries of the segment: seg_first .. seg_first + seg_entries - 1 */
    int32_t seg_entries;
    int32_t seg_runs; /* most runs of a segment: stride of what is kept per run */
    int32_t score_stride;
    int32_t n_blocks;                       /* of the segment's union */
    float *partial;                         /* of the part's first run and head 0, or NULL */
    const int32_t *list[NOSA_BLOCK_TOKENS]; /* or NULL: entry e is block e */
    int32_t length[NOSA_BLOCK_TOKENS];      /* of the list */
    int32_t count[NOSA_BLOCK_TOKENS];       /* of its entries before part_end */
    int32_t end[NOSA_BLOCK_TOKENS];         /* of each row's entries in the segment */
    int32_t cursor[NOSA_BLOCK_TOKENS];      /* next entry of each row in a walk over the union */
};

/* ---- scratch ---- */

static size_t plan_bytes(const struct nosa_step_limits *limits)
{
    return ((size_t)limits->rows_max * sizeof(struct tile_plan) + 63) / 64 * 64;
}

static size_t fixed_bytes(void)
{
    return (sizeof(struct attention_scratch) + 63) / 64 * 64;
}

size_t NOSA_CPU_NAME(nosa_cpu_attention_scratch_bytes)(const struct nosa_step_limits *limits)
{
    size_t head_dim = (size_t)limits->head_dim;
    return plan_bytes(limits) + fixed_bytes() +
           sizeof(float) * head_dim * (NOSA_BLOCK_TOKENS + 2 * DENSE_VECTORS);
}

/* Floats of one run's partial of one head: acc, m, l, padding. */
static size_t partial_stride(int32_t head_dim)
{
    return (size_t)head_dim + NOSA_VEC_LANES;
}

size_t NOSA_CPU_NAME(nosa_cpu_attention_partial_floats)(const struct nosa_step_limits *limits)
{
    size_t blocks = (size_t)limits->context_max / NOSA_BLOCK_TOKENS + 1;
    size_t runs = (blocks + RUN - 1) / RUN;
    size_t row = runs * (size_t)limits->n_heads * partial_stride(limits->head_dim);
    size_t all = row * (size_t)limits->rows_max;
    size_t bounded = all < PARTIAL_BUDGET ? all : PARTIAL_BUDGET;
    bounded = bounded > row ? bounded : row;
    int32_t select_runs = nosa_select_runs((int32_t)blocks, limits->windows_per_block);
    size_t select = (size_t)limits->n_kv_heads *
                    nosa_select_row_floats(select_runs, limits->n_heads / limits->n_kv_heads);
    return bounded > select ? bounded : select;
}

size_t NOSA_CPU_NAME(nosa_cpu_attention_counter_count)(const struct nosa_step_limits *limits)
{
    return (size_t)limits->rows_max * (size_t)limits->n_kv_heads;
}

static struct attention_scratch *thread_scratch(const struct attention_job *job, int32_t thread)
{
    char *memory = nosa_cpu_thread_scratch(job->device, thread);
    size_t head_dim = (size_t)job->params->kv->geometry.head_dim;
    memory += plan_bytes(&job->device->scratch.limits);
    struct attention_scratch *scratch = (struct attention_scratch *)(void *)memory;
    scratch->panel = (float *)(void *)(memory + fixed_bytes());
    scratch->acc = scratch->panel + NOSA_BLOCK_TOKENS * head_dim;
    scratch->merged = scratch->acc + DENSE_VECTORS * head_dim;
    nosa_tile_mask_fill(&scratch->mask);
    memset(scratch->no_bias, 0, sizeof scratch->no_bias);
    return scratch;
}

/* ---- the union of a segment ---- */

static int32_t entry_block(const struct row_set *set, int32_t row, int32_t entry)
{
    return set->list[row] == NULL ? entry : set->list[row][entry];
}

static void walk_start(struct row_set *set)
{
    for (int32_t row = 0; row < set->n_rows; row++)
        set->cursor[row] = set->seg_first;
}

/* Whether the row's next entry is `block`. */
static bool walk_at(const struct row_set *set, int32_t row, int32_t block)
{
    return set->cursor[row] < set->end[row] && entry_block(set, row, set->cursor[row]) == block;
}

/* Whether the row wants `block`, the next of the walk; then *entry is its place in the list. */
static bool walk_take(struct row_set *set, int32_t row, int32_t block, int32_t *entry)
{
    if (!walk_at(set, row, block))
        return false;
    *entry = set->cursor[row]++;
    return true;
}

/* The least block that a row of the walk is at, or INT32_MAX at its end. */
static int32_t walk_next(const struct row_set *set)
{
    int32_t least = INT32_MAX;
    for (int32_t row = 0; row < set->n_rows; row++) {
        if (set->cursor[row] < set->end[row]) {
            int32_t block = entry_block(set, row, set->cursor[row]);
            least = block < least ? block : least;
        }
    }
    return least;
}

/* Makes entries first .. first + n_entries - 1 the segment, and lists its blocks, ascending, each
 * once. */
static void open_segment(struct row_set *set, int32_t first, int32_t n_entries)
{
    int32_t *blocks = set->scratch->block;
    set->seg_first = first;
    set->seg_entries = n_entries;
    set->n_blocks = 0;
    for (int32_t row = 0; row < set->n_rows; row++)
        set->end[row] = first + n_entries < set->count[row] ? first + n_entries : set->count[row];
    walk_start(set);
    if (set->list[0] == NULL) { /* all rows alike */
        for (int32_t block = first; block < set->end[0]; block++)
            blocks[set->n_blocks++] = block;
        return;
    }
    for (int32_t block = walk_next(set); block != INT32_MAX; block = walk_next(set)) {
        blocks[set->n_blocks++] = block;
        for (int32_t row = 0; row < set->n_rows; row++)
            set->cursor[row] += walk_at(set, row, block);
    }
    walk_start(set);
}

static const char *record_of(const struct row_set *set, int32_t index)
{
    return nosa_kv_record(set->params->kv, set->params->layer, set->kv_head,
                          set->table[set->scratch->block[index]]);
}

/* K of union block `index`, widened, and the memory after it in the walk on its way. */
static const float *key_panel(const struct row_set *set, int32_t index, const char **ahead)
{
    const struct nosa_kv_geometry *geometry = &set->params->kv->geometry;
    const char *keys = record_of(set, index);
    *ahead = index + 1 < set->n_blocks ? record_of(set, index + 1)
                                       : record_of(set, 0) + nosa_kv_half_bytes(geometry);
    if (geometry->type == NOSA_DTYPE_F32)
        return (const float *)(const void *)keys;
    nosa_tile_widen((const uint16_t *)(const void *)keys, geometry->head_dim / 2, NOSA_BLOCK_TOKENS,
                    set->scratch->panel, *ahead);
    *ahead += nosa_kv_half_bytes(geometry) / 2;
    return set->scratch->panel;
}

/* V likewise. */
static const float *value_panel(const struct row_set *set, int32_t index, const char **ahead)
{
    const struct nosa_kv_geometry *geometry = &set->params->kv->geometry;
    const char *values = record_of(set, index) + nosa_kv_half_bytes(geometry);
    int32_t next = set->seg_first + set->seg_entries;
    if (index + 1 < set->n_blocks)
        *ahead = record_of(set, index + 1) + nosa_kv_half_bytes(geometry);
    else if (next < set->count[0])
        *ahead = nosa_kv_record(set->params->kv, set->params->layer, set->kv_head,
                                set->table[entry_block(set, 0, next)]);
    else
        *ahead = values;
    if (geometry->type == NOSA_DTYPE_F32)
        return (const float *)(const void *)values;
    nosa_tile_widen((const uint16_t *)(const void *)values, NOSA_BLOCK_TOKENS / 2,
                    geometry->head_dim, set->scratch->panel, *ahead);
    *ahead += nosa_kv_half_bytes(geometry) / 2;
    return set->scratch->panel;
}

/* Tokens of the block that the row sees. */
static int32_t visible_tokens(const struct row_set *set, int32_t row, int32_t block)
{
    if (block < set->own_block)
        return NOSA_BLOCK_TOKENS;
    return set->params->batch->row_pos[set->row + row] % NOSA_BLOCK_TOKENS + 1;
}

/* ---- scores ---- */

static void score_block(struct row_set *set, int32_t index)
{
    const struct nosa_attention_params *params = set->params;
    const struct nosa_kv_view *kv = params->kv;
    struct attention_scratch *scratch = set->scratch;
    int32_t block = scratch->block[index], head_dim = kv->geometry.head_dim;
    int32_t group = params->n_heads / kv->geometry.n_kv_heads;
    const char *ahead;
    const float *panel = key_panel(set, index, &ahead);
    const float *bias = scratch->no_bias;
    if (params->has_bias)
        bias = kv->token_bias + NOSA_BLOCK_TOKENS * nosa_kv_record_index(kv, params->layer,
                                                                         set->kv_head,
                                                                         set->table[block]);
    struct nosa_score_rows tile;
    int32_t filled = 0;
    for (int32_t row = 0; row < set->n_rows; row++) {
        int32_t entry;
        if (!walk_take(set, row, block, &entry))
            continue;
        const float *q = params->q + (int64_t)(set->row + row) * params->q_stride +
                         (int64_t)(set->kv_head * group + params->head_first) * head_dim;
        int32_t place = entry - set->seg_first;
        int32_t visible = visible_tokens(set, row, block);
        for (int32_t head = 0; head < set->n_heads; head++) {
            int32_t vector = row * set->n_heads + head;
            tile.q[filled] = q + (int64_t)head * head_dim;
            tile.score[filled] = scratch->score + (int64_t)vector * set->score_stride +
                                 (int64_t)place * NOSA_BLOCK_TOKENS;
            tile.top[filled] =
                scratch->lanes + (vector * set->seg_runs + place / RUN) * NOSA_VEC_LANES;
            tile.visible[filled] = visible;
            if (++filled == NOSA_TILE_ROWS) {
                nosa_tile_score(filled, &tile, panel, head_dim, params->scale, bias, &scratch->mask,
                                ahead);
                ahead = (const char *)panel; /* asked for once */
                filled = 0;
            }
        }
    }
    if (filled > 0)
        nosa_tile_score(filled, &tile, panel, head_dim, params->scale, bias, &scratch->mask, ahead);
}

/* Settles m of the segment's runs, and makes their lanes ready for l. */
static void close_tops(struct row_set *set)
{
    struct attention_scratch *scratch = set->scratch;
    for (int32_t cell = 0; cell < set->n_rows * set->n_heads * set->seg_runs; cell++) {
        float *lanes = scratch->lanes + cell * NOSA_VEC_LANES;
        scratch->run_top[cell] = nosa_vec_max_lane(nosa_vec_load(lanes));
        nosa_vec_store(lanes, nosa_vec_zero());
    }
}

/* ---- values ---- */

/* Merges a run (m, l, acc) behind those already in (*top, *total, merged). */
static void merge_run(float *merged, float *top, float *total, const float *acc, float run_top,
                      float run_total, int32_t head_dim)
{
    float most = *top > run_top ? *top : run_top;
    float before = nosa_tile_exp1(*top - most), behind = nosa_tile_exp1(run_top - most);
    nosa_vec old = nosa_vec_set1(before), new = nosa_vec_set1(behind);
    for (int32_t i = 0; i < head_dim; i += NOSA_VEC_LANES) {
        nosa_vec scaled = nosa_vec_mul(nosa_vec_load(merged + i), old);
        nosa_vec_store(merged + i, nosa_vec_fma(nosa_vec_load(acc + i), new, scaled));
    }
    *total = fmaf(run_total, behind, *total * before);
    *top = most;
}

/* A run of the row is complete: into the partials, or behind the row's earlier runs. */
static void end_run(struct row_set *set, int32_t row, int32_t entry_last)
{
    struct attention_scratch *scratch = set->scratch;
    int32_t head_dim = set->params->kv->geometry.head_dim;
    int32_t local_run = (entry_last - set->seg_first) / RUN, run = entry_last / RUN;
    for (int32_t head = 0; head < set->n_heads; head++) {
        int32_t vector = row * set->n_heads + head, cell = vector * set->seg_runs + local_run;
        float *acc = scratch->acc + (int64_t)vector * head_dim;
        float *merged = scratch->merged + (int64_t)vector * head_dim;
        float m = scratch->run_top[cell];
        float l = nosa_vec_sum(nosa_vec_load(scratch->lanes + cell * NOSA_VEC_LANES));
        if (set->partial != NULL) {
            int32_t place = (run - set->part_first / RUN) * set->n_heads + head;
            float *to = set->partial + (size_t)place * partial_stride(head_dim);
            memcpy(to, acc, sizeof(float) * (size_t)head_dim);
            to[head_dim] = m;
            to[head_dim + 1] = l;
        } else if (run == 0) {
            memcpy(merged, acc, sizeof(float) * (size_t)head_dim);
            scratch->row_top[vector] = m;
            scratch->row_total[vector] = l;
        } else {
            merge_run(merged, &scratch->row_top[vector], &scratch->row_total[vector], acc, m, l,
                      head_dim);
        }
        memset(acc, 0, sizeof(float) * (size_t)head_dim);
    }
}

static void add_values(struct row_set *set, int32_t index)
{
    struct attention_scratch *scratch = set->scratch;
    int32_t block = scratch->block[index];
    int32_t head_dim = set->params->kv->geometry.head_dim;
    const char *ahead;
    const float *panel = value_panel(set, index, &ahead);
    struct nosa_value_rows tile;
    int32_t filled = 0, n_tokens = 0;
    for (int32_t row = 0; row < set->n_rows; row++) {
        int32_t entry;
        if (!walk_take(set, row, block, &entry))
            continue;
        int32_t place = entry - set->seg_first;
        if (place > 0 && place % RUN == 0)
            end_run(set, row, entry - 1);
        n_tokens = (visible_tokens(set, row, block) + 3) / 4 * 4; /* rows ascend */
        for (int32_t head = 0; head < set->n_heads; head++) {
            int32_t vector = row * set->n_heads + head, cell = vector * set->seg_runs + place / RUN;
            const float *score = scratch->score + (int64_t)vector * set->score_stride +
                                 (int64_t)place * NOSA_BLOCK_TOKENS;
            float *weight = scratch->weight + filled * NOSA_BLOCK_TOKENS;
            nosa_tile_weigh(score, scratch->run_top[cell], weight,
                            scratch->lanes + cell * NOSA_VEC_LANES);
            tile.p[filled] = weight;
            tile.acc[filled] = scratch->acc + (int64_t)vector * head_dim;
            if (++filled == NOSA_TILE_ROWS) {
                nosa_tile_value(filled, &tile, panel, n_tokens, head_dim, ahead);
                ahead = (const char *)panel; /* asked for once */
                filled = 0;
            }
        }
    }
    if (filled > 0)
        nosa_tile_value(filled, &tile, panel, n_tokens, head_dim, ahead);
}

/* ---- sets ---- */

/* out = merged * (1 / total); + 0 makes every zero +0. */
static void write_row(float *out, const float *merged, float total, int32_t head_dim)
{
    nosa_vec factor = nosa_vec_set1(1.0f / total);
    for (int32_t i = 0; i < head_dim; i += NOSA_VEC_LANES)
        nosa_vec_store(out + i, nosa_vec_add(nosa_vec_mul(nosa_vec_load(merged + i), factor),
                                             nosa_vec_zero()));
}

/* What is merged of a row's list so far: acc, m, l. */
static float *state_of(const struct row_set *set, int32_t row, int32_t head)
{
    const struct nosa_kv_geometry *geometry = &set->params->kv->geometry;
    int64_t heads = (int64_t)geometry->n_kv_heads * set->n_heads;
    return set->params->state + ((set->row + row) * heads + set->kv_head * set->n_heads + head) *
                                    (geometry->head_dim + 2);
}

static float *out_of(const struct row_set *set, int32_t row, int32_t head)
{
    return set->params->out + (int64_t)(set->row + row) * set->params->out_stride +
           (int64_t)(set->kv_head * set->n_heads + head) * set->params->kv->geometry.head_dim;
}

/* Attends entries first .. end - 1 (first a multiple of RUN). */
static void attend(struct row_set *set, int32_t first, int32_t end)
{
    struct attention_scratch *scratch = set->scratch;
    int32_t head_dim = set->params->kv->geometry.head_dim;
    int32_t n_vectors = set->n_rows * set->n_heads;
    int32_t runs = 1; /* lists that differ share more blocks over longer segments */
    if (set->n_rows > 1 && set->list[0] != NULL)
        runs = SCORE_FLOATS / (n_vectors * (RUN_TOKENS + ROW_PAD));
    runs = runs < SEGMENT_RUNS ? runs : SEGMENT_RUNS;
    set->seg_runs = runs;
    set->score_stride = runs * RUN_TOKENS + ROW_PAD;
    memset(scratch->acc, 0, sizeof(float) * (size_t)(n_vectors * head_dim));
    for (int32_t entry = first; entry < end; entry += runs * RUN) {
        for (int32_t i = 0; i < n_vectors * runs * NOSA_VEC_LANES; i++)
            scratch->lanes[i] = -INFINITY;
        open_segment(set, entry, end - entry < runs * RUN ? end - entry : runs * RUN);
        for (int32_t index = 0; index < set->n_blocks; index++)
            score_block(set, index);
        close_tops(set);
        walk_start(set);
        for (int32_t index = 0; index < set->n_blocks; index++)
            add_values(set, index);
        for (int32_t row = 0; row < set->n_rows; row++)
            if (set->end[row] > entry)
                end_run(set, row, set->end[row] - 1);
    }
}

/* End of the entries of this call, however long a list is. */
static int32_t part_end(const struct nosa_attention_params *params)
{
    return params->entry_count > 0 ? params->entry_first + params->entry_count : INT32_MAX;
}

/* Whether every row of the tile attends to all its blocks, for one KV head. */
static bool selects_all(const struct nosa_attention_params *params, int32_t row, int32_t n_rows,
                        int32_t kv_head)
{
    if (params->selected == NULL)
        return true;
    int32_t n_kv_heads = params->kv->geometry.n_kv_heads;
    int32_t n_visible = params->batch->row_pos[row] / NOSA_BLOCK_TOKENS + 1;
    for (int32_t i = 0; i < n_rows; i++)
        if (params->selected_count[(int64_t)(row + i) * n_kv_heads + kv_head] != n_visible)
            return false;
    return true;
}

/* Makes the set of rows row .. row + n_rows - 1; returns where the longest list ends. */
static int32_t set_open(struct row_set *set, const struct attention_job *job, int32_t row,
                        int32_t n_rows, int32_t kv_head, int32_t thread)
{
    const struct nosa_attention_params *params = job->params;
    const struct nosa_batch_view *batch = params->batch;
    *set = (struct row_set){.params = params, .kv_head = kv_head, .row = row, .n_rows = n_rows};
    set->scratch = thread_scratch(job, thread);
    set->table = batch->block_table + (int64_t)batch->row_seq[row] * batch->table_stride;
    set->n_heads = params->head_count;
    set->own_block = batch->row_pos[row] / NOSA_BLOCK_TOKENS;
    set->part_first = params->entry_first;
    set->part_end = part_end(params);
    bool all = selects_all(params, row, n_rows, kv_head);
    int32_t longest = 0;
    for (int32_t i = 0; i < n_rows; i++) {
        int64_t cell = (int64_t)(row + i) * params->kv->geometry.n_kv_heads + kv_head;
        set->list[i] = all ? NULL : params->selected + cell * params->topk;
        set->length[i] = all ? set->own_block + 1 : params->selected_count[cell];
        set->count[i] = set->length[i] < set->part_end ? set->length[i] : set->part_end;
        longest = set->count[i] > longest ? set->count[i] : longest;
    }
    return longest;
}

/* Takes up what earlier parts merged of row i and head. */
static void load_state(const struct row_set *set, int32_t i, int32_t head)
{
    struct attention_scratch *scratch = set->scratch;
    int32_t head_dim = set->params->kv->geometry.head_dim, vector = i * set->n_heads + head;
    const float *state = state_of(set, i, head);
    memcpy(scratch->merged + (int64_t)vector * head_dim, state, sizeof(float) * (size_t)head_dim);
    scratch->row_top[vector] = state[head_dim];
    scratch->row_total[vector] = state[head_dim + 1];
}

/* Row i's output for a head if the list ends in this part; else its state. */
static void finish_row(const struct row_set *set, int32_t i, int32_t head, const float *merged,
                       float top, float total)
{
    int32_t head_dim = set->params->kv->geometry.head_dim;
    if (set->length[i] <= set->part_end) {
        write_row(out_of(set, i, head), merged, total, head_dim);
        return;
    }
    float *state = state_of(set, i, head);
    memcpy(state, merged, sizeof(float) * (size_t)head_dim);
    state[head_dim] = top;
    state[head_dim + 1] = total;
}

static void attend_set(const struct attention_job *job, int32_t row, int32_t n_rows,
                       int32_t kv_head, int32_t thread)
{
    struct row_set set;
    int32_t longest = set_open(&set, job, row, n_rows, kv_head, thread);
    int32_t head_dim = job->params->kv->geometry.head_dim;
    struct attention_scratch *scratch = set.scratch;
    for (int32_t i = 0; i < n_rows && set.part_first > 0; i++)
        for (int32_t head = 0; head < set.n_heads && set.part_first < set.length[i]; head++)
            load_state(&set, i, head);
    attend(&set, set.part_first, longest);
    for (int32_t i = 0; i < n_rows; i++)
        for (int32_t head = 0; head < set.n_heads && set.part_first < set.length[i]; head++) {
            int32_t vector = i * set.n_heads + head;
            finish_row(&set, i, head, scratch->merged + (int64_t)vector * head_dim,
                       scratch->row_top[vector], scratch->row_total[vector]);
        }
}

/* Merges the part's runs of a row from its partials, in order, behind those of earlier parts. */
static void merge_partials(const struct row_set *set)
{
    int32_t head_dim = set->params->kv->geometry.head_dim;
    int32_t n_runs = (set->count[0] - set->part_first + RUN - 1) / RUN;
    size_t stride = partial_stride(head_dim);
    for (int32_t head = 0; head < set->n_heads && n_runs > 0; head++) {
        int32_t first = set->part_first > 0 ? 0 : 1; /* run to merge behind what there is */
        const float *before =
            first > 0 ? set->partial + (size_t)head * stride : state_of(set, 0, head);
        float *merged = set->scratch->merged, top = before[head_dim], total = before[head_dim + 1];
        memcpy(merged, before, sizeof(float) * (size_t)head_dim);
        for (int32_t run = first; run < n_runs; run++) {
            const float *acc = set->partial + (size_t)(run * set->n_heads + head) * stride;
            merge_run(merged, &top, &total, acc, acc[head_dim], acc[head_dim + 1], head_dim);
        }
        finish_row(set, 0, head, merged, top, total);
    }
}

/* Part `part` of a split row. */
static void attend_part(const struct attention_job *job, const struct tile_plan *plan, int32_t row,
                        int32_t kv_head, int32_t part, int32_t thread)
{
    struct row_set set;
    int32_t count = set_open(&set, job, row, 1, kv_head, thread);
    int32_t head_dim = job->params->kv->geometry.head_dim;
    set.partial =
        job->device->scratch.attention_partials + plan->partial_first +
        (size_t)kv_head * (size_t)plan->n_runs * (size_t)set.n_heads * partial_stride(head_dim);
    int32_t first = set.part_first + part * PART_RUNS * RUN, end = first + PART_RUNS * RUN;
    end = end < count ? end : count;
    if (first < end)
        attend(&set, first, end);
    int32_t n_kv_heads = job->params->kv->geometry.n_kv_heads;
    int32_t *counter = job->device->scratch.counters + (int64_t)plan->tile * n_kv_heads + kv_head;
    if (__atomic_add_fetch(counter, 1, __ATOMIC_ACQ_REL) != plan->n_parts)
        return;
    __atomic_store_n(counter, 0, __ATOMIC_RELAXED);
    merge_partials(&set);
}

static void attend_item(void *context, int32_t item, int32_t thread)
{
    const struct attention_job *job = context;
    int32_t kv_head = item / job->head_items, head_item = item % job->head_items;
    int32_t low = 0, high = job->n_tiles - 1;
    while (low < high) {
        int32_t middle = (low + high + 1) / 2;
        if (job->plan[middle].first_item <= head_item)
            low = middle;
        else
            high = middle - 1;
    }
    const struct tile_plan *plan = &job->plan[low];
    const struct nosa_batch_view *batch = job->params->batch;
    int32_t part = head_item - plan->first_item;
    int32_t row = batch->tile_row[plan->tile];
    if (plan->partial_first >= 0) {
        attend_part(job, plan, row, kv_head, part, thread);
        return;
    }
    int32_t first = part * plan->set_rows, left = batch->tile_rows[plan->tile] - first;
    attend_set(job, row + first, left < plan->set_rows ? left : plan->set_rows, kv_head, thread);
}

/* ---- the plan ---- */

/* The most entries that this call takes of a list of a tile of one row. */
static int32_t longest_list(const struct nosa_attention_params *params, int32_t row)
{
    int32_t n_kv_heads = params->kv->geometry.n_kv_heads, longest = 0, end = part_end(params);
    if (params->selected == NULL)
        longest = params->batch->row_pos[row] / NOSA_BLOCK_TOKENS + 1;
    for (int32_t h = 0; params->selected != NULL && h < n_kv_heads; h++) {
        int32_t count = params->selected_count[(int64_t)row * n_kv_heads + h];
        longest = count > longest ? count : longest;
    }
    longest = (longest < end ? longest : end) - params->entry_first;
    return longest > 0 ? longest : 0;
}

/* Splits a tile of one row while partials last; else rows into sets of equal size. */
static void plan_tile(const struct attention_job *job, struct tile_plan *plan, size_t *partial_used)
{
    const struct nosa_attention_params *params = job->params;
    int32_t n_rows = params->batch->tile_rows[plan->tile];
    int32_t row = params->batch->tile_row[plan->tile];
    int32_t n_kv_heads = params->kv->geometry.n_kv_heads;
    plan->partial_first = -1;
    if (n_rows == 1) {
        plan->set_rows = 1;
        plan->n_parts = 1;
        plan->n_runs = (longest_list(params, row) + RUN - 1) / RUN;
        size_t floats = (size_t)plan->n_runs * (size_t)(n_kv_heads * params->head_count) *
                        partial_stride(params->kv->geometry.head_dim);
        if (plan->n_runs <= PART_RUNS ||
            *partial_used + floats > job->device->scratch.attention_partial_count)
            return;
        plan->partial_first = (int64_t)*partial_used;
        plan->n_parts = (plan->n_runs + PART_RUNS - 1) / PART_RUNS;
        *partial_used += floats;
        return;
    }
    bool dense = true;
    for (int32_t h = 0; h < n_kv_heads; h++)
        dense = dense && selects_all(params, row, n_rows, h);
    int32_t most = (dense ? DENSE_VECTORS : MIXED_VECTORS) / params->head_count;
    most = most < 1 ? 1 : most;
    plan->n_parts = (n_rows + most - 1) / most;
    plan->set_rows = (n_rows + plan->n_parts - 1) / plan->n_parts;
    plan->n_parts = (n_rows + plan->set_rows - 1) / plan->set_rows;
}

enum nosa_status NOSA_CPU_NAME(nosa_cpu_attention)(struct nosa_stream *stream,
                                                   const struct nosa_attention_params *params)
{
    struct nosa_cpu_device *device = stream->device;
    const struct nosa_batch_view *batch = params->batch;
    struct tile_plan *plan = nosa_cpu_thread_scratch(device, 0);
    struct attention_job job = {
        .params = params, .device = device, .plan = plan, .n_tiles = batch->n_tiles};
    NOSA_ASSERT(params->head_count >= 1 && params->head_count <= GROUP_MAX);
    NOSA_ASSERT(batch->n_rows <= device->scratch.limits.rows_max);
    NOSA_ASSERT(params->entry_first % RUN == 0 && params->entry_count % RUN == 0);
    NOSA_ASSERT((params->state != NULL) == (params->entry_count > 0));

    /* Later tiles of a prompt have more to read: they go first. */
    int64_t records = 0;
    size_t partial_used = 0;
    for (int32_t i = 0; i < batch->n_tiles; i++) {
        plan[i] = (struct tile_plan){.tile = batch->n_tiles - 1 - i, .first_item = job.head_items};
        plan_tile(&job, &plan[i], &partial_used);
        job.head_items += plan[i].n_parts;
        records += longest_list(params, batch->tile_row[plan[i].tile]) *
                   params->kv->geometry.n_kv_heads * batch->tile_rows[plan[i].tile];
    }
    int32_t n_items = job.head_items * params->kv->geometry.n_kv_heads;
    if (records > SERIAL_RECORDS) {
        nosa_cpu_pool_run(device->pool, n_items, attend_item, &job);
        return NOSA_OK;
    }
    for (int32_t item = 0; item < n_items; item++)
        attend_item(&job, item, 0);
    return NOSA_OK;
}
