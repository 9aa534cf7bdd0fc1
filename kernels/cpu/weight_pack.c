/*
 * Packing of weights into the CPU's panels (weight.h).
 *
 * One item of work is one panel. Within it, blocks of 16 units (a unit is one float32 or binary16
 * value, or a pair of bfloat16) are taken from each row in turn: a cache line is read whole, and
 * the lines of the panel that it is spread over stay in the first cache until all columns are done.
 */
#include <string.h>

#include "cpu/cpu_internal.h"

#define UNITS_PER_BLOCK 16

struct pack_job {
    struct nosa_weight *weight;
    enum nosa_weight_placement placement;
    int32_t first;
    int32_t rows;
    int64_t stride;
    int64_t k_first;
    enum nosa_dtype type;
    const void *source;
    int32_t first_panel;
};

static const char *source_row(const struct pack_job *job, int32_t row)
{
    int64_t element = (int64_t)row * job->stride + job->k_first;
    return (const char *)job->source + element * nosa_dtype_bytes(job->type);
}

/* Column that a row of the source becomes. */
static int32_t column_of(const struct pack_job *job, int32_t row)
{
    int32_t i = job->first + row;
    if (job->placement == NOSA_PLACE_ROWS)
        return i;
    return i / 16 * NOSA_PANEL_COLUMNS + i % 16 + (job->placement == NOSA_PLACE_UP ? 16 : 0);
}

/* Units `from` .. `from + count - 1` of a row into column `column` of a panel whose unit 0 is at
 * `panel`; the last bfloat16 pair of an odd k gets a zero. */
static void pack_units(const struct pack_job *job, const char *row, int32_t from, int32_t count,
                       char *panel, int32_t column)
{
    enum nosa_weight_format format = job->weight->format;
    int32_t k = job->weight->k;
    if (format == NOSA_WEIGHT_F32) {
        float *to = (float *)(void *)panel + column;
        for (int32_t u = from; u < from + count; u++)
            to[(size_t)u * NOSA_PANEL_COLUMNS] = nosa_dtype_load(job->type, row, u);
        return;
    }
    uint16_t *to = (uint16_t *)(void *)panel;
    if (format == NOSA_WEIGHT_F16) {
        for (int32_t u = from; u < from + count; u++)
            to[(size_t)u * NOSA_PANEL_COLUMNS + (size_t)column] =
                job->type == NOSA_DTYPE_F16 ? ((const uint16_t *)(const void *)row)[u]
                                            : nosa_f32_to_f16(nosa_dtype_load(job->type, row, u));
        return;
    }
    for (int32_t u = from; u < from + count; u++) {
        uint16_t *pair = to + ((size_t)u * NOSA_PANEL_COLUMNS + (size_t)column) * 2;
        pair[0] = nosa_f32_to_bf16(nosa_dtype_load(job->type, row, 2 * u));
        pair[1] = 2 * u + 1 < k ? nosa_f32_to_bf16(nosa_dtype_load(job->type, row, 2 * u + 1)) : 0;
    }
}

/* pack_units for a whole block of 4-byte units that need no conversion. */
static void copy_block(const char *row, int32_t from, char *panel, int32_t column)
{
    uint32_t unit[UNITS_PER_BLOCK];
    memcpy(unit, row + (size_t)from * sizeof *unit, sizeof unit);
    uint32_t *to = (uint32_t *)(void *)panel + (size_t)from * NOSA_PANEL_COLUMNS + column;
    for (int u = 0; u < UNITS_PER_BLOCK; u++)
        to[(size_t)u * NOSA_PANEL_COLUMNS] = unit[u];
}

static void pack_panel(void *context, int32_t item, int32_t thread)
{
    const struct pack_job *job = context;
    const struct nosa_weight *weight = job->weight;
    (void)thread;
    int32_t panel = job->first_panel + item;
    bool pairs = weight->format == NOSA_WEIGHT_BF16;
    int32_t units = pairs ? (weight->k + 1) / 2 : weight->k;
    int32_t whole_units = pairs ? weight->k / 2 : weight->k;
    bool plain = (weight->format == NOSA_WEIGHT_F32 && job->type == NOSA_DTYPE_F32) ||
                 (pairs && job->type == NOSA_DTYPE_BF16);
    size_t panel_bytes = nosa_weight_packed_bytes(weight->format, NOSA_PANEL_COLUMNS, weight->k);
    char *to = (char *)weight->data + (size_t)panel * panel_bytes;
    /* Source rows whose columns lie in this panel: adjacent, since column_of ascends. */
    int32_t per_panel = job->placement == NOSA_PLACE_ROWS ? NOSA_PANEL_COLUMNS : 16;
    int64_t begin = (int64_t)panel * per_panel - job->first;
    int32_t row_begin = begin > 0 ? (int32_t)begin : 0;
    int32_t row_end = begin + per_panel < job->rows ? (int32_t)(begin + per_panel) : job->rows;
    for (int32_t from = 0; from < units; from += UNITS_PER_BLOCK) {
        int32_t count = units - from < UNITS_PER_BLOCK ? units - from : UNITS_PER_BLOCK;
        for (int32_t row = row_begin; row < row_end; row++) {
            int32_t column = column_of(job, row) % NOSA_PANEL_COLUMNS;
            if (plain && from + UNITS_PER_BLOCK <= whole_units)
                copy_block(source_row(job, row), from, to, column);
            else
                pack_units(job, source_row(job, row), from, count, to, column);
        }
    }
}

enum nosa_status nosa_cpu_weight_pack(struct nosa_device *device, struct nosa_weight *weight,
                                      enum nosa_weight_placement placement, int32_t first,
                                      int32_t rows, int64_t stride, int64_t k_first,
                                      enum nosa_dtype type, const void *source,
                                      struct nosa_error *error)
{
    struct pack_job job = {
        .weight = weight,
        .placement = placement,
        .first = first,
        .rows = rows,
        .stride = stride,
        .k_first = k_first,
        .type = type,
        .source = source,
    };
    if (first < 0 || rows < 0 || k_first < 0 || stride < k_first + weight->k ||
        weight->bytes < nosa_weight_packed_bytes(weight->format, weight->n, weight->k))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "rows %d of %d inputs from input %lld do not fit a source of stride "
                              "%lld",
                              rows, weight->k, (long long)k_first, (long long)stride);
    if (rows == 0)
        return NOSA_OK;
    int64_t last = (int64_t)first + rows - 1;
    int64_t last_column = placement == NOSA_PLACE_ROWS ? last : last / 16 * NOSA_PANEL_COLUMNS;
    if (last_column >= weight->n ||
        (placement != NOSA_PLACE_ROWS && last / 16 * 32 + 32 > weight->n))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "rows %d to %lld do not fit a weight of %d outputs", first,
                              (long long)last, weight->n);
    job.first_panel = column_of(&job, 0) / NOSA_PANEL_COLUMNS;
    int32_t last_panel = column_of(&job, rows - 1) / NOSA_PANEL_COLUMNS;
    struct nosa_cpu_device *cpu = (struct nosa_cpu_device *)(void *)device;
    nosa_cpu_pool_run(cpu->pool, last_panel - job.first_panel + 1, pack_panel, &job);
    return NOSA_OK;
}
