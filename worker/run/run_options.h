/* The flags of nosa-run as one checked struct. */
#ifndef NOSA_RUN_OPTIONS_H
#define NOSA_RUN_OPTIONS_H

#include "base/flags.h"
#include "options/engine_flags.h"

struct nosa_run_options {
    struct nosa_flags *flags; /* owned; the strings below are borrowed from it */
    struct nosa_engine_flags engine;
    /* exactly one of the four is set */
    const char *prompt;
    const char *prompt_file;
    const char *prompt_tokens;
    const char *score_file;
    bool chat;
    bool ignore_eos;
    bool json;
    const char *dump_logits;     /* path or NULL */
    const char *trace_selection; /* path or NULL */
    int32_t trace_from;          /* -1: from the first generated token */
    int32_t max_tokens;
    bool has_sampling; /* a sampling flag was given; else the model's generation_config decides */
    struct nosa_sampling sampling;
    bool seed_drawn; /* no seed was given */
};

enum nosa_run_action { NOSA_RUN_GO, NOSA_RUN_PRINTED };

/* Parses argv and the environment; help and version are printed here. What a flag asks for that
 * this machine or build cannot do is said on stderr, with what is used instead. On failure nothing
 * is owned. */
enum nosa_status nosa_run_options_parse(int argc, char *const *argv, struct nosa_run_options *out,
                                        enum nosa_run_action *action, struct nosa_error *error);
void nosa_run_options_free(struct nosa_run_options *options);

#endif
