"""A Llama decoder with NOSA attention in PyTorch, one sequence at a time, for fitting and scoring.

Rounds what the engine rounds: in a 16-bit checkpoint K and V are rounded once to bfloat16, and so
are mean keys of windows; biases c come from the values before rounding. Gradients pass through the
rounding as if it were not there, and reach c through attention: c sqrt(head_dim) is one more
dimension of K, and 1 the same of Q, so an ordinary masked attention kernel does the work.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

import headfile
import selection
from heads import FixedHead
from reference.nosa_reference import head_dim_of, rope_parameters
from selection import Sizes


class GivesBiases(Protocol):
    """What a head must do."""

    kind: str

    def biases(self, layer: int, values: Tensor, keys: Tensor) -> Tensor:
        """c [kv_heads, tokens] of a layer."""


@dataclass
class Plan:
    """How a forward pass attends."""

    sizes: Sizes
    full: bool = False
    """Every visible block is read; score and order do not matter."""
    score: str = "windows"
    order: str = "bias"
    head: GivesBiases | None = None
    """Where biases come from; None: c = 0."""
    through: float = 0.0
    """How much of a block's gradient flows into its E (fitting only)."""
    noise: float = 0.0
    """Noise on E, in standard deviations (fitting only)."""
    dtype: torch.dtype = torch.float32
    """Type that attention is computed in."""
    chunk: int = 3072
    """Queries whose masks are in memory at once."""


@dataclass
class Record:
    """What a pass leaves behind when asked."""

    selected: list[Tensor] = field(default_factory=list)
    """Of each layer [kv_heads, tokens, blocks] bool."""
    squares: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Mean squares of each layer's values and rotated keys."""


class LowRank(torch.nn.Module):
    """Low-rank updates of the query and key projections of every layer."""

    def __init__(self, shapes: list[tuple[tuple[int, int], tuple[int, int]]], rank: int) -> None:
        """shapes: of q_proj and k_proj, [outputs, inputs], per layer. Starts at no change."""
        super().__init__()
        self.down = torch.nn.ParameterList()
        self.up = torch.nn.ParameterList()
        for pair in shapes:
            for rows, columns in pair:
                self.down.append(torch.randn(rank, columns) / math.sqrt(columns))
                self.up.append(torch.zeros(rows, rank))

    def weight(self, layer: int, which: int, base: Tensor) -> Tensor:
        """The updated weight of q_proj (which = 0) or k_proj (1)."""
        place = 2 * layer + which
        return base + self.up[place] @ self.down[place]


class Llama:
    """A checkpoint on a device, its weights frozen in float32."""

    def __init__(
        self,
        config: dict[str, Any],
        tensors: Mapping[str, Tensor],
        is_16_bit: bool,
        device: torch.device,
    ) -> None:
        """Moves the tensors to the device."""
        self.config, self.is_16_bit, self.device = config, is_16_bit, device
        self.tensors = {name: tensor.to(device, torch.float32) for name, tensor in tensors.items()}
        self.layers = config["num_hidden_layers"]
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.head_dim = head_dim_of(config)
        self.sizes = Sizes.of(config.get("sparse_config") or {})
        self.low_rank: LowRank | None = None
        frequencies, self.attention_factor = rope_parameters(config)
        self.frequencies = torch.tensor(frequencies, dtype=torch.float64, device=device)

    @staticmethod
    def load(directory: Path, device: torch.device) -> Llama:
        """Reads a Hugging Face directory."""
        config = headfile.read_config(directory)
        headfile.check_weights(directory, config)
        tensors = {}
        types = set()
        for name, info in headfile.checkpoint_tensors(directory).items():
            tensors[name] = torch.from_numpy(headfile.read_tensor(info))
            types.add(info.dtype)
        return Llama(config, tensors, "F32" not in types, device)

    @property
    def output(self) -> Tensor:
        """The output matrix [vocabulary, hidden]."""
        tied = self.config.get("tie_word_embeddings", False)
        return self.tensors["model.embed_tokens.weight" if tied else "lm_head.weight"]

    def own_head(self) -> FixedHead | None:
        """The head in the checkpoint, or None."""
        if "model.layers.0.self_attn.A" not in self.tensors:
            return None
        return FixedHead(self.tensors, self.layers)

    def linear(self, name: str, rows: Tensor) -> Tensor:
        """rows x weight^T, plus the bias if the checkpoint has one."""
        return functional.linear(
            rows, self.tensors[name + ".weight"], self.tensors.get(name + ".bias")
        )

    def norm(self, name: str, rows: Tensor) -> Tensor:
        """RMSNorm."""
        scale = torch.rsqrt(rows.square().mean(-1, keepdim=True) + self.config["rms_norm_eps"])
        return rows * scale * self.tensors[name + ".weight"]

    def rotation(self, tokens: int) -> tuple[Tensor, Tensor]:
        """cos and sin of all positions [tokens, head_dim / 2], of angles in float64."""
        positions = torch.arange(tokens, dtype=torch.float64, device=self.device)
        angles = positions[:, None] * self.frequencies[None, :]
        cosines, sines = angles.cos() * self.attention_factor, angles.sin() * self.attention_factor
        return cosines.float(), sines.float()

    def stored(self, rows: Tensor) -> Tensor:
        """The rows as the KV type holds them."""
        if not self.is_16_bit:
            return rows
        return rows + (rows.to(torch.bfloat16).to(rows.dtype) - rows).detach()

    def project(self, layer: int, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [heads, tokens, head_dim], before rotation."""
        prefix = f"model.layers.{layer}.self_attn."
        results = []
        for which, name in enumerate(("q_proj", "k_proj", "v_proj")):
            weight = self.tensors[f"{prefix}{name}.weight"]
            if self.low_rank is not None and which < 2:
                weight = self.low_rank.weight(layer, which, weight)
            flat = functional.linear(rows, weight, self.tensors.get(f"{prefix}{name}.bias"))
            results.append(flat.unflatten(1, (-1, self.head_dim)).transpose(0, 1))
        return results[0], results[1], results[2]

    def attention(
        self,
        layer: int,
        rows: Tensor,
        plan: Plan,
        turn: tuple[Tensor, Tensor],
        record: Record | None,
    ) -> Tensor:
        """The attention part of a layer over normalised rows [tokens, hidden]."""
        tokens = len(rows)
        queries, keys, values = self.project(layer, rows)
        queries, keys = rotate(queries, *turn), rotate(keys, *turn)
        flat_values = values.transpose(0, 1).reshape(tokens, -1)
        flat_keys = keys.transpose(0, 1).reshape(tokens, -1)
        biases = None
        if plan.head is not None:
            biases = plan.head.biases(layer, flat_values, flat_keys)
            biases = with_gradient_of_e(biases, plan)
        keys, values = self.stored(keys), self.stored(values)
        grouped = queries.unflatten(0, (self.kv_heads, -1))
        if record is not None:
            record.squares.append((values.square().mean(), keys.square().mean()))
        mixed = self.attend(grouped, keys, values, biases, plan, record)
        joined = mixed.flatten(0, 1).transpose(0, 1).reshape(tokens, -1)
        return self.linear(f"model.layers.{layer}.self_attn.o_proj", joined)

    def attend(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        biases: Tensor | None,
        plan: Plan,
        record: Record | None,
    ) -> Tensor:
        """Attention of all queries [kv_heads, group, tokens, head_dim] under a plan."""
        tokens, sizes = queries.shape[2], plan.sizes
        extended = extend(queries, keys, values, biases, plan.dtype)
        if plan.full:
            return masked_attention(*extended, None, self.head_dim).float()
        plain = torch.zeros(keys.shape[:2], device=keys.device) if biases is None else biases
        with torch.no_grad():
            described = selection.describe_layer(
                keys, plain, sizes, self.is_16_bit, plan.order, plan.score
            )
            if plan.order == "oracle":
                described.agnostic = self.oracle(queries, described, plain, plan)
            if plan.noise > 0:
                described.agnostic = noisy(described.agnostic, plan.noise)
        whole = min(tokens, sizes.topk * sizes.block_size)
        outputs = [
            masked_attention(*(part[:, :, :whole] for part in extended), None, self.head_dim)
        ]
        chosen = [first_choice(whole, tokens, self.kv_heads, sizes, keys.device)]
        for start in range(whole, tokens, plan.chunk):
            stop = min(start + plan.chunk, tokens)
            picked = selection.select(
                queries[:, :, start:stop].detach(),
                described,
                start,
                sizes,
                plan.score,
                plan.order,
                plain,
            )
            mask = additive_mask(picked, start, stop, sizes.block_size, plan.dtype)
            query, key, value = extended
            outputs.append(
                masked_attention(
                    query[:, :, start:stop],
                    key[:, :, :stop],
                    value[:, :, :stop],
                    mask,
                    self.head_dim,
                )
            )
            if record is not None:
                blocks = chosen[0].shape[-1]
                chosen.append(functional.pad(picked, (0, blocks - picked.shape[-1])))
        if record is not None:
            record.selected.append(torch.cat(chosen, 1))
        return torch.cat(outputs, 2).float()

    def oracle(
        self, queries: Tensor, described: selection.LayerKeys, biases: Tensor, plan: Plan
    ) -> tuple[Tensor, Tensor]:
        """Of each block, the mean attention of the later queries whose first cut lacks it."""
        sizes, tokens = plan.sizes, queries.shape[2]
        blocks = -(-tokens // sizes.block_size)
        total = torch.zeros(self.kv_heads, blocks, device=queries.device)
        count = torch.zeros(blocks, device=queries.device)
        local = sizes.window_size // sizes.block_size
        for start in range(0, tokens, plan.chunk):
            stop = min(start + plan.chunk, tokens)
            part = queries[:, :, start:stop]
            mass = selection.block_mass(
                part, described.keys[:, :stop], biases[:, :stop], start, sizes
            )
            wanted = selection.query_scores(part, described, start, sizes, "windows", biases)
            forced, visible = selection.forced_and_visible(start, stop, sizes, local, part.device)
            free = visible & ~forced
            forced, seen = (mask.expand(self.kv_heads, -1, -1) for mask in (forced, visible))
            first = selection.best_others(wanted, forced, seen, sizes.first_places)
            total[:, : mass.shape[-1]] += mass.masked_fill(first, 0).sum(1)
            count[: mass.shape[-1]] += free.sum(0)
        ranks = total / count.clamp_min(1)
        return ranks, ranks

    def hidden(self, ids: Tensor, plan: Plan, record: Record | None = None) -> Tensor:
        """The last layer's output after the final norm, [tokens, hidden]."""
        rows = self.tensors["model.embed_tokens.weight"][ids]
        turn = self.rotation(len(ids))
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            normed = self.norm(prefix + "input_layernorm", rows)
            rows = rows + self.attention(layer, normed, plan, turn, record)
            normed = self.norm(prefix + "post_attention_layernorm", rows)
            gate = functional.silu(self.linear(prefix + "mlp.gate_proj", normed))
            rows = rows + self.linear(
                prefix + "mlp.down_proj", gate * self.linear(prefix + "mlp.up_proj", normed)
            )
        return self.norm("model.norm", rows)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [rows, vocabulary]."""
        return hidden @ self.output.T


def rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary positions, half-split layout: [heads, tokens, head_dim]."""
    low, high = heads.chunk(2, dim=-1)
    return torch.cat([low * cosines - high * sines, high * cosines + low * sines], -1)


def with_gradient_of_e(biases: Tensor, plan: Plan) -> Tensor:
    """The biases unchanged, but with a share of each block's gradient flowing into its E."""
    if plan.through <= 0 or not biases.requires_grad:
        return biases
    whole, _ = selection.agnostic_scores(biases, plan.sizes)
    whole = torch.where(whole.isfinite(), whole, torch.zeros_like(whole))
    spread = whole.repeat_interleave(plan.sizes.block_size, 1)[:, : biases.shape[1]]
    return biases + plan.through * (spread - spread.detach())


def noisy(agnostic: tuple[Tensor, Tensor], share: float) -> tuple[Tensor, Tensor]:
    """E with noise, the same on both forms."""
    whole, early = agnostic
    finite = torch.where(whole.isfinite(), whole, torch.zeros_like(whole))
    noise = torch.randn_like(whole) * finite.std(dim=1, keepdim=True) * share
    return whole + noise, early + noise


def extend(
    queries: Tensor, keys: Tensor, values: Tensor, biases: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [kv_heads, group, tokens, dim]; c is a dimension of the keys."""
    group, head_dim = queries.shape[1], queries.shape[3]
    if biases is not None:
        ones = torch.ones_like(queries[..., :1])
        queries = functional.pad(torch.cat([queries, ones], -1), (0, 7))
        extra = (biases * math.sqrt(head_dim))[..., None]
        keys = functional.pad(torch.cat([keys, extra], -1), (0, 7))
    return (
        queries.to(dtype),
        keys.to(dtype)[:, None].expand(-1, group, -1, -1),
        values.to(dtype)[:, None].expand(-1, group, -1, -1),
    )


def masked_attention(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, head_dim: int
) -> Tensor:
    """softmax(q k^T / sqrt(head_dim) + mask) v; causal when there is no mask."""
    if mask is not None:
        mask = mask.expand(-1, queries.shape[1], -1, -1)
    return functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, is_causal=mask is None, scale=1 / math.sqrt(head_dim)
    )


def additive_mask(picked: Tensor, start: int, stop: int, block: int, dtype: torch.dtype) -> Tensor:
    """[kv_heads, 1, chunk, stop]: 0 where a query reads a token, minus infinity elsewhere."""
    chunk = stop - start
    values = torch.full(picked.shape, -math.inf, dtype=dtype, device=picked.device)
    values = values.masked_fill_(picked, 0.0)
    mask = values[..., None].expand(-1, -1, -1, block).flatten(2)[..., :stop]
    mask = mask.contiguous() if stop % block else mask
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=picked.device).triu_(1)
    mask[:, :, start:stop].masked_fill_(later, -math.inf)
    return mask[:, None]


def first_choice(
    whole: int, tokens: int, kv_heads: int, sizes: Sizes, device: torch.device
) -> Tensor:
    """What queries read while everything fits: all visible blocks, [kv_heads, whole, blocks]."""
    own = torch.arange(whole, device=device)[:, None] // sizes.block_size
    index = torch.arange(-(-tokens // sizes.block_size), device=device)[None, :]
    return (index <= own).expand(kv_heads, -1, -1)
