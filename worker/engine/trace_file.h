/*
 * Selection traces on disk: which blocks each layer and KV head of a model chose, row by row, with
 * the blocks' E. `nosa-run --trace-selection` writes one, `nosa-bench policy` replays it.
 *
 * All integers and floats are little-endian. A file is a header and, after it, `rows` records, one
 * for each traced row, positions ascending.
 *
 *   header, 96 bytes
 *   offset size
 *        0    8  magic "NOSATRCE"
 *        8    4  version, 1
 *       12    4  attention mode: 1 infllmv2, 2 nosa
 *       16    4  flags: bit 0, the model has an eviction head (without it every E is -inf)
 *       20    4  layers L
 *       24    4  KV heads H
 *       28    4  tokens of a block, 64
 *       32    4  topk: blocks that a row selects, forced ones included
 *       36    4  init_blocks: first blocks that are always selected
 *       40    4  window_blocks: blocks before a row's own that are always selected, with its own
 *       44    4  first cut: blocks chosen by force or by the query before E has its say
 *       48    4  kernel_size of the selection's windows, in tokens
 *       52    4  kernel_stride, in tokens
 *       56    4  prompt tokens
 *       60    4  cached prompt tokens: rows before this position were not computed
 *       64    4  first step: every row from this position on is in the file; before it the last row
 *                of each block, and the row just before it
 *       68    4  0
 *       72    8  rows; 0 in a file that was not closed
 *       80    8  0
 *       88    8  XXH3-64 of bytes 0 .. 87
 *
 *   record; W = (n_blocks + 31) / 32
 *        0    4  position t of the row
 *        4    4  n_blocks: blocks visible to it, t / 64 + 1
 *        8    4  e_first: E of blocks e_first .. n_blocks - 1 follows; those before are as in the
 *                records before, since a block's E is final kernel_stride tokens after its end
 *       12    4  bytes of this record, 24 + 4 L H (W + n_blocks - e_first)
 *       16       [L][H][W] uint32: bit b % 32 of word b / 32 is set when block b was selected
 *                [L][H][n_blocks - e_first] float32: E of the blocks, -inf for none
 *      -8    8  XXH3-64 of the record before this field
 *
 * A writer and a reader belong to one thread each.
 */
#ifndef NOSA_ENGINE_TRACE_FILE_H
#define NOSA_ENGINE_TRACE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/file.h"
#include "base/status.h"
#include "engine/trace.h"
#include "model/config.h"

#define NOSA_TRACE_VERSION      1
#define NOSA_TRACE_HEADER_BYTES 96

/* What the header says. */
struct nosa_trace_info {
    enum nosa_attention_mode attention; /* INFLLMV2 or NOSA */
    bool has_eviction_head;
    int32_t n_layers;
    int32_t n_kv_heads;
    int32_t topk;
    int32_t init_blocks;
    int32_t window_blocks;
    int32_t first_cut;
    int32_t kernel_size;
    int32_t kernel_stride;
    int32_t prompt_tokens;
    int32_t cached_tokens;
    int32_t step_first;
};

/* The part of it that a model decides. */
struct nosa_trace_info nosa_trace_info_of(const struct nosa_model_config *config,
                                          enum nosa_attention_mode attention);

/* ---- writing ------------------------------------------------------------------------------- */

struct nosa_trace_writer {
    FILE *file;       /* owned while open */
    const char *path; /* borrowed until close, for errors */
    struct nosa_trace_info info;
    uint64_t rows;
    int32_t e_known; /* blocks whose final E is in the file */
    char *record;    /* owned */
    size_t record_capacity;
    enum nosa_status status; /* the first failure of a row, told by close */
    int failure;             /* errno with it */
};

/* Creates or truncates `path`. INVALID_ARGUMENT when it cannot be created or the mode is `full`,
 * which selects nothing. */
enum nosa_status nosa_trace_writer_open(struct nosa_trace_writer *writer, const char *path,
                                        const struct nosa_trace_info *info,
                                        struct nosa_error *error);
/* A trace sink's row function: `context` is the writer. A failure is kept for close. */
void nosa_trace_writer_row(void *context, const struct nosa_trace_row *row);
/* Completes the header, unless a row failed, and closes; the writer is closed whatever comes back.
 * One that is all zero or closed is allowed. */
enum nosa_status nosa_trace_writer_close(struct nosa_trace_writer *writer,
                                         struct nosa_error *error);

/* ---- reading ------------------------------------------------------------------------------- */

/* A record where it lies in the file. */
struct nosa_trace_record {
    int32_t position;
    int32_t n_blocks;
    int32_t e_first;
    int32_t words;            /* W */
    const uint32_t *selected; /* [L][H][W] */
    const float *e;           /* [L][H][n_blocks - e_first] */
};

struct nosa_trace_reader {
    struct nosa_file_map map;
    struct nosa_trace_info info;
    uint64_t rows;
    int32_t n_blocks_max; /* of the last row */
    uint64_t steps;       /* rows from step_first on */
};

/* Maps the file and checks every byte of it: CORRUPT names the path and what contradicts itself
 * (not a trace, another version, cut off, a checksum, positions that do not ascend, a row without
 * its forced blocks or with another number of them than topk). On failure nothing is held. */
enum nosa_status nosa_trace_reader_open(struct nosa_trace_reader *reader, const char *path,
                                        struct nosa_error *error);
void nosa_trace_reader_close(struct nosa_trace_reader *reader);

/* Steps through the records: *offset starts as 0. False after the last. */
bool nosa_trace_reader_next(const struct nosa_trace_reader *reader, size_t *offset,
                            struct nosa_trace_record *out);

static inline bool nosa_trace_selected(const struct nosa_trace_record *record, int32_t pool,
                                       int32_t block)
{
    const uint32_t *words = record->selected + (size_t)pool * (size_t)record->words;
    return words[block / 32] >> block % 32 & 1;
}

#endif
