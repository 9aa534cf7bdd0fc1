/*
 * Doubly linked lists of indices over an array of links: what waits, in order of arrival. An index
 * is in one list of its array at a time. Every call is O(1).
 */
#ifndef NOSA_KVSTORE_INDEX_LIST_H
#define NOSA_KVSTORE_INDEX_LIST_H

#include <stdint.h>

#define NOSA_INDEX_NONE (-1)

struct nosa_index_link {
    int32_t next; /* NOSA_INDEX_NONE at the ends */
    int32_t previous;
};

struct nosa_index_list {
    int32_t first;
    int32_t last;
    int32_t count;
};

static inline void nosa_index_list_init(struct nosa_index_list *list)
{
    *list = (struct nosa_index_list){NOSA_INDEX_NONE, NOSA_INDEX_NONE, 0};
}

static inline void nosa_index_list_append(struct nosa_index_list *list,
                                          struct nosa_index_link *links, int32_t index)
{
    links[index] = (struct nosa_index_link){NOSA_INDEX_NONE, list->last};
    if (list->last != NOSA_INDEX_NONE)
        links[list->last].next = index;
    else
        list->first = index;
    list->last = index;
    list->count++;
}

static inline void nosa_index_list_remove(struct nosa_index_list *list,
                                          struct nosa_index_link *links, int32_t index)
{
    struct nosa_index_link link = links[index];
    if (link.previous != NOSA_INDEX_NONE)
        links[link.previous].next = link.next;
    else
        list->first = link.next;
    if (link.next != NOSA_INDEX_NONE)
        links[link.next].previous = link.previous;
    else
        list->last = link.previous;
    list->count--;
}

#endif
