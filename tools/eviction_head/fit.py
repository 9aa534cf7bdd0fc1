"""Fits an eviction head: the frozen model under NOSA selection is taught to say what the plain
model says with full attention.

The loss is the Kullback-Leibler divergence of the two next-token distributions, over the positions
where selection is at work. Each step draws one window; what step n draws depends on the seed and n
alone, so a run that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import chart
import probes
import texts
from errors import ToolError
from heads import Head
from llama import Llama, LowRank, Plan, Record
from selection import Sizes

POSITIONS_FIRST = 1024
"""Positions before this one have little to learn from: nothing is cut there."""
ROWS_OF_LOSS = 1024
"""Positions whose logits are in memory at once."""


@dataclass(frozen=True)
class Options:
    """What a fit depends on."""

    kind: str = "released"
    steps: int = 160
    rate: float = 1e-2
    length: int = 8192
    seed: int = 1
    planted: float = 0.5
    """Share of windows with planted facts."""
    answers: float = 0.1
    """Weight of the mean loss over the answers of planted facts, beside that over all positions."""
    through: float = 0.0
    """How much of a block's gradient flows into its E."""
    noise: float = 0.0
    """Noise on E, in standard deviations, that fades over the fit."""
    full: float = 0.0
    """Share of steps in which every block is read, which keeps `full` as it is."""
    rank: int = 0
    """Of a low-rank update of the query and key projections; 0: the base is frozen."""
    rank_rate: float = 1e-3
    window: int = 0
    """window_size in the fit; 0: half the checkpoint's, so that E has more to decide."""
    select: int = 0
    """select_blocks in the fit; 0: half the checkpoint's, for the same reason."""


class Divergence(torch.autograd.Function):
    """Mean divergence of the student's next-token distribution from the teacher's.

    Takes both models' last hidden rows and the output matrix; works in slices, since logits of
    every position at once would not fit, and finds the gradient on the way.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        output: Tensor,
        weights: Tensor,
    ) -> Tensor:
        """The sum over rows by their weights, in nats."""
        total = torch.zeros((), device=student.device)
        gradient = torch.empty_like(student)
        for start in range(0, len(student), ROWS_OF_LOSS):
            rows = slice(start, start + ROWS_OF_LOSS)
            ours = torch.log_softmax(student[rows] @ output.T, -1)
            theirs = torch.log_softmax(teacher[rows] @ output.T, -1)
            shares = theirs.exp()
            total += ((shares * (theirs - ours)).sum(-1) * weights[rows]).sum()
            gradient[rows] = (ours.exp_() - shares) @ output * weights[rows, None]
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient that forward found."""
        return ctx.saved_tensors[0] * grad_outputs[0], None, None, None


def sizes_of_fit(options: Options, sizes: Sizes) -> Sizes:
    """The sparse sizes that a fit attends with."""
    half = max(1, sizes.window_size // sizes.block_size // 2) * sizes.block_size
    window = options.window or min(half, sizes.window_size)
    if window % sizes.block_size or window < 0:
        raise ToolError(f"--window {window} is not a multiple of {sizes.block_size}")
    select = options.select or max(1, sizes.select_blocks // 2)
    if select < 1:
        raise ToolError(f"--select {select} is not a number of blocks")
    fitted = Sizes(**{**asdict(sizes), "window_size": window, "select_blocks": select})
    if fitted.topk < fitted.first_places:
        raise ToolError(
            f"--window {window} and --select {select} leave E no place among {sizes.topk} blocks"
        )
    return fitted


class Fit:
    """A fit in progress."""

    def __init__(
        self,
        model: Llama,
        corpus: texts.Corpus,
        options: Options,
        encode: Callable[[str], list[int]],
    ) -> None:
        """Makes head and optimiser; nothing is computed but the scale of values and keys."""
        torch.manual_seed(options.seed)
        self.model, self.corpus, self.options, self.encode = model, corpus, options, encode
        self.sizes = sizes_of_fit(options, model.sizes)
        self.step, self.losses, self.seconds = 0, [], 0.0
        squares = self.mean_squares()
        index = 1 if options.kind == "keys" else 0
        rms = [math.sqrt(pair[index]) for pair in squares]
        self.head = Head(options.kind, model.kv_heads, model.head_dim, rms, options.length)
        self.head.to(model.device)
        groups = [{"params": list(self.head.parameters()), "lr": options.rate}]
        self.low_rank = None
        if options.rank:
            shapes = [
                tuple(
                    tuple(model.tensors[f"model.layers.{n}.self_attn.{p}.weight"].shape)
                    for p in ("q_proj", "k_proj")
                )
                for n in range(model.layers)
            ]
            self.low_rank = LowRank(shapes, options.rank).to(model.device)
            groups.append({"params": list(self.low_rank.parameters()), "lr": options.rank_rate})
        self.optimiser = torch.optim.Adam(groups, betas=(0.9, 0.98))
        self.rates = [group["lr"] for group in groups]

    def window(self, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
        """The ids of a step, and the weight of each position's loss."""
        length = self.options.length
        ids = texts.random_window(self.corpus, length, draw)
        first = min(POSITIONS_FIRST, length // 2)
        weights = torch.zeros(length)
        weights[first:] = 1 / (length - first)
        if draw.random() < self.options.planted:
            depths = [
                float(d) for d in np.sort(draw.uniform(0.02, 0.93, probes.FACTS_OF_A_HAYSTACK))
            ]
            made = probes.plant(np.asarray(ids), self.encode, draw, length, False, depths)
            ids, count = made.ids, sum(probe.end - probe.begin for probe in made.probes)
            for probe in made.probes:
                weights[probe.begin - 1 : probe.end - 1] += self.options.answers / count
        device = self.model.device
        return torch.as_tensor(np.asarray(ids, dtype=np.int64), device=device), weights.to(device)

    @torch.no_grad()
    def mean_squares(self) -> list[tuple[float, float]]:
        """Mean squares of each layer's values and keys over one window."""
        record = Record()
        draw = np.random.default_rng([self.options.seed, 0])
        ids = texts.random_window(self.corpus, self.options.length, draw)
        ids = torch.as_tensor(ids.astype(np.int64)[:2048], device=self.model.device)
        self.model.hidden(ids, Plan(self.model.sizes, full=True), record)
        return [(float(values), float(keys)) for values, keys in record.squares]

    def advance(self) -> float:
        """One step; its loss."""
        options, model = self.options, self.model
        draw = np.random.default_rng([options.seed, 1, self.step])
        torch.manual_seed(options.seed * 1_000_003 + self.step)
        ids, weights = self.window(draw)
        done = self.step / options.steps
        scale = min(1.0, (self.step + 1) / 10) * 0.5 * (1 + math.cos(math.pi * done))
        for group, rate in zip(self.optimiser.param_groups, self.rates):
            group["lr"] = rate * scale
        half = torch.bfloat16 if model.device.type == "cuda" else torch.float32
        plan = Plan(
            self.sizes,
            head=self.head,
            dtype=half,
            full=bool(draw.random() < options.full),
            through=options.through,
            noise=options.noise * (1 - done),
        )
        first = min(POSITIONS_FIRST, options.length // 2)
        with torch.no_grad():
            model.low_rank = None
            teacher = model.hidden(ids, Plan(model.sizes, full=True, dtype=half))[first:]
        model.low_rank = self.low_rank
        student = model.hidden(ids, plan)[first:]
        loss = Divergence.apply(student, teacher, model.output, weights[first:])
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(
            [p for group in self.optimiser.param_groups for p in group["params"]], 1.0
        )
        self.optimiser.step()
        model.low_rank = None
        self.step += 1
        self.losses.append(float(loss.detach()))
        return self.losses[-1]

    def state(self) -> dict[str, Any]:
        """Everything that a later run needs to go on."""
        return {
            "options": asdict(self.options),
            "step": self.step,
            "losses": self.losses,
            "seconds": self.seconds,
            "head": self.head.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "low_rank": self.low_rank.state_dict() if self.low_rank is not None else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a state."""
        self.step, self.losses, self.seconds = state["step"], state["losses"], state["seconds"]
        self.head.load_state_dict(state["head"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.low_rank is not None:
            self.low_rank.load_state_dict(state["low_rank"])

    def folded_weights(self) -> dict[str, Tensor]:
        """The projections with the low-rank update added, under the checkpoint's names."""
        assert self.low_rank is not None
        result = {}
        for layer in range(self.model.layers):
            for which, part in enumerate(("q_proj", "k_proj")):
                name = f"model.layers.{layer}.self_attn.{part}.weight"
                base = self.model.tensors[name]
                result[name] = self.low_rank.weight(layer, which, base).detach()
        return result


def partial_path(output: Path) -> Path:
    """Where a fit keeps its state while it runs."""
    return output.with_name(output.name + ".partial")


def save_state(fit: Fit, path: Path, base: str) -> None:
    """Writes the state, beside its place first."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save({"base": base, "corpus": corpus_sha256(fit.corpus), **fit.state()}, fresh)
    fresh.replace(path)


def corpus_sha256(corpus: texts.Corpus) -> str:
    """A hash of what may be drawn."""
    digest = hashlib.sha256(corpus.tokenizer_sha256.encode())
    for document in corpus.part("train", 0):
        digest.update(json.dumps([document.kind, document.name, len(document.ids)]).encode())
        digest.update(document.ids.tobytes())
    return digest.hexdigest()


def load_state(fit: Fit, path: Path, base: str) -> None:
    """Goes on from a state file, when it is one of the same fit."""
    try:
        state = torch.load(path, map_location=fit.model.device, weights_only=True)
        same = (
            state["base"] == base
            and state["options"] == asdict(fit.options)
            and state["corpus"] == corpus_sha256(fit.corpus)
        )
    except (OSError, RuntimeError, LookupError, TypeError, ValueError, EOFError) as error:
        raise ToolError(f"{path}: not the state of a fit ({error}); remove it") from error
    except pickle.UnpicklingError as error:
        raise ToolError(f"{path}: not the state of a fit; remove it") from error
    if not same:
        raise ToolError(
            f"{path} is the state of another fit (model, texts or options differ); "
            "remove it or name another --output"
        )
    fit.restore(state)


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class HeldInterrupt:
    """Holds SIGINT back until a step is done, so that its state can be kept; a second one does not
    wait."""

    def __init__(self) -> None:
        """Nothing is held yet."""
        self.seen = False
        self.before: Any = None

    def __enter__(self) -> HeldInterrupt:
        """Takes the signal."""
        self.before = signal.signal(signal.SIGINT, self.handle)
        return self

    def __exit__(self, *details: object) -> None:
        """Gives the signal back."""
        signal.signal(signal.SIGINT, self.before)

    def handle(self, number: int, frame: object) -> None:
        """What the signal does."""
        del number, frame
        if self.seen:
            raise KeyboardInterrupt
        self.seen = True


def run(
    fit: Fit, output: Path, base: str, every_seconds: float = 20.0, deadline: float = math.inf
) -> bool:
    """Runs a fit to its end, keeping its state on the way; False when the deadline came first."""
    path = partial_path(output)
    if path.exists():
        load_state(fit, path, base)
        print(f"fit: going on from step {fit.step} of {fit.options.steps}", file=sys.stderr)
    with HeldInterrupt() as interrupt:
        if not advance_to_end(fit, path, base, every_seconds, deadline, interrupt):
            return False
    path.unlink(missing_ok=True)
    return True


def advance_to_end(
    fit: Fit, path: Path, base: str, every_seconds: float, deadline: float, interrupt: HeldInterrupt
) -> bool:
    """The steps of a fit that are left, with progress; False when the deadline came first. State is
    kept every so often, and at the deadline or an interruption."""
    begun, before, saved, told = time.monotonic(), fit.seconds, time.monotonic(), 0.0
    first = fit.step
    while fit.step < fit.options.steps:
        if interrupt.seen or time.monotonic() > deadline:
            save_state(fit, path, base)
            if interrupt.seen:
                raise KeyboardInterrupt
            return False
        loss = fit.advance()
        now = time.monotonic()
        fit.seconds = before + now - begun
        if not math.isfinite(loss):
            raise ToolError(f"the loss is not a number at step {fit.step}; try a lower --rate")
        if now - told > 5 or fit.step == fit.options.steps:
            told = now
            each = (now - begun) / (fit.step - first)
            recent = fit.losses[-20:]
            left = duration(each * (fit.options.steps - fit.step))
            print(
                f"fit: step {fit.step} of {fit.options.steps}, loss "
                f"{sum(recent) / len(recent):.5f}, {each:.2f} s a step, {left} left",
                file=sys.stderr,
                flush=True,
            )
        if now - saved > every_seconds:
            saved = now
            save_state(fit, path, base)
    return True


def smoothed(losses: list[float], width: int = 20) -> list[tuple[float, float]]:
    """Running means of the loss."""
    return [
        (float(n), sum(losses[max(0, n - width) : n]) / min(n, width))
        for n in range(1, len(losses) + 1)
    ]


def draw_curve(fit: Fit, path: Path) -> None:
    """The loss over steps, as a picture."""
    points = smoothed(fit.losses)
    chart.draw(
        path,
        f"Fit of a head ({fit.options.kind})",
        "step",
        "divergence from plain full attention, nats a token",
        [chart.Series("mean of 20 steps", points)],
        log_y=True,
    )


def cpu_rate() -> float:
    """Operations a second of this CPU's matrix products."""
    square = torch.randn(1024, 1024)
    torch.mm(square, square)
    begun = time.monotonic()
    for _ in range(5):
        torch.mm(square, square)
    return 5 * 2 * 1024**3 / (time.monotonic() - begun)


def pass_costs(model: Llama, length: int) -> tuple[int, int]:
    """Operations of one forward pass over a window: products with weights, and attention."""
    weights = sum(tensor.numel() for tensor in model.tensors.values())
    return 2 * weights * length, model.layers * model.heads * length**2 * model.head_dim * 4


def cpu_estimate(model: Llama, options: Options, rate: float) -> float:
    """Seconds that a fit would take on a CPU of this rate: teacher, student and gradient."""
    dense, attention = pass_costs(model, options.length)
    logits = 60 * options.length * model.output.shape[0]
    return options.steps * (3 * dense + 4 * attention + logits) / rate * 2


def cpu_estimate_of_pass(model: Llama, length: int, rate: float) -> float:
    """Seconds that scoring one case on one window would take on a CPU of this rate."""
    dense, attention = pass_costs(model, length)
    return (dense + attention + 20 * length * model.output.shape[0]) / rate * 2
