#!/usr/bin/env python3
"""How generations of nosa-worker end before their time, at every stage. Prints TAP."""

from __future__ import annotations

import re
import subprocess
import time
import unittest
from pathlib import Path
from typing import Any

import cluster
import rpc
import tap
from cluster import Coordinator, Stream, Worker
from program import environment
from worker_case import (
    DECODE,
    ENDLESS,
    LIST,
    PAUSED,
    PREFILL,
    QUEUED,
    SUSPENDED,
    Case,
    Code,
    prompt,
)

SLOW = 5 if rpc.SANITIZED else 1
"""Times that everything takes longer."""


class Ends(Case):
    """How generations end early."""

    arguments = ("--max-batch", 2, "--max-queue", 3)

    def long(self, seed: int = 5, **fields: Any) -> Stream:
        """One that takes a while and has begun."""
        stream = self.run_one(prompt(seed), ENDLESS, ignore_eos=True, **fields)
        stream.arrived.get(timeout=cluster.PATIENCE_S)
        return stream

    def test_cancel_deadline_and_operator(self) -> None:
        """Each gives everything back."""
        stream = self.long()
        stream.call.cancel()
        self.assertEqual(stream.wait().code, Code.CANCELLED)
        self.quiet()
        late = self.run_one(prompt(6), ENDLESS, ignore_eos=True, timeout=0.2).wait()
        self.assertEqual(late.code, Code.DEADLINE_EXCEEDED)
        self.quiet()
        stream = self.long(request_id="mine")
        listed = self.service.ListRuns(rpc.message("nosa.cluster.v1.ListRunsRequest")()).runs
        self.assertEqual([run.request_id for run in listed], ["mine"])
        cancel = rpc.message("nosa.cluster.v1.CancelRunRequest")
        self.service.CancelRun(cancel(request_id="mine"))
        self.assertEqual(stream.wait().code, Code.CANCELLED)
        code, _ = rpc.status_of(lambda: self.service.CancelRun(cancel(request_id="mine")))
        self.assertEqual(code, Code.NOT_FOUND)
        self.quiet()

    def test_disconnect_frees_the_kv(self) -> None:
        """A connection that goes away."""
        channel = self.worker.channel()
        stream = Stream(
            rpc.Service(channel, cluster.SERVICE).Run(
                self.worker.request(prompt(7), ENDLESS, ignore_eos=True)
            )
        )
        stream.arrived.get(timeout=cluster.PATIENCE_S)
        rpc.eventually(lambda: self.worker.metric("nosa_kv_blocks_used") > 0, "KV is held", 20)
        channel.close()
        stream.wait()
        self.quiet()

    def test_overload_is_refused_at_once(self) -> None:
        """Batch and queue full: RESOURCE_EXHAUSTED; whatever is inside goes on."""
        inside = [self.long(i) for i in range(2)]
        inside += [self.run_one(prompt(i), ENDLESS, ignore_eos=True) for i in range(3)]
        listing = rpc.message("nosa.cluster.v1.ListRunsRequest")()
        rpc.eventually(lambda: len(self.service.ListRuns(listing).runs) == 5, "five inside", 20)
        start = time.monotonic()
        refused = self.run_one(prompt(9), 5).wait()
        self.assertEqual(refused.code, Code.RESOURCE_EXHAUSTED)
        self.assertIn("--max-queue", refused.details)
        self.assertLess(time.monotonic() - start, 2)
        self.assertEqual(self.worker.get("readyz")[0], 503)
        for stream in inside:
            stream.call.cancel()
        for stream in inside:
            stream.wait()
        self.quiet()
        self.assertEqual(self.run_one(prompt(9), 5, ignore_eos=True).wait().code, Code.OK)

    def test_slow_reader_is_paused(self) -> None:
        """It stops at a bound, holds nobody up, and gets every token when it reads on."""
        window = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 16384)]
        channel = self.worker.channel(*window)
        self.addCleanup(channel.close)
        request = self.worker.request(prompt(8), 3000, ignore_eos=True, logprobs=20)
        request.request_id = "slow"
        call = rpc.Service(channel, cluster.SERVICE).Run(request)
        listing = rpc.message("nosa.cluster.v1.ListRunsRequest")()

        def paused() -> bool:
            runs = self.service.ListRuns(listing).runs
            return any(run.request_id == "slow" and run.state == 5 for run in runs)

        rpc.eventually(paused, "paused", cluster.PATIENCE_S)
        at = self.service.ListRuns(listing).runs[0].output_tokens
        self.assertLess(at, 3000)
        other = self.run_one(prompt(10), 20, ignore_eos=True).wait()
        self.assertEqual(len(other.tokens), 20)
        self.assertEqual(self.service.ListRuns(listing).runs[0].output_tokens, at)
        slow = Stream(call).wait()
        self.assertEqual((slow.code, len(slow.tokens)), (Code.OK, 3000))
        self.assertEqual(self.run_one(prompt(8), 3000, ignore_eos=True).wait().tokens, slow.tokens)
        self.quiet()


class StageCase(Case):
    """Cancelled, past its deadline or disconnected, a request frees everything at once."""

    def before_each(self) -> None:
        """Before each way of ending."""

    def state(self, request_id: str) -> int:
        """Where a request is; 0: nowhere."""
        runs = self.service.ListRuns(LIST).runs
        return next((run.state for run in runs if run.request_id == request_id), 0)

    def await_state(self, request_id: str, *states: int) -> None:
        """Until the request is there."""
        rpc.eventually(
            lambda: self.state(request_id) in states,
            f"{request_id} is {states}",
            cluster.PATIENCE_S,
        )

    def end_each_way(self, stage: Any, deadline_s: float) -> None:
        """`stage(ask)` asks, and brings the request to its stage; the rest runs on meanwhile."""
        for way, code in (
            ("cancel", Code.CANCELLED),
            ("disconnect", Code.CANCELLED),
            ("deadline", Code.DEADLINE_EXCEEDED),
        ):
            with self.subTest(way):
                self.before_each()
                timeout = deadline_s * SLOW if way == "deadline" else None
                channel = self.worker.channel()
                service = rpc.Service(channel, cluster.SERVICE)

                def ask(ids: list[int], service: Any = service, t: Any = timeout) -> Stream:
                    request = self.worker.request(ids, 40000, ignore_eos=True, request_id="it")
                    return Stream(service.Run(request, timeout=t))

                stream, others = stage(ask)
                if way == "cancel":
                    stream.call.cancel()
                elif way == "disconnect":
                    channel.close()
                self.assertEqual(stream.wait().code, code, stream.details)
                rpc.eventually(lambda: self.state("it") == 0, "it is gone", 2 * SLOW)
                for other in others:
                    self.assertIn(other.code, (None, Code.OK), other.details)
                    other.call.cancel()
                    other.wait()
                rpc.eventually(self.worker.is_quiet, "all blocks are back", 2 * SLOW)
                channel.close()
        again = self.run_one(prompt(3), 5, ignore_eos=True).wait()
        self.assertEqual(len(again.tokens), 5)

    def running(self, seed: int, length: int = 40, **fields: Any) -> Stream:
        """Another request, that decodes."""
        stream = self.run_one(prompt(seed, length), 40000, ignore_eos=True, **fields)
        stream.arrived.get(timeout=cluster.PATIENCE_S)
        return stream


class Stages(StageCase):
    """Those that need nothing else."""

    arguments = ("--max-batch", 1, "--prefill-chunk", 64, "--attention", "full")

    def test_queued(self) -> None:
        """Behind one that runs."""

        def stage(ask: Any) -> tuple[Stream, list[Stream]]:
            other = self.running(4)
            stream = ask(prompt(5))
            self.await_state("it", QUEUED)
            return stream, [other]

        self.end_each_way(stage, 0.5)

    def test_prefill(self) -> None:
        """In the middle of a long prompt."""
        number = iter(range(100))

        def stage(ask: Any) -> tuple[Stream, list[Stream]]:
            stream = ask(prompt(50 + next(number), 20000))
            self.await_state("it", PREFILL)
            rpc.eventually(lambda: self.worker.metric("nosa_kv_blocks_used") > 4, "KV is held", 20)
            return stream, []

        self.end_each_way(stage, 0.5)

    def test_decode(self) -> None:
        """While tokens come."""

        def stage(ask: Any) -> tuple[Stream, list[Stream]]:
            stream = ask(prompt(7))
            stream.arrived.get(timeout=cluster.PATIENCE_S)
            self.await_state("it", DECODE)
            return stream, []

        self.end_each_way(stage, 1)


class Suspended(StageCase):
    """Block ids for one context: what ranks first takes them from the others."""

    @classmethod
    def setUpClass(cls) -> None:
        """As small as it can be."""
        super().setUpClass()
        fixed = ("--max-context", 32768, "--max-batch", 4, "--host-kv-bytes", "128M",
                 "--prefill-chunk", 2048)  # fmt: skip
        done = subprocess.run(
            [cluster.WORKER, "--model", cls.model, "--listen", "127.0.0.1:0", "--gpu-kv-bytes",
             "1K", *map(str, fixed)],
            capture_output=True, text=True, check=False, timeout=cluster.PATIENCE_S,
            env=environment(),
        )  # fmt: skip
        least = re.search(r"give at least (\d+)", done.stderr)
        cls.arguments = (*fixed, "--gpu-kv-bytes", least.group(1))

    def test_suspended(self) -> None:
        """Its KV lies below, while another one has its place."""

        def stage(ask: Any) -> tuple[Stream, list[Stream]]:
            stream = ask(prompt(8, 20000))
            stream.arrived.get(timeout=cluster.PATIENCE_S)
            other = self.running(9, 14000, priority=10)
            self.await_state("it", SUSPENDED)
            self.assertEqual(self.worker.metric("nosa_requests_suspended"), 1)
            return stream, [other]

        self.end_each_way(stage, 5)

    def test_shared_prefix_costs_no_blocks(self) -> None:
        """Two of one prompt stay resident where two of different prompts could not."""
        first = self.running(13, 20000)
        second = self.run_one(prompt(13, 20000), 40000, ignore_eos=True)
        second.arrived.get(timeout=cluster.PATIENCE_S)
        rpc.eventually(lambda: self.worker.metric("nosa_requests_running") == 2, "both run", 5)
        self.assertLess(self.worker.metric("nosa_kv_blocks_used"), 512)
        self.assertIsNone(first.code)
        self.assertGreater(second.started.cached_prompt_tokens, 19900)
        self.assertEqual(self.worker.metric("nosa_request_suspends_total"), 0)
        self.assertEqual(self.worker.metric("nosa_request_drops_total"), 0)
        for stream in (first, second):
            stream.call.cancel()
            stream.wait()
        self.quiet()

    def test_paused_reader_gives_its_place_away(self) -> None:
        """Whoever does not read is suspended for one that does, even for a later one of less
        priority, and gets every token when it reads on."""
        window = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 16384)]
        channel = self.worker.channel(*window)
        self.addCleanup(channel.close)
        request = self.worker.request(
            prompt(11, 20000), 3000, ignore_eos=True, logprobs=20, request_id="slow", priority=9
        )
        call = rpc.Service(channel, cluster.SERVICE).Run(request)
        self.await_state("slow", PAUSED)
        other = self.running(12, 14000)
        self.assertEqual(self.worker.metric("nosa_requests_suspended"), 1)
        self.assertEqual(self.state("slow"), PAUSED)
        other.call.cancel()
        other.wait()
        slow = Stream(call).wait()
        self.assertEqual((slow.code, len(slow.tokens)), (Code.OK, 3000))
        line = self.worker.find(r"(request slow: .*)")
        self.assertRegex(line, r" [1-9]\d* ms suspended, [1-9]\d* ms paused")
        self.assertGreater(self.worker.metric("nosa_kv_loaded_blocks_total"), 0)
        rpc.eventually(
            lambda: self.coordinator.heartbeats[-1].load.host_tokens_per_s > 0, "a rate is told", 20
        )
        self.quiet()


@unittest.skipIf(rpc.SANITIZED, "nothing is preloaded into a sanitizer's build")
@unittest.skipUnless(Path(cluster.PRELOAD).exists(), "there is no library to preload")
class SlowDisk(StageCase):
    """Prefixes that lie on a disk whose reads take seconds."""

    arguments = ("--max-context", 8192, "--max-batch", 4)

    def setUp(self) -> None:
        """A worker leaves prefixes behind; the next one reads them."""
        nvme = Path(self.folder.name) / self.id()
        nvme.mkdir()
        kept = ("--nvme-dir", nvme, "--nvme-kv-bytes", "64M", "--host-kv-bytes", "8M")
        self.arguments = (*type(self).arguments, *kept)
        super().setUp()
        for seed in (20, 21, 22):
            self.run_one(prompt(seed, 4000), 2, ignore_eos=True).wait()
        self.assertEqual(self.worker.stop(), 0)

    def before_each(self) -> None:
        """A worker that finds them, slowly."""
        self.worker.__exit__()
        slow = Path(self.folder.name) / "slow"
        slow.unlink(missing_ok=True)
        coordinator = Coordinator()
        self.addCleanup(coordinator.stop)
        self.worker = Worker(
            self.model, "--coordinator", coordinator.address, "--id", "w1", *self.arguments,
            refuse_io_uring=True,
            env={"LD_PRELOAD": cluster.PRELOAD, "SLOW_READS_MS": "3000",
                 "SLOW_READS_WHEN": str(slow)},
        )  # fmt: skip
        self.addCleanup(self.worker.__exit__)
        rpc.eventually(lambda: coordinator.joins, "joined", cluster.PATIENCE_S)
        self.worker.identify(coordinator.joins[0])
        self.service = rpc.Service(self.worker.channel(), cluster.SERVICE)
        slow.touch()

    def test_waiting_for_nvme(self) -> None:
        """Nothing waits for the disk any more, though the reads are still under way; others run."""
        method = 'nosa_kv_nvme_io_method{method="threads"}'
        seeds = iter((20, 21, 22))

        def stage(ask: Any) -> tuple[Stream, list[Stream]]:
            self.assertEqual(self.worker.metric(method), 1)
            other = self.running(30)
            stream = ask(prompt(next(seeds), 4000))
            self.await_state("it", QUEUED)
            time.sleep(0.2)
            self.assertEqual(self.state("it"), QUEUED)
            self.assertGreater(self.worker.metric("nosa_kv_blocks_used"), 50)
            return stream, [other]

        self.end_each_way(stage, 1)

    def test_reads_count_as_stall(self) -> None:
        """A request that waits to the end says so in its usage."""
        self.before_each()
        stream = self.run_one(prompt(20, 4000), 3, ignore_eos=True).wait()
        self.assertEqual(stream.code, Code.OK, stream.details)
        self.assertGreater(stream.done.usage.kv_stall_ms, 1000)
        self.assertEqual(self.worker.metric("nosa_kv_stall_seconds_count"), 1)
        self.quiet()


if __name__ == "__main__":
    tap.main()
