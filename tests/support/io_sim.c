#include "support/io_sim.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

uint64_t io_sim_random(uint64_t *random)
{
    /* splitmix64 */
    uint64_t x = *random += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

uint32_t io_sim_below(uint64_t *random, uint32_t n)
{
    return (uint32_t)((io_sim_random(random) >> 32) * n >> 32);
}

static bool chance(struct io_sim *sim, uint32_t in_a_thousand)
{
    return in_a_thousand > 0 && io_sim_below(&sim->random, 1000) < in_a_thousand;
}

static struct io_sim *sim_of(struct nosa_io *io)
{
    return (struct io_sim *)io->method->context;
}

static enum nosa_status sim_open(const struct nosa_io_method *method,
                                 const struct nosa_io_options *options, struct nosa_io **out,
                                 struct nosa_error *error)
{
    struct io_sim *sim = method->context;

    *out = NULL;
    if (sim->refuse_open)
        return nosa_error_set(error, NOSA_UNSUPPORTED, "the simulated disk is refused");
    if (sim->open)
        return nosa_error_set(error, NOSA_UNAVAILABLE, "'%s' is in use", options->directory);
    NOSA_ASSERT(options->depth <= IO_SIM_DEPTH_MAX);
    sim->open = true;
    sim->depth = options->depth;
    sim->io = (struct nosa_io){.method = method, .direct = true, .bytes = sim->bytes};
    *out = &sim->io;
    return NOSA_OK;
}

static void resize(struct io_sim *sim, uint64_t bytes)
{
    uint64_t kept = bytes < sim->bytes ? bytes : sim->bytes;
    uint8_t *current = calloc(1, bytes), *flushed = calloc(1, bytes);
    uint64_t *dirty = calloc(bytes / IO_SIM_SECTOR, sizeof *dirty);
    NOSA_ASSERT(current && flushed && dirty && bytes % IO_SIM_SECTOR == 0);
    if (kept > 0) {
        memcpy(current, sim->current, kept);
        memcpy(flushed, sim->flushed, kept);
        memcpy(dirty, sim->dirty, kept / IO_SIM_SECTOR * sizeof *dirty);
    }
    free(sim->current);
    free(sim->flushed);
    free(sim->dirty);
    sim->current = current;
    sim->flushed = flushed;
    sim->dirty = dirty;
    sim->bytes = bytes;
}

static enum nosa_status sim_resize(struct nosa_io *io, const struct nosa_io_options *options,
                                   struct nosa_error *error)
{
    struct io_sim *sim = sim_of(io);
    if (options->bytes > sim->capacity)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "'%s' has too little space",
                              options->directory);
    if (options->bytes != sim->bytes)
        resize(sim, options->bytes);
    io->bytes = sim->bytes;
    return NOSA_OK;
}

static void draw_fate(struct io_sim *sim, struct io_sim_op *slot)
{
    const struct io_sim_faults *faults = &sim->faults;
    bool writes = slot->op.kind == NOSA_IO_WRITE;

    slot->at_ns = nosa_clock_monotonic_ns(&sim->clock.clock) +
                  (slot->op.kind == NOSA_IO_FLUSH ? 1000 : 50) * NOSA_NS_PER_US +
                  io_sim_below(&sim->random, 450) * NOSA_NS_PER_US;
    slot->hangs = chance(sim, faults->hang);
    if (chance(sim, faults->again))
        slot->forced = -EAGAIN;
    else if (slot->op.kind == NOSA_IO_READ && chance(sim, faults->read_error))
        slot->forced = -EIO;
    else if (slot->op.kind == NOSA_IO_FLUSH && chance(sim, faults->flush_error))
        slot->forced = -EIO;
    else if (writes && chance(sim, faults->write_error))
        slot->forced = -EIO;
    else if (writes && chance(sim, faults->no_space))
        slot->forced = -ENOSPC;
    if (sim->fail_nth > 0 && --sim->fail_nth == 0) {
        slot->forced = sim->fail_result;
        slot->hangs = sim->fail_hangs;
    }
}

static uint32_t sim_submit(struct nosa_io *io, const struct nosa_io_op *ops, uint32_t n)
{
    struct io_sim *sim = sim_of(io);
    uint32_t taken = 0;

    for (uint32_t i = 0; i < sim->depth && taken < n; i++) {
        struct io_sim_op *slot = &sim->ops[i];
        if (slot->used)
            continue;
        if (chance(sim, sim->faults.refuse))
            break;
        *slot = (struct io_sim_op){.used = true, .op = ops[taken]};
        size_t bytes = ops[taken].n_vectors * sizeof *slot->vectors;
        slot->vectors = malloc(bytes + 1);
        NOSA_ASSERT(slot->vectors);
        if (bytes > 0)
            memcpy(slot->vectors, ops[taken].vectors, bytes);
        if (slot->op.kind == NOSA_IO_FLUSH)
            slot->epoch = ++sim->flushes;
        sim->operations++;
        draw_fate(sim, slot);
        taken++;
    }
    return taken;
}

/* Moves up to `limit` bytes; returns how many were inside the file. With `tear` some sectors of a
 * write are left as they were. */
static uint64_t transfer(struct io_sim *sim, const struct io_sim_op *slot, uint64_t limit,
                         bool tear)
{
    uint64_t offset = slot->op.offset, moved = 0;

    NOSA_ASSERT(offset % NOSA_IO_ALIGNMENT == 0);
    for (uint32_t i = 0; i < slot->op.n_vectors; i++) {
        uint8_t *memory = slot->vectors[i].iov_base;
        NOSA_ASSERT((uintptr_t)memory % NOSA_IO_ALIGNMENT == 0);
        NOSA_ASSERT(slot->vectors[i].iov_len % NOSA_IO_ALIGNMENT == 0);
        for (uint64_t at = 0; at < slot->vectors[i].iov_len; at += IO_SIM_SECTOR) {
            if (moved >= limit || offset + moved >= sim->bytes)
                return moved;
            uint8_t *place = sim->current + offset + moved;
            if (slot->op.kind == NOSA_IO_READ) {
                memcpy(memory + at, place, IO_SIM_SECTOR);
            } else if (!tear || io_sim_below(&sim->random, 2)) {
                memcpy(place, memory + at, IO_SIM_SECTOR);
                sim->dirty[(offset + moved) / IO_SIM_SECTOR] = 1 + sim->flushes;
            }
            moved += IO_SIM_SECTOR;
        }
    }
    return moved;
}

static void flush(struct io_sim *sim, uint64_t epoch)
{
    for (uint64_t i = 0; i < sim->bytes / IO_SIM_SECTOR; i++) {
        if (sim->dirty[i] == 0 || sim->dirty[i] > epoch)
            continue;
        memcpy(sim->flushed + i * IO_SIM_SECTOR, sim->current + i * IO_SIM_SECTOR, IO_SIM_SECTOR);
        sim->dirty[i] = 0;
    }
}

static void flip_in_memory(struct io_sim *sim, const struct io_sim_op *slot)
{
    const struct iovec *vector = &slot->vectors[io_sim_below(&sim->random, slot->op.n_vectors)];
    uint8_t *memory = vector->iov_base;
    memory[io_sim_below(&sim->random, (uint32_t)vector->iov_len)] ^=
        (uint8_t)(1u << io_sim_below(&sim->random, 8));
}

static int64_t perform(struct io_sim *sim, const struct io_sim_op *slot)
{
    uint64_t asked = 0;

    if (slot->forced < 0) {
        if (slot->op.kind == NOSA_IO_WRITE && slot->forced == -EIO)
            transfer(sim, slot, UINT64_MAX, true);
        return slot->forced;
    }
    if (slot->op.kind == NOSA_IO_FLUSH) {
        flush(sim, slot->epoch);
        return 0;
    }
    for (uint32_t i = 0; i < slot->op.n_vectors; i++)
        asked += slot->vectors[i].iov_len;
    if (slot->forced > 0)
        asked = (uint64_t)slot->forced;
    else if (chance(sim, sim->faults.short_transfer))
        asked = io_sim_below(&sim->random, (uint32_t)(asked / IO_SIM_SECTOR)) * IO_SIM_SECTOR;
    bool tear = slot->op.kind == NOSA_IO_WRITE && chance(sim, sim->faults.torn_write);
    uint64_t moved = transfer(sim, slot, asked, tear);
    if (slot->op.kind == NOSA_IO_READ && moved > 0 && chance(sim, sim->faults.flip_read))
        flip_in_memory(sim, slot);
    return (int64_t)moved;
}

static struct io_sim_op *next_to_complete(struct io_sim *sim)
{
    struct io_sim_op *next = NULL;
    for (uint32_t i = 0; i < sim->depth; i++) {
        struct io_sim_op *slot = &sim->ops[i];
        if (slot->used && !slot->hangs && (!next || slot->at_ns < next->at_ns))
            next = slot;
    }
    return next;
}

static void drop(struct io_sim_op *slot)
{
    free(slot->vectors);
    memset(slot, 0, sizeof *slot);
}

static uint32_t sim_reap(struct nosa_io *io, struct nosa_io_completion *out, uint32_t max,
                         uint64_t wait_ns)
{
    struct io_sim *sim = sim_of(io);
    uint64_t now_ns = nosa_clock_monotonic_ns(&sim->clock.clock);
    struct io_sim_op *next = next_to_complete(sim);
    uint32_t n = 0;

    if (wait_ns > 0 && (!next || next->at_ns > now_ns)) {
        uint64_t step_ns = next && next->at_ns - now_ns < wait_ns ? next->at_ns - now_ns : wait_ns;
        nosa_manual_clock_advance(&sim->clock, step_ns);
        now_ns += step_ns;
    }
    for (; n < max && next && next->at_ns <= now_ns; next = next_to_complete(sim)) {
        out[n++] = (struct nosa_io_completion){.tag = next->op.tag, .result = perform(sim, next)};
        drop(next);
    }
    return n;
}

static void sim_cancel(struct nosa_io *io, uint64_t tag)
{
    struct io_sim *sim = sim_of(io);
    for (uint32_t i = 0; i < sim->depth && sim->cancel_works; i++) {
        struct io_sim_op *slot = &sim->ops[i];
        if (slot->used && slot->op.tag == tag && io_sim_below(&sim->random, 2)) {
            slot->hangs = false;
            slot->forced = -ECANCELED;
        }
    }
}

static bool sim_close(struct nosa_io *io)
{
    struct io_sim *sim = sim_of(io);
    for (uint32_t i = 0; i < IO_SIM_DEPTH_MAX; i++)
        drop(&sim->ops[i]);
    sim->open = false;
    return true;
}

void io_sim_init(struct io_sim *sim, uint64_t seed)
{
    memset(sim, 0, sizeof *sim);
    nosa_manual_clock_init(&sim->clock, NOSA_NS_PER_S, UINT64_C(1800000000) * NOSA_NS_PER_S);
    sim->method = (struct nosa_io_method){.name = "simulated",
                                          .context = sim,
                                          .open = sim_open,
                                          .resize = sim_resize,
                                          .submit = sim_submit,
                                          .reap = sim_reap,
                                          .cancel = sim_cancel,
                                          .close = sim_close};
    sim->cancel_works = true;
    sim->capacity = UINT64_C(1) << 30;
    sim->random = seed;
}

void io_sim_destroy(struct io_sim *sim)
{
    for (uint32_t i = 0; i < IO_SIM_DEPTH_MAX; i++)
        drop(&sim->ops[i]);
    free(sim->current);
    free(sim->flushed);
    free(sim->dirty);
    nosa_manual_clock_destroy(&sim->clock);
}

void io_sim_crash(struct io_sim *sim)
{
    for (uint32_t i = 0; i < IO_SIM_DEPTH_MAX; i++) {
        struct io_sim_op *slot = &sim->ops[i];
        if (slot->used && slot->op.kind == NOSA_IO_WRITE && io_sim_below(&sim->random, 2))
            transfer(sim, slot, UINT64_MAX, true);
        drop(slot);
    }
    for (uint64_t i = 0; i < sim->bytes / IO_SIM_SECTOR; i++) {
        if (sim->dirty[i] != 0 && io_sim_below(&sim->random, 2))
            memcpy(sim->current + i * IO_SIM_SECTOR, sim->flushed + i * IO_SIM_SECTOR,
                   IO_SIM_SECTOR);
        sim->dirty[i] = 0;
    }
    if (sim->bytes > 0)
        memcpy(sim->flushed, sim->current, sim->bytes);
    memset(&sim->faults, 0, sizeof sim->faults);
}

void io_sim_flip(struct io_sim *sim, uint64_t offset, uint32_t bit)
{
    NOSA_ASSERT(offset < sim->bytes && bit < 8);
    sim->current[offset] ^= (uint8_t)(1u << bit);
    sim->flushed[offset] ^= (uint8_t)(1u << bit);
}

void io_sim_release(struct io_sim *sim)
{
    for (uint32_t i = 0; i < IO_SIM_DEPTH_MAX; i++)
        sim->ops[i].hangs = false;
}
