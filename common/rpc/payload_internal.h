/* Messages to and from gRPC's byte buffers. Any thread. */
#ifndef NOSA_RPC_PAYLOAD_INTERNAL_H
#define NOSA_RPC_PAYLOAD_INTERNAL_H

#include <stdint.h>

#include <grpc/byte_buffer.h>
#include <protobuf-c/protobuf-c.h>

#include "base/status.h"
#include "rpc/code.h"

/* Packs a message; the caller owns the buffer. gRPC aborts when there is no memory. */
grpc_byte_buffer *nosa_rpc_payload_pack(const ProtobufCMessage *message);

/*
 * Checks and unpacks as nosa_message_unpack. NOSA_UNSUPPORTED: the bytes are compressed.
 * NOSA_INVALID_ARGUMENT for no buffer (a call without a message).
 */
enum nosa_status nosa_rpc_payload_unpack(grpc_byte_buffer *buffer,
                                         const ProtobufCMessageDescriptor *descriptor,
                                         uint64_t unpacked_bytes_max, ProtobufCMessage **message,
                                         struct nosa_error *error);

#endif
