#include "work_pool.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/queue.h"

struct item {
    nosa_work work;
    void *argument;
};

struct nosa_work_pool {
    struct nosa_queue *queue; /* owned */
    int thread_count;         /* owned by the thread that stops */
    pthread_t threads[];
};

static void *serve(void *argument)
{
    struct nosa_work_pool *pool = argument;
    struct item item;
    while (nosa_queue_pop(pool->queue, &item, NOSA_QUEUE_WAIT_FOREVER) == NOSA_OK)
        item.work(item.argument);
    return NULL;
}

enum nosa_status nosa_work_pool_create(struct nosa_work_pool **out, int threads, size_t waiting_max,
                                       struct nosa_error *error)
{
    struct nosa_work_pool *pool = calloc(1, sizeof *pool + (size_t)threads * sizeof(pthread_t));
    *out = NULL;
    if (!pool)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for %d threads", threads);
    enum nosa_status status =
        nosa_queue_create(&pool->queue, waiting_max, sizeof(struct item), error);
    for (int i = 0; i < threads && status == NOSA_OK; i++) {
        int failed = pthread_create(&pool->threads[i], NULL, serve, pool);
        if (failed)
            status = nosa_error_set(error, NOSA_IO_ERROR, "no thread could be started: %s",
                                    strerror(failed));
        else
            pool->thread_count++;
    }
    if (status != NOSA_OK) {
        nosa_work_pool_free(pool);
        return status;
    }
    *out = pool;
    return NOSA_OK;
}

enum nosa_status nosa_work_pool_submit(struct nosa_work_pool *pool, nosa_work work, void *argument)
{
    const struct item item = {work, argument};
    return nosa_queue_try_push(pool->queue, &item) == NOSA_OK ? NOSA_OK : NOSA_RESOURCE_EXHAUSTED;
}

void nosa_work_pool_stop(struct nosa_work_pool *pool)
{
    if (pool->queue)
        nosa_queue_close(pool->queue);
    for (int i = 0; i < pool->thread_count; i++)
        pthread_join(pool->threads[i], NULL);
    pool->thread_count = 0;
}

void nosa_work_pool_free(struct nosa_work_pool *pool)
{
    if (!pool)
        return;
    nosa_work_pool_stop(pool);
    nosa_queue_free(pool->queue);
    free(pool);
}
