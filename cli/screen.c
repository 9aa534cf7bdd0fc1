#include "screen.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#define ENTER     "\033[?1049h\033[?25l"
#define LEAVE     "\033[?25h\033[?1049l"
#define HOME      "\033[H"
#define REST_LINE "\033[K"
#define REST      "\033[J"
/* Draws are shown at once by terminals that know this, and others ignore it. */
#define BEGIN     "\033[?2026h"
#define END       "\033[?2026l"

static struct {
    bool open;
    bool has_input; /* standard input is a terminal whose settings were changed */
    bool at_exit;   /* atexit was called */
    struct termios before;
} screen;

bool nosa_screen_available(void)
{
    const char *kind = getenv("TERM");
    return isatty(STDOUT_FILENO) && kind && *kind && strcmp(kind, "dumb") != 0;
}

static enum nosa_status write_all(const char *bytes, size_t size, struct nosa_error *error)
{
    while (size > 0) {
        ssize_t written = write(STDOUT_FILENO, bytes, size);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return nosa_error_set(error, NOSA_IO_ERROR, "terminal: %s", strerror(errno));
        bytes += written;
        size -= (size_t)written;
    }
    return NOSA_OK;
}

enum nosa_status nosa_screen_open(struct nosa_error *error)
{
    NOSA_ASSERT(!screen.open);
    if (!screen.at_exit)
        atexit(nosa_screen_close);
    screen.at_exit = true;
    screen.open = true;
    screen.has_input = isatty(STDIN_FILENO) && tcgetattr(STDIN_FILENO, &screen.before) == 0;
    if (screen.has_input) {
        struct termios now = screen.before;
        now.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
        now.c_cc[VMIN] = 0;
        now.c_cc[VTIME] = 0;
        now.c_cc[VSUSP] = _POSIX_VDISABLE; /* a stopped program could not give the screen back */
        tcsetattr(STDIN_FILENO, TCSANOW, &now);
    }
    return write_all(ENTER, strlen(ENTER), error);
}

void nosa_screen_size(uint32_t *columns, uint32_t *lines)
{
    struct winsize size;
    bool known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 && size.ws_row > 0;
    *columns = known ? size.ws_col : 80;
    *lines = known ? size.ws_row : 24;
}

enum nosa_status nosa_screen_draw(const struct nosa_buffer *text, struct nosa_error *error)
{
    struct nosa_buffer out = {0};
    uint32_t columns, lines;
    size_t at = 0;
    nosa_screen_size(&columns, &lines);
    nosa_buffer_append_text(&out, BEGIN HOME);
    /* The last line gets no newline, which would scroll. */
    for (uint32_t i = 0; i < lines && at < text->size; i++) {
        const char *end = memchr(text->data + at, '\n', text->size - at);
        size_t length = end ? (size_t)(end - text->data) - at : text->size - at;
        nosa_buffer_append_text(&out, i ? "\r\n" : "");
        nosa_buffer_append(&out, text->data + at, length);
        nosa_buffer_append_text(&out, REST_LINE);
        at += length + 1;
    }
    nosa_buffer_append_text(&out, REST END);
    enum nosa_status status = nosa_buffer_failed(&out) ? nosa_error_set(error, NOSA_OUT_OF_MEMORY,
                                                                        "no memory for the screen")
                                                       : write_all(out.data, out.size, error);
    nosa_buffer_free(&out);
    return status;
}

int nosa_screen_key(void)
{
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    unsigned char key;
    if (!screen.has_input)
        return -1;
    if (poll(&input, 1, 0) <= 0)
        return 0;
    ssize_t got = read(STDIN_FILENO, &key, 1);
    if (got == 1)
        return key;
    /* A terminal without its VMIN says 0 when there is just nothing. */
    return got == 0 && !(input.revents & POLLHUP) ? 0 : -1;
}

void nosa_screen_close(void)
{
    if (!screen.open)
        return;
    screen.open = false;
    write_all(LEAVE, strlen(LEAVE), NULL);
    if (screen.has_input)
        tcsetattr(STDIN_FILENO, TCSANOW, &screen.before);
}
