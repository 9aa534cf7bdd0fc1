#!/usr/bin/env python3
"""Holds the reference's vectorised selection and attention against loops that follow the seven
steps.

For random queries, keys, values and biases of one layer, and several sparse configurations, every
position's selected blocks are computed again one query at a time, with plain loops over windows
and blocks and with sorted lists; so is the attention over the selected tokens. Fails on any
difference of a selection, and on a difference of an output above rounding.
"""

from __future__ import annotations

import math
import random
import sys

import numpy as np
from nosa_reference import MODES, SPARSE_DEFAULTS, Model, attend, select_blocks

BOUND = 1e-12
CONFIGS = (
    {"kernel_size": 32, "kernel_stride": 16, "window_size": 128, "topk": 8, "select_blocks": 3},
    {"kernel_size": 8, "kernel_stride": 4, "window_size": 64, "topk": 6, "select_blocks": 3},
    {"kernel_size": 128, "kernel_stride": 64, "window_size": 128, "topk": 7, "select_blocks": 2},
    {"kernel_size": 64, "kernel_stride": 32, "window_size": 0, "topk": 5, "select_blocks": 4},
    {"kernel_size": 32, "kernel_stride": 16, "init_blocks": 0, "window_size": 64, "topk": 4},
    {"kernel_size": 32, "kernel_stride": 16, "init_blocks": 2, "window_size": 64, "topk": 5},
)


def softmax(values: list[float]) -> list[float]:
    """Softmax of a list."""
    peak = max(values)
    weights = [math.exp(value - peak) for value in values]
    return [weight / sum(weights) for weight in weights]


def selected_by_loops(
    sparse: dict[str, int],
    mode: str,
    t: int,
    queries: np.ndarray,
    compressed: list[np.ndarray],
    window_biases: list[float],
) -> list[int]:
    """The blocks that the query at position t reads; queries [group, head_dim]."""
    size, stride, block = sparse["kernel_size"], sparse["kernel_stride"], sparse["block_size"]
    last, ratio = t // block, block // stride
    visible = [j for j in range(len(compressed)) if j * stride + size - 1 <= t]
    summed = dict.fromkeys(visible, 0.0)
    for query in queries if visible else ():
        scores = [float(query @ compressed[j]) / math.sqrt(len(query)) for j in visible]
        for j, share in zip(visible, softmax(scores)):
            summed[j] += share
    query_score, agnostic_score = {}, {}
    for b in range(last + 1):
        own = [j for j in range(ratio * b - 1, ratio * b + ratio) if j in summed]
        query_score[b] = max((summed[j] for j in own), default=0.0)
        agnostic_score[b] = max((window_biases[j] for j in own), default=-math.inf)
    blocks = list(range(last + 1))
    if mode == "full" or len(blocks) <= sparse["topk"]:
        return blocks
    window = sparse["window_size"] // block
    chosen = {b for b in blocks if b < sparse["init_blocks"] or b >= last - window}
    second = agnostic_score if mode == "nosa" else query_score
    first_cut = sparse["init_blocks"] + window + sparse["select_blocks"]
    for score, total in ((query_score, first_cut), (second, sparse["topk"])):
        others = sorted((b for b in blocks if b not in chosen), key=lambda b: (-score[b], b))
        chosen |= set(others[: max(0, total - len(chosen))])
    return sorted(chosen)


def check(sparse: dict[str, int], mode: str, generator: np.random.Generator) -> tuple[int, float]:
    """Positions with another selection, and the largest error of an output, of one random layer."""
    tokens, group, head_dim = random.choice((700, 777, 832)), random.choice((1, 3)), 16
    keys = generator.normal(size=(tokens // 32 + 1, head_dim)).repeat(32, axis=0)[:tokens]
    keys = keys + generator.normal(size=(tokens, head_dim))
    values = generator.normal(size=(tokens, head_dim))
    queries = 2 * generator.normal(size=(group, tokens, head_dim))
    biases = generator.normal(size=tokens)
    model = Model({}, {}, False, sparse, np.empty(0), 1.0)
    result = select_blocks(model, mode, queries[None], keys[None], biases[None])

    size, stride, block = sparse["kernel_size"], sparse["kernel_stride"], sparse["block_size"]
    starts = range(0, tokens - size + 1, stride)
    compressed = [keys[start : start + size].mean(axis=0) for start in starts]
    window_biases = [float(biases[start : start + size].mean()) for start in starts]
    spread = result.selected[0].repeat(block, axis=-1)[:, :tokens]
    out = attend(queries[0], keys, values, biases, spread & np.tri(tokens, dtype=bool))
    wrong, error = 0, 0.0
    for t in range(tokens):
        blocks = selected_by_loops(sparse, mode, t, queries[:, t], compressed, window_biases)
        wrong += blocks != np.flatnonzero(result.selected[0, t]).tolist()
        read = [s for b in blocks for s in range(block * b, min(block * b + block, t + 1))]
        scores = [float(queries[0, t] @ keys[s]) / math.sqrt(head_dim) + biases[s] for s in read]
        expected = np.array(softmax(scores)) @ values[read]
        error = max(error, float(np.abs(expected - out[t]).max()))
    return wrong, error


def main() -> int:
    """Runs all configurations and modes; 1 on a difference."""
    random.seed(11)
    generator = np.random.default_rng(11)
    failed = False
    for changes in CONFIGS:
        sparse = {**SPARSE_DEFAULTS, "select_blocks": 2, **changes}
        for mode in MODES:
            wrong, error = check(sparse, mode, generator)
            failed |= wrong > 0 or error > BOUND
            print(f"{str(changes):110s} {mode:9s} {wrong} selections differ, error {error:.1e}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
