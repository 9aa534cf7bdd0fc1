/* KV of random values, so that ops can be timed at a long context without computing it. */
#include <string.h>

#include "bench.h"
#include "kv_layout.h"

#define TABLE_VALUES 65536 /* a power of two */

/* Random values that records are cut from; twice as long so that every cut is whole. */
struct table {
    uint16_t narrow[2 * TABLE_VALUES]; /* bf16, variance 1 */
    float wide[2 * TABLE_VALUES];      /* the same values */
    uint64_t state;
};

static uint32_t next(struct table *table)
{
    table->state = table->state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(table->state >> 33);
}

static void make_table(struct table *table)
{
    table->state = 1;
    for (int32_t i = 0; i < 2 * TABLE_VALUES; i++) {
        float value = ((float)(next(table) % 65536) / 32768.0f - 1.0f) * 1.7320508f;
        table->narrow[i] = nosa_f32_to_bf16(value);
        table->wide[i] = value;
    }
}

static void fill_narrow(struct table *table, void *target, size_t count)
{
    while (count > 0) {
        size_t part = count < TABLE_VALUES ? count : TABLE_VALUES;
        memcpy(target, table->narrow + next(table) % TABLE_VALUES, part * sizeof(uint16_t));
        target = (uint16_t *)target + part;
        count -= part;
    }
}

static void fill_wide(struct table *table, float *target, size_t count)
{
    while (count > 0) {
        size_t part = count < TABLE_VALUES ? count : TABLE_VALUES;
        memcpy(target, table->wide + next(table) % TABLE_VALUES, part * sizeof(float));
        target += part;
        count -= part;
    }
}

void bench_fill_kv(const struct nosa_kv_view *view)
{
    static struct table table;
    const struct nosa_kv_geometry *geometry = &view->geometry;
    NOSA_ASSERT(geometry->type == NOSA_DTYPE_BF16);
    make_table(&table);
    size_t n_records =
        (size_t)geometry->n_layers * (size_t)geometry->n_kv_heads * (size_t)view->n_blocks;
    size_t windows = (size_t)nosa_kv_windows_per_block(geometry);
    size_t compressed = windows * (size_t)geometry->head_dim;
    for (size_t i = 0; i < n_records; i++)
        fill_narrow(&table, view->records + i * nosa_kv_record_bytes(geometry),
                    nosa_kv_record_bytes(geometry) / sizeof(uint16_t));
    fill_wide(&table, view->window_bias, n_records * windows);
    fill_wide(&table, view->token_bias, n_records * NOSA_BLOCK_TOKENS);
    for (int32_t i = 0; i < 2 * TABLE_VALUES; i++) /* means of keys are smaller than keys */
        table.narrow[i] = nosa_f32_to_bf16(table.wide[i] / 4);
    fill_narrow(&table, view->compressed_keys, n_records * compressed);
}

void bench_scatter_blocks(int32_t *blocks, int32_t n)
{
    uint64_t state = 7;
    for (int32_t i = 0; i < n; i++)
        blocks[i] = i;
    for (int32_t i = n - 1; i > 0; i--) { /* Fisher and Yates */
        state = state * 6364136223846793005u + 1442695040888963407u;
        int32_t j = (int32_t)((state >> 33) % (uint64_t)(i + 1));
        int32_t kept = blocks[i];
        blocks[i] = blocks[j];
        blocks[j] = kept;
    }
}
