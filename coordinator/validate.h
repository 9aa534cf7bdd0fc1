/*
 * What requests may hold. Every refusal names the field. UTF-8 and the wire form were checked when
 * the message was unpacked (rpc/message.h). Stateless; any thread.
 */
#ifndef NOSA_COORDINATOR_VALIDATE_H
#define NOSA_COORDINATOR_VALIDATE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "nosa/v1/inference.pb-c.h"

#define NOSA_REQUEST_ID_BYTES_MAX 256
#define NOSA_CACHE_SALT_BYTES_MAX 1024
#define NOSA_STOPS_MAX            64
#define NOSA_STOP_BYTES_MAX       1024
#define NOSA_STOP_IDS_MAX         1024
#define NOSA_LOGPROBS_MAX         20
#define NOSA_CHAT_MESSAGES_MAX    4096

struct nosa_request_limits {
    uint64_t prompt_bytes_max; /* of text, of a chat's contents, and of ids at 4 bytes each */
};

/* What of a model a request is held against. */
struct nosa_model_limits {
    uint32_t vocab_size;
    uint32_t max_context_tokens;
};

/* What needs no model. NOSA_INVALID_ARGUMENT; NOSA_RESOURCE_EXHAUSTED: the prompt is larger than
 * the bound. */
enum nosa_status nosa_validate_generate(const Nosa__V1__GenerateRequest *request,
                                        const struct nosa_request_limits *limits,
                                        struct nosa_error *error);

/* What needs the model: ids within its vocabulary, resumed ids within its context. */
enum nosa_status nosa_validate_generate_ids(const Nosa__V1__GenerateRequest *request,
                                            const struct nosa_model_limits *model,
                                            struct nosa_error *error);

/* The field's ids, each below the vocabulary; `field` is its name. */
enum nosa_status nosa_validate_ids(const char *field, const uint32_t *ids, size_t count,
                                   uint32_t vocab_size, struct nosa_error *error);

enum nosa_status nosa_validate_text(const char *field, const char *text,
                                    const struct nosa_request_limits *limits,
                                    struct nosa_error *error);

enum nosa_status nosa_validate_chat(const Nosa__V1__Chat *chat,
                                    const struct nosa_request_limits *limits,
                                    struct nosa_error *error);

enum nosa_status nosa_validate_sampling(const Nosa__V1__Sampling *sampling,
                                        struct nosa_error *error);

#endif
