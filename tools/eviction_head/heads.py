"""Kinds of eviction heads: what gives each token its bias c.

`released` is the form that the engine runs: c = A softplus(W v), v the values of all KV heads laid
end to end. The others exist to be compared with it. A kind maps a layer's values and keys
[tokens, kv_heads * head_dim] to biases [tokens, kv_heads]. Parameters of a linear map are kept
relative to the root mean square of what it reads, so one learning rate suits all layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

KINDS = ("released", "keys", "own", "two-layer", "position")
FIRST_A = 0.05
HIDDEN = 32
"""Width of the hidden layer of a two-layer head."""
KNOT = 64
"""Tokens between the knots of a head that knows positions alone."""


class LayerHead(nn.Module):
    """The head of one layer."""

    def __init__(self, kind: str, kv_heads: int, head_dim: int, rms: float, positions: int) -> None:
        """Starts near c = A log 2, the same for every token but for a little noise."""
        super().__init__()
        self.kind, self.kv_heads, self.rms = kind, kv_heads, rms
        width = kv_heads * head_dim
        self.A = nn.Parameter(torch.full((kv_heads,), FIRST_A))
        if kind in ("released", "keys"):
            self.weight = nn.Parameter(_small(kv_heads, width))
        elif kind == "own":
            self.weight = nn.Parameter(_small(kv_heads, head_dim))
        elif kind == "two-layer":
            self.first = nn.Parameter(torch.randn(HIDDEN, width) / math.sqrt(width))
            self.weight = nn.Parameter(_small(kv_heads, HIDDEN))
        elif kind == "position":
            self.weight = nn.Parameter(0.01 * torch.randn(kv_heads, positions // KNOT + 2))
        else:
            raise ValueError(f"no head of kind {kind}")

    def forward(self, values: Tensor, keys: Tensor) -> Tensor:
        """Biases [tokens, kv_heads]."""
        if self.kind == "position":
            return self.A * functional.softplus(self._between_knots(len(values)))
        rows = (keys if self.kind == "keys" else values) / self.rms
        if self.kind == "own":
            split = rows.unflatten(1, (self.kv_heads, -1))
            return self.A * functional.softplus((split * self.weight).sum(-1))
        if self.kind == "two-layer":
            rows = functional.silu(rows @ self.first.T)
        return self.A * functional.softplus(rows @ self.weight.T)

    def _between_knots(self, tokens: int) -> Tensor:
        """The table's values at every position, [tokens, kv_heads]."""
        at = torch.arange(tokens, device=self.weight.device) / KNOT
        low = at.floor().long()
        share = (at - low)[:, None]
        return self.weight.T[low] * (1 - share) + self.weight.T[low + 1] * share

    def multiplications_per_token(self) -> int:
        """What one token costs in one layer."""
        if self.kind == "position":
            return 2 * self.kv_heads
        return sum(parameter.numel() for parameter in self.parameters() if parameter.dim() > 1)


def _small(rows: int, columns: int) -> Tensor:
    """A start that orders tokens somehow without biasing attention much."""
    return 0.1 * torch.randn(rows, columns) / math.sqrt(columns)


class Head(nn.Module):
    """The head of a model: one of each layer."""

    def __init__(
        self, kind: str, kv_heads: int, head_dim: int, rms: Sequence[float], positions: int
    ) -> None:
        """rms: of what each layer's head reads (values, or keys for the kind `keys`)."""
        super().__init__()
        self.kind = kind
        self.layers = nn.ModuleList(
            LayerHead(kind, kv_heads, head_dim, scale, positions) for scale in rms
        )

    def biases(self, layer: int, values: Tensor, keys: Tensor) -> Tensor:
        """c [kv_heads, tokens] of a layer."""
        return self.layers[layer](values, keys).T

    def tensors(self) -> dict[str, Tensor]:
        """The released form's tensors under the checkpoint's names, float32."""
        if self.kind != "released":
            raise ValueError(f"a head of kind {self.kind} has no place in a checkpoint")
        result = {}
        for number, layer in enumerate(self.layers):
            prefix = f"model.layers.{number}.self_attn."
            result[prefix + "delta.weight"] = (layer.weight / layer.rms).detach().float().cpu()
            result[prefix + "A"] = layer.A.detach().float().cpu()
        return result


class FixedHead:
    """A head of the released form from a checkpoint's tensors."""

    kind = "released"

    def __init__(self, tensors: Mapping[str, Tensor], layers: int) -> None:
        """Takes delta.weight and A of each layer (and delta.bias if it is there)."""
        names = [f"model.layers.{number}.self_attn." for number in range(layers)]
        self.weights = [tensors[name + "delta.weight"] for name in names]
        self.offsets = [tensors.get(name + "delta.bias") for name in names]
        self.scales = [tensors[name + "A"] for name in names]

    def biases(self, layer: int, values: Tensor, keys: Tensor) -> Tensor:
        """c [kv_heads, tokens] of a layer."""
        del keys
        projected = functional.linear(values, self.weights[layer], self.offsets[layer])
        return (self.scales[layer] * functional.softplus(projected)).T
