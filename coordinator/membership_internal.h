/* The inside of membership, for membership.c (questions, answered from the book) and
 * membership_etcd.c (the thread that keeps book and etcd in step). */
#ifndef NOSA_COORDINATOR_MEMBERSHIP_INTERNAL_H
#define NOSA_COORDINATOR_MEMBERSHIP_INTERNAL_H

#include <pthread.h>

#include "etcd_session.h"
#include "membership.h"

struct nosa_membership_metrics {
    struct nosa_gauge *up;
    struct nosa_gauge *pending;
    struct nosa_gauge *coordinators;
    struct nosa_counter *lease_losses;
    struct nosa_counter *failed_calls;
};

struct nosa_membership {
    /* fixed after create */
    char id[NOSA_MEMBERSHIP_ID_MAX];
    void (*changed)(void *context);
    void *context;
    struct nosa_etcd_client *client; /* owned; NULL: memory */
    struct nosa_membership_metrics metrics;
    pthread_t thread;
    bool running;
    pthread_mutex_t mutex;
    pthread_cond_t wake; /* on CLOCK_MONOTONIC */
    /* under mutex */
    struct nosa_membership_book book;
    uint64_t version;
    bool stopping;
    bool hinted;
    bool up;      /* in step with etcd */
    bool settled; /* a first list has come, or a first round over the endpoints has failed */
    /* owned by the thread */
    struct nosa_etcd_session session;
    int64_t revision; /* of the last list */
    uint64_t asked_ns;
    uint64_t ignored;       /* keys of the last list, as far as was said */
    bool said_away;         /* that etcd is unreachable */
    uint32_t said_failures; /* since the last list */
};

/* The thread, and the end of what it did. */
void *nosa_membership_etcd_run(void *membership);

/* Something has changed that etcd may tell of; any thread. */
void nosa_membership_etcd_hint(void *membership);

enum nosa_status nosa_membership_etcd_metrics(struct nosa_membership *membership,
                                              struct nosa_metrics *metrics,
                                              struct nosa_error *error);

#endif
