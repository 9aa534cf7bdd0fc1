/*
 * The parts a tokenizer is made of, shared by the files of this folder. Everything here is fixed
 * once the tokenizer is open; what an encode call changes lives in its struct nosa_encoding.
 */
#ifndef NOSA_TOKENIZER_INTERNAL_H
#define NOSA_TOKENIZER_INTERNAL_H

#define PCRE2_CODE_UNIT_WIDTH 8

#include <jansson.h>
#include <pcre2.h>

#include "tokenizer/chat.h"
#include "tokenizer/tokenizer.h"

#define STEPS_MAX         32   /* of a normalizer, pre-tokenizer or decoder, Sequences flattened */
#define NESTING_MAX       8    /* of Sequences */
#define ADDED_BYTES_MAX   1024 /* of an added token's content: bounds the search for added tokens */
#define TEMPLATE_IDS_MAX  64   /* ids that the post-processor adds on one side of a text */
#define PATTERN_BYTES_MAX 16384
#define BYTE_ALPHABET_END 324 /* the byte alphabet's characters are below this code point */

/* ---- unicode.c: properties and forms, by libutf8proc ---- */

/* The properties as Rust's char methods and its regex crate define them. */
bool nosa_unicode_is_space(uint32_t code_point);       /* White_Space */
bool nosa_unicode_is_numeric(uint32_t code_point);     /* Nd, Nl, No */
bool nosa_unicode_is_punctuation(uint32_t code_point); /* P*, and ASCII punctuation */
bool nosa_unicode_is_word(uint32_t code_point);        /* \w */
bool nosa_unicode_is_mark(uint32_t code_point);        /* M* */

/* Decodes the character at `at` of text that is known to be UTF-8; returns its length. */
size_t nosa_unicode_next(const char *text, size_t size, size_t at, uint32_t *code_point);
/* The character before `at`, which must not be 0; returns its length. */
size_t nosa_unicode_previous(const char *text, size_t at, uint32_t *code_point);

enum nosa_unicode_form { FORM_NFC, FORM_NFD, FORM_NFKC, FORM_NFKD };

/* Appends the normal form of UTF-8 text; linear in its length for any input. */
enum nosa_status nosa_unicode_normalize(enum nosa_unicode_form form, const char *text, size_t size,
                                        struct nosa_buffer *out);
/* Appends the text with each character in lower case (full mapping, no context). */
enum nosa_status nosa_unicode_lower(const char *text, size_t size, struct nosa_buffer *out);
/* Appends the text repaired to UTF-8: see tokenizer.h. */
enum nosa_status nosa_unicode_repair(const char *text, size_t size, struct nosa_buffer *out);

/* The byte alphabet of byte-level models: byte to code point, and back (-1: not in it). */
uint32_t nosa_byte_to_char(uint8_t byte);
int nosa_char_to_byte(uint32_t code_point);
enum nosa_status nosa_bytes_to_alphabet(const char *text, size_t size, struct nosa_buffer *out);

/* ---- regex.c ---- */

struct nosa_range {
    size_t start;
    size_t end;
};

struct nosa_regex {
    pcre2_code *code; /* owned; NULL for a literal */
    char *literal;    /* owned; NULL for an expression */
    size_t literal_size;
};

struct nosa_regex_scratch { /* one per encode call, made when first needed */
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
};

struct nosa_match_iterator {
    const struct nosa_regex *regex;
    const char *text; /* borrowed, UTF-8 */
    size_t size;
    size_t at;       /* where the next search starts */
    size_t last_end; /* end of the last match; SIZE_MAX before the first */
};

/* Compiles an expression of the Oniguruma dialect (Ruby syntax). NOSA_UNSUPPORTED names what is
 * not translated. */
enum nosa_status nosa_regex_compile(struct nosa_regex *regex, const char *pattern, size_t size,
                                    struct nosa_error *error);
enum nosa_status nosa_regex_literal(struct nosa_regex *regex, const char *text, size_t size,
                                    struct nosa_error *error);
void nosa_regex_free(struct nosa_regex *regex);
void nosa_regex_scratch_free(struct nosa_regex_scratch *scratch);
/* Before the first match in a text. */
struct nosa_match_iterator nosa_regex_matches(const struct nosa_regex *regex, const char *text,
                                              size_t size);
/* Finds the next match; *found is false at the end. */
enum nosa_status nosa_regex_next(struct nosa_match_iterator *iterator,
                                 struct nosa_regex_scratch *scratch, struct nosa_range *match,
                                 bool *found, struct nosa_error *error);

/* ---- vocab.c ---- */

#define PIECE_UNUSED UINT32_MAX

enum nosa_piece_flags {
    PIECE_IN_MODEL = 1, /* in the model's vocabulary, so that merging may produce it */
    PIECE_ADDED = 2,
    PIECE_SPECIAL = 4,
    PIECE_CONTROL = 8, /* marks turns in the chat format, special or not */
};

struct nosa_piece {
    uint32_t offset; /* of the content in the arena; PIECE_UNUSED */
    uint32_t size;
    uint32_t text_offset; /* of what the decoder starts from: the content, but for an added token
                           * that is matched after normalization its normalized content */
    uint32_t text_size;
    uint8_t flags;
};

struct nosa_vocab {
    struct nosa_buffer arena;  /* contents, each followed by a NUL */
    struct nosa_piece *pieces; /* owned, by id */
    int32_t piece_count;       /* highest id + 1 */
    size_t piece_capacity;
    int32_t *slots; /* owned: open addressing, id or -1 */
    size_t slot_count;
    size_t used;
};

/* Adds a content under an id, or flags to the id that has it already. NOSA_CORRUPT if the id or
 * the content is taken by another. */
enum nosa_status nosa_vocab_add(struct nosa_vocab *vocab, const char *content, size_t size,
                                int64_t id, unsigned flags, struct nosa_error *error);
/* Gives an id another text for the decoder. */
enum nosa_status nosa_vocab_set_text(struct nosa_vocab *vocab, int32_t id, const char *text,
                                     size_t size);
int32_t nosa_vocab_find(const struct nosa_vocab *vocab, const char *content, size_t size);
/* Only what is in the model's vocabulary. */
int32_t nosa_vocab_find_model(const struct nosa_vocab *vocab, const char *content, size_t size);
void nosa_vocab_free(struct nosa_vocab *vocab);

/* ---- bpe.c ---- */

struct nosa_merge {
    uint64_t pair; /* left << 32 | right; MERGE_EMPTY */
    uint32_t rank;
    int32_t id; /* of what the pair becomes */
};

#define MERGE_EMPTY UINT64_MAX

struct nosa_bpe {
    struct nosa_merge *merges; /* owned: open addressing */
    size_t merge_slots;        /* a power of two */
    int32_t low_ids[512];      /* ids of one-character tokens below U+0200; -1 */
    int32_t byte_ids[256];     /* ids of <0x00> to <0xFF>; -1 */
    int32_t unk_id;            /* -1: none */
    bool unk_missing;          /* unk_token is named but not in the vocabulary */
    bool fuse_unk;
    bool byte_fallback;
    bool ignore_merges;
};

struct nosa_symbol {
    int32_t id;
    int32_t previous; /* index; -1 */
    int32_t next;     /* index; -1 */
    bool merged_away;
};

struct nosa_candidate {
    uint32_t rank;
    int32_t position;
    int32_t id;
};

struct nosa_bpe_scratch {
    struct nosa_symbol *symbols; /* owned */
    size_t symbol_count;
    size_t symbol_capacity;
    struct nosa_candidate *heap; /* owned: binary heap by (rank, position) */
    size_t heap_count;
    size_t heap_capacity;
};

enum nosa_status nosa_bpe_load(struct nosa_bpe *bpe, struct nosa_vocab *vocab, const json_t *model,
                               struct nosa_error *error);
/* Appends the ids of one pre-token. */
enum nosa_status nosa_bpe_encode(const struct nosa_bpe *bpe, const struct nosa_vocab *vocab,
                                 struct nosa_bpe_scratch *scratch, const char *word, size_t size,
                                 struct nosa_tokens *tokens, struct nosa_error *error);
void nosa_bpe_free(struct nosa_bpe *bpe);
void nosa_bpe_scratch_free(struct nosa_bpe_scratch *scratch);

/* ---- added.c ---- */

struct nosa_added_token {
    int32_t id;
    bool single_word;
    bool lstrip;
    bool rstrip;
    bool normalized;
    bool chat_only; /* a control token whose normalized form is matched later in plain text */
};

struct nosa_trie_edge {
    uint64_t key; /* node << 8 | byte; UINT64_MAX: empty */
    uint32_t node;
};

struct nosa_trie {
    struct nosa_trie_edge *edges; /* owned: open addressing */
    size_t edge_slots;
    size_t edge_count;
    int32_t *ends; /* owned: per node the index of the added token that ends there; -1 */
    uint32_t node_count;
    size_t node_capacity;
    bool first_bytes[256];
};

struct nosa_added_match {
    size_t start; /* of what the token takes from the text, stripped space included */
    size_t end;
    int32_t id;
};

struct nosa_added_search {
    const struct nosa_trie *trie;
    const struct nosa_added_token *tokens;
    const struct nosa_vocab *vocab;
    const char *text;
    size_t size;
    size_t at;                       /* where the search goes on */
    size_t taken;                    /* end of the last match */
    bool plain;                      /* special tokens stay text */
    bool chat;                       /* control tokens in `ranges` stay text */
    size_t base;                     /* offset of `text` in what the ranges refer to */
    const struct nosa_range *ranges; /* ascending; message contents */
    size_t range_count;
    size_t range_at; /* the first range that may overlap what follows */
};

enum nosa_status nosa_trie_add(struct nosa_trie *trie, const char *content, size_t size,
                               int32_t token_index);
void nosa_trie_free(struct nosa_trie *trie);
bool nosa_added_next(struct nosa_added_search *search, struct nosa_added_match *match);

/* ---- normalizer.c, pretokenizer.c ---- */

enum nosa_normalizer_kind {
    NORMALIZER_FORM,
    NORMALIZER_LOWERCASE,
    NORMALIZER_STRIP,
    NORMALIZER_STRIP_ACCENTS,
    NORMALIZER_PREPEND,
    NORMALIZER_REPLACE,
    NORMALIZER_BYTE_LEVEL,
};

struct nosa_normalizer_step {
    enum nosa_normalizer_kind kind;
    enum nosa_unicode_form form;
    bool strip_left;
    bool strip_right;
    struct nosa_regex pattern;
    char *content; /* owned: what is prepended or put in the place of a match */
    size_t content_size;
};

struct nosa_normalizer {
    struct nosa_normalizer_step steps[STEPS_MAX];
    size_t count;
};

struct nosa_encoding;

enum nosa_status nosa_normalizer_load(struct nosa_normalizer *normalizer, const json_t *json,
                                      struct nosa_error *error);
/* Leaves the normalized text in encoding->normalized. */
enum nosa_status nosa_normalizer_apply(const struct nosa_normalizer *normalizer,
                                       struct nosa_encoding *encoding, const char *text,
                                       size_t size, struct nosa_error *error);
void nosa_normalizer_free(struct nosa_normalizer *normalizer);

enum nosa_pretokenizer_kind {
    PRETOKENIZER_BYTE_LEVEL, /* into the byte alphabet, after an optional prefix space */
    PRETOKENIZER_PREFIX_SPACE,
    PRETOKENIZER_SPLIT, /* by a pattern */
    PRETOKENIZER_CLASS, /* by a class of characters */
    PRETOKENIZER_METASPACE,
};

enum nosa_split_behavior {
    SPLIT_REMOVED,
    SPLIT_ISOLATED,
    SPLIT_MERGED_WITH_PREVIOUS,
    SPLIT_MERGED_WITH_NEXT,
    SPLIT_CONTIGUOUS,
};

enum nosa_split_class { CLASS_SPACE, CLASS_NUMERIC, CLASS_PUNCTUATION, CLASS_WORDS };

enum nosa_prepend_scheme { PREPEND_ALWAYS, PREPEND_FIRST, PREPEND_NEVER };

struct nosa_pretokenizer_step {
    enum nosa_pretokenizer_kind kind;
    struct nosa_regex pattern;
    enum nosa_split_behavior behavior;
    bool invert;
    enum nosa_split_class split_class;
    char replacement[8]; /* Metaspace: one character */
    size_t replacement_size;
    enum nosa_prepend_scheme prepend;
    bool metaspace_split;
};

struct nosa_pretokenizer {
    struct nosa_pretokenizer_step steps[STEPS_MAX];
    size_t count;
};

struct nosa_word {
    size_t start;
    size_t size;
};

struct nosa_words {
    struct nosa_word *items; /* owned */
    size_t count;
    size_t capacity;
};

enum nosa_status nosa_pretokenizer_load(struct nosa_pretokenizer *pretokenizer, const json_t *json,
                                        struct nosa_error *error);
/* Leaves the words in encoding->words, over encoding->word_text. `at_start` says that the text
 * begins where the whole input does. */
enum nosa_status nosa_pretokenizer_apply(const struct nosa_pretokenizer *pretokenizer,
                                         struct nosa_encoding *encoding, const char *text,
                                         size_t size, bool at_start, struct nosa_error *error);
void nosa_pretokenizer_free(struct nosa_pretokenizer *pretokenizer);

/* ---- decoder.c ---- */

enum nosa_decoder_kind {
    DECODER_REPLACE, /* in each token */
    DECODER_METASPACE,
    DECODER_STRIP,       /* in each token */
    DECODER_STRIP_FUSED, /* at the beginning of the whole text */
};

struct nosa_decoder_step {
    enum nosa_decoder_kind kind;
    char *pattern; /* owned: what is replaced, or the one character that is stripped */
    size_t pattern_size;
    char *content; /* owned */
    size_t content_size;
    uint32_t strip_count; /* characters at most */
    bool first_drops;     /* Metaspace: the first token's mark is no space */
};

struct nosa_decoder {
    struct nosa_decoder_step steps[STEPS_MAX];
    size_t count;
    bool present;       /* without one, tokens are joined with spaces */
    bool byte_level;    /* the last step: the byte alphabet becomes bytes */
    bool byte_fallback; /* <0xNN> becomes a byte */
};

enum nosa_status nosa_decoder_load(struct nosa_decoder *decoder, const json_t *json,
                                   struct nosa_error *error);
void nosa_decoder_free(struct nosa_decoder *decoder);

/* ---- members.c: JSON and its typed members; each names the member in its error ---- */

/* Parses an object; the caller drops the reference. */
enum nosa_status nosa_member_parse(struct nosa_tokenizer_bytes bytes, const char *name,
                                   json_t **json, struct nosa_error *error);
/* The string member "type" of an object; NULL and an error if there is none. */
const char *nosa_member_type(const json_t *json, const char *what, struct nosa_error *error);
/* Optional boolean: `fallback` where it is absent or null. */
enum nosa_status nosa_member_bool(const json_t *json, const char *what, const char *key,
                                  bool fallback, bool *value, struct nosa_error *error);
/* Copies a string member into an allocation; required. */
enum nosa_status nosa_member_copy(const json_t *json, const char *what, const char *key,
                                  char **text, size_t *size, struct nosa_error *error);
/* A pattern member: {"String": s} or {"Regex": s}. */
enum nosa_status nosa_member_pattern(const json_t *json, const char *what, struct nosa_regex *regex,
                                     struct nosa_error *error);
/* Calls `load` for each leaf of nested Sequences, whose members are in `key`. */
typedef enum nosa_status (*nosa_member_load)(void *target, const json_t *json, const char *type,
                                             struct nosa_error *error);
enum nosa_status nosa_member_sequence(const json_t *json, const char *what, const char *key,
                                      nosa_member_load load, void *target,
                                      struct nosa_error *error);

/* ---- the tokenizer and one encode call ---- */

struct nosa_tokenizer {
    struct nosa_vocab vocab;
    struct nosa_bpe bpe;
    struct nosa_added_token *added; /* owned */
    size_t added_count;
    struct nosa_trie raw_trie;        /* matched before normalization */
    struct nosa_trie normalized_trie; /* matched after it */
    struct nosa_normalizer normalizer;
    struct nosa_pretokenizer pretokenizer;
    struct nosa_decoder decoder;
    int32_t prefix_ids[TEMPLATE_IDS_MAX]; /* of the post-processor */
    size_t prefix_count;
    int32_t suffix_ids[TEMPLATE_IDS_MAX];
    size_t suffix_count;
    int32_t bos_id;
    int32_t eos_id;
    char *chat_template; /* owned; NULL: none */
    enum nosa_chat_family chat_family;
};

struct nosa_encoding {
    const struct nosa_tokenizer *tokenizer;
    struct nosa_regex_scratch regex;
    struct nosa_bpe_scratch bpe;
    struct nosa_buffer repaired;
    struct nosa_buffer normalized;
    struct nosa_buffer swap;
    struct nosa_buffer word_text;
    struct nosa_words words;
    struct nosa_words swap_words;
    bool plain;
    bool chat;
    const struct nosa_range *ranges; /* message contents, where `chat` */
    size_t range_count;
};

/* Encodes rendered chat text: added tokens are recognised outside of `ranges`; inside, special and
 * control tokens stay text. `text` must be UTF-8. */
enum nosa_status nosa_tokenizer_encode_chat(const struct nosa_tokenizer *tokenizer,
                                            const char *text, size_t size,
                                            const struct nosa_range *ranges, size_t range_count,
                                            struct nosa_tokens *tokens, struct nosa_error *error);

/* ---- chat_family.c ---- */

enum nosa_chat_family nosa_chat_detect(const char *chat_template);
/* The control tokens of a family, ending with NULL. */
const char *const *nosa_chat_controls(enum nosa_chat_family family);

#endif
