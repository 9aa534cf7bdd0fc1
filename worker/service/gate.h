/*
 * Whether a worker takes work: its state, how many requests are inside, and how it ends.
 *
 *     STARTING ─ready─> READY <─resume─ DRAINING, DRAINED
 *     any ─drain─> DRAINING ─the last request left─> DRAINED
 *     any ─end, fail─> as drain, and no resume any more
 *
 * Any thread. Every change of state is told to `changed`, outside of the lock.
 */
#ifndef NOSA_SERVICE_GATE_H
#define NOSA_SERVICE_GATE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

#define NOSA_GATE_NEVER      UINT64_MAX
#define NOSA_GATE_REASON_MAX 256

/* The numbers of nosa.v1.WorkerState. */
enum nosa_gate_state {
    NOSA_GATE_STARTING = 1,
    NOSA_GATE_READY = 2,
    NOSA_GATE_DRAINING = 3,
    NOSA_GATE_DRAINED = 4,
};

enum nosa_gate_entry {
    NOSA_GATE_ENTERED,
    NOSA_GATE_NOT_STARTED, /* the model is not loaded yet */
    NOSA_GATE_CLOSED,      /* drains, or has drained */
    NOSA_GATE_FULL,
};

struct nosa_gate; /* opaque */

struct nosa_gate_view {
    enum nosa_gate_state state;
    char reason[NOSA_GATE_REASON_MAX]; /* why it is not READY, in words; empty when it is */
    uint32_t requests;                 /* inside */
    bool ending;                       /* the process ends when it has drained */
    uint64_t let_go_ns; /* monotonic: requests still inside then are let go; or NOSA_GATE_NEVER */
};

/* At most `requests_max` inside at a time. `changed` may be NULL. */
enum nosa_status nosa_gate_create(struct nosa_gate **gate, uint32_t requests_max,
                                  void (*changed)(void *context), void *context,
                                  struct nosa_error *error);
/* NULL is allowed. */
void nosa_gate_free(struct nosa_gate *gate);

/* A request wants in; when it entered, nosa_gate_leave follows. */
enum nosa_gate_entry nosa_gate_enter(struct nosa_gate *gate);
void nosa_gate_leave(struct nosa_gate *gate);

/* The model is loaded. */
void nosa_gate_ready(struct nosa_gate *gate);
/* No new work; what is inside is let go at `let_go_ns`. A second drain moves that time. */
void nosa_gate_drain(struct nosa_gate *gate, uint64_t let_go_ns);
/* Work again. UNAVAILABLE: the process ends; or its model is not loaded yet. */
enum nosa_status nosa_gate_resume(struct nosa_gate *gate, struct nosa_error *error);
/* The process ends: as drain, for good. Called again it only brings let_go_ns forward. */
void nosa_gate_end(struct nosa_gate *gate, uint64_t let_go_ns);
/* The worker cannot go on: what is inside is let go at once, and nosa_gate_wait_end returns
 * `error`. The first error is kept. */
void nosa_gate_fail(struct nosa_gate *gate, const struct nosa_error *error);

void nosa_gate_view(struct nosa_gate *gate, struct nosa_gate_view *out);
/* Whether a request would enter now. */
bool nosa_gate_is_open(struct nosa_gate *gate);

/* Waits until the gate has been ended and is empty. Returns what it failed with, else NOSA_OK. */
enum nosa_status nosa_gate_wait_end(struct nosa_gate *gate, struct nosa_error *error);

/* "STARTING", ...; never NULL. */
const char *nosa_gate_state_name(enum nosa_gate_state state);

#endif
