#include "extent_format.h"

#include <string.h>

#include "base/hash.h"

static const uint8_t file_magic[8] = {'N', 'O', 'S', 'A', '-', 'K', 'V', '\n'};
static const uint8_t extent_magic[8] = {'N', 'O', 'S', 'A', 'E', 'X', 'T', '\n'};

size_t nosa_extent_record_offset(const struct nosa_extent_geometry *geometry, uint32_t record)
{
    return (size_t)record * geometry->record_bytes;
}

size_t nosa_extent_summary_offset(const struct nosa_extent_geometry *geometry, uint32_t record)
{
    return (size_t)geometry->n_records * geometry->record_bytes +
           (size_t)record * geometry->summary_bytes;
}

size_t nosa_extent_summaries_bytes(const struct nosa_extent_geometry *geometry)
{
    return nosa_extent_round_up((uint64_t)geometry->n_records * geometry->summary_bytes);
}

size_t nosa_extent_image_bytes(const struct nosa_extent_geometry *geometry)
{
    return (size_t)geometry->n_records * geometry->record_bytes +
           nosa_extent_summaries_bytes(geometry);
}

uint64_t nosa_extent_file_bytes(const struct nosa_extent_geometry *geometry, uint32_t n_extents)
{
    uint32_t rest = n_extents % NOSA_EXTENT_SEGMENT;
    uint64_t bytes = nosa_extent_segment_offset(geometry, n_extents / NOSA_EXTENT_SEGMENT);
    if (rest > 0)
        bytes += NOSA_EXTENT_SEGMENT * nosa_extent_header_bytes(geometry) +
                 rest * (uint64_t)nosa_extent_image_bytes(geometry);
    return bytes;
}

uint32_t nosa_extent_count_in(const struct nosa_extent_geometry *geometry, uint64_t bytes)
{
    if (bytes < NOSA_EXTENT_PAGE)
        return 0;
    uint64_t room = bytes - NOSA_EXTENT_PAGE;
    uint64_t table = NOSA_EXTENT_SEGMENT * nosa_extent_header_bytes(geometry);
    uint64_t n = room / nosa_extent_segment_bytes(geometry) * NOSA_EXTENT_SEGMENT;
    uint64_t rest = room % nosa_extent_segment_bytes(geometry);
    if (rest > table)
        n += (rest - table) / nosa_extent_image_bytes(geometry);
    return n < INT32_MAX ? (uint32_t)n : INT32_MAX;
}

static uint64_t superblock_sum(const struct nosa_extent_superblock *superblock)
{
    return nosa_hash64(superblock, offsetof(struct nosa_extent_superblock, checksum), 0);
}

enum nosa_extent_file_kind
nosa_extent_superblock_check(const struct nosa_extent_superblock *superblock,
                             const struct nosa_extent_geometry *geometry)
{
    static const uint8_t blank[sizeof superblock->magic];
    if (memcmp(superblock->magic, blank, sizeof blank) == 0)
        return NOSA_EXTENT_FILE_BLANK;
    if (memcmp(superblock->magic, file_magic, sizeof file_magic) != 0)
        return NOSA_EXTENT_FILE_FOREIGN;
    if (superblock->checksum != superblock_sum(superblock))
        return NOSA_EXTENT_FILE_DAMAGED;
    if (superblock->version > NOSA_EXTENT_FORMAT_VERSION)
        return NOSA_EXTENT_FILE_NEWER;
    if (superblock->version != NOSA_EXTENT_FORMAT_VERSION ||
        superblock->segment_extents != NOSA_EXTENT_SEGMENT ||
        superblock->block_tokens != NOSA_BLOCK_TOKENS ||
        superblock->n_records != geometry->n_records ||
        superblock->record_bytes != geometry->record_bytes ||
        superblock->summary_bytes != geometry->summary_bytes)
        return NOSA_EXTENT_FILE_OTHER;
    return NOSA_EXTENT_FILE_OURS;
}

void nosa_extent_superblock_make(struct nosa_extent_superblock *superblock,
                                 const struct nosa_extent_geometry *geometry, uint64_t now_ns)
{
    uint64_t id = nosa_hash64(superblock, sizeof *superblock, now_ns);
    if (id == superblock->layout_id || id == 0)
        id += 1;
    memset(superblock, 0, sizeof *superblock);
    memcpy(superblock->magic, file_magic, sizeof file_magic);
    superblock->version = NOSA_EXTENT_FORMAT_VERSION;
    superblock->segment_extents = NOSA_EXTENT_SEGMENT;
    superblock->layout_id = id;
    superblock->n_records = geometry->n_records;
    superblock->record_bytes = geometry->record_bytes;
    superblock->summary_bytes = geometry->summary_bytes;
    superblock->block_tokens = NOSA_BLOCK_TOKENS;
    superblock->created_ns = now_ns;
    superblock->checksum = superblock_sum(superblock);
}

/* Of everything but the field itself; the second part is seeded with the first one's sum. */
static uint64_t header_sum(const struct nosa_extent_header *header, uint64_t header_bytes)
{
    const size_t after = offsetof(struct nosa_extent_header, more_zeros);
    uint64_t first = nosa_hash64(header, offsetof(struct nosa_extent_header, checksum), 0);
    return nosa_hash64((const uint8_t *)header + after, header_bytes - after, first);
}

void nosa_extent_header_seal(struct nosa_extent_header *header, uint64_t header_bytes)
{
    memcpy(header->magic, extent_magic, sizeof extent_magic);
    header->version = NOSA_EXTENT_FORMAT_VERSION;
    header->checksum = header_sum(header, header_bytes);
}

bool nosa_extent_header_valid(const struct nosa_extent_header *header, uint64_t header_bytes,
                              const struct nosa_extent_superblock *superblock, uint64_t number)
{
    return memcmp(header->magic, extent_magic, sizeof extent_magic) == 0 &&
           header->version == NOSA_EXTENT_FORMAT_VERSION &&
           header->n_records == superblock->n_records &&
           header->layout_id == superblock->layout_id && header->number == number &&
           header->checksum == header_sum(header, header_bytes);
}

uint64_t nosa_extent_sum(const void *data, size_t bytes)
{
    return nosa_hash64(data, bytes, 0);
}
