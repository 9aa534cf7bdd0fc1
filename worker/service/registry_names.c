/* The registry's names: what they resolve to, and what coordinators say of one another. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "service/registry_internal.h"

#define LEARNED_MS 60000 /* that a name is kept after the last coordinator spoke of it */

enum nosa_status nosa_registry_read_names(const char *text, struct name *names, size_t *count,
                                          struct nosa_error *error)
{
    *count = 0;
    for (const char *at = text; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) {
        char address[NOSA_RPC_ADDRESS_MAX], host[NOSA_RPC_HOST_MAX];
        uint16_t port;
        size_t size = strcspn(at, ",");
        if (size >= sizeof address || *count == NAMES_MAX)
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                  *count == NAMES_MAX ? "more than %d addresses"
                                                      : "an address is longer than %d",
                                  *count == NAMES_MAX ? NAMES_MAX : NOSA_RPC_ADDRESS_MAX);
        snprintf(address, sizeof address, "%.*s", (int)size, at);
        NOSA_TRY(nosa_rpc_address_split(address, host, &port, error));
        if (host[0] == '\0' || port == 0)
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                  "'%s' names no host and port to dial", address);
        if (names) {
            snprintf(names[*count].text, sizeof names[*count].text, "%s", address);
            snprintf(names[*count].host, sizeof names[*count].host, "%s", host);
        }
        (*count)++;
    }
    return NOSA_OK;
}

enum nosa_status nosa_registry_check(const char *coordinators, struct nosa_error *error)
{
    size_t count;
    return nosa_registry_read_names(coordinators, NULL, &count, error);
}

static struct member *find_member(struct nosa_registry *registry, const char *address)
{
    for (size_t i = 0; i < registry->member_count; i++)
        if (strcmp(registry->members[i]->address, address) == 0)
            return registry->members[i];
    return NULL;
}

static void add_member(struct nosa_registry *registry, const struct name *name, const char *address)
{
    struct nosa_error error = {0};
    struct nosa_rpc_tls tls = *registry->options.tls;
    tls.server_name = name->host;
    const struct nosa_rpc_channel_options options = {
        .addresses = &address,
        .address_count = 1,
        .tls = nosa_rpc_tls_is_on(&tls) ? &tls : NULL,
        .backoff_max_ms = BACKOFF_MAX_MS,
        .keepalive_ms = 2000,
        .keepalive_timeout_ms = 2000,
    };
    if (registry->member_count == MEMBERS_MAX)
        return;
    struct member *member = calloc(1, sizeof *member);
    if (!member || nosa_rpc_channel_create(&member->channel, registry->options.runtime, &options,
                                           &error) != NOSA_OK) {
        nosa_log(NOSA_LOG_ERROR, "registry", "coordinator %s: %s", address,
                 member ? error.text : "no memory");
        free(member);
        return;
    }
    member->registry = registry;
    member->resolved = true;
    member->backoff_ms = BACKOFF_MIN_MS;
    snprintf(member->address, sizeof member->address, "%s", address);
    registry->members[registry->member_count++] = member;
}

void nosa_registry_free_member(struct member *member)
{
    nosa_rpc_channel_free(member->channel);
    free(member);
}

/* An address that no name leads to any more is given up once it stops answering. */
void nosa_registry_drop_members(struct nosa_registry *registry)
{
    for (size_t i = registry->member_count; i-- > 0;) {
        struct member *member = registry->members[i];
        if (member->resolved || !member->failing || member->call != CALL_NONE)
            continue;
        nosa_log(NOSA_LOG_INFO, "registry", "coordinator %s is no longer named, and is gone",
                 member->address);
        registry->members[i] = registry->members[--registry->member_count];
        nosa_registry_free_member(member);
    }
}

/* Under the mutex: the names of the command line, then the learned ones; NULL: none there. */
static struct name *name_at(struct nosa_registry *registry, size_t index)
{
    if (index < registry->name_count)
        return &registry->names[index];
    struct name *name = &registry->learned[index - registry->name_count];
    uint64_t now_ns = nosa_monotonic_ns();
    bool fresh = name->told_ns > 0 && now_ns < name->told_ns + LEARNED_MS * NOSA_NS_PER_MS;
    return fresh ? name : NULL;
}

/* Resolves one name; true, unless it could not be. */
static bool resolve_name(struct nosa_registry *registry, size_t index,
                         char (*found)[NOSA_RPC_ADDRESS_MAX], size_t capacity, size_t *count)
{
    char text[NOSA_RPC_ADDRESS_MAX];
    struct nosa_error error = {0};
    *count = 0;
    pthread_mutex_lock(&registry->mutex);
    struct name *name = name_at(registry, index);
    snprintf(text, sizeof text, "%s", name ? name->text : "");
    pthread_mutex_unlock(&registry->mutex);
    if (!text[0])
        return true;
    bool resolved = nosa_rpc_address_resolve(text, found, capacity, count, &error) == NOSA_OK;
    pthread_mutex_lock(&registry->mutex);
    name = name_at(registry, index);
    if (name && !resolved && !name->said)
        nosa_log(NOSA_LOG_WARN, "registry", "coordinator %s: %s; trying again", text, error.text);
    if (name)
        name->said = !resolved;
    pthread_mutex_unlock(&registry->mutex);
    return resolved;
}

static void resolve_all(struct nosa_registry *registry)
{
    static const size_t most = MEMBERS_MAX;
    char(*found)[NOSA_RPC_ADDRESS_MAX] = calloc(most, sizeof *found);
    size_t owner[MEMBERS_MAX];
    size_t total = 0;
    bool whole = found != NULL;
    for (size_t i = 0; i < registry->name_count + LEARNED_MAX && found; i++) {
        size_t count;
        whole = resolve_name(registry, i, found + total, most - total, &count) && whole;
        for (size_t k = 0; k < count; k++)
            owner[total++] = i;
    }
    pthread_mutex_lock(&registry->mutex);
    for (size_t i = 0; i < registry->member_count && whole; i++)
        registry->members[i]->resolved = false;
    for (size_t i = 0; i < total; i++) {
        struct member *member = find_member(registry, found[i]);
        const struct name *name = name_at(registry, owner[i]);
        if (member)
            member->resolved = true;
        else if (name)
            add_member(registry, name, found[i]);
    }
    pthread_cond_broadcast(&registry->changed);
    pthread_mutex_unlock(&registry->mutex);
    free(found);
}

void nosa_registry_wait_until(struct nosa_registry *registry, uint64_t due_ns)
{
    struct timespec due = {.tv_sec = (time_t)(due_ns / NOSA_NS_PER_S),
                           .tv_nsec = (long)(due_ns % NOSA_NS_PER_S)};
    pthread_cond_timedwait(&registry->changed, &registry->mutex, &due);
}

void *nosa_registry_resolve_thread(void *context)
{
    struct nosa_registry *registry = context;
    pthread_mutex_lock(&registry->mutex);
    while (!registry->leaving) {
        pthread_mutex_unlock(&registry->mutex);
        resolve_all(registry);
        uint64_t due_ns = nosa_monotonic_ns() + RESOLVE_MS * NOSA_NS_PER_MS;
        pthread_mutex_lock(&registry->mutex);
        while (!registry->leaving && !registry->resolve_now && nosa_monotonic_ns() < due_ns)
            nosa_registry_wait_until(registry, due_ns);
        registry->resolve_now = false;
    }
    pthread_mutex_unlock(&registry->mutex);
    return NULL;
}

/* A name that a coordinator speaks of: known, or put where one has not been spoken of for long. */
static void learn_name(struct nosa_registry *registry, const char *address)
{
    struct name *place = NULL;
    char host[NOSA_RPC_HOST_MAX];
    uint16_t port;
    for (size_t i = 0; i < registry->name_count; i++)
        if (strcmp(registry->names[i].text, address) == 0)
            return;
    for (size_t i = 0; i < LEARNED_MAX; i++) {
        struct name *name = &registry->learned[i];
        if (name->told_ns > 0 && strcmp(name->text, address) == 0) {
            name->told_ns = nosa_monotonic_ns();
            return;
        }
        if (!name_at(registry, registry->name_count + i))
            place = name;
    }
    if (!place || strlen(address) >= sizeof place->text ||
        nosa_rpc_address_split(address, host, &port, NULL) != NOSA_OK || !host[0] || port == 0)
        return;
    *place = (struct name){.told_ns = nosa_monotonic_ns()};
    snprintf(place->text, sizeof place->text, "%s", address);
    snprintf(place->host, sizeof place->host, "%s", host);
    registry->resolve_now = true;
    nosa_log(NOSA_LOG_INFO, "registry", "there is another coordinator at %s", address);
}

void nosa_registry_learn(struct nosa_registry *registry, char *const *addresses, size_t count)
{
    for (size_t i = 0; i < count && i < LEARNED_MAX; i++)
        learn_name(registry, addresses[i]);
}
