/*
 * Matrix products with packed weights, from one row to thousands.
 *
 *   y[i][n] = sum over k ascending of x[i][k] w[n][k], one chain of fused multiply-adds from zero;
 *   out = y + bias | out + (y + bias) | silu(y[gate]) * y[up]
 *
 *   x [n_rows][k] float32, w [n][k] float32, bfloat16 or binary16 in panels of 32 columns
 *   (weight.h), out [n_rows][n_out] float32.
 *
 * Bytes and operations: the weights are read once per row block, 2 n k operations are done per row.
 * Few rows are bound by memory, from about a dozen rows on by the two multiply-add units: widening
 * 16-bit weights to float32 and multiplying there is exact and measures twice as fast as the
 * processor's bfloat16 dot product.
 *
 * Shape of the work. The inner kernel multiplies `rows` rows of x (1 .. TILE_ROWS, a kernel each)
 * with 16 or 32 columns of one panel, all sums in registers. Rows of one tile: the kernel widens
 * weights in registers as they stream by; the items that threads take are runs of panels. More
 * rows: an item is one panel for one block of rows; its first tile leaves the widened weights in
 * the thread's scratch, at most BLOCK_K inputs at a time, and the other tiles go over them while
 * they are in the near caches, with the block's rows of x in the second level. The sums rest in
 * memory between blocks of k, which changes no bit.
 *
 * Tolerance against a sum in double: k * 2^-24 * sum |x w|, the bound of a chain.
 */
#include "cpu/cpu_internal.h"
#include "cpu/vec.h"

#if defined(NOSA_VEC_AVX512)
#define TILE_ROWS 14 /* 28 sums, 2 of weights and 1 or 2 of x in 32 registers */
#define TILE_VECS 2  /* vectors of 16 columns */
#elif defined(NOSA_VEC_AVX2)
#define TILE_ROWS 6 /* 12 sums, 2 of weights and 1 or 2 of x in 16 registers */
#define TILE_VECS 1
#else
#define TILE_ROWS 4
#define TILE_VECS 1
#endif

#define BLOCK_K     768  /* inputs of a panel that are widened at a time */
#define BLOCK_TILES 12   /* tiles of a row block, at most */
#define PREFETCH    8192 /* bytes that a stream of weights is fetched ahead */

/* What one call of an inner kernel works on. */
struct tile {
    const float *x; /* first row, first input */
    int64_t x_stride;
    const void *w;      /* first column of the kernel, first input */
    int32_t k;          /* inputs */
    bool resume;        /* sums go on from acc, else from zero */
    float *acc;         /* [rows][NOSA_PANEL_COLUMNS], first column of the kernel */
    float *wide;        /* NULL, or where the widened weights are left [k][NOSA_PANEL_COLUMNS] */
    const char *ahead;  /* memory that will be needed after this tile ... */
    int32_t ahead_step; /* ... and how many bytes of it to fetch per input */
};

typedef void (*tile_kernel)(const struct tile *tile);

/* ---- inner kernels ---- */

NOSA_VEC_INLINE void load_sums(const struct tile *tile, int rows, nosa_vec sum[][TILE_VECS])
{
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int v = 0; v < TILE_VECS; v++)
            sum[i][v] = tile->resume ? nosa_vec_load(tile->acc + i * NOSA_PANEL_COLUMNS + 16 * v)
                                     : nosa_vec_zero();
}

NOSA_VEC_INLINE void store_sums(const struct tile *tile, int rows, nosa_vec sum[][TILE_VECS])
{
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int v = 0; v < TILE_VECS; v++)
            nosa_vec_store(tile->acc + i * NOSA_PANEL_COLUMNS + 16 * v, sum[i][v]);
}

/* Two pointers into the rows of x, to the same input of row 0 and of row 7: with few multiples of
 * the stride as offsets they reach all rows, so that addresses stay in registers. */
struct cursor {
    const float *low, *high;
    int64_t stride;
};

#define CURSOR_ROWS 7

NOSA_VEC_INLINE struct cursor cursor_at(const struct tile *tile)
{
    return (struct cursor){tile->x, tile->x + CURSOR_ROWS * tile->x_stride, tile->x_stride};
}

/* sum[i] += x[i] * w for every row, and on to the next input. */
NOSA_VEC_INLINE void multiply(int rows, struct cursor *x, const nosa_vec w[TILE_VECS],
                              nosa_vec sum[][TILE_VECS])
{
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
        const float *row =
            i < CURSOR_ROWS ? x->low + i * x->stride : x->high + (i - CURSOR_ROWS) * x->stride;
        nosa_vec a = nosa_vec_set1(*row);
#pragma GCC unroll 2
        for (int v = 0; v < TILE_VECS; v++)
            sum[i][v] = nosa_vec_fma(a, w[v], sum[i][v]);
    }
    x->low++;
    x->high++;
    __asm__("" : "+r"(x->low), "+r"(x->high)); /* keeps the compiler from a pointer per row */
}

/* Over float32 panels, packed or widened. */
NOSA_VEC_INLINE void run_f32(const struct tile *tile, int rows)
{
    nosa_vec sum[TILE_ROWS][TILE_VECS];
    load_sums(tile, rows, sum);
    struct cursor x = cursor_at(tile);
    const float *w = tile->w;
    const char *ahead = tile->ahead;
    int64_t step = tile->ahead_step;
    for (int64_t j = 0; j < tile->k; j++) {
        nosa_vec column[TILE_VECS];
#pragma GCC unroll 2
        for (int v = 0; v < TILE_VECS; v++)
            column[v] = nosa_vec_load(w + 16 * v);
        __builtin_prefetch(ahead, 0, 2);
        __builtin_prefetch(ahead + step / 2, 0, 2);
        multiply(rows, &x, column, sum);
        w += NOSA_PANEL_COLUMNS;
        ahead += step;
    }
    store_sums(tile, rows, sum);
}

/* Over bfloat16 panels: inputs come in pairs, the first in the low halves. */
NOSA_VEC_INLINE void run_bf16(const struct tile *tile, int rows, bool save)
{
    nosa_vec sum[TILE_ROWS][TILE_VECS];
    load_sums(tile, rows, sum);
    struct cursor x = cursor_at(tile);
    const uint16_t *w = tile->w;
    float *wide = tile->wide;
    for (int32_t left = tile->k; left > 0; left -= 2) {
        __builtin_prefetch((const char *)w + PREFETCH, 0, 2);
        __builtin_prefetch((const char *)w + PREFETCH + 64, 0, 2);
        nosa_vec even[TILE_VECS], odd[TILE_VECS];
#pragma GCC unroll 2
        for (int v = 0; v < TILE_VECS; v++) {
            nosa_vec_load_bf16_pairs(w + 32 * v, &even[v], &odd[v]);
            if (save) { /* there is room for the second of an odd last pair */
                nosa_vec_store(wide + 16 * v, even[v]);
                nosa_vec_store(wide + NOSA_PANEL_COLUMNS + 16 * v, odd[v]);
            }
        }
        multiply(rows, &x, even, sum);
        if (left == 1)
            break;
        multiply(rows, &x, odd, sum);
        w += 2 * NOSA_PANEL_COLUMNS;
        wide += save ? 2 * NOSA_PANEL_COLUMNS : 0;
    }
    store_sums(tile, rows, sum);
}

/* Over binary16 panels. */
NOSA_VEC_INLINE void run_f16(const struct tile *tile, int rows, bool save)
{
    nosa_vec sum[TILE_ROWS][TILE_VECS];
    load_sums(tile, rows, sum);
    struct cursor x = cursor_at(tile);
    const uint16_t *w = tile->w;
    float *wide = tile->wide;
    for (int32_t left = tile->k; left > 0; left--) {
        __builtin_prefetch((const char *)w + PREFETCH, 0, 2);
        nosa_vec column[TILE_VECS];
#pragma GCC unroll 2
        for (int v = 0; v < TILE_VECS; v++) {
            column[v] = nosa_vec_load_f16(w + 16 * v);
            if (save)
                nosa_vec_store(wide + 16 * v, column[v]);
        }
        multiply(rows, &x, column, sum);
        w += NOSA_PANEL_COLUMNS;
        wide += save ? NOSA_PANEL_COLUMNS : 0;
    }
    store_sums(tile, rows, sum);
}

/* Kernels of every number of rows, for float32, for 16-bit weights, and for 16-bit weights that are
 * left widened as well. */
#define DEFINE_KERNELS(rows)                                                                       \
    static void f32_##rows(const struct tile *tile)                                                \
    {                                                                                              \
        run_f32(tile, rows);                                                                       \
    }                                                                                              \
    static void bf16_##rows(const struct tile *tile)                                               \
    {                                                                                              \
        run_bf16(tile, rows, false);                                                               \
    }                                                                                              \
    static void bf16_save_##rows(const struct tile *tile)                                          \
    {                                                                                              \
        run_bf16(tile, rows, true);                                                                \
    }                                                                                              \
    static void f16_##rows(const struct tile *tile)                                                \
    {                                                                                              \
        run_f16(tile, rows, false);                                                                \
    }                                                                                              \
    static void f16_save_##rows(const struct tile *tile)                                           \
    {                                                                                              \
        run_f16(tile, rows, true);                                                                 \
    }

#if TILE_ROWS == 14
#define EACH_ROWS(f) f(1) f(2) f(3) f(4) f(5) f(6) f(7) f(8) f(9) f(10) f(11) f(12) f(13) f(14)
#elif TILE_ROWS == 6
#define EACH_ROWS(f) f(1) f(2) f(3) f(4) f(5) f(6)
#else
#define EACH_ROWS(f) f(1) f(2) f(3) f(4)
#endif

EACH_ROWS(DEFINE_KERNELS)

#define ENTRY_F32(rows)       [rows] = f32_##rows,
#define ENTRY_BF16(rows)      [rows] = bf16_##rows,
#define ENTRY_BF16_SAVE(rows) [rows] = bf16_save_##rows,
#define ENTRY_F16(rows)       [rows] = f16_##rows,
#define ENTRY_F16_SAVE(rows)  [rows] = f16_save_##rows,

/* By format, by whether the widened weights are left, by rows. */
static const tile_kernel kernels[3][2][TILE_ROWS + 1] = {
    [NOSA_WEIGHT_F32] = {{EACH_ROWS(ENTRY_F32)}},
    [NOSA_WEIGHT_BF16] = {{EACH_ROWS(ENTRY_BF16)}, {EACH_ROWS(ENTRY_BF16_SAVE)}},
    [NOSA_WEIGHT_F16] = {{EACH_ROWS(ENTRY_F16)}, {EACH_ROWS(ENTRY_F16_SAVE)}},
};

/* Runs the kernel over all columns of a panel. */
static void run_tile(enum nosa_weight_format format, int32_t rows, struct tile tile)
{
    int32_t unit_bytes = format == NOSA_WEIGHT_F16 ? 2 : 4; /* of one column and one k (or pair) */
    for (int32_t column = 0; column < NOSA_PANEL_COLUMNS; column += 16 * TILE_VECS) {
        kernels[format][tile.wide != NULL][rows](&tile);
        tile.w = (const char *)tile.w + 16 * TILE_VECS * unit_bytes;
        tile.wide += tile.wide != NULL ? 16 * TILE_VECS : 0;
        tile.acc += 16 * TILE_VECS;
    }
}

/* ---- epilogue ---- */

/* Finishes the sums of `rows` rows from `row` on of one panel. */
static void finish(const struct nosa_matmul_params *params, int32_t panel, int32_t row,
                   int32_t rows, const float *acc)
{
    bool gated = params->epilogue == NOSA_MATMUL_SWIGLU;
    int32_t first = panel * (gated ? 16 : NOSA_PANEL_COLUMNS);
    float *out = params->out + row * params->out_stride + first;
    for (int32_t i = 0; i < rows; i++, acc += NOSA_PANEL_COLUMNS, out += params->out_stride) {
        if (gated) {
            nosa_vec gate = nosa_vec_silu(nosa_vec_load(acc));
            nosa_vec_store_first(out, nosa_vec_mul(gate, nosa_vec_load(acc + 16)),
                                 params->n_out - first);
            continue;
        }
        for (int32_t c = 0; c < NOSA_PANEL_COLUMNS && first + c < params->n_out; c += 16) {
            int32_t left = params->n_out - first - c;
            nosa_vec y = nosa_vec_load(acc + c);
            if (params->bias != NULL)
                y = nosa_vec_add(y, nosa_vec_load_first(params->bias + first + c, left));
            if (params->epilogue == NOSA_MATMUL_ADD)
                y = nosa_vec_add(nosa_vec_load_first(out + c, left), y);
            nosa_vec_store_first(out + c, y, left);
        }
    }
}

/* ---- items of work ---- */

struct job {
    const struct nosa_matmul_params *params;
    struct nosa_cpu_device *device;
    int32_t panels; /* that are computed */
    size_t panel_bytes;
    int32_t tiles;   /* of all rows, as even as can be: tile t is rows t R / tiles .. */
    int32_t blocks;  /* of tiles, likewise */
    int32_t block_k; /* inputs that are widened at a time: even, at most BLOCK_K */
    int32_t threads;
};

/* First of part `i` when `total` is cut into `parts`. */
static int32_t cut(int32_t total, int32_t parts, int32_t i)
{
    return (int32_t)((int64_t)total * i / parts);
}

/* A run of panels for one tile of rows, weights widened in registers as they stream by. */
static void direct_item(void *context, int32_t item, int32_t thread)
{
    const struct job *job = context;
    const struct nosa_matmul_params *params = job->params;
    const struct nosa_weight *weight = params->weight;
    (void)thread;
    _Alignas(64) float acc[TILE_ROWS * NOSA_PANEL_COLUMNS];
    int32_t panel = 0;
    for (int32_t i = 0; i < item; i++)
        panel += nosa_cpu_run_length(job->panels - panel, job->threads);
    int32_t end = panel + nosa_cpu_run_length(job->panels - panel, job->threads);
    for (; panel < end; panel++) {
        const char *data = (const char *)weight->data + (size_t)panel * job->panel_bytes;
        struct tile tile = {
            .x = params->x,
            .x_stride = params->x_stride,
            .w = data,
            .k = weight->k,
            .acc = acc,
            .ahead = data + PREFETCH,
            .ahead_step = (int32_t)sizeof(float) * NOSA_PANEL_COLUMNS,
        };
        run_tile(weight->format, params->n_rows, tile);
        finish(params, panel, 0, params->n_rows, acc);
    }
}

/* Fetches what finish() will write, so that it does not wait for memory. */
static void fetch_out(const struct nosa_matmul_params *params, int32_t panel, int32_t row,
                      int32_t rows)
{
    int32_t columns = params->epilogue == NOSA_MATMUL_SWIGLU ? 16 : NOSA_PANEL_COLUMNS;
    const float *out = params->out + row * params->out_stride + (int64_t)panel * columns;
    for (int32_t i = 0; i < rows; i++, out += params->out_stride) {
        __builtin_prefetch(out, 1, 2);
        __builtin_prefetch(out + columns - 1, 1, 2);
    }
}

/* One panel for one block of rows. */
static void block_item(void *context, int32_t item, int32_t thread)
{
    const struct job *job = context;
    const struct nosa_matmul_params *params = job->params;
    const struct nosa_weight *weight = params->weight;
    int32_t panel = item % job->panels;
    int32_t block = item / job->panels;
    const char *data = (const char *)weight->data + (size_t)panel * job->panel_bytes;
    /* What this thread probably works on next, fetched bit by bit. */
    const char *ahead = data + (size_t)job->threads * job->panel_bytes;
    float *wide = nosa_cpu_thread_scratch(job->device, thread);
    float *acc = wide + (size_t)BLOCK_K * NOSA_PANEL_COLUMNS;
    int32_t tile_first = cut(job->tiles, job->blocks, block);
    int32_t tile_end = cut(job->tiles, job->blocks, block + 1);
    int32_t row_first = cut(params->n_rows, job->tiles, tile_first);
    int32_t k_bytes =
        weight->format == NOSA_WEIGHT_F32 ? 4 * NOSA_PANEL_COLUMNS : 2 * NOSA_PANEL_COLUMNS;
    for (int32_t k = 0; k < weight->k; k += job->block_k) {
        struct tile tile = {
            .x_stride = params->x_stride,
            .w = data + (size_t)k * (size_t)k_bytes,
            .k = weight->k - k < job->block_k ? weight->k - k : job->block_k,
            .resume = k > 0,
            .wide = weight->format == NOSA_WEIGHT_F32 ? NULL : wide,
            .ahead_step = k_bytes / (tile_end - tile_first),
        };
        enum nosa_weight_format format = weight->format;
        for (int32_t t = tile_first; t < tile_end; t++) {
            int32_t row = cut(params->n_rows, job->tiles, t);
            int32_t rows = cut(params->n_rows, job->tiles, t + 1) - row;
            bool last = k + tile.k == weight->k;
            tile.x = params->x + row * params->x_stride + k;
            tile.acc = acc + (size_t)(row - row_first) * NOSA_PANEL_COLUMNS;
            tile.ahead = ahead;
            ahead += (size_t)tile.ahead_step * (size_t)tile.k;
            if (last)
                fetch_out(params, panel, row, rows);
            run_tile(format, rows, tile);
            if (last)
                finish(params, panel, row, rows, tile.acc);
            if (tile.wide != NULL) { /* the tiles after the first use what it has left */
                format = NOSA_WEIGHT_F32;
                tile.w = wide;
                tile.wide = NULL;
            }
        }
    }
}

size_t NOSA_CPU_NAME(nosa_cpu_matmul_scratch_bytes)(const struct nosa_step_limits *limits)
{
    (void)limits;
    return sizeof(float) * NOSA_PANEL_COLUMNS * (BLOCK_K + TILE_ROWS * BLOCK_TILES);
}

static bool params_are_valid(const struct nosa_matmul_params *params)
{
    const struct nosa_weight *weight = params->weight;
    bool gated = params->epilogue == NOSA_MATMUL_SWIGLU;
    int32_t columns = gated ? weight->n / 2 : weight->n;
    return params->n_rows >= 0 && params->x_stride >= weight->k &&
           params->out_stride >= params->n_out && params->n_out >= 0 && params->n_out <= columns &&
           !(gated && params->bias != NULL);
}

/* Tells waiting threads of the product that comes next. */
static void want_next(const struct job *job)
{
    const struct nosa_weight *next = job->params->next_weight;
    if (next != NULL)
        nosa_cpu_pool_want(job->device->pool, next->data,
                           (next->n + NOSA_PANEL_COLUMNS - 1) / NOSA_PANEL_COLUMNS,
                           nosa_weight_packed_bytes(next->format, NOSA_PANEL_COLUMNS, next->k));
}

enum nosa_status NOSA_CPU_NAME(nosa_cpu_matmul)(struct nosa_stream *stream,
                                                const struct nosa_matmul_params *params)
{
    const struct nosa_weight *weight = params->weight;
    struct nosa_cpu_device *device = stream->device;
    if (!params_are_valid(params))
        return NOSA_INVALID_ARGUMENT;
    if (params->n_rows == 0 || params->n_out == 0)
        return NOSA_OK;
    int32_t per_panel = params->epilogue == NOSA_MATMUL_SWIGLU ? 16 : NOSA_PANEL_COLUMNS;
    struct job job = {
        .params = params,
        .device = device,
        .panels = (params->n_out + per_panel - 1) / per_panel,
        .panel_bytes = nosa_weight_packed_bytes(weight->format, NOSA_PANEL_COLUMNS, weight->k),
        .tiles = (params->n_rows + TILE_ROWS - 1) / TILE_ROWS,
        .threads = nosa_cpu_pool_threads(device->pool),
    };
    if (job.tiles == 1) {
        int32_t items = 0;
        for (int32_t panel = 0; panel < job.panels; items++)
            panel += nosa_cpu_run_length(job.panels - panel, job.threads);
        want_next(&job);
        nosa_cpu_pool_run(device->pool, items, direct_item, &job);
        return NOSA_OK;
    }
    if (device->scratch.thread_bytes < NOSA_CPU_NAME(nosa_cpu_matmul_scratch_bytes)(NULL))
        return NOSA_INVALID_ARGUMENT;
    int32_t k_blocks = (weight->k + BLOCK_K - 1) / BLOCK_K;
    job.block_k = ((weight->k + k_blocks - 1) / k_blocks + 1) / 2 * 2;
    job.blocks = (job.tiles + BLOCK_TILES - 1) / BLOCK_TILES;
    NOSA_ASSERT((int64_t)job.blocks * job.panels <= INT32_MAX);
    nosa_cpu_pool_run(device->pool, job.blocks * job.panels, block_item, &job);
    return NOSA_OK;
}
