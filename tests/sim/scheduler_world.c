/* Time of the simulation, and the loop of a worker around the scheduler. */
#include "scheduler_world.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STEPS_MAX 1000000
#define BATCH_MAX 64

/* ---- random numbers ----------------------------------------------------------------------- */

static uint64_t next_random(struct world *world)
{
    uint64_t x = world->random += 0x9e3779b97f4a7c15u; /* splitmix64 */
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

int64_t world_draw(struct world *world, int64_t n)
{
    return (int64_t)(next_random(world) % (uint64_t)n);
}

int64_t world_between(struct world *world, int64_t first, int64_t last)
{
    return first + world_draw(world, last - first + 1);
}

bool world_chance(struct world *world, int32_t percent)
{
    return world_draw(world, 100) < percent;
}

void world_fail(const struct world *world, const char *file, int line, const char *text)
{
    struct nosa_scheduler_store report = store_report(world);

    fflush(stdout);
    fprintf(stderr, "free: %d of %d blocks, %d of %d below; %d sessions, %d moves on their way\n",
            (int)report.blocks_available, (int)world->options.blocks_total,
            (int)report.lower_blocks_available, (int)world->options.lower_blocks_total,
            (int)world->n_sessions, (int)world->moves_pending);
    fprintf(stderr,
            "%s:%d: seed %llu, arrange %d, step %d, %.6f s: %s\nreplay with: "
            "test_scheduler_sim %llu\n",
            file, line, (unsigned long long)world->seed, (int)world->arrange, (int)world->step,
            (double)world->now_ns / 1e9, text, (unsigned long long)world->seed);
    exit(1);
}

/* ---- events ------------------------------------------------------------------------------- */

static bool is_earlier(const struct event *a, const struct event *b)
{
    return a->time_ns != b->time_ns ? a->time_ns < b->time_ns : a->order < b->order;
}

static void push_event(struct world *world, uint64_t time_ns, enum event_kind kind, int32_t client)
{
    struct event event = {time_ns, world->n_ordered++, kind, client, world->clients[client].id};
    int32_t at = world->n_events++;

    CHECK(world, at < world->events_max);
    while (at > 0 && is_earlier(&event, &world->events[(at - 1) / 2])) {
        world->events[at] = world->events[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    world->events[at] = event;
}

static struct event pop_event(struct world *world)
{
    struct event first = world->events[0], last = world->events[--world->n_events];
    int32_t at = 0;

    for (;;) {
        int32_t child = 2 * at + 1;
        if (child >= world->n_events)
            break;
        if (child + 1 < world->n_events &&
            is_earlier(&world->events[child + 1], &world->events[child]))
            child++;
        if (!is_earlier(&world->events[child], &last))
            break;
        world->events[at] = world->events[child];
        at = child;
    }
    world->events[at] = last;
    return first;
}

static void expect(struct client *client, enum nosa_scheduler_end end)
{
    if (client->expected == NOSA_SCHEDULER_END_NONE)
        client->expected = end;
}

/* ---- what happens to a client ------------------------------------------------------------- */

/* The documented rule of pausing. */
static void set_waiting(struct world *world, struct client *client, int32_t waiting)
{
    int32_t bound = world->options.reader_tokens_max;
    client->waiting = waiting;
    client->paused = client->paused ? waiting > bound / 2 : waiting >= bound;
}

static void log_client(const struct world *world, const char *what, const struct client *client)
{
    if (world->verbose)
        printf("%10.6f  %-9s %3d  known %d computed %d place %d\n", (double)world->now_ns / 1e9,
               what, (int)(client - world->clients), (int)client->known, (int)client->computed,
               (int)client->place);
}

static bool can_ever_fit(const struct world *world, const struct client *client)
{
    const struct nosa_scheduler_options *options = &world->options;
    int64_t length = (int64_t)client->prompt + client->max_new;
    if (length > options->context_max)
        length = options->context_max;
    int32_t blocks = blocks_of((int32_t)length - 1);
    return blocks <= options->blocks_total ||
           (options->outsize_blocks > 0 &&
            blocks <= options->outsize_blocks + options->lower_blocks_total);
}

static void submit(struct world *world, int32_t index)
{
    struct client *client = &world->clients[index];
    const struct group *group = &world->store.groups[client->group];
    struct nosa_scheduler_request request = {
        .tag = (uint64_t)index,
        .priority = client->priority,
        .arrival_ns = client->arrival_ns - client->waited_ns,
        .deadline_ns = client->deadline_ns,
        .known_tokens = client->prompt,
        .max_new_tokens = client->max_new,
        .prefix_key = client->group ? 1000 + (uint64_t)client->group : 0,
        .prefix_tokens = client->group ? 64 * group->prefix_blocks : 0,
    };
    struct nosa_error error = {0};
    enum nosa_status status =
        nosa_scheduler_submit(world->scheduler, &request, &client->id, &error);
    if (!can_ever_fit(world, client)) {
        CHECK(world, status == NOSA_RESOURCE_EXHAUSTED && strstr(error.text, "KV blocks"));
    } else if (status != NOSA_OK) {
        struct nosa_scheduler_counters counters;
        nosa_scheduler_counters(world->scheduler, &counters);
        CHECK(world, status == NOSA_RESOURCE_EXHAUSTED && strstr(error.text, "queue is full"));
        CHECK(world, counters.queued >= world->options.queue_max);
    }
    if (status != NOSA_OK) {
        client->place = CLIENT_DONE;
        world->refused++;
        return;
    }
    client->place = CLIENT_WAITING;
    client->known = client->prompt;
    client->progress_at = world->step;
    int32_t most = world->options.priority_max;
    int64_t priority = client->priority > most    ? most
                       : client->priority < -most ? -most
                                                  : client->priority;
    client->rank = (int64_t)(client->arrival_ns - client->waited_ns) -
                   priority * (int64_t)world->options.ageing_ns;
    world->live[world->n_live++] = index;
    if (client->cancel_ns != NEVER)
        push_event(world, client->cancel_ns, EVENT_CANCEL, index);
    log_client(world, "submit", client);
}

static void read_tokens(struct world *world, int32_t index)
{
    struct client *client = &world->clients[index];
    int32_t left = client->waiting - client->read_tokens;

    set_waiting(world, client, left > 0 ? left : 0);
    nosa_scheduler_reader(world->scheduler, client->id, client->waiting);
    if (client->waiting > 0)
        push_event(world, world->now_ns + client->read_ns, EVENT_READ, index);
}

static void finish_loading(struct world *world, struct client *client)
{
    int32_t n = client->loading;
    if (n > 0 && world_chance(world, world->speed.failure_percent))
        n = (int32_t)world_draw(world, n / 64 + 1) * 64;
    if (n >= client->known)
        n = client->known - 1;
    store_loaded(world, client, n);
    client->place = CLIENT_RESIDENT;
    nosa_scheduler_loaded(world->scheduler, client->id, n);
    log_client(world, "loaded", client);
}

static void finish_saving(struct world *world, struct client *client)
{
    bool moved = !world_chance(world, world->speed.failure_percent);
    store_saved(world, client, moved);
    client->place = moved ? CLIENT_BELOW : CLIENT_RESIDENT;
    nosa_scheduler_suspended(world->scheduler, client->id, moved);
    log_client(world, moved ? "saved" : "not saved", client);
}

static void handle_event(struct world *world, const struct event *event)
{
    struct client *client = &world->clients[event->client];

    world->moves_pending -= event->kind == EVENT_LOADED || event->kind == EVENT_SAVED;
    if (event->kind == EVENT_ARRIVAL) {
        submit(world, event->client);
        return;
    }
    if (client->place == CLIENT_DONE) { /* news of a request that is closed: must do no harm */
        nosa_scheduler_end(world->scheduler, event->id, NOSA_SCHEDULER_END_FAILED);
        nosa_scheduler_reader(world->scheduler, event->id, 0);
        nosa_scheduler_loaded(world->scheduler, event->id, 0);
        nosa_scheduler_suspended(world->scheduler, event->id, true);
        return;
    }
    switch (event->kind) {
    case EVENT_CANCEL:
        nosa_scheduler_end(world->scheduler, client->id, NOSA_SCHEDULER_END_CANCELLED);
        expect(client, NOSA_SCHEDULER_END_CANCELLED);
        log_client(world, "cancel", client);
        break;
    case EVENT_READ: read_tokens(world, event->client); break;
    case EVENT_LOADED: finish_loading(world, client); break;
    case EVENT_SAVED: finish_saving(world, client); break;
    case EVENT_ARRIVAL: break;
    }
    client->progress_at = world->step;
}

static void handle_events(struct world *world)
{
    while (world->n_events > 0 && world->events[0].time_ns <= world->now_ns) {
        struct event event = pop_event(world);
        handle_event(world, &event);
    }
}

/* ---- carrying out decisions --------------------------------------------------------------- */

/* Moves take time, so that others run meanwhile; some are done at once. */
static void start_move(struct world *world, int32_t index, enum event_kind kind, int32_t blocks)
{
    uint64_t time_ns = world->speed.block_move_ns * (uint64_t)blocks;
    if (time_ns == 0 || blocks == 0) {
        if (kind == EVENT_LOADED)
            finish_loading(world, &world->clients[index]);
        else
            finish_saving(world, &world->clients[index]);
        return;
    }
    world->moves_pending++;
    push_event(world, world->now_ns + time_ns, kind, index);
}

static void let_in(struct world *world, int32_t index, bool resume)
{
    struct client *client = &world->clients[index];
    int32_t n;

    client->place = CLIENT_LOADING;
    client->steps_run = 0;
    client->got_row = true;
    if (resume) {
        store_resume(world, client);
        client->loading = client->computed;
        start_move(world, index, EVENT_LOADED, blocks_of(client->computed));
        return;
    }
    world->n_sessions++;
    CHECK(world, world->n_sessions <= world->options.sequences_max);
    client->computed = store_open(world, client, &n);
    if (n == 0) {
        client->loading = client->computed;
        start_move(world, index, EVENT_LOADED, 0);
        return;
    }
    client->loading = n;
    nosa_scheduler_loading(world->scheduler, client->id, n);
    start_move(world, index, EVENT_LOADED, n / 64 - client->computed / 64);
}

static void close_client(struct world *world, int32_t index)
{
    struct client *client = &world->clients[index];

    world->ended[client->expected]++;
    store_close(world, client);
    client->place = CLIENT_DONE;
    for (int32_t i = 0; i < world->n_live; i++)
        if (world->live[i] == index) {
            world->live[i] = world->live[--world->n_live];
            return;
        }
    CHECK(world, !"a closed request was live");
}

static void carry_out(struct world *world, const struct nosa_scheduler_action *action)
{
    static const char *const names[] = {"CLOSE", "DROP", "SUSPEND", "SPILL", "OPEN", "RESUME"};
    int32_t index = (int32_t)action->tag;
    struct client *client = &world->clients[index];

    log_client(world, names[action->kind], client);
    if (world->checked)
        check_action(world, action);
    switch (action->kind) {
    case NOSA_SCHEDULER_CLOSE:
        world->n_sessions -= action->has_session;
        close_client(world, index);
        return;
    case NOSA_SCHEDULER_DROP:
        world->n_sessions--;
        world->drops++;
        store_close(world, client);
        client->place = CLIENT_WAITING;
        client->dropped_at = world->arrange;
        break;
    case NOSA_SCHEDULER_SUSPEND:
        world->evicted++;
        world->hasty += !client->paused && client->steps_run < world->options.run_steps_min;
        client->place = CLIENT_SAVING;
        store_save(world, client);
        start_move(world, index, EVENT_SAVED, client->shared + client->private);
        break;
    case NOSA_SCHEDULER_SPILL: store_spill(world, client); break;
    case NOSA_SCHEDULER_OPEN:
    case NOSA_SCHEDULER_RESUME:
        client->outsize = action->outsize;
        let_in(world, index, action->kind == NOSA_SCHEDULER_RESUME);
        break;
    }
    client->progress_at = world->step;
}

/* Draws anew how many blocks others use. */
static void withhold(struct world *world)
{
    if (!world->speed.withholds || world_draw(world, 20) > 0)
        return;
    bool some = world_chance(world, 50);
    world->store.withheld =
        some ? (int32_t)world_draw(world, world->options.blocks_total / 2 + 1) : 0;
    world->store.lower_withheld =
        some ? (int32_t)world_draw(world, world->options.lower_blocks_total / 2 + 1) : 0;
}

static int32_t arrange(struct world *world)
{
    withhold(world);
    struct nosa_scheduler_store report = store_report(world);

    world->arrange++;
    for (int32_t i = 0; i < world->n_live; i++) {
        struct client *client = &world->clients[world->live[i]];
        if (client->deadline_ns <= world->now_ns)
            expect(client, NOSA_SCHEDULER_END_DEADLINE);
    }
    struct nosa_scheduler_actions actions =
        nosa_scheduler_arrange(world->scheduler, world->now_ns, &report);
    for (int32_t i = 0; i < actions.n_actions; i++)
        carry_out(world, &actions.actions[i]);
    if (world->checked)
        check_arranged(world, &actions);
    return actions.n_actions;
}

/* ---- steps -------------------------------------------------------------------------------- */

static uint64_t step_time_ns(const struct world *world, const struct nosa_scheduler_rows *rows)
{
    const struct world_speed *speed = &world->speed;
    uint64_t time_ns = speed->step_ns;
    int32_t slots = speed->slots > 0 ? speed->slots : world->options.slots;
    int64_t working_sets = 0;

    for (int32_t i = 0; i < rows->n_rows; i++) {
        time_ns += rows->rows[i].n_tokens == 1
                       ? speed->decode_row_ns
                       : speed->prefill_token_ns * (uint64_t)rows->rows[i].n_tokens;
        working_sets += world->clients[rows->rows[i].tag].working_set;
    }
    if (slots > 0 && working_sets > slots)
        time_ns += speed->miss_ns * (uint64_t)(working_sets - slots);
    return time_ns;
}

static void note_token(struct world *world, struct client *client)
{
    if (client->first_token_ns == 0)
        client->first_token_ns = world->now_ns;
    else if (world->now_ns - client->last_token_ns > client->gap_max_ns)
        client->gap_max_ns = world->now_ns - client->last_token_ns;
    client->last_token_ns = world->now_ns;
}

/* Anything in checked worlds; else it wanders slowly below its largest. */
static int32_t draw_working_set(struct world *world, const struct client *client)
{
    int32_t blocks = blocks_of(client->computed);
    int32_t most = blocks < client->working_set_max ? blocks : client->working_set_max;

    if (world->checked || client->working_set == 0)
        return (int32_t)world_between(world, world->checked ? 1 : (most + 1) / 2, most);
    int32_t next = client->working_set + (int32_t)world_between(world, -1, 1);
    return next < (most + 1) / 2 ? (most + 1) / 2 : next > most ? most : next;
}

/* One row's outcome, entered into the client's books. */
static struct nosa_scheduler_result compute(struct world *world,
                                            const struct nosa_scheduler_row *row)
{
    struct client *client = &world->clients[row->tag];
    struct nosa_scheduler_result result = {0};

    store_compute(world, client, row->n_tokens);
    client->steps_run++;
    client->progress_at = world->step;
    if (world_chance(world, 70))
        result.working_set = client->working_set = draw_working_set(world, client);
    if (client->computed < client->known)
        return result;
    result.appended = client->known < world->options.context_max;
    client->known += result.appended;
    client->generated += result.appended;
    note_token(world, client);
    if (client->generated == client->fail_after)
        result.end = NOSA_SCHEDULER_END_FAILED;
    else if (client->generated == client->stop_after)
        result.end = NOSA_SCHEDULER_END_STOP;
    if (result.end != NOSA_SCHEDULER_END_NONE)
        expect(client, result.end);
    else if (client->generated == client->max_new || client->known == world->options.context_max)
        expect(client, NOSA_SCHEDULER_END_LENGTH);
    if (client->waiting == 0 && client->read_ns > 0)
        push_event(world, world->now_ns + client->read_ns, EVENT_READ, (int32_t)row->tag);
    set_waiting(world, client, client->waiting + 1);
    return result;
}

static void finish_step(struct world *world, const struct nosa_scheduler_rows *rows)
{
    struct nosa_scheduler_result results[BATCH_MAX];

    for (int32_t i = 0; i < rows->n_rows; i++)
        results[i] = compute(world, &rows->rows[i]);
    nosa_scheduler_step_done(world->scheduler, results, rows->n_rows);
    for (int32_t i = 0; i < rows->n_rows; i++) {
        struct client *client = &world->clients[rows->rows[i].tag];
        if (client->read_ns > 0 || client->waiting == 0)
            continue;
        set_waiting(world, client, 0);
        nosa_scheduler_reader(world->scheduler, client->id, 0);
    }
}

static bool step(struct world *world)
{
    struct nosa_scheduler_store report = store_report(world);
    struct nosa_scheduler_rows rows = nosa_scheduler_step(world->scheduler, &report);

    if (world->checked)
        check_rows(world, &rows);
    if (rows.n_rows == 0)
        return false;
    if (world->checked && world_draw(world, 400) == 0) { /* the engine refuses the step */
        world->now_ns += MS;
        nosa_scheduler_step_failed(world->scheduler);
        return true;
    }
    world->step++;
    CHECK(world, world->step < STEPS_MAX);
    uint64_t time_ns = step_time_ns(world, &rows);
    world->busy_ns += time_ns;
    world->now_ns += time_ns;
    world->steps++;
    world->outsize_steps += rows.rows[0].outsize;
    for (int32_t i = 0; i < rows.n_rows; i++)
        if (rows.rows[i].n_tokens > 1)
            world->prefill_tokens += rows.rows[i].n_tokens;
        else
            world->decode_tokens++;
    handle_events(world); /* what comes while the step is in flight */
    finish_step(world, &rows);
    return true;
}

/* A request may also end between an arrange and the step. */
static void cancel_some(struct world *world)
{
    if (!world->checked || world->n_live == 0 || world_draw(world, 400) > 0)
        return;
    struct client *client = &world->clients[world->live[world_draw(world, world->n_live)]];
    nosa_scheduler_end(world->scheduler, client->id, NOSA_SCHEDULER_END_MOVED);
    expect(client, NOSA_SCHEDULER_END_MOVED);
}

/* Moves on to what happens next; false when nothing will. */
static bool wait(struct world *world)
{
    uint64_t wake_ns = nosa_scheduler_wake_ns(world->scheduler);

    if (wake_ns == 0) {
        CHECK(world, ++world->woken_at_once < STEPS_MAX);
        return true;
    }
    CHECK(world, wake_ns > world->now_ns);
    if (world->n_events > 0 && world->events[0].time_ns < wake_ns)
        wake_ns = world->events[0].time_ns;
    if (world->store.withheld + world->store.lower_withheld > 0) { /* they come back */
        world->store.withheld = world->store.lower_withheld = 0;
        return true;
    }
    if (world->checked)
        check_idle(world);
    if (wake_ns == NEVER)
        return false;
    world->now_ns = wake_ns;
    return true;
}

void world_run(struct world *world)
{
    bool goes_on = true;

    for (int32_t i = 0; i < world->n_clients; i++)
        push_event(world, world->clients[i].arrival_ns, EVENT_ARRIVAL, i);
    while (goes_on) {
        handle_events(world);
        int32_t n_actions = arrange(world);
        if (n_actions > 0 && world_chance(world, 50))
            n_actions += arrange(world);
        cancel_some(world);
        goes_on = step(world) || n_actions > 0 || wait(world);
        if (world->checked) {
            struct nosa_scheduler_counters counters;
            nosa_scheduler_counters(world->scheduler, &counters);
            world->parked += counters.parked;
        }
    }
    if (world->checked)
        check_end(world);
}

/* ---- worlds ------------------------------------------------------------------------------- */

void world_open(struct world *world, int32_t n_clients)
{
    struct nosa_error error = {0};

    CHECK(world, world->options.batch_max <= BATCH_MAX);
    world->n_clients = n_clients;
    world->events_max = 5 * n_clients + 16;
    world->clients = calloc((size_t)n_clients, sizeof *world->clients);
    world->live = calloc((size_t)n_clients, sizeof *world->live);
    world->events = calloc((size_t)world->events_max, sizeof *world->events);
    world->options.probe = store_probe;
    world->options.probe_context = world;
    if (!world->clients || !world->live || !world->events ||
        nosa_scheduler_create(&world->options, &world->scheduler, &error) != NOSA_OK)
        world_fail(world, __FILE__, __LINE__, error.text);
}

void world_close(struct world *world)
{
    nosa_scheduler_destroy(world->scheduler);
    free(world->events);
    free(world->live);
    free(world->clients);
}
