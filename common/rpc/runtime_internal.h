/*
 * The inside of a runtime, for servers and channels: its loops, and tags, the things that complete
 * on them.
 */
#ifndef NOSA_RPC_RUNTIME_INTERNAL_H
#define NOSA_RPC_RUNTIME_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <grpc/grpc.h>

#include "rpc/runtime.h"

/* What a batch is started with; lies inside the object that waits for it. */
struct nosa_rpc_tag {
    void (*complete)(struct nosa_rpc_tag *tag, bool ok); /* on the loop's thread */
    /* What was written before the batch is seen by the loop's thread: gRPC orders that too, but
     * inside a library that a sanitizer does not see into. */
    atomic_uint handed_over;
};

/* To be called right before the batch starts. */
static inline void *nosa_rpc_tag_hand_over(struct nosa_rpc_tag *tag)
{
    atomic_store_explicit(&tag->handed_over, 1, memory_order_release);
    return tag;
}

/* The object around a tag. */
#define NOSA_RPC_OWNER(tag, type, member) ((type *)((char *)(tag)-offsetof(type, member)))

/* One thread and its queue. */
struct nosa_rpc_loop {
    /* fixed after create */
    struct nosa_rpc_runtime *runtime;
    uint32_t index;
    grpc_completion_queue *queue;
    pthread_t thread;
};

struct nosa_rpc_runtime {
    /* fixed after create */
    uint32_t loop_count;
    atomic_uint next_loop;
    struct nosa_rpc_loop loops[];
};

/* Where a new outgoing call goes: the calling thread's own loop if it is one of this runtime's, so
 * that a relay's two calls share a thread; else one after the other. */
struct nosa_rpc_loop *nosa_rpc_runtime_pick(struct nosa_rpc_runtime *runtime);

#endif
