/* The KV store of the simulation: counts of block ids, with prefixes that sequences share. */
#include "scheduler_world.h"

#define BLOCK NOSA_SCHEDULER_BLOCK_TOKENS

int32_t blocks_of(int32_t n_tokens)
{
    return (n_tokens + BLOCK - 1) / BLOCK;
}

static int32_t min(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

int32_t resident_of(const struct world *world, const struct client *client, int32_t n_tokens)
{
    int32_t blocks = blocks_of(n_tokens);
    return client->outsize ? min(blocks, world->options.outsize_blocks) : blocks;
}

int32_t tail_of(const struct world *world, const struct client *client, int32_t n_tokens)
{
    return blocks_of(n_tokens) - resident_of(world, client, n_tokens);
}

static int32_t used(const struct store *store)
{
    int32_t n = store->private_used;
    for (int32_t g = 1; g < GROUPS_MAX; g++)
        for (int32_t i = 0; i < store->groups[g].present; i++)
            n += store->groups[g].references[i] > 0;
    return n;
}

static int32_t cached(const struct store *store)
{
    int32_t n = 0;
    for (int32_t g = 1; g < GROUPS_MAX; g++)
        for (int32_t i = 0; i < store->groups[g].present; i++)
            n += store->groups[g].references[i] == 0;
    return n;
}

struct nosa_scheduler_store store_report(const struct world *world)
{
    const struct store *store = &world->store;
    int32_t blocks = world->options.blocks_total - used(store);
    int32_t lower = world->options.lower_blocks_total - store->lower_used;

    return (struct nosa_scheduler_store){
        .blocks_available = blocks > store->withheld ? blocks - store->withheld : 0,
        .lower_blocks_available = lower > store->lower_withheld ? lower - store->lower_withheld : 0,
    };
}

/* Takes block ids for a sequence of its own; cached blocks give way, the last of a prefix first. */
static void take(struct world *world, struct client *client, int32_t n)
{
    struct store *store = &world->store;

    CHECK(world, n >= 0 && n <= world->options.blocks_total - used(store));
    for (int32_t g = 1; g < GROUPS_MAX; g++) {
        struct group *group = &store->groups[g];
        while (n > world->options.blocks_total - used(store) - cached(store) &&
               group->present > 0 && group->references[group->present - 1] == 0)
            group->present--;
    }
    CHECK(world, n <= world->options.blocks_total - used(store) - cached(store));
    store->private_used += n;
    client->private += n;
}

static void give_private(struct world *world, struct client *client, int32_t n)
{
    CHECK(world, n >= 0 && n <= client->private);
    client->private -= n;
    world->store.private_used -= n;
}

static void move_lower(struct world *world, struct client *client, int32_t n)
{
    client->lower += n;
    world->store.lower_used += n;
    CHECK(world, client->lower >= 0);
    CHECK(world, world->store.lower_used <= world->options.lower_blocks_total);
}

static void share(struct world *world, struct client *client, int32_t n)
{
    struct group *group = &world->store.groups[client->group];
    for (int32_t i = 0; i < n; i++)
        group->references[i]++;
    client->shared = n;
    CHECK(world, used(&world->store) <= world->options.blocks_total);
}

static void unshare(struct world *world, struct client *client, int32_t keep)
{
    struct group *group = &world->store.groups[client->group];
    while (client->shared > keep)
        group->references[--client->shared]--;
}

static int32_t shareable(const struct world *world, const struct client *client, int32_t n_tokens)
{
    if (client->group == 0 || client->outsize)
        return 0;
    return min(world->store.groups[client->group].present, n_tokens / BLOCK);
}

void store_probe(void *context, uint64_t tag, struct nosa_scheduler_prefix *out)
{
    const struct world *world = context;
    const struct client *client = &world->clients[tag];
    const struct group *group = &world->store.groups[client->group];
    int32_t n = shareable(world, client, client->known - 1);

    for (int32_t i = 0; i < n; i++)
        out->shared_blocks += group->references[i] > 0;
    int32_t loadable = client->group ? min(group->on_nvme, (client->known - 1) / BLOCK) : 0;
    out->known_tokens = BLOCK * (n > loadable ? n : loadable);
}

int32_t store_open(struct world *world, struct client *client, int32_t *loading)
{
    const struct group *group = &world->store.groups[client->group];
    int32_t n = shareable(world, client, client->known - 1);

    share(world, client, n);
    *loading = 0;
    int32_t more = min(group->on_nvme, (client->known - 1) / BLOCK) - n;
    if (client->group > 0 && !client->outsize && more > 0 && world_chance(world, 80)) {
        take(world, client, more);
        *loading = BLOCK * (n + more);
    }
    return BLOCK * n;
}

void store_compute(struct world *world, struct client *client, int32_t n_tokens)
{
    struct group *group = &world->store.groups[client->group];
    int32_t computed = client->computed + n_tokens;

    take(world, client,
         resident_of(world, client, computed) - resident_of(world, client, client->computed));
    move_lower(world, client,
               tail_of(world, client, computed) - tail_of(world, client, client->computed));
    client->computed = computed;
    if (client->group == 0 || client->outsize)
        return;
    while (client->shared < group->prefix_blocks && computed / BLOCK > client->shared &&
           group->present == client->shared) {
        give_private(world, client, 1);
        group->references[group->present++] = 1;
        client->shared++;
    }
    if (group->present == group->prefix_blocks)
        group->on_nvme = group->prefix_blocks;
}

void store_save(struct world *world, struct client *client)
{
    move_lower(world, client, client->shared + client->private);
}

void store_saved(struct world *world, struct client *client, bool moved)
{
    if (!moved) {
        move_lower(world, client, -(client->shared + client->private));
        return;
    }
    give_private(world, client, client->private);
    unshare(world, client, 0);
}

void store_resume(struct world *world, struct client *client)
{
    int32_t n = shareable(world, client, client->computed);

    share(world, client, n);
    take(world, client, resident_of(world, client, client->computed) - n);
}

void store_loaded(struct world *world, struct client *client, int32_t n_tokens)
{
    int32_t resident = resident_of(world, client, n_tokens);

    if (client->shared > resident)
        unshare(world, client, resident);
    give_private(world, client, client->private - (resident - client->shared));
    move_lower(world, client, tail_of(world, client, n_tokens) - client->lower);
    client->computed = n_tokens;
}

void store_spill(struct world *world, struct client *client)
{
    unshare(world, client, 0);
    client->outsize = true;
    int32_t resident = resident_of(world, client, client->computed);
    if (client->private > resident)
        give_private(world, client, client->private - resident);
    else
        take(world, client, resident - client->private);
    move_lower(world, client, tail_of(world, client, client->computed));
}

void store_close(struct world *world, struct client *client)
{
    give_private(world, client, client->private);
    unshare(world, client, 0);
    move_lower(world, client, -client->lower);
    client->computed = 0;
    client->loading = 0;
    client->outsize = false;
}
