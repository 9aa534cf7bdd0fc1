/*
 * What membership knows, and what of it is still to be written to etcd. Pure data: which worker ids
 * operators have drained, which workers this coordinator has, and what etcd says of the others.
 *
 * Keys, below a prefix:
 *
 *     marker                   a random text, without a lease: names this store's life
 *     coordinators/ID          address, under the coordinator's lease
 *     workers/ID/WORKER        the worker's address, under the lease of coordinator ID
 *     drains/WORKER            who drained it and when, without a lease: kept until resume
 *
 * Reading a list: what etcd says is so, but for changes of this coordinator that are not written
 * yet. When the marker is another one (the store lost its data, or is another store), what is known
 * here goes into it, and nothing is taken as resumed because it is missing there.
 *
 * One thread at a time (membership's mutex guards it).
 */
#ifndef NOSA_COORDINATOR_MEMBERSHIP_BOOK_H
#define NOSA_COORDINATOR_MEMBERSHIP_BOOK_H

#include "name_map.h"

#define NOSA_MEMBERSHIP_ID_MAX      257 /* bytes of an id with NUL */
#define NOSA_MEMBERSHIP_TEXT_MAX    264 /* of an address or a note, likewise */
#define NOSA_MEMBERSHIP_KEY_MAX     320 /* of a key without the prefix, likewise */
#define NOSA_MEMBERSHIP_DRAINS_MAX  4096
#define NOSA_MEMBERSHIP_WORKERS_MAX 4096  /* of this coordinator */
#define NOSA_MEMBERSHIP_OTHERS_MAX  65536 /* of all others, a worker once for each */
#define NOSA_MEMBERSHIP_PEERS_MAX   64

struct nosa_membership_book {
    /* fixed after init */
    char id[NOSA_MEMBERSHIP_ID_MAX]; /* of this coordinator */
    /* what is here */
    char address[NOSA_MEMBERSHIP_TEXT_MAX]; /* under which workers reach it */
    bool address_pending;
    struct nosa_name_map drains;
    struct nosa_name_map workers;
    /* what etcd said last */
    char marker[NOSA_MEMBERSHIP_TEXT_MAX]; /* "": never reached */
    struct nosa_name_map peers;            /* other coordinators: id, address */
    struct nosa_name_map others;           /* "WORKER" of any of them: address */
};

/* One list of etcd while it is read. All zero but `id` is empty. */
struct nosa_membership_list {
    const char *id; /* of this coordinator; borrowed */
    char marker[NOSA_MEMBERSHIP_TEXT_MAX];
    bool own_seen;
    struct nosa_name_map drains, own, peers, others;
    uint64_t ignored; /* keys that mean nothing here, or had no place */
};

enum nosa_membership_kind { NOSA_MEMBERSHIP_SELF, NOSA_MEMBERSHIP_WORKER, NOSA_MEMBERSHIP_DRAIN };

/* A change on its way to etcd. */
struct nosa_membership_write {
    enum nosa_membership_kind kind;
    bool put;    /* false: delete the key */
    bool leased; /* put it under the lease */
    uint32_t change;
    char name[NOSA_MEMBERSHIP_ID_MAX];
    char key[NOSA_MEMBERSHIP_KEY_MAX];
    char value[NOSA_MEMBERSHIP_TEXT_MAX];
};

void nosa_membership_book_init(struct nosa_membership_book *book, const char *id,
                               const char *address);
void nosa_membership_book_free(struct nosa_membership_book *book);

/* ---- what is wanted and seen here ---- */

/* An operator drains or resumes a worker id; `note` is for people. NOSA_RESOURCE_EXHAUSTED: too
 * many are drained; NOSA_OUT_OF_MEMORY. */
enum nosa_status nosa_membership_book_drain(struct nosa_membership_book *book, const char *id,
                                            bool drained, const char *note);
bool nosa_membership_book_is_drained(const struct nosa_membership_book *book, const char *id);

/* The workers that this coordinator has now, [count] ids and addresses. */
enum nosa_status nosa_membership_book_have(struct nosa_membership_book *book,
                                           const char *const *ids, const char *const *addresses,
                                           size_t count);

/* ---- writing ---- */

/* Whether anything is to be written. */
bool nosa_membership_book_is_pending(const struct nosa_membership_book *book);
/* How much. */
size_t nosa_membership_book_pending(const struct nosa_membership_book *book);
/* The next writes, at most `capacity`; the changes stay pending. */
size_t nosa_membership_book_take(const struct nosa_membership_book *book,
                                 struct nosa_membership_write *writes, size_t capacity);
/* These are in etcd now; what has changed again since stays pending. */
void nosa_membership_book_wrote(struct nosa_membership_book *book,
                                const struct nosa_membership_write *writes, size_t count);
/* The lease is gone, and what hung on it: to be written again. */
void nosa_membership_book_unlease(struct nosa_membership_book *book);
/* Nothing will be written any more (there is no etcd): drops what is pending. */
void nosa_membership_book_settle(struct nosa_membership_book *book);

/* ---- reading ---- */

/* One key of a list, without the prefix. Whatever it is, it does no harm. NOSA_OUT_OF_MEMORY. */
enum nosa_status nosa_membership_list_add(struct nosa_membership_list *list, const char *key,
                                          size_t key_size, const char *value, size_t value_size);
void nosa_membership_list_free(struct nosa_membership_list *list);

/* What a list changed. */
struct nosa_membership_news {
    bool drains;
    bool peers;
    size_t restored; /* drains that are to be written into a store that does not know them */
    bool other_store;
};

/* Takes a whole list with a marker over, and empties it. NOSA_OUT_OF_MEMORY: partly. */
enum nosa_status nosa_membership_book_apply(struct nosa_membership_book *book,
                                            struct nosa_membership_list *list,
                                            struct nosa_membership_news *news);

#endif
