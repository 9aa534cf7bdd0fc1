/*
 * JSON files of a checkpoint: parsing with duplicates refused, and typed access to keys whose
 * errors name the key, what it must be and what it is. A key whose value is null counts as absent.
 * Used by config.c, generation.c, safetensors.c and checkpoint.c; any thread.
 */
#ifndef NOSA_MODEL_JSON_INTERNAL_H
#define NOSA_MODEL_JSON_INTERNAL_H

#include "base/status.h"

#include <jansson.h>
#include <stdint.h>

#define NOSA_JSON_CONFIG_BYTES_MAX (4u << 20)
#define NOSA_JSON_INDEX_BYTES_MAX  (64u << 20)

/* Parses text whose outermost value must be an object; *root is then the caller's to json_decref.
 * NOSA_CORRUPT with line and reason, or NOSA_OUT_OF_MEMORY. */
enum nosa_status nosa_json_parse(const char *text, size_t bytes, json_t **root,
                                 struct nosa_error *error);

/* The value of `key`, or NULL when it is absent or null. */
const json_t *nosa_json_get(const json_t *object, const char *key);

/* "NAME must be WHAT, not VALUE", NOSA_INVALID_ARGUMENT; value NULL reads "missing". */
enum nosa_status nosa_json_refuse(const char *name, const char *what, const json_t *value,
                                  struct nosa_error *error);

/* An integer from `low` to `high`; absent: *value is left as it is unless `required`. */
enum nosa_status nosa_json_u32(const json_t *object, const char *key, uint32_t low, uint32_t high,
                               bool required, uint32_t *value, struct nosa_error *error);

/* A number from `low` to `high`; otherwise as nosa_json_u32. */
enum nosa_status nosa_json_double(const json_t *object, const char *key, double low, double high,
                                  bool required, double *value, struct nosa_error *error);

/* true or false; absent: *value is left as it is. */
enum nosa_status nosa_json_bool(const json_t *object, const char *key, bool *value,
                                struct nosa_error *error);

/* A token id or a list of them into ids[capacity], doubles dropped; each below `vocab` unless that
 * is 0. Absent: *count is 0. */
enum nosa_status nosa_json_token_ids(const json_t *object, const char *key, uint32_t vocab,
                                     int32_t *ids, uint32_t capacity, uint32_t *count,
                                     struct nosa_error *error);

/* Writes "directory/name" to path[size]; NOSA_INVALID_ARGUMENT when it does not fit. */
enum nosa_status nosa_model_path(char *path, size_t size, const char *directory, const char *name,
                                 struct nosa_error *error);

#endif
