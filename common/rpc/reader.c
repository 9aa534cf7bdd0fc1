/* Streams for one waiting thread: a small ring between the stream's events and `next`. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "rpc/message.h"
#include "rpc/stream_internal.h"

#define RING_SIZE 32 /* messages ahead of the reader */

struct nosa_rpc_reader {
    struct nosa_rpc_stream *stream; /* one reference */
    pthread_mutex_t mutex;
    pthread_cond_t changed; /* on CLOCK_MONOTONIC */
    /* under mutex */
    ProtobufCMessage *ring[RING_SIZE]; /* owned */
    uint32_t first;
    uint32_t count;
    bool paused; /* the ring was full */
    bool ended;
    enum nosa_rpc_code code;
    struct nosa_error error; /* when the code is not OK */
};

static bool on_message(void *context, struct nosa_rpc_stream *stream,
                       const ProtobufCMessage *message)
{
    (void)message;
    struct nosa_rpc_reader *reader = context;
    pthread_mutex_lock(&reader->mutex);
    reader->ring[(reader->first + reader->count) % RING_SIZE] = nosa_rpc_stream_take(stream);
    reader->count++;
    reader->paused = reader->count == RING_SIZE;
    bool more = !reader->paused;
    pthread_cond_signal(&reader->changed);
    pthread_mutex_unlock(&reader->mutex);
    return more;
}

static void on_end(void *context, struct nosa_rpc_stream *stream,
                   const struct nosa_rpc_outcome *outcome)
{
    (void)stream;
    struct nosa_rpc_reader *reader = context;
    pthread_mutex_lock(&reader->mutex);
    reader->ended = true;
    reader->code = outcome->code;
    if (outcome->code != NOSA_RPC_OK)
        nosa_error_set(&reader->error, nosa_rpc_code_to_status(outcome->code), "%s: %s: %s",
                       outcome->address, nosa_rpc_code_name(outcome->code), outcome->text);
    pthread_cond_signal(&reader->changed);
    pthread_mutex_unlock(&reader->mutex);
}

static const struct nosa_rpc_stream_events events = {on_message, on_end};

static void reader_destroy(struct nosa_rpc_reader *reader)
{
    for (; reader->count > 0; reader->count--) {
        nosa_message_free(reader->ring[reader->first]);
        reader->first = (reader->first + 1) % RING_SIZE;
    }
    if (reader->stream)
        nosa_rpc_stream_release(reader->stream);
    pthread_cond_destroy(&reader->changed);
    pthread_mutex_destroy(&reader->mutex);
    free(reader);
}

enum nosa_status nosa_rpc_reader_start(struct nosa_rpc_reader **out,
                                       struct nosa_rpc_channel *channel,
                                       const struct nosa_rpc_request *request,
                                       struct nosa_error *error)
{
    *out = NULL;
    struct nosa_rpc_reader *reader = calloc(1, sizeof *reader);
    if (!reader)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for a call of %s",
                              request->path);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&reader->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&reader->mutex, NULL);
    enum nosa_status status =
        nosa_rpc_stream_start(channel, request, &events, reader, &reader->stream, error);
    if (status != NOSA_OK) {
        reader_destroy(reader);
        return status;
    }
    *out = reader;
    return NOSA_OK;
}

/* Under the mutex: waits until there is a message or the end. */
static bool wait_for_change(struct nosa_rpc_reader *reader, uint32_t wait_ms)
{
    struct timespec deadline;
    clock_gettime(CLOCK_MONOTONIC, &deadline);
    uint64_t ns = (uint64_t)deadline.tv_nsec + (uint64_t)(wait_ms % 1000) * 1000000;
    deadline.tv_sec += wait_ms / 1000 + (time_t)(ns / 1000000000);
    deadline.tv_nsec = (long)(ns % 1000000000);
    while (reader->count == 0 && !reader->ended) {
        if (wait_ms == UINT32_MAX)
            pthread_cond_wait(&reader->changed, &reader->mutex);
        else if (pthread_cond_timedwait(&reader->changed, &reader->mutex, &deadline) == ETIMEDOUT)
            return reader->count > 0 || reader->ended;
    }
    return true;
}

enum nosa_status nosa_rpc_reader_next(struct nosa_rpc_reader *reader, uint32_t wait_ms,
                                      ProtobufCMessage **message, bool *ended,
                                      enum nosa_rpc_code *code, struct nosa_error *error)
{
    enum nosa_status status = NOSA_OK;
    *message = NULL;
    *ended = false;
    pthread_mutex_lock(&reader->mutex);
    bool resume = false;
    if (!wait_for_change(reader, wait_ms)) {
        status = nosa_error_set(error, NOSA_DEADLINE_EXCEEDED, "nothing came in %u ms", wait_ms);
    } else if (reader->count > 0) {
        *message = reader->ring[reader->first];
        reader->first = (reader->first + 1) % RING_SIZE;
        reader->count--;
        resume = reader->paused && reader->count <= RING_SIZE / 2;
        reader->paused = reader->paused && !resume;
    } else {
        *ended = true;
        if (code)
            *code = reader->code;
        if (reader->code != NOSA_RPC_OK)
            status = nosa_error_set(error, reader->error.status, "%s", reader->error.text);
    }
    pthread_mutex_unlock(&reader->mutex);
    if (resume)
        nosa_rpc_stream_resume(reader->stream);
    return status;
}

void nosa_rpc_reader_cancel(struct nosa_rpc_reader *reader)
{
    nosa_rpc_stream_cancel(reader->stream);
}

void nosa_rpc_reader_free(struct nosa_rpc_reader *reader)
{
    if (!reader)
        return;
    nosa_rpc_stream_cancel(reader->stream);
    pthread_mutex_lock(&reader->mutex);
    while (!reader->ended)
        pthread_cond_wait(&reader->changed, &reader->mutex);
    pthread_mutex_unlock(&reader->mutex);
    reader_destroy(reader);
}
