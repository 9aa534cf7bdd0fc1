#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <pthread.h>

#include "base/clock.h"
#include "base/queue.h"

static void test_push_full_is_a_status(void **state)
{
    (void)state;
    struct nosa_queue *queue;
    int item = 0;
    assert_int_equal(nosa_queue_create(&queue, 2, sizeof item, NULL), NOSA_OK);
    assert_int_equal(nosa_queue_capacity(queue), 2);
    assert_int_equal(nosa_queue_try_push(queue, &item), NOSA_OK);
    item = 1;
    assert_int_equal(nosa_queue_try_push(queue, &item), NOSA_OK);
    assert_int_equal(nosa_queue_try_push(queue, &item), NOSA_RESOURCE_EXHAUSTED);
    assert_int_equal(nosa_queue_count(queue), 2);
    assert_int_equal(nosa_queue_try_pop(queue, &item), NOSA_OK);
    assert_int_equal(item, 0);
    assert_int_equal(nosa_queue_try_push(queue, &(int){2}), NOSA_OK);
    assert_int_equal(nosa_queue_try_pop(queue, &item), NOSA_OK);
    assert_int_equal(item, 1);
    assert_int_equal(nosa_queue_try_pop(queue, &item), NOSA_OK);
    assert_int_equal(item, 2);
    nosa_queue_free(queue);
    nosa_queue_free(NULL);
}

static void test_pop_deadline(void **state)
{
    (void)state;
    struct nosa_queue *queue;
    char item;
    assert_int_equal(nosa_queue_create(&queue, 1, 1, NULL), NOSA_OK);
    assert_int_equal(nosa_queue_try_pop(queue, &item), NOSA_UNAVAILABLE);
    assert_int_equal(nosa_queue_pop(queue, &item, 0), NOSA_DEADLINE_EXCEEDED);
    uint64_t start_ns = nosa_monotonic_ns();
    uint64_t deadline_ns = start_ns + 20 * NOSA_NS_PER_MS;
    assert_int_equal(nosa_queue_pop(queue, &item, deadline_ns), NOSA_DEADLINE_EXCEEDED);
    assert_true(nosa_monotonic_ns() >= deadline_ns);
    assert_int_equal(nosa_queue_try_push(queue, "x"), NOSA_OK);
    assert_int_equal(nosa_queue_pop(queue, &item, 0), NOSA_OK);
    assert_int_equal(item, 'x');
    nosa_queue_free(queue);
}

static void *pop_forever(void *context)
{
    char item;
    enum nosa_status status = nosa_queue_pop(context, &item, NOSA_QUEUE_WAIT_FOREVER);
    return (void *)(intptr_t)status;
}

static void test_close_wakes_and_drains(void **state)
{
    (void)state;
    struct nosa_queue *queue;
    pthread_t thread;
    void *result;
    char item;
    assert_int_equal(nosa_queue_create(&queue, 2, 1, NULL), NOSA_OK);
    assert_int_equal(pthread_create(&thread, NULL, pop_forever, queue), 0);
    nosa_queue_close(queue);
    pthread_join(thread, &result);
    assert_int_equal((intptr_t)result, NOSA_CANCELLED);
    assert_int_equal(nosa_queue_try_push(queue, "x"), NOSA_CANCELLED);
    nosa_queue_free(queue);

    assert_int_equal(nosa_queue_create(&queue, 2, 1, NULL), NOSA_OK);
    assert_int_equal(nosa_queue_try_push(queue, "x"), NOSA_OK);
    nosa_queue_close(queue);
    assert_int_equal(nosa_queue_pop(queue, &item, NOSA_QUEUE_WAIT_FOREVER), NOSA_OK);
    assert_int_equal(item, 'x');
    assert_int_equal(nosa_queue_try_pop(queue, &item), NOSA_CANCELLED);
    nosa_queue_free(queue);
}

#define PRODUCERS 3
#define CONSUMERS 3
#define ITEMS     2000

struct item {
    uint32_t producer;
    uint32_t number;
};

struct shared {
    struct nosa_queue *queue;
    uint32_t producer;
    uint64_t sum;   /* of numbers popped */
    uint64_t count; /* of items popped */
    bool ordered;   /* one producer's items came in order */
};

static void *produce(void *context)
{
    struct shared *shared = context;
    for (uint32_t i = 1; i <= ITEMS; i++) {
        struct item item = {shared->producer, i};
        while (nosa_queue_try_push(shared->queue, &item) == NOSA_RESOURCE_EXHAUSTED)
            sched_yield();
    }
    return NULL;
}

static void *consume(void *context)
{
    struct shared *shared = context;
    uint32_t last[PRODUCERS] = {0};
    struct item item;
    shared->ordered = true;
    while (nosa_queue_pop(shared->queue, &item, NOSA_QUEUE_WAIT_FOREVER) == NOSA_OK) {
        shared->ordered = shared->ordered && item.number > last[item.producer];
        last[item.producer] = item.number;
        shared->sum += item.number;
        shared->count++;
    }
    return NULL;
}

static void test_queue_many_threads(void **state)
{
    (void)state;
    struct nosa_queue *queue;
    struct shared producers[PRODUCERS] = {0}, consumers[CONSUMERS] = {0};
    pthread_t threads[PRODUCERS + CONSUMERS];
    assert_int_equal(nosa_queue_create(&queue, 7, sizeof(struct item), NULL), NOSA_OK);
    for (uint32_t i = 0; i < CONSUMERS; i++) {
        consumers[i].queue = queue;
        assert_int_equal(pthread_create(&threads[PRODUCERS + i], NULL, consume, &consumers[i]), 0);
    }
    for (uint32_t i = 0; i < PRODUCERS; i++) {
        producers[i] = (struct shared){.queue = queue, .producer = i};
        assert_int_equal(pthread_create(&threads[i], NULL, produce, &producers[i]), 0);
    }
    for (int i = 0; i < PRODUCERS; i++)
        pthread_join(threads[i], NULL);
    nosa_queue_close(queue);
    uint64_t sum = 0, count = 0;
    for (int i = 0; i < CONSUMERS; i++) {
        pthread_join(threads[PRODUCERS + i], NULL);
        sum += consumers[i].sum;
        count += consumers[i].count;
        assert_true(consumers[i].ordered);
    }
    assert_int_equal(count, PRODUCERS * ITEMS);
    assert_int_equal(sum, (uint64_t)PRODUCERS * ITEMS * (ITEMS + 1) / 2);
    nosa_queue_free(queue);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_push_full_is_a_status),
        cmocka_unit_test(test_pop_deadline),
        cmocka_unit_test(test_close_wakes_and_drains),
        cmocka_unit_test(test_queue_many_threads),
    };
    return cmocka_run_group_tests_name("queue", tests, NULL, NULL);
}
