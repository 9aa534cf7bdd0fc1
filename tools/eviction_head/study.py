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
there, and is left out when the time left is less than its "seconds" or a fit that it needs failed
or was left out. A job that failed does not stop the others, but the study then ends as failed. What
is there already is not done again; what failed is.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import multiprocessing.connection
import os
import sys
import time
import traceback
from dataclasses import asdict, fields
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

RESULTS = (".json", ".pt")
"""What a job that was done leaves: a score or probe, a fit."""
FAILED, LEFT_OUT = ".failed", ".left-out"
"""Marks of jobs without a result; a later run of the program forgets them."""
KEYS_OF_A_JOB = {
    "fit": (),
    "score": ("part", "cases"),
    "probe": ("part", "cases", "haystacks"),
}
"""What a job of each kind must say besides its name."""


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
        waiting = list(self.program["jobs"])
        while waiting:
            waiting = [job for job in waiting if not self.claimed(job) and not self.dropped(job)]
            job = next((job for job in waiting if self.ready(job)), None)
            if job is None:
                if time.monotonic() > self.deadline:
                    return
                time.sleep(0.2)
                continue
            waiting.remove(job)
            if self.deadline - time.monotonic() < job.get("seconds", 0):
                self.say(f"{job['name']}: left out")
                mark(self.folder, job["name"], LEFT_OUT)
            elif self.claim(job):
                self.work(job)

    def work(self, job: dict[str, Any]) -> None:
        """Does a job; when it fails, says so and leaves a mark."""
        begun = time.monotonic()
        try:
            {"fit": self.fit, "score": self.score, "probe": self.probe}[job["kind"]](job)
            self.say(f"{job['name']}: {time.monotonic() - begun:.1f} s")
        except ToolError as error:
            self.say(f"{job['name']}: failed: {error}")
            mark(self.folder, job["name"], FAILED)
        except Exception:  # pylint: disable=broad-except
            self.say(f"{job['name']}: failed\n{traceback.format_exc()}")
            mark(self.folder, job["name"], FAILED)
        torch.cuda.empty_cache()

    def ready(self, job: dict[str, Any]) -> bool:
        """Whether the fits that a job needs are there."""
        return all((self.folder / f"{name}.pt").exists() for name in fits_needed(job))

    def dropped(self, job: dict[str, Any]) -> bool:
        """Whether a job cannot be done any more, since a fit that it needs failed or was left out;
        the first process to find that says so."""
        if marked(self.folder, job["name"]):
            return True
        missing = [name for name in fits_needed(job) if marked(self.folder, name)]
        if missing and mark(self.folder, job["name"], LEFT_OUT):
            self.say(f"{job['name']}: left out, since there is no {missing[0]}")
        return bool(missing)

    def claimed(self, job: dict[str, Any]) -> bool:
        """Whether another process has it, or it is done."""
        names = (f"{job['name']}{suffix}" for suffix in (".claim", *RESULTS))
        return any((self.folder / name).exists() for name in names)

    def claim(self, job: dict[str, Any]) -> bool:
        """Takes a job, unless another process was quicker; the file names the process."""
        try:
            with (self.folder / f"{job['name']}.claim").open("x", encoding="utf-8") as file:
                file.write(str(os.getpid()))
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


def fits_needed(job: dict[str, Any]) -> list[str]:
    """The names of the fits whose heads a job's cases use."""
    names = {entry.get("head") for entry in job.get("cases", [])} - {None}
    return sorted(name for name in names if not name.endswith(".safetensors"))


def mark(folder: Path, name: str, suffix: str) -> bool:
    """Leaves a mark on a job that gave no result; False when it has one."""
    try:
        (folder / f"{name}{suffix}").touch(exist_ok=False)
        return True
    except FileExistsError:
        return False


def marked(folder: Path, name: str) -> bool:
    """Whether a job failed or was left out."""
    return any((folder / f"{name}{suffix}").exists() for suffix in (FAILED, LEFT_OUT))


def encoder(directory: Path):
    """Text to ids with a model's tokenizer."""
    tokenizer = texts.tokenizer_of(directory)
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


def read_program(path: Path) -> dict[str, Any]:
    """The program in a file, its shares made jobs."""
    program = headfile.read_json(path)
    jobs = program.get("jobs")
    if not isinstance(jobs, list) or not all(isinstance(job, dict) for job in jobs):
        raise ToolError(f"{path}: not a program of a study (no list of jobs)")
    for job in jobs:
        if not isinstance(job.get("name"), str) or job.get("kind") not in KEYS_OF_A_JOB:
            raise ToolError(f"{path}: a job has no name, or its kind is not fit, score or probe")
        for key in KEYS_OF_A_JOB[job["kind"]]:
            if key not in job:
                raise ToolError(f"{path}: job {job['name']} has no {key}")
        unknown = set(job.get("options", {})) - {field.name for field in fields(fitting.Options)}
        if unknown:
            raise ToolError(f"{path}: job {job['name']}: no option is named {min(unknown)}")
        cases = job.get("cases", [])
        if not isinstance(cases, list) or not all(
            isinstance(case, dict) and isinstance(case.get("name"), str) for case in cases
        ):
            raise ToolError(f"{path}: job {job['name']}: a case has no name")
        for case in cases:
            if not isinstance(case.get("head") or "", str):
                raise ToolError(f"{path}: job {job['name']}: the head of {case['name']} is no name")
    program["jobs"] = expanded(jobs)
    names = [job["name"] for job in program["jobs"]]
    if len(set(names)) != len(names):
        raise ToolError(f"{path}: two jobs have one name")
    return program


def check_program(program: dict[str, Any], path: Path, folder: Path, model: Path) -> None:
    """Refuses cases whose head is neither fitted by the program, nor in the folder of results, nor
    a head file of this model."""
    headfile.read_config(model)
    fits = {job["name"] for job in program["jobs"] if job["kind"] == "fit"}
    for job in program["jobs"]:
        for name in fits_needed(job):
            if name not in fits and not (folder / f"{name}.pt").is_file():
                raise ToolError(f"{path}: job {job['name']}: no fit is named {name}")
    cases = [case for job in program["jobs"] for case in job.get("cases", [])]
    heads = {case.get("head") for case in cases} - {None}
    for name in sorted(name for name in heads if name.endswith(".safetensors")):
        headfile.check_head(headfile.read_head(Path(name)), Path(name), model)


def cpu_refusal(program: dict[str, Any], directory: Path) -> str:
    """What to say where there is no GPU: how long the program's parts would take."""
    model = Llama.load(directory, torch.device("cpu"))
    length, rate = program.get("length", 8192), fitting.cpu_rate()
    fits = [job for job in program["jobs"] if job["kind"] == "fit"]
    seconds = 0.0
    for job in fits:
        options = fitting.Options(**{"length": length, **job.get("options", {})})
        seconds += fitting.cpu_estimate(model, options, rate)
    each = fitting.duration(fitting.cpu_estimate_of_pass(model, length, rate))
    return (
        f"no GPU: on this CPU the fits ({len(fits)}) would take about "
        f"{fitting.duration(seconds)}, and every case of every window about {each}; "
        "--device cpu does it all the same"
    )


def _work(
    program: dict[str, Any], folder: Path, model: Path, source: Path, device: str, deadline: float
) -> None:
    """A worker process."""
    torch.set_num_threads(2)
    try:
        Worker(program, folder, model, source, device, deadline).run()
    except ToolError as error:
        print(f"eviction_head: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _clear(folder: Path) -> None:
    """Forgets what an earlier run left without a result."""
    for suffix in (FAILED, LEFT_OUT):
        for path in folder.glob(f"*{suffix}"):
            path.unlink()
    for claim in folder.glob("*.claim"):
        if not any(claim.with_suffix(suffix).exists() for suffix in RESULTS):
            claim.unlink()


def wait_for(workers: list[Any], folder: Path) -> None:
    """Waits for all processes. What one had taken when it died counts as failed, so that the others
    do not wait for it."""
    try:
        waiting = list(workers)
        while waiting:
            multiprocessing.connection.wait([worker.sentinel for worker in waiting])
            for worker in [worker for worker in waiting if worker.exitcode is not None]:
                waiting.remove(worker)
                for claim in folder.glob("*.claim"):
                    taken = claim.read_text(encoding="utf-8") == str(worker.pid)
                    done = any(claim.with_suffix(suffix).exists() for suffix in RESULTS)
                    if taken and not done:
                        mark(folder, claim.stem, FAILED)
    finally:
        for worker in workers:
            if worker.exitcode is None:
                worker.terminate()


def run(
    program: dict[str, Any],
    folder: Path,
    model: Path,
    source: Path,
    device: torch.device,
    seconds: float = math.inf,
) -> None:
    """Runs a program with `workers` processes a GPU, or one on the CPU."""
    folder.mkdir(parents=True, exist_ok=True)
    _clear(folder)
    deadline = time.monotonic() + seconds
    devices = ["cpu"]
    if device.type == "cuda":
        count = torch.cuda.device_count()
        devices = [f"cuda:{number}" for number in range(count)] * program.get("workers", 1)
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_work, args=(program, folder, model, source, name, deadline))
        for name in devices
    ]
    for worker in workers:
        worker.start()
    wait_for(workers, folder)
    failed = sorted(path.stem for path in folder.glob(f"*{FAILED}"))
    if failed:
        raise ToolError(f"failed: {', '.join(failed)}; the messages are above")
    if any(worker.exitcode != 0 for worker in workers):
        raise ToolError("a process of the study failed; its messages are above")
