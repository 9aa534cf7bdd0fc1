#!/usr/bin/env python3
"""nosa-worker against stock gRPC: Python plays coordinator and client. Prints TAP."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import tempfile
import time
import unittest
from pathlib import Path
from typing import Any

import cluster
import grpc
import rpc
import tap
from cluster import SAMPLING, Coordinator, Stream, Worker
from program import Checkpoint, run_json

MODEL = "kv4_group4_d16_r1_yarn"
READY, DRAINING, DRAINED = 2, 3, 4
CONTEXT = 65536
ENDLESS = 60000
"""Tokens that take seconds, whatever the machine."""
Code = grpc.StatusCode


def prompt(seed: int, length: int = 40) -> list[int]:
    """Token ids that are not the end of text."""
    return [3 + (seed * 7919 + i * i * 31 + i * 17) % 250 for i in range(length)]


class Case(unittest.TestCase):
    """A test with a coordinator and a worker."""

    arguments: tuple[Any, ...] = ()

    @classmethod
    def setUpClass(cls) -> None:
        """Makes the checkpoint."""
        cls.folder = tempfile.TemporaryDirectory()
        checkpoint = Checkpoint(Path(cls.folder.name), MODEL)
        checkpoint.config(max_position_embeddings=CONTEXT)
        cls.model = checkpoint.path

    @classmethod
    def tearDownClass(cls) -> None:
        """Removes it."""
        cls.folder.cleanup()

    def setUp(self) -> None:
        """Starts both."""
        self.coordinator = Coordinator()
        self.addCleanup(lambda: self.coordinator.stop())
        self.worker = Worker(
            self.model, "--coordinator", self.coordinator.address, "--id", "w1", *self.arguments
        )
        self.addCleanup(self.worker.__exit__)
        rpc.eventually(lambda: self.coordinator.joins, "joined", cluster.PATIENCE_S)
        self.worker.identify(self.coordinator.joins[0])
        self.channel = self.worker.channel()
        self.addCleanup(self.channel.close)
        self.service = rpc.Service(self.channel, cluster.SERVICE)

    def run_one(self, *arguments: Any, timeout: float | None = None, **fields: Any) -> Stream:
        """Starts a generation."""
        return Stream(self.service.Run(self.worker.request(*arguments, **fields), timeout=timeout))

    def quiet(self) -> None:
        """Waits until the worker holds nothing."""
        rpc.eventually(self.worker.is_quiet, "everything is given back", cluster.PATIENCE_S)


class Generation(Case):
    """Tokens."""

    def offline(self, ids: list[int], count: int, *flags: Any) -> list[int]:
        """What nosa-run generates."""
        text = ",".join(map(str, ids))
        return run_json(
            "--model", self.model, "--prompt-tokens", text, "--max-tokens", count,
            "--max-context", 2048, "--ignore-eos", *flags,
        )["tokens"]  # fmt: skip

    def test_greedy_and_seeded_equal_nosa_run(self) -> None:
        """The same tokens as offline."""
        ids = prompt(1, 300)
        greedy = self.run_one(ids, 24, ignore_eos=True).wait()
        self.assertEqual(greedy.code, Code.OK, greedy.details)
        self.assertEqual(greedy.tokens, self.offline(ids, 24))
        self.assertEqual(greedy.done.usage.prompt_tokens, 300)
        self.assertEqual(greedy.done.usage.completion_tokens, 24)
        self.assertEqual(greedy.done.reason, 2)
        sampling = SAMPLING(temperature=0.8, top_k=40, seed=77, repetition_penalty=1.2)
        drawn = self.run_one(ids, 24, ignore_eos=True, sampling=sampling).wait()
        flags = ("--temperature", 0.8, "--top-k", 40, "--seed", 77, "--repetition-penalty", 1.2)
        self.assertEqual(drawn.tokens, self.offline(ids, 24, *flags))
        self.assertGreaterEqual(drawn.started.cached_prompt_tokens, 256)
        self.quiet()

    def test_streams_together_equal_those_alone(self) -> None:
        """8 and 32 at once, prompts of all lengths, greedy and drawn."""
        asks = [
            (prompt(i, 5 + 37 * (i % 9)), 12 + i % 7, SAMPLING(temperature=i % 2, seed=i + 1))
            for i in range(32)
        ]
        alone = []
        for ids, count, sampling in asks:
            stream = self.run_one(ids, count, sampling=sampling, ignore_eos=True).wait()
            self.assertEqual(stream.code, Code.OK, stream.details)
            alone.append(stream.tokens)
        for number in (8, 32):
            streams = [
                self.run_one(ids, count, sampling=sampling, ignore_eos=True, cache_salt=str(number))
                for ids, count, sampling in asks[:number]
            ]
            self.assertEqual([stream.wait().tokens for stream in streams], alone[:number])
        self.quiet()

    def test_resumed_goes_on_to_the_token(self) -> None:
        """What was delivered counts as output, wherever the cut is."""
        ids = prompt(3, 130)
        sampling = SAMPLING(temperature=1, seed=9, presence_penalty=0.5)
        whole = self.run_one(ids, 20, sampling=sampling, ignore_eos=True).wait().tokens
        self.assertEqual(len(whole), 20)
        for cut in (1, 7, 19, 20):
            rest = self.run_one(
                ids, 20, sampling=sampling, ignore_eos=True, output_token_ids=whole[:cut]
            ).wait()
            self.assertEqual((rest.code, rest.tokens), (Code.OK, whole[cut:]), f"cut at {cut}")
            self.assertEqual(rest.done.usage.completion_tokens, 20)
        self.quiet()

    def test_stop_tokens_and_logprobs(self) -> None:
        """A stop token ends it and is delivered; alternatives come with each token."""
        ids = prompt(4)
        free = self.run_one(ids, 10, ignore_eos=True, logprobs=5).wait()
        self.assertEqual(len(free.logprobs), 10)
        for token, logprob in zip(free.tokens, free.logprobs):
            self.assertEqual((logprob.token_id, len(logprob.top)), (token, 5))
            self.assertEqual(logprob.top[0].token_id, token)
        stop = free.tokens[4]
        ended = self.run_one(ids, 10, ignore_eos=True, stop_token_ids=[stop]).wait()
        self.assertEqual(ended.tokens, free.tokens[: free.tokens.index(stop) + 1])
        self.assertEqual(ended.done.reason, 1)

    def test_bad_requests_name_the_field(self) -> None:
        """INVALID_ARGUMENT, or FAILED_PRECONDITION for another worker or model."""
        good = self.worker.request([5, 6], 1)
        cases = [
            ("prompt_token_ids", Code.INVALID_ARGUMENT, {"prompt_token_ids": [256]}),
            ("output_token_ids", Code.INVALID_ARGUMENT, {"output_token_ids": [1 << 31]}),
            ("logprobs", Code.INVALID_ARGUMENT, {"logprobs": 21}),
            ("sampling.top_p", Code.INVALID_ARGUMENT, {"sampling": SAMPLING(top_p=float("nan"))}),
            ("sampling.temperature", Code.INVALID_ARGUMENT, {"sampling": SAMPLING(temperature=-1)}),
        ]
        for field, code, values in cases:
            request = cluster.RUN()
            request.CopyFrom(good)
            for name in values:
                request.ClearField(name)
            request.MergeFrom(cluster.RUN(**values))
            got, text = rpc.status_of(lambda r=request: list(self.service.Run(r)))
            self.assertEqual((got, field in text), (code, True), f"{field}: {text}")
        for field in ("prompt_token_ids", "max_tokens", "request_id", "sampling"):
            request = cluster.RUN()
            request.CopyFrom(good)
            request.ClearField(field)
            got, text = rpc.status_of(lambda r=request: list(self.service.Run(r)))
            self.assertEqual((got, field in text), (Code.INVALID_ARGUMENT, True), text)
        for field in ("incarnation", "model_hash"):
            request = cluster.RUN()
            request.CopyFrom(good)
            request.ClearField(field)
            got, text = rpc.status_of(lambda r=request: list(self.service.Run(r)))
            self.assertEqual((got, field in text), (Code.FAILED_PRECONDITION, True), text)
        self.quiet()


class Tiers(unittest.TestCase):
    """Many streams over tiers that are too small for them."""

    def generate(self, model: Path, *arguments: Any) -> list[list[int]]:
        """The tokens of 24 streams on a worker of its own, which then ends well."""
        coordinator = Coordinator()
        self.addCleanup(coordinator.stop)
        with Worker(
            model, "--coordinator", coordinator.address, "--max-context", 1500,
            "--max-batch", 8, "--prefill-chunk", 128, *arguments,
        ) as worker:  # fmt: skip
            rpc.eventually(lambda: coordinator.joins, "joined", cluster.PATIENCE_S)
            worker.identify(coordinator.joins[0])
            with worker.channel() as channel:
                service = rpc.Service(channel, cluster.SERVICE)
                streams = []
                for i in range(24):
                    sampling = SAMPLING(temperature=i % 2, seed=i + 1)
                    request = worker.request(
                        prompt(i, 200 + 50 * (i % 16)),
                        100,
                        ignore_eos=True,
                        priority=i % 3,
                        sampling=sampling,
                    )
                    streams.append(Stream(service.Run(request)))
                for stream in streams:
                    self.assertEqual(stream.wait().code, Code.OK, stream.details)
                rpc.eventually(worker.is_quiet, "everything is given back", cluster.PATIENCE_S)
            self.assertEqual(worker.stop(), 0)
        return [stream.tokens for stream in streams]

    def test_tight_tiers_change_no_token(self) -> None:
        """The same with room for all, and with each tier short of it."""
        with tempfile.TemporaryDirectory() as folder:
            model = Checkpoint(Path(folder), MODEL).path
            nvme = Path(folder) / "nvme"
            nvme.mkdir()
            whole = self.generate(model)
            for arguments in (
                ("--gpu-kv-bytes", "2M", "--host-kv-bytes", "32M"),
                ("--gpu-kv-bytes", "3M", "--host-kv-bytes", "3M", "--nvme-dir", nvme),
                ("--gpu-kv-bytes", "3M", "--host-kv-bytes", "3M", "--nvme-dir", nvme),
                ("--gpu-kv-bytes", "2M", "--host-kv-bytes", "0"),
            ):
                self.assertEqual(self.generate(model, *arguments), whole, str(arguments))


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
        self.quiet()


class Life(Case):
    """The worker among coordinators."""

    arguments = ("--max-batch", 4)

    def test_join_says_who_it_is(self) -> None:
        """Card, capacity, files."""
        join = self.coordinator.joins[0]
        self.assertEqual((join.protocol, join.worker_id), (1, "w1"))
        self.assertEqual(join.address, f"127.0.0.1:{self.worker.port}")
        self.assertEqual((join.model.id, join.model.vocab_size), (MODEL, 256))
        self.assertEqual((join.model.attention, len(join.model.model_hash)), ("nosa", 32))
        self.assertEqual(list(join.model.eos_token_ids), [2])
        self.assertIn("attention=nosa", join.fingerprint)
        fetch = rpc.message("nosa.cluster.v1.FetchModelRequest")
        files: dict[str, bytes] = {}
        for chunk in self.service.FetchModel(fetch(files_hash=join.model.files_hash)):
            files[chunk.name] = files.get(chunk.name, b"") + chunk.data
        self.assertEqual(files["tokenizer.json"], (self.model / "tokenizer.json").read_bytes())
        digest = hashlib.sha256()
        for name, data in files.items():
            digest.update(name.encode() + b"\0" + data)
        self.assertEqual(digest.digest(), join.model.files_hash)
        code, _ = rpc.status_of(lambda: list(self.service.FetchModel(fetch())))
        self.assertEqual(code, Code.FAILED_PRECONDITION)

    def test_heartbeats_tell_prefixes_and_load(self) -> None:
        """The blocks of a prompt turn up, and again after a coordinator has forgotten them."""
        self.run_one(prompt(11, 64 * 20 + 5), 2, ignore_eos=True).wait()
        rpc.eventually(lambda: len(self.coordinator.prefixes) == 20, "20 blocks", 20)
        self.coordinator.prefixes.clear()
        self.coordinator.known.clear()
        rpc.eventually(lambda: len(self.coordinator.prefixes) == 20, "20 again", 20)
        self.assertEqual(len(self.coordinator.joins), 2)
        beat = self.coordinator.heartbeats[-1]
        self.assertEqual((beat.state, beat.load.running), (READY, 0))
        self.assertGreater(beat.load.prefill_tokens_per_s, 0)

    def test_coordinator_restart_stops_nothing(self) -> None:
        """Streams go on, and the worker joins the new one."""
        stream = self.run_one(prompt(12), 600, ignore_eos=True)
        stream.arrived.get(timeout=cluster.PATIENCE_S)
        port = self.coordinator.port
        self.coordinator.stop()
        self.coordinator = Coordinator(port)
        rpc.eventually(lambda: self.coordinator.joins, "joined again", cluster.PATIENCE_S)
        self.assertEqual(self.coordinator.joins[0].incarnation, self.worker.incarnation)
        self.assertEqual(len(stream.wait().tokens), 600)

    def test_drain_and_resume(self) -> None:
        """No new work, then work again; past its time a stream is let go."""
        stream = self.run_one(prompt(13), ENDLESS, ignore_eos=True)
        stream.arrived.get(timeout=cluster.PATIENCE_S)
        drain = rpc.message("nosa.cluster.v1.DrainWorkerRequest")
        resume = rpc.message("nosa.cluster.v1.ResumeWorkerRequest")
        state = self.service.DrainWorker(drain(incarnation=self.worker.incarnation, timeout_ms=300))
        self.assertEqual(state.state, DRAINING)
        self.assertEqual(self.run_one(prompt(13), 5).wait().code, Code.ABORTED)
        self.assertEqual(stream.wait().code, Code.ABORTED)
        rpc.eventually(lambda: self.coordinator.heartbeats[-1].state == DRAINED, "DRAINED", 20)
        self.assertEqual(self.worker.get("readyz")[0], 503)
        self.assertEqual(self.worker.get("healthz")[0], 200)
        state = self.service.ResumeWorker(resume(incarnation=self.worker.incarnation))
        self.assertEqual(state.state, READY)
        self.assertEqual(self.run_one(prompt(13), 5, ignore_eos=True).wait().code, Code.OK)

    def test_unresolvable_coordinator_is_named_once(self) -> None:
        """One line, and the worker serves all the same."""
        with Worker(self.model, "--coordinator", "no-such-host.invalid:1") as worker:
            worker.find(r"(no-such-host\.invalid)")
            self.assertEqual(worker.get("readyz")[0], 200)
            self.assertEqual(worker.stop(), 0)
            self.assertEqual(sum("no-such-host" in line for line in worker.lines), 1)

    def test_sigterm_finishes_what_runs(self) -> None:
        """Exit 0, whole streams, a goodbye."""
        stream = self.run_one(prompt(14), 300, ignore_eos=True)
        stream.arrived.get(timeout=cluster.PATIENCE_S)
        self.assertEqual(self.worker.stop(), 0)
        self.assertEqual((stream.wait().code, len(stream.tokens)), (Code.OK, 300))
        self.assertEqual([leave.worker_id for leave in self.coordinator.leaves], ["w1"])

    def test_newer_start_fences_the_worker(self) -> None:
        """ABORTED to a heartbeat: streams are let go, it ends and does not join again."""
        stream = self.run_one(prompt(15), ENDLESS, ignore_eos=True)
        stream.arrived.get(timeout=cluster.PATIENCE_S)
        self.coordinator.abort = Code.ABORTED
        self.assertEqual(stream.wait().code, Code.ABORTED)
        self.assertEqual(self.worker.process.wait(cluster.PATIENCE_S), 1)
        self.assertEqual(len(self.coordinator.joins), 1)

    def test_killed_worker_ends_streams(self) -> None:
        """SIGKILL: the client sees it at once."""
        stream = self.run_one(prompt(16), ENDLESS, ignore_eos=True)
        stream.arrived.get(timeout=cluster.PATIENCE_S)
        self.worker.process.send_signal(signal.SIGKILL)
        self.assertEqual(stream.wait().code, Code.UNAVAILABLE)


class BadFlags(unittest.TestCase):
    """Exit 2 and one line."""

    def refused(self, needle: str, *arguments: Any) -> None:
        """Runs it and checks its end."""
        done = subprocess.run(
            [cluster.WORKER, *map(str, arguments)], capture_output=True, text=True,
            timeout=cluster.PATIENCE_S, check=False, stdin=subprocess.DEVNULL,
            env={k: v for k, v in os.environ.items() if not k.startswith("NOSA_")},
        )  # fmt: skip
        self.assertEqual(done.returncode, 2, done.stderr)
        last = done.stderr.strip().splitlines()[-1]
        self.assertTrue(last.startswith("nosa-worker: ") and needle in last, done.stderr)

    def test_each_is_named(self) -> None:
        """Flags, files, ports."""
        with tempfile.TemporaryDirectory() as folder, socket.socket() as taken:
            model = Checkpoint(Path(folder), MODEL).path
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            self.refused("--model")
            self.refused("--no-such-flag", "--no-such-flag")
            self.refused("--max-batch", "--model", model, "--max-batch", 0)
            self.refused("--listen", "--model", model, "--listen", "nowhere")
            self.refused("--coordinator", "--model", model, "--coordinator", "a:1,b")
            self.refused("config.json", "--model", folder, "--listen", "127.0.0.1:0")
            self.refused(str(port), "--model", model, "--listen", f"127.0.0.1:{port}")
            self.refused(str(port), "--model", model, "--listen", "127.0.0.1:0",
                         "--http", f"127.0.0.1:{port}")  # fmt: skip
            self.refused("/none.pem", "--model", model, "--tls-cert", "/none.pem",
                         "--tls-key", "/none.pem")  # fmt: skip


if __name__ == "__main__":
    tap.main()
