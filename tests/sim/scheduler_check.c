/* What must hold after every decision, by the simulation's own books. */
#include "scheduler_world.h"

#include <stddef.h>

static int32_t tokens_ahead(const struct world *world, const struct client *client)
{
    int64_t length = (int64_t)client->prompt + client->max_new;
    if (length > world->options.context_max)
        length = world->options.context_max;
    return client->known < length - 1 ? client->known + 1 : (int32_t)length - 1;
}

static struct nosa_scheduler_info info_of(const struct world *world, const struct client *client)
{
    struct nosa_scheduler_info info;
    nosa_scheduler_info(world->scheduler, client->id, &info);
    return info;
}

static struct client *live(const struct world *world, int32_t i)
{
    return &world->clients[world->live[i]];
}

static bool is_before(const struct client *a, const struct client *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a < b; /* clients are in order of arrival */
}

static int32_t working_set_of(const struct world *world, const struct client *client)
{
    int32_t blocks = blocks_of(tokens_ahead(world, client));
    if (client->working_set > 0)
        return client->working_set;
    return blocks < world->options.working_set_guess ? blocks : world->options.working_set_guess;
}

/* ---- actions ------------------------------------------------------------------------------ */

/* Nobody of better rank that needs no more than it waits while it is let in. */
static void check_order(const struct world *world, const struct client *let_in)
{
    int32_t needed = resident_of(world, let_in, tokens_ahead(world, let_in));

    if (let_in->group > 0)
        return;
    for (int32_t i = 0; i < world->n_live; i++) {
        const struct client *other = live(world, i);
        if (other == let_in || other->place != CLIENT_WAITING || other->group > 0 ||
            other->paused || other->dropped_at == world->arrange || !is_before(other, let_in) ||
            info_of(world, other).state != NOSA_SCHEDULER_QUEUED)
            continue;
        CHECK(world, blocks_of(tokens_ahead(world, other)) + world->options.batch_max > needed ||
                         working_set_of(world, other) > working_set_of(world, let_in));
    }
}

/* Whether another request that runs ranks before it. */
static bool runs_behind_another(const struct world *world, const struct client *client)
{
    for (int32_t i = 0; i < world->n_live; i++)
        if (is_before(live(world, i), client) && info_of(world, live(world, i)).running)
            return true;
    return false;
}

/* Nobody is suspended while one that has to go first stays: a paused one, or, where nobody has a
 * claim to steps, one that ranks behind it. */
static void check_victim(const struct world *world, const struct client *victim)
{
    if (victim->paused || victim->outsize || world->speed.failure_percent > 0)
        return;
    for (int32_t i = 0; i < world->n_live; i++) {
        const struct client *other = live(world, i);
        enum nosa_scheduler_state state = info_of(world, other).state;
        if (other == victim || other->place != CLIENT_RESIDENT || other->private == 0)
            continue;
        CHECK(world, !other->paused || state != NOSA_SCHEDULER_PAUSED ||
                         blocks_of(tokens_ahead(world, victim)) > world->options.blocks_total);
        bool stays = state == NOSA_SCHEDULER_PREFILL || state == NOSA_SCHEDULER_DECODE;
        CHECK(world, world->options.run_steps_min > 0 || !stays || is_before(other, victim) ||
                         !runs_behind_another(world, other));
    }
}

void check_action(const struct world *world, const struct nosa_scheduler_action *action)
{
    const struct client *client = &world->clients[action->tag];

    CHECK(world, client->id == action->id);
    CHECK(world, client->place != CLIENT_COMING && client->place != CLIENT_DONE);
    switch (action->kind) {
    case NOSA_SCHEDULER_CLOSE:
        CHECK(world, action->reason != NOSA_SCHEDULER_END_NONE);
        CHECK(world, action->reason == client->expected);
        CHECK(world, action->has_session == (client->place != CLIENT_WAITING));
        break;
    case NOSA_SCHEDULER_DROP:
        CHECK(world, client->place == CLIENT_RESIDENT || client->place == CLIENT_BELOW);
        CHECK(world, client->expected == NOSA_SCHEDULER_END_NONE);
        break;
    case NOSA_SCHEDULER_SUSPEND:
        CHECK(world, client->place == CLIENT_RESIDENT);
        CHECK(world, client->expected == NOSA_SCHEDULER_END_NONE);
        check_victim(world, client);
        break;
    case NOSA_SCHEDULER_SPILL:
        CHECK(world, client->place == CLIENT_RESIDENT && !client->outsize);
        CHECK(world, blocks_of(tokens_ahead(world, client)) > world->options.blocks_total);
        break;
    case NOSA_SCHEDULER_OPEN:
        CHECK(world, client->place == CLIENT_WAITING && !client->paused);
        if (!action->outsize)
            check_order(world, client);
        break;
    case NOSA_SCHEDULER_RESUME:
        CHECK(world, client->place == CLIENT_BELOW && !client->paused);
        break;
    }
    if (action->kind == NOSA_SCHEDULER_OPEN || action->kind == NOSA_SCHEDULER_RESUME)
        CHECK(world, action->outsize ||
                         blocks_of(tokens_ahead(world, client)) <= world->options.blocks_total);
}

/* ---- after an arrange --------------------------------------------------------------------- */

static void check_books(const struct world *world)
{
    struct nosa_scheduler_counters counters;
    int32_t in[CLIENT_DONE + 1] = {0}, paused = 0;
    int64_t pending = 0;

    nosa_scheduler_counters(world->scheduler, &counters);
    for (int32_t i = 0; i < world->n_live; i++) {
        const struct client *client = live(world, i);
        struct nosa_scheduler_info info = info_of(world, client);
        in[client->place]++;
        paused += client->paused;
        pending += info.known_tokens - info.computed_tokens;
        CHECK(world, info.known_tokens == client->known);
        CHECK(world, info.new_tokens == client->generated);
        CHECK(world, client->place != CLIENT_RESIDENT || info.computed_tokens == client->computed);
        CHECK(world, (info.state == NOSA_SCHEDULER_PAUSED) == client->paused);
    }
    CHECK(world, counters.queued == in[CLIENT_WAITING]);
    CHECK(world, counters.loading == in[CLIENT_LOADING]);
    CHECK(world, counters.running + counters.ready == in[CLIENT_RESIDENT]);
    CHECK(world, counters.suspended == in[CLIENT_SAVING] + in[CLIENT_BELOW]);
    CHECK(world, counters.paused == paused);
    CHECK(world, counters.prefill_tokens_pending == pending);
    CHECK(world, counters.running + counters.loading <= world->options.batch_max);
    CHECK(world, world->n_sessions == world->n_live - in[CLIENT_WAITING]);
    CHECK(world, counters.drops == (uint64_t)world->drops);
    CHECK(world, counters.suspends == (uint64_t)world->evicted);
}

/* What has ended is closed within one arrange. */
static void check_closed(const struct world *world)
{
    for (int32_t i = 0; i < world->n_live; i++) {
        CHECK(world, live(world, i)->expected == NOSA_SCHEDULER_END_NONE);
        CHECK(world, live(world, i)->deadline_ns > world->now_ns);
    }
}

/* Whoever waits for a prefix waits for one that is being computed. */
static void check_parked(const struct world *world)
{
    struct nosa_scheduler_counters counters;
    bool led[GROUPS_MAX] = {false};
    int32_t n = 0;

    nosa_scheduler_counters(world->scheduler, &counters);
    for (int32_t i = 0; i < world->n_live; i++) {
        const struct client *client = live(world, i);
        int32_t prefix = 64 * world->store.groups[client->group].prefix_blocks;
        bool computes = client->place == CLIENT_RESIDENT || client->place == CLIENT_LOADING;
        led[client->group] |= computes && !client->paused && client->computed < prefix;
    }
    for (int32_t i = 0; i < world->n_live; i++)
        n += live(world, i)->place == CLIENT_WAITING && led[live(world, i)->group];
    CHECK(world, counters.parked <= n);
}

/* The first of those that wait is in when a place, its blocks and its working set are free. */
static void check_work_conserved(const struct world *world)
{
    const struct nosa_scheduler_options *options = &world->options;
    const struct client *first = NULL;
    struct nosa_scheduler_store report = store_report(world);
    int64_t blocks = report.blocks_available, working_sets = 0;
    int32_t n_batch = 0;

    for (int32_t i = 0; i < world->n_live; i++) {
        const struct client *client = live(world, i);
        bool runs = client->place == CLIENT_LOADING || info_of(world, client).running;
        bool waits = !runs && client->place != CLIENT_SAVING;
        if (waits && !client->paused && (!first || is_before(client, first)))
            first = client;
        if (!runs)
            continue;
        n_batch++;
        working_sets += working_set_of(world, client);
        blocks -= resident_of(world, client, tokens_ahead(world, client)) - client->shared -
                  client->private;
    }
    if (!first || first->group > 0 || first->dropped_at == world->arrange ||
        first->place == CLIENT_RESIDENT ||
        (first->place == CLIENT_WAITING && world->n_sessions >= options->sequences_max))
        return;
    int32_t needed = blocks_of(tokens_ahead(world, first));
    bool blocks_fit = needed <= options->blocks_total && needed + n_batch < blocks;
    bool slots_fit = options->slots == 0 || n_batch == 0 ||
                     working_sets + working_set_of(world, first) <= options->slots;
    CHECK(world, !blocks_fit || !slots_fit || n_batch >= options->batch_max);
}

void check_arranged(const struct world *world, const struct nosa_scheduler_actions *actions)
{
    check_closed(world);
    check_books(world);
    check_parked(world);
    if (actions->n_actions == 0)
        check_work_conserved(world);
}

/* ---- rows --------------------------------------------------------------------------------- */

static int32_t needed_for(const struct world *world, const struct client *client, int32_t n_tokens)
{
    return resident_of(world, client, client->computed + n_tokens) -
           resident_of(world, client, client->computed);
}

/* Those that are in the batch and could compute, but for blocks. */
static bool could_run(const struct world *world, const struct client *client)
{
    return client->place == CLIENT_RESIDENT && !client->paused && info_of(world, client).running;
}

struct row_sums {
    int32_t decode, prefill, tokens, blocks;
    bool outsize;
};

static void check_each_row(const struct world *world, const struct nosa_scheduler_rows *rows,
                           struct row_sums *sums)
{
    for (int32_t i = 0; i < rows->n_rows; i++) {
        const struct nosa_scheduler_row *row = &rows->rows[i];
        const struct client *client = &world->clients[row->tag];
        int32_t left = client->known - client->computed;
        CHECK(world, client->id == row->id && could_run(world, client));
        CHECK(world, row->n_tokens >= 1 && row->n_tokens <= left);
        CHECK(world, row->outsize == client->outsize && (!row->outsize || rows->n_rows == 1));
        for (int32_t j = 0; j < i; j++)
            CHECK(world, rows->rows[j].id != row->id);
        CHECK(world, left > 1 || sums->prefill == 0); /* decode rows first */
        sums->tokens += row->n_tokens;
        sums->decode += left == 1;
        sums->prefill += left > 1 ? row->n_tokens : 0;
        sums->blocks += needed_for(world, client, row->n_tokens);
        sums->outsize |= row->outsize;
    }
}

static bool has_row(const struct nosa_scheduler_rows *rows, const struct client *client)
{
    for (int32_t i = 0; i < rows->n_rows; i++)
        if (rows->rows[i].id == client->id)
            return true;
    return false;
}

/* Whoever could compute does, unless blocks or the budget are used up. Returns how many of the
 * others than outsize ones wait for one token only. */
static int32_t check_all_served(const struct world *world, const struct nosa_scheduler_rows *rows,
                                const struct row_sums *sums)
{
    const struct nosa_scheduler_options *options = &world->options;
    int32_t blocks_left = store_report(world).blocks_available - sums->blocks;
    int32_t n_decoding = 0, n_unserved_decode = 0, n_unserved_prefill = 0;

    for (int32_t i = 0; i < world->n_live; i++) {
        const struct client *client = live(world, i);
        if (!could_run(world, client) || client->outsize)
            continue;
        bool decodes = client->known - client->computed == 1;
        bool served = has_row(rows, client) || needed_for(world, client, 1) > blocks_left;
        n_decoding += decodes;
        n_unserved_decode += decodes && !served;
        n_unserved_prefill += !decodes && !served;
    }
    int32_t budget = options->step_tokens_max - (sums->outsize ? 0 : sums->decode);
    if (n_decoding > 0 && budget > options->prefill_chunk_max)
        budget = options->prefill_chunk_max;
    CHECK(world, sums->prefill <= budget);
    if (sums->outsize) {
        CHECK(world, !world->last_outsize || n_unserved_decode + n_unserved_prefill == 0);
        return n_decoding;
    }
    CHECK(world, n_unserved_decode == 0);
    CHECK(world, n_unserved_prefill == 0 || sums->prefill == budget);
    return n_decoding;
}

/* Working sets beyond the first tier last no longer than the steps that were promised. */
static void check_crowding(struct world *world)
{
    const struct nosa_scheduler_options *options = &world->options;
    int64_t working_sets = 0;
    int32_t n = 0;

    for (int32_t i = 0; i < world->n_live; i++) {
        const struct client *client = live(world, i);
        if (client->outsize || !info_of(world, client).running)
            continue;
        working_sets += info_of(world, client).working_set;
        n++;
    }
    bool crowded = options->slots > 0 && n > 1 && working_sets > options->slots;
    world->crowded_steps = crowded ? world->crowded_steps + 1 : 0;
    CHECK(world, world->crowded_steps <= 2 * options->run_steps_min + 4);
}

/* The first by rank of all that could go on gets on, whatever comes. */
static void check_first_gets_on(struct world *world)
{
    const struct client *first = NULL;

    for (int32_t i = 0; i < world->n_live; i++)
        if (!live(world, i)->paused && live(world, i)->expected == NOSA_SCHEDULER_END_NONE &&
            (!first || is_before(live(world, i), first)))
            first = live(world, i);
    if (!first || world->moves_pending > 0 || world->store.withheld > 0 ||
        world->store.lower_withheld > 0 || first->id != world->first_id ||
        (first->place == CLIENT_WAITING && first->group > 0)) {
        world->first_id = first ? first->id : 0;
        world->first_since = world->step;
        return;
    }
    int32_t since =
        first->progress_at > world->first_since ? first->progress_at : world->first_since;
    CHECK(world, world->step - since <= 4 * world->options.run_steps_min + 24);
}

void check_rows(struct world *world, const struct nosa_scheduler_rows *rows)
{
    struct row_sums sums = {0};

    check_each_row(world, rows, &sums);
    CHECK(world, rows->n_rows <= world->options.batch_max);
    CHECK(world, sums.tokens == rows->n_tokens && sums.tokens <= world->options.step_tokens_max);
    CHECK(world, sums.blocks <= store_report(world).blocks_available);
    check_all_served(world, rows, &sums);
    world->last_outsize = sums.outsize;
    check_crowding(world);
    check_first_gets_on(world);
}

/* ---- rest --------------------------------------------------------------------------------- */

void check_idle(const struct world *world)
{
    if (world->moves_pending > 0)
        return;
    for (int32_t i = 0; i < world->n_live; i++)
        CHECK(world, live(world, i)->paused);
}

void check_end(const struct world *world)
{
    struct nosa_scheduler_counters counters;

    for (int32_t i = 0; i < world->n_clients; i++)
        CHECK(world, world->clients[i].place == CLIENT_DONE);
    CHECK(world, world->n_live == 0 && world->n_sessions == 0 && world->moves_pending == 0);
    CHECK(world, world->store.private_used == 0 && world->store.lower_used == 0);
    CHECK(world, store_report(world).blocks_available == world->options.blocks_total);
    nosa_scheduler_counters(world->scheduler, &counters);
    CHECK(world, counters.queued == 0 && counters.loading == 0 && counters.ready == 0 &&
                     counters.running == 0 && counters.suspended == 0 && counters.paused == 0 &&
                     counters.parked == 0 && counters.prefill_tokens_pending == 0);
}
