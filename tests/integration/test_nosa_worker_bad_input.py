#!/usr/bin/env python3
"""The API of nosa-worker with what it must refuse: a status that names the field, and the worker
lives. NOSA_MUTATIONS is the number of spoilt messages of each method. Prints TAP."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import cluster
import rpc
import tap
from api_corpus import HEALTH, MUTATIONS, UINT32_MAX, Corpus, bad_floats, mutate
from cluster import RUN, SAMPLING
from worker_case import CONTEXT, READY, Case, Code, prompt

DRAIN = rpc.message("nosa.cluster.v1.DrainWorkerRequest")
RESUME = rpc.message("nosa.cluster.v1.ResumeWorkerRequest")
UINT64_MAX = (1 << 64) - 1


class Api(Corpus, Case):
    """A worker, and a client that is no coordinator of its kind."""

    services = (cluster.SERVICE, HEALTH)

    def setUp(self) -> None:
        """Knows what the worker answers when it is well."""
        super().setUp()
        self.expected = self.run_one(prompt(1), 8, ignore_eos=True).wait().tokens
        self.assertEqual(len(self.expected), 8)

    def tearDown(self) -> None:
        """Whatever came, it serves the same, and holds nothing."""
        self.resume()
        again = self.run_one(prompt(1), 8, ignore_eos=True).wait()
        self.assertEqual((again.code, again.tokens), (Code.OK, self.expected), again.details)
        self.quiet()
        self.assertEqual(self.worker.stop(), 0)

    def resume(self) -> None:
        """Lets it work again, whatever a message made of it."""
        state = self.service.ResumeWorker(RESUME(incarnation=self.worker.incarnation)).state
        self.assertEqual(state, READY)

    def run_status(self, **changes: Any) -> tuple[Code, str]:
        """How a run ends that is good but for these fields."""
        request = self.worker.request(prompt(2), 3, ignore_eos=True)
        for name in changes:
            request.ClearField(name)
        request.MergeFrom(RUN(**changes))
        return rpc.status_of(lambda: list(self.service.Run(request, timeout=cluster.PATIENCE_S)))

    def test_strings(self) -> None:
        """Invalid UTF-8 in every string field of every request."""
        self.assertGreaterEqual(self.check_strings(), 17)

    def test_sampling(self) -> None:
        """NaN, infinities, negatives and too much in every number."""
        seen = 0
        for field, value in bad_floats(SAMPLING()):
            code, text = self.run_status(sampling=SAMPLING(**{field: value}))
            self.assertEqual(code, Code.INVALID_ARGUMENT, f"{field} {value}: {text}")
            self.assertTrue(text.startswith(f"sampling.{field}: "), text)
            seen += 1
        self.assertEqual(seen, 6 * 6 - 2)
        for sampling in (
            SAMPLING(top_p=1, min_p=1, temperature=100, top_k=UINT32_MAX, seed=UINT64_MAX),
            SAMPLING(presence_penalty=-100, frequency_penalty=100, repetition_penalty=100),
            SAMPLING(temperature=1e-45, top_p=1e-45, min_p=1e-45, repetition_penalty=1e-45),
        ):
            self.assertEqual(self.run_status(sampling=sampling), (Code.OK, ""), sampling)

    def test_counts_at_their_limits(self) -> None:
        """The last value that is taken and the first that is not."""
        for word, taken, refused in (
            ("logprobs: ", {"logprobs": 20}, {"logprobs": 21}),
            ("logprobs: ", {}, {"logprobs": UINT32_MAX}),
            ("max_tokens: ", {"max_tokens": 1}, {"max_tokens": 0}),
            ("stop_token_ids: ", {"stop_token_ids": [2] * 4096}, {"stop_token_ids": [2] * 4097}),
            ("stop_token_ids[1]: ", {"stop_token_ids": [255]}, {"stop_token_ids": [2, 256]}),
            ("prompt_token_ids: ", {"prompt_token_ids": [0]}, {"prompt_token_ids": []}),
            (
                "prompt_token_ids[2]: ",
                {"prompt_token_ids": [255]},
                {"prompt_token_ids": [1, 2, UINT32_MAX]},
            ),
            ("prompt_token_ids: ", {}, {"prompt_token_ids": [5] * (CONTEXT + 1)}),
            ("output_token_ids[0]: ", {"output_token_ids": [255]}, {"output_token_ids": [256]}),
            ("output_token_ids: ", {}, {"output_token_ids": [5] * CONTEXT}),
            ("request_id: ", {"request_id": "x" * 256}, {"request_id": ""}),
        ):
            code, text = self.run_status(**refused)
            self.assertEqual((code, text[: len(word)]), (Code.INVALID_ARGUMENT, word), text)
            self.assertEqual(self.run_status(**taken), (Code.OK, ""), word)
        for fields in (
            {"priority": -(1 << 31), "waited_ms": UINT64_MAX},
            {"priority": (1 << 31) - 1, "waited_ms": UINT64_MAX},
            {"attempt": UINT32_MAX, "cache_salt": "x" * 1024},
            {"output_token_ids": [5] * 100},
        ):
            self.assertEqual(self.run_status(**fields), (Code.OK, ""), fields)

    def test_drains_that_nobody_means(self) -> None:
        """Another start is meant; a drain without end is taken back."""
        for make, call in ((DRAIN, self.service.DrainWorker), (RESUME, self.service.ResumeWorker)):
            for incarnation in (0, self.worker.incarnation ^ 1, UINT64_MAX):
                code, text = rpc.status_of(lambda: call(make(incarnation=incarnation)))
                self.assertEqual((code, text[:13]), (Code.FAILED_PRECONDITION, "incarnation: "))
        for timeout_ms in (UINT64_MAX, 0):
            self.service.DrainWorker(
                DRAIN(incarnation=self.worker.incarnation, timeout_ms=timeout_ms)
            )
            self.assertEqual(self.run_status()[0], Code.ABORTED)
            self.resume()

    def test_mutated_messages(self) -> None:
        """Random bytes and mutations of whole messages, for each method."""
        run = self.worker.request(
            prompt(3, 20), 3, ignore_eos=True, logprobs=1, stop_token_ids=[1, 2], cache_salt="ab",
            sampling=SAMPLING(temperature=1, top_p=0.5, seed=3), request_id="seed", priority=1,
            waited_ms=5, output_token_ids=[7],
        )  # fmt: skip
        files = self.coordinator.joins[0].model.files_hash
        codes = self.check_mutated({
            "RunRequest": run,
            "CancelRunRequest": rpc.message("nosa.cluster.v1.CancelRunRequest")(request_id="seed"),
            "DrainWorkerRequest": DRAIN(incarnation=self.worker.incarnation, timeout_ms=5),
            "ResumeWorkerRequest": RESUME(incarnation=self.worker.incarnation),
            "FetchModelRequest": rpc.message("nosa.cluster.v1.FetchModelRequest")(
                files_hash=files
            ),
        })  # fmt: skip
        total = sum(codes.values(), Counter())
        self.assertGreater(total[Code.INVALID_ARGUMENT], MUTATIONS)
        for name in ("Run", "DrainWorker", "ResumeWorker", "FetchModel", "ListRuns"):
            self.assertGreater(codes[f"/{cluster.SERVICE}/{name}"][Code.OK], 0, name)

    def test_mutated_fields_of_a_run(self) -> None:
        """Spoilt, but meant for this worker and short: the checks of its fields see them."""
        whole = self.worker.request(
            prompt(3, 20), 3, logprobs=1, stop_token_ids=[1, 2], output_token_ids=[7],
            sampling=SAMPLING(temperature=1, top_p=0.5, min_p=0.1, repetition_penalty=1.1),
        )  # fmt: skip
        meant = RUN(
            incarnation=self.worker.incarnation, model_hash=self.worker.model_hash, max_tokens=3
        )
        draw = random.Random(29)
        path = f"/{cluster.SERVICE}/Run"
        call, end = self.call(path, streams=True), meant.SerializeToString()
        codes: Counter[Code] = Counter()
        for number in range(2 * MUTATIONS):
            payload = mutate(draw, whole.SerializeToString(), number) + end
            code, text = rpc.status_of(lambda: call(payload, timeout=cluster.PATIENCE_S))
            self.check_end(path, payload, code, text)
            codes[code] += 1
        self.assertGreater(codes[Code.OK], MUTATIONS // 20)
        self.assertGreater(codes[Code.INVALID_ARGUMENT], MUTATIONS // 5)

    def test_mutated_reflection(self) -> None:
        """Spoilt questions on its streams."""
        self.check_mutated_streams()


if __name__ == "__main__":
    tap.main()
