#include "rpc/runtime_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include <grpc/support/time.h>

#include "rpc/grpc_log_internal.h"

#define THREADS_MAX 64

static __thread struct nosa_rpc_loop *own_loop;

static void *serve(void *argument)
{
    struct nosa_rpc_loop *loop = argument;
    own_loop = loop;
    for (;;) {
        grpc_event event =
            grpc_completion_queue_next(loop->queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        if (event.type == GRPC_QUEUE_SHUTDOWN)
            return NULL;
        if (event.type == GRPC_OP_COMPLETE) {
            struct nosa_rpc_tag *tag = event.tag;
            (void)atomic_load_explicit(&tag->handed_over, memory_order_acquire);
            tag->complete(tag, event.success != 0);
        }
    }
}

/* Every connection takes a descriptor, and gRPC's listener does not recover from having none. */
static void raise_descriptor_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        (void)!setrlimit(RLIMIT_NOFILE, &limit);
    }
}

/* The system's resolver, as everywhere else here, rather than the one that gRPC brings: that one
 * leaks at every look-up of "localhost". gRPC takes this from the environment alone. */
static void choose_resolver(void)
{
    (void)!setenv("GRPC_DNS_RESOLVER", "native", 0);
}

static void stop_loops(struct nosa_rpc_runtime *runtime, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        grpc_completion_queue_shutdown(runtime->loops[i].queue);
    for (uint32_t i = 0; i < count; i++) {
        pthread_join(runtime->loops[i].thread, NULL);
        grpc_completion_queue_destroy(runtime->loops[i].queue);
    }
}

enum nosa_status nosa_rpc_runtime_create(struct nosa_rpc_runtime **out, int32_t threads,
                                         struct nosa_error *error)
{
    NOSA_ASSERT(threads >= 1 && threads <= THREADS_MAX);
    *out = NULL;
    struct nosa_rpc_runtime *runtime =
        calloc(1, sizeof *runtime + (size_t)threads * sizeof runtime->loops[0]);
    if (!runtime)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for an RPC runtime");
    raise_descriptor_limit();
    choose_resolver();
    nosa_rpc_grpc_log_install();
    grpc_init();
    for (int32_t i = 0; i < threads; i++) {
        struct nosa_rpc_loop *loop = &runtime->loops[i];
        loop->runtime = runtime;
        loop->index = (uint32_t)i;
        loop->queue = grpc_completion_queue_create_for_next(NULL);
        int code = pthread_create(&loop->thread, NULL, serve, loop);
        if (code != 0) {
            grpc_completion_queue_shutdown(loop->queue);
            grpc_completion_queue_destroy(loop->queue);
            stop_loops(runtime, (uint32_t)i);
            grpc_shutdown_blocking();
            free(runtime);
            return nosa_error_set(error, NOSA_IO_ERROR, "cannot start an RPC thread: %s",
                                  strerror(code));
        }
    }
    runtime->loop_count = (uint32_t)threads;
    *out = runtime;
    return NOSA_OK;
}

void nosa_rpc_runtime_free(struct nosa_rpc_runtime *runtime)
{
    if (!runtime)
        return;
    NOSA_ASSERT(!own_loop);
    stop_loops(runtime, runtime->loop_count);
    grpc_shutdown_blocking();
    free(runtime);
}

bool nosa_rpc_runtime_is_own_thread(void)
{
    return own_loop != NULL;
}

struct nosa_rpc_loop *nosa_rpc_runtime_pick(struct nosa_rpc_runtime *runtime)
{
    if (own_loop && own_loop->runtime == runtime)
        return own_loop;
    return &runtime->loops[atomic_fetch_add(&runtime->next_loop, 1) % runtime->loop_count];
}
