#include "membership_book.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void nosa_membership_book_init(struct nosa_membership_book *book, const char *id,
                               const char *address)
{
    *book = (struct nosa_membership_book){
        .address_pending = true,
        .drains.count_max = NOSA_MEMBERSHIP_DRAINS_MAX,
        .workers.count_max = NOSA_MEMBERSHIP_WORKERS_MAX,
    };
    snprintf(book->id, sizeof book->id, "%s", id);
    snprintf(book->address, sizeof book->address, "%s", address);
}

void nosa_membership_book_free(struct nosa_membership_book *book)
{
    nosa_name_map_free(&book->drains);
    nosa_name_map_free(&book->workers);
    nosa_name_map_free(&book->peers);
    nosa_name_map_free(&book->others);
}

/* ---- what is wanted and seen here ---- */

enum nosa_status nosa_membership_book_drain(struct nosa_membership_book *book, const char *id,
                                            bool drained, const char *note)
{
    struct nosa_name *entry = nosa_name_map_find(&book->drains, id);
    if (!entry && !drained)
        return NOSA_OK;
    if (entry && entry->present == drained)
        return NOSA_OK;
    NOSA_TRY(nosa_name_map_put(&book->drains, id, note, &entry));
    entry->present = drained;
    entry->pending = true;
    entry->change++;
    return NOSA_OK;
}

bool nosa_membership_book_is_drained(const struct nosa_membership_book *book, const char *id)
{
    const struct nosa_name *entry = nosa_name_map_find(&book->drains, id);
    return entry && entry->present;
}

static enum nosa_status have_one(struct nosa_name_map *workers, const char *id, const char *address)
{
    struct nosa_name *entry = nosa_name_map_find(workers, id);
    bool same = entry && entry->present && strcmp(entry->text, address) == 0;
    if (!same) {
        NOSA_TRY(nosa_name_map_put(workers, id, address, &entry));
        entry->present = true;
        entry->pending = true;
        entry->change++;
    }
    entry->seen = true;
    return NOSA_OK;
}

enum nosa_status nosa_membership_book_have(struct nosa_membership_book *book,
                                           const char *const *ids, const char *const *addresses,
                                           size_t count)
{
    struct nosa_name_map *workers = &book->workers;
    for (size_t i = 0; i < workers->count; i++)
        workers->names[i].seen = false;
    for (size_t i = 0; i < count; i++)
        NOSA_TRY(have_one(workers, ids[i], addresses[i]));
    for (size_t i = 0; i < workers->count; i++) {
        struct nosa_name *entry = &workers->names[i];
        if (entry->seen || !entry->present)
            continue;
        entry->present = false;
        entry->pending = true;
        entry->change++;
    }
    return NOSA_OK;
}

/* ---- writing ---- */

static size_t count_pending(const struct nosa_name_map *map)
{
    size_t count = 0;
    for (size_t i = 0; i < map->count; i++)
        count += map->names[i].pending;
    return count;
}

size_t nosa_membership_book_pending(const struct nosa_membership_book *book)
{
    return (size_t)book->address_pending + count_pending(&book->drains) +
           count_pending(&book->workers);
}

bool nosa_membership_book_is_pending(const struct nosa_membership_book *book)
{
    return nosa_membership_book_pending(book) > 0;
}

static size_t take_from(const struct nosa_membership_book *book, enum nosa_membership_kind kind,
                        struct nosa_membership_write *writes, size_t capacity)
{
    bool drain = kind == NOSA_MEMBERSHIP_DRAIN;
    const struct nosa_name_map *map = drain ? &book->drains : &book->workers;
    size_t count = 0;
    for (size_t i = 0; i < map->count && count < capacity; i++) {
        const struct nosa_name *entry = &map->names[i];
        struct nosa_membership_write *write = &writes[count];
        if (!entry->pending)
            continue;
        *write = (struct nosa_membership_write){
            .kind = kind, .put = entry->present, .leased = !drain, .change = entry->change};
        snprintf(write->name, sizeof write->name, "%s", entry->name);
        snprintf(write->value, sizeof write->value, "%s", entry->text);
        if (drain)
            snprintf(write->key, sizeof write->key, "drains/%.256s", entry->name);
        else
            snprintf(write->key, sizeof write->key, "workers/%.40s/%.256s", book->id, entry->name);
        count++;
    }
    return count;
}

/* Drains first: they are what others wait for. */
size_t nosa_membership_book_take(const struct nosa_membership_book *book,
                                 struct nosa_membership_write *writes, size_t capacity)
{
    size_t count = take_from(book, NOSA_MEMBERSHIP_DRAIN, writes, capacity);
    if (book->address_pending && count < capacity) {
        struct nosa_membership_write *write = &writes[count++];
        *write = (struct nosa_membership_write){
            .kind = NOSA_MEMBERSHIP_SELF, .put = true, .leased = true};
        snprintf(write->key, sizeof write->key, "coordinators/%.256s", book->id);
        snprintf(write->value, sizeof write->value, "%s", book->address);
    }
    return count + take_from(book, NOSA_MEMBERSHIP_WORKER, writes + count, capacity - count);
}

void nosa_membership_book_wrote(struct nosa_membership_book *book,
                                const struct nosa_membership_write *writes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const struct nosa_membership_write *write = &writes[i];
        struct nosa_name_map *map =
            write->kind == NOSA_MEMBERSHIP_DRAIN ? &book->drains : &book->workers;
        if (write->kind == NOSA_MEMBERSHIP_SELF) {
            book->address_pending = false;
            continue;
        }
        struct nosa_name *entry = nosa_name_map_find(map, write->name);
        if (!entry || entry->change != write->change)
            continue;
        entry->pending = false;
        if (!entry->present)
            nosa_name_map_remove(map, entry);
    }
}

void nosa_membership_book_unlease(struct nosa_membership_book *book)
{
    book->address_pending = true;
    for (size_t i = book->workers.count; i-- > 0;) {
        struct nosa_name *entry = &book->workers.names[i];
        if (entry->present)
            entry->pending = true;
        else
            nosa_name_map_remove(&book->workers, entry);
    }
}

static void settle(struct nosa_name_map *map)
{
    for (size_t i = map->count; i-- > 0;) {
        map->names[i].pending = false;
        if (!map->names[i].present)
            nosa_name_map_remove(map, &map->names[i]);
    }
}

void nosa_membership_book_settle(struct nosa_membership_book *book)
{
    book->address_pending = false;
    settle(&book->drains);
    settle(&book->workers);
}

/* ---- reading ---- */

/* A piece of a key or value as a text; false: none that an id or address could be. */
static bool read_text(char *text, size_t size, const char *bytes, size_t count)
{
    if (count >= size)
        return false;
    for (size_t i = 0; i < count; i++)
        if ((unsigned char)bytes[i] < 0x20 || bytes[i] == 0x7f)
            return false;
    snprintf(text, size, "%.*s", (int)count, count > 0 ? bytes : "");
    return true;
}

static const char *after(const char *key, const char *beginning)
{
    size_t size = strlen(beginning);
    return strncmp(key, beginning, size) == 0 && key[size] ? key + size : NULL;
}

static enum nosa_status add_worker(struct nosa_membership_list *list, const char *rest,
                                   const char *value)
{
    const char *slash = strchr(rest, '/');
    if (!slash || slash == rest || !slash[1] || strlen(slash + 1) >= NOSA_MEMBERSHIP_ID_MAX)
        return NOSA_NOT_FOUND;
    bool own = strlen(list->id) == (size_t)(slash - rest) &&
               strncmp(list->id, rest, (size_t)(slash - rest)) == 0;
    return nosa_name_map_put(own ? &list->own : &list->others, slash + 1, value, NULL);
}

static enum nosa_status add_key(struct nosa_membership_list *list, const char *key,
                                const char *value)
{
    const char *rest;
    list->drains.count_max = NOSA_MEMBERSHIP_DRAINS_MAX;
    list->peers.count_max = NOSA_MEMBERSHIP_PEERS_MAX;
    list->others.count_max = NOSA_MEMBERSHIP_OTHERS_MAX;
    list->own.count_max = NOSA_MEMBERSHIP_OTHERS_MAX;
    if (strcmp(key, "marker") == 0) {
        snprintf(list->marker, sizeof list->marker, "%s", value);
        return NOSA_OK;
    }
    if ((rest = after(key, "drains/")) != NULL && strlen(rest) < NOSA_MEMBERSHIP_ID_MAX)
        return nosa_name_map_put(&list->drains, rest, value, NULL);
    if ((rest = after(key, "workers/")) != NULL)
        return add_worker(list, rest, value);
    if ((rest = after(key, "coordinators/")) == NULL || strlen(rest) >= NOSA_MEMBERSHIP_ID_MAX)
        return NOSA_NOT_FOUND;
    list->own_seen = list->own_seen || strcmp(rest, list->id) == 0;
    return strcmp(rest, list->id) == 0 ? NOSA_OK
                                       : nosa_name_map_put(&list->peers, rest, value, NULL);
}

enum nosa_status nosa_membership_list_add(struct nosa_membership_list *list, const char *key,
                                          size_t key_size, const char *value, size_t value_size)
{
    char key_text[NOSA_MEMBERSHIP_KEY_MAX], value_text[NOSA_MEMBERSHIP_TEXT_MAX];
    enum nosa_status status = NOSA_NOT_FOUND;
    if (!read_text(value_text, sizeof value_text, value, value_size))
        value_text[0] = '\0'; /* a drain is its key */
    if (read_text(key_text, sizeof key_text, key, key_size))
        status = add_key(list, key_text, value_text);
    if (status == NOSA_OUT_OF_MEMORY)
        return status;
    list->ignored += status != NOSA_OK;
    return NOSA_OK;
}

void nosa_membership_list_free(struct nosa_membership_list *list)
{
    nosa_name_map_free(&list->drains);
    nosa_name_map_free(&list->own);
    nosa_name_map_free(&list->peers);
    nosa_name_map_free(&list->others);
}

/* What is drained here and not there: resumed by others, or forgotten by the store. */
static void drop_drains(struct nosa_membership_book *book, const struct nosa_membership_list *list,
                        struct nosa_membership_news *news)
{
    for (size_t i = book->drains.count; i-- > 0;) {
        struct nosa_name *entry = &book->drains.names[i];
        if (entry->pending || nosa_name_map_find(&list->drains, entry->name))
            continue;
        if (news->other_store) {
            entry->pending = true;
            entry->change++;
            news->restored++;
        } else {
            nosa_name_map_remove(&book->drains, entry);
            news->drains = true;
        }
    }
}

static enum nosa_status add_drains(struct nosa_membership_book *book,
                                   struct nosa_membership_list *list,
                                   struct nosa_membership_news *news)
{
    for (size_t i = 0; i < list->drains.count; i++) {
        const struct nosa_name *there = &list->drains.names[i];
        if (nosa_name_map_find(&book->drains, there->name))
            continue; /* as here, or changed here and not written yet */
        enum nosa_status status = nosa_name_map_put(&book->drains, there->name, there->text, NULL);
        if (status == NOSA_OUT_OF_MEMORY)
            return status;
        list->ignored += status != NOSA_OK;
        news->drains = true;
    }
    return NOSA_OK;
}

/* Own keys that somebody has deleted are written again. */
static void check_own(struct nosa_membership_book *book, const struct nosa_membership_list *list)
{
    book->address_pending = book->address_pending || !list->own_seen;
    for (size_t i = 0; i < book->workers.count; i++) {
        struct nosa_name *entry = &book->workers.names[i];
        if (entry->present && !nosa_name_map_find(&list->own, entry->name))
            entry->pending = true;
    }
}

static bool same_names(const struct nosa_name_map *a, const struct nosa_name_map *b)
{
    if (a->count != b->count)
        return false;
    for (size_t i = 0; i < a->count; i++)
        if (strcmp(a->names[i].name, b->names[i].name) != 0 ||
            strcmp(a->names[i].text, b->names[i].text) != 0)
            return false;
    return true;
}

static void replace(struct nosa_name_map *map, struct nosa_name_map *by)
{
    struct nosa_name_map old = *map;
    *map = *by;
    *by = old;
}

enum nosa_status nosa_membership_book_apply(struct nosa_membership_book *book,
                                            struct nosa_membership_list *list,
                                            struct nosa_membership_news *news)
{
    *news = (struct nosa_membership_news){0};
    NOSA_ASSERT(list->marker[0]);
    news->other_store = book->marker[0] && strcmp(book->marker, list->marker) != 0;
    snprintf(book->marker, sizeof book->marker, "%s", list->marker);
    drop_drains(book, list, news);
    enum nosa_status status = add_drains(book, list, news);
    check_own(book, list);
    news->peers = !same_names(&book->peers, &list->peers);
    replace(&book->peers, &list->peers);
    replace(&book->others, &list->others);
    nosa_membership_list_free(list);
    return status;
}
