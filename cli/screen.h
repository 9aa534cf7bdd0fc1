/*
 * The terminal as a screen: its second buffer, no cursor, keys without Enter. What it changed is
 * put back by close, at exit, and when a signal ends the program. Main thread; one at a time.
 */
#ifndef NOSA_CLI_SCREEN_H
#define NOSA_CLI_SCREEN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/status.h"

/* Whether standard output is a terminal that a screen can be drawn on. */
bool nosa_screen_available(void);

/* Takes the terminal. nosa_interrupt_catch belongs before it. NOSA_IO_ERROR. */
enum nosa_status nosa_screen_open(struct nosa_error *error);

/* Columns and lines as they are now; 80 and 24 when the terminal does not say. */
void nosa_screen_size(uint32_t *columns, uint32_t *lines);

/* Replaces the screen by the lines of `text`, of which those beyond the screen are left out.
 * NOSA_IO_ERROR. */
enum nosa_status nosa_screen_draw(const struct nosa_buffer *text, struct nosa_error *error);

/* The next key typed; 0: none now; -1: there is no input, or it has ended. Does not wait. */
int nosa_screen_key(void);

/* Gives the terminal back as it was; nothing when it is not open. */
void nosa_screen_close(void);

#endif
