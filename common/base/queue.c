#include "base/queue.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"

struct nosa_queue {
    /* fixed after create */
    size_t capacity;      /* items */
    size_t item_size;     /* bytes */
    unsigned char *items; /* owned, [capacity * item_size] */
    pthread_mutex_t mutex;
    pthread_cond_t not_empty; /* waits on CLOCK_MONOTONIC */
    /* under mutex */
    size_t head; /* index of the oldest item */
    size_t count;
    bool closed;
};

enum nosa_status nosa_queue_create(struct nosa_queue **out, size_t capacity, size_t item_size,
                                   struct nosa_error *error)
{
    NOSA_ASSERT(capacity > 0 && item_size > 0);
    *out = NULL;
    struct nosa_queue *queue = calloc(1, sizeof *queue);
    size_t bytes;
    bool fits = !__builtin_mul_overflow(capacity, item_size, &bytes);
    unsigned char *items = fits ? calloc(capacity, item_size) : NULL;
    if (!queue || !items) {
        free(items);
        free(queue);
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY,
                              "no memory for a queue of %zu items of %zu bytes", capacity,
                              item_size);
    }
    queue->capacity = capacity;
    queue->item_size = item_size;
    queue->items = items;
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&queue->not_empty, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&queue->mutex, NULL);
    *out = queue;
    return NOSA_OK;
}

void nosa_queue_free(struct nosa_queue *queue)
{
    if (!queue)
        return;
    pthread_cond_destroy(&queue->not_empty);
    pthread_mutex_destroy(&queue->mutex);
    free(queue->items);
    free(queue);
}

enum nosa_status nosa_queue_try_push(struct nosa_queue *queue, const void *item)
{
    enum nosa_status status = NOSA_OK;
    pthread_mutex_lock(&queue->mutex);
    if (queue->closed) {
        status = NOSA_CANCELLED;
    } else if (queue->count == queue->capacity) {
        status = NOSA_RESOURCE_EXHAUSTED;
    } else {
        size_t tail = (queue->head + queue->count) % queue->capacity;
        memcpy(queue->items + tail * queue->item_size, item, queue->item_size);
        queue->count++;
        pthread_cond_signal(&queue->not_empty);
    }
    pthread_mutex_unlock(&queue->mutex);
    return status;
}

/* Takes the oldest item; the mutex is held. */
static enum nosa_status take_locked(struct nosa_queue *queue, void *item)
{
    if (queue->count == 0)
        return queue->closed ? NOSA_CANCELLED : NOSA_UNAVAILABLE;
    memcpy(item, queue->items + queue->head * queue->item_size, queue->item_size);
    queue->head = (queue->head + 1) % queue->capacity;
    queue->count--;
    return NOSA_OK;
}

enum nosa_status nosa_queue_try_pop(struct nosa_queue *queue, void *item)
{
    pthread_mutex_lock(&queue->mutex);
    enum nosa_status status = take_locked(queue, item);
    pthread_mutex_unlock(&queue->mutex);
    return status;
}

enum nosa_status nosa_queue_pop(struct nosa_queue *queue, void *item, uint64_t deadline_ns)
{
    struct timespec deadline = {.tv_sec = (time_t)(deadline_ns / NOSA_NS_PER_S),
                                .tv_nsec = (long)(deadline_ns % NOSA_NS_PER_S)};
    enum nosa_status status;
    int waited = 0;
    pthread_mutex_lock(&queue->mutex);
    while ((status = take_locked(queue, item)) == NOSA_UNAVAILABLE) {
        if (waited == ETIMEDOUT) {
            status = NOSA_DEADLINE_EXCEEDED;
            break;
        }
        if (deadline_ns == NOSA_QUEUE_WAIT_FOREVER)
            waited = pthread_cond_wait(&queue->not_empty, &queue->mutex);
        else
            waited = pthread_cond_timedwait(&queue->not_empty, &queue->mutex, &deadline);
    }
    pthread_mutex_unlock(&queue->mutex);
    return status;
}

void nosa_queue_close(struct nosa_queue *queue)
{
    pthread_mutex_lock(&queue->mutex);
    queue->closed = true;
    pthread_cond_broadcast(&queue->not_empty);
    pthread_mutex_unlock(&queue->mutex);
}

size_t nosa_queue_count(struct nosa_queue *queue)
{
    pthread_mutex_lock(&queue->mutex);
    size_t count = queue->count;
    pthread_mutex_unlock(&queue->mutex);
    return count;
}

size_t nosa_queue_capacity(const struct nosa_queue *queue)
{
    return queue->capacity;
}
