/*
 * Inside the extent store. Its files, each below what it is called by:
 *
 *   extent_store.c     open, close, look-up, touch: what needs no device
 *   extent_request.c   requests: accept, deadline, end, completion
 *   extent_device.c    operations at the device: issue, completion, waiting
 *   extent_recover.c   superblock and headers at open
 *   extent_place.c     states of extents, references, whose place goes
 *
 * Everything is under the store's mutex, which a thread that waits for the device gives up; one
 * thread waits at the device at a time (`reaping`) and moves on what it finds for all.
 *
 * An extent's states, and the one function that moves it (nosa_extent_move):
 *
 *   FREE        place for a block; no valid header on disk
 *   FILLING     the payload of a write is waiting for the device or at it
 *   FILLED      the payload is written; waits for a flush
 *   SEALED      the payload is safe; the header waits for the device
 *   PUBLISHING  the header is at the device
 *   PUBLISHED   the header is written; waits for a flush
 *   VALID       holds a block, findable (unless of another identity)
 *   DOOMED      given up, but pinned or being read
 *   DIRTY       given up; its header is on disk, or may be
 *   CLEARING    zeros for the header are at the device
 *   CLEARED     the header is overwritten; waits for a flush
 *
 *   FREE -> FILLING         a write takes the place
 *   FREE -> VALID           found on disk at open
 *   FILLING -> FILLED       payload written
 *   FILLING -> FREE         payload failed, timed out or cancelled
 *   FILLED -> SEALED        flush done
 *   FILLED -> FREE          flush failed
 *   SEALED -> PUBLISHING    header sent
 *   PUBLISHING -> PUBLISHED header written
 *   PUBLISHING -> DIRTY     header failed: unknown what is on disk
 *   PUBLISHED -> VALID      flush done: the write is reported OK
 *   PUBLISHED -> DIRTY      flush failed
 *   VALID -> DIRTY, DOOMED  evicted, forgotten, corrupt
 *   DOOMED -> DIRTY         last pin and read gone
 *   DIRTY -> CLEARING       zeros sent
 *   CLEARING -> CLEARED     zeros written
 *   CLEARING -> DIRTY       failed: tried again later
 *   CLEARED -> FREE         flush done
 *   CLEARED -> DIRTY        flush failed
 */
#ifndef NOSA_KVSTORE_EXTENT_STORE_INTERNAL_H
#define NOSA_KVSTORE_EXTENT_STORE_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "block_pool.h"
#include "extent_format.h"
#include "extent_order.h"
#include "extent_store.h"
#include "index_list.h"
#include "io.h"
#include "prefix_index.h"

#define HEADER_BUFFERS NOSA_EXTENT_SEGMENT /* headers at the device at once; at open, one table */
#define REAP_BATCH     64
#define RETRY_NS       NOSA_NS_PER_MS /* after the device could not take an operation */
#define CLEAR_RETRY_NS NOSA_NS_PER_S  /* after a header could not be cleared */
#define STALLS_MAX     8              /* short transfers without progress */
#define NS_PER_DAY     (86400 * NOSA_NS_PER_S)

enum extent_state {
    EXTENT_FREE = 0,
    EXTENT_FILLING,
    EXTENT_FILLED,
    EXTENT_SEALED,
    EXTENT_PUBLISHING,
    EXTENT_PUBLISHED,
    EXTENT_VALID,
    EXTENT_DOOMED,
    EXTENT_DIRTY,
    EXTENT_CLEARING,
    EXTENT_CLEARED,
    EXTENT_STATES,
};

struct extent {
    enum extent_state state;
    bool named;           /* its key is in the index */
    bool foreign;         /* of another identity */
    uint32_t pins;        /* by the caller */
    uint32_t readers;     /* read requests whose operations have not all ended */
    int32_t request;      /* the write that waits for this extent or fills it, or NONE */
    uint64_t flush_epoch; /* flushes issued before the extent began to wait for one */
};

struct extent_content {
    struct nosa_chain_key parent;
    uint32_t tokens[NOSA_BLOCK_TOKENS];
};

enum op_kind { OP_READ, OP_PAYLOAD, OP_HEADER, OP_CLEAR, OP_FLUSH };
enum op_state { OP_UNUSED, OP_QUEUED, OP_AT_DEVICE };

/* One operation, from its issue to its last completion (short ones are sent again). */
struct op {
    enum op_kind kind;
    enum op_state state;
    uint32_t serial; /* tells a late completion from one of the slot's next use */
    int32_t request; /* READ, PAYLOAD */
    int32_t extent;  /* HEADER, CLEAR, PAYLOAD */
    int32_t buffer;  /* HEADER: its header buffer */
    uint64_t offset;
    uint64_t bytes_left;
    uint64_t deadline_ns;
    struct iovec *vectors; /* borrowed from the request, or &own */
    uint32_t n_vectors;
    uint32_t stalls;
    struct iovec own;
};

/*
 * A request's life: accepted (in `by_age`, perhaps in a queue of work), ended (result known; in
 * `ready`, unless a thread waits for it), and free when its last completion was taken and no
 * operation of it is at the device.
 */
struct request {
    bool used;
    bool ended;
    bool cancelled; /* ends as CANCELLED when its operations have come back */
    bool waited;    /* a thread is in read_records_wait for it */
    bool reported;  /* its completion was taken while operations were at the device */
    enum nosa_extent_request_kind kind;
    enum nosa_extent_result result;
    int32_t os_error;
    int32_t extent;                /* NONE once a write has none or its extent goes on alone */
    uint32_t ops;                  /* operations queued or at the device */
    uint32_t n;                    /* records, or 1 */
    uint32_t next;                 /* of them, the first that was not issued */
    uint32_t *records;             /* [n_records], of the store's array */
    void **buffers;                /* [n_records], of the store's array */
    struct iovec *vectors;         /* [n_records], of the store's array */
    struct nosa_index_list *queue; /* reads, fills, arrived or ready; or NULL */
    struct nosa_extent_handle handle;
    uint64_t token;
    uint64_t accepted_ns;
    uint64_t first_ns; /* first operation issued; 0: none yet */
    uint64_t ended_ns;
    uint64_t deadline_ns;
    uint64_t bytes;
};

struct nosa_extent_store {
    /* fixed after open */
    struct nosa_extent_geometry geometry;
    uint8_t identity[32];
    const struct nosa_clock *clock;
    struct nosa_io *io;
    struct nosa_extent_superblock *superblock; /* owned, aligned */
    uint64_t header_bytes;
    uint64_t image_bytes;
    uint64_t deadline_ns; /* of a request */
    uint64_t budget_bytes;
    uint32_t n_extents;
    uint32_t n_requests;
    uint32_t n_ops;
    uint32_t depth;   /* reads at the device at most; payloads a quarter */
    uint32_t reserve; /* extents kept free ahead of need */
    struct nosa_extent_store_info info;

    pthread_mutex_t mutex;
    pthread_cond_t changed; /* completions were moved on, or nobody reaps any more */
    /* under mutex from here */
    bool reaping; /* a thread is inside io->reap without the mutex */

    /* extents: owned arrays, [n_extents] */
    struct extent *extents;
    struct nosa_index_link *extent_links;
    struct nosa_chain_key *keys;
    struct extent_content *contents;
    struct nosa_extent_rank *ranks;
    uint64_t *sums; /* [n_extents][2 * n_records] */
    struct nosa_index_list in_state[EXTENT_STATES];
    struct nosa_prefix_index index;
    struct nosa_extent_order order;
    uint64_t next_generation;
    uint32_t pinned;  /* extents with pins or readers */
    uint32_t foreign; /* VALID ones of another identity */

    /* requests: owned arrays, [n_requests] */
    struct request *requests;
    struct nosa_index_link *age_links;
    struct nosa_index_link *queue_links;
    uint32_t *request_records;     /* [n_requests][n_records] */
    void **request_buffers;        /* [n_requests][n_records] */
    struct iovec *request_vectors; /* [n_requests][n_records] */
    struct nosa_index_list unused_requests;
    struct nosa_index_list by_age;  /* not ended, in order of deadline */
    struct nosa_index_list reads;   /* reads with records to issue */
    struct nosa_index_list fills;   /* writes whose payload is to be issued */
    struct nosa_index_list arrived; /* reads whose bytes are there, to be verified */
    struct nosa_index_list ready;   /* completions to take */
    uint32_t waited;                /* requests that a thread waits for */

    /* operations: owned arrays, [n_ops] */
    struct op *ops;
    struct nosa_index_link *op_links;
    struct nosa_io_op *outbox; /* [n_ops], scratch of submission */
    struct nosa_index_list unused_ops;
    struct nosa_index_list queued; /* to be submitted */
    uint32_t at_device;
    uint32_t reads_at_device;
    uint32_t writes_at_device; /* flushes included */
    uint32_t reads_issued;     /* READ operations in use */
    uint32_t payloads_issued;  /* PAYLOAD operations in use */
    uint64_t read_busy_since;
    uint64_t write_busy_since;
    uint64_t submit_after_ns; /* the device was full: not before */
    uint64_t attended_ns;     /* when the store was moved on last */
    uint64_t clear_after_ns;  /* clearing failed: not before */

    uint8_t *header_buffers; /* owned, aligned: [HEADER_BUFFERS][header_bytes] */
    uint64_t header_buffers_used;
    uint8_t *zero_page; /* owned, aligned */

    bool flushing;
    uint64_t flushes_issued;

    uint64_t budget_day; /* the UTC day that budget_used counts */
    uint64_t budget_used;
    bool budget_told;
    struct nosa_extent_store_counters counters;
};

_Static_assert(HEADER_BUFFERS == 64, "header_buffers_used is one word");

/* ---- extent_place.c ---- */

void nosa_extent_move(struct nosa_extent_store *store, int32_t extent, enum extent_state to);

/* One pin or read more or less keeps the extent where it is. */
void nosa_extent_hold(struct nosa_extent_store *store, int32_t extent, uint32_t *count);
void nosa_extent_unhold(struct nosa_extent_store *store, int32_t extent, uint32_t *count);

/* Makes the key findable, or no longer so. */
void nosa_extent_name(struct nosa_extent_store *store, int32_t extent);
void nosa_extent_unname(struct nosa_extent_store *store, int32_t extent);

/* A VALID extent is given up. */
void nosa_extent_give_up(struct nosa_extent_store *store, int32_t extent);

/* An extent for a write: a free one, else one that is being cleared, else the first in the order of
 * eviction; NOSA_INDEX_NONE when all are held. The caller sets its `request`. */
int32_t nosa_extent_take_place(struct nosa_extent_store *store);

/* Evicts ahead of need, up to the reserve, so that the next writes need not wait for clearing. */
void nosa_extent_keep_reserve(struct nosa_extent_store *store);

/* ---- extent_device.c ---- */

/* Moves everything on without waiting: completions, deadlines, new operations. */
void nosa_extent_progress(struct nosa_extent_store *store);

/* Waits for the device or for the thread that waits there, up to wait_ns. Gives the mutex up. */
void nosa_extent_wait(struct nosa_extent_store *store, uint64_t wait_ns);

/* Takes completions without issuing anything more; waits up to wait_ns for the first. At close. */
void nosa_extent_settle(struct nosa_extent_store *store, uint64_t wait_ns);

/* The request will not be waited for: its queued operations are dropped, those at the device are
 * asked to end. */
void nosa_extent_abandon_ops(struct nosa_extent_store *store, int32_t request);

/* ---- extent_request.c ---- */

/* The request's result is known. */
void nosa_extent_request_end(struct nosa_extent_store *store, int32_t request,
                             enum nosa_extent_result result, int32_t os_error);

/* An operation of the request has ended: `os_error` 0 or why it failed. */
void nosa_extent_request_op_done(struct nosa_extent_store *store, int32_t request,
                                 int32_t os_error);

/* Verifies the oldest read that has arrived, and ends it; false when there is none. */
bool nosa_extent_finish_read(struct nosa_extent_store *store);

/* Puts a request into a queue of work; takes it out of the one it is in. */
void nosa_extent_request_enqueue(struct nosa_extent_store *store, int32_t request,
                                 struct nosa_index_list *queue);
void nosa_extent_request_dequeue(struct nosa_extent_store *store, int32_t request);

/* Puts all deadlines off by so much. */
void nosa_extent_put_off(struct nosa_extent_store *store, uint64_t ns);
/* Ends requests whose deadline has passed. */
void nosa_extent_expire(struct nosa_extent_store *store, uint64_t now_ns);

/* ---- extent_recover.c ---- */

/* Checks the superblock or lays the file out, and gives the file its size. Before the extents'
 * arrays are there. */
enum nosa_status nosa_extent_recover_layout(struct nosa_extent_store *store,
                                            const struct nosa_io_options *options,
                                            struct nosa_error *error);
/* Reads all headers. */
enum nosa_status nosa_extent_recover_headers(struct nosa_extent_store *store,
                                             struct nosa_error *error);

/* ---- shared ---- */

/* Whether the handle names what it named; the mutex is held. */
static inline bool nosa_extent_is_current(const struct nosa_extent_store *store,
                                          struct nosa_extent_handle handle)
{
    return handle.index >= 0 && handle.index < (int32_t)store->n_extents &&
           store->extents[handle.index].state == EXTENT_VALID &&
           store->ranks[handle.index].generation == handle.generation;
}

static inline uint64_t nosa_extent_now(const struct nosa_extent_store *store)
{
    return nosa_clock_monotonic_ns(store->clock);
}

static inline uint64_t *nosa_extent_sums(const struct nosa_extent_store *store, int32_t extent)
{
    return store->sums + (size_t)extent * 2 * store->geometry.n_records;
}

/* Charges the day's budget; begins a new day's when the day has changed. */
void nosa_extent_charge(struct nosa_extent_store *store, uint64_t bytes);

#endif
