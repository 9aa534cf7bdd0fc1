/* x += y: three streams of memory and one addition each. */
#include "cpu/cpu_internal.h"
#include "cpu/vec.h"

#define VALUES_PER_ITEM 32768 /* a multiple of the lanes */

static void add_item(void *context, int32_t item, int32_t thread)
{
    (void)thread;
    const struct nosa_add_params *params = context;
    int64_t i = (int64_t)item * VALUES_PER_ITEM;
    int64_t end = i + VALUES_PER_ITEM < params->n ? i + VALUES_PER_ITEM : params->n;
    for (; i + NOSA_VEC_LANES <= end; i += NOSA_VEC_LANES)
        nosa_vec_store(params->x + i,
                       nosa_vec_add(nosa_vec_load(params->x + i), nosa_vec_load(params->y + i)));
    for (; i < end; i++)
        params->x[i] += params->y[i];
}

enum nosa_status NOSA_CPU_NAME(nosa_cpu_add)(struct nosa_stream *stream,
                                             const struct nosa_add_params *params)
{
    int64_t items = (params->n + VALUES_PER_ITEM - 1) / VALUES_PER_ITEM;
    if (items > INT32_MAX)
        return NOSA_INVALID_ARGUMENT;
    struct nosa_add_params copy = *params;
    nosa_cpu_pool_run(stream->device->pool, (int32_t)items, add_item, &copy);
    return NOSA_OK;
}
