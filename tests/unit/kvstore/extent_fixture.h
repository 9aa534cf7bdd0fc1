/*
 * What the tests of the extent store share: blocks whose key, parent, tokens and image follow from
 * a number, so that what is read can be checked without keeping what was written; and calls that
 * wait.
 */
#ifndef NOSA_TESTS_EXTENT_FIXTURE_H
#define NOSA_TESTS_EXTENT_FIXTURE_H

#include <stdbool.h>
#include <stdint.h>

#include "extent_format.h"
#include "extent_store.h"

/* 3 records of 4096 bytes and 3 summaries of 100: an image of 16384 bytes. */
extern const struct nosa_extent_geometry fixture_geometry;

struct fixture_block {
    struct nosa_chain_key key;
    struct nosa_chain_key parent; /* the key of number - 1 */
    uint32_t tokens[NOSA_BLOCK_TOKENS];
};

void fixture_block(uint32_t number, struct fixture_block *out);

/* Fills the image of block `number`, padding included. */
void fixture_fill(const struct nosa_extent_geometry *geometry, uint32_t number, void *image);
/* Whether it holds all records and summaries of the block; whether `data` is its record. */
bool fixture_image_is(const struct nosa_extent_geometry *geometry, uint32_t number,
                      const void *image);
bool fixture_record_is(const struct nosa_extent_geometry *geometry, uint32_t number,
                       uint32_t record, const void *data);
bool fixture_summaries_are(const struct nosa_extent_geometry *geometry, uint32_t number,
                           const void *data);

/* Page-aligned memory; fails the test when there is none. */
void *fixture_pages(size_t bytes);

/* Options for so many extents of the fixture's geometry; identity all 1. */
struct nosa_extent_store_options fixture_options(const char *directory, uint32_t n_extents);

struct nosa_extent_handle fixture_find(struct nosa_extent_store *store, uint32_t number);

/* Submits the write of a block whose image is filled in `image`. */
enum nosa_status fixture_write(struct nosa_extent_store *store, uint64_t token, uint32_t number,
                               void *image, uint64_t use, float value);

/* Polls until the completion of `token` comes; fails the test when another comes, or none. */
struct nosa_extent_completion fixture_wait(struct nosa_extent_store *store, uint64_t token);

/* Write and read to the end, with memory of their own. */
struct nosa_extent_completion fixture_put(struct nosa_extent_store *store, uint32_t number,
                                          uint64_t use, float value);
/* The block's image is compared when the result is OK; result CANCELLED stands for not found. */
enum nosa_extent_result fixture_get(struct nosa_extent_store *store, uint32_t number);

/* Polls until nothing is pending and no extent waits for clearing or a flush. */
void fixture_settle(struct nosa_extent_store *store);

/* A new directory under $TMPDIR or /tmp, and its end with the KV file in it. */
void fixture_make_directory(char path[64]);
void fixture_remove_directory(const char *path);

#endif
