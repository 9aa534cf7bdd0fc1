/*
 * Haystacks: facts between the tokens of a text, and questions about them at its end, which begin
 * each fact again. Answers are scored as given tokens, so that all questions of a haystack cost one
 * pass. After the manner of RULER (Hsieh et al., "RULER: What's the Real Context Size of Your
 * Long-Context Language Models?"), sized to what a small model can do at all.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quality.h"

const char *const quality_task_names[QUALITY_TASKS + 1] = {"retrieval", "multikey", "variables",
                                                           "counting", NULL};

#define FACTS   6  /* of a haystack, or marked words */
#define MARKS   6  /* how often the word that is asked for is marked; the others once */
#define PLANTED 16 /* statements of a haystack at most */
#define TEXT    160

/* ---- words ---------------------------------------------------------------------------------- */

struct fact_kind {
    const char *about; /* begins the fact; %s is its key */
    const char *const keys[FACTS];
    const char *const values[FACTS]; /* none: four digits */
};

static const struct fact_kind kinds[FACTS] = {
    {"The secret code for %s is", {"Cairo", "Lima", "Oslo", "Kyoto", "Boston", "Dublin"}, {NULL}},
    {"The captain of the %s is",
     {"Mermaid", "Albatross", "Comet", "Falcon", "Pelican", "Swan"},
     {"Henderson", "Morales", "Whitaker", "Fitzgerald", "Kowalski", "Bergman"}},
    {"The password to the %s is",
     {"cellar", "archive", "tower", "workshop", "garage", "vault"},
     {"sunflower", "thunder", "marble", "cinnamon", "pelican", "velvet"}},
    {"Doctor %s lives in",
     {"Ramsey", "Olsen", "Patel", "Lindgren", "Castro", "Novak"},
     {"Toronto", "Madrid", "Nairobi", "Helsinki", "Sydney", "Vienna"}},
    {"The favourite fruit of %s is",
     {"Beatrice", "Samuel", "Ingrid", "Oliver", "Naomi", "Victor"},
     {"pineapple", "apricot", "mango", "cherry", "papaya", "grape"}},
    {"The parcel for %s weighs",
     {"Gregory", "Matilda", "Edmund", "Harriet", "Leopold", "Rosalind"},
     {NULL}},
};

static const char *const variables[2 * FACTS] = {"alpha", "bravo", "delta",  "gamma",
                                                 "kappa", "omega", "sigma",  "theta",
                                                 "zulu",  "tango", "lambda", "romeo"};
static const char *const marked[FACTS] = {"apple", "river", "stone", "music", "winter", "garden"};

/* ---- draws ---------------------------------------------------------------------------------- */

/* splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators"). */
static uint32_t draw(uint64_t *random, uint32_t below)
{
    uint64_t z = *random += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)(((z ^ (z >> 31)) >> 32) * below >> 32);
}

static void shuffle(int32_t *order, int32_t n, uint64_t *random)
{
    for (int32_t i = 0; i < n; i++)
        order[i] = i;
    for (int32_t i = n - 1; i > 0; i--) {
        int32_t other = (int32_t)draw(random, (uint32_t)i + 1), kept = order[i];
        order[i] = order[other];
        order[other] = kept;
    }
}

/* ---- what is told and asked ------------------------------------------------------------------ */

struct statement {
    char text[TEXT];
    double depth;
};

struct question {
    char begin[TEXT];
    char answer[TEXT]; /* with a space before it */
    double depth;
    bool choice; /* among `marked`, its own word first */
    int32_t word;
};

struct plan {
    int32_t n_told, n_asked;
    struct statement told[PLANTED];
    struct question asked[FACTS];
};

static void tell(struct plan *plan, double depth, const char *begin, const char *end)
{
    struct statement *statement = &plan->told[plan->n_told++];
    statement->depth = depth;
    snprintf(statement->text, TEXT, "\n%.70s %.70s.\n", begin, end);
}

static void ask(struct plan *plan, double depth, const char *begin, const char *answer)
{
    struct question *question = &plan->asked[plan->n_asked++];
    *question = (struct question){.depth = depth};
    snprintf(question->begin, TEXT, "\n%.70s", begin);
    snprintf(question->answer, TEXT, " %.70s", answer);
}

static void draw_value(const struct fact_kind *kind, int32_t fact, uint64_t *random,
                       char value[TEXT])
{
    if (kind->values[0])
        snprintf(value, TEXT, "%s", kind->values[fact]);
    else
        snprintf(value, TEXT, "%04u", draw(random, 10000));
}

/* Facts at different ones of the depths .1 to .9: each of another kind, or all of one. */
static void plan_facts(struct plan *plan, bool one_kind, uint64_t *random)
{
    int32_t depths[9], which[FACTS], keys[FACTS];
    shuffle(depths, 9, random);
    shuffle(which, FACTS, random);
    shuffle(keys, FACTS, random);
    for (int32_t i = 0; i < FACTS; i++) {
        const struct fact_kind *kind = &kinds[one_kind ? which[0] : which[i]];
        char begin[TEXT], value[TEXT];
        int32_t key = one_kind ? keys[i] : (int32_t)draw(random, FACTS);
        snprintf(begin, TEXT, kind->about, kind->keys[key]);
        draw_value(kind, one_kind ? i : (int32_t)draw(random, FACTS), random, value);
        double depth = 0.1 * (depths[i] + 1);
        tell(plan, depth, begin, value);
        ask(plan, depth, begin, value);
    }
}

/* Half of the variables get values; the others, later in the text, get theirs from the first. */
static void plan_variables(struct plan *plan, uint64_t *random)
{
    int32_t depths[9], names[2 * FACTS];
    const int32_t pairs = 4;
    shuffle(depths, 9, random);
    shuffle(names, 2 * FACTS, random);
    for (int32_t i = 0; i < pairs; i++) {
        int32_t early = depths[2 * i], late = depths[2 * i + 1];
        if (early > late) {
            int32_t kept = early;
            early = late;
            late = kept;
        }
        char first[TEXT], second[TEXT], same[TEXT], value[TEXT];
        snprintf(value, TEXT, "%05u", 10000 + draw(random, 90000));
        snprintf(first, TEXT, "The variable %s has the value", variables[names[2 * i]]);
        snprintf(second, TEXT, "The variable %s has the value", variables[names[2 * i + 1]]);
        snprintf(same, TEXT, "of the variable %s", variables[names[2 * i]]);
        tell(plan, 0.1 * (early + 1), first, value);
        tell(plan, 0.1 * (late + 1), second, same);
        snprintf(second, TEXT, "The variable %s, which has the value of %s, has the value",
                 variables[names[2 * i + 1]], variables[names[2 * i]]);
        ask(plan, 0.1 * (early + 1), second, value);
    }
}

/* One word is marked often, five others once. */
static void plan_counting(struct plan *plan, uint64_t *random)
{
    int32_t word = (int32_t)draw(random, FACTS), order[MARKS + FACTS - 1], n = MARKS + FACTS - 1;
    shuffle(order, n, random);
    for (int32_t i = 0; i < n; i++) {
        int32_t told = i < MARKS ? word : (word + 1 + i - MARKS) % FACTS;
        tell(plan, (order[i] + 1.0) / (n + 1), "Marked word:", marked[told]);
    }
    ask(plan, 0,
        "Of all marked words, the one that was marked most often is: Marked word:", marked[word]);
    plan->asked[0].choice = true;
    plan->asked[0].word = word;
}

/* ---- tokens --------------------------------------------------------------------------------- */

static enum nosa_status encode(const struct nosa_tokenizer *tokenizer, const char *text,
                               struct nosa_tokens *tokens, struct nosa_error *error)
{
    return nosa_tokenizer_encode(tokenizer, text, strlen(text), 0, tokens, error);
}

/* The first token of each marked word, that of the right one first. */
static enum nosa_status encode_choices(const struct nosa_tokenizer *tokenizer, int32_t word,
                                       struct quality_probe *probe, struct nosa_error *error)
{
    probe->n_choices = QUALITY_CHOICES;
    probe->end = probe->begin + 1;
    for (int32_t i = 0; i < QUALITY_CHOICES; i++) {
        struct nosa_tokens tokens = {0};
        char text[TEXT];
        snprintf(text, TEXT, " %s", marked[(word + i) % FACTS]);
        enum nosa_status status = encode(tokenizer, text, &tokens, error);
        probe->choice[i] = status == NOSA_OK && tokens.count > 0 ? tokens.ids[0] : 0;
        nosa_tokens_free(&tokens);
        NOSA_TRY(status);
        for (int32_t other = 0; other < i; other++)
            if (probe->choice[other] == probe->choice[i])
                return nosa_error_set(
                    error, NOSA_UNSUPPORTED,
                    "counting: the tokenizer has words begin with the same token");
    }
    return NOSA_OK;
}

/* The end of the haystack; probes are placed from its first token on. */
static enum nosa_status encode_questions(const struct plan *plan,
                                         const struct nosa_tokenizer *tokenizer,
                                         struct nosa_tokens *tail, struct quality_case *out,
                                         struct nosa_error *error)
{
    NOSA_TRY(encode(tokenizer, "\n\nAs was said above:\n", tail, error));
    for (int32_t i = 0; i < plan->n_asked; i++) {
        const struct question *question = &plan->asked[i];
        struct quality_probe *probe = &out->probes[out->n_probes++];
        NOSA_TRY(encode(tokenizer, question->begin, tail, error));
        *probe = (struct quality_probe){.begin = (int32_t)tail->count, .depth = question->depth};
        NOSA_TRY(encode(tokenizer, question->answer, tail, error));
        probe->end = (int32_t)tail->count;
        if (question->choice)
            NOSA_TRY(encode_choices(tokenizer, question->word, probe, error));
        NOSA_TRY(encode(tokenizer, ".", tail, error));
    }
    return NOSA_OK;
}

static int compare_statements(const void *a, const void *b)
{
    double left = ((const struct statement *)a)->depth;
    double right = ((const struct statement *)b)->depth;
    return (left > right) - (left < right);
}

static void put(uint32_t *memory, int32_t *at, const int32_t *ids, int32_t n)
{
    for (int32_t i = 0; i < n; i++)
        memory[(*at)++] = (uint32_t)ids[i];
}

/* Text, statements at their depths, and the questions, `context` tokens in all. */
static enum nosa_status lay_out(const struct plan *plan, const struct nosa_tokens *told,
                                const struct nosa_tokens *tail, const int32_t *window,
                                int32_t context, uint32_t *memory, struct nosa_error *error)
{
    int64_t room = context - (int64_t)tail->count;
    for (int32_t i = 0; i < plan->n_told; i++)
        room -= (int64_t)told[i].count;
    if (room < context / 2)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "a context of %d tokens is too short for planted facts", context);
    int32_t at = 0, taken = 0;
    for (int32_t i = 0; i < plan->n_told; i++) {
        int32_t until = (int32_t)(plan->told[i].depth * (double)room);
        put(memory, &at, window + taken, until - taken);
        put(memory, &at, told[i].ids, (int32_t)told[i].count);
        taken = until;
    }
    put(memory, &at, window + taken, (int32_t)room - taken);
    put(memory, &at, tail->ids, (int32_t)tail->count);
    NOSA_ASSERT(at == context);
    return NOSA_OK;
}

enum nosa_status quality_haystack(enum quality_task task, const struct nosa_tokenizer *tokenizer,
                                  const int32_t *window, int32_t context, uint64_t *random,
                                  uint32_t *memory, struct quality_case *out,
                                  struct nosa_error *error)
{
    struct plan plan = {0};
    struct nosa_tokens told[PLANTED] = {{0}}, tail = {0};
    if (task == QUALITY_VARIABLES)
        plan_variables(&plan, random);
    else if (task == QUALITY_COUNTING)
        plan_counting(&plan, random);
    else
        plan_facts(&plan, task == QUALITY_MULTIKEY, random);
    qsort(plan.told, (size_t)plan.n_told, sizeof *plan.told, compare_statements);
    *out = (struct quality_case){.ids = memory, .n = context};
    enum nosa_status status = encode_questions(&plan, tokenizer, &tail, out, error);
    for (int32_t i = 0; status == NOSA_OK && i < plan.n_told; i++)
        status = encode(tokenizer, plan.told[i].text, &told[i], error);
    if (status == NOSA_OK)
        status = lay_out(&plan, told, &tail, window, context, memory, error);
    for (int32_t i = 0; i < out->n_probes; i++) {
        out->probes[i].begin += context - (int32_t)tail.count;
        out->probes[i].end += context - (int32_t)tail.count;
    }
    for (int32_t i = 0; i < plan.n_told; i++)
        nosa_tokens_free(&told[i]);
    nosa_tokens_free(&tail);
    return status;
}
