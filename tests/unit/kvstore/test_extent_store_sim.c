/*
 * The extent store against a plain model, on the simulated disk: random writes, reads, pins,
 * forgetting, cancellation, close, crash and reopen, with random faults, all drawn from a seed.
 *
 *     test_extent_store_sim [count [first seed]]     default: 3000 seeds from 1
 *     test_extent_store_sim 1 SEED                   replays one
 *
 * Held in every run: a read that ends OK is exact; every accepted request completes once, and once
 * more when its buffer was held; what was reported as written outlives a crash unless the disk
 * lies; after it all, every extent can be written again.
 */
#include "extent_store.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/log.h"
#include "extent_fixture.h"
#include "support/io_sim.h"

#define NUMBERS  40 /* blocks that a run knows */
#define SLOTS    12 /* buffers, and so requests at once */
#define STEPS    150
#define PINS_MAX 3

struct slot {
    bool used;
    bool held; /* reported with buffer_held; RELEASED must follow */
    enum nosa_extent_request_kind kind;
    uint32_t number;
    uint64_t losses; /* write: blocks given up when it began */
    uint32_t n;
    uint32_t records[3];
    char *memory; /* an image */
};

struct run {
    uint64_t seed;
    uint64_t random;
    struct io_sim sim;
    struct nosa_extent_store *store;
    struct nosa_extent_store_options options;
    struct io_sim_faults faults;
    bool lies; /* the disk reports what it did not do */
    uint32_t n_extents;
    uint64_t use;
    uint64_t forgets;
    struct slot slots[SLOTS];
    struct nosa_extent_handle pins[PINS_MAX];
    uint32_t n_pins;
};

static uint64_t seed_count = 3000, seed_first = 1;

#define CHECK(run, condition)                                                                      \
    do {                                                                                           \
        if (!(condition))                                                                          \
            fail_msg("seed %llu: %s", (unsigned long long)(run)->seed, #condition);                \
    } while (0)

static uint32_t below(struct run *run, uint32_t n)
{
    return io_sim_below(&run->random, n);
}

static void open_store(struct run *run)
{
    struct nosa_error error = {0};
    if (nosa_extent_store_open(&run->options, &run->store, &error) != NOSA_OK)
        fail_msg("seed %llu: %s", (unsigned long long)run->seed, error.text);
    run->sim.faults = run->faults;
}

/* Blocks that were findable and are so no more. */
static uint64_t losses(const struct run *run)
{
    struct nosa_extent_store_counters counters;
    nosa_extent_store_counters(run->store, &counters);
    return counters.evicted_extents + counters.corrupt_extents + counters.unreadable_extents +
           run->forgets;
}

static void check_data(struct run *run, const struct slot *slot)
{
    const struct nosa_extent_geometry *geometry = &fixture_geometry;
    switch (slot->kind) {
    case NOSA_EXTENT_READ_IMAGE:
        CHECK(run, fixture_image_is(geometry, slot->number, slot->memory));
        break;
    case NOSA_EXTENT_READ_SUMMARIES:
        CHECK(run, fixture_summaries_are(geometry, slot->number, slot->memory));
        break;
    case NOSA_EXTENT_READ_RECORDS:
        for (uint32_t i = 0; i < slot->n; i++)
            CHECK(run, fixture_record_is(geometry, slot->number, slot->records[i],
                                         slot->memory + (size_t)i * 4096));
        break;
    default:
        CHECK(run, fixture_find(run->store, slot->number).index != NOSA_EXTENT_NONE ||
                       losses(run) > slot->losses);
        break;
    }
}

static void take(struct run *run, const struct nosa_extent_completion *completion)
{
    CHECK(run, completion->token < SLOTS);
    struct slot *slot = &run->slots[completion->token];
    CHECK(run, slot->used && completion->kind == slot->kind);
    if (slot->held) {
        CHECK(run, completion->result == NOSA_EXTENT_RELEASED && !completion->buffer_held);
        slot->used = false;
        return;
    }
    CHECK(run, completion->result != NOSA_EXTENT_RELEASED);
    if (completion->result == NOSA_EXTENT_OK)
        check_data(run, slot);
    if (completion->result == NOSA_EXTENT_CORRUPT)
        CHECK(run, run->lies);
    slot->held = completion->buffer_held;
    slot->used = slot->held;
    if (slot->held)
        CHECK(run, completion->result == NOSA_EXTENT_TIMED_OUT);
    else if (slot->kind != NOSA_EXTENT_WRITE && completion->result != NOSA_EXTENT_OK)
        memset(slot->memory, 0x5a, 4096); /* nothing may write there any more */
}

static void poll_store(struct run *run, uint32_t wait_ms)
{
    struct nosa_extent_completion completions[4];
    uint32_t n = nosa_extent_store_poll(run->store, completions, 4, wait_ms);
    for (uint32_t i = 0; i < n; i++)
        take(run, &completions[i]);
}

static struct slot *unused_slot(struct run *run, uint64_t *token)
{
    for (*token = 0; *token < SLOTS; ++*token)
        if (!run->slots[*token].used)
            return &run->slots[*token];
    return NULL;
}

static void begin_write(struct run *run, uint32_t number)
{
    uint64_t token;
    struct slot *slot = unused_slot(run, &token);
    if (!slot)
        return;
    fixture_fill(&fixture_geometry, number, slot->memory);
    float value = (float)below(run, 4);
    if (fixture_write(run->store, token, number, slot->memory, run->use += below(run, 2), value) !=
        NOSA_OK)
        return;
    slot->used = true;
    slot->held = false;
    slot->kind = NOSA_EXTENT_WRITE;
    slot->number = number;
    slot->losses = losses(run);
}

static void choose_records(struct run *run, struct slot *slot, void *buffers[3])
{
    slot->n = 1 + below(run, 3);
    uint32_t first = below(run, 3);
    for (uint32_t i = 0; i < slot->n; i++) {
        slot->records[i] = below(run, 2) ? (first + i) % 3 : below(run, 3);
        buffers[i] = slot->memory + (size_t)i * 4096;
    }
}

static void begin_read(struct run *run, uint32_t number)
{
    uint64_t token;
    struct slot *slot = unused_slot(run, &token);
    struct nosa_extent_handle handle = fixture_find(run->store, number);
    enum nosa_status status;
    void *buffers[3];

    if (!slot || handle.index == NOSA_EXTENT_NONE)
        return;
    slot->kind = (enum nosa_extent_request_kind)below(run, 3);
    slot->number = number;
    slot->held = false;
    if (slot->kind == NOSA_EXTENT_READ_IMAGE) {
        status = nosa_extent_store_read_image(run->store, token, handle, slot->memory);
    } else if (slot->kind == NOSA_EXTENT_READ_SUMMARIES) {
        status = nosa_extent_store_read_summaries(run->store, token, handle, slot->memory);
    } else if (below(run, 4) == 0) {
        struct nosa_extent_completion completion;
        choose_records(run, slot, buffers);
        slot->used = true;
        status = nosa_extent_store_read_records_wait(run->store, token, handle, slot->records,
                                                     buffers, slot->n, &completion);
        CHECK(run, status == NOSA_OK || status == NOSA_UNAVAILABLE);
        if (status == NOSA_OK)
            take(run, &completion);
        else
            slot->used = false;
        return;
    } else {
        choose_records(run, slot, buffers);
        status = nosa_extent_store_read_records(run->store, token, handle, slot->records, buffers,
                                                slot->n);
    }
    CHECK(run, status == NOSA_OK || status == NOSA_UNAVAILABLE);
    slot->used = status == NOSA_OK;
}

static void pin_or_unpin(struct run *run, uint32_t number)
{
    if (run->n_pins == PINS_MAX || (run->n_pins > 0 && below(run, 2))) {
        nosa_extent_store_unpin(run->store, run->pins[--run->n_pins]);
        return;
    }
    struct nosa_extent_handle handle = fixture_find(run->store, number);
    if (nosa_extent_store_pin(run->store, handle))
        run->pins[run->n_pins++] = handle;
}

static void forget(struct run *run, uint32_t number)
{
    nosa_extent_store_forget(run->store, fixture_find(run->store, number));
    run->forgets++;
}

static void end_store(struct run *run)
{
    CHECK(run, nosa_extent_store_close(run->store) == 0);
    memset(&run->sim.faults, 0, sizeof run->sim.faults);
    for (uint32_t i = 0; i < SLOTS; i++)
        run->slots[i].used = false;
    run->n_pins = 0;
}

/* Everything findable before is so after, and reads exactly. */
static void reopen(struct run *run, bool crash)
{
    bool there[NUMBERS];
    for (uint32_t i = 0; i < NUMBERS; i++)
        there[i] = fixture_find(run->store, i).index != NOSA_EXTENT_NONE;
    if (crash)
        io_sim_crash(&run->sim);
    end_store(run);
    struct io_sim_faults faults = run->faults;
    memset(&run->faults, 0, sizeof run->faults);
    open_store(run);
    for (uint32_t i = 0; i < NUMBERS; i++) {
        enum nosa_extent_result result = fixture_get(run->store, i);
        if (run->lies)
            CHECK(run, result == NOSA_EXTENT_OK || result == NOSA_EXTENT_CANCELLED ||
                           result == NOSA_EXTENT_CORRUPT);
        else
            CHECK(run, result == NOSA_EXTENT_OK || (result == NOSA_EXTENT_CANCELLED && !there[i]));
    }
    run->faults = faults;
    run->sim.faults = faults;
}

static void step(struct run *run)
{
    uint32_t number = below(run, NUMBERS), what = below(run, 100);

    if (what < 30)
        begin_write(run, number);
    else if (what < 60)
        begin_read(run, number);
    else if (what < 85)
        poll_store(run, below(run, 3));
    else if (what < 88)
        forget(run, number);
    else if (what < 92)
        pin_or_unpin(run, number);
    else if (what < 94)
        nosa_extent_store_touch(run->store, fixture_find(run->store, number), ++run->use, 1);
    else if (what < 97)
        nosa_extent_store_cancel(run->store, below(run, SLOTS));
    else if (what < 98)
        nosa_manual_clock_advance(&run->sim.clock, below(run, 50) * NOSA_NS_PER_MS);
    else if (what == 98)
        nosa_extent_store_submit(run->store);
    else if (below(run, 3) == 0)
        reopen(run, below(run, 2));
}

/* A handful of faults, some frequent; many runs have none. */
static void draw_faults(struct run *run)
{
    uint32_t *chances[] = {&run->faults.read_error,     &run->faults.write_error,
                           &run->faults.no_space,       &run->faults.flush_error,
                           &run->faults.short_transfer, &run->faults.again,
                           &run->faults.refuse,         &run->faults.hang,
                           &run->faults.flip_read,      &run->faults.torn_write};
    if (below(run, 4) == 0)
        return;
    for (uint32_t i = 0; i < sizeof chances / sizeof *chances; i++)
        if (below(run, 4) == 0)
            *chances[i] = 1 + below(run, 1u << below(run, 9));
    run->lies = run->faults.flip_read > 0 || run->faults.torn_write > 0;
    run->sim.cancel_works = below(run, 2);
}

/* Without faults and with nothing held, all place can be used: none was lost on the way. */
static void check_place(struct run *run)
{
    struct nosa_extent_store_counters counters;

    memset(&run->sim.faults, 0, sizeof run->sim.faults);
    io_sim_release(&run->sim);
    while (run->n_pins > 0)
        nosa_extent_store_unpin(run->store, run->pins[--run->n_pins]);
    for (int i = 0; i < 1000 && nosa_extent_store_pending(run->store) > 0; i++)
        poll_store(run, 10);
    CHECK(run, nosa_extent_store_pending(run->store) == 0);
    for (uint32_t i = 0; i < SLOTS; i++)
        CHECK(run, !run->slots[i].used);
    fixture_settle(run->store);
    nosa_manual_clock_advance(&run->sim.clock, 2 * NOSA_NS_PER_S); /* clearing is tried again */
    fixture_settle(run->store);
    nosa_extent_store_counters(run->store, &counters);
    CHECK(run, counters.extents_pinned == 0 && counters.operations_in_flight == 0);
    uint32_t reserve = run->n_extents / 16;
    for (uint32_t i = 0; i < run->n_extents; i++)
        CHECK(run, fixture_put(run->store, 1000 + i, run->use + 1 + i, 0).result == NOSA_EXTENT_OK);
    for (uint32_t i = reserve; i < run->n_extents; i++)
        CHECK(run, fixture_get(run->store, 1000 + i) == NOSA_EXTENT_OK);
}

static void run_seed(uint64_t seed)
{
    struct run run = {.seed = seed, .random = seed};

    io_sim_init(&run.sim, seed);
    run.n_extents = 1 + below(&run, 30);
    run.options = fixture_options("simulated", run.n_extents);
    run.options.method = &run.sim.method;
    run.options.clock = &run.sim.clock.clock;
    run.options.depth = 4 + below(&run, 12);
    run.options.requests_max = 4 + below(&run, 12);
    run.options.deadline_ms = 20 + below(&run, 100);
    for (uint32_t i = 0; i < SLOTS; i++)
        run.slots[i].memory = fixture_pages(nosa_extent_image_bytes(&fixture_geometry));
    open_store(&run);
    draw_faults(&run);
    run.sim.faults = run.faults;
    for (int i = 0; i < STEPS; i++)
        step(&run);
    check_place(&run);
    end_store(&run);
    for (uint32_t i = 0; i < SLOTS; i++)
        free(run.slots[i].memory);
    io_sim_destroy(&run.sim);
}

static void test_extent_store_random_steps(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < seed_count; i++)
        run_seed(seed_first + i);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_extent_store_random_steps)};
    const struct nosa_log_options quiet = {.level = NOSA_LOG_ERROR, .descriptor = 2};

    if (argc > 1)
        seed_count = strtoull(argv[1], NULL, 10);
    if (argc > 2)
        seed_first = strtoull(argv[2], NULL, 10);
    nosa_log_configure(&quiet);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
