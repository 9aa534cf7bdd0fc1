#include <stdlib.h>
#include <string.h>

#include "kv_store_internal.h"

enum nosa_status nosa_number_ring_create(struct nosa_number_ring *ring, int32_t capacity)
{
    ring->capacity = capacity;
    ring->numbers = calloc((size_t)capacity, sizeof *ring->numbers);
    ring->listed = calloc((size_t)capacity, sizeof *ring->listed);
    if (ring->numbers && ring->listed)
        return NOSA_OK;
    nosa_number_ring_destroy(ring);
    return NOSA_OUT_OF_MEMORY;
}

void nosa_number_ring_destroy(struct nosa_number_ring *ring)
{
    free(ring->listed);
    free(ring->numbers);
    memset(ring, 0, sizeof *ring);
}

void nosa_number_ring_push(struct nosa_number_ring *ring, int32_t number)
{
    NOSA_ASSERT(number >= 0 && number < ring->capacity);
    if (ring->listed[number])
        return;
    ring->listed[number] = true;
    ring->numbers[(ring->first + ring->count++) % ring->capacity] = number;
}

int32_t nosa_number_ring_front(const struct nosa_number_ring *ring)
{
    NOSA_ASSERT(ring->count > 0);
    return ring->numbers[ring->first];
}

void nosa_number_ring_pop(struct nosa_number_ring *ring)
{
    ring->listed[nosa_number_ring_front(ring)] = false;
    ring->first = (ring->first + 1) % ring->capacity;
    ring->count--;
}
