#!/usr/bin/env python3
"""Measures serving on this machine: coordinator, workers and nosactl's benchmark as processes.

    scripts/bench_serving.py [part ...] [options]

Parts, in this order without any: idle rpc latency relay batch prefix routing failover. Every figure
stands beside what it must reach and what other programs took of the machine meanwhile;
docs/benchmarks.md tells what is measured and how.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving_cluster import (
    PATIENCE_S,
    TREE,
    Cluster,
    Others,
    Process,
    ToolError,
    environment,
    finish,
    make_tiny_model,
    metric,
    worker_http,
)

BLOCK_TOKENS = 64


@dataclass
class Setting:
    """What the parts share."""

    programs: Path
    model: Path
    tiny: Path
    rounds: int
    pause_s: float
    report: Report


@dataclass
class Report:
    """Prints figures as they come, and keeps them."""

    quiet: bool
    figures: list[dict[str, Any]] = field(default_factory=list)

    def title(self, text: str) -> None:
        """Begins a part."""
        if not self.quiet:
            print(f"\n== {text}\n", flush=True)

    def say(self, text: str) -> None:
        """A remark."""
        if not self.quiet:
            print(f"   {text}", flush=True)

    def figure(
        self, name: str, value: float, unit: str, others: float,
        least: float | None = None, most: float | None = None,
    ) -> None:  # fmt: skip
        """A figure, and what it must reach at least, or must not exceed."""
        reached = (least is None or value >= least) and (most is None or value <= most)
        target = (
            f">= {least:g}" if least is not None else f"<= {most:g}" if most is not None else ""
        )
        self.figures.append(
            {
                "name": name,
                "value": value,
                "unit": unit,
                "target": target or None,
                "reached": reached if target else None,
                "others_share": others,
            }
        )
        if not self.quiet:
            verdict = ("reached" if reached else "MISSED") if target else ""
            print(
                f"{name:46} {value:10.4g} {unit:10} {target:>9} {verdict:8}"
                f" others {100 * others:3.0f} %",
                flush=True,
            )


def tiny_worker(cluster: Cluster, setting: Setting, name: str, *arguments: str) -> None:
    """A worker of the model that is too small to matter."""
    cluster.add_worker(
        name, setting.tiny, "--attention", "full", "--threads", "1", *arguments
    )  # fmt: skip


# ---- idle, latency, relay ------------------------------------------------------------------------


def measure_idle(setting: Setting) -> None:
    """What a coordinator costs that has nothing to do."""
    setting.report.title("an idle coordinator with one worker")
    for model, title in ((setting.tiny, "tiny model"), (setting.model, "demo model")):
        with Cluster(setting.programs) as cluster:
            worker = cluster.add_worker("w", model, "--max-context", "1024", "--threads", "1")
            cluster.wait_ready()
            time.sleep(1)
            seconds = 10
            with Others(cluster.coordinator, worker) as others:
                before = cluster.coordinator.cpu_s()
                time.sleep(seconds)
                used = cluster.coordinator.cpu_s() - before
            memory = cluster.coordinator.memory_mib()
            report = setting.report
            report.figure(f"of a core, {title}", 100 * used / seconds, "%", others.share, most=0.5)
            report.figure(f"resident memory, {title}", memory, "MiB", others.share, most=30)


def measure_latency(setting: Setting) -> None:
    """What coordinator and worker add to a request at low load."""
    setting.report.title("added latency at low load: one token of a model too small to matter")
    with Cluster(setting.programs) as cluster:
        tiny_worker(cluster, setting, "w")
        cluster.wait_ready()
        http = worker_http(cluster.workers["w"])
        cluster.bench("--requests", "50", "--prompt-tokens", "16", "--output-tokens", "1")
        rounds = []
        with Others(cluster.coordinator, *cluster.workers.values()) as others:
            for seed in range(setting.rounds):
                before = step_totals(http)
                result = cluster.bench(
                    "--rate", "100", "--requests", "300", "--prompt-tokens", "16",
                    "--output-tokens", "1", "--seed", str(seed + 1),
                )  # fmt: skip
                after = step_totals(http)
                step_ms = 1000 * (after[0] - before[0]) / max(1, after[1] - before[1])
                rounds.append((result["ttft_ms"]["p50"], result["ttft_ms"]["p99"], step_ms))
        for p50, p99, step_ms in rounds:
            setting.report.say(
                f"first token p50 {p50:.3f} ms, p99 {p99:.3f} ms; engine's step {step_ms:.3f} ms"
            )
        added = statistics.median(p50 - step_ms for p50, _, step_ms in rounds)
        setting.report.figure("added to the first token, p50", added, "ms", others.share, most=1)


def step_totals(http: int) -> tuple[float, float]:
    """Seconds and number of an engine's steps so far."""
    return (
        metric(http, "nosa_step_duration_seconds_sum"),
        metric(http, "nosa_step_duration_seconds_count"),
    )


def measure_relay(setting: Setting) -> None:
    """Tokens per second through coordinator and worker."""
    setting.report.title("relay: 512 streams of a model too small to matter")
    streams, tokens = 512, 400
    with Cluster(setting.programs) as cluster:
        tiny_worker(
            cluster, setting, "w", "--max-batch", str(streams), "--max-queue", str(streams),
            "--max-context", "1024",
        )  # fmt: skip
        cluster.wait_ready()
        processes = {"coordinator": cluster.coordinator, "worker": cluster.workers["w"]}
        rates, costs = [], []
        with Others(*processes.values()) as others:
            for seed in range(setting.rounds):
                time.sleep(setting.pause_s)
                before = {name: process.cpu_s() for name, process in processes.items()}
                result = cluster.bench(
                    "--concurrency", str(streams), "--requests", str(streams), "--prompt-tokens",
                    "16", "--output-tokens", str(tokens), "--seed", str(seed + 1),
                )  # fmt: skip
                cost = {n: (p.cpu_s() - before[n]) * 1e6 for n, p in processes.items()}
                cost["client"] = result["client_cpu_s"] * 1e6
                costs.append({n: c / result["output_tokens"] for n, c in cost.items()})
                rates.append(result["output_tokens_per_s"])
                setting.report.say(
                    f"{rates[-1]:.0f} tokens/s, start and end included; core time per token: "
                    + ", ".join(f"{name} {us:.1f} us" for name, us in costs[-1].items())
                    + f"; between tokens p50 {result['itl_ms']['p50']:.1f} ms,"
                    f" p99 {result['itl_ms']['p99']:.1f} ms"
                )
        total = statistics.median(sum(cost.values()) for cost in costs)
        report, rate = setting.report, statistics.median(rates)
        report.figure("tokens/s, median", rate, "tokens/s", others.share, least=50000)
        report.figure("core time per token, all three processes", total, "us", others.share)


def rpc_server(setting: Setting, *arguments: str) -> tuple[Process, str]:
    """The tests' server, and where it listens."""
    process = Process([str(setting.programs.parent / "tests" / "rpc-test-server"), *arguments])
    try:
        port = process.out.get(timeout=PATIENCE_S).split()[1]
    except (queue.Empty, IndexError):
        process.stop()
        raise ToolError("rpc-test-server does not start") from None
    return process, f"127.0.0.1:{port}"


def measure_rpc(setting: Setting) -> None:
    """What the transport gives when nothing is computed: the relay's ceiling."""
    report = setting.report
    report.title("the transport alone: empty calls and messages, directly and through a bare relay")
    client = str(setting.programs / "nosa-bench")
    if not (setting.programs.parent / "tests" / "rpc-test-server").exists():
        report.say("not built: tests are off")
        return
    server, address = rpc_server(setting)
    relay, relayed = rpc_server(setting, "--upstream", address)
    try:
        for title, to, kind, at_once in (
            ("a call, p50", address, "unary", "1"),
            ("messages over 512 streams, directly", address, "stream", "512"),
            ("messages over 512 streams, relayed", relayed, "stream", "512"),
        ):
            with Others(server, relay) as others:
                done = subprocess.run(
                    [
                        client, "rpc", "--address", to, "--kind", kind, "--at-once", at_once,
                        "--seconds", "1.5",
                    ],
                    capture_output=True, text=True, check=False, timeout=60, env=environment(),
                )  # fmt: skip
            found = re.search(r": (\d+)/s, latency us p50 (\d+)", done.stdout)
            if not found:
                raise ToolError(f"nosa-bench rpc: {done.stderr.strip()}")
            if kind == "unary":
                report.figure(title, float(found[2]), "us", others.share)
            else:
                report.figure(title, float(found[1]), "/s", others.share)
    finally:
        relay.stop()
        server.stop()


# ---- batched serving -----------------------------------------------------------------------------


def engine_alone(setting: Setting, threads: int, cores: str, work: dict[str, int]) -> float:
    """Output tokens per second of the engine without serving."""
    command = [
        str(setting.programs / "nosa-bench"), "batch", "--json", "--rounds", "1", "--model",
        str(setting.model), "--threads", str(threads), "--sequences", str(work["sequences"]),
        "--prompt-tokens", str(work["prompt"]), "--output-tokens", str(work["output"]),
    ]  # fmt: skip
    done = subprocess.run(
        ["taskset", "-c", cores, *command], capture_output=True, text=True, check=False,
        env=environment(), timeout=600,
    )  # fmt: skip
    if done.returncode != 0:
        raise ToolError(done.stderr.strip())
    return json.loads(done.stdout)["output_tokens_per_s"]


def measure_batch(setting: Setting) -> None:
    """Serving beside the engine alone, in pairs."""
    work = {"sequences": 32, "prompt": 32, "output": 32}
    setting.report.title(
        "batched serving: 32 streams of the demo model, 32 prompt and 32 output tokens each"
    )
    for title, threads, worker_cores, other_cores in (
        ("engine on core 0, all else on core 1", 1, "0", "1"),
        ("everything on cores 0 and 1", 2, "0,1", "0,1"),
    ):
        with Cluster(setting.programs, cores=other_cores) as cluster:
            worker = cluster.add_worker(
                "w", setting.model, "--attention", "full", "--threads", str(threads),
                "--max-context", "1024", "--max-batch", "32", cores=worker_cores,
            )  # fmt: skip
            cluster.wait_ready()
            ratios = []
            with Others(cluster.coordinator, worker) as others:
                for seed in range(setting.rounds + 1):
                    time.sleep(setting.pause_s)
                    alone = engine_alone(setting, threads, worker_cores, work)
                    time.sleep(setting.pause_s)
                    result = cluster.bench(
                        "--concurrency", "32", "--requests", "32", "--prompt-tokens",
                        str(work["prompt"]), "--output-tokens", str(work["output"]), "--seed",
                        str(seed + 1), cores=other_cores,
                    )  # fmt: skip
                    served = result["output_tokens_per_s"]
                    if seed > 0:  # the first one warms up
                        ratios.append(served / alone)
                        setting.report.say(f"served {served:.1f}, alone {alone:.1f} tokens/s")
            setting.report.figure(
                f"of the engine alone, {title}", 100 * statistics.median(ratios), "%",
                others.share, least=90,
            )  # fmt: skip


# ---- prefixes and routing ------------------------------------------------------------------------


def measure_prefix(setting: Setting) -> None:
    """A prompt whose prefix another request just used, beside a cold one."""
    setting.report.title("first token after a prefix of 1024 tokens, cold and just used")
    with Cluster(setting.programs) as cluster:
        worker = cluster.add_worker(
            "w", setting.model, "--threads", str(os.cpu_count()), "--max-context", "2048",
            "--max-batch", "4",
        )  # fmt: skip
        cluster.wait_ready()
        cold, warm = [], []
        with Others(cluster.coordinator, worker) as others:
            for seed in range(setting.rounds):
                result = cluster.bench(
                    "--concurrency", "1", "--requests", "3", "--prefix-groups", "1",
                    "--prefix-tokens", "1024", "--prompt-tokens", "16", "--output-tokens", "4",
                    "--seed", str(seed + 1), "--details",
                )  # fmt: skip
                times = [request["ttft_ms"] for request in by_index(result)]
                cold.append(times[0])
                warm += times[1:]
        setting.report.say(
            f"cold {statistics.median(cold):.1f} ms, just used {statistics.median(warm):.1f} ms"
        )
        times = statistics.median(cold) / statistics.median(warm)
        setting.report.figure("sooner than cold", times, "times", others.share, least=5)


def by_index(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The requests of a run in the order in which they were planned."""
    return sorted(result["per_request"], key=lambda request: request["index"])


@dataclass
class Routed:
    """How requests with shared prefixes found their workers."""

    known: int = 0  # a worker held the prefix
    right: int = 0  # and one that did was chosen
    found: int = 0  # and its cache had the whole prefix
    workers: dict[str, int] = field(default_factory=dict)


def judge_routing(
    requests: list[dict[str, Any]], prefix_tokens: int, restarts: dict[str, list[float]]
) -> Routed:
    """A worker holds a prefix once it was sent a prompt with it, until it restarts."""
    routed = Routed()
    holders: dict[int, dict[str, float]] = {}
    for request in sorted(requests, key=lambda request: request["sent_s"]):
        sent, worker = request["sent_s"], request["worker_id"]
        held = holders.setdefault(request["prefix_group"], {})
        living = {
            name
            for name, since in held.items()
            if not any(since <= restart <= sent for restart in restarts.get(name, []))
        }
        routed.workers[worker] = routed.workers.get(worker, 0) + 1
        if living:
            routed.known += 1
            routed.right += worker in living
            whole = prefix_tokens // BLOCK_TOKENS * BLOCK_TOKENS
            routed.found += worker in living and request["cached_prompt_tokens"] >= whole
        held[worker] = sent
    return routed


def measure_routing(setting: Setting) -> None:
    """Four workers, more prefixes than blocks, and one worker that restarts."""
    setting.report.title("routing: 40 prefixes of 512 tokens on four workers, one restarting")
    seconds, prefix = 12, 512
    with Cluster(setting.programs) as cluster:
        names = ["w1", "w2", "w3", "w4"]
        for name in names:
            # 16 KiB a block: KV for 200 blocks, of which the prefixes of ten groups take 80.
            tiny_worker(
                cluster, setting, name, "--max-context", "1024", "--max-batch", "16",
                "--gpu-kv-bytes", "3200K", "--drain-timeout", "1",
            )  # fmt: skip
        cluster.wait_ready()
        with Others(cluster.coordinator, *cluster.workers.values()) as others:
            running = cluster.start_bench(
                "--rate", "100", "--duration", str(seconds),
                "--prefix-groups", "40", "--prefix-tokens", str(prefix), "--prompt-tokens",
                "64-256", "--output-tokens", "8-32", "--details",
            )  # fmt: skip
            time.sleep(seconds / 3)
            begin = time.monotonic()
            cluster.restart_worker("w2")
            result = finish(running)
        routed = judge_routing(result["per_request"], prefix, {"w2": [begin]})
        report = setting.report
        blocks = result["prompt_tokens"] - result["cached_prompt_tokens"]
        report.say(
            f"{result['completed']} requests, {result['failed']} failed; by worker "
            + ", ".join(f"{name} {routed.workers.get(name, 0)}" for name in names)
        )
        report.say(f"prompt blocks computed: {blocks // BLOCK_TOKENS}; the workers hold 4 x 200")
        report.figure(
            "sent to a worker that holds the prefix", 100 * routed.right / routed.known, "%",
            others.share, least=95,
        )  # fmt: skip
        report.figure(
            "found whole in its cache", 100 * routed.found / routed.known, "%", others.share
        )
        mean = sum(routed.workers.values()) / len(names)
        report.figure(
            "busiest worker over the mean", max(routed.workers.values()) / mean, "times",
            others.share, most=1.5,
        )  # fmt: skip


# ---- failover ------------------------------------------------------------------------------------


def measure_failover(setting: Setting) -> None:
    """How soon the streams of a dead and of a frozen worker go on."""
    timeout = 3
    for number, title, most in (
        (signal.SIGKILL, "killed", 1),
        (signal.SIGSTOP, "frozen", timeout),
    ):
        setting.report.title(f"a worker {title}: streams of two workers")
        for model, name, tokens, context, streams in (
            (setting.tiny, "tiny model", 4000, 8192, 16),
            (setting.model, "demo model", 150, 1024, 8),
        ):
            arguments = ["--worker-timeout", str(timeout)]
            with Cluster(setting.programs, arguments) as cluster:
                for worker in ("w1", "w2"):
                    cluster.add_worker(
                        worker, model, "--threads", "1", "--max-context", str(context),
                        "--max-batch", str(streams),
                    )  # fmt: skip
                cluster.wait_ready()
                with Others(cluster.coordinator, *cluster.workers.values()) as others:
                    running = cluster.start_bench(
                        "--concurrency", str(streams), "--requests", str(streams),
                        "--prompt-tokens", "128", "--output-tokens", str(tokens), "--details",
                    )  # fmt: skip
                    wait_until_busy(cluster.workers["w1"], streams)
                    died = cluster.workers["w1"].signal(number)
                    result = finish(running)
                report_failover(
                    setting.report, cluster, result, died, others.share, f"{title}, {name}",
                    most if model == setting.tiny else None,
                )  # fmt: skip


def wait_until_busy(worker: Process, tokens: int) -> None:
    """Until a worker has generated so many tokens."""
    http = worker_http(worker)
    end = time.monotonic() + PATIENCE_S
    while metric(http, "nosa_generation_tokens_total") < tokens:
        if time.monotonic() > end:
            raise ToolError("the worker generates nothing")
        time.sleep(0.02)


def report_failover(
    report: Report, cluster: Cluster, result: dict[str, Any], died: float, others: float,
    title: str, most: float | None,
) -> None:  # fmt: skip
    """The times from a worker's death to the next one's start of work and to the next token."""
    started = [at - died for at, line in cluster.coordinator.lines if "replayed on" in line]
    # A stream's longest pause is known; it is the one that the death made if it spans it. Tokens
    # that were on their way come a little after.
    resumed = [
        request["gap_begin_s"] + request["gap_ms_max"] / 1000 - died
        for request in result["per_request"]
        if request["worker_id"] == "w1"
        and request["gap_begin_s"]
        and request["gap_begin_s"] < died + 0.1
        and request["gap_begin_s"] + request["gap_ms_max"] / 1000 > died + min(started, default=0)
    ]
    if result["failed"] or not started:
        raise ToolError(f"{result['failed']} requests failed, {len(started)} were replayed")
    report.say(f"{title}: {len(started)} streams replayed, none failed")
    report.figure(f"{title}: taken by the other, last", max(started), "s", others, most=most)
    if len(resumed) >= len(started):
        report.figure(f"{title}: next token, median", statistics.median(resumed), "s", others)
        report.figure(f"{title}: next token, last", max(resumed), "s", others)


# ---- the command ---------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Setting], None]] = {
    "idle": measure_idle,
    "rpc": measure_rpc,
    "latency": measure_latency,
    "relay": measure_relay,
    "batch": measure_batch,
    "prefix": measure_prefix,
    "routing": measure_routing,
    "failover": measure_failover,
}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=" ".join(PARTS))
    parser.add_argument("--model", type=Path, help="directory of the demo model", required=True)
    parser.add_argument("--programs", type=Path, default=TREE / "build" / "bin")
    parser.add_argument("--rounds", type=int, default=3, help="of which medians count")
    parser.add_argument(
        "--pause", type=float, default=0, metavar="SECONDS", help="between rounds, for others"
    )
    parser.add_argument("--json", action="store_true", help="print one object")
    arguments = parser.parse_args()
    for part in arguments.parts:
        if part not in PARTS:
            parser.error(f"'{part}' is none of {' '.join(PARTS)}")
    return arguments


def main() -> int:
    """Measures; 1 when a figure misses what it must reach."""
    arguments = parse()
    report = Report(arguments.json)
    for name in ("nosa-coordinator", "nosa-worker", "nosactl", "nosa-bench"):
        if not (arguments.programs / name).is_file():
            raise ToolError(f"{arguments.programs / name} was not built")
    if not (arguments.model / "config.json").is_file():
        raise ToolError(f"--model: there is no {arguments.model / 'config.json'}")
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(
            arguments.programs, arguments.model, make_tiny_model(Path(folder)), arguments.rounds,
            arguments.pause, report,
        )  # fmt: skip
        report.say(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
        for name in arguments.parts or PARTS:
            PARTS[name](setting)
    if arguments.json:
        print(json.dumps(report.figures))
    return int(any(figure["reached"] is False for figure in report.figures))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ToolError as error:
        print(f"bench_serving: {error}", file=sys.stderr)
        sys.exit(2)
