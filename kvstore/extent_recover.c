#include "extent_store_internal.h"

#include <errno.h>
#include <string.h>

#include "base/log.h"

static enum nosa_status refuse(const char *what, int code, struct nosa_error *error)
{
    return nosa_error_set(error, NOSA_IO_ERROR, "KV file: %s: %s", what, strerror(code));
}

/* One operation to its end, with nothing else at the device. *moved is what a read got. */
static enum nosa_status transfer(struct nosa_extent_store *store, struct nosa_io_op op,
                                 const char *what, uint64_t *moved, struct nosa_error *error)
{
    uint64_t until_ns = nosa_extent_now(store) + store->deadline_ns;
    bool sent = false;

    for (;;) {
        if (!sent || store->io->held_back)
            sent |= store->io->method->submit(store->io, &op, sent ? 0 : 1) == 1;
        struct nosa_io_completion completion;
        uint64_t now_ns = nosa_extent_now(store);
        if (now_ns >= until_ns)
            return nosa_error_set(error, NOSA_DEADLINE_EXCEEDED,
                                  "KV file: %s: the device does not answer", what);
        uint64_t wait_ns = sent && !store->io->held_back ? until_ns - now_ns : RETRY_NS;
        if (store->io->method->reap(store->io, &completion, 1, wait_ns) == 0)
            continue;
        if (completion.result == -EAGAIN || completion.result == -EINTR) {
            sent = false;
            continue;
        }
        if (completion.result < 0)
            return refuse(what, (int)-completion.result, error);
        *moved = (uint64_t)completion.result;
        return NOSA_OK;
    }
}

/* Reads or writes all of it; a read that ends early (the file does) leaves zeros. */
static enum nosa_status transfer_all(struct nosa_extent_store *store, enum nosa_io_kind kind,
                                     void *memory, uint64_t bytes, uint64_t offset,
                                     const char *what, struct nosa_error *error)
{
    uint64_t done = 0;

    while (done < bytes) {
        struct iovec vector = {.iov_base = (char *)memory + done, .iov_len = bytes - done};
        struct nosa_io_op op = {
            .kind = kind, .n_vectors = 1, .vectors = &vector, .offset = offset + done};
        uint64_t moved;
        NOSA_TRY(transfer(store, op, what, &moved, error));
        if (moved >= bytes - done)
            return NOSA_OK;
        uint64_t aligned = moved / NOSA_IO_ALIGNMENT * NOSA_IO_ALIGNMENT;
        if (aligned == 0) {
            if (kind == NOSA_IO_WRITE || offset + bytes <= store->io->bytes)
                return refuse(what, EIO, error);
            memset((char *)memory + done + moved, 0, bytes - done - moved);
            return NOSA_OK;
        }
        done += aligned;
    }
    return NOSA_OK;
}

static enum nosa_status flush(struct nosa_extent_store *store, const char *what,
                              struct nosa_error *error)
{
    uint64_t moved;
    return transfer(store, (struct nosa_io_op){.kind = NOSA_IO_FLUSH}, what, &moved, error);
}

static enum nosa_status lay_out(struct nosa_extent_store *store, struct nosa_error *error)
{
    static const char what[] = "the superblock cannot be written";

    nosa_extent_superblock_make(store->superblock, &store->geometry,
                                nosa_clock_wall_ns(store->clock));
    store->info.laid_out_anew = true;
    NOSA_TRY(
        transfer_all(store, NOSA_IO_WRITE, store->superblock, NOSA_EXTENT_PAGE, 0, what, error));
    return flush(store, what, error);
}

enum nosa_status nosa_extent_recover_layout(struct nosa_extent_store *store,
                                            const struct nosa_io_options *options,
                                            struct nosa_error *error)
{
    NOSA_TRY(transfer_all(store, NOSA_IO_READ, store->superblock, NOSA_EXTENT_PAGE, 0,
                          "the superblock cannot be read", error));
    enum nosa_extent_file_kind kind =
        nosa_extent_superblock_check(store->superblock, &store->geometry);
    if (kind == NOSA_EXTENT_FILE_FOREIGN)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "'%s/%s' is not a KV file; move it or name another directory",
                              options->directory, options->name);
    if (kind == NOSA_EXTENT_FILE_NEWER)
        return nosa_error_set(error, NOSA_UNSUPPORTED,
                              "KV file '%s/%s' has format %u, newer than %d, which is known here",
                              options->directory, options->name, store->superblock->version,
                              NOSA_EXTENT_FORMAT_VERSION);
    NOSA_TRY(store->io->method->resize(store->io, options, error));
    if (kind == NOSA_EXTENT_FILE_OURS)
        return NOSA_OK;
    if (kind != NOSA_EXTENT_FILE_BLANK)
        nosa_log(NOSA_LOG_WARN, "kvstore", "KV file '%s/%s' %s: laid out anew, its blocks are gone",
                 options->directory, options->name,
                 kind == NOSA_EXTENT_FILE_DAMAGED ? "has a damaged superblock"
                                                  : "holds blocks of another shape");
    return lay_out(store, error);
}

/* Another extent of this identity has the same key: the newer one stays. True: the new one. */
static bool wins_over(struct nosa_extent_store *store, const struct nosa_extent_header *header)
{
    int32_t known = nosa_prefix_index_find(&store->index, &header->key);
    if (known == NOSA_BLOCK_NONE)
        return true;
    if (store->ranks[known].generation > header->generation)
        return false;
    nosa_extent_give_up(store, known);
    return true;
}

static void take_over(struct nosa_extent_store *store, int32_t extent,
                      const struct nosa_extent_header *header)
{
    struct extent *self = &store->extents[extent];
    uint64_t day = nosa_clock_wall_ns(store->clock) / NS_PER_DAY;

    self->foreign = memcmp(header->identity, store->identity, sizeof store->identity) != 0;
    bool stays = self->foreign || wins_over(store, header);
    store->keys[extent] = header->key;
    store->contents[extent].parent = header->parent;
    memcpy(store->contents[extent].tokens, header->tokens, sizeof header->tokens);
    memcpy(nosa_extent_sums(store, extent), header->sums,
           2 * sizeof(uint64_t) * store->geometry.n_records);
    store->ranks[extent] = (struct nosa_extent_rank){
        .use = header->use, .generation = header->generation, .value = header->value};
    nosa_extent_move(store, extent, EXTENT_VALID);
    if (stays && !self->foreign)
        nosa_extent_name(store, extent);
    else if (!stays)
        nosa_extent_give_up(store, extent);
    if (header->generation >= store->next_generation)
        store->next_generation = header->generation + 1;
    if (header->use > store->info.use_max)
        store->info.use_max = header->use;
    if (header->written_ns / NS_PER_DAY == day)
        nosa_extent_charge(store, store->image_bytes + store->header_bytes);
}

/* A header of a place that the file no longer has must not come back when it grows again. */
static enum nosa_status clear_beyond(struct nosa_extent_store *store, uint32_t extent,
                                     struct nosa_error *error)
{
    static const char what[] = "a header cannot be cleared";

    NOSA_TRY(transfer_all(store, NOSA_IO_WRITE, store->zero_page, NOSA_EXTENT_PAGE,
                          nosa_extent_header_offset(&store->geometry, extent), what, error));
    return flush(store, what, error);
}

static enum nosa_status recover_segment(struct nosa_extent_store *store, uint32_t first,
                                        struct nosa_error *error)
{
    NOSA_TRY(transfer_all(store, NOSA_IO_READ, store->header_buffers,
                          NOSA_EXTENT_SEGMENT * store->header_bytes,
                          nosa_extent_header_offset(&store->geometry, first),
                          "the table of extents cannot be read", error));
    for (uint32_t i = 0; i < NOSA_EXTENT_SEGMENT; i++) {
        const struct nosa_extent_header *header =
            (const void *)(store->header_buffers + i * store->header_bytes);
        if (!nosa_extent_header_valid(header, store->header_bytes, store->superblock, first + i))
            continue;
        if (first + i < store->n_extents)
            take_over(store, (int32_t)(first + i), header);
        else
            NOSA_TRY(clear_beyond(store, first + i, error));
    }
    return NOSA_OK;
}

enum nosa_status nosa_extent_recover_headers(struct nosa_extent_store *store,
                                             struct nosa_error *error)
{
    if (store->info.laid_out_anew)
        return NOSA_OK;
    /* A process that died may have left writes that are visible and not yet safe; what is read here
     * must not change any more if the power fails next. */
    NOSA_TRY(flush(store, "what was written before cannot be flushed", error));
    for (uint32_t first = 0; first < store->n_extents; first += NOSA_EXTENT_SEGMENT)
        NOSA_TRY(recover_segment(store, first, error));
    store->info.recovered_foreign = store->foreign;
    store->info.recovered = (uint32_t)store->in_state[EXTENT_VALID].count - store->foreign;
    return NOSA_OK;
}
