/*
 * The NVMe tier: blocks kept in one file, found again by the chain key of their tokens, and read
 * back whole or record by record.
 *
 * An extent holds one block. Its payload is the block's image:
 *
 *   n_records records of record_bytes, n_records summaries of summary_bytes, zeros up to a multiple
 *   of 4096
 *
 * so a block comes back in one sequential read and a single record in one aligned read. Every
 * record and every summary has a checksum, verified before the caller hears of the read; an extent
 * that does not match, or that the device cannot read, is forgotten and counted: what the caller
 * gets is exact or a miss. extent_format.h has the layout on disk.
 *
 * A write becomes findable only whole and only when it would outlive a loss of power: payload,
 * flush, header, flush, with one flush for all that wait (so a busy store pays one flush per
 * group). Before an extent's place is used again its header is cleared and flushed. Whenever the
 * process dies, the file opens with every write that was reported OK and none that was half done.
 *
 * Place: when no extent is free, the unpinned one with the lowest (use, value) goes, the older one
 * among equals. `use` is the caller's clock of use, `value` his estimate of worth (E); both are
 * given at write and renewed by touch. A caller who touches a chain from its last block to its
 * first with ascending `use` never loses a block before those that continue it. Extents of other
 * identities take part in this order and are never found.
 *
 * One thread owns the store; nosa_extent_store_read_records_wait and read_batch_wait alone may be
 * called from others beside it. Nothing is allocated after open. No call but open, close, poll with
 * wait_ms and these two blocks on the device.
 *
 * Memory that a request names is borrowed until its completion. A device may stop answering: then
 * the request completes as TIMED_OUT with buffer_held set, and its memory must stay as it is until
 * another completion with the same token says RELEASED.
 */
#ifndef NOSA_KVSTORE_EXTENT_STORE_H
#define NOSA_KVSTORE_EXTENT_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/status.h"
#include "chain_key.h"
#include "io.h"
#include "kv_layout.h"

#define NOSA_EXTENT_FILE_NAME   "nosa-kv.dat"
#define NOSA_EXTENT_RECORDS_MAX 65536

struct nosa_extent_store; /* opaque */

/* ---- geometry ------------------------------------------------------------------------------ */

struct nosa_extent_geometry {
    uint32_t n_records;     /* of one block: layers * KV heads; 1 .. NOSA_EXTENT_RECORDS_MAX */
    uint32_t record_bytes;  /* a multiple of 4096 */
    uint32_t summary_bytes; /* any, 0 included */
};

/* Bytes of an image: a multiple of 4096. */
size_t nosa_extent_image_bytes(const struct nosa_extent_geometry *geometry);
/* Where record i and summary i are in an image. */
size_t nosa_extent_record_offset(const struct nosa_extent_geometry *geometry, uint32_t record);
size_t nosa_extent_summary_offset(const struct nosa_extent_geometry *geometry, uint32_t record);
/* Bytes of an image from its first summary to its end: what read_summaries fetches. */
size_t nosa_extent_summaries_bytes(const struct nosa_extent_geometry *geometry);
/* Bytes of the file that holds n_extents; and extents in a file of so many bytes (0: too small). */
uint64_t nosa_extent_file_bytes(const struct nosa_extent_geometry *geometry, uint32_t n_extents);
uint32_t nosa_extent_count_in(const struct nosa_extent_geometry *geometry, uint64_t bytes);

/* ---- open and close ------------------------------------------------------------------------ */

struct nosa_extent_store_options {
    const char *directory; /* holds the one file NOSA_EXTENT_FILE_NAME */
    uint64_t bytes;        /* of the file; what exceeds whole extents is not used */
    struct nosa_extent_geometry geometry;
    uint8_t identity[32]; /* everything that decides KV bits, but salt and tokens */

    const struct nosa_io_method *method; /* NULL: io_uring, else threads (io.h) */
    void *pool;                          /* pinned host memory that images and records lie in, */
    size_t pool_bytes;                   /* borrowed until close; registered with the kernel */

    uint32_t depth;                 /* reads at the device at once; 0: 32; 4 .. 4096 */
    uint32_t requests_max;          /* requests accepted at once; 0: 256; 4 .. 65536 */
    uint32_t deadline_ms;           /* of every request; 0: 10000 */
    uint64_t write_bytes_per_day;   /* endurance budget by UTC day; 0: none */
    const struct nosa_clock *clock; /* borrowed; NULL: the system's */
};

/*
 * Opens the store, making directory (one level) and file when they are not there; the whole file is
 * allocated at once. Reads the headers of all extents; a larger or smaller `bytes` than last time
 * keeps the extents that still have a place. Another geometry: the file is laid out anew. Blocks.
 * *out is NULL on failure. One line that names the thing:
 *
 *   - INVALID_ARGUMENT: the directory is a file or not writable; `bytes` is past the free space or
 *     too small for one extent; the file is not a KV store's; geometry out of bounds
 *   - UNAVAILABLE: another process has it open
 *   - UNSUPPORTED: written by a newer version, or the method named is refused here
 *   - IO_ERROR, DEADLINE_EXCEEDED (the device does not answer), OUT_OF_MEMORY
 */
enum nosa_status nosa_extent_store_open(const struct nosa_extent_store_options *options,
                                        struct nosa_extent_store **out, struct nosa_error *error);

/*
 * Closes. Requests that were not reported OK end as if cancelled; waits for the device up to the
 * deadline. Returns how many buffers it still may touch: 0 unless the device has stopped answering,
 * else the caller must leave the memory of his requests mapped and alone. NULL is allowed (0).
 */
uint32_t nosa_extent_store_close(struct nosa_extent_store *store);

struct nosa_extent_store_info {
    const char *io_method; /* "io_uring", "threads" */
    bool direct;           /* past the page cache */
    bool registered;       /* the pool is registered with the kernel */
    bool laid_out_anew;    /* nothing was taken over from before */
    uint32_t n_extents;
    uint32_t recovered;         /* extents of this identity found at open */
    uint32_t recovered_foreign; /* of other identities: space that can be had */
    uint64_t use_max;           /* largest `use` found: the caller's clock goes on after it */
    size_t memory_bytes;        /* of the store itself */
};

void nosa_extent_store_info(const struct nosa_extent_store *store,
                            struct nosa_extent_store_info *out);

/* ---- what is there -------------------------------------------------------------------------- */

/* Names an extent as it is now; goes stale when the extent is forgotten or evicted. */
struct nosa_extent_handle {
    int32_t index;       /* NOSA_EXTENT_NONE: none */
    uint64_t generation; /* grows with every write of the store */
};

#define NOSA_EXTENT_NONE (-1)

/* The extent of `key`, when it holds exactly `tokens` (64 ids) after `parent` under the identity of
 * the store; index NOSA_EXTENT_NONE otherwise. O(1). */
struct nosa_extent_handle nosa_extent_store_find(struct nosa_extent_store *store,
                                                 const struct nosa_chain_key *key,
                                                 const struct nosa_chain_key *parent,
                                                 const uint32_t *tokens);

/* Whether the handle still names what it named. */
bool nosa_extent_store_is_current(struct nosa_extent_store *store,
                                  struct nosa_extent_handle handle);

/* A pinned extent is not evicted; pins count. False, and nothing pinned, for a stale handle. Unpin
 * takes the handle of a pin, which may have gone stale since by forget or a read error. */
bool nosa_extent_store_pin(struct nosa_extent_store *store, struct nosa_extent_handle handle);
void nosa_extent_store_unpin(struct nosa_extent_store *store, struct nosa_extent_handle handle);

/* Says that the extent was used. O(log n). A stale handle is ignored. Kept in memory only: after a
 * restart an extent counts as used when it was written. */
void nosa_extent_store_touch(struct nosa_extent_store *store, struct nosa_extent_handle handle,
                             uint64_t use, float value);

/* Gives an extent up, pinned or not; its place is used again when the last pin and read are gone. A
 * stale handle is ignored. */
void nosa_extent_store_forget(struct nosa_extent_store *store, struct nosa_extent_handle handle);

/* ---- requests ------------------------------------------------------------------------------- */

/*
 * Each accepts a request and returns NOSA_OK, and exactly one completion with its token comes
 * through poll (and a RELEASED one later if the first has buffer_held). Anything else: not
 * accepted.
 *
 *   - UNAVAILABLE: requests_max are under way; poll, then try again
 *   - NOT_FOUND (reads): the handle is stale
 *   - RESOURCE_EXHAUSTED (write): the day's budget is spent, or every extent is pinned or in use
 *
 * Buffers are 4096-aligned; those inside the pool move without a copy of page tables.
 */

/* The whole image into `image` (nosa_extent_image_bytes). */
enum nosa_status nosa_extent_store_read_image(struct nosa_extent_store *store, uint64_t token,
                                              struct nosa_extent_handle handle, void *image);

/* All summaries into `buffer` (nosa_extent_summaries_bytes), without the records. */
enum nosa_status nosa_extent_store_read_summaries(struct nosa_extent_store *store, uint64_t token,
                                                  struct nosa_extent_handle handle, void *buffer);

/* Record records[i] into buffers[i] (record_bytes each), i < n <= n_records. Neighbours in the list
 * that are neighbours in the extent come in one read. The lists are copied. */
enum nosa_status nosa_extent_store_read_records(struct nosa_extent_store *store, uint64_t token,
                                                struct nosa_extent_handle handle,
                                                const uint32_t *records, void *const *buffers,
                                                uint32_t n);

struct nosa_extent_write {
    struct nosa_chain_key key;
    struct nosa_chain_key parent;
    const uint32_t *tokens; /* [64]; copied */
    const void *image;      /* nosa_extent_image_bytes, aligned; unchanged until the completion */
    uint64_t use;
    float value; /* E */
};

/* Stores a block. A key that is there already, or being written, completes as EXISTS. */
enum nosa_status nosa_extent_store_write(struct nosa_extent_store *store, uint64_t token,
                                         const struct nosa_extent_write *write);

enum nosa_extent_result {
    NOSA_EXTENT_OK = 0,
    NOSA_EXTENT_CORRUPT = 1,   /* checksums do not match; the extent was forgotten */
    NOSA_EXTENT_IO_ERROR = 2,  /* the device refused (os_error); a read's extent was forgotten */
    NOSA_EXTENT_TIMED_OUT = 3, /* not done by the deadline */
    NOSA_EXTENT_CANCELLED = 4,
    NOSA_EXTENT_EXISTS = 5,   /* write: the key was there before; nothing was written */
    NOSA_EXTENT_RELEASED = 6, /* follows a completion with buffer_held: the memory is free now */
};

/* "ok", "corrupt", ...; never NULL. */
const char *nosa_extent_result_name(enum nosa_extent_result result);

enum nosa_extent_request_kind {
    NOSA_EXTENT_READ_IMAGE = 0,
    NOSA_EXTENT_READ_SUMMARIES = 1,
    NOSA_EXTENT_READ_RECORDS = 2,
    NOSA_EXTENT_WRITE = 3,
};

struct nosa_extent_completion {
    uint64_t token;
    enum nosa_extent_request_kind kind;
    enum nosa_extent_result result;
    bool buffer_held;                 /* the device may still touch the memory */
    int32_t os_error;                 /* errno of an IO_ERROR, else 0 */
    struct nosa_extent_handle handle; /* what was read or written; none for a write that failed */
    uint64_t bytes;                   /* moved */
    uint64_t queue_ns;                /* from acceptance to the first operation at the device */
    uint64_t service_ns;              /* from there to the end, flushes of a write included */
};

/*
 * Moves everything on and takes up to `max` completions; when there are none, waits for the first
 * one up to wait_ms (0: not at all; nor when nothing is under way). Returns how many were taken.
 * Must be called now and then while requests are under way, and after forget: nothing is submitted,
 * timed out or cleared otherwise.
 */
uint32_t nosa_extent_store_poll(struct nosa_extent_store *store,
                                struct nosa_extent_completion *completions, uint32_t max,
                                uint32_t wait_ms);

/* Sends what waits to the device without taking completions: ends a batch of requests. */
void nosa_extent_store_submit(struct nosa_extent_store *store);

/* Asks for an early end of the requests with `token`. Each still completes once, as CANCELLED or as
 * what it became; a write past its payload goes on to its end. */
void nosa_extent_store_cancel(struct nosa_extent_store *store, uint64_t token);

/* Requests accepted whose last completion was not taken yet. */
uint32_t nosa_extent_store_pending(struct nosa_extent_store *store);

/*
 * As read_records, but waits for the end and stores the completion in *out; any thread. Returns
 * NOSA_OK when the request was accepted, whatever its result. With out->buffer_held the RELEASED
 * completion comes through the owner's poll, under `token`.
 */
enum nosa_status nosa_extent_store_read_records_wait(
    struct nosa_extent_store *store, uint64_t token, struct nosa_extent_handle handle,
    const uint32_t *records, void *const *buffers, uint32_t n, struct nosa_extent_completion *out);

/* One of several reads of records that a thread waits for. */
struct nosa_extent_read {
    uint64_t token;
    struct nosa_extent_handle handle;
    const uint32_t *records; /* [n] borrowed, as are the buffers */
    void *const *buffers;
    uint32_t n;
    int32_t request; /* the store's while the call runs */
    /* results */
    enum nosa_status status; /* of the acceptance */
    struct nosa_extent_completion completion;
};

/* The same for many reads: all are at the device side by side, as far as its depth and
 * requests_max go, and those that have come are verified while others are on their way. Results as
 * above in each entry; UNAVAILABLE only when other requests take all places. */
void nosa_extent_store_read_batch_wait(struct nosa_extent_store *store,
                                       struct nosa_extent_read *reads, uint32_t n_reads);

/* ---- accounting ----------------------------------------------------------------------------- */

struct nosa_extent_store_counters {
    /* now */
    uint32_t extents_total;
    uint32_t extents_valid;   /* findable, or of another identity */
    uint32_t extents_foreign; /* of these, of another identity */
    uint32_t extents_pinned;  /* by pins or reads */
    uint32_t operations_in_flight;
    uint32_t operations_overdue; /* at the device past their request's deadline */
    uint32_t flushes_waiting;    /* extents that wait for a flush */
    /* since open */
    uint64_t lookups;
    uint64_t hits;
    uint64_t reads;      /* requests that ended OK */
    uint64_t read_bytes; /* by the device, failed requests included */
    uint64_t
        read_busy_ns; /* time with at least one read at the device: bytes / time is bandwidth */
    uint64_t writes;  /* extents that became findable */
    uint64_t written_bytes; /* payloads, headers and clears */
    uint64_t write_busy_ns; /* time with at least one write or flush at the device */
    uint64_t flushes;
    uint64_t evicted_extents;
    uint64_t corrupt_extents;    /* checksum mismatch; forgotten */
    uint64_t unreadable_extents; /* read error; forgotten */
    uint64_t failed_writes;      /* write or flush error */
    uint64_t timed_out_requests;
    uint64_t cancelled_requests;
    uint64_t retried_operations; /* short, interrupted or refused for the moment */
    uint64_t refused_full;       /* writes refused: no place */
    uint64_t refused_budget;     /* writes refused: the day's budget */
    uint64_t budget_left_bytes;  /* UINT64_MAX without a budget */
};

void nosa_extent_store_counters(struct nosa_extent_store *store,
                                struct nosa_extent_store_counters *out);

#endif
