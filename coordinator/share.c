/*
 * This coordinator among others: drains of worker ids, which membership keeps and the registry
 * carries out; the workers that it tells others of; and the coordinators that it tells workers of,
 * so that a worker that knows one of them joins all.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "coordinator_internal.h"
#include "rpc/address.h"

#define START_WAIT_MS 2500 /* for etcd, before the first worker may join */

static bool is_anywhere(const char *host)
{
    return !host[0] || strcmp(host, "0.0.0.0") == 0 || strcmp(host, "::") == 0;
}

/* --advertise, else where it listens, else this machine's name. */
static void own_address(const struct nosa_coordinator *coordinator, char *address, size_t size)
{
    const struct nosa_coordinator_options *options = &coordinator->options;
    char host[NOSA_RPC_HOST_MAX] = "";
    uint16_t port;
    if (options->advertise) {
        snprintf(address, size, "%s", options->advertise);
        return;
    }
    nosa_rpc_address_split(options->listen, host, &port, NULL);
    if (is_anywhere(host) && gethostname(host, sizeof host) != 0)
        snprintf(host, sizeof host, "localhost");
    host[sizeof host - 1] = '\0';
    bool brackets = strchr(host, ':') != NULL;
    snprintf(address, size, "%s%.250s%s:%u", brackets ? "[" : "", host, brackets ? "]" : "",
             coordinator->port);
}

static enum nosa_status check_address(const char *address, struct nosa_error *error)
{
    char host[NOSA_RPC_HOST_MAX];
    uint16_t port;
    if (nosa_rpc_address_split(address, host, &port, error) != NOSA_OK)
        return nosa_error_prefix(error, "--advertise");
    if (!host[0] || port == 0)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "--advertise: '%s' names no host and port to dial", address);
    return NOSA_OK;
}

static void wake(void *coordinator)
{
    nosa_coordinator_wake(coordinator);
}

enum nosa_status nosa_share_start(struct nosa_coordinator *coordinator, struct nosa_error *error)
{
    char address[NOSA_MEMBERSHIP_TEXT_MAX];
    const struct nosa_membership_options options = {
        .id = coordinator->id,
        .address = address,
        .runtime = coordinator->runtime,
        .metrics = coordinator->telemetry->metrics,
        .etcd = coordinator->options.etcd.endpoints ? &coordinator->options.etcd : NULL,
        .start_wait_ms = START_WAIT_MS,
        .changed = wake,
        .context = coordinator,
    };
    if (coordinator->options.advertise)
        NOSA_TRY(check_address(coordinator->options.advertise, error));
    own_address(coordinator, address, sizeof address);
    return nosa_membership_create(&coordinator->membership, &options, error);
}

/* ---- drains ---- */

bool nosa_share_is_drained(void *context, const char *worker_id)
{
    struct nosa_coordinator *coordinator = context;
    return nosa_membership_is_drained(coordinator->membership, worker_id);
}

enum nosa_status nosa_share_drain(struct nosa_coordinator *coordinator, const char *worker_id,
                                  Nosa__V1__WorkerState *state, struct nosa_error *error)
{
    struct nosa_membership *membership = coordinator->membership;
    bool here = nosa_registry_has(coordinator->registry, worker_id);
    if (!here && !nosa_membership_others_have(membership, worker_id))
        return nosa_error_set(error, NOSA_NOT_FOUND, "worker_id: there is no worker '%.128s'",
                              worker_id);
    NOSA_TRY(nosa_membership_drain(membership, worker_id, true, error));
    *state = NOSA__V1__WORKER_STATE__WORKER_STATE_DRAINING;
    if (here)
        (void)nosa_registry_drain(coordinator->registry, worker_id,
                                  coordinator->options.drain_timeout_ms, state, NULL);
    return NOSA_OK;
}

bool nosa_share_forget_drain(struct nosa_coordinator *coordinator, const char *worker_id,
                             Nosa__V1__WorkerState *state)
{
    struct nosa_membership *membership = coordinator->membership;
    if (!nosa_membership_is_drained(membership, worker_id) ||
        nosa_membership_drain(membership, worker_id, false, NULL) != NOSA_OK)
        return false;
    *state = nosa_membership_others_have(membership, worker_id)
                 ? NOSA__V1__WORKER_STATE__WORKER_STATE_DRAINING
                 : NOSA__V1__WORKER_STATE__WORKER_STATE_LOST;
    nosa_coordinator_wake(coordinator);
    return true;
}

/* ---- the ticker ---- */

/* Tells membership which workers are here. */
static void tell_workers(struct nosa_coordinator *coordinator)
{
    struct nosa_worker **workers = NULL;
    size_t count = 0;
    if (nosa_registry_alive(coordinator->registry, &workers, &count) != NOSA_OK)
        return;
    const char **ids = calloc(count + 1, sizeof *ids);
    const char **addresses = calloc(count + 1, sizeof *addresses);
    for (size_t i = 0; i < count && ids && addresses; i++) {
        ids[i] = workers[i]->id;
        addresses[i] = workers[i]->address;
    }
    /* Without memory the next second has another try. */
    if (ids && addresses)
        (void)nosa_membership_have_workers(coordinator->membership, ids, addresses, count);
    free(ids);
    free(addresses);
    for (size_t i = 0; i < count; i++)
        nosa_worker_release(workers[i]);
    free(workers);
}

void nosa_share_tick(struct nosa_coordinator *coordinator)
{
    uint64_t version = nosa_membership_version(coordinator->membership);
    if (version == coordinator->drains_seen)
        return;
    coordinator->drains_seen = version;
    nosa_registry_follow(coordinator->registry);
}

void nosa_share_second(struct nosa_coordinator *coordinator)
{
    if (coordinator->options.etcd.endpoints)
        tell_workers(coordinator);
}
