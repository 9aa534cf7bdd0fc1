#include "op_random.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Query heads times head_dim times the tokens that each row sees, in one case: what keeps the
 * reference quick. */
#define WORK_MAX 12000000

/* A whole number from least to most, the `index`-th draw of the seed. */
static int32_t draw(uint64_t seed, uint64_t *index, int32_t least, int32_t most)
{
    float share = 0.5f * op_uniform(seed, 77, (*index)++) + 0.5f;
    int32_t value = least + (int32_t)(share * (float)(most - least + 1));
    return value < most ? value : most;
}

/* Somewhere, or at a border of blocks or windows, where the ragged cases are. */
static int32_t draw_position(uint64_t seed, uint64_t *index, int32_t stride, int32_t most)
{
    int32_t pos = draw(seed, index, 0, most), kind = draw(seed, index, 0, 3);
    int32_t unit = kind == 0 ? NOSA_BLOCK_TOKENS : kind == 1 ? stride : 1;
    pos = pos / unit * unit + (kind <= 1 ? draw(seed, index, -1, 1) : 0);
    return pos > 0 ? pos : 0;
}

static void draw_sequences(uint64_t seed, uint64_t *index, struct op_case *out)
{
    int32_t work_left = WORK_MAX / (out->n_heads * out->head_dim);
    int32_t most = draw(seed, index, 0, 3) == 0 ? 2500 : 700;
    out->n_seqs = draw(seed, index, 1, 6);
    for (int32_t seq = 0; seq < out->n_seqs; seq++) {
        int32_t rows = draw(seed, index, 0, 1) == 0 ? 1 : draw(seed, index, 1, 130);
        int32_t first = draw_position(seed, index, out->kernel_stride, most / out->n_seqs);
        while (rows > 1 && rows * (first + rows) > work_left)
            rows -= (rows + 3) / 4;
        work_left -= rows * (first + rows);
        out->seqs[seq].first = first;
        out->seqs[seq].rows = rows;
    }
}

void op_random_case(uint64_t seed, struct op_random_case *out)
{
    uint64_t index = 0;
    struct op_case *drawn = &out->op_case;
    *drawn = (struct op_case){.name = out->name};
    snprintf(out->name, sizeof out->name, "random %" PRIu64, seed);
    int32_t group_most = draw(seed, &index, 0, 7) == 0 ? NOSA_GROUP_MAX : 12;
    drawn->n_kv_heads = draw(seed, &index, 1, 4);
    drawn->n_heads = drawn->n_kv_heads * draw(seed, &index, 1, group_most);
    drawn->head_dim = 16 * draw(seed, &index, 1, draw(seed, &index, 0, 3) == 0 ? 16 : 8);
    drawn->kernel_stride = 1 << draw(seed, &index, 0, 6);
    drawn->type = draw(seed, &index, 0, 1) == 0 ? NOSA_DTYPE_F32 : NOSA_DTYPE_BF16;
    drawn->has_bias = draw(seed, &index, 0, 3) != 0;
    drawn->init_blocks = draw(seed, &index, 0, 2);
    drawn->window_blocks = draw(seed, &index, 0, 3);
    drawn->select_blocks = draw(seed, &index, 1, 6);
    drawn->topk =
        drawn->init_blocks + drawn->window_blocks + drawn->select_blocks + draw(seed, &index, 0, 6);
    draw_sequences(seed, &index, drawn);
}

static bool parse_number(const char *text, uint64_t *value)
{
    char *end;
    *value = strtoull(text, &end, 10);
    return *text >= '0' && *text <= '9' && *end == '\0';
}

bool op_seeds_parse(int argc, char *const *argv, struct op_seeds *seeds)
{
    if (argc == 1)
        return true;
    if (argc == 4 && strcmp(argv[1], "--seeds") == 0 && parse_number(argv[2], &seeds->first) &&
        parse_number(argv[3], &seeds->count))
        return true;
    fprintf(stderr, "usage: %s [--seeds FIRST COUNT]\n", argv[0]);
    return false;
}
