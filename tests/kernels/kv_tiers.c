/* Tiers of the KV op tests, and their invariants. */
#include "kv_tiers.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "op_cases.h"

#define FOREIGN_BYTE 0xee /* of images, where no rank of the test writes */

static size_t n_pools(const struct tier_case *tier_case)
{
    return (size_t)tier_case->n_layers * (size_t)tier_case->n_kv_heads;
}

static size_t images_bytes(const struct tier *tier)
{
    return (size_t)tier->tier_case->n_images * tier->view.image_bytes;
}

static void *filled(size_t bytes, int byte)
{
    return memset(op_alloc(bytes), byte, bytes);
}

struct tier *tier_create(const struct tier_case *tier_case)
{
    struct tier *tier = op_alloc(sizeof *tier);
    struct nosa_kv_view *view = &tier->view;
    tier->tier_case = tier_case;
    tier->n_records = n_pools(tier_case) * (size_t)tier_case->n_blocks;
    tier->n_slots = n_pools(tier_case) * (size_t)tier_case->n_slots;
    view->geometry = (struct nosa_kv_geometry){.n_layers = tier_case->n_layers,
                                               .n_kv_heads = tier_case->n_kv_heads,
                                               .head_dim = tier_case->head_dim,
                                               .kernel_size = 2 * tier_case->kernel_stride,
                                               .kernel_stride = tier_case->kernel_stride,
                                               .type = tier_case->type};
    size_t r = (size_t)nosa_kv_windows_per_block(&view->geometry);
    view->n_blocks = tier_case->n_blocks;
    view->n_slots = tier_case->n_slots;
    view->image_kv_heads = tier_case->image_kv_heads;
    view->image_kv_head_first = tier_case->image_kv_head_first;
    view->image_bytes = nosa_kv_image_bytes(&view->geometry, view->image_kv_heads);
    view->records = filled(tier->n_slots * nosa_kv_record_bytes(&view->geometry), 0xff);
    view->compressed_keys =
        filled(tier->n_records * nosa_kv_compressed_key_bytes(&view->geometry), 0xff);
    view->window_bias = filled(tier->n_records * r * sizeof(float), 0xff);
    view->token_bias = filled(tier->n_records * NOSA_BLOCK_TOKENS * sizeof(float), 0xff);
    view->record_slot = filled(tier->n_records * sizeof(int32_t), 0xff);
    view->slot_block = filled(tier->n_slots * sizeof(int32_t), 0xff);
    view->slot_touch = filled(tier->n_slots * sizeof(uint32_t), 0);
    view->slot_fetched = filled(tier->n_slots, 0);
    view->record_use = filled(tier->n_records * sizeof(uint32_t), 0);
    view->record_weight = filled(tier->n_records * sizeof(float), 0);
    view->block_class = filled((size_t)tier_case->n_blocks, NOSA_KV_CLASS_SPARE);
    view->block_image = filled((size_t)tier_case->n_blocks * sizeof(int32_t), 0xff);
    view->images = filled(images_bytes(tier), FOREIGN_BYTE);
    return tier;
}

void tier_destroy(struct tier *tier)
{
    struct nosa_kv_view *view = &tier->view;
    free(view->images);
    free(view->block_image);
    free(view->block_class);
    free(view->record_weight);
    free(view->record_use);
    free(view->slot_fetched);
    free(view->slot_touch);
    free(view->slot_block);
    free(view->record_slot);
    free(view->token_bias);
    free(view->window_bias);
    free(view->compressed_keys);
    free(view->records);
    free(tier);
}

/* ---- the bytes of a version ---- */

static uint64_t word_of(uint32_t version, int32_t layer, int32_t model_head, size_t index)
{
    uint64_t value =
        ((uint64_t)version << 32 | (uint64_t)(layer * 64 + model_head)) * 0x9e3779b97f4a7c15u +
        index * 0xbf58476d1ce4e5b9u;
    return (value ^ value >> 29) * 0x94d049bb133111ebu;
}

static void fill_words(void *to, size_t bytes, uint32_t version, int32_t layer, int32_t model_head,
                       size_t first)
{
    for (size_t i = 0; i < bytes / sizeof(uint64_t); i++) {
        uint64_t word = word_of(version, layer, model_head, first + i);
        memcpy((char *)to + i * sizeof word, &word, sizeof word);
    }
}

static bool has_words(const void *from, size_t bytes, uint32_t version, int32_t layer,
                      int32_t model_head, size_t first)
{
    for (size_t i = 0; i < bytes / sizeof(uint64_t); i++) {
        uint64_t word = word_of(version, layer, model_head, first + i);
        if (memcmp((const char *)from + i * sizeof word, &word, sizeof word) != 0)
            return false;
    }
    return true;
}

static float window_bias_of(enum tier_bias bias, uint64_t word)
{
    static const float levels[] = {-1.5f, -0.0f, 0.0f, 0.75f, NAN, 0.75f};
    if (bias == TIER_BIAS_NONE)
        return NAN;
    if (bias == TIER_BIAS_LEVELS)
        return levels[(word >> 40) % (sizeof levels / sizeof levels[0])];
    return (float)(word >> 40) * 0x1p-23f - 1.0f;
}

/* A summary as an image holds it: compressed keys, window biases, biases c. */
static void make_summary(const struct tier *tier, char *out, uint32_t version, int32_t layer,
                         int32_t model_head)
{
    const struct nosa_kv_geometry *geometry = &tier->view.geometry;
    size_t bytes = nosa_kv_summary_bytes(geometry), keys = nosa_kv_compressed_key_bytes(geometry);
    size_t r = (size_t)nosa_kv_windows_per_block(geometry);
    fill_words(out, bytes, version, layer, model_head, 1u << 20);
    float *window_bias = (float *)(void *)(out + keys);
    for (size_t i = 0; i < r; i++)
        window_bias[i] = window_bias_of(tier->tier_case->bias,
                                        word_of(version, layer, model_head, (2u << 20) + i));
}

static int32_t model_head_of(const struct tier *tier, int32_t kv_head)
{
    return tier->tier_case->image_kv_head_first + kv_head;
}

/* The parts of a record's summary in the first tier, as make_summary lays them out. */
static void copy_summary(const struct tier *tier, int32_t layer, int32_t kv_head, int32_t block,
                         char *summary, bool write)
{
    const struct nosa_kv_view *view = &tier->view;
    int64_t record = nosa_kv_record_index(view, layer, kv_head, block);
    size_t keys = nosa_kv_compressed_key_bytes(&view->geometry);
    int64_t r = nosa_kv_windows_per_block(&view->geometry);
    void *part[3] = {view->compressed_keys + (size_t)record * keys, view->window_bias + record * r,
                     view->token_bias + record * NOSA_BLOCK_TOKENS};
    size_t bytes[3] = {keys, (size_t)r * sizeof(float), NOSA_BLOCK_TOKENS * sizeof(float)};
    for (int i = 0; i < 3; i++) {
        memcpy(write ? part[i] : summary, write ? summary : part[i], bytes[i]);
        summary += bytes[i];
    }
}

void tier_write_block(const struct tier *tier, int32_t block, uint32_t version)
{
    const struct nosa_kv_geometry *geometry = &tier->view.geometry;
    char *summary = op_alloc(nosa_kv_summary_bytes(geometry));
    for (int32_t layer = 0; layer < geometry->n_layers; layer++) {
        for (int32_t head = 0; head < geometry->n_kv_heads; head++) {
            fill_words(nosa_kv_record(&tier->view, layer, head, block),
                       nosa_kv_record_bytes(geometry), version, layer, model_head_of(tier, head),
                       0);
            make_summary(tier, summary, version, layer, model_head_of(tier, head));
            copy_summary(tier, layer, head, block, summary, true);
        }
    }
    free(summary);
}

void tier_write_absent(const struct tier *tier, const struct nosa_kv_absent *absent,
                       uint32_t version)
{
    size_t bytes = nosa_kv_record_bytes(&tier->view.geometry);
    assert_int_equal(tier->view.slot_block[absent->slot], absent->block);
    fill_words(tier->view.records + (size_t)absent->slot * bytes, bytes, version, absent->layer,
               model_head_of(tier, absent->kv_head), 0);
}

/* ---- checks ---- */

static void assert_bytes(const struct tier *tier, const char *what, const char *array,
                         const void *got, const void *expected, size_t bytes)
{
    const unsigned char *a = got, *b = expected;
    if (memcmp(a, b, bytes) == 0)
        return;
    size_t at = 0;
    while (a[at] == b[at])
        at++;
    fail_msg("%s, %s: %s differs at byte %zu of %zu", tier->tier_case->name, what, array, at,
             bytes);
}

void tier_assert_same(const struct tier *got, const struct tier *expected, const char *what)
{
    const struct nosa_kv_view *a = &got->view, *b = &expected->view;
    size_t n = expected->n_records, slots = expected->n_slots, blocks = (size_t)b->n_blocks;
    size_t r = (size_t)nosa_kv_windows_per_block(&b->geometry);
    assert_bytes(got, what, "record_slot", a->record_slot, b->record_slot, n * sizeof(int32_t));
    assert_bytes(got, what, "slot_block", a->slot_block, b->slot_block, slots * sizeof(int32_t));
    assert_bytes(got, what, "slot_touch", a->slot_touch, b->slot_touch, slots * sizeof(uint32_t));
    assert_bytes(got, what, "slot_fetched", a->slot_fetched, b->slot_fetched, slots);
    assert_bytes(got, what, "record_use", a->record_use, b->record_use, n * sizeof(uint32_t));
    assert_bytes(got, what, "record_weight", a->record_weight, b->record_weight, n * sizeof(float));
    assert_bytes(got, what, "block_class", a->block_class, b->block_class, blocks);
    assert_bytes(got, what, "block_image", a->block_image, b->block_image,
                 blocks * sizeof(int32_t));
    assert_bytes(got, what, "records", a->records, b->records,
                 slots * nosa_kv_record_bytes(&b->geometry));
    assert_bytes(got, what, "compressed keys", a->compressed_keys, b->compressed_keys,
                 n * nosa_kv_compressed_key_bytes(&b->geometry));
    assert_bytes(got, what, "window biases", a->window_bias, b->window_bias, n * r * sizeof(float));
    assert_bytes(got, what, "token biases", a->token_bias, b->token_bias,
                 n * NOSA_BLOCK_TOKENS * sizeof(float));
    assert_bytes(got, what, "images", a->images, b->images, images_bytes(expected));
}

/* record_slot and slot_block of a pool name each other. */
static void check_pool(const struct tier *tier, int32_t pool, const char *what)
{
    const struct nosa_kv_view *view = &tier->view;
    const int32_t *record_slot = view->record_slot + (int64_t)pool * view->n_blocks;
    int32_t first = pool * view->n_slots, held = 0;
    for (int32_t block = 0; block < view->n_blocks; block++) {
        int32_t slot = record_slot[block];
        if (slot == NOSA_KV_SLOT_NONE) {
            if (view->block_class[block] == NOSA_KV_CLASS_LOCKED)
                fail_msg("%s, %s: locked block %d has no slot in pool %d", tier->tier_case->name,
                         what, block, pool);
            continue;
        }
        held++;
        if (slot < first || slot >= first + view->n_slots || view->slot_block[slot] != block)
            fail_msg("%s, %s: block %d of pool %d names slot %d, which does not hold it",
                     tier->tier_case->name, what, block, pool, slot);
    }
    for (int32_t slot = first; slot < first + view->n_slots; slot++)
        held -= view->slot_block[slot] != NOSA_KV_BLOCK_NONE;
    if (held != 0)
        fail_msg("%s, %s: a slot of pool %d holds a block that does not name it",
                 tier->tier_case->name, what, pool);
}

static void check_block(const struct tier *tier, const struct tier_model *model, int32_t block,
                        char *summary, char *expected, const char *what)
{
    const struct nosa_kv_view *view = &tier->view;
    uint32_t version = model->version[block];
    for (int32_t layer = 0; layer < view->geometry.n_layers; layer++) {
        for (int32_t head = 0; head < view->geometry.n_kv_heads; head++) {
            int32_t slot = view->record_slot[nosa_kv_record_index(view, layer, head, block)];
            bool nowhere =
                slot == NOSA_KV_SLOT_NONE && view->block_image[block] == NOSA_KV_IMAGE_NONE;
            if (nowhere && !model->stored[block])
                fail_msg("%s, %s: the record of block %d, layer %d, head %d is lost",
                         tier->tier_case->name, what, block, layer, head);
            if (!nowhere && !has_words(nosa_kv_record(view, layer, head, block),
                                       nosa_kv_record_bytes(&view->geometry), version, layer,
                                       model_head_of(tier, head), 0))
                fail_msg("%s, %s: the record of block %d, layer %d, head %d is not its own",
                         tier->tier_case->name, what, block, layer, head);
            copy_summary(tier, layer, head, block, summary, false);
            make_summary(tier, expected, version, layer, model_head_of(tier, head));
            assert_bytes(tier, what, "a summary", summary, expected,
                         nosa_kv_summary_bytes(&view->geometry));
        }
    }
}

static bool untouched(const char *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if ((unsigned char)bytes[i] != FOREIGN_BYTE)
            return false;
    return true;
}

static void check_image(const struct tier *tier, const struct tier_model *model, int32_t image,
                        char *expected, const char *what)
{
    const struct nosa_kv_view *view = &tier->view;
    size_t record_bytes = nosa_kv_record_bytes(&view->geometry);
    size_t summary_bytes = nosa_kv_summary_bytes(&view->geometry);
    for (int32_t layer = 0; layer < view->geometry.n_layers; layer++) {
        for (int32_t head = 0; head < view->image_kv_heads; head++) {
            int32_t own = head - view->image_kv_head_first;
            const char *record = nosa_kv_image_record(view, image, layer, own);
            const char *summary = nosa_kv_image_summary(view, image, layer, own);
            bool foreign = own < 0 || own >= view->geometry.n_kv_heads;
            if (!foreign && model->image_version[image] == 0)
                continue;
            if (!foreign) {
                make_summary(tier, expected, model->image_version[image], layer, head);
                assert_bytes(tier, what, "an image's summary", summary, expected, summary_bytes);
                if (!has_words(record, record_bytes, model->image_version[image], layer, head, 0))
                    fail_msg("%s, %s: image %d, layer %d, head %d is spoilt", tier->tier_case->name,
                             what, image, layer, head);
                continue;
            }
            if (!untouched(record, record_bytes) || !untouched(summary, summary_bytes))
                fail_msg("%s, %s: image %d, layer %d: head %d of another rank was written",
                         tier->tier_case->name, what, image, layer, head);
        }
    }
}

void tier_check(const struct tier *tier, const struct tier_model *model, const char *what)
{
    size_t summary_bytes = nosa_kv_summary_bytes(&tier->view.geometry);
    char *summary = op_alloc(summary_bytes), *expected = op_alloc(summary_bytes);
    for (int32_t pool = 0; pool < (int32_t)n_pools(tier->tier_case); pool++)
        check_pool(tier, pool, what);
    for (int32_t block = 0; block < tier->view.n_blocks; block++)
        if (model->version[block] != 0)
            check_block(tier, model, block, summary, expected, what);
    for (int32_t image = 0; image < tier->tier_case->n_images; image++)
        check_image(tier, model, image, expected, what);
    free(expected);
    free(summary);
}
