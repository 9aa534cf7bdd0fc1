#include "interrupt.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "exit_code.h"

static volatile sig_atomic_t requested; /* the signal's number */
static int wake_pipe[2] = {-1, -1};     /* fixed after catch: read end, write end; not blocking */

void nosa_interrupt_wake(void)
{
    int saved = errno;
    /* A full pipe wakes as well. */
    if (wake_pipe[1] >= 0 && write(wake_pipe[1], "", 1) < 0)
        errno = saved;
    errno = saved;
}

static void on_end(int number)
{
    requested = number;
    nosa_interrupt_wake();
}

static void on_resize(int number)
{
    (void)number;
    nosa_interrupt_wake();
}

enum nosa_status nosa_interrupt_catch(bool resize, struct nosa_error *error)
{
    NOSA_ASSERT(wake_pipe[0] < 0);
    if (pipe2(wake_pipe, O_CLOEXEC | O_NONBLOCK) != 0)
        return nosa_error_set(error, NOSA_IO_ERROR, "pipe: %s", strerror(errno));
    struct sigaction end = {.sa_handler = on_end, .sa_flags = (int)SA_RESETHAND | SA_RESTART};
    struct sigaction redraw = {.sa_handler = on_resize, .sa_flags = SA_RESTART};
    sigaction(SIGINT, &end, NULL);
    sigaction(SIGTERM, &end, NULL);
    if (resize)
        sigaction(SIGWINCH, &redraw, NULL);
    return NOSA_OK;
}

int nosa_interrupt_signal(void)
{
    return requested;
}

const volatile sig_atomic_t *nosa_interrupt_flag(void)
{
    return &requested;
}

bool nosa_interrupt_wait(int descriptor, uint32_t wait_ms)
{
    struct pollfd set[2] = {{.fd = wake_pipe[0], .events = POLLIN},
                            {.fd = descriptor, .events = POLLIN}};
    char drained[64];
    if (poll(set, 2, wait_ms > INT32_MAX ? INT32_MAX : (int)wait_ms) <= 0)
        return false;
    while (set[0].revents && read(wake_pipe[0], drained, sizeof drained) > 0)
        ;
    return set[1].revents != 0;
}

int nosa_interrupt_exit_code(void)
{
    return NOSA_EXIT_SIGNAL + requested;
}
