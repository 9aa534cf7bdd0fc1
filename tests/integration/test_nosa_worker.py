#!/usr/bin/env python3
"""Generations of nosa-worker, with Python as coordinator and client. Prints TAP."""

from __future__ import annotations

import tempfile
import unittest
from pathlib import Path
from typing import Any

import cluster
import rpc
import tap
from cluster import SAMPLING, Coordinator, Stream, Worker
from program import Checkpoint, run_json
from worker_case import MODEL, Case, Code, prompt


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


class TensorParallel(Case):
    """Ranks of one worker."""

    arguments = ("--tp", 2)

    def test_tokens_equal_nosa_run_of_as_many_ranks(self) -> None:
        """Greedy and drawn, alone and together; the card says how many ranks there are."""
        self.assertEqual(self.coordinator.joins[0].capacity.tensor_parallel, 2)
        asks = [
            (prompt(i, 100 + 60 * i), SAMPLING(temperature=i % 2, seed=i + 1)) for i in range(4)
        ]
        streams = [self.run_one(ids, 16, sampling=how, ignore_eos=True) for ids, how in asks]
        for (ids, how), stream in zip(asks, streams, strict=True):
            self.assertEqual(stream.wait().code, Code.OK, stream.details)
            offline = run_json(
                "--model", self.model, "--prompt-tokens", ",".join(map(str, ids)),
                "--max-tokens", 16, "--max-context", 2048, "--ignore-eos", "--tp", 2,
                "--temperature", how.temperature, "--seed", how.seed,
            )  # fmt: skip
            self.assertEqual(stream.tokens, offline["tokens"])
        self.quiet()

    def test_cancel_frees_the_ranks(self) -> None:
        """And the worker ends well."""
        stream = self.run_one(prompt(9), 40000, ignore_eos=True)
        stream.arrived.get(timeout=cluster.PATIENCE_S)
        stream.call.cancel()
        self.assertEqual(stream.wait().code, Code.CANCELLED)
        self.quiet()
        self.assertEqual(self.worker.stop(), 0)


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


if __name__ == "__main__":
    tap.main()
