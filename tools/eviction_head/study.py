"""Runs a list of fits and scorings over all GPUs of a machine, until it is done or out of time.

The list is a JSON file: {"length" (of windows, default 8192), "workers" (processes a GPU, default
1), "jobs": [...]}. A job has a name and a kind:

    fit    options of a fit; leaves NAME.pt (any kind of head) and, for the released form, NAME.head
    score  cases on windows of a part: leaves NAME.json with what each case scored on each window
    probe  cases on haystacks: leaves NAME.json

"shares": N makes N jobs of a score or probe, NAME0, NAME1, ..., each with every N-th window or
haystack, for as many processes.

A case is {"name", "head": NAME of a fit or a head file, "no_bias", "score", "order", "full",
"half", "sizes": {...}}, all but the name optional (llama.Plan; half: attention in bfloat16).
Jobs are taken in order by the processes; one waits until the fits that its cases name are
there, and is left out when the time left is less than its "seconds". What is there already is not
done again.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import evaluate
import fit as fitting
import headfile
import probes
import texts
from errors import ToolError
from heads import FixedHead, Head
from llama import Llama, LowRank, Plan
from selection import Sizes


class Worker:
    """One process with one device."""

    def __init__(
        self,
        program: dict[str, Any],
        folder: Path,
        directory: Path,
        source: Path,
        device: str,
        deadline: float,
    ) -> None:
        """Loads the model in `directory` and the texts in `source`."""
        torch.backends.cuda.matmul.allow_tf32 = True
        self.program, self.folder, self.deadline = program, folder, deadline
        self.device = torch.device(device)
        self.model = Llama.load(directory, self.device)
        self.base = headfile.weights_sha256(directory)
        self.corpus = texts.read_corpus(source, directory)
        self.encode = encoder(directory)
        self.length = program.get("length", 8192)
        self.loaded: dict[str, tuple[Any, LowRank | None]] = {}

    def say(self, text: str) -> None:
        """A line with the time left."""
        print(
            f"[{self.device} {self.deadline - time.monotonic():4.0f} s left] {text}",
            file=sys.stderr,
            flush=True,
        )

    def fit(self, job: dict[str, Any]) -> None:
        """Fits a head."""
        options = fitting.Options(**{"length": self.length, **job.get("options", {})})
        saved = self.model.sizes
        self.model.sizes = Sizes.of({**asdict(saved), **job.get("sizes", {})})
        try:
            fit = fitting.Fit(self.model, self.corpus, options, self.encode)
            limit = min(self.deadline, time.monotonic() + job.get("limit", math.inf))
            if not fitting.run(fit, self.folder / f"{job['name']}.pt", self.base, math.inf, limit):
                self.say(f"{job['name']}: stopped at step {fit.step}")
            metadata = head_metadata(self.base, self.model, fit)
        finally:
            self.model.sizes = saved
        state = {**fit.state(), "rms": [layer.rms for layer in fit.head.layers]}
        state.pop("optimiser")
        torch.save(state, self.folder / f"{job['name']}.tmp")
        if options.kind == "released":
            tensors = {name: tensor.numpy() for name, tensor in fit.head.tensors().items()}
            headfile.write_head(
                self.folder / f"{job['name']}.head", headfile.HeadFile(tensors, metadata)
            )
        (self.folder / f"{job['name']}.tmp").rename(self.folder / f"{job['name']}.pt")

    def head(self, name: str) -> tuple[Any, LowRank | None]:
        """A fitted head, rounded as a checkpoint would hold it, and its low-rank update."""
        if name not in self.loaded:
            path = self.folder / f"{name}.pt"
            if name.endswith(".safetensors"):
                self.loaded[name] = (head_of_file(Path(name), self.model), None)
                return self.loaded[name]
            state = torch.load(path, map_location=self.device, weights_only=True)
            options = fitting.Options(**state["options"])
            head: Any = Head(
                options.kind, self.model.kv_heads, self.model.head_dim, state["rms"], options.length
            ).to(self.device)
            head.load_state_dict(state["head"])
            if options.kind == "released":
                head = FixedHead(
                    {k: rounded(t, self.model).to(self.device) for k, t in head.tensors().items()},
                    self.model.layers,
                )
            low_rank = None
            if state["low_rank"] is not None:
                shapes = [
                    tuple(
                        tuple(self.model.tensors[f"model.layers.{n}.self_attn.{p}.weight"].shape)
                        for p in ("q_proj", "k_proj")
                    )
                    for n in range(self.model.layers)
                ]
                low_rank = Folded(self.model, shapes, options.rank, state["low_rank"])
            self.loaded[name] = (head, low_rank)
        return self.loaded[name]

    def case(self, entry: dict[str, Any]) -> evaluate.Case:
        """A case from its description."""
        head, low_rank = self.head(entry["head"]) if entry.get("head") else (None, None)
        sizes = Sizes.of({**asdict(self.model.sizes), **entry.get("sizes", {})})
        dtype = torch.bfloat16 if entry.get("half") else torch.float32
        plan = Plan(
            sizes,
            full=entry.get("full", False),
            score=entry.get("score", "windows"),
            order=entry.get("order", "bias"),
            dtype=dtype,
            head=None if entry.get("no_bias") else head,
        )
        return evaluate.Case(entry["name"], plan, low_rank)

    def score(self, job: dict[str, Any]) -> None:
        """Scores cases on windows."""
        chosen = windows(self.corpus, job, self.length)
        cases = [self.case(entry) for entry in job["cases"]]
        rows: list[dict[str, Any]] = []
        for number, (kind, name, ids) in enumerate(chosen):
            if time.monotonic() > self.deadline:
                self.say(f"{job['name']}: stopped after {number} of {len(chosen)} windows")
                break
            tensor = torch.as_tensor(ids.astype(np.int64), device=self.device)
            tiers = bool(job.get("tiers")) and number % job["tiers"] == 0
            tallies = evaluate.score_window(self.model, cases, tensor, tiers)
            rows.append(
                {
                    "kind": kind,
                    "document": name,
                    "cases": {case.name: tally_json(tally) for case, tally in zip(cases, tallies)},
                }
            )
        write_json(self.folder / f"{job['name']}.json", {"windows": rows})

    def probe(self, job: dict[str, Any]) -> None:
        """Asks for planted facts."""
        chosen = windows(self.corpus, job, self.length)
        made = probes.haystacks(
            [ids for _, _, ids in chosen],
            self.encode,
            job["haystacks"],
            self.length,
            job.get("seed", 5),
        )
        share, of = job.get("share", [0, 1])
        cases = [self.case(entry) for entry in job["cases"]]
        rows = []
        for haystack in made[share::of]:
            if time.monotonic() > self.deadline:
                break
            rows.append(
                {
                    "depths": [p.depth for p in haystack.probes],
                    "cases": {
                        case.name: evaluate.answers(self.model, case, haystack) for case in cases
                    },
                }
            )
        write_json(self.folder / f"{job['name']}.json", {"haystacks": rows})

    def run(self) -> None:
        """Takes jobs until none is left."""
        waiting = [job for job in self.program["jobs"]]
        while waiting:
            job = next((j for j in waiting if self.ready(j)), None)
            if job is None:
                if time.monotonic() > self.deadline:
                    return
                time.sleep(0.2)
                waiting = [j for j in waiting if not self.claimed(j)]
                continue
            waiting.remove(job)
            if self.deadline - time.monotonic() < job.get("seconds", 0):
                self.say(f"{job['name']}: left out")
                continue
            if not self.claim(job):
                continue
            begun = time.monotonic()
            try:
                {"fit": self.fit, "score": self.score, "probe": self.probe}[job["kind"]](job)
                self.say(f"{job['name']}: {time.monotonic() - begun:.1f} s")
            except Exception:  # pylint: disable=broad-except
                self.say(f"{job['name']}: failed\n{traceback.format_exc()}")
            torch.cuda.empty_cache()

    def needs(self, job: dict[str, Any]) -> list[Path]:
        """The fits that a job waits for."""
        names = {entry.get("head") for entry in job.get("cases", [])} - {None}
        return [self.folder / f"{name}.pt" for name in names if not name.endswith(".safetensors")]

    def ready(self, job: dict[str, Any]) -> bool:
        """Whether a job can be done now."""
        return not self.claimed(job) and all(path.exists() for path in self.needs(job))

    def claimed(self, job: dict[str, Any]) -> bool:
        """Whether another process has it, or it is done."""
        names = (f"{job['name']}{suffix}" for suffix in (".claim", ".json", ".pt"))
        return any((self.folder / name).exists() for name in names)

    def claim(self, job: dict[str, Any]) -> bool:
        """Takes a job, unless another process was quicker."""
        try:
            os.close(os.open(self.folder / f"{job['name']}.claim", os.O_CREAT | os.O_EXCL))
            return True
        except FileExistsError:
            return False


class Folded(LowRank):
    """A low-rank update, folded into the weights and rounded as a checkpoint would hold them."""

    def __init__(self, model: Llama, shapes: list, rank: int, state: dict) -> None:
        """Folds the update of every layer."""
        super().__init__(shapes, rank)
        self.load_state_dict(state)
        self.to(model.device)
        self.folded = {}
        for layer in range(model.layers):
            for which, part in enumerate(("q_proj", "k_proj")):
                base = model.tensors[f"model.layers.{layer}.self_attn.{part}.weight"]
                merged = LowRank.weight(self, layer, which, base).detach()
                self.folded[layer, which] = rounded(merged, model)

    def weight(self, layer: int, which: int, base: torch.Tensor) -> torch.Tensor:
        """The folded weight."""
        return self.folded[layer, which]


def rounded(tensor: torch.Tensor, model: Llama) -> torch.Tensor:
    """The tensor as the checkpoint's type holds it."""
    return tensor.to(torch.bfloat16).float() if model.is_16_bit else tensor


def head_of_file(path: Path, model: Llama) -> FixedHead:
    """A head file's head, rounded as merging rounds it."""
    tensors = {
        name: rounded(torch.from_numpy(array), model).to(model.device)
        for name, array in headfile.read_head(path).tensors.items()
    }
    return FixedHead(tensors, model.layers)


def head_metadata(base: str, model: Llama, fit: fitting.Fit) -> dict[str, str]:
    """What a head file says of itself."""
    sparse = {**{k: v for k, v in asdict(model.sizes).items()}, "dense_len": 0}
    return {
        "base_sha256": base,
        "sparse_config": json.dumps(sparse),
        "options": json.dumps(asdict(fit.options), sort_keys=True),
        "texts_sha256": fitting.corpus_sha256(fit.corpus),
        "steps": str(fit.step),
    }


def encoder(directory: Path):
    """Text to ids with a model's tokenizer."""
    from tokenizers import Tokenizer  # pylint: disable=import-outside-toplevel

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def expanded(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The jobs, those with shares made several."""
    result = []
    for job in jobs:
        shares = job.get("shares", 1)
        if shares == 1:
            result.append(job)
            continue
        for number in range(shares):
            part = {"name": f"{job['name']}{number}", "share": [number, shares]}
            result.append({**job, **part})
    return result


def windows(corpus: texts.Corpus, job: dict[str, Any], length: int) -> list:
    """The windows of a job."""
    chosen = texts.windows_of(
        corpus, job["part"], length, job.get("of_a_kind", 18), job.get("of_a_document", 3)
    )
    if job["kind"] == "probe":
        return chosen
    share, of = job.get("share", [0, 1])
    return chosen[share::of]


def tally_json(tally: evaluate.Tally) -> dict[str, Any]:
    """A tally for a results file."""
    return {**asdict(tally), "loss": [round(float(x), 4) for x in tally.loss]}


def write_json(path: Path, content: object) -> None:
    """Writes a results file, beside its place first."""
    fresh = path.with_suffix(".fresh")
    fresh.write_text(json.dumps(content) + "\n", encoding="utf-8")
    fresh.rename(path)


def _work(
    program: dict[str, Any], folder: Path, model: Path, source: Path, device: str, deadline: float
) -> None:
    """A worker process."""
    torch.set_num_threads(2)
    Worker(program, folder, model, source, device, deadline).run()


def run(path: Path, folder: Path, model: Path, source: Path, seconds: float = math.inf) -> None:
    """Runs a program with `workers` processes a GPU, or one on the CPU."""
    try:
        program = json.loads(path.read_text(encoding="utf-8"))
        program["jobs"] = expanded(program["jobs"])
        names = [job["name"] for job in program["jobs"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ToolError(f"{path}: not a program of a study ({error})") from error
    if len(set(names)) != len(names):
        raise ToolError(f"{path}: two jobs have one name")
    headfile.read_config(model)
    folder.mkdir(parents=True, exist_ok=True)
    for claim in folder.glob("*.claim"):
        if not any(claim.with_suffix(suffix).exists() for suffix in (".json", ".pt")):
            claim.unlink()
    deadline = time.monotonic() + seconds
    count = torch.cuda.device_count()
    devices = [f"cuda:{number}" for number in range(count)] * program.get("workers", 1) or ["cpu"]
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_work, args=(program, folder, model, source, device, deadline))
        for device in devices
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode != 0 for worker in workers):
        raise ToolError("a process of the study failed; its messages are above")
