#!/usr/bin/env python3
"""An independent reference of the NOSA decoder: NumPy, float64, one sequence, no cache.

It follows the definition of the algorithm step by step and shares no code with the product. The
forward pass takes a whole sequence at once. The output at a position depends on that position and
those before it alone, so row n - 1 is also what a prompt of the first n tokens gives.

What the product rounds, this rounds too: in a 16-bit checkpoint K and V are rounded once to
bfloat16, and compressed keys are float32 means (summed in ascending token order) rounded to
bfloat16. Everything else is float64. Biases c are computed from the values before they are
rounded.

As a program it prints the best tokens of the last position, or writes the logits to a .npy file.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

MODES = ("nosa", "infllmv2", "full")
SPARSE_DEFAULTS = {
    "kernel_size": 32,
    "kernel_stride": 16,
    "init_blocks": 1,
    "block_size": 64,
    "window_size": 1024,
    "topk": 64,
    "select_blocks": 16,
    "dense_len": 0,
}
QUERY_CHUNK = 512
"""Queries whose attention weights are in memory at once."""


def widen_bf16(bits: np.ndarray) -> np.ndarray:
    """float32 values of bfloat16 bit patterns."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def round_bf16(values: np.ndarray) -> np.ndarray:
    """The values rounded to float32 and then to bfloat16 (to nearest even), in float64."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    bits = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).astype(np.float64)


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], set[str]]:
    """All tensors of a file in float64, and the names of the types they were stored in."""
    data = np.fromfile(path, dtype=np.uint8)
    length = int(data[:8].view("<u8")[0])
    header = json.loads(data[8 : 8 + length].tobytes())
    header.pop("__metadata__", None)
    tensors = {}
    for name, info in header.items():
        begin, end = (8 + length + offset for offset in info["data_offsets"])
        raw = data[begin:end].copy()
        if info["dtype"] == "BF16":
            values = widen_bf16(raw.view("<u2"))
        else:
            values = raw.view({"F32": "<f4", "F16": "<f2"}[info["dtype"]])
        tensors[name] = values.astype(np.float64).reshape(info["shape"])
    return tensors, {info["dtype"] for info in header.values()}


def rope_parameters(config: dict[str, Any]) -> tuple[np.ndarray, float]:
    """Inverse frequencies [head_dim / 2], and the factor that cos and sin are multiplied by.

    The types none, linear, llama3, yarn and longrope mean what they mean in transformers' Llama.
    """
    dim = head_dim_of(config)
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    frequencies = config["rope_theta"] ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)
    if kind == "default":
        return frequencies, 1.0
    if kind == "linear":
        return frequencies / scaling["factor"], 1.0
    if kind == "llama3":
        return _llama3_frequencies(frequencies, scaling), 1.0
    if kind == "yarn":
        return _yarn_frequencies(frequencies, scaling, config), _yarn_attention_factor(scaling)
    if kind == "longrope":
        factors = np.asarray(scaling["short_factor"], dtype=np.float64)
        return frequencies / factors, _longrope_attention_factor(scaling, config)
    raise ValueError(f"rope type {kind} is not supported")


def _llama3_frequencies(frequencies: np.ndarray, scaling: dict[str, Any]) -> np.ndarray:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (keep + (1 - keep) / scaling["factor"])


def _yarn_frequencies(
    frequencies: np.ndarray, scaling: dict[str, Any], config: dict[str, Any]
) -> np.ndarray:
    """Dimensions that turn often are kept, those that turn rarely stretched, a ramp between."""
    dim, base = head_dim_of(config), config["rope_theta"]
    length = scaling.get("original_max_position_embeddings") or config["max_position_embeddings"]

    def dimension_that_turns(count: float) -> float:
        return dim * math.log(length / (count * 2 * math.pi)) / (2 * math.log(base))

    low = dimension_that_turns(scaling.get("beta_fast") or 32)
    high = dimension_that_turns(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    stretch = np.clip((np.arange(dim // 2) - low) / (high - low), 0.0, 1.0)
    return frequencies * (1 - stretch) + frequencies / scaling["factor"] * stretch


def _yarn_attention_factor(scaling: dict[str, Any]) -> float:
    """attention_factor, or its default; mscale and mscale_all_dim count where both are given."""
    if scaling.get("attention_factor") is not None:
        return scaling["attention_factor"]

    def grown(scale: float) -> float:
        return 1.0 if scaling["factor"] <= 1 else 0.1 * scale * math.log(scaling["factor"]) + 1.0

    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return grown(scaling["mscale"]) / grown(scaling["mscale_all_dim"])
    return grown(1.0)


def _longrope_attention_factor(scaling: dict[str, Any], config: dict[str, Any]) -> float:
    """attention_factor, or what it is by default from the ratio of the two context lengths."""
    if scaling.get("attention_factor") is not None:
        return scaling["attention_factor"]
    longest = config["max_position_embeddings"]
    original = scaling.get(
        "original_max_position_embeddings", config.get("original_max_position_embeddings")
    )
    ratio = longest / original if original else scaling["factor"]
    if ratio <= 1:
        return 1.0
    return math.sqrt(1 + math.log(ratio) / math.log(original or longest))


def head_dim_of(config: dict[str, Any]) -> int:
    """Size of one attention head."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


@dataclass
class Model:
    """A checkpoint in float64."""

    config: dict[str, Any]
    tensors: dict[str, np.ndarray]
    is_16_bit: bool
    sparse: dict[str, int]
    inverse_frequencies: np.ndarray
    attention_factor: float

    @property
    def has_eviction_head(self) -> bool:
        """Whether the layers have the tensors that the biases c come from."""
        return "model.layers.0.self_attn.A" in self.tensors

    def linear(self, name: str, rows: np.ndarray) -> np.ndarray:
        """rows x weight^T, plus the bias if the checkpoint has one."""
        result = rows @ self.tensors[name + ".weight"].T
        bias = self.tensors.get(name + ".bias")
        return result if bias is None else result + bias


def load_model(directory: Path) -> Model:
    """Reads a Hugging Face directory: one safetensors file or several."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    tensors: dict[str, np.ndarray] = {}
    types: set[str] = set()
    for path in sorted(directory.glob("*.safetensors")):
        part, part_types = read_safetensors(path)
        tensors.update(part)
        types |= part_types
    frequencies, factor = rope_parameters(config)
    return Model(
        config=config,
        tensors=tensors,
        is_16_bit="F32" not in types,
        sparse={**SPARSE_DEFAULTS, **(config.get("sparse_config") or {})},
        inverse_frequencies=frequencies,
        attention_factor=factor,
    )


@dataclass
class Selection:
    """What one layer selected. Arrays are [kv_heads, positions, blocks] unless said otherwise."""

    query_scores: np.ndarray
    """B: the query-aware block scores; 0 where a block has no visible window."""
    agnostic_scores: np.ndarray
    """E: the query-agnostic block scores; minus infinity where a block has no visible window."""
    selected: np.ndarray
    """Whether the query reads the block."""
    margins: np.ndarray
    """[kv_heads, positions]: the smallest difference of scores that decided a cut, relative to the
    scores; infinity where nothing was cut."""


def softmax_over_visible(scores: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Softmax along the last axis over the entries that are visible; all 0 where there are none."""
    masked = np.where(visible, scores, -np.inf)
    peak = masked.max(axis=-1, keepdims=True, initial=-np.inf)
    weights = np.exp(masked - np.where(np.isfinite(peak), peak, 0.0))
    total = weights.sum(axis=-1, keepdims=True)
    return weights / np.where(total > 0, total, 1.0)


def window_means(rows: np.ndarray, size: int, stride: int) -> np.ndarray:
    """Mean of each complete window of rows [tokens, ...], summed ascending in the rows' type."""
    count = max(0, (len(rows) - size) // stride + 1)
    total = np.zeros((count, *rows.shape[1:]), dtype=rows.dtype)
    for step in range(size):
        total += rows[step : step + (count - 1) * stride + 1 : stride] if count else 0
    return total / np.asarray(size, dtype=rows.dtype)


def block_maxima(windows: np.ndarray, blocks: int, ratio: int, empty: float) -> np.ndarray:
    """Maximum over windows ratio*b - 1 .. ratio*b + ratio - 1 of each block b, on the last axis."""
    reach = ratio * np.arange(blocks)[:, None] + np.arange(-1, ratio)[None, :]
    padding = [(0, 0)] * (windows.ndim - 1) + [(1, max(0, ratio * blocks - windows.shape[-1]))]
    padded = np.pad(windows, padding, constant_values=empty)
    return padded[..., reach + 1].max(axis=-1)


def cut_margin(scores: np.ndarray, inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """Smallest difference between a score inside the cut and another one outside, relative to them.

    Equal scores do not count: they are the score of one window that two blocks share, and the lower
    block index wins.
    """
    lowest = np.where(inside, scores, np.inf).min(axis=-1, keepdims=True)
    highest = np.where(outside, scores, -np.inf).max(axis=-1, keepdims=True)
    below = np.where(outside & (scores < lowest), scores, -np.inf).max(axis=-1)
    above = np.where(inside & (scores > highest), scores, np.inf).min(axis=-1)
    lowest, highest = lowest[..., 0], highest[..., 0]
    decided = np.isfinite(lowest) & np.isfinite(highest)
    with np.errstate(invalid="ignore"):
        gap = np.minimum(lowest - below, above - highest)
        size = np.maximum(np.abs(lowest), np.abs(highest))
        relative = np.where(size > 0, gap / size, gap)
    return np.where(decided, relative, np.inf)


def best_others(
    scores: np.ndarray, chosen: np.ndarray, visible: np.ndarray, total: int
) -> np.ndarray:
    """`chosen` and the best visible blocks beside it, `total` in all; ties: the lower index."""
    ranked = np.where(visible, scores, -np.inf)
    group = np.where(chosen, 0, np.where(visible, 1, 2))
    order = np.lexsort((np.broadcast_to(np.arange(scores.shape[-1]), scores.shape), -ranked, group))
    result = np.zeros_like(chosen)
    np.put_along_axis(result, order[..., :total], True, axis=-1)
    return result & visible


def first_places(sparse: dict[str, int]) -> int:
    """How many blocks the first cut leaves."""
    window_blocks = sparse["window_size"] // sparse["block_size"]
    return sparse["init_blocks"] + window_blocks + sparse["select_blocks"]


def select_blocks(
    model: Model, mode: str, queries: np.ndarray, keys: np.ndarray, biases: np.ndarray
) -> Selection:
    """Steps 1 to 7 for all positions of one layer.

    queries [kv_heads, group, tokens, head_dim], keys [kv_heads, tokens, head_dim] as stored,
    biases [kv_heads, tokens].
    """
    sparse = model.sparse
    size, stride, block = sparse["kernel_size"], sparse["kernel_stride"], sparse["block_size"]
    tokens = keys.shape[1]
    blocks, ratio = -(-tokens // block), block // stride
    position = np.arange(tokens)
    query_block = (position // block)[:, None]
    index = np.arange(blocks)[None, :]
    visible = index <= query_block
    local = index >= query_block - sparse["window_size"] // block
    forced = visible & ((index < sparse["init_blocks"]) | local)

    picks = [
        _block_scores(model, queries[head], keys[head], biases[head], size, stride, blocks, ratio)
        for head in range(keys.shape[0])
    ]
    query_scores = np.stack([pick[0] for pick in picks])
    agnostic_scores = np.stack([pick[1] for pick in picks])
    shape = query_scores.shape
    visible, forced = np.broadcast_to(visible, shape), np.broadcast_to(forced, shape)
    margins = np.full(shape[:2], np.inf)
    if mode == "full":
        return Selection(query_scores, agnostic_scores, visible, margins)

    first = best_others(query_scores, forced, visible, first_places(sparse))
    second_scores = agnostic_scores if mode == "nosa" else query_scores
    second = best_others(second_scores, first, visible, sparse["topk"])
    cut = visible.sum(axis=-1) > sparse["topk"]
    selected = np.where(cut[..., None], second, visible)
    second_margin = cut_margin(second_scores, second & ~first, visible & ~second)
    if mode == "nosa":
        first_margin = cut_margin(query_scores, first & ~forced, visible & ~first)
        second_margin = np.minimum(first_margin, second_margin)
    return Selection(query_scores, agnostic_scores, selected, np.where(cut, second_margin, np.inf))


def _block_scores(
    model: Model,
    queries: np.ndarray,
    keys: np.ndarray,
    biases: np.ndarray,
    size: int,
    stride: int,
    blocks: int,
    ratio: int,
) -> tuple[np.ndarray, np.ndarray]:
    """B and E [tokens, blocks] of one KV head: steps 1 to 3."""
    tokens, head_dim = keys.shape
    if model.is_16_bit:
        compressed = round_bf16(window_means(keys.astype(np.float32), size, stride))
    else:
        compressed = window_means(keys, size, stride)
    windows = np.arange(len(compressed))
    visible = windows[None, :] * stride + size - 1 <= np.arange(tokens)[:, None]
    summed = np.zeros((tokens, len(compressed)))
    for query in queries:
        summed += softmax_over_visible(query @ compressed.T / math.sqrt(head_dim), visible)
    means = np.where(visible, window_means(biases, size, stride)[None, :], -np.inf)
    return (
        block_maxima(summed, blocks, ratio, empty=0.0),
        block_maxima(means, blocks, ratio, empty=-np.inf),
    )


@dataclass
class Output:
    """Logits [rows, vocabulary] in float64, and what each layer selected."""

    logits: np.ndarray
    selections: list[Selection] = field(default_factory=list)


def rms_norm(rows: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    """Rows divided by their root mean square, times the weight."""
    return rows / np.sqrt(np.mean(rows * rows, axis=-1, keepdims=True) + epsilon) * weight


def rotate(heads: np.ndarray, cosines: np.ndarray, sines: np.ndarray) -> np.ndarray:
    """Rotary positions, half-split layout: heads [heads, tokens, head_dim], cos and sin
    [tokens, head_dim / 2]."""
    low, high = np.split(heads, 2, axis=-1)
    return np.concatenate([low * cosines - high * sines, high * cosines + low * sines], axis=-1)


def rotation(model: Model, tokens: int, float32_angles: bool) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of all positions; with float32_angles the angles are rounded to float32."""
    frequencies, positions = model.inverse_frequencies, np.arange(tokens)
    if float32_angles:
        frequencies, positions = frequencies.astype(np.float32), positions.astype(np.float32)
    angles = np.outer(positions, frequencies).astype(np.float64)
    return np.cos(angles) * model.attention_factor, np.sin(angles) * model.attention_factor


def token_biases(model: Model, prefix: str, values: np.ndarray) -> np.ndarray:
    """c [kv_heads, tokens], from all KV heads' values end to end [tokens, kv_heads * head_dim]."""
    if not model.has_eviction_head:
        return np.zeros((model.config["num_key_value_heads"], len(values)))
    projected = model.linear(prefix + "delta", values)
    return (model.tensors[prefix + "A"] * np.logaddexp(0.0, projected)).T


def attend(
    queries: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    biases: np.ndarray,
    allowed: np.ndarray,
) -> np.ndarray:
    """Attention of one query head; allowed [tokens, tokens]: what each query may read.

    Nothing after a query is ever allowed, so a chunk of queries needs the keys up to its end.
    """
    out = np.empty_like(queries)
    for start in range(0, len(queries), QUERY_CHUNK):
        stop = start + QUERY_CHUNK
        scores = queries[start:stop] @ keys[:stop].T / math.sqrt(keys.shape[1]) + biases[:stop]
        weights = softmax_over_visible(scores, allowed[start:stop, :stop])
        out[start:stop] = weights @ values[:stop]
    return out


def attention(
    model: Model, prefix: str, rows: np.ndarray, mode: str, turn: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, Selection]:
    """The attention part of one layer, over normalised rows [tokens, hidden]."""
    config, head_dim, tokens = model.config, head_dim_of(model.config), len(rows)
    kv_heads = config["num_key_value_heads"]

    def split(name: str) -> np.ndarray:
        return model.linear(prefix + name, rows).reshape(tokens, -1, head_dim).swapaxes(0, 1)

    queries, keys, values = (
        rotate(split("q_proj"), *turn),
        rotate(split("k_proj"), *turn),
        split("v_proj"),
    )
    biases = token_biases(model, prefix, values.swapaxes(0, 1).reshape(tokens, -1))
    if model.is_16_bit:
        keys, values = round_bf16(keys), round_bf16(values)
    grouped = queries.reshape(kv_heads, -1, tokens, head_dim)
    selection = select_blocks(model, mode, grouped, keys, biases)

    causal = np.tril(np.ones((tokens, tokens), dtype=bool))
    outputs = []
    for head in range(kv_heads):
        spread = np.repeat(selection.selected[head], model.sparse["block_size"], axis=-1)[
            :, :tokens
        ]
        allowed = spread & causal
        for query in grouped[head]:
            outputs.append(attend(query, keys[head], values[head], biases[head], allowed))
    joined = np.stack(outputs, axis=1).reshape(tokens, -1)
    return model.linear(prefix + "o_proj", joined), selection


def forward(
    model: Model,
    token_ids: Sequence[int],
    mode: str,
    rows: Sequence[int] | None = None,
    float32_angles: bool = False,
) -> Output:
    """Logits at the positions `rows` (all by default), with every layer's selection."""
    epsilon, tensors = model.config["rms_norm_eps"], model.tensors
    hidden = tensors["model.embed_tokens.weight"][np.asarray(token_ids)]
    turn = rotation(model, len(token_ids), float32_angles)
    selections = []
    for layer in range(model.config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        normed = rms_norm(hidden, tensors[prefix + "input_layernorm.weight"], epsilon)
        attended, selection = attention(model, prefix + "self_attn.", normed, mode, turn)
        selections.append(selection)
        hidden = hidden + attended
        normed = rms_norm(hidden, tensors[prefix + "post_attention_layernorm.weight"], epsilon)
        gate = model.linear(prefix + "mlp.gate_proj", normed)
        gated = gate / (1 + np.exp(-gate)) * model.linear(prefix + "mlp.up_proj", normed)
        hidden = hidden + model.linear(prefix + "mlp.down_proj", gated)
    wanted = hidden if rows is None else hidden[np.asarray(rows)]
    final = rms_norm(wanted, tensors["model.norm.weight"], epsilon)
    tied = model.config.get("tie_word_embeddings", False)
    head = tensors["model.embed_tokens.weight" if tied else "lm_head.weight"]
    return Output(final @ head.T, selections)


def main() -> int:
    """Runs one prompt."""
    parser = argparse.ArgumentParser(description="Runs the NOSA decoder's float64 reference.")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--tokens", required=True, metavar="IDS", help="prompt: ids with commas between"
    )
    parser.add_argument(
        "--mode", choices=MODES, help="default: nosa with an eviction head, else full"
    )
    parser.add_argument(
        "--logits", type=Path, metavar="FILE", help="write the logits of all positions here"
    )
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    mode = arguments.mode or ("nosa" if model.has_eviction_head else "full")
    token_ids = [int(text) for text in arguments.tokens.split(",")]
    logits = forward(model, token_ids, mode, rows=None if arguments.logits else [-1]).logits
    if arguments.logits:
        np.save(arguments.logits, logits)
    for token in np.argsort(-logits[-1])[:10]:
        print(f"{token:8d} {logits[-1, token]:14.8f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
