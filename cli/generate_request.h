/* The flags of `nosactl generate`, and the GenerateRequest that they ask for. */
#ifndef NOSA_CLI_GENERATE_REQUEST_H
#define NOSA_CLI_GENERATE_REQUEST_H

#include "base/flags.h"
#include "nosa/v1/inference.pb-c.h"

#define NOSA_GENERATE_REQUEST_FLAG_COUNT 27

/* --quiet and --resume-timeout say nothing about the request and are left to the caller. */
extern const struct nosa_flag nosa_generate_request_flags[NOSA_GENERATE_REQUEST_FLAG_COUNT];

/*
 * Makes the request; reads the files that flags name. The caller frees it by
 * nosa__v1__generate_request__free_unpacked(request, NULL). NOSA_INVALID_ARGUMENT and the errors of
 * nosa_file_read_input, naming the flag or file.
 */
enum nosa_status nosa_generate_request_make(const struct nosa_flags *flags,
                                            Nosa__V1__GenerateRequest **request,
                                            struct nosa_error *error);

/* ---- parts, for tests ---- */

/* "1,2,3", spaces allowed around the numbers, as a new array of ids below 2^31. `source` is named
 * in errors. */
enum nosa_status nosa_generate_parse_ids(const char *source, const char *text, uint32_t **ids,
                                         size_t *count, struct nosa_error *error);

/* One text, or a JSON array of texts when it begins with "[": a new array of new texts. */
enum nosa_status nosa_generate_parse_stops(const char *source, const char *text, char ***stops,
                                           size_t *count, struct nosa_error *error);

/* A JSON array of {"role", "content"} as a new Chat, freed as a part of a request. */
enum nosa_status nosa_generate_parse_messages(const char *source, const char *text, size_t size,
                                              Nosa__V1__Chat **chat, struct nosa_error *error);

#endif
