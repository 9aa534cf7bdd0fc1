/* Contents and ids: one arena, an array by id and a hash table over it; see tokenizer_internal.h.
 */
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "tokenizer/tokenizer_internal.h"

static size_t find_slot(const struct nosa_vocab *vocab, const char *content, size_t size)
{
    size_t mask = vocab->slot_count - 1;
    size_t slot = (size_t)nosa_hash64(content, size, 0) & mask;
    while (vocab->slots[slot] >= 0) {
        const struct nosa_piece *piece = &vocab->pieces[vocab->slots[slot]];
        if (piece->size == size && memcmp(vocab->arena.data + piece->offset, content, size) == 0)
            break;
        slot = (slot + 1) & mask;
    }
    return slot;
}

static enum nosa_status grow_slots(struct nosa_vocab *vocab)
{
    size_t count = vocab->slot_count == 0 ? 1024 : vocab->slot_count * 2;
    int32_t *slots = malloc(count * sizeof *slots);
    if (slots == NULL)
        return NOSA_OUT_OF_MEMORY;
    memset(slots, 0xFF, count * sizeof *slots);
    free(vocab->slots);
    vocab->slots = slots;
    vocab->slot_count = count;
    for (int32_t id = 0; id < vocab->piece_count; id++) {
        const struct nosa_piece *piece = &vocab->pieces[id];
        if (piece->offset != PIECE_UNUSED)
            slots[find_slot(vocab, vocab->arena.data + piece->offset, piece->size)] = id;
    }
    return NOSA_OK;
}

static enum nosa_status grow_pieces(struct nosa_vocab *vocab, int32_t id)
{
    size_t needed = (size_t)id + 1;
    if (needed > vocab->piece_capacity) {
        size_t capacity = vocab->piece_capacity * 2 > needed ? vocab->piece_capacity * 2 : needed;
        struct nosa_piece *pieces = realloc(vocab->pieces, capacity * sizeof *pieces);
        if (pieces == NULL)
            return NOSA_OUT_OF_MEMORY;
        vocab->pieces = pieces;
        vocab->piece_capacity = capacity;
    }
    for (; vocab->piece_count <= id; vocab->piece_count++)
        vocab->pieces[vocab->piece_count] = (struct nosa_piece){.offset = PIECE_UNUSED};
    return NOSA_OK;
}

enum nosa_status nosa_vocab_add(struct nosa_vocab *vocab, const char *content, size_t size,
                                int64_t id, unsigned flags, struct nosa_error *error)
{
    if (id < 0 || id >= NOSA_TOKENIZER_IDS_MAX)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "token '%.60s' has id %lld, which is not from 0 to %d", content,
                              (long long)id, NOSA_TOKENIZER_IDS_MAX - 1);
    if (2 * (vocab->used + 1) > vocab->slot_count && grow_slots(vocab) != NOSA_OK)
        goto no_memory;
    size_t slot = find_slot(vocab, content, size);
    if (vocab->slots[slot] >= 0) {
        if (vocab->slots[slot] != (int32_t)id)
            return nosa_error_set(error, NOSA_CORRUPT, "token '%.60s' has both id %d and id %lld",
                                  content, vocab->slots[slot], (long long)id);
        vocab->pieces[id].flags |= (uint8_t)flags;
        return NOSA_OK;
    }
    if (grow_pieces(vocab, (int32_t)id) != NOSA_OK)
        goto no_memory;
    struct nosa_piece *piece = &vocab->pieces[id];
    if (piece->offset != PIECE_UNUSED)
        return nosa_error_set(error, NOSA_CORRUPT, "tokens '%.60s' and '%.60s' both have id %lld",
                              vocab->arena.data + piece->offset, content, (long long)id);
    if (nosa_buffer_reserve(&vocab->arena, size + 1) != NOSA_OK)
        goto no_memory;
    uint32_t offset = (uint32_t)vocab->arena.size;
    nosa_buffer_append(&vocab->arena, content, size);
    nosa_buffer_append(&vocab->arena, "", 1);
    *piece = (struct nosa_piece){.offset = offset,
                                 .size = (uint32_t)size,
                                 .text_offset = offset,
                                 .text_size = (uint32_t)size,
                                 .flags = (uint8_t)flags};
    vocab->slots[slot] = (int32_t)id;
    vocab->used++;
    return NOSA_OK;
no_memory:
    return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the vocabulary");
}

enum nosa_status nosa_vocab_set_text(struct nosa_vocab *vocab, int32_t id, const char *text,
                                     size_t size)
{
    struct nosa_piece *piece = &vocab->pieces[id];
    size_t offset = vocab->arena.size;
    NOSA_TRY(nosa_buffer_append(&vocab->arena, text, size));
    piece->text_offset = (uint32_t)offset;
    piece->text_size = (uint32_t)size;
    return NOSA_OK;
}

int32_t nosa_vocab_find(const struct nosa_vocab *vocab, const char *content, size_t size)
{
    return vocab->slot_count == 0 ? -1 : vocab->slots[find_slot(vocab, content, size)];
}

int32_t nosa_vocab_find_model(const struct nosa_vocab *vocab, const char *content, size_t size)
{
    int32_t id = nosa_vocab_find(vocab, content, size);
    return id >= 0 && (vocab->pieces[id].flags & PIECE_IN_MODEL) != 0 ? id : -1;
}

void nosa_vocab_free(struct nosa_vocab *vocab)
{
    free(vocab->slots);
    free(vocab->pieces);
    nosa_buffer_free(&vocab->arena);
}
