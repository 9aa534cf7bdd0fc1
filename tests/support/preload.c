/*
 * Preloaded into a program under test, to give it a world that is slow or changes:
 *
 * - SLOW_READS_MS, SLOW_READS_WHEN: while the file of the second name is there, every preadv takes
 *   so much longer;
 * - SLOW_FILE, SLOW_FILE_MS: so does opening a file whose path ends so;
 * - FAKE_HOSTS: a file of addresses, one a line, that the host name "fake.test" resolves to.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static void wait_for(const char *variable)
{
    const char *text = getenv(variable);
    long ms = text ? atol(text) : 0;
    struct timespec wait = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    nanosleep(&wait, NULL);
}

ssize_t preadv(int descriptor, const struct iovec *vectors, int count, off_t offset)
{
    typedef ssize_t (*reader)(int, const struct iovec *, int, off_t);
    reader next = (reader)dlsym(RTLD_NEXT, "preadv");
    const char *when = getenv("SLOW_READS_WHEN");
    if (when && access(when, F_OK) == 0)
        wait_for("SLOW_READS_MS");
    return next(descriptor, vectors, count, offset);
}

static int slow_open(const char *name, const char *path, int flags, mode_t mode)
{
    typedef int (*opener)(const char *, int, ...);
    opener next = (opener)dlsym(RTLD_NEXT, name);
    const char *slow = getenv("SLOW_FILE");
    size_t size = strlen(path), tail = slow ? strlen(slow) : 0;
    if (slow && size >= tail && strcmp(path + size - tail, slow) == 0)
        wait_for("SLOW_FILE_MS");
    return next(path, flags, mode);
}

static mode_t mode_of(int flags, va_list arguments)
{
    return flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
}

int open(const char *path, int flags, ...)
{
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = mode_of(flags, arguments);
    va_end(arguments);
    return slow_open("open", path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = mode_of(flags, arguments);
    va_end(arguments);
    return slow_open("open64", path, flags, mode);
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                struct addrinfo **out)
{
    typedef int (*resolver)(const char *, const char *, const struct addrinfo *,
                            struct addrinfo **);
    resolver next = (resolver)dlsym(RTLD_NEXT, "getaddrinfo");
    const char *path = getenv("FAKE_HOSTS");
    if (!path || !node || strcmp(node, "fake.test") != 0)
        return next(node, service, hints, out);
    FILE *hosts = fopen(path, "r");
    struct addrinfo **end = out;
    char line[64];
    *out = NULL;
    while (hosts && fgets(line, sizeof line, hosts)) {
        line[strcspn(line, "\n")] = '\0';
        if (next(line, service, hints, end) != 0)
            *end = NULL;
        while (*end)
            end = &(*end)->ai_next;
    }
    if (hosts)
        fclose(hosts);
    return *out ? 0 : EAI_NONAME;
}
