#include "engine/step_plan.h"

#include <stdlib.h>
#include <string.h>

#define SECTION_ALIGN 64

/* What an array of the image grows with. */
enum extent { PER_ROW, PER_SEQ, PER_SEQ_AND_ONE, PER_TABLE_ENTRY, PER_HISTORY_TOKEN };

struct section {
    size_t pointer; /* offset of its pointer in struct nosa_step_plan */
    size_t element_bytes;
    enum extent extent;
};

#define SECTION(field, extent)                                                                     \
    {                                                                                              \
        offsetof(struct nosa_step_plan, field), sizeof *((struct nosa_step_plan *)0)->field,       \
            extent                                                                                 \
    }

/* In the order of the image; those that every rank reads are first. */
static const struct section sections[] = {
    SECTION(token, PER_ROW),
    SECTION(row_pos, PER_ROW),
    SECTION(row_seq, PER_ROW),
    SECTION(tile_row, PER_ROW),
    SECTION(tile_rows, PER_ROW),
    SECTION(score_row, PER_ROW),
    SECTION(score_token, PER_ROW),
    SECTION(sample_row, PER_SEQ),
    SECTION(block_table, PER_TABLE_ENTRY),
    SECTION(sampling, PER_SEQ),
    SECTION(position, PER_SEQ),
    SECTION(n_top, PER_SEQ),
    SECTION(prompt_length, PER_SEQ),
    SECTION(history_start, PER_SEQ_AND_ONE),
    SECTION(history_tokens, PER_HISTORY_TOKEN),
};

#define SECTIONS        (sizeof sections / sizeof *sections)
#define SECTIONS_SHARED 9

static size_t section_bytes(const struct section *section, const struct nosa_plan_limits *sizes)
{
    size_t seqs = (size_t)sizes->seqs_max;
    size_t table = seqs * (size_t)sizes->blocks_max;
    size_t count = 0;
    switch (section->extent) {
    case PER_ROW: count = (size_t)sizes->rows_max; break;
    case PER_SEQ: count = seqs; break;
    case PER_SEQ_AND_ONE: count = seqs + 1; break;
    case PER_TABLE_ENTRY: count = table; break;
    case PER_HISTORY_TOKEN: count = table * NOSA_BLOCK_TOKENS; break;
    }
    return (count * section->element_bytes + SECTION_ALIGN - 1) / SECTION_ALIGN * SECTION_ALIGN;
}

int32_t nosa_step_plan_bucket(int32_t n, int32_t max)
{
    NOSA_ASSERT(n >= 1 && n <= max);
    int32_t bucket = 1;
    while (bucket < n)
        bucket = bucket > max / 2 ? max : 2 * bucket;
    return bucket;
}

size_t nosa_step_plan_bytes(const struct nosa_plan_limits *limits)
{
    size_t bytes = 0;
    for (size_t i = 0; i < SECTIONS; i++)
        bytes += section_bytes(&sections[i], limits);
    return bytes;
}

static size_t result_bytes(const struct nosa_plan_limits *limits)
{
    return sizeof(struct nosa_sample_result) * (size_t)limits->seqs_max;
}

static size_t score_bytes(const struct nosa_plan_limits *limits)
{
    return sizeof(float) * (size_t)limits->rows_max;
}

static size_t logits_bytes(const struct nosa_plan_limits *limits)
{
    return sizeof(float) * (size_t)limits->seqs_max * (size_t)limits->vocab;
}

static enum nosa_status take(struct nosa_step_plan *plan, size_t bytes, void **out,
                             struct nosa_error *error)
{
    if (bytes == 0)
        return NOSA_OK;
    return plan->device->table->memory_alloc(plan->device, NOSA_MEMORY_HOST_PINNED, bytes, out,
                                             error);
}

static enum nosa_status take_memory(struct nosa_step_plan *plan, struct nosa_error *error)
{
    const struct nosa_plan_limits *limits = &plan->limits;
    void *memory[4] = {NULL};
    plan->image_bytes = nosa_step_plan_bytes(limits);
    enum nosa_status status = take(plan, plan->image_bytes, &memory[0], error);
    if (status == NOSA_OK)
        status = take(plan, result_bytes(limits), &memory[1], error);
    if (status == NOSA_OK)
        status = take(plan, score_bytes(limits), &memory[2], error);
    if (status == NOSA_OK)
        status = take(plan, logits_bytes(limits), &memory[3], error);
    plan->image = memory[0];
    plan->result = memory[1];
    plan->score = memory[2];
    plan->logits = memory[3];
    if (status != NOSA_OK)
        return status;
    plan->keep = calloc((size_t)limits->seqs_max, sizeof *plan->keep);
    if (!plan->keep)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for steps of %d tokens",
                              limits->rows_max);
    return NOSA_OK;
}

enum nosa_status nosa_step_plan_create(const struct nosa_plan_limits *limits,
                                       struct nosa_device *device, struct nosa_step_plan *out,
                                       struct nosa_error *error)
{
    NOSA_ASSERT(limits->rows_max >= 1 && limits->seqs_max >= 1 && limits->blocks_max >= 1);
    *out = (struct nosa_step_plan){.limits = *limits, .device = device};
    enum nosa_status status = take_memory(out, error);
    if (status != NOSA_OK)
        nosa_step_plan_destroy(out);
    return status;
}

static void give_back(struct nosa_step_plan *plan, void *memory, size_t bytes)
{
    if (memory)
        plan->device->table->memory_free(plan->device, NOSA_MEMORY_HOST_PINNED, memory, bytes);
}

void nosa_step_plan_destroy(struct nosa_step_plan *plan)
{
    give_back(plan, plan->image, plan->image_bytes);
    give_back(plan, plan->result, result_bytes(&plan->limits));
    give_back(plan, plan->score, score_bytes(&plan->limits));
    give_back(plan, plan->logits, logits_bytes(&plan->limits));
    free(plan->keep);
    *plan = (struct nosa_step_plan){0};
}

void nosa_step_plan_begin(struct nosa_step_plan *plan, int32_t n_rows, int32_t n_seqs,
                          int32_t n_blocks)
{
    const struct nosa_plan_limits sizes = {
        .rows_max = nosa_step_plan_bucket(n_rows, plan->limits.rows_max),
        .seqs_max = nosa_step_plan_bucket(n_seqs, plan->limits.seqs_max),
        .blocks_max = nosa_step_plan_bucket(n_blocks, plan->limits.blocks_max),
    };
    size_t offset = 0;
    for (size_t i = 0; i < SECTIONS; i++) {
        char *place = plan->image + offset;
        memcpy((char *)plan + sections[i].pointer, &place, sizeof place);
        if (i == SECTIONS_SHARED)
            plan->shared_bytes = offset;
        plan->used_bytes = offset;
        offset += section_bytes(&sections[i], &sizes);
    }
    plan->n_rows = 0;
    plan->n_seqs = 0;
    plan->n_tiles = 0;
    plan->n_sample = 0;
    plan->n_score = 0;
    plan->tile_rows_max = NOSA_BLOCK_TOKENS;
    plan->table_stride = sizes.blocks_max;
    plan->history_start[0] = 0;
}

void nosa_step_plan_begin_moves(struct nosa_step_plan *plan)
{
    nosa_step_plan_begin(plan, 1, 1, 1);
}

int32_t nosa_step_plan_add(struct nosa_step_plan *plan, const uint32_t *tokens, int32_t first,
                           int32_t count, const int32_t *blocks, int32_t n_blocks)
{
    NOSA_ASSERT(count >= 1 && plan->n_rows + count <= plan->limits.rows_max);
    NOSA_ASSERT(plan->n_seqs < plan->limits.seqs_max);
    NOSA_ASSERT((first + count - 1) / NOSA_BLOCK_TOKENS < n_blocks);
    NOSA_ASSERT((first + count - 1) / NOSA_BLOCK_TOKENS < plan->table_stride);
    int32_t seq = plan->n_seqs++;
    int32_t copied = n_blocks < plan->table_stride ? n_blocks : plan->table_stride;
    memcpy(plan->block_table + (int64_t)seq * plan->table_stride, blocks,
           sizeof *blocks * (size_t)copied);
    for (int32_t i = 0; i < count; i++) {
        int32_t row = plan->n_rows + i;
        plan->token[row] = (int32_t)tokens[first + i];
        plan->row_pos[row] = first + i;
        plan->row_seq[row] = seq;
        if (i == 0 || (first + i) % NOSA_BLOCK_TOKENS == 0 ||
            plan->tile_rows[plan->n_tiles - 1] == plan->tile_rows_max) {
            plan->tile_row[plan->n_tiles] = row;
            plan->tile_rows[plan->n_tiles++] = 0;
        }
        plan->tile_rows[plan->n_tiles - 1]++;
    }
    plan->n_rows += count;
    return seq;
}

void nosa_step_plan_add_sample(struct nosa_step_plan *plan, const struct nosa_plan_sample *sample)
{
    NOSA_ASSERT(plan->n_rows >= 1 && plan->n_sample < plan->n_seqs);
    NOSA_ASSERT(!sample->keep || plan->limits.vocab > 0);
    NOSA_ASSERT((sample->n_tokens - 1) / NOSA_BLOCK_TOKENS < plan->table_stride);
    int32_t at = plan->n_sample++;
    int32_t start = plan->history_start[at];
    bool history = nosa_sampling_has_penalties(sample->sampling);
    plan->sample_row[at] = plan->n_rows - 1;
    plan->sampling[at] = *sample->sampling;
    plan->position[at] = sample->n_tokens;
    plan->n_top[at] = sample->n_top;
    plan->prompt_length[at] = history ? sample->prompt_length : 0;
    plan->history_start[at + 1] = start + (history ? sample->n_tokens : 0);
    plan->keep[at] = sample->keep;
    if (!history)
        return;
    memcpy(plan->history_tokens + start, sample->tokens,
           sizeof *sample->tokens * (size_t)sample->n_tokens);
    plan->used_bytes += sizeof *sample->tokens * (size_t)sample->n_tokens;
}
