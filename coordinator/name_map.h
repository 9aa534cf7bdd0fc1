/*
 * A sorted list of names with a text each: the drains, workers and coordinators of membership.
 * Bounded; not shared between threads (its owner's mutex guards it).
 */
#ifndef NOSA_COORDINATOR_NAME_MAP_H
#define NOSA_COORDINATOR_NAME_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct nosa_name {
    char *name; /* owned, like text */
    char *text;
    bool present;    /* false: taken away, and that is still to be written */
    bool pending;    /* to be written to others */
    bool seen;       /* for whoever compares two lists */
    uint32_t change; /* counts the changes of this entry */
};

/* All zero is a valid empty map. */
struct nosa_name_map {
    struct nosa_name *names; /* owned; [count], by name */
    size_t count;
    size_t capacity;
    size_t count_max; /* 0: no bound */
};

/* NULL: it is not there. Valid until the map changes. */
struct nosa_name *nosa_name_map_find(const struct nosa_name_map *map, const char *name);

/* Finds or inserts a name (present, not pending) and sets its text, copied; *entry (may be NULL) is
 * valid until the map changes. NOSA_RESOURCE_EXHAUSTED: count_max names are in;
 * NOSA_OUT_OF_MEMORY. */
enum nosa_status nosa_name_map_put(struct nosa_name_map *map, const char *name, const char *text,
                                   struct nosa_name **entry);

/* Removes an entry of the map. */
void nosa_name_map_remove(struct nosa_name_map *map, struct nosa_name *entry);

void nosa_name_map_free(struct nosa_name_map *map);

#endif
