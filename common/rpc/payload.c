#include "rpc/payload_internal.h"

#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>

#include "rpc/message.h"

grpc_byte_buffer *nosa_rpc_payload_pack(const ProtobufCMessage *message)
{
    grpc_slice slice = grpc_slice_malloc(protobuf_c_message_get_packed_size(message));
    size_t size = protobuf_c_message_pack(message, GRPC_SLICE_START_PTR(slice));
    NOSA_ASSERT(size == GRPC_SLICE_LENGTH(slice));
    grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    return buffer;
}

enum nosa_status nosa_rpc_payload_unpack(grpc_byte_buffer *buffer,
                                         const ProtobufCMessageDescriptor *descriptor,
                                         uint64_t unpacked_bytes_max, ProtobufCMessage **message,
                                         struct nosa_error *error)
{
    *message = NULL;
    if (!buffer)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "the call has no message");
    if (buffer->data.raw.compression != GRPC_COMPRESS_NONE)
        return nosa_error_set(error, NOSA_UNSUPPORTED, "compressed messages are not accepted");
    grpc_byte_buffer_reader reader;
    if (!grpc_byte_buffer_reader_init(&reader, buffer))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "the message cannot be read");
    grpc_slice slice = grpc_byte_buffer_reader_readall(&reader);
    enum nosa_status status =
        nosa_message_unpack(descriptor, GRPC_SLICE_START_PTR(slice), GRPC_SLICE_LENGTH(slice),
                            unpacked_bytes_max, message, error);
    grpc_slice_unref(slice);
    grpc_byte_buffer_reader_destroy(&reader);
    return status;
}
