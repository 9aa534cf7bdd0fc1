/*
 * Signals that end or redraw, as a flag to look at and a descriptor to wait on. The first SIGINT or
 * SIGTERM is noted, a second one ends the program at once. Main thread.
 */
#ifndef NOSA_CLI_INTERRUPT_H
#define NOSA_CLI_INTERRUPT_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

/* From now on SIGINT and SIGTERM are noted; `resize`: SIGWINCH too. Called once. NOSA_IO_ERROR. */
enum nosa_status nosa_interrupt_catch(bool resize, struct nosa_error *error);

/* The signal that asked the program to end; 0: none did. */
int nosa_interrupt_signal(void);

/* The same for code that looks by itself: not 0 once a signal came. Static. */
const volatile sig_atomic_t *nosa_interrupt_flag(void);

/*
 * Waits up to `wait_ms` for a signal or for input on `descriptor` (-1: none). Returns whether there
 * is input. Without nosa_interrupt_catch it only waits.
 */
bool nosa_interrupt_wait(int descriptor, uint32_t wait_ms);

/* Ends a nosa_interrupt_wait of the main thread. Any thread. */
void nosa_interrupt_wake(void);

/* The exit code after nosa_interrupt_signal: 128 and the signal's number. */
int nosa_interrupt_exit_code(void);

#endif
