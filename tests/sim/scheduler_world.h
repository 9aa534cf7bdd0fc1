/*
 * A virtual worker around the scheduler: clients, KV store, engine and time, all from one seed.
 *
 *   scheduler_world.c  moves time and carries out what the scheduler decides
 *   scheduler_store.c  the KV store: block ids, shared prefixes, the place below
 *   scheduler_check.c  what must hold after every decision
 *   scheduler_draw.c   small random worlds, each from its seed
 *   scheduler_load.c   a large mixed load, measured (program option --table)
 *
 * Store and checks keep their own books from actions and results alone; from the scheduler they
 * read decisions and, to compare, its counters.
 */
#ifndef NOSA_TESTS_SIM_SCHEDULER_WORLD_H
#define NOSA_TESTS_SIM_SCHEDULER_WORLD_H

#include <stdbool.h>
#include <stdint.h>

#include "scheduler/scheduler.h"

#define GROUPS_MAX        4
#define PREFIX_BLOCKS_MAX 24
#define NEVER             UINT64_MAX
#define US                UINT64_C(1000)
#define MS                UINT64_C(1000000)

/* Where a client's request is, as its actions say. */
enum client_place {
    CLIENT_COMING,  /* not submitted yet */
    CLIENT_WAITING, /* no session */
    CLIENT_LOADING,
    CLIENT_RESIDENT,
    CLIENT_SAVING,
    CLIENT_BELOW,
    CLIENT_DONE, /* closed, or refused */
};

struct client {
    /* drawn */
    uint64_t arrival_ns;
    uint64_t waited_ns; /* before, elsewhere */
    uint64_t deadline_ns;
    uint64_t cancel_ns;
    uint64_t read_ns; /* between two reads; 0: reads at once */
    int32_t read_tokens;
    int32_t priority;
    int32_t prompt;
    int32_t max_new;
    int32_t stop_after; /* tokens after which it stops by itself; 0: never */
    int32_t fail_after; /* tokens after which its session fails; 0: never */
    int32_t group;      /* whose prefix it begins with; 0: none */
    int32_t working_set_max;

    /* the request */
    enum client_place place;
    uint64_t id;
    int64_t rank; /* by the documented rule */
    int32_t known;
    int32_t computed;
    int32_t generated;
    int32_t waiting; /* tokens not read */
    bool paused;
    bool outsize;
    enum nosa_scheduler_end expected; /* how it must end, once that is known */
    int32_t working_set;              /* as last reported; 0: not yet */

    /* its KV in the store */
    int32_t shared;  /* blocks of the group's prefix that it refers to */
    int32_t private; /* block ids of its own */
    int32_t lower;   /* blocks below: a saved copy, or the tail of an outsize one */
    int32_t loading; /* tokens on their way up */

    /* for checks and measurements */
    int32_t steps_run;   /* rows since it was let in */
    bool got_row;        /* in the last step it could be part of */
    int32_t dropped_at;  /* arrange that dropped it last */
    int32_t progress_at; /* step of its last row or change of place */
    uint64_t first_token_ns;
    uint64_t last_token_ns;
    uint64_t gap_max_ns; /* the longest time between two of its tokens */
};

struct group {
    int32_t prefix_blocks;
    int32_t present; /* its first blocks that are findable */
    int32_t on_nvme; /* its first blocks that can be loaded */
    int32_t references[PREFIX_BLOCKS_MAX];
};

struct store {
    int32_t withheld; /* blocks that others than sequences use for a while */
    int32_t lower_withheld;
    int32_t private_used;
    int32_t lower_used;
    struct group groups[GROUPS_MAX];
};

enum event_kind { EVENT_ARRIVAL, EVENT_CANCEL, EVENT_READ, EVENT_LOADED, EVENT_SAVED };

struct event {
    uint64_t time_ns;
    uint64_t order;
    enum event_kind kind;
    int32_t client;
    uint64_t id; /* of the request that it is about; stale when another follows */
};

/* How the virtual engine and disks behave. */
struct world_speed {
    uint64_t step_ns;
    uint64_t prefill_token_ns;
    uint64_t decode_row_ns;
    int32_t slots;           /* of the first tier; 0: options.slots */
    uint64_t miss_ns;        /* for each block's worth of working sets beyond the slots */
    uint64_t block_move_ns;  /* up or down; 0: moves are done at once */
    int32_t failure_percent; /* of moves */
    bool withholds;          /* the store has fewer blocks now and then */
};

struct world {
    uint64_t seed;
    uint64_t random;
    bool checked; /* scheduler_check.c looks at every decision, and now and then one is cancelled
                     between */
    bool verbose;
    struct nosa_scheduler_options options;
    struct world_speed speed;
    struct nosa_scheduler *scheduler;
    struct store store;
    struct client *clients; /* owned: [n_clients] */
    int32_t n_clients;
    int32_t *live; /* owned: [n_clients] submitted and not closed */
    int32_t n_live;
    struct event *events; /* owned: a heap */
    int32_t n_events;
    int32_t events_max;
    uint64_t n_ordered;
    uint64_t now_ns;
    int32_t n_sessions;
    int32_t arrange; /* numbers, from 1 */
    int32_t step;
    int32_t woken_at_once;
    int32_t moves_pending; /* loads and saves on their way */
    bool last_outsize;
    uint64_t first_id; /* of the first by rank that could go on, and the step it became so */
    int32_t first_since;
    int32_t crowded_steps;                 /* in a row with working sets beyond the slots */
    const struct nosa_scheduler_row *rows; /* while they are outstanding */
    int32_t n_rows;
    /* totals */
    int64_t prefill_tokens, decode_tokens, steps, refused, evicted, drops, outsize_steps, parked;
    int64_t hasty; /* of those evicted: unpaused, and before they had run their steps */
    uint64_t busy_ns;
    uint64_t ended[7];
};

/* ---- scheduler_world.c ---------------------------------------------------------------------- */

/* Fails the test: says what, where and how to replay it. Does not return. */
void world_fail(const struct world *world, const char *file, int line, const char *text);

#define CHECK(world, expression)                                                                   \
    do {                                                                                           \
        if (!(expression))                                                                         \
            world_fail(world, __FILE__, __LINE__, #expression);                                    \
    } while (0)

/* Numbers from the seed: below n; first to last; true in `percent` of all calls. */
int64_t world_draw(struct world *world, int64_t n);
int64_t world_between(struct world *world, int64_t first, int64_t last);
bool world_chance(struct world *world, int32_t percent);

/* Takes memory for n_clients clients (zeroed) and makes the scheduler from world->options. */
void world_open(struct world *world, int32_t n_clients);
/* Runs until every client is done. */
void world_run(struct world *world);
void world_close(struct world *world);

/* ---- scheduler_store.c ---------------------------------------------------------------------- */

int32_t blocks_of(int32_t n_tokens);
/* Blocks with KV of n_tokens that are resident, and below, of an outsize or other sequence. */
int32_t resident_of(const struct world *world, const struct client *client, int32_t n_tokens);
int32_t tail_of(const struct world *world, const struct client *client, int32_t n_tokens);

struct nosa_scheduler_store store_report(const struct world *world);
/* The scheduler's probe; context is the world. */
void store_probe(void *context, uint64_t tag, struct nosa_scheduler_prefix *out);

/* Opens a session; returns the tokens whose KV is there, *loading those that will be. */
int32_t store_open(struct world *world, struct client *client, int32_t *loading);
/* Computes n_tokens more. */
void store_compute(struct world *world, struct client *client, int32_t n_tokens);
void store_save(struct world *world, struct client *client);
void store_saved(struct world *world, struct client *client, bool moved);
void store_resume(struct world *world, struct client *client);
/* The first n_tokens have come up, the rest is lost. */
void store_loaded(struct world *world, struct client *client, int32_t n_tokens);
void store_spill(struct world *world, struct client *client);
/* Gives everything back. */
void store_close(struct world *world, struct client *client);

/* ---- scheduler_check.c ---------------------------------------------------------------------- */

/* Before the action is carried out. */
void check_action(const struct world *world, const struct nosa_scheduler_action *action);
/* After all actions of an arrange. */
void check_arranged(const struct world *world, const struct nosa_scheduler_actions *actions);
void check_rows(struct world *world, const struct nosa_scheduler_rows *rows);
/* When nothing is to be done now. */
void check_idle(const struct world *world);
void check_end(const struct world *world);

/* ---- scheduler_draw.c ---------------------------------------------------------------------- */

/* One small random world from its seed, checked; adds to *totals. */
void world_run_seed(uint64_t seed, bool verbose, struct world *totals);

/* ---- scheduler_load.c ----------------------------------------------------------------------- */

void load_print_table(void);

#endif
