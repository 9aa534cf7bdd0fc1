/*
 * The op table: everything a decoder step computes, over flat arrays in device memory.
 *
 * A step is one packed batch: the rows (tokens) of several sequences laid end to end, prefill
 * chunks and single decode tokens alike. Activations are float32. The numerics contract of every
 * op: an output row depends only on that row's inputs and on the KV that it reads, never on the
 * other rows, on how rows are grouped into steps or on the number of threads. On the CPU backend
 * each sum has one fixed order that every instruction set follows (fused multiply-add, k
 * ascending, from zero), so results are also the same bits on AVX-512, AVX2 and portable code.
 *
 * Ops return NOSA_OK or the reason for which nothing was enqueued.
 */
#ifndef NOSA_KERNELS_OPS_H
#define NOSA_KERNELS_OPS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "kv_layout.h"
#include "ops_kv.h"
#include "weight.h"

struct nosa_stream;

enum nosa_attention_mode {
    NOSA_ATTENTION_FULL = 0,
    NOSA_ATTENTION_INFLLMV2 = 1,
    NOSA_ATTENTION_NOSA = 2,
};

/*
 * The packed batch. Rows of one sequence are adjacent and their positions ascend by one. A tile is
 * a run of rows of one sequence whose positions lie in one block (at most 64 rows); tiles cover all
 * rows in order. n_* are known to the host, the arrays are device memory.
 */
struct nosa_batch_view {
    int32_t n_rows;
    int32_t n_seqs;
    int32_t n_tiles;
    const int32_t *row_pos;     /* [n_rows] position in the sequence */
    const int32_t *row_seq;     /* [n_rows] index of the sequence in the batch */
    const int32_t *tile_row;    /* [n_tiles] first row */
    const int32_t *tile_rows;   /* [n_tiles] number of rows, 1 .. 64 */
    const int32_t *block_table; /* [n_seqs][table_stride] block ids by logical block */
    int32_t table_stride;
};

/* out[i] = row token[i] of the embedding, as float32. `weight` is packed [vocab, hidden] (shared
 * with the output head when they are tied). A rank that holds rows vocab_first ..
 * vocab_first + weight->n - 1 writes zeros for other tokens. */
struct nosa_embed_params {
    int32_t n_rows;
    const int32_t *token; /* [n_rows] */
    const struct nosa_weight *weight;
    int32_t vocab_first;
    float *out; /* [n_rows][weight->k] */
};

/* out[i] = x[row] / sqrt(mean(x[row]^2) + eps) * weight, row = row_index ? row_index[i] : i.
 * The sum of squares is formed in 16 interleaved lanes, then lane pairs (i, i + 8), (i, i + 4)...
 * (Zhang and Sennrich, "Root Mean Square Layer Normalization".) */
struct nosa_rms_norm_params {
    int32_t n_rows;
    int32_t width;
    float eps;
    const float *x;           /* [..][width] */
    const int32_t *row_index; /* [n_rows] or NULL */
    const float *weight;      /* [width] */
    float *out;               /* [n_rows][out_stride]; may be x where rows are the same */
    int64_t out_stride;       /* elements, at least width */
};

enum nosa_matmul_epilogue {
    NOSA_MATMUL_STORE = 0,  /* out = x W^T + bias */
    NOSA_MATMUL_ADD = 1,    /* out += x W^T + bias */
    NOSA_MATMUL_SWIGLU = 2, /* weight is a gated pair: out = silu(x Wg^T) * (x Wu^T) */
};

/* y[i][n] = sum over k ascending of x[i][k] * w[n][k], one fused multiply-add chain from zero;
 * then + bias[n] if there is one; then the epilogue. silu(g) = g / (1 + exp(-g)). */
struct nosa_matmul_params {
    int32_t n_rows;
    const struct nosa_weight *weight;
    const float *x;    /* [n_rows][x_stride], x_stride >= weight->k */
    int64_t x_stride;  /* elements */
    const float *bias; /* [weight->n] or NULL; not with SWIGLU */
    enum nosa_matmul_epilogue epilogue;
    int32_t n_out; /* columns written: weight->n, of a gated pair at most weight->n / 2 */
    float *out;    /* [n_rows][out_stride] */
    int64_t out_stride;
    const struct nosa_weight *next_weight; /* of the next product on the stream, or NULL: a hint,
                                              so that its first bytes are fetched meanwhile */
};

/* table[i] = (cos, sin) of position row_pos[i] times inv_freq, times scale, formed in double. */
struct nosa_rope_table_params {
    int32_t n_rows;
    int32_t head_dim;
    const int32_t *row_pos; /* [n_rows] */
    const double *inv_freq; /* [head_dim / 2] */
    double scale;           /* attention factor of yarn and longrope, else 1 */
    float *table;           /* [n_rows][head_dim / 2][2] */
};

/*
 * After the QKV product: rotates q and k (half-split pairs (i, i + head_dim / 2)), writes K and V
 * once rounded into the records of the rows' blocks, and the bias c of every row and KV head into
 * the summaries. The first row of a block clears the record first, so that stale values of a former
 * owner never take part in arithmetic.
 *
 * A row of qkv: [n_heads][head_dim] q, [n_kv_heads][head_dim] k, [n_kv_heads][head_dim] v, then,
 * with an eviction head, n_kv_heads high parts and n_kv_heads low parts of delta . v + delta bias
 * (their sum is the argument of softplus). q is rotated in place.
 *   c = A[h] * softplus(high + low)                                        (NOSA, eviction head)
 */
struct nosa_qkv_write_params {
    const struct nosa_batch_view *batch;
    const struct nosa_kv_view *kv;
    int32_t layer;
    int32_t n_heads;
    float *qkv;                  /* [n_rows][qkv_stride] */
    int64_t qkv_stride;          /* elements */
    const float *rope_table;     /* [n_rows][head_dim / 2][2] */
    const float *eviction_scale; /* A [n_kv_heads], or NULL without an eviction head */
};

/* Forms the compressed keys and window biases C of every window whose last token is a row of this
 * batch: means over kernel_size stored keys (biases), summed in float32 with tokens ascending, then
 * multiplied by 1 / kernel_size and, for the compressed key, rounded to the KV type. Reads the
 * records of the window's blocks. Runs after qkv_write of the same layer. */
struct nosa_compress_keys_params {
    const struct nosa_batch_view *batch;
    const struct nosa_kv_view *kv;
    int32_t layer;
    bool has_bias; /* without an eviction head C is not formed */
};

/*
 * Selection: which blocks each row attends to, per KV head (InfLLM-V2's query-aware score, then
 * NOSA's two cuts). Reads summaries only.
 *
 *   p_i[j]   softmax over windows j with kernel_stride * j + kernel_size - 1 <= t of
 *            q_i . ck_j / sqrt(head_dim)
 *   S_j      sum of p_i[j] over the query heads i of the group
 *   B_b      max of S_j, E_b max of C_j over visible windows j = r b - 1 .. r b + r - 1;
 *            with none B = 0, E = -inf
 *   forced   b < init_blocks, and qb - window_blocks <= b <= qb
 *   first    forced and the best by B, first_cut in all
 *   second   (NOSA) and the best by E, topk in all; (INFLLMV2) and the next best by B
 *
 * Ties go to the lower block; an S or C that is NaN counts for nothing. If no more than topk blocks
 * are visible, all are selected. Without an eviction head every E is -inf.
 */
struct nosa_select_blocks_params {
    const struct nosa_batch_view *batch;
    const struct nosa_kv_view *kv;
    int32_t layer;
    enum nosa_attention_mode mode; /* NOSA or INFLLMV2 */
    bool has_bias;
    int32_t n_heads; /* query heads in q: n_kv_heads groups of n_heads / n_kv_heads */
    const float *q;  /* [n_rows][q_stride], rotated */
    int64_t q_stride;
    float scale; /* 1 / sqrt(head_dim) */
    int32_t init_blocks;
    int32_t window_blocks; /* window_size / 64 */
    int32_t first_cut;     /* init_blocks + window_blocks + select_blocks */
    int32_t topk;
    int32_t *selected;       /* [n_rows][n_kv_heads][topk] logical blocks, ascending */
    int32_t *selected_count; /* [n_rows][n_kv_heads] */
    /* For tests and traces, or NULL: B and E of each visible block. */
    float *block_score; /* [n_rows][n_kv_heads][score_stride] */
    float *block_bias;  /* [n_rows][n_kv_heads][score_stride] */
    int64_t score_stride;
};

/* Query heads per KV head that attention takes at most. */
#define NOSA_GROUP_MAX 64

/* Entries of a row's ascending block list are attended to in runs of this many: the partial result
 * of a run (m, l, acc) is formed on its own, and partials are merged in list order. Where a block
 * lies, and when it arrives, therefore changes no bit. */
#define NOSA_ATTENTION_RUN_BLOCKS 8

/*
 * Attention of each row over the tokens <= its position in its blocks:
 *
 *   s_t = (q . k_t) * scale + c_t ;  of a run: m = max s, p_t = exp(s_t - m), l = sum p_t,
 *   acc = sum p_t v_t ;  merge: M = max(m1, m2), l = l1 e^(m1-M) + l2 e^(m2-M), acc likewise;
 *   out = acc / l (formed as acc * (1 / l) + 0)
 *
 * q . k is one chain over dimensions ascending, acc one chain over tokens ascending (masked tokens
 * have p = 0), l is summed in 16 interleaved lanes. `head_first` and `head_count` choose which
 * query heads of every group this rank attends with (replicated KV heads under tensor
 * parallelism); out has n_kv_heads * head_count heads.
 *
 * Parts: a list may be attended to in several calls, so that no more of its records need be at hand
 * than one part has. A call takes entries entry_first .. entry_first + entry_count - 1 of every
 * row's list, from zero up, each part where the one before ended; `state` carries what is merged so
 * far, and the call that holds a row's last entry writes its output. Runs are the same whatever the
 * parts, and so are the bits. A row whose list ended before is left alone.
 */
struct nosa_attention_params {
    const struct nosa_batch_view *batch;
    const struct nosa_kv_view *kv;
    int32_t layer;
    bool has_bias;
    int32_t n_heads; /* query heads in q */
    int32_t head_first;
    int32_t head_count; /* at most n_heads / n_kv_heads - head_first */
    const float *q;     /* [n_rows][q_stride], rotated */
    int64_t q_stride;
    float scale;
    const int32_t *selected;       /* [n_rows][n_kv_heads][topk], or NULL: every visible block */
    const int32_t *selected_count; /* [n_rows][n_kv_heads] */
    int32_t topk;
    float *out; /* [n_rows][out_stride] */
    int64_t out_stride;
    int32_t entry_first; /* of a part: multiples of NOSA_ATTENTION_RUN_BLOCKS */
    int32_t entry_count; /* 0: all entries, and no state */
    float *state;        /* [n_rows][n_kv_heads * head_count][head_dim + 2] acc, m, l; with parts */
};

/* x += y, element by element. */
struct nosa_add_params {
    int64_t n;
    float *x;
    const float *y;
};

/* How one row's next token is drawn. Zero-initialised means greedy with nothing else. */
struct nosa_sampling {
    float temperature;        /* 0: greedy */
    float top_p;              /* 0 or 1: off */
    int32_t top_k;            /* 0: off */
    float min_p;              /* 0: off */
    float repetition_penalty; /* 0 or 1: off */
    float presence_penalty;
    float frequency_penalty;
    uint64_t seed;
};

/* Whether the row's history matters. */
static inline bool nosa_sampling_has_penalties(const struct nosa_sampling *sampling)
{
    return (sampling->repetition_penalty > 0 && sampling->repetition_penalty != 1) ||
           sampling->presence_penalty != 0 || sampling->frequency_penalty != 0;
}

#define NOSA_TOP_LOGPROBS_MAX 20

struct nosa_sample_result {
    int32_t token;
    float logprob; /* natural log, of the distribution before penalties and temperature; NaN says
                      that the row's logits were no distribution */
    int32_t n_top;
    int32_t top_token[NOSA_TOP_LOGPROBS_MAX]; /* descending probability, ties to the lower id */
    float top_logprob[NOSA_TOP_LOGPROBS_MAX];
};

/*
 * Draws a token per row. Order: penalties, then greedy (the largest logit, ties to the lower id) or
 * temperature, top-k, top-p, min-p over the distribution after temperature, and a draw by the
 * Gumbel-max rule: the largest logit / temperature - log(-log(u)), u from Philox4x32-10 keyed by
 * the seed with counter (position, token), so that the draw depends on neither backend nor batch.
 * (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3".)
 *
 * Repetition penalty p divides positive and multiplies negative logits of every token in prompt or
 * output; presence and frequency penalties subtract for tokens in the output. A row without
 * penalties may have an empty history.
 *
 * Logits may be -inf. A row that holds NaN or +inf, or nothing but -inf, is reported by a logprob
 * of NaN; its token is still one of the vocabulary (NaN counts as -inf, +inf as FLT_MAX), so that
 * one broken row harms no other.
 */
struct nosa_sample_params {
    int32_t n_rows;
    int32_t vocab;
    const float *logits;                  /* [n_rows][vocab] */
    const struct nosa_sampling *sampling; /* [n_rows] */
    const int64_t *position;              /* [n_rows] of the token that is drawn */
    const int32_t *n_top; /* [n_rows] top logprobs wanted, at most NOSA_TOP_LOGPROBS_MAX */
    /* Prompt and output tokens of row i: history_tokens[history_start[i] .. history_start[i + 1]),
     * of which the first prompt_length[i] are the prompt's. */
    const int32_t *history_start; /* [n_rows + 1] */
    const int32_t *history_tokens;
    const int32_t *prompt_length;      /* [n_rows] */
    struct nosa_sample_result *result; /* [n_rows] */
};

/* logprob[i] = log softmax(logits[i])[target[i]], natural log. The normaliser is summed in double
 * over runs of 1024 terms that are each summed in float32. NaN for a row that is no distribution,
 * as in sampling. */
struct nosa_log_prob_params {
    int32_t n_rows;
    int32_t vocab;
    const float *logits;   /* [n_rows][vocab] */
    const int32_t *target; /* [n_rows] */
    float *logprob;        /* [n_rows] */
};

struct nosa_op_table {
    enum nosa_status (*embed)(struct nosa_stream *, const struct nosa_embed_params *);
    enum nosa_status (*rms_norm)(struct nosa_stream *, const struct nosa_rms_norm_params *);
    enum nosa_status (*matmul)(struct nosa_stream *, const struct nosa_matmul_params *);
    enum nosa_status (*rope_table)(struct nosa_stream *, const struct nosa_rope_table_params *);
    enum nosa_status (*qkv_write)(struct nosa_stream *, const struct nosa_qkv_write_params *);
    enum nosa_status (*compress_keys)(struct nosa_stream *,
                                      const struct nosa_compress_keys_params *);
    enum nosa_status (*select_blocks)(struct nosa_stream *,
                                      const struct nosa_select_blocks_params *);
    enum nosa_status (*attention)(struct nosa_stream *, const struct nosa_attention_params *);
    enum nosa_status (*add)(struct nosa_stream *, const struct nosa_add_params *);
    enum nosa_status (*sample)(struct nosa_stream *, const struct nosa_sample_params *);
    enum nosa_status (*log_prob)(struct nosa_stream *, const struct nosa_log_prob_params *);
    enum nosa_status (*kv_update)(struct nosa_stream *, const struct nosa_kv_update_params *);
    enum nosa_status (*kv_load)(struct nosa_stream *, const struct nosa_kv_load_params *);
    enum nosa_status (*kv_place)(struct nosa_stream *, const struct nosa_kv_place_params *);
    enum nosa_status (*kv_fetch)(struct nosa_stream *, const struct nosa_kv_fetch_params *);
    enum nosa_status (*kv_resolve)(struct nosa_stream *, const struct nosa_kv_resolve_params *);
    enum nosa_status (*kv_save)(struct nosa_stream *, const struct nosa_kv_save_params *);
};

#endif
