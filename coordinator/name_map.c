#include "name_map.h"

#include <stdlib.h>
#include <string.h>

/* Where the name is, or belongs. */
static size_t position_of(const struct nosa_name_map *map, const char *name)
{
    size_t low = 0, high = map->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (strcmp(map->names[middle].name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static bool is_at(const struct nosa_name_map *map, size_t position, const char *name)
{
    return position < map->count && strcmp(map->names[position].name, name) == 0;
}

struct nosa_name *nosa_name_map_find(const struct nosa_name_map *map, const char *name)
{
    size_t position = position_of(map, name);
    return is_at(map, position, name) ? &map->names[position] : NULL;
}

static enum nosa_status grow(struct nosa_name_map *map)
{
    if (map->count_max > 0 && map->count >= map->count_max)
        return NOSA_RESOURCE_EXHAUSTED;
    if (map->count < map->capacity)
        return NOSA_OK;
    size_t capacity = map->capacity ? 2 * map->capacity : 16;
    struct nosa_name *names = realloc(map->names, capacity * sizeof *names);
    if (!names)
        return NOSA_OUT_OF_MEMORY;
    map->names = names;
    map->capacity = capacity;
    return NOSA_OK;
}

static enum nosa_status insert(struct nosa_name_map *map, size_t position, const char *name)
{
    NOSA_TRY(grow(map));
    char *copy = strdup(name);
    if (!copy)
        return NOSA_OUT_OF_MEMORY;
    struct nosa_name *at = &map->names[position];
    memmove(at + 1, at, (map->count - position) * sizeof *at);
    *at = (struct nosa_name){.name = copy, .present = true};
    map->count++;
    return NOSA_OK;
}

enum nosa_status nosa_name_map_put(struct nosa_name_map *map, const char *name, const char *text,
                                   struct nosa_name **entry)
{
    size_t position = position_of(map, name);
    char *copy = strdup(text);
    enum nosa_status status = copy ? NOSA_OK : NOSA_OUT_OF_MEMORY;
    if (status == NOSA_OK && !is_at(map, position, name))
        status = insert(map, position, name);
    if (status != NOSA_OK) {
        free(copy);
        return status;
    }
    struct nosa_name *at = &map->names[position];
    free(at->text);
    at->text = copy;
    if (entry)
        *entry = at;
    return NOSA_OK;
}

void nosa_name_map_remove(struct nosa_name_map *map, struct nosa_name *entry)
{
    size_t position = (size_t)(entry - map->names);
    NOSA_ASSERT(position < map->count);
    free(entry->name);
    free(entry->text);
    memmove(entry, entry + 1, (map->count - position - 1) * sizeof *entry);
    map->count--;
}

void nosa_name_map_free(struct nosa_name_map *map)
{
    for (size_t i = 0; i < map->count; i++) {
        free(map->names[i].name);
        free(map->names[i].text);
    }
    free(map->names);
    *map = (struct nosa_name_map){.count_max = map->count_max};
}
