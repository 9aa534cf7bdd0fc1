/*
 * Added tokens in a text: leftmost first, longest first, through a byte trie whose edges lie in one
 * hash table. The cost is the text's length times the longest content, at most ADDED_BYTES_MAX,
 * however many tokens there are.
 */
#include <stdlib.h>
#include <string.h>

#include "tokenizer/tokenizer_internal.h"

#define EDGE_EMPTY UINT64_MAX

static size_t edge_slot(const struct nosa_trie *trie, uint64_t key)
{
    size_t mask = trie->edge_slots - 1;
    size_t slot = (size_t)((key * 0x9E3779B97F4A7C15u) >> 24) & mask;
    while (trie->edges[slot].key != EDGE_EMPTY && trie->edges[slot].key != key)
        slot = (slot + 1) & mask;
    return slot;
}

static enum nosa_status grow_edges(struct nosa_trie *trie)
{
    struct nosa_trie_edge *old = trie->edges;
    size_t old_slots = trie->edge_slots;
    size_t slots = old_slots == 0 ? 256 : old_slots * 2;
    struct nosa_trie_edge *edges = malloc(slots * sizeof *edges);
    if (edges == NULL)
        return NOSA_OUT_OF_MEMORY;
    for (size_t i = 0; i < slots; i++)
        edges[i].key = EDGE_EMPTY;
    trie->edges = edges;
    trie->edge_slots = slots;
    for (size_t i = 0; i < old_slots; i++) {
        if (old[i].key != EDGE_EMPTY)
            edges[edge_slot(trie, old[i].key)] = old[i];
    }
    free(old);
    return NOSA_OK;
}

static enum nosa_status add_node(struct nosa_trie *trie, uint32_t *node)
{
    if (trie->node_count == trie->node_capacity) {
        size_t capacity = trie->node_capacity * 2 + 64;
        int32_t *ends = realloc(trie->ends, capacity * sizeof *ends);
        if (ends == NULL)
            return NOSA_OUT_OF_MEMORY;
        trie->ends = ends;
        trie->node_capacity = capacity;
    }
    *node = trie->node_count++;
    trie->ends[*node] = -1;
    return NOSA_OK;
}

enum nosa_status nosa_trie_add(struct nosa_trie *trie, const char *content, size_t size,
                               int32_t token_index)
{
    uint32_t node = 0;
    if (size == 0)
        return NOSA_OK;
    if (trie->node_count == 0)
        NOSA_TRY(add_node(trie, &node));
    trie->first_bytes[(uint8_t)content[0]] = true;
    for (size_t i = 0; i < size; i++) {
        if (2 * (trie->edge_count + 1) > trie->edge_slots)
            NOSA_TRY(grow_edges(trie));
        uint64_t key = (uint64_t)node << 8 | (uint8_t)content[i];
        size_t slot = edge_slot(trie, key);
        if (trie->edges[slot].key == EDGE_EMPTY) {
            NOSA_TRY(add_node(trie, &node));
            trie->edges[slot] = (struct nosa_trie_edge){.key = key, .node = node};
            trie->edge_count++;
        }
        node = trie->edges[slot].node;
    }
    if (trie->ends[node] < 0)
        trie->ends[node] = token_index;
    return NOSA_OK;
}

void nosa_trie_free(struct nosa_trie *trie)
{
    free(trie->edges);
    free(trie->ends);
}

/* The longest token that starts at `at`; -1. */
static int32_t longest(const struct nosa_added_search *search, size_t at, size_t *end)
{
    const struct nosa_trie *trie = search->trie;
    uint32_t node = 0;
    int32_t found = -1;
    for (size_t i = at; i < search->size; i++) {
        uint64_t key = (uint64_t)node << 8 | (uint8_t)search->text[i];
        const struct nosa_trie_edge *edge = &trie->edges[edge_slot(trie, key)];
        if (edge->key == EDGE_EMPTY)
            break;
        node = edge->node;
        int32_t index = trie->ends[node];
        if (index >= 0 && (search->chat || !search->tokens[index].chat_only)) {
            found = index;
            *end = i + 1;
        }
    }
    return found;
}

/* Whether [start, end) touches a message's content. */
static bool is_protected(struct nosa_added_search *search, size_t start, size_t end)
{
    while (search->range_at < search->range_count && search->ranges[search->range_at].end <= start)
        search->range_at++;
    return search->range_at < search->range_count && search->ranges[search->range_at].start < end;
}

static bool is_single_word(const struct nosa_added_search *search, size_t start, size_t end)
{
    uint32_t code_point;
    if (start > 0) {
        nosa_unicode_previous(search->text, start, &code_point);
        if (nosa_unicode_is_word(code_point))
            return false;
    }
    if (end < search->size) {
        nosa_unicode_next(search->text, search->size, end, &code_point);
        if (nosa_unicode_is_word(code_point))
            return false;
    }
    return true;
}

static size_t strip_left(const struct nosa_added_search *search, size_t start)
{
    while (start > search->taken) {
        uint32_t code_point;
        size_t length = nosa_unicode_previous(search->text, start, &code_point);
        if (!nosa_unicode_is_space(code_point))
            break;
        start -= length;
    }
    return start;
}

static size_t strip_right(const struct nosa_added_search *search, size_t end)
{
    while (end < search->size) {
        uint32_t code_point;
        size_t length = nosa_unicode_next(search->text, search->size, end, &code_point);
        if (!nosa_unicode_is_space(code_point))
            break;
        end += length;
    }
    return end;
}

bool nosa_added_next(struct nosa_added_search *search, struct nosa_added_match *match)
{
    if (search->trie->node_count == 0)
        return false;
    while (search->at < search->size) {
        size_t start = search->at;
        size_t end = 0;
        if (!search->trie->first_bytes[(uint8_t)search->text[start]]) {
            search->at++;
            continue;
        }
        int32_t index = longest(search, start, &end);
        if (index < 0) {
            search->at++;
            continue;
        }
        const struct nosa_added_token *token = &search->tokens[index];
        unsigned flags = search->vocab->pieces[token->id].flags;
        if (search->chat && (flags & (PIECE_SPECIAL | PIECE_CONTROL)) != 0 &&
            is_protected(search, start, end)) {
            search->at++;
            continue;
        }
        search->at = end;
        if (search->plain && (flags & PIECE_SPECIAL) != 0)
            continue;
        if (token->single_word && !is_single_word(search, start, end))
            continue;
        if (token->lstrip)
            start = strip_left(search, start);
        if (token->rstrip)
            end = strip_right(search, end);
        search->taken = end;
        *match = (struct nosa_added_match){.start = start, .end = end, .id = token->id};
        return true;
    }
    return false;
}
