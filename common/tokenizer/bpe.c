/*
 * Byte-pair encoding of one word: its characters become symbols, and the pair of the lowest rank is
 * merged, leftmost first, until none is left. The pairs wait in a binary heap and the symbols are a
 * doubly linked list over a flat array; a pair that a merge has broken up stays in the heap and is
 * recognised as stale when it comes up. A word of n characters costs O(n log n).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer/tokenizer_internal.h"

/* ---- loading ---- */

static size_t merge_slot(const struct nosa_bpe *bpe, uint64_t pair)
{
    size_t mask = bpe->merge_slots - 1;
    uint64_t hash = pair * 0x9E3779B97F4A7C15u;
    size_t slot = (size_t)(hash >> 20) & mask;
    while (bpe->merges[slot].pair != MERGE_EMPTY && bpe->merges[slot].pair != pair)
        slot = (slot + 1) & mask;
    return slot;
}

static const struct nosa_merge *find_merge(const struct nosa_bpe *bpe, int32_t left, int32_t right)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    const struct nosa_merge *merge = &bpe->merges[merge_slot(bpe, pair)];
    return merge->pair == MERGE_EMPTY ? NULL : merge;
}

static enum nosa_status load_vocabulary(struct nosa_vocab *vocab, const json_t *model,
                                        struct nosa_error *error)
{
    json_t *entries = json_object_get(model, "vocab");
    if (!json_is_object(entries))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "model: \"vocab\" is not an object");
    if (json_object_size(entries) == 0)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "model: \"vocab\" is empty");
    void *iterator = json_object_iter(entries);
    for (; iterator != NULL; iterator = json_object_iter_next(entries, iterator)) {
        const char *content = json_object_iter_key(iterator);
        const json_t *id = json_object_iter_value(iterator);
        if (!json_is_integer(id))
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                  "model: the id of token '%.60s' is not an integer", content);
        NOSA_TRY(nosa_vocab_add(vocab, content, json_object_iter_key_len(iterator),
                                json_integer_value(id), PIECE_IN_MODEL, error));
    }
    return NOSA_OK;
}

struct text {
    const char *data;
    size_t size;
};

/* Reads "a b" or ["a", "b"]. */
static bool read_pair(const json_t *merge, struct text *left, struct text *right)
{
    if (json_is_array(merge)) {
        const json_t *first = json_array_get(merge, 0);
        const json_t *second = json_array_get(merge, 1);
        if (json_array_size(merge) != 2 || !json_is_string(first) || !json_is_string(second))
            return false;
        *left = (struct text){json_string_value(first), json_string_length(first)};
        *right = (struct text){json_string_value(second), json_string_length(second)};
        return true;
    }
    if (!json_is_string(merge))
        return false;
    const char *data = json_string_value(merge);
    size_t size = json_string_length(merge);
    const char *space = memchr(data, ' ', size);
    if (space == NULL || memchr(space + 1, ' ', size - (size_t)(space + 1 - data)) != NULL)
        return false;
    *left = (struct text){data, (size_t)(space - data)};
    *right = (struct text){space + 1, size - left->size - 1};
    return true;
}

static enum nosa_status find_part(const struct nosa_vocab *vocab, struct text part, size_t index,
                                  int32_t *id, struct nosa_error *error)
{
    *id = nosa_vocab_find_model(vocab, part.data, part.size);
    if (*id < 0)
        return nosa_error_set(
            error, NOSA_CORRUPT,
            "model: merge %zu needs token '%.60s', which is not in the vocabulary", index,
            part.data);
    return NOSA_OK;
}

static enum nosa_status load_merge(struct nosa_bpe *bpe, const struct nosa_vocab *vocab,
                                   const json_t *merge, size_t index, struct nosa_buffer *joined,
                                   struct nosa_error *error)
{
    struct text left;
    struct text right;
    if (!read_pair(merge, &left, &right))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "model: merge %zu is neither \"a b\" nor [\"a\", \"b\"]", index);
    nosa_buffer_reset(joined);
    nosa_buffer_append(joined, left.data, left.size);
    nosa_buffer_append(joined, right.data, right.size);
    if (nosa_buffer_failed(joined))
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the merges");
    int32_t left_id;
    int32_t right_id;
    int32_t id;
    NOSA_TRY(find_part(vocab, left, index, &left_id, error));
    NOSA_TRY(find_part(vocab, right, index, &right_id, error));
    const char *content = joined->data == NULL ? "" : joined->data;
    NOSA_TRY(find_part(vocab, (struct text){content, joined->size}, index, &id, error));
    uint64_t pair = (uint64_t)(uint32_t)left_id << 32 | (uint32_t)right_id;
    bpe->merges[merge_slot(bpe, pair)] =
        (struct nosa_merge){.pair = pair, .rank = (uint32_t)index, .id = id};
    return NOSA_OK;
}

static enum nosa_status load_merges(struct nosa_bpe *bpe, const struct nosa_vocab *vocab,
                                    const json_t *model, struct nosa_error *error)
{
    const json_t *merges = json_object_get(model, "merges");
    if (!json_is_array(merges))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "model: \"merges\" is not an array");
    size_t count = json_array_size(merges);
    bpe->merge_slots = 16;
    while (bpe->merge_slots < 2 * (count + 1))
        bpe->merge_slots *= 2;
    bpe->merges = malloc(bpe->merge_slots * sizeof *bpe->merges);
    if (bpe->merges == NULL)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the merges");
    for (size_t i = 0; i < bpe->merge_slots; i++)
        bpe->merges[i].pair = MERGE_EMPTY;
    struct nosa_buffer joined = {0};
    enum nosa_status status = NOSA_OK;
    size_t rank = 0;
    for (size_t i = 0; i < count && status == NOSA_OK; i++) {
        const json_t *merge = json_array_get(merges, i);
        const char *line = json_string_value(merge);
        if (line == NULL || strncmp(line, "#version", 8) != 0)
            status = load_merge(bpe, vocab, merge, rank++, &joined, error);
    }
    nosa_buffer_free(&joined);
    return status;
}

/* Refuses what changes the ids and is not implemented. */
static enum nosa_status check_model(const json_t *model, struct nosa_error *error)
{
    const json_t *type = json_object_get(model, "type");
    if (type == NULL && json_object_get(model, "merges") == NULL)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "model has no \"type\"");
    if (type != NULL && !json_is_string(type))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "model: \"type\" is not a string");
    if (type != NULL && strcmp(json_string_value(type), "BPE") != 0)
        return nosa_error_set(error, NOSA_UNSUPPORTED, "model type '%.60s' is not supported",
                              json_string_value(type));
    const json_t *dropout = json_object_get(model, "dropout");
    if (json_is_number(dropout) ? json_number_value(dropout) != 0
                                : dropout != NULL && !json_is_null(dropout))
        return nosa_error_set(error, NOSA_UNSUPPORTED, "model: dropout is not supported");
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (size_t i = 0; i < 2; i++) {
        const json_t *affix = json_object_get(model, affixes[i]);
        if (affix != NULL && !json_is_null(affix) &&
            (!json_is_string(affix) || json_string_length(affix) != 0))
            return nosa_error_set(error, NOSA_UNSUPPORTED, "model: %s is not supported",
                                  affixes[i]);
    }
    return NOSA_OK;
}

static void index_characters(struct nosa_bpe *bpe, const struct nosa_vocab *vocab)
{
    for (uint32_t c = 0; c < 512; c++) {
        char bytes[2] = {(char)c, 0};
        size_t size = 1;
        if (c >= 0x80) {
            bytes[0] = (char)(0xC0 | (c >> 6));
            bytes[1] = (char)(0x80 | (c & 0x3F));
            size = 2;
        }
        bpe->low_ids[c] = nosa_vocab_find_model(vocab, bytes, size);
    }
    for (unsigned byte = 0; byte < 256; byte++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", byte);
        bpe->byte_ids[byte] = nosa_vocab_find_model(vocab, name, 6);
    }
}

enum nosa_status nosa_bpe_load(struct nosa_bpe *bpe, struct nosa_vocab *vocab, const json_t *model,
                               struct nosa_error *error)
{
    if (!json_is_object(model))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "\"model\" is not an object");
    NOSA_TRY(check_model(model, error));
    NOSA_TRY(nosa_member_bool(model, "model", "fuse_unk", false, &bpe->fuse_unk, error));
    NOSA_TRY(nosa_member_bool(model, "model", "byte_fallback", false, &bpe->byte_fallback, error));
    NOSA_TRY(nosa_member_bool(model, "model", "ignore_merges", false, &bpe->ignore_merges, error));
    NOSA_TRY(load_vocabulary(vocab, model, error));
    NOSA_TRY(load_merges(bpe, vocab, model, error));
    index_characters(bpe, vocab);
    bpe->unk_id = -1;
    const json_t *unk = json_object_get(model, "unk_token");
    if (unk == NULL || json_is_null(unk))
        return NOSA_OK;
    if (!json_is_string(unk))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "model: \"unk_token\" is not a string");
    bpe->unk_id = nosa_vocab_find_model(vocab, json_string_value(unk), json_string_length(unk));
    bpe->unk_missing = bpe->unk_id < 0;
    return NOSA_OK;
}

void nosa_bpe_free(struct nosa_bpe *bpe)
{
    free(bpe->merges);
}

/* ---- encoding ---- */

static enum nosa_status add_symbol(struct nosa_bpe_scratch *scratch, int32_t id)
{
    if (scratch->symbol_count == scratch->symbol_capacity) {
        size_t capacity = scratch->symbol_capacity * 2 + 64;
        struct nosa_symbol *symbols = realloc(scratch->symbols, capacity * sizeof *symbols);
        if (symbols == NULL)
            return NOSA_OUT_OF_MEMORY;
        scratch->symbols = symbols;
        scratch->symbol_capacity = capacity;
    }
    int32_t index = (int32_t)scratch->symbol_count++;
    scratch->symbols[index] = (struct nosa_symbol){.id = id, .previous = index - 1, .next = -1};
    if (index > 0)
        scratch->symbols[index - 1].next = index;
    return NOSA_OK;
}

static int32_t character_id(const struct nosa_bpe *bpe, const struct nosa_vocab *vocab,
                            const char *bytes, size_t size, uint32_t code_point)
{
    return code_point < 512 ? bpe->low_ids[code_point] : nosa_vocab_find_model(vocab, bytes, size);
}

static bool has_byte_tokens(const struct nosa_bpe *bpe, const char *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (bpe->byte_ids[(uint8_t)bytes[i]] < 0)
            return false;
    }
    return true;
}

/* Splits the word into symbols. A character without a token becomes its bytes' tokens, or the
 * unknown token; a pending unknown token is written at the next known character only, after any
 * byte tokens between, as the `tokenizers` library does. */
static enum nosa_status split_characters(const struct nosa_bpe *bpe, const struct nosa_vocab *vocab,
                                         struct nosa_bpe_scratch *scratch, const char *word,
                                         size_t size, struct nosa_error *error)
{
    bool unk_pending = false;
    scratch->symbol_count = 0;
    size_t length;
    for (size_t at = 0; at < size; at += length) {
        uint32_t code_point;
        length = nosa_unicode_next(word, size, at, &code_point);
        int32_t id = character_id(bpe, vocab, word + at, length, code_point);
        if (id >= 0) {
            if (unk_pending && add_symbol(scratch, bpe->unk_id) != NOSA_OK)
                return NOSA_OUT_OF_MEMORY;
            unk_pending = false;
            NOSA_TRY(add_symbol(scratch, id));
        } else if (bpe->byte_fallback && has_byte_tokens(bpe, word + at, length)) {
            for (size_t i = 0; i < length; i++)
                NOSA_TRY(add_symbol(scratch, bpe->byte_ids[(uint8_t)word[at + i]]));
        } else if (bpe->unk_missing) {
            return nosa_error_set(error, NOSA_CORRUPT,
                                  "tokenizer.json: the unknown token is not in the vocabulary");
        } else if (bpe->unk_id >= 0) {
            if (unk_pending && !bpe->fuse_unk)
                NOSA_TRY(add_symbol(scratch, bpe->unk_id));
            unk_pending = true;
        }
    }
    return unk_pending ? add_symbol(scratch, bpe->unk_id) : NOSA_OK;
}

static bool comes_before(struct nosa_candidate a, struct nosa_candidate b)
{
    return a.rank != b.rank ? a.rank < b.rank : a.position < b.position;
}

static enum nosa_status heap_push(struct nosa_bpe_scratch *scratch, struct nosa_candidate candidate,
                                  uint64_t *steps)
{
    if (scratch->heap_count == scratch->heap_capacity) {
        size_t capacity = scratch->heap_capacity * 2 + 64;
        struct nosa_candidate *heap = realloc(scratch->heap, capacity * sizeof *heap);
        if (heap == NULL)
            return NOSA_OUT_OF_MEMORY;
        scratch->heap = heap;
        scratch->heap_capacity = capacity;
    }
    size_t i = scratch->heap_count++;
    for (; i > 0 && comes_before(candidate, scratch->heap[(i - 1) / 2]); i = (i - 1) / 2) {
        scratch->heap[i] = scratch->heap[(i - 1) / 2];
        ++*steps;
    }
    scratch->heap[i] = candidate;
    ++*steps;
    return NOSA_OK;
}

static struct nosa_candidate heap_pop(struct nosa_bpe_scratch *scratch, uint64_t *steps)
{
    struct nosa_candidate top = scratch->heap[0];
    struct nosa_candidate last = scratch->heap[--scratch->heap_count];
    size_t count = scratch->heap_count;
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        ++*steps;
        if (child >= count)
            break;
        if (child + 1 < count && comes_before(scratch->heap[child + 1], scratch->heap[child]))
            child++;
        if (!comes_before(scratch->heap[child], last))
            break;
        scratch->heap[i] = scratch->heap[child];
        i = child;
    }
    scratch->heap[i] = last;
    return top;
}

/* Queues the pair of the symbol at `position` and the next one, if they merge. */
static enum nosa_status queue_pair(const struct nosa_bpe *bpe, struct nosa_bpe_scratch *scratch,
                                   int32_t position, uint64_t *steps)
{
    const struct nosa_symbol *left = &scratch->symbols[position];
    if (left->next < 0)
        return NOSA_OK;
    const struct nosa_merge *merge = find_merge(bpe, left->id, scratch->symbols[left->next].id);
    if (merge == NULL)
        return NOSA_OK;
    struct nosa_candidate candidate = {.rank = merge->rank, .position = position, .id = merge->id};
    return heap_push(scratch, candidate, steps);
}

static enum nosa_status merge_symbols(const struct nosa_bpe *bpe, struct nosa_bpe_scratch *scratch,
                                      uint64_t *steps)
{
    struct nosa_symbol *symbols = scratch->symbols;
    scratch->heap_count = 0;
    for (size_t i = 0; i + 1 < scratch->symbol_count; i++)
        NOSA_TRY(queue_pair(bpe, scratch, (int32_t)i, steps));
    while (scratch->heap_count > 0) {
        struct nosa_candidate top = heap_pop(scratch, steps);
        struct nosa_symbol *left = &symbols[top.position];
        if (left->merged_away || left->next < 0)
            continue;
        struct nosa_symbol *right = &symbols[left->next];
        const struct nosa_merge *merge = find_merge(bpe, left->id, right->id);
        if (merge == NULL || merge->id != top.id)
            continue;
        left->id = top.id;
        left->next = right->next;
        right->merged_away = true;
        if (left->next >= 0)
            symbols[left->next].previous = top.position;
        if (left->previous >= 0)
            NOSA_TRY(queue_pair(bpe, scratch, left->previous, steps));
        NOSA_TRY(queue_pair(bpe, scratch, top.position, steps));
    }
    return NOSA_OK;
}

enum nosa_status nosa_bpe_encode(const struct nosa_bpe *bpe, const struct nosa_vocab *vocab,
                                 struct nosa_bpe_scratch *scratch, const char *word, size_t size,
                                 struct nosa_tokens *tokens, struct nosa_error *error)
{
    if (bpe->ignore_merges) {
        int32_t id = nosa_vocab_find_model(vocab, word, size);
        if (id >= 0)
            return nosa_tokens_append(tokens, id);
    }
    NOSA_TRY(split_characters(bpe, vocab, scratch, word, size, error));
    NOSA_TRY(merge_symbols(bpe, scratch, &tokens->merge_steps));
    int32_t index = scratch->symbol_count > 0 ? 0 : -1;
    for (; index >= 0; index = scratch->symbols[index].next)
        NOSA_TRY(nosa_tokens_append(tokens, scratch->symbols[index].id));
    return NOSA_OK;
}

void nosa_bpe_scratch_free(struct nosa_bpe_scratch *scratch)
{
    free(scratch->symbols);
    free(scratch->heap);
}
