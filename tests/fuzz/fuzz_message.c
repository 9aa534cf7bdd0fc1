/*
 * Bytes from strangers as messages: the first byte picks the type. What is accepted must pack into
 * bytes that are accepted again and mean the same.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "nosa/cluster/v1/cluster.pb-c.h"
#include "nosa/v1/admin.pb-c.h"
#include "nosa/v1/inference.pb-c.h"
#include "rpc/message.h"

#define UNPACKED_BYTES_MAX (256u << 10)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const ProtobufCMessageDescriptor *const types[] = {
    &nosa__v1__generate_request__descriptor,      &nosa__v1__tokenize_request__descriptor,
    &nosa__v1__generate_response__descriptor,     &nosa__v1__workers_response__descriptor,
    &nosa__cluster__v1__run_request__descriptor,  &nosa__cluster__v1__run_event__descriptor,
    &nosa__cluster__v1__join_request__descriptor, &nosa__cluster__v1__heartbeat_request__descriptor,
};

/* The bytes that a message packs into; the caller frees them. */
static uint8_t *pack(const ProtobufCMessage *message, size_t *size)
{
    *size = protobuf_c_message_get_packed_size(message);
    uint8_t *bytes = malloc(*size ? *size : 1);
    if (!bytes || protobuf_c_message_pack(message, bytes) != *size)
        abort();
    return bytes;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    const ProtobufCMessageDescriptor *type = types[data[0] % (sizeof types / sizeof types[0])];
    ProtobufCMessage *message;
    ProtobufCMessage *again;
    struct nosa_error error = {0};
    if (nosa_message_unpack(type, data + 1, size - 1, UNPACKED_BYTES_MAX, &message, &error) !=
        NOSA_OK) {
        if (message || !error.text[0])
            abort();
        return 0;
    }
    size_t first_size;
    size_t second_size;
    uint8_t *first = pack(message, &first_size);
    nosa_message_free(message);
    if (nosa_message_unpack(type, first, first_size, 4 * UNPACKED_BYTES_MAX, &again, NULL) !=
        NOSA_OK)
        abort();
    uint8_t *second = pack(again, &second_size);
    nosa_message_free(again);
    if (first_size != second_size || memcmp(first, second, first_size) != 0)
        abort();
    free(first);
    free(second);
    return 0;
}
