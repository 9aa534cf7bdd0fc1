#!/usr/bin/env python3
"""What operators see of nosa-worker: metrics, probes, log lines. Prints TAP."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import tempfile
import unittest
from pathlib import Path
from typing import Any

import cluster
import rpc
import tap
from cluster import Coordinator, Stream, Worker
from program import Checkpoint
from worker_case import MODEL, Case, Code, prompt

PROMTOOL = rpc.TREE / ".venv" / "bin" / "promtool"
TIERS = ("gpu", "host", "nvme")
TRANSFERS = (("gpu", "host"), ("host", "gpu"), ("host", "nvme"), ("nvme", "host"))

# Names that users rely on, with their labels.
NAMES = [
    *"""
nosa_requests_running nosa_requests_waiting nosa_requests_suspended
nosa_time_to_first_token_seconds_count nosa_inter_token_latency_seconds_count
nosa_e2e_request_latency_seconds_count nosa_request_queue_time_seconds_count
nosa_step_duration_seconds_count nosa_kv_stall_seconds_count
nosa_prompt_tokens_total nosa_generation_tokens_total nosa_prompt_tokens_cached_total
nosa_kv_corrupt_blocks_total nosa_kv_recomputed_blocks_total
nosa_kv_prefetched_records_total nosa_kv_prefetched_records_used_total
nosa_kv_prefix_lookup_tokens_total nosa_kv_prefix_hit_tokens_total
nosa_kv_evicted_blocks_total nosa_kv_saved_blocks_total nosa_kv_loaded_blocks_total
nosa_kv_lost_blocks_total nosa_kv_nvme_bypassed nosa_kv_nvme_bypassed_blocks_total
nosa_kv_nvme_failed_writes_total nosa_kv_nvme_write_budget_left_bytes
nosa_request_suspends_total nosa_request_drops_total nosa_decode_stalls_total
nosa_kv_blocks_used nosa_sessions_open
""".split(),
    *(f'nosa_kv_block_hits_total{{tier="{tier}"}}' for tier in TIERS),
    *(f'nosa_kv_usage_ratio{{tier="{tier}"}}' for tier in TIERS),
    *(f'nosa_kv_transfer_bytes_total{{from="{a}",to="{b}"}}' for a, b in TRANSFERS),
    *(f'nosa_requests_total{{code="{code}"}}' for code in ("OK", "CANCELLED", "INTERNAL")),
    *(f'nosa_kv_nvme_refused_writes_total{{reason="{reason}"}}' for reason in ("full", "budget")),
    *(f'nosa_kv_nvme_io_method{{method="{name}"}}' for name in ("io_uring", "threads", "none")),
]


class TierCase(Case):
    """Tiers that are too small for what is asked."""

    def setUp(self) -> None:
        """An NVMe tier of its own."""
        self.nvme = Path(self.folder.name) / self.id()
        self.nvme.mkdir()
        self.arguments = (
            "--max-context", 4096, "--max-batch", 4, "--gpu-kv-bytes", "3M", "--host-kv-bytes",
            "5M", "--nvme-dir", self.nvme, "--nvme-kv-bytes", "64M",
        )  # fmt: skip
        super().setUp()


class Metrics(TierCase):
    """Names, values, and what promtool says of them."""

    def test_names(self) -> None:
        """Every name is there from the beginning, once, with help and type."""
        text = self.worker.get("metrics")[1]
        for name in NAMES:
            self.worker.metric(name)
        families = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
        self.assertEqual(len(families), len({name for name, _ in families}))
        helped = set(re.findall(r"^# HELP (\S+) \S", text, re.MULTILINE))
        self.assertEqual(helped, {name for name, _ in families})
        for name, kind in families:
            self.assertTrue(name.startswith("nosa_"), name)
            self.assertEqual(kind == "counter", name.endswith("_total"), name)

    def test_promtool(self) -> None:
        """The stock tool has nothing to say, idle and after work."""
        if not Path(PROMTOOL).exists():
            self.skipTest("there is no promtool (scripts/promtool.sh fetches it)")
        for _ in range(2):
            done = subprocess.run(
                [PROMTOOL, "check", "metrics"],
                input=self.worker.get("metrics")[1], capture_output=True, text=True, check=False,
                timeout=cluster.PATIENCE_S,
            )  # fmt: skip
            self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))
            self.run_one(prompt(1, 300), 20, ignore_eos=True).wait()

    def test_tiers_are_counted(self) -> None:
        """Requests that the first tier cannot hold: hits, bytes and usage in every tier, and
        in heartbeats."""
        for _ in range(2):
            streams = [self.run_one(prompt(i, 1500), 40, ignore_eos=True) for i in range(4)]
            for stream in streams:
                self.assertEqual(stream.wait().code, Code.OK, stream.details)
        usage = streams[0].done.usage
        self.assertGreater(usage.kv_gpu_hits, 0)
        self.assertGreater(usage.kv_host_hits, 0)
        for name in (
            'nosa_kv_block_hits_total{tier="gpu"}',
            'nosa_kv_block_hits_total{tier="host"}',
            'nosa_kv_transfer_bytes_total{from="gpu",to="host"}',
            'nosa_kv_transfer_bytes_total{from="host",to="gpu"}',
            'nosa_kv_transfer_bytes_total{from="host",to="nvme"}',
            "nosa_kv_saved_blocks_total",
            "nosa_kv_prefix_hit_tokens_total",
        ):
            rpc.eventually(lambda n=name: self.worker.metric(n) > 0, name, cluster.PATIENCE_S)
        for tier in TIERS:
            name = f'nosa_kv_usage_ratio{{tier="{tier}"}}'
            rpc.eventually(lambda n=name: 0 < self.worker.metric(n) <= 1, name, 20)
        self.assertEqual(self.worker.metric("nosa_generation_tokens_total"), 8 * 40)
        self.assertEqual(self.worker.metric('nosa_requests_total{code="OK"}'), 8)
        self.assertEqual(self.worker.metric("nosa_kv_corrupt_blocks_total"), 0)
        self.quiet()
        rpc.eventually(
            lambda: self.coordinator.heartbeats[-1].load.kv.host_hits > 0, "heartbeats say so", 20
        )


class Corrupt(TierCase):
    """Prefixes on NVMe of which bytes have changed."""

    def test_lost_blocks_are_computed_again(self) -> None:
        """The same tokens; usage and metrics say what was lost."""
        ids = prompt(5, 2000)
        before = self.run_one(ids, 8, ignore_eos=True).wait().tokens
        self.assertEqual(self.worker.stop(), 0)
        file = self.nvme / "nosa-kv.dat"
        with file.open("r+b") as data:
            for at in range(50000, file.stat().st_size, 200000):
                data.seek(at)
                byte = data.read(1)
                data.seek(at)
                data.write(bytes([byte[0] ^ 0xFF]))
        coordinator = Coordinator()
        self.addCleanup(coordinator.stop)
        self.worker = Worker(
            self.model, "--coordinator", coordinator.address, "--id", "w1", *self.arguments
        )
        self.addCleanup(self.worker.__exit__)
        rpc.eventually(lambda: coordinator.joins, "joined", cluster.PATIENCE_S)
        self.worker.identify(coordinator.joins[0])
        with self.worker.channel() as channel:
            request = self.worker.request(ids, 8, ignore_eos=True)
            stream = Stream(rpc.Service(channel, cluster.SERVICE).Run(request)).wait()
        self.assertEqual(stream.tokens, before)
        self.assertGreater(stream.done.usage.kv_recomputed_blocks, 0)
        self.assertGreater(self.worker.metric("nosa_kv_corrupt_blocks_total"), 0)
        self.assertGreater(self.worker.metric("nosa_kv_recomputed_blocks_total"), 0)
        self.quiet()


class Probes(Case):
    """Alive and ready are two things."""

    arguments = ("--max-batch", 1, "--max-queue", 1)

    def test_deaf_listener_is_not_alive(self) -> None:
        """healthz dials the port, which nobody answers when there are no descriptors left: whoever
        watches it starts the worker anew, for the listener may stay so."""
        pid = self.worker.process.pid
        self.assertEqual(self.worker.get("healthz")[0], 200)
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        held = len(os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (held + 1, before[1]))
        self.assertEqual(self.worker.get("healthz")[0], 503)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)

    def test_full_is_not_ready(self) -> None:
        """Batch and queue full: 503 that says so, and ready again when a place is free."""
        streams = [self.run_one(prompt(i), 40000, ignore_eos=True) for i in range(2)]
        rpc.eventually(lambda: self.worker.get("readyz")[0] == 503, "full", 20)
        self.assertIn("full", self.worker.get("readyz")[1])
        self.assertEqual(self.worker.get("healthz")[0], 200)
        for stream in streams:
            stream.call.cancel()
        rpc.eventually(lambda: self.worker.get("readyz")[0] == 200, "ready", 20)


class Logs(unittest.TestCase):
    """Lines of JSON."""

    def lines_of_one(self, slow_s: str) -> list[dict[str, Any]]:
        """Those of a worker's life with one request."""
        with tempfile.TemporaryDirectory() as folder:
            model = Checkpoint(Path(folder), MODEL).path
            coordinator = Coordinator()
            self.addCleanup(coordinator.stop)
            with Worker(
                model, "--coordinator", coordinator.address, "--id", "w-7", "--log-format", "json",
                "--slow-request", slow_s, "--max-context", 2048,
            ) as worker:  # fmt: skip
                rpc.eventually(lambda: coordinator.joins, "joined", cluster.PATIENCE_S)
                worker.identify(coordinator.joins[0])
                with worker.channel() as channel:
                    request = worker.request(prompt(1, 300), 20, ignore_eos=True, request_id="r-9")
                    list(rpc.Service(channel, cluster.SERVICE).Run(request))
                worker.find("(request r-9)")
                self.assertEqual(worker.stop(), 0)
        return [json.loads(line) for line in worker.lines]

    def test_each_names_worker_and_request(self) -> None:
        """Every line is an object with the worker's id; that of a slow request says where its
        time went, under its id."""
        lines = self.lines_of_one("0.000001")
        for line in lines:
            self.assertLessEqual({"time", "level", "subsystem", "message"}, set(line))
        ported = next(i for i, line in enumerate(lines) if "listens on port" in line["message"])
        for line in lines[ported:]:
            self.assertEqual(line.get("worker"), "w-7", line)
        slow = [line for line in lines if line.get("request") == "r-9"]
        self.assertEqual([line["level"] for line in slow], ["warn"])
        for part in ("slow", "300 prompt tokens", "20 of output", "queued", "to the first token",
                     "decoding", "NVMe", "suspended", "paused"):  # fmt: skip
            self.assertIn(part, slow[0]["message"])

    def test_none_is_slow(self) -> None:
        """--slow-request 0: the request's end is there to debug, and nothing else."""
        lines = [line for line in self.lines_of_one("0") if line.get("request") == "r-9"]
        self.assertEqual([line["level"] for line in lines], ["debug"])
        self.assertNotIn("slow,", lines[0]["message"])


if __name__ == "__main__":
    tap.main()
