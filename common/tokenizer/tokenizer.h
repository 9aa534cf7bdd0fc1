/*
 * Text to token ids and back, as the checkpoint's tokenizer.json says: byte-pair encoding, byte
 * level or SentencePiece style with byte fallback, with the normalizers, pre-tokenizers, added
 * tokens, post-processors and decoders of the common model families. Used by nosa-run and by the
 * coordinator.
 *
 * A tokenizer never changes after it is opened, so any number of threads may use one at a time; a
 * detokenizer and a token list belong to one thread. Nothing here blocks, except that
 * nosa_tokenizer_open reads files.
 *
 * Ids are the same as those of the `tokenizers` library. Text that is not UTF-8 is first repaired
 * as Python's bytes.decode("utf-8", errors="replace") does: each maximal beginning of a character
 * that cannot be completed becomes U+FFFD.
 */
#ifndef NOSA_TOKENIZER_TOKENIZER_H
#define NOSA_TOKENIZER_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/status.h"

#define NOSA_TOKENIZER_FILE_BYTES_MAX (128u << 20) /* of tokenizer.json */
#define NOSA_TOKENIZER_IDS_MAX        (1 << 22)    /* every id is below this */
#define NOSA_TOKENIZER_TEXT_BYTES_MAX (64u << 20)  /* of one text to encode */

struct nosa_tokenizer; /* opaque; fixed after open */

/* A growing list of ids. All zero is a valid empty list. */
struct nosa_tokens {
    int32_t *ids; /* owned; NULL while empty */
    size_t count;
    size_t capacity;
    uint64_t
        merge_steps;  /* queue moves that merging took so far; O(n log n) in the text's length */
    size_t count_max; /* more are refused; 0: no bound */
    bool full;        /* some were */
};

/* NOSA_OK, NOSA_RESOURCE_EXHAUSTED beyond count_max, or NOSA_OUT_OF_MEMORY; on failure the list is
 * as it was. */
enum nosa_status nosa_tokens_append(struct nosa_tokens *tokens, int32_t id);
/* Frees the memory and zeroes the list. */
void nosa_tokens_free(struct nosa_tokens *tokens);

/*
 * Opens the tokenizer of a model directory: tokenizer.json, and, where they are present,
 * tokenizer_config.json (chat_template, bos_token, eos_token), special_tokens_map.json (the same
 * tokens) and chat_template.jinja. The caller closes *tokenizer; it is NULL on error.
 * NOSA_NOT_FOUND: no tokenizer.json; NOSA_UNSUPPORTED: a part of it is of a kind that is not
 * implemented, which the text names; NOSA_INVALID_ARGUMENT or NOSA_CORRUPT: what is wrong with it.
 */
enum nosa_status nosa_tokenizer_open(const char *model_directory, struct nosa_tokenizer **tokenizer,
                                     struct nosa_error *error);

/* The same from bytes that came over the wire, one for each file; all but the first may be
 * {NULL, 0}. Nothing is kept of them. */
struct nosa_tokenizer_bytes {
    const char *data; /* borrowed for the call */
    size_t size;
};

struct nosa_tokenizer_files {
    struct nosa_tokenizer_bytes tokenizer_json;
    struct nosa_tokenizer_bytes config_json;        /* tokenizer_config.json */
    struct nosa_tokenizer_bytes special_tokens_map; /* special_tokens_map.json */
    struct nosa_tokenizer_bytes chat_template;      /* chat_template.jinja */
};

enum nosa_status nosa_tokenizer_open_memory(const struct nosa_tokenizer_files *files,
                                            struct nosa_tokenizer **tokenizer,
                                            struct nosa_error *error);

/* NULL is allowed. No detokenizer made from it may be used afterwards. */
void nosa_tokenizer_close(struct nosa_tokenizer *tokenizer);

/* Flags of nosa_tokenizer_encode. */
#define NOSA_ENCODE_ADD_SPECIAL   1u /* what the post-processor adds: a beginning-of-text token */
#define NOSA_ENCODE_PARSE_SPECIAL 2u /* special tokens spelled in the text become their ids */

/*
 * Appends the ids of `text` to `tokens`. An empty text appends only what ADD_SPECIAL adds. Without
 * PARSE_SPECIAL, special tokens spelled in the text are encoded as plain text; added tokens that
 * are not special are recognised either way. On error `tokens` has as many ids as before.
 * NOSA_INVALID_ARGUMENT: longer than NOSA_TOKENIZER_TEXT_BYTES_MAX; NOSA_RESOURCE_EXHAUSTED: one of
 * the tokenizer's regular expressions ran past its match limit, or (tokens->full) the ids past
 * tokens->count_max, which ends the work there; NOSA_OUT_OF_MEMORY.
 */
enum nosa_status nosa_tokenizer_encode(const struct nosa_tokenizer *tokenizer, const char *text,
                                       size_t size, unsigned flags, struct nosa_tokens *tokens,
                                       struct nosa_error *error);

/* The highest id plus one; some ids below may be unused. */
int32_t nosa_tokenizer_vocab_size(const struct nosa_tokenizer *tokenizer);

/* The token's content as the vocabulary spells it (for byte-level models in the byte alphabet),
 * NUL-terminated and valid until close, and its length; NULL for an id that is not used. */
const char *nosa_tokenizer_piece(const struct nosa_tokenizer *tokenizer, int32_t id, size_t *size);

/* The id of the token with this content, added or in the vocabulary; -1 if there is none. */
int32_t nosa_tokenizer_find(const struct nosa_tokenizer *tokenizer, const char *content,
                            size_t size);

/* Whether the id is an added token that is marked special, so that it has no text. */
bool nosa_tokenizer_is_special(const struct nosa_tokenizer *tokenizer, int32_t id);

/* The ids of bos_token and eos_token; -1 where the files name none. */
int32_t nosa_tokenizer_bos(const struct nosa_tokenizer *tokenizer);
int32_t nosa_tokenizer_eos(const struct nosa_tokenizer *tokenizer);

/*
 * Appends the text of `count` ids to `text`, without special tokens: what
 * decode(ids, skip_special_tokens=True) of the `tokenizers` library gives. Ids out of range have no
 * text. Always whole UTF-8. NOSA_OUT_OF_MEMORY.
 */
enum nosa_status nosa_tokenizer_decode(const struct nosa_tokenizer *tokenizer, const int32_t *ids,
                                       size_t count, struct nosa_buffer *text,
                                       struct nosa_error *error);

/*
 * Streaming: one id in, whole UTF-8 characters out. At most 3 bytes of an unfinished character are
 * held back. The concatenated text equals nosa_tokenizer_decode of the same ids, with one
 * exception, which holding back a bounded tail forces: where a run of byte-fallback tokens is not
 * UTF-8 as a whole, the library turns each of its bytes into U+FFFD, and the stream only those
 * bytes that belong to no character.
 */
struct nosa_detokenizer;

/*
 * Creates a detokenizer that has already seen the `context_count` ids of `context` (which may be
 * NULL with 0) without giving their text out: the delivered ids of a stream that is resumed, whose
 * text then continues exactly, or the prompt, so that a SentencePiece word after it keeps its
 * space. The caller frees it, before the tokenizer is closed.
 */
enum nosa_status nosa_detokenizer_create(const struct nosa_tokenizer *tokenizer,
                                         const int32_t *context, size_t context_count,
                                         struct nosa_detokenizer **detokenizer,
                                         struct nosa_error *error);

/* Feeds one id and appends what became whole characters to `text`. */
enum nosa_status nosa_detokenizer_push(struct nosa_detokenizer *detokenizer, int32_t id,
                                       struct nosa_buffer *text, struct nosa_error *error);

/* Ends the text: an unfinished character is appended as U+FFFD. The detokenizer then starts anew,
 * with no context. */
enum nosa_status nosa_detokenizer_finish(struct nosa_detokenizer *detokenizer,
                                         struct nosa_buffer *text, struct nosa_error *error);

/* NULL is allowed. */
void nosa_detokenizer_free(struct nosa_detokenizer *detokenizer);

#endif
