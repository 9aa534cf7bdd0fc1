/*
 * Result codes and error text, used by every room.
 *
 * A function that can fail returns `enum nosa_status` (0 is success) and takes a caller-owned
 * `struct nosa_error *` as its last argument, which may be NULL. The first error is kept: setting
 * an error that is already set changes nothing, so cleanup code cannot hide the cause.
 */
#ifndef NOSA_BASE_STATUS_H
#define NOSA_BASE_STATUS_H

#include <stdarg.h>
#include <stdbool.h>

enum nosa_status {
    NOSA_OK = 0,
    NOSA_INVALID_ARGUMENT = 1,   /* a flag, file, request or value that the caller must change */
    NOSA_NOT_FOUND = 2,          /* a file, tensor, model or id that does not exist */
    NOSA_UNSUPPORTED = 3,        /* valid, but nothing here can do it */
    NOSA_CORRUPT = 4,            /* a file or message that contradicts itself */
    NOSA_IO_ERROR = 5,           /* the operating system or a device refused */
    NOSA_OUT_OF_MEMORY = 6,      /* an allocation failed */
    NOSA_RESOURCE_EXHAUSTED = 7, /* a stated bound is reached: queue, slots, context */
    NOSA_UNAVAILABLE = 8,        /* a peer or device is not there now */
    NOSA_CANCELLED = 9,
    NOSA_DEADLINE_EXCEEDED = 10,
    NOSA_INTERNAL = 11, /* a defect of ours that could be contained */
};

#define NOSA_ERROR_TEXT_MAX 512

struct nosa_error {
    enum nosa_status status;
    char text[NOSA_ERROR_TEXT_MAX]; /* one line, no newline; names the thing that is wrong */
};

/* The enum value's name without its prefix, e.g. "INVALID_ARGUMENT"; never NULL. */
const char *nosa_status_name(enum nosa_status status);

/* What a program that ends with `status` returns to its caller: 0, 2 where the caller gave
 * something wrong (a flag, a file, a model), 1 for every other failure. */
int nosa_status_exit_code(enum nosa_status status);

/* Clears `error`; NULL is allowed. */
void nosa_error_clear(struct nosa_error *error);

/* Stores status and formatted text in `error` unless one is set already (or error is NULL);
 * control characters in the text become '?'. Returns `status`, which must not be NOSA_OK. */
enum nosa_status nosa_error_set(struct nosa_error *error, enum nosa_status status,
                                const char *format, ...) __attribute__((format(printf, 3, 4)));

/* clang's analyzer sees one file at a time: this tells it that the result is not NOSA_OK. */
#ifdef __clang_analyzer__
#define nosa_error_set(error, status, ...)                                                         \
    (nosa_error_set((error), (status), __VA_ARGS__), (status))
#endif

/* Puts "prefix: " before the text of an error that is set, so that outer frames can name the
 * file or request. Returns error->status. */
enum nosa_status nosa_error_prefix(struct nosa_error *error, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Invariants of our own, kept in release builds: prints file, line and expression, then aborts. */
#define NOSA_ASSERT(expression)                                                                    \
    ((expression) ? (void)0 : nosa_assert_failed(__FILE__, __LINE__, #expression))

void nosa_assert_failed(const char *file, int line, const char *expression)
    __attribute__((noreturn, cold));

/* Returns from the enclosing function with the status of `expression` unless it is NOSA_OK. */
#define NOSA_TRY(expression)                                                                       \
    do {                                                                                           \
        enum nosa_status nosa_try_status_ = (expression);                                          \
        if (nosa_try_status_ != NOSA_OK)                                                           \
            return nosa_try_status_;                                                               \
    } while (0)

#endif
