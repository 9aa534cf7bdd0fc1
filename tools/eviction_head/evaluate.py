"""Scores attention modes and heads beside the plain model: perplexity by position, agreement,
hit rates, retrieval.

Every case is scored on the same windows, so that differences are paired. The plain model reads
every block with c = 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

import selection
from llama import Llama, LowRank, Plan, Record
from probes import Haystack

ROWS = 1024
"""Positions whose logits are in memory at once."""
BUCKET = 256
"""Positions whose losses are summed into one figure."""
TIERS = (1.5, 2.0)
"""Sizes of a first tier, in selected sets, for which hits are counted."""


@dataclass
class Case:
    """What is scored: a way to attend, perhaps with changed weights."""

    name: str
    plan: Plan
    low_rank: LowRank | None = None


@dataclass
class Tally:
    """What a case scored on a window."""

    loss: np.ndarray
    """[buckets] summed negative log-likelihood, in nats; token 0 is not predicted."""
    divergence: float
    """Mean divergence from the plain model where selection is at work."""
    agreement: float
    """Share of those positions where the likeliest token is the plain model's."""
    hits: float = math.nan
    """Share of the selected blocks that the previous step selected too."""
    tiers: dict[str, float] = field(default_factory=dict)
    """Hit rates of larger first tiers, by policy."""


@torch.no_grad()
def hidden_of(model: Llama, case: Case | None, ids: Tensor, record: Record | None = None) -> Tensor:
    """The last hidden rows of a case; None: the plain model."""
    plan = Plan(model.sizes, full=True) if case is None else case.plan
    model.low_rank = None if case is None else case.low_rank
    try:
        return model.hidden(ids, plan, record)
    finally:
        model.low_rank = None


@torch.no_grad()
def losses(
    model: Llama,
    hidden: Tensor,
    plain: Tensor,
    ids: Tensor,
    first: int,
) -> tuple[np.ndarray, float, float]:
    """Summed losses by bucket, divergence and agreement from position `first` on."""
    count = len(ids) - 1
    each = torch.empty(count, device=model.device)
    divergence = agreed = 0.0
    for start in range(0, count, ROWS):
        stop = min(start + ROWS, count)
        ours = torch.log_softmax(model.logits(hidden[start:stop]), -1)
        each[start:stop] = -ours.gather(1, ids[start + 1 : stop + 1, None])[:, 0]
        if stop > first:
            theirs = torch.log_softmax(model.logits(plain[start:stop]), -1)
            rows = slice(max(0, first - start), None)
            divergence += float((theirs.exp() * (theirs - ours)).sum(-1)[rows].sum())
            agreed += float((theirs.argmax(-1) == ours.argmax(-1))[rows].sum())
    padded = torch.nn.functional.pad(each, (1, -(count + 1) % BUCKET)).double()
    rest = max(1, count - first)
    return padded.unflatten(0, (-1, BUCKET)).sum(1).cpu().numpy(), divergence / rest, agreed / rest


@torch.no_grad()
def hit_rate(selected: Sequence[Tensor], first: int, block: int) -> float:
    """Share of each step's blocks that the step before selected; the step's own block counts."""
    hits = total = 0
    for chosen in selected:
        now, before = chosen[:, first + 1 :], chosen[:, first:-1]
        own = torch.arange(first + 1, chosen.shape[1], device=chosen.device) // block
        fresh = torch.nn.functional.one_hot(own, chosen.shape[-1]).bool()
        hits += int((now & (before | fresh)).sum())
        total += int(now.sum())
    return hits / total


@torch.no_grad()
def tier_hits(selected: Sequence[Tensor], first: int, block: int, topk: int) -> dict[str, float]:
    """Hit rates of first tiers of several sizes from which the least recently used block goes.

    The tier is full from the start with what was visible last; selected blocks never go.
    """
    chosen = torch.cat([part[:, first:] for part in selected]).transpose(0, 1).contiguous()
    steps, rows, blocks = chosen.shape
    index = torch.arange(blocks, device=chosen.device)
    results = {}
    used = (
        torch.where(index <= first // block, index - blocks, -10 * blocks)
        .expand(len(TIERS), rows, -1)
        .clone()
    )
    capacity = [min(blocks, int(size * topk)) for size in TIERS]
    inside = torch.zeros_like(used, dtype=torch.bool)
    hits = torch.zeros(len(TIERS), device=chosen.device, dtype=torch.long)
    for step in range(steps):
        now = chosen[step]
        if step:
            known = inside.clone()
            known[..., (first + step) // block] = True
            hits += (known & now).sum((1, 2))
        used.masked_fill_(now, step)
        order = (used * blocks + index).topk(max(capacity), -1).values
        edge = torch.stack([order[n, :, size - 1] for n, size in enumerate(capacity)])
        inside = used * blocks + index >= edge[..., None]
    total = int(chosen[1:].sum())
    for number, size in enumerate(TIERS):
        results[f"lru_{size:g}"] = int(hits[number]) / total
    return results


@torch.no_grad()
def score_window(
    model: Llama,
    cases: Sequence[Case],
    ids: Tensor,
    tiers: bool = False,
) -> list[Tally]:
    """Every case on one window."""
    plain = hidden_of(model, None, ids)
    tallies = []
    for case in cases:
        sizes = case.plan.sizes
        first = sizes.topk * sizes.block_size
        wants = not case.plan.full and len(ids) > first + 1
        record = Record() if wants else None
        hidden = hidden_of(model, case, ids, record)
        start = min(len(ids) // 4, 2048)
        tally = Tally(*losses(model, hidden, plain, ids, start))
        if record is not None:
            tally.hits = hit_rate(record.selected, first, sizes.block_size)
            if tiers:
                tally.tiers = tier_hits(record.selected, first, sizes.block_size, sizes.topk)
        tallies.append(tally)
    return tallies


@torch.no_grad()
def answers(model: Llama, case: Case | None, haystack: Haystack) -> list[list[bool]]:
    """Of each probe, whether each token of its answer is the likeliest one after those before."""
    ids = torch.as_tensor(haystack.ids, device=model.device)
    hidden = hidden_of(model, case, ids)
    right = []
    for probe in haystack.probes:
        best = model.logits(hidden[probe.begin - 1 : probe.end - 1]).argmax(-1)
        right.append((best == ids[probe.begin : probe.end]).tolist())
    return right


def perplexity(tallies: Sequence[Tally], length: int) -> float:
    """Perplexity of the first `length` tokens of all windows."""
    buckets = length // BUCKET
    total = sum(float(tally.loss[:buckets].sum()) for tally in tallies)
    return math.exp(total / (len(tallies) * (buckets * BUCKET - 1)))


def paired_percent(
    tallies: Sequence[Tally],
    others: Sequence[Tally],
    length: int,
) -> tuple[float, float]:
    """By how many per cent the perplexity is above the others', window by window: the mean, and
    its standard error."""
    buckets = length // BUCKET
    tokens = buckets * BUCKET - 1
    ratios = np.array(
        [
            (float(a.loss[:buckets].sum()) - float(b.loss[:buckets].sum())) / tokens
            for a, b in zip(tallies, others)
        ]
    )
    spread = float(ratios.std(ddof=1) / math.sqrt(len(ratios))) if len(ratios) > 1 else math.nan
    return 100 * math.expm1(float(ratios.mean())), 100 * spread


def summary(
    tallies: Sequence[Tally],
    plain: Sequence[Tally],
    lengths: Sequence[int],
) -> dict[str, Any]:
    """The figures of a case over all windows."""
    result: dict[str, Any] = {}
    for length in lengths:
        result[f"perplexity_{length}"] = perplexity(tallies, length)
        percent, spread = paired_percent(tallies, plain, length)
        result[f"percent_{length}"], result[f"spread_{length}"] = percent, spread
    result["divergence"] = float(np.mean([tally.divergence for tally in tallies]))
    result["agreement"] = float(np.mean([tally.agreement for tally in tallies]))
    hits = [tally.hits for tally in tallies if not math.isnan(tally.hits)]
    if hits:
        result["hits"] = float(np.mean(hits))
    tiers = [tally.tiers for tally in tallies if tally.tiers]
    for key in tiers[0] if tiers else ():
        result[key] = float(np.mean([entry[key] for entry in tiers]))
    return result


def standard_cases(model: Llama, head: Any, sizes: selection.Sizes) -> list[Case]:
    """The plain model, and the head in its three modes."""
    return [
        Case("plain full", Plan(sizes, full=True)),
        Case("full", Plan(sizes, full=True, head=head)),
        Case("infllmv2", Plan(sizes, order="query", head=head)),
        Case("nosa", Plan(sizes, head=head)),
    ]
