/*
 * The flags that name a model, what it runs on and what its KV tiers get: one table for every
 * program that opens an engine, so that they mean the same everywhere. One thread, at start.
 */
#ifndef NOSA_OPTIONS_ENGINE_FLAGS_H
#define NOSA_OPTIONS_ENGINE_FLAGS_H

#include "base/flags.h"
#include "engine/engine.h"

/* Add it to a program's tables. */
extern const struct nosa_flag_table nosa_engine_flag_table;

struct nosa_engine_flags {
    const char *model_directory; /* strings are borrowed from the flags */
    int attention;               /* as in struct nosa_engine_options */
    int32_t tp;
    int32_t threads;       /* 0: the cores of this process */
    int32_t prefill_chunk; /* tokens */
    int32_t context_max;   /* tokens; 0: not given */
    uint64_t kv_bytes;     /* or NOSA_KV_BYTES_AUTO, as the next */
    uint64_t host_kv_bytes;
    enum nosa_kv_policy kv_policy;
    const char *nvme_directory; /* or NULL */
    uint64_t nvme_kv_bytes;     /* or NOSA_KV_BYTES_AUTO */
    uint64_t nvme_write_bytes_per_day;
};

/* Reads and checks the values. What a flag asks for that this build or machine cannot do is said
 * on stderr, with what is used instead, under `subsystem`. INVALID_ARGUMENT names the flag. */
enum nosa_status nosa_engine_flags_read(const struct nosa_flags *flags, const char *subsystem,
                                        struct nosa_engine_flags *out, struct nosa_error *error);

/* The part of an engine's options that the flags decide; the rest is zero. */
void nosa_engine_flags_options(const struct nosa_engine_flags *flags,
                               struct nosa_engine_options *out);

#endif
