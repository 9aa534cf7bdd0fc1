/* The inside of a channel, for the files that make calls. */
#ifndef NOSA_RPC_CHANNEL_INTERNAL_H
#define NOSA_RPC_CHANNEL_INTERNAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <grpc/grpc.h>

#include "rpc/client.h"
#include "rpc/runtime_internal.h"

struct nosa_rpc_target {
    char *address;      /* owned; "HOST:PORT" */
    grpc_channel *grpc; /* owned */
};

struct nosa_rpc_channel {
    atomic_uint references; /* the owner's and one of each call */
    atomic_uint current;    /* index of the target of new calls */
    /* fixed after create */
    struct nosa_rpc_runtime *runtime; /* borrowed */
    uint64_t unpacked_bytes_max;
    uint32_t target_count;
    struct nosa_rpc_target targets[];
};

void nosa_rpc_channel_retain(struct nosa_rpc_channel *channel);
void nosa_rpc_channel_release(struct nosa_rpc_channel *channel);

/* Makes the target after `index` the current one, unless another call did that already. */
void nosa_rpc_channel_move_on(struct nosa_rpc_channel *channel, uint32_t index);

/*
 * One attempt at a call, whatever its kind: everything that lives as long as its batches do.
 * Filled by nosa_rpc_attempt_begin, emptied by nosa_rpc_attempt_end.
 */
struct nosa_rpc_attempt {
    grpc_call *call;
    uint32_t target; /* index */
    grpc_metadata_array initial;
    grpc_metadata_array trailing;
    grpc_byte_buffer *sent;
    grpc_status_code code;
    grpc_slice details;
    grpc_metadata headers[8];
    size_t header_count;
};

#define NOSA_RPC_HEADERS_MAX 8

/* What is kept of a request for its attempts. */
struct nosa_rpc_template {
    char *path;                                 /* owned */
    grpc_byte_buffer *payload;                  /* owned; copied for each attempt */
    const ProtobufCMessageDescriptor *response; /* static */
    gpr_timespec deadline;
    bool wait_for_ready;
    size_t header_count;
    char *names[NOSA_RPC_HEADERS_MAX]; /* owned */
    char *values[NOSA_RPC_HEADERS_MAX];
};

/* NOSA_OUT_OF_MEMORY; the template is empty then. At most NOSA_RPC_HEADERS_MAX headers. */
enum nosa_status nosa_rpc_template_init(struct nosa_rpc_template *template,
                                        const struct nosa_rpc_request *request,
                                        struct nosa_error *error);
void nosa_rpc_template_free(struct nosa_rpc_template *template);

/* Makes the call on target `target` and starts nothing. */
void nosa_rpc_attempt_begin(struct nosa_rpc_attempt *attempt, struct nosa_rpc_channel *channel,
                            uint32_t target, const struct nosa_rpc_template *template,
                            struct nosa_rpc_loop *loop);
void nosa_rpc_attempt_end(struct nosa_rpc_attempt *attempt);

/* Fills the operations that send the headers, the one message and the end; returns how many (3). */
size_t nosa_rpc_attempt_send_ops(struct nosa_rpc_attempt *attempt,
                                 const struct nosa_rpc_template *template, grpc_op *ops);
/* The operation that receives the status. */
grpc_op nosa_rpc_attempt_status_op(struct nosa_rpc_attempt *attempt);

#define NOSA_RPC_OUTCOME_TEXT_MAX 512

/* The status as text of one line, in `text`; returns the code. */
enum nosa_rpc_code nosa_rpc_attempt_outcome(const struct nosa_rpc_attempt *attempt,
                                            char text[NOSA_RPC_OUTCOME_TEXT_MAX]);

#endif
