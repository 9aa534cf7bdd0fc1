/*
 * The reflection service (grpc.reflection.v1 and v1alpha) of a server: stock tools list its
 * services and fetch their descriptors. Answers from descriptor sets that protoc wrote at build
 * time.
 */
#ifndef NOSA_RPC_REFLECTION_H
#define NOSA_RPC_REFLECTION_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "rpc/server.h"

/* A serialised FileDescriptorSet with every file that its files import; static. */
struct nosa_rpc_descriptor_set {
    const uint8_t *data;
    size_t size;
};

/*
 * Adds both versions before start; lists the services that the server has when it is asked.
 * `sets` [count] are copied by reference; proto's own set is nosa_proto_descriptor_set
 * in "nosa_proto_descriptor_set.h".
 * NOSA_CORRUPT: a set that does not parse. Freed with the server.
 */
enum nosa_status nosa_rpc_reflection_add(struct nosa_rpc_server *server,
                                         const struct nosa_rpc_descriptor_set *sets, size_t count,
                                         struct nosa_error *error);

#endif
