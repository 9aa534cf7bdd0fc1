/*
 * A disk in memory behind the I/O table (kvstore/io.h), driven by a seed and a clock of its own, so
 * that a test decides what goes wrong and when, and a failing seed replays.
 *
 * Operations take effect when they complete, in an order drawn from the seed; reap moves the clock
 * to the next completion. Written sectors (512 bytes) are kept apart from flushed ones: a crash
 * keeps or loses every sector that was not flushed, and of writes at the device any part. A flush
 * covers the writes that completed before it was submitted.
 *
 *     struct io_sim sim;
 *     io_sim_init(&sim, seed);
 *     options.method = &sim.method; options.clock = &sim.clock.clock;
 *     ... open a store, sim.faults.read_error = 50, io_sim_crash(&sim), open again ...
 *     io_sim_destroy(&sim);
 */
#ifndef NOSA_TESTS_SUPPORT_IO_SIM_H
#define NOSA_TESTS_SUPPORT_IO_SIM_H

#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "io.h"

#define IO_SIM_DEPTH_MAX 64
#define IO_SIM_SECTOR    512

/* Chances in a thousand, drawn for each operation. */
struct io_sim_faults {
    uint32_t read_error;     /* -EIO */
    uint32_t write_error;    /* -EIO, a part of the data written */
    uint32_t no_space;       /* writes: -ENOSPC */
    uint32_t flush_error;    /* -EIO, nothing flushed */
    uint32_t short_transfer; /* fewer bytes than asked for, perhaps none */
    uint32_t again;          /* completes as -EAGAIN */
    uint32_t refuse;         /* submit takes no more */
    uint32_t hang;           /* never completes (a cancel brings it back when cancel_works) */
    uint32_t flip_read;      /* a bit of what is read arrives wrong */
    uint32_t torn_write;     /* reported whole, but some sectors were not written */
};

struct io_sim_op {
    bool used;
    bool hangs;
    struct nosa_io_op op;
    struct iovec *vectors; /* owned: a copy */
    uint64_t at_ns;        /* completes */
    uint64_t epoch;        /* FLUSH: covers sectors written before */
    int64_t forced;        /* result when not 0 */
};

struct io_sim {
    struct nosa_io_method method; /* hand out &sim.method */
    struct nosa_manual_clock clock;
    struct nosa_io io;
    bool open;
    bool cancel_works; /* default true */
    bool refuse_open;  /* the method is not there: UNSUPPORTED */
    uint64_t capacity; /* bytes that the disk has */
    struct io_sim_faults faults;
    /* The fail_nth-th operation from now on (1 is the next) ends with fail_result; 0: none. */
    uint64_t fail_nth;
    int64_t fail_result;
    bool fail_hangs; /* ... or never ends */

    /* the disk's own */
    uint64_t random;
    uint64_t bytes;
    uint8_t *current; /* owned: what reads see */
    uint8_t *flushed; /* owned: what survives */
    uint64_t *dirty;  /* owned, [sectors]: 0, or 1 + flushes submitted when it was written last */
    uint64_t flushes;
    uint32_t depth;
    struct io_sim_op ops[IO_SIM_DEPTH_MAX];
    uint64_t operations; /* taken since init */
};

void io_sim_init(struct io_sim *sim, uint64_t seed);
void io_sim_destroy(struct io_sim *sim);

/* The next number of the seed's sequence; below(n): 0 .. n - 1. */
uint64_t io_sim_random(uint64_t *random);
uint32_t io_sim_below(uint64_t *random, uint32_t n);

/* Loses power: what was at the device is partly done, what was not flushed partly lost. The store
 * that had the file open can only be closed afterwards; what it writes then must not count. */
void io_sim_crash(struct io_sim *sim);

/* Changes one bit of the disk. */
void io_sim_flip(struct io_sim *sim, uint64_t offset, uint32_t bit);

/* Operations that hang complete from now on, with the result they would have had. */
void io_sim_release(struct io_sim *sim);

#endif
