"""Which blocks a query reads: NOSA's two cuts, and the selections it is compared with.

Works on a chunk of consecutive queries of one layer. No gradient passes through a selection.
Shapes: queries [kv_heads, group, chunk, head_dim], keys [kv_heads, tokens, head_dim] as stored,
biases c [kv_heads, tokens], scores and choices [kv_heads, chunk, blocks].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

SCORES = ("windows", "quest", "mass", "none")
"""What ranks blocks for a query: mean keys of windows, Quest's upper bound, the true attention
mass, or nothing (the blocks next to the local ones)."""
ORDERS = ("bias", "recency", "index", "oracle", "query")
"""What ranks blocks for every query: the biases, recency, the index, what later queries will want;
or the second cut goes by the query too (InfLLM-V2)."""


@dataclass(frozen=True)
class Sizes:
    """A sparse_config."""

    kernel_size: int = 32
    kernel_stride: int = 16
    init_blocks: int = 1
    block_size: int = 64
    window_size: int = 1024
    topk: int = 64
    select_blocks: int = 16

    @staticmethod
    def of(config: Mapping[str, int]) -> Sizes:
        """The sizes in a config's sparse_config, defaults where a key is missing."""
        names = Sizes.__dataclass_fields__
        return Sizes(**{key: int(value) for key, value in config.items() if key in names})

    @property
    def first_places(self) -> int:
        """How many blocks the first cut leaves."""
        return self.init_blocks + self.window_size // self.block_size + self.select_blocks

    @property
    def ratio(self) -> int:
        """Windows that begin in a block."""
        return self.block_size // self.kernel_stride


def window_means(rows: Tensor, size: int, stride: int) -> Tensor:
    """Mean of each complete window along dimension 1, summed in ascending order."""
    count = max(0, (rows.shape[1] - size) // stride + 1)
    if count == 0:
        return rows[:, :0]
    total = rows[:, 0 : (count - 1) * stride + 1 : stride]
    for step in range(1, size):
        total = total + rows[:, step : step + (count - 1) * stride + 1 : stride]
    return total / size


def block_maxima(windows: Tensor, blocks: int, ratio: int, empty: float) -> Tensor:
    """Maximum over windows ratio*b - 1 .. ratio*b + ratio - 1 of each block b, last dimension."""
    missing = max(0, ratio * blocks - windows.shape[-1])
    padded = torch.nn.functional.pad(windows, (1, missing), value=empty)[..., : ratio * blocks + 1]
    own = padded[..., 1:].unflatten(-1, (blocks, ratio)).amax(-1)
    return torch.maximum(own, padded[..., : ratio * blocks : ratio])


def agnostic_scores(biases: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """E [kv_heads, blocks] with all windows of a block, and without its last one.

    The last window of a block ends in the next block; a query that does not see it yet needs the
    second form.
    """
    blocks = -(-biases.shape[1] // sizes.block_size)
    means = window_means(biases, sizes.kernel_size, sizes.kernel_stride)
    whole = block_maxima(means, blocks, sizes.ratio, -math.inf)
    last = torch.arange(means.shape[1], device=biases.device) % sizes.ratio == sizes.ratio - 1
    early = block_maxima(means.masked_fill(last, -math.inf), blocks, sizes.ratio, -math.inf)
    return whole, torch.maximum(early, _shared_first(means, blocks, sizes.ratio))


def _shared_first(means: Tensor, blocks: int, ratio: int) -> Tensor:
    """The mean of window ratio*b - 1 of each block b, which the block before ends with."""
    first = torch.full((means.shape[0], blocks), -math.inf, device=means.device, dtype=means.dtype)
    tail = means[:, ratio - 1 :: ratio][:, : blocks - 1]
    first[:, 1 : 1 + tail.shape[1]] = tail
    return first


@dataclass
class LayerKeys:
    """What selection reads of a layer."""

    keys: Tensor
    compressed: Tensor
    """Mean keys of windows, rounded as the model stores them."""
    upper: Tensor
    lower: Tensor
    """Largest and smallest value of each dimension of a block's keys [kv_heads, blocks, dim]."""
    agnostic: tuple[Tensor, Tensor]
    """E, as agnostic_scores gives it, or another order in the same form."""


def describe_layer(
    keys: Tensor, biases: Tensor, sizes: Sizes, is_16_bit: bool, order: str, score: str
) -> LayerKeys:
    """Prepares a layer's keys and biases for selection."""
    compressed = window_means(keys, sizes.kernel_size, sizes.kernel_stride)
    if is_16_bit:
        compressed = compressed.to(torch.bfloat16).to(keys.dtype)
    blocks = -(-keys.shape[1] // sizes.block_size)
    upper = lower = compressed
    if score == "quest":
        missing = blocks * sizes.block_size - keys.shape[1]
        folds = [
            torch.nn.functional.pad(keys, (0, 0, 0, missing), value=v).unflatten(
                1, (blocks, sizes.block_size)
            )
            for v in (-math.inf, math.inf)
        ]
        upper, lower = folds[0].amax(2), folds[1].amin(2)
    if order == "bias":
        agnostic = agnostic_scores(biases, sizes)
    else:
        index = torch.arange(blocks, device=keys.device, dtype=keys.dtype)
        ranks = (index if order == "recency" else 0 * index).expand(keys.shape[0], -1)
        agnostic = (ranks, ranks)
    return LayerKeys(keys, compressed, upper, lower, agnostic)


def query_scores(
    queries: Tensor, layer: LayerKeys, start: int, sizes: Sizes, score: str, biases: Tensor
) -> Tensor:
    """B [kv_heads, chunk, blocks] for the queries at positions start, start + 1, ..."""
    chunk, scale = queries.shape[2], 1 / math.sqrt(queries.shape[3])
    stop = start + chunk
    blocks = -(-stop // sizes.block_size)
    position = torch.arange(start, stop, device=queries.device)[:, None]
    if score == "windows":
        count = max(0, (stop - sizes.kernel_size) // sizes.kernel_stride + 1)
        logits = (queries * scale) @ layer.compressed[:, None, :count].transpose(-1, -2)
        seen = max(0, (start + 1 - sizes.kernel_size) // sizes.kernel_stride + 1)
        index = torch.arange(seen, count, device=queries.device)[None, :]
        hidden = index * sizes.kernel_stride + sizes.kernel_size - 1 > position
        logits[..., seen:].masked_fill_(hidden, -math.inf)
        weights = torch.softmax(logits, -1)
        if seen == 0:
            weights = weights.nan_to_num(0.0)
        return block_maxima(weights.sum(1), blocks, sizes.ratio, 0.0)
    hidden = torch.arange(blocks, device=queries.device)[None, :] * sizes.block_size > position
    if score == "quest":
        logits = queries.clamp_min(0) @ layer.upper[:, None, :blocks].transpose(-1, -2)
        logits = logits + queries.clamp_max(0) @ layer.lower[:, None, :blocks].transpose(-1, -2)
        return torch.softmax((logits * scale).masked_fill(hidden, -math.inf), -1).sum(1)
    if score == "mass":
        return block_mass(queries, layer.keys[:, :stop], biases[:, :stop], start, sizes)
    return torch.zeros(queries.shape[0], chunk, blocks, device=queries.device)


def block_mass(queries: Tensor, keys: Tensor, biases: Tensor, start: int, sizes: Sizes) -> Tensor:
    """Share of the attention that falls on each block, summed over the group."""
    position = torch.arange(start, start + queries.shape[2], device=queries.device)[:, None]
    hidden = torch.arange(keys.shape[1], device=queries.device)[None, :] > position
    logits = (queries / math.sqrt(queries.shape[3])) @ keys[:, None].transpose(-1, -2)
    logits = (logits + biases[:, None, None, :]).masked_fill(hidden, -math.inf)
    weights = torch.softmax(logits, -1).sum(1)
    missing = -keys.shape[1] % sizes.block_size
    weights = torch.nn.functional.pad(weights, (0, missing))
    return weights.unflatten(-1, (-1, sizes.block_size)).sum(-1)


def best_others(scores: Tensor, chosen: Tensor, visible: Tensor, total: int) -> Tensor:
    """`chosen` and the best visible blocks beside it, `total` in all; ties: the lower index."""
    ranked = scores.masked_fill(~visible, -math.inf).masked_fill(chosen, math.inf)
    order = torch.sort(ranked, dim=-1, descending=True, stable=True).indices[..., :total]
    return torch.zeros_like(visible.expand_as(scores)).scatter_(-1, order, True) & visible


def forced_and_visible(
    start: int, stop: int, sizes: Sizes, local_blocks: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """[chunk, blocks]: blocks that are always read, and those that exist, for each query."""
    own = torch.arange(start, stop, device=device)[:, None] // sizes.block_size
    index = torch.arange(-(-stop // sizes.block_size), device=device)[None, :]
    visible = index <= own
    return visible & ((index < sizes.init_blocks) | (index >= own - local_blocks)), visible


@torch.no_grad()
def select(
    queries: Tensor,
    layer: LayerKeys,
    start: int,
    sizes: Sizes,
    score: str,
    order: str,
    biases: Tensor,
) -> Tensor:
    """The blocks [kv_heads, chunk, blocks] that each query of the chunk reads."""
    stop = start + queries.shape[2]
    local = sizes.window_size // sizes.block_size
    if score == "none":
        local = max(local, sizes.topk - sizes.init_blocks - 1)
    forced, visible = forced_and_visible(start, stop, sizes, local, queries.device)
    heads = queries.shape[0]
    if score == "none":
        return forced.expand(heads, -1, -1)
    wanted = query_scores(queries, layer, start, sizes, score, biases)
    forced, visible = (mask.expand(heads, -1, -1) for mask in (forced, visible))
    if order == "query":
        return best_others(wanted, forced, visible, sizes.topk)
    first = best_others(wanted, forced, visible, sizes.first_places)
    return best_others(standing(layer, start, stop, sizes), first, visible, sizes.topk)


def standing(layer: LayerKeys, start: int, stop: int, sizes: Sizes) -> Tensor:
    """E [kv_heads, chunk, blocks] as each query sees it."""
    whole, early = layer.agnostic
    index = torch.arange(-(-stop // sizes.block_size), device=whole.device)[None, :]
    position = torch.arange(start, stop, device=whole.device)[:, None]
    ended = (index + 1) * sizes.block_size + sizes.kernel_stride - 1 <= position
    blocks = index.shape[1]
    return torch.where(ended, whole[:, None, :blocks], early[:, None, :blocks])
