#include "support/alloc_fail.h"

#include <errno.h>
#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/types.h>

#include <cmocka.h>

#define SWEEP_MAX 1000000

static _Atomic(bool) armed;
static _Atomic(bool) hit;
static _Atomic(uint64_t) made;
static _Atomic(uint64_t) first_failing; /* 0: none */
static _Atomic(uint64_t) last_failing;

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *pointer, size_t size);
void *__real_reallocarray(void *pointer, size_t count, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
int __real_posix_memalign(void **pointer, size_t alignment, size_t size);
char *__real_strdup(const char *text);
char *__real_strndup(const char *text, size_t size);
void *__real_mmap(void *address, size_t size, int protection, int flags, int descriptor,
                  off_t offset);

void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *pointer, size_t size);
void *__wrap_reallocarray(void *pointer, size_t count, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
int __wrap_posix_memalign(void **pointer, size_t alignment, size_t size);
char *__wrap_strdup(const char *text);
char *__wrap_strndup(const char *text, size_t size);
void *__wrap_mmap(void *address, size_t size, int protection, int flags, int descriptor,
                  off_t offset);

static bool fails(void)
{
    if (!atomic_load(&armed))
        return false;
    uint64_t number = atomic_fetch_add(&made, 1) + 1;
    uint64_t first = atomic_load(&first_failing);
    if (first == 0 || number < first || number > atomic_load(&last_failing))
        return false;
    atomic_store(&hit, true);
    errno = ENOMEM;
    return true;
}

void *__wrap_malloc(size_t size)
{
    return fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fails() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *pointer, size_t size)
{
    return fails() ? NULL : __real_realloc(pointer, size);
}

void *__wrap_reallocarray(void *pointer, size_t count, size_t size)
{
    return fails() ? NULL : __real_reallocarray(pointer, count, size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return fails() ? NULL : __real_aligned_alloc(alignment, size);
}

int __wrap_posix_memalign(void **pointer, size_t alignment, size_t size)
{
    return fails() ? ENOMEM : __real_posix_memalign(pointer, alignment, size);
}

char *__wrap_strdup(const char *text)
{
    return fails() ? NULL : __real_strdup(text);
}

char *__wrap_strndup(const char *text, size_t size)
{
    return fails() ? NULL : __real_strndup(text, size);
}

void *__wrap_mmap(void *address, size_t size, int protection, int flags, int descriptor,
                  off_t offset)
{
    if (fails())
        return MAP_FAILED;
    return __real_mmap(address, size, protection, flags, descriptor, offset);
}

static void arm_range(uint64_t first, uint64_t last)
{
    atomic_store(&armed, false);
    atomic_store(&hit, false);
    atomic_store(&made, 0);
    atomic_store(&first_failing, first);
    atomic_store(&last_failing, last);
    atomic_store(&armed, true);
}

void nosa_alloc_fail_arm(uint64_t nth)
{
    arm_range(nth, nth);
}

void nosa_alloc_fail_arm_from(uint64_t nth)
{
    arm_range(nth, UINT64_MAX);
}

void nosa_alloc_fail_disarm(void)
{
    atomic_store(&armed, false);
}

uint64_t nosa_alloc_fail_count(void)
{
    return atomic_load(&made);
}

bool nosa_alloc_fail_hit(void)
{
    return atomic_load(&hit);
}

void nosa_alloc_fail_hook_jansson(void)
{
    json_set_alloc_funcs(__wrap_malloc, free);
}

int nosa_alloc_fail_sweep(nosa_alloc_fail_body body, void *context)
{
    for (int nth = 1; nth < SWEEP_MAX; nth++) {
        struct nosa_error error = {0};
        nosa_alloc_fail_arm((uint64_t)nth);
        enum nosa_status status = body(context, &error);
        nosa_alloc_fail_disarm();
        if (!nosa_alloc_fail_hit()) {
            if (status != NOSA_OK)
                fail_msg("no allocation failed, yet: %s: %s", nosa_status_name(status), error.text);
            return nth - 1;
        }
        if (status != NOSA_OK && status != NOSA_OUT_OF_MEMORY)
            fail_msg("allocation %d failing gives %s: %s", nth, nosa_status_name(status),
                     error.text);
        if (status == NOSA_OUT_OF_MEMORY && error.text[0] == '\0')
            fail_msg("allocation %d failing gives an error without text", nth);
    }
    fail_msg("the sweep does not end");
    return 0;
}
