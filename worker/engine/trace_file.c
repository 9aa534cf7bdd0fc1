#include "engine/trace_file.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "traces are little-endian");

static const char magic[8] = {'N', 'O', 'S', 'A', 'T', 'R', 'C', 'E'};

struct file_header {
    char magic[8];
    uint32_t version;
    uint32_t attention;
    uint32_t flags;
    uint32_t n_layers;
    uint32_t n_kv_heads;
    uint32_t block_tokens;
    uint32_t topk;
    uint32_t init_blocks;
    uint32_t window_blocks;
    uint32_t first_cut;
    uint32_t kernel_size;
    uint32_t kernel_stride;
    uint32_t prompt_tokens;
    uint32_t cached_tokens;
    uint32_t step_first;
    uint32_t zero;
    uint64_t rows;
    uint64_t zero_too;
    uint64_t checksum;
};

struct record_header {
    uint32_t position;
    uint32_t n_blocks;
    uint32_t e_first;
    uint32_t bytes;
};

static_assert(sizeof(struct file_header) == NOSA_TRACE_HEADER_BYTES, "see the table");
static_assert(sizeof(struct record_header) == 16, "see the table");

#define FLAG_EVICTION_HEAD 1u
#define BLOCKS_MAX         (NOSA_MODEL_POSITIONS_MAX / NOSA_BLOCK_TOKENS)

static uint64_t header_checksum(const struct file_header *header)
{
    return nosa_hash64(header, offsetof(struct file_header, checksum), 0);
}

/* Blocks whose last window is complete at position t: their E is final. */
static int32_t final_blocks(int32_t position, int32_t kernel_stride)
{
    return position < kernel_stride ? 0 : (position + 1 - kernel_stride) / NOSA_BLOCK_TOKENS;
}

static uint64_t record_bytes(const struct nosa_trace_info *info, uint64_t n_blocks,
                             uint64_t e_first)
{
    uint64_t pools = (uint64_t)info->n_layers * (uint64_t)info->n_kv_heads;
    return sizeof(struct record_header) + sizeof(uint64_t) +
           4 * pools * ((n_blocks + 31) / 32 + n_blocks - e_first);
}

struct nosa_trace_info nosa_trace_info_of(const struct nosa_model_config *config,
                                          enum nosa_attention_mode attention)
{
    const struct nosa_sparse_config *sparse = &config->sparse;
    int32_t window_blocks = (int32_t)(sparse->window_size / sparse->block_size);
    return (struct nosa_trace_info){
        .attention = attention,
        .has_eviction_head = config->has_eviction_head,
        .n_layers = (int32_t)config->n_layers,
        .n_kv_heads = (int32_t)config->n_kv_heads,
        .topk = (int32_t)sparse->topk,
        .init_blocks = (int32_t)sparse->init_blocks,
        .window_blocks = window_blocks,
        .first_cut = (int32_t)sparse->init_blocks + window_blocks + (int32_t)sparse->select_blocks,
        .kernel_size = (int32_t)sparse->kernel_size,
        .kernel_stride = (int32_t)sparse->kernel_stride,
    };
}

/* ---- writing -------------------------------------------------------------------------------- */

static bool write_header(struct nosa_trace_writer *writer, uint64_t rows)
{
    const struct nosa_trace_info *info = &writer->info;
    struct file_header header = {
        .version = NOSA_TRACE_VERSION,
        .attention = (uint32_t)info->attention,
        .flags = info->has_eviction_head ? FLAG_EVICTION_HEAD : 0,
        .n_layers = (uint32_t)info->n_layers,
        .n_kv_heads = (uint32_t)info->n_kv_heads,
        .block_tokens = NOSA_BLOCK_TOKENS,
        .topk = (uint32_t)info->topk,
        .init_blocks = (uint32_t)info->init_blocks,
        .window_blocks = (uint32_t)info->window_blocks,
        .first_cut = (uint32_t)info->first_cut,
        .kernel_size = (uint32_t)info->kernel_size,
        .kernel_stride = (uint32_t)info->kernel_stride,
        .prompt_tokens = (uint32_t)info->prompt_tokens,
        .cached_tokens = (uint32_t)info->cached_tokens,
        .step_first = (uint32_t)info->step_first,
        .rows = rows,
    };
    memcpy(header.magic, magic, sizeof magic);
    header.checksum = header_checksum(&header);
    return fseek(writer->file, 0, SEEK_SET) == 0 &&
           fwrite(&header, sizeof header, 1, writer->file) == 1;
}

enum nosa_status nosa_trace_writer_open(struct nosa_trace_writer *writer, const char *path,
                                        const struct nosa_trace_info *info,
                                        struct nosa_error *error)
{
    *writer = (struct nosa_trace_writer){.path = path, .info = *info};
    if (info->attention == NOSA_ATTENTION_FULL)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "%s: full attention selects no blocks that could be traced", path);
    writer->file = fopen(path, "wbe");
    if (!writer->file)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "%s: %s", path, strerror(errno));
    if (write_header(writer, 0))
        return NOSA_OK;
    enum nosa_status status =
        nosa_error_set(error, NOSA_IO_ERROR, "%s: cannot write: %s", path, strerror(errno));
    nosa_trace_writer_close(writer, NULL);
    return status;
}

static enum nosa_status reserve(struct nosa_trace_writer *writer, size_t bytes)
{
    if (bytes <= writer->record_capacity)
        return NOSA_OK;
    char *record = realloc(writer->record, bytes);
    if (!record)
        return NOSA_OUT_OF_MEMORY;
    writer->record = record;
    writer->record_capacity = bytes;
    return NOSA_OK;
}

static void fill_record(char *record, size_t bytes, int32_t e_first,
                        const struct nosa_trace_row *row)
{
    const struct record_header header = {(uint32_t)row->position, (uint32_t)row->n_blocks,
                                         (uint32_t)e_first, (uint32_t)bytes};
    memcpy(record, &header, sizeof header);
    int32_t pools = row->n_layers * row->n_kv_heads, words = (row->n_blocks + 31) / 32;
    uint32_t *bits = (uint32_t *)(void *)(record + sizeof header);
    memset(bits, 0, sizeof(uint32_t) * (size_t)pools * (size_t)words);
    for (int32_t pool = 0; pool < pools; pool++) {
        const int32_t *selected = row->selected + (int64_t)pool * row->topk;
        for (int32_t i = 0; i < row->selected_count[pool]; i++)
            bits[(int64_t)pool * words + selected[i] / 32] |= 1u << selected[i] % 32;
    }
    float *e = (float *)(void *)(bits + (int64_t)pools * words);
    size_t e_bytes = sizeof(float) * (size_t)(row->n_blocks - e_first);
    for (int32_t pool = 0; pool < pools; pool++)
        memcpy(e + (int64_t)pool * (row->n_blocks - e_first),
               row->e + pool * row->e_stride + e_first, e_bytes);
    uint64_t checksum = nosa_hash64(record, bytes - sizeof checksum, 0);
    memcpy(record + bytes - sizeof checksum, &checksum, sizeof checksum);
}

void nosa_trace_writer_row(void *context, const struct nosa_trace_row *row)
{
    struct nosa_trace_writer *writer = context;
    NOSA_ASSERT(row->n_layers == writer->info.n_layers &&
                row->n_kv_heads == writer->info.n_kv_heads);
    if (writer->status != NOSA_OK)
        return;
    int32_t e_first = writer->e_known;
    uint64_t bytes = record_bytes(&writer->info, (uint64_t)row->n_blocks, (uint64_t)e_first);
    writer->status = reserve(writer, bytes);
    if (writer->status != NOSA_OK)
        return;
    fill_record(writer->record, bytes, e_first, row);
    if (fwrite(writer->record, bytes, 1, writer->file) != 1) {
        writer->failure = errno;
        writer->status = NOSA_IO_ERROR;
        return;
    }
    writer->rows++;
    writer->e_known = final_blocks(row->position, writer->info.kernel_stride);
}

enum nosa_status nosa_trace_writer_close(struct nosa_trace_writer *writer, struct nosa_error *error)
{
    if (!writer->file)
        return NOSA_OK;
    enum nosa_status status = writer->status;
    int failure = writer->failure;
    if (status == NOSA_OK && !write_header(writer, writer->rows)) {
        status = NOSA_IO_ERROR;
        failure = errno;
    }
    if (fclose(writer->file) != 0 && status == NOSA_OK) {
        status = NOSA_IO_ERROR;
        failure = errno;
    }
    if (status == NOSA_IO_ERROR)
        nosa_error_set(error, status, "%s: cannot write: %s", writer->path, strerror(failure));
    else if (status != NOSA_OK)
        nosa_error_set(error, status, "%s: no memory for a record", writer->path);
    free(writer->record);
    *writer = (struct nosa_trace_writer){0};
    return status;
}

/* ---- reading -------------------------------------------------------------------------------- */

#define CORRUPT(...) nosa_error_set(error, NOSA_CORRUPT, __VA_ARGS__)

static enum nosa_status check_header(const struct file_header *header, const char *path,
                                     struct nosa_error *error)
{
    if (memcmp(header->magic, magic, sizeof magic) != 0)
        return CORRUPT("%s: not a selection trace", path);
    if (header->version != NOSA_TRACE_VERSION)
        return nosa_error_set(error, NOSA_UNSUPPORTED, "%s: version %u; this program reads %d",
                              path, header->version, NOSA_TRACE_VERSION);
    if (header->checksum != header_checksum(header))
        return CORRUPT("%s: the header's checksum does not fit", path);
    if (header->rows == 0)
        return CORRUPT("%s: was not closed, or traces no rows", path);
    const uint64_t first_cut = (uint64_t)header->init_blocks + header->window_blocks;
    bool valid = (header->attention == NOSA_ATTENTION_INFLLMV2 ||
                  header->attention == NOSA_ATTENTION_NOSA) &&
                 header->flags <= FLAG_EVICTION_HEAD && header->n_layers >= 1 &&
                 header->n_layers <= NOSA_MODEL_LAYERS_MAX && header->n_kv_heads >= 1 &&
                 header->n_kv_heads <= NOSA_MODEL_HEADS_MAX &&
                 header->block_tokens == NOSA_BLOCK_TOKENS && header->topk <= BLOCKS_MAX &&
                 header->first_cut > first_cut && header->first_cut <= header->topk &&
                 header->kernel_stride >= 1 && header->kernel_stride <= NOSA_BLOCK_TOKENS &&
                 header->kernel_size == 2 * header->kernel_stride && header->prompt_tokens >= 1 &&
                 header->prompt_tokens <= NOSA_MODEL_POSITIONS_MAX &&
                 header->cached_tokens < header->prompt_tokens &&
                 header->step_first <= NOSA_MODEL_POSITIONS_MAX && header->zero == 0 &&
                 header->zero_too == 0;
    return valid ? NOSA_OK : CORRUPT("%s: the header's sizes contradict one another", path);
}

static struct nosa_trace_info read_info(const struct file_header *header)
{
    return (struct nosa_trace_info){
        .attention = (enum nosa_attention_mode)header->attention,
        .has_eviction_head = header->flags & FLAG_EVICTION_HEAD,
        .n_layers = (int32_t)header->n_layers,
        .n_kv_heads = (int32_t)header->n_kv_heads,
        .topk = (int32_t)header->topk,
        .init_blocks = (int32_t)header->init_blocks,
        .window_blocks = (int32_t)header->window_blocks,
        .first_cut = (int32_t)header->first_cut,
        .kernel_size = (int32_t)header->kernel_size,
        .kernel_stride = (int32_t)header->kernel_stride,
        .prompt_tokens = (int32_t)header->prompt_tokens,
        .cached_tokens = (int32_t)header->cached_tokens,
        .step_first = (int32_t)header->step_first,
    };
}

/* A pool's selection of one row: as many as it must have, the forced ones among them. */
static bool pool_is_valid(const struct nosa_trace_info *info,
                          const struct nosa_trace_record *record, int32_t pool)
{
    const uint32_t *words = record->selected + (size_t)pool * (size_t)record->words;
    int32_t count = 0;
    for (int32_t i = 0; i < record->words; i++)
        count += __builtin_popcount(words[i]);
    int32_t wanted = record->n_blocks < info->topk ? record->n_blocks : info->topk;
    if (count != wanted ||
        (record->n_blocks % 32 != 0 && words[record->words - 1] >> record->n_blocks % 32 != 0))
        return false;
    for (int32_t block = 0; block < record->n_blocks; block++) {
        if (block >= info->init_blocks && block < record->n_blocks - 1 - info->window_blocks)
            block = record->n_blocks - 1 - info->window_blocks;
        if (!nosa_trace_selected(record, pool, block))
            return false;
    }
    return true;
}

static void read_record(const struct nosa_trace_reader *reader, size_t offset,
                        struct nosa_trace_record *out)
{
    struct record_header header;
    const uint8_t *at = reader->map.data + offset;
    memcpy(&header, at, sizeof header);
    size_t pools = (size_t)reader->info.n_layers * (size_t)reader->info.n_kv_heads;
    *out = (struct nosa_trace_record){
        .position = (int32_t)header.position,
        .n_blocks = (int32_t)header.n_blocks,
        .e_first = (int32_t)header.e_first,
        .words = (int32_t)(header.n_blocks + 31) / 32,
        .selected = (const uint32_t *)(const void *)(at + sizeof header),
    };
    out->e = (const float *)(const void *)(out->selected + pools * (size_t)out->words);
}

/* Checks the record at `offset` of a file whose header is read; *bytes becomes its length. */
static enum nosa_status check_record(const struct nosa_trace_reader *reader, const char *path,
                                     uint64_t row, size_t offset, int32_t previous, size_t *bytes,
                                     struct nosa_error *error)
{
    const struct nosa_trace_info *info = &reader->info;
    struct record_header header;
    size_t left = reader->map.size - offset;
    if (left < sizeof header)
        return CORRUPT("%s: cut off in row %llu", path, (unsigned long long)row);
    memcpy(&header, reader->map.data + offset, sizeof header);
    if (header.position >= NOSA_MODEL_POSITIONS_MAX || (int32_t)header.position <= previous ||
        header.n_blocks != header.position / NOSA_BLOCK_TOKENS + 1 ||
        header.e_first > header.n_blocks ||
        header.bytes != record_bytes(info, header.n_blocks, header.e_first))
        return CORRUPT("%s: row %llu contradicts itself or those before", path,
                       (unsigned long long)row);
    int32_t known = previous < 0 ? 0 : final_blocks(previous, info->kernel_stride);
    if ((int32_t)header.e_first > known ||
        (previous >= info->step_first && (int32_t)header.position != previous + 1))
        return CORRUPT("%s: a row before row %llu is missing", path, (unsigned long long)row);
    if (left < header.bytes)
        return CORRUPT("%s: cut off in row %llu", path, (unsigned long long)row);
    uint64_t checksum;
    memcpy(&checksum, reader->map.data + offset + header.bytes - sizeof checksum, sizeof checksum);
    if (checksum != nosa_hash64(reader->map.data + offset, header.bytes - sizeof checksum, 0))
        return CORRUPT("%s: the checksum of row %llu does not fit", path, (unsigned long long)row);
    struct nosa_trace_record record;
    read_record(reader, offset, &record);
    for (int32_t pool = 0; pool < info->n_layers * info->n_kv_heads; pool++)
        if (!pool_is_valid(info, &record, pool))
            return CORRUPT("%s: row %llu selects what no selection can", path,
                           (unsigned long long)row);
    *bytes = header.bytes;
    return NOSA_OK;
}

static enum nosa_status check_file(struct nosa_trace_reader *reader, const char *path,
                                   struct nosa_error *error)
{
    struct file_header header;
    if (reader->map.size < sizeof header)
        return CORRUPT("%s: not a selection trace", path);
    memcpy(&header, reader->map.data, sizeof header);
    NOSA_TRY(check_header(&header, path, error));
    reader->info = read_info(&header);
    reader->rows = header.rows;
    size_t offset = sizeof header, bytes = 0;
    int32_t previous = -1;
    for (uint64_t row = 0; row < header.rows; row++) {
        NOSA_TRY(check_record(reader, path, row, offset, previous, &bytes, error));
        struct nosa_trace_record record;
        read_record(reader, offset, &record);
        previous = record.position;
        reader->n_blocks_max = record.n_blocks;
        reader->steps += record.position >= reader->info.step_first;
        offset += bytes;
    }
    return offset == reader->map.size ? NOSA_OK : CORRUPT("%s: bytes after the last row", path);
}

enum nosa_status nosa_trace_reader_open(struct nosa_trace_reader *reader, const char *path,
                                        struct nosa_error *error)
{
    *reader = (struct nosa_trace_reader){0};
    NOSA_TRY(nosa_file_map_open(&reader->map, path, error));
    enum nosa_status status = check_file(reader, path, error);
    if (status != NOSA_OK)
        nosa_trace_reader_close(reader);
    return status;
}

void nosa_trace_reader_close(struct nosa_trace_reader *reader)
{
    nosa_file_map_close(&reader->map);
    *reader = (struct nosa_trace_reader){0};
}

bool nosa_trace_reader_next(const struct nosa_trace_reader *reader, size_t *offset,
                            struct nosa_trace_record *out)
{
    if (*offset == 0)
        *offset = NOSA_TRACE_HEADER_BYTES;
    if (*offset >= reader->map.size)
        return false;
    read_record(reader, *offset, out);
    *offset += record_bytes(&reader->info, (uint64_t)out->n_blocks, (uint64_t)out->e_first);
    return true;
}
