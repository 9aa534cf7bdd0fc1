/*
 * Weights of matrix products, packed once at load for the device that will read them.
 *
 * A weight is a matrix [n, k]: n outputs, k inputs. On the CPU it is stored as panels of
 * NOSA_PANEL_COLUMNS outputs, each panel contiguous and k-major, so that one row of activations
 * streams through it and a thousand rows reuse it from cache, in the same order over k:
 *
 *   NOSA_WEIGHT_F32, NOSA_WEIGHT_F16   [ceil(n / 32)][k][32]
 *   NOSA_WEIGHT_BF16                   [ceil(n / 32)][ceil(k / 2)][32][2]
 *
 * Missing columns and an odd last k are zero. A quantised format is a new enum value with its own
 * packing and product; nothing outside the backend depends on the layout.
 *
 * A gated pair (gate, up) shares one weight: each panel holds 16 columns of gate, then the same 16
 * of up, so that a product's epilogue finds both in one panel (NOSA_MATMUL_SWIGLU).
 */
#ifndef NOSA_KERNELS_WEIGHT_H
#define NOSA_KERNELS_WEIGHT_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "dtype.h"

#define NOSA_PANEL_COLUMNS 32

enum nosa_weight_format {
    NOSA_WEIGHT_F32 = 0,
    NOSA_WEIGHT_BF16 = 1,
    NOSA_WEIGHT_F16 = 2,
};

struct nosa_weight {
    enum nosa_weight_format format;
    int32_t n;    /* outputs, padding excluded; of a gated pair twice 16 * ceil(outputs / 16) */
    int32_t k;    /* inputs, padding excluded */
    void *data;   /* device memory in panel order, 64-byte aligned; not owned here */
    size_t bytes; /* of data */
};

/* Where row `row` of a source goes among the packed columns: i = first + row. */
enum nosa_weight_placement {
    NOSA_PLACE_ROWS, /* column i */
    NOSA_PLACE_GATE, /* column (i / 16) * 32 + i % 16 */
    NOSA_PLACE_UP,   /* column (i / 16) * 32 + 16 + i % 16 */
};

/* "f32", "bf16" or "f16". */
const char *nosa_weight_format_name(enum nosa_weight_format format);

/* Bytes of packed data for a weight [n, k]. */
size_t nosa_weight_packed_bytes(enum nosa_weight_format format, int32_t n, int32_t k);

#endif
