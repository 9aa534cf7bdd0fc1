#!/usr/bin/env python3
"""Measures the engine beside llama.cpp on the same weights: pairs taken back to back.

Every round runs nosa-bench and then llama.cpp on one workload, each in a process of its own, with
the same number of threads and full attention. The ratio of a round is that of its own pair. For
the peer the faster of flash attention on and off is found first and then kept. Before anything is
timed, both answer one prompt greedily, so that a model that was converted wrongly is seen.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DECODE_STEPS = 32
PROMPT = "The three primary colours are red, blue and yellow. When blue and yellow paint are mixed,"
NO_VOCABULARY = b"no_vocab"
CHECK_TOKENS = 24
CHECK_CHARACTERS = 24
"""The answers may part when two tokens are nearly equal: llama.cpp rounds activations to bf16."""


class ToolError(Exception):
    """Something the user can be told in one line."""


@dataclass(frozen=True)
class Workload:
    """What is measured; named as nosa-bench names it."""

    name: str
    decode: bool
    tokens: int
    batch: int = 1
    slow: bool = False
    """Takes minutes a round: fewer rounds, and no run to choose the peer's setting."""


WORKLOADS = [
    Workload("prefill-512", decode=False, tokens=512),
    Workload("prefill-4096", decode=False, tokens=4096),
    Workload("decode-128", decode=True, tokens=128),
    Workload("decode-4096", decode=True, tokens=4096),
    Workload("decode-128x8", decode=True, tokens=128, batch=8),
    Workload("decode-4096x8", decode=True, tokens=4096, batch=8, slow=True),
]


@dataclass
class Result:
    """Tokens per second of each round, and nosa-bench's ceiling of it."""

    workload: Workload
    flash: str = "on"
    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)
    ceiling: list[float] = field(default_factory=list)

    def ratios(self) -> list[float]:
        """Ours over the peer's, round by round."""
        return [a / b for a, b in zip(self.ours, self.peer)]

    def shares(self) -> list[float]:
        """Of the ceiling, round by round."""
        return [a / b for a, b in zip(self.ours, self.ceiling)]


def run(command: list[str], seconds: int = 1800) -> str:
    """Standard output of a command that must succeed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NOSA_")}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=seconds, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise ToolError(f"{Path(command[0]).name} took more than {seconds} s") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        raise ToolError(f"{Path(command[0]).name}: {lines[-1]}")
    return done.stdout


class Bench:
    """The programs of both sides on one model."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Takes over the command line."""
        self.programs: Path = arguments.programs
        self.peer_programs: Path = arguments.peer
        self.model: Path = arguments.model
        self.gguf: Path = arguments.gguf
        self.threads: int = arguments.threads

    def ours(self, workload: Workload) -> tuple[float, float]:
        """Tokens per second of one round, and the ceiling measured with it."""
        text = run(
            [str(self.programs / "nosa-bench"), "model", "--model", str(self.model), "--json"]
            + ["--rounds", "1", "--threads", str(self.threads), "--attention", "full"]
            + ["--only", workload.name]
        )
        result = json.loads(text)["results"][0]
        return result["tokens_per_s"], result["ceiling"]

    def peer(self, workload: Workload, flash: str) -> float:
        """Tokens per second of one round."""
        common = ["-m", str(self.gguf), "-t", str(self.threads), "-b", "2048", "-ub", "512"]
        if workload.batch > 1:
            room = -(-(workload.tokens + DECODE_STEPS) // 256) * 256 * workload.batch
            text = run(
                [str(self.peer_programs / "llama-batched-bench"), *common, "-c", str(room)]
                + ["-tb", str(self.threads), "-fa", flash, "--output-format", "jsonl"]
                + ["-npp", str(workload.tokens), "-ntg", str(DECODE_STEPS)]
                + ["-npl", str(workload.batch)]
            )
            rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
            return rows[0]["speed_tg"]
        what = ["-p", str(workload.tokens), "-n", "0"]
        if workload.decode:
            what = ["-p", "0", "-n", str(DECODE_STEPS), "-d", str(workload.tokens)]
        text = run(
            [str(self.peer_programs / "llama-bench"), *common, *what]
            + ["-fa", flash, "-r", "1", "-o", "json"]
        )
        return json.loads(text)[0]["avg_ts"]

    def check_answers(self) -> str:
        """What both answer to one prompt; an error when they have next to nothing in common."""
        with self.gguf.open("rb") as file:
            if NO_VOCABULARY in file.read(1 << 16):
                return "answers were not compared: llama.cpp was given no tokenizer of this kind"
        answer = json.loads(
            run(
                [str(self.programs / "nosa-run"), "--model", str(self.model), "--prompt", PROMPT]
                + ["--max-tokens", str(CHECK_TOKENS), "--temperature", "0", "--attention", "full"]
                + ["--threads", str(self.threads), "--json"]
            )
        )["text"]
        text = run(
            [str(self.peer_programs / "llama-simple"), "-m", str(self.gguf)]
            + ["-n", str(CHECK_TOKENS), PROMPT]
        )
        if not text.startswith(PROMPT):
            raise ToolError("llama-simple does not repeat the prompt: other tokenizer")
        theirs = text[len(PROMPT) :].removesuffix("\n")
        same = len(os.path.commonprefix([answer, theirs]))
        if same < min(CHECK_CHARACTERS, len(answer)):
            raise ToolError(f"the answers differ: {answer!r} here, {theirs!r} by llama.cpp")
        if same == len(answer):
            return f"both answer the same {CHECK_TOKENS} tokens"
        return f"the answers agree in the first {same} of {len(answer)} characters"


def measure(bench: Bench, workload: Workload, rounds: int, flash: str | None) -> Result:
    """All rounds of one workload; `flash` when the setting is known."""
    result = Result(workload)
    if flash is None:
        rates = {setting: bench.peer(workload, setting) for setting in ("on", "off")}
        flash = max(rates, key=lambda setting: rates[setting])
    result.flash = flash
    for _ in range(rounds):
        rate, ceiling = bench.ours(workload)
        result.ours.append(rate)
        result.ceiling.append(ceiling)
        result.peer.append(bench.peer(workload, flash))
    return result


def spread(values: list[float], digits: int) -> str:
    """Median, lowest and highest."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def line(result: Result) -> str:
    """One line of the table."""
    return (
        f"{result.workload.name:<14} {spread(result.ours, 1):>26} {spread(result.peer, 1):>26}"
        f" {spread(result.ratios(), 2):>18} {statistics.median(result.shares()):>8.0%}"
        f"  {result.flash:<5} {len(result.ours)}"
    )


def as_json(results: list[Result]) -> list[dict[str, Any]]:
    """Every round of every workload."""
    return [
        {
            "workload": r.workload.name,
            "nosa_tokens_per_s": r.ours,
            "llama_cpp_tokens_per_s": r.peer,
            "ratio": statistics.median(r.ratios()),
            "ceiling": r.ceiling,
            "llama_cpp_flash_attention": r.flash,
        }
        for r in results
    ]


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--programs", type=Path, required=True, help="folder of nosa-bench and nosa-run")
    add("--peer", type=Path, required=True, help="folder of llama.cpp's programs")
    add("--model", type=Path, required=True, help="Hugging Face directory")
    add("--gguf", type=Path, required=True, help="the same weights for llama.cpp")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of either side")
    add("--rounds", type=int, default=5, help="pairs of each workload (default 5)")
    add("--slow-rounds", type=int, default=2, help="pairs of decode-4096x8 (default 2)")
    add("--only", metavar="NAME,...", help="workloads, as nosa-bench names them")
    add("--no-check", action="store_true", help="do not compare answers first")
    add("--json", action="store_true", help="print one JSON array instead of a table")
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else [w.name for w in WORKLOADS]
    unknown = set(names) - {w.name for w in WORKLOADS}
    if unknown:
        parser.error(f"--only: no workload {min(unknown)!r}")
    if min(arguments.threads, arguments.rounds, arguments.slow_rounds) < 1:
        parser.error("--threads and rounds are at least 1")
    arguments.workloads = [w for w in WORKLOADS if w.name in names]
    return arguments


def measure_all(arguments: argparse.Namespace) -> None:
    """Measures and prints."""
    bench = Bench(arguments)
    if not arguments.no_check:
        print(bench.check_answers(), file=sys.stderr if arguments.json else sys.stdout)
    if not arguments.json:
        print(
            f"\n{'tokens/s':<14} {'nosa (lowest-highest)':>26} {'llama.cpp':>26}"
            f" {'ratio of pairs':>18} {'ceiling':>8}  flash pairs",
            flush=True,
        )
    results: list[Result] = []
    for workload in arguments.workloads:
        rounds = arguments.slow_rounds if workload.slow else arguments.rounds
        known = [r.flash for r in results if r.workload.decode and r.workload.batch == 1]
        flash = (known[-1] if known else "on") if workload.slow else None
        results.append(measure(bench, workload, rounds, flash))
        if not arguments.json:
            print(line(results[-1]), flush=True)
    if arguments.json:
        print(json.dumps(as_json(results), indent=2))


def main() -> int:
    """Runs the tool; 0, or 2 after an error that was told in one line."""
    try:
        measure_all(parse_arguments())
    except ToolError as error:
        print(f"bench_peers: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"bench_peers: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except (ValueError, KeyError, IndexError) as error:
        print(f"bench_peers: output not understood ({error!r})", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
