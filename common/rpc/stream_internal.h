/* What the reader needs of a stream beside client.h. */
#ifndef NOSA_RPC_STREAM_INTERNAL_H
#define NOSA_RPC_STREAM_INTERNAL_H

#include <protobuf-c/protobuf-c.h>

#include "rpc/client.h"

/* Inside the event `message`: the callback's message becomes the caller's, who frees it. */
ProtobufCMessage *nosa_rpc_stream_take(struct nosa_rpc_stream *stream);

#endif
