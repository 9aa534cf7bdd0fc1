/*
 * The extent file, byte for byte. Integers are little-endian. Version 1.
 *
 *   offset                     bytes               meaning
 *   0                          4096                superblock
 *   4096                       segment bytes       segment 0
 *   4096 + s * segment bytes   segment bytes       segment s; the last one may hold fewer payloads
 *
 * A segment is a table of NOSA_EXTENT_SEGMENT headers (header bytes each), then as many payloads
 * (image bytes each). Extent i is header and payload i % NOSA_EXTENT_SEGMENT of segment
 * i / NOSA_EXTENT_SEGMENT. So the tables are read in long runs, and a file that grows or shrinks
 * keeps the extents that have a place in both.
 *
 *   superblock
 *   0      8   magic "NOSA-KV\n"
 *   8      4   format version
 *   12     4   NOSA_EXTENT_SEGMENT
 *   16     8   layout id: drawn when the file is laid out; headers of another one mean nothing
 *   24     4   records of an extent
 *   28     4   bytes of a record
 *   32     4   bytes of a summary
 *   36     4   tokens of a block (64)
 *   40     8   time of layout, ns since 1970-01-01 UTC
 *   48     4040 zeros
 *   4088   8   XXH3-64 of bytes 0 .. 4087
 *
 *   header
 *   0      8   magic "NOSAEXT\n"; zeros: the extent is free
 *   8      4   format version
 *   12     4   records of the extent
 *   16     8   layout id
 *   24     8   extent number: a header that was written to another place means nothing
 *   32     8   generation: grows with every write; the larger one of a key counts
 *   40     8   use: the caller's clock at the time of writing
 *   48     8   time of writing, ns since 1970-01-01 UTC
 *   56     4   value (E), float32
 *   60     4   zeros
 *   64     32  identity
 *   96     32  chain key
 *   128    32  chain key of the block before, or the root
 *   160    256 token ids, 64 * uint32
 *   416    8   XXH3-64 of bytes 424 .. end, seeded with the XXH3-64 of bytes 0 .. 415
 *   424    24  zeros
 *   448    8n  XXH3-64 of each record
 *   +8n    8n  XXH3-64 of each summary
 *          ... zeros up to a multiple of 4096
 *
 * A header is valid only when magic, version, records, layout id, number and checksum agree, and it
 * is written only after its payload is safe; so a torn one is no extent.
 */
#ifndef NOSA_KVSTORE_EXTENT_FORMAT_H
#define NOSA_KVSTORE_EXTENT_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "chain_key.h"
#include "extent_store.h"
#include "io.h"
#include "kv_layout.h"

#define NOSA_EXTENT_FORMAT_VERSION 1
#define NOSA_EXTENT_SEGMENT        64
#define NOSA_EXTENT_PAGE           4096

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the structs below are the file's bytes");
_Static_assert(NOSA_EXTENT_PAGE == NOSA_IO_ALIGNMENT, "a page is the unit of direct I/O");

struct nosa_extent_superblock {
    uint8_t magic[8];
    uint32_t version;
    uint32_t segment_extents;
    uint64_t layout_id;
    uint32_t n_records;
    uint32_t record_bytes;
    uint32_t summary_bytes;
    uint32_t block_tokens;
    uint64_t created_ns;
    uint8_t zeros[4040];
    uint64_t checksum;
};

_Static_assert(offsetof(struct nosa_extent_superblock, layout_id) == 16, "layout on disk");
_Static_assert(offsetof(struct nosa_extent_superblock, n_records) == 24, "layout on disk");
_Static_assert(offsetof(struct nosa_extent_superblock, created_ns) == 40, "layout on disk");
_Static_assert(offsetof(struct nosa_extent_superblock, checksum) == 4088, "layout on disk");
_Static_assert(sizeof(struct nosa_extent_superblock) == NOSA_EXTENT_PAGE, "layout on disk");

struct nosa_extent_header {
    uint8_t magic[8];
    uint32_t version;
    uint32_t n_records;
    uint64_t layout_id;
    uint64_t number;
    uint64_t generation;
    uint64_t use;
    uint64_t written_ns;
    float value;
    uint32_t zeros;
    uint8_t identity[32];
    struct nosa_chain_key key;
    struct nosa_chain_key parent;
    uint32_t tokens[NOSA_BLOCK_TOKENS];
    uint64_t checksum;
    uint8_t more_zeros[24];
    uint64_t sums[]; /* [n_records] of records, [n_records] of summaries */
};

_Static_assert(offsetof(struct nosa_extent_header, layout_id) == 16, "layout on disk");
_Static_assert(offsetof(struct nosa_extent_header, use) == 40, "layout on disk");
_Static_assert(offsetof(struct nosa_extent_header, value) == 56, "layout on disk");
_Static_assert(offsetof(struct nosa_extent_header, identity) == 64, "layout on disk");
_Static_assert(offsetof(struct nosa_extent_header, tokens) == 160, "layout on disk");
_Static_assert(offsetof(struct nosa_extent_header, checksum) == 416, "layout on disk");
_Static_assert(offsetof(struct nosa_extent_header, sums) == 448, "layout on disk");
_Static_assert(sizeof(struct nosa_extent_header) == 448, "layout on disk");

/* ---- places ---- */

static inline uint64_t nosa_extent_round_up(uint64_t bytes)
{
    return (bytes + NOSA_EXTENT_PAGE - 1) / NOSA_EXTENT_PAGE * NOSA_EXTENT_PAGE;
}

/* Bytes of a header with its checksums: a multiple of 4096. */
static inline uint64_t nosa_extent_header_bytes(const struct nosa_extent_geometry *geometry)
{
    return nosa_extent_round_up(sizeof(struct nosa_extent_header) +
                                2 * sizeof(uint64_t) * (uint64_t)geometry->n_records);
}

static inline uint64_t nosa_extent_segment_bytes(const struct nosa_extent_geometry *geometry)
{
    return NOSA_EXTENT_SEGMENT *
           (nosa_extent_header_bytes(geometry) + nosa_extent_image_bytes(geometry));
}

static inline uint64_t nosa_extent_segment_offset(const struct nosa_extent_geometry *geometry,
                                                  uint32_t segment)
{
    return NOSA_EXTENT_PAGE + segment * nosa_extent_segment_bytes(geometry);
}

/* Where the header and the payload of an extent are in the file. */
static inline uint64_t nosa_extent_header_offset(const struct nosa_extent_geometry *geometry,
                                                 uint32_t extent)
{
    return nosa_extent_segment_offset(geometry, extent / NOSA_EXTENT_SEGMENT) +
           extent % NOSA_EXTENT_SEGMENT * nosa_extent_header_bytes(geometry);
}

static inline uint64_t nosa_extent_payload_offset(const struct nosa_extent_geometry *geometry,
                                                  uint32_t extent)
{
    return nosa_extent_segment_offset(geometry, extent / NOSA_EXTENT_SEGMENT) +
           NOSA_EXTENT_SEGMENT * nosa_extent_header_bytes(geometry) +
           extent % NOSA_EXTENT_SEGMENT * (uint64_t)nosa_extent_image_bytes(geometry);
}

/* ---- superblock ---- */

enum nosa_extent_file_kind {
    NOSA_EXTENT_FILE_OURS = 0,    /* layout, version and checksum agree */
    NOSA_EXTENT_FILE_BLANK = 1,   /* new, or its layout was never finished */
    NOSA_EXTENT_FILE_OTHER = 2,   /* a KV file of another geometry */
    NOSA_EXTENT_FILE_DAMAGED = 3, /* a KV file whose superblock does not match its checksum */
    NOSA_EXTENT_FILE_NEWER = 4,   /* of a version that this code does not know */
    NOSA_EXTENT_FILE_FOREIGN = 5, /* something else */
};

/* What the superblock says about the file, to a store of `geometry`. */
enum nosa_extent_file_kind
nosa_extent_superblock_check(const struct nosa_extent_superblock *superblock,
                             const struct nosa_extent_geometry *geometry);

/* Makes the superblock of a new layout; its id differs from that of `superblock` before. */
void nosa_extent_superblock_make(struct nosa_extent_superblock *superblock,
                                 const struct nosa_extent_geometry *geometry, uint64_t now_ns);

/* ---- header ---- */

/* Completes a header: magic, version, checksum. All other fields and sums are set, the rest of
 * header_bytes is zero. */
void nosa_extent_header_seal(struct nosa_extent_header *header, uint64_t header_bytes);

/* Whether `header` is that of extent `number` in this layout. */
bool nosa_extent_header_valid(const struct nosa_extent_header *header, uint64_t header_bytes,
                              const struct nosa_extent_superblock *superblock, uint64_t number);

/* Checksum of one record or summary. */
uint64_t nosa_extent_sum(const void *data, size_t bytes);

#endif
