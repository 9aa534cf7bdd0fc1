"""nosa-coordinator against stock gRPC clients, with workers in Python."""

from __future__ import annotations

import math
import random
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import coordinator as cluster
import grpc
import rpc
import tap
from coordinator import Coordinator, Worker, output_of
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

Code = grpc.StatusCode
REQUEST = rpc.message("nosa.v1.GenerateRequest")
SAMPLING = rpc.message("nosa.v1.Sampling")
IDS = rpc.message("nosa.v1.TokenIds")
CHAT = rpc.message("nosa.v1.Chat")
MESSAGE = rpc.message("nosa.v1.Message")
STOP, LENGTH = 1, 2
PATIENCE_S = 60 if rpc.SANITIZED else 20


def text_of(ids: list[int]) -> str:
    """The text of byte tokens."""
    return bytes(ids).decode()


class Answer:
    """A whole stream, with its order checked."""

    def __init__(self, events: Any) -> None:
        """Reads it to its end."""
        self.ids: list[int] = []
        self.text = ""
        self.texts: list[str] = []
        self.logprobs: list[Any] = []
        self.accepted = self.finished = None
        for event in events:
            kind = event.WhichOneof("event")
            assert self.finished is None, "an event after Finished"
            assert (kind == "accepted") == (self.accepted is None), "one Accepted, first"
            if kind == "accepted":
                self.accepted = event.accepted
            elif kind == "delta":
                self.ids += event.delta.token_ids
                self.text += event.delta.text
                self.texts.append(event.delta.text)
                self.logprobs += event.delta.logprobs
            else:
                self.finished = event.finished
        assert self.finished is not None, "no Finished"


class Case(unittest.TestCase):
    """A test with a coordinator of its own."""

    arguments: tuple[str, ...] = ("--worker-timeout", "1")

    def setUp(self) -> None:
        """Starts it."""
        self.coordinator = Coordinator(*self.arguments)
        self.addCleanup(self.coordinator.stop)
        self.channel = self.coordinator.channel()
        self.addCleanup(self.channel.close)
        self.inference = rpc.Service(self.channel, cluster.INFERENCE)
        self.admin = rpc.Service(self.channel, cluster.ADMIN)

    def worker(self, worker_id: str = "w0", **options: Any) -> Worker:
        """A worker that is READY."""
        worker = Worker(self.coordinator.address, worker_id, **options)
        self.addCleanup(worker.__exit__)
        rpc.eventually(lambda: self.states().get(worker_id) == 2, f"{worker_id} is READY", 20)
        return worker

    def states(self) -> dict[str, int]:
        """Of the workers."""
        answer = self.admin.Workers(rpc.message("nosa.v1.WorkersRequest")(), timeout=PATIENCE_S)
        return {worker.id: worker.state for worker in answer.workers}

    def running(self) -> Any:
        """The requests in flight."""
        request = rpc.message("nosa.v1.RequestsRequest")()
        return self.admin.Requests(request, timeout=PATIENCE_S).requests

    def start(self, **fields: Any) -> Any:
        """Begins a generation."""
        timeout_s = fields.pop("timeout_s", PATIENCE_S)
        fields.setdefault("max_tokens", 10)
        if not fields.keys() & {"text", "token_ids", "chat"}:
            fields["text"] = "hello"
        return self.inference.Generate(REQUEST(**fields), timeout=timeout_s)

    def generate(self, **fields: Any) -> Answer:
        """A whole generation."""
        return Answer(self.start(**fields))

    def refuse(self, code: Code, word: str, **fields: Any) -> None:
        """A generation is refused with this code and a text that has the word."""
        got, text = rpc.status_of(lambda: list(self.start(**fields)))
        self.assertEqual(got, code, f"{fields}: {text}")
        self.assertIn(word, text)

    def metric(self, name: str) -> float:
        """A value of /metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.coordinator.http}/metrics") as page:
            for line in page.read().decode().splitlines():
                if line.startswith(name + " "):
                    return float(line.split()[-1])
        raise AssertionError(f"no metric {name}")


class Generate(Case):
    """One worker, and every field."""

    def setUp(self) -> None:
        """With a worker."""
        super().setUp()
        self.one = self.worker()

    def test_generate_text(self) -> None:
        """Tokens, text, usage."""
        answer = self.generate(text="hello", max_tokens=20, return_prompt_token_ids=True)
        expected = output_of(list(b"hello"), 20)
        self.assertEqual(answer.ids, expected)
        self.assertEqual(answer.text, text_of(expected))
        self.assertEqual(answer.finished.reason, LENGTH)
        self.assertEqual(list(answer.accepted.prompt_token_ids), list(b"hello"))
        self.assertEqual(answer.accepted.prompt_tokens, 5)
        self.assertEqual(answer.accepted.worker_id, "w0")
        self.assertNotEqual(answer.accepted.seed, 0)
        self.assertTrue(answer.accepted.request_id)
        usage = answer.finished.usage
        self.assertEqual((usage.prompt_tokens, usage.completion_tokens), (5, 20))
        self.assertEqual((usage.cached_prompt_tokens, usage.kv_gpu_hits), (5, 11))
        self.assertGreater(usage.ttft_ms, 0)
        self.assertEqual(self.metric('nosa_requests_total{code="OK"}'), 1)
        self.assertEqual(self.metric("nosa_generation_tokens_total"), 20)

    def test_generate_passes_fields(self) -> None:
        """What the worker is told."""
        sampling = SAMPLING(temperature=0.5, top_p=0.25, top_k=7, min_p=0.125, seed=99)
        sampling.repetition_penalty, sampling.presence_penalty = 1.5, 0.5
        sampling.frequency_penalty = 0.25
        answer = self.generate(
            token_ids=IDS(ids=[1, 2, 9]), sampling=sampling, priority=-5, cache_salt="salt",
            logprobs=2, ignore_eos=True, stop_token_ids=[77], request_id="mine",
        )  # fmt: skip
        run = self.one.requests[-1]
        self.assertEqual(run.sampling, sampling)
        self.assertEqual((run.priority, run.cache_salt, run.logprobs), (-5, "salt", 2))
        self.assertEqual((run.request_id, run.ignore_eos), ("mine", True))
        self.assertEqual(list(run.stop_token_ids), [77])
        self.assertEqual(list(run.prompt_token_ids), [1, 2, 9])
        self.assertEqual((answer.accepted.seed, answer.accepted.request_id), (99, "mine"))
        self.assertEqual([entry.token_id for entry in answer.logprobs], answer.ids)
        self.assertEqual(answer.logprobs[0].logprob, -0.5)
        self.assertEqual(len(answer.logprobs[0].top), 1)
        self.generate()
        self.assertEqual(self.one.requests[-1].sampling.temperature, 0)

    def test_generate_chat(self) -> None:
        """The model's chat format."""
        chat = CHAT(messages=[MESSAGE(role="user", content="hi")])
        self.generate(chat=chat)
        prompt = bytes(self.one.requests[-1].prompt_token_ids).decode()
        self.assertIn("user\nhi", prompt)
        self.assertTrue(prompt.endswith("assistant\n"), prompt)

    def test_generate_stops(self) -> None:
        """Stop strings and tokens."""
        ids = output_of(list(b"hello"), 40)
        text = text_of(ids)
        stop = text[10:14]
        at = text.index(stop)
        answer = self.generate(max_tokens=40, stop=["zzzz", text[at + 1 : at + 5] + "!", stop])
        self.assertEqual(answer.text, text[:at])
        self.assertEqual(answer.finished.stop_sequence, stop)
        self.assertEqual(answer.finished.reason, STOP)
        self.assertEqual(answer.ids, ids[: at + 4])
        rpc.eventually(lambda: self.one.active == 0, "the worker's run is cancelled")
        first = ids[6]
        answer = self.generate(max_tokens=40, stop_token_ids=[first])
        self.assertEqual(answer.ids, ids[: ids.index(first) + 1])
        self.assertEqual(answer.text, text_of(ids[: ids.index(first)]))
        self.assertEqual((answer.finished.reason, answer.finished.stop_sequence), (STOP, ""))

    def test_generate_context_end(self) -> None:
        """Ends with LENGTH where the context does."""
        prompt = [5] * (cluster.CONTEXT - 4)
        answer = self.generate(token_ids=IDS(ids=prompt), max_tokens=1000)
        self.assertEqual(len(answer.ids), 4)
        self.assertEqual(answer.finished.reason, LENGTH)
        self.refuse(
            Code.INVALID_ARGUMENT, "token_ids", token_ids=IDS(ids=[5] * cluster.CONTEXT)
        )

    def test_generate_resume(self) -> None:
        """Every cut gives the same ids and the same text."""
        whole = self.generate(max_tokens=12)
        for cut in (1, 5, 11):
            rest = self.generate(max_tokens=12, resume_token_ids=whole.ids[:cut])
            self.assertEqual(whole.ids[cut:], rest.ids)
            self.assertEqual(whole.text[cut:], rest.text)
            self.assertEqual(rest.finished.usage.completion_tokens, 12)
        runs = len(self.one.requests)
        done = self.generate(max_tokens=12, resume_token_ids=whole.ids)
        self.assertEqual((done.ids, done.text, done.finished.reason), ([], "", LENGTH))
        done = self.generate(
            max_tokens=12, resume_token_ids=whole.ids[:2], stop_token_ids=[whole.ids[1]]
        )
        self.assertEqual((done.ids, done.finished.reason), ([], STOP))
        self.assertEqual(len(self.one.requests), runs)
        self.refuse(
            Code.INVALID_ARGUMENT, "resume_token_ids", resume_token_ids=whole.ids[:3],
            stop_token_ids=[whole.ids[1]],
        )  # fmt: skip

    def test_generate_refuses(self) -> None:
        """Each bad field by its name."""
        bad = Code.INVALID_ARGUMENT
        self.refuse(bad, "max_tokens", max_tokens=0)
        self.refuse(bad, "logprobs", logprobs=21)
        self.refuse(bad, "stop", stop=["x"] * 10000)
        self.refuse(bad, "stop[1]", stop=["x", ""])
        self.refuse(bad, "stop[0]", stop=["x" * 5000])
        self.refuse(bad, "stop_token_ids[0]", stop_token_ids=[256])
        self.refuse(bad, "resume_token_ids[1]", resume_token_ids=[1, 256])
        self.refuse(bad, "token_ids.ids[2]", token_ids=IDS(ids=[1, 2, 1 << 31]))
        self.refuse(bad, "token_ids.ids", token_ids=IDS())
        self.refuse(bad, "text", text="")
        self.refuse(bad, "chat.messages", chat=CHAT())
        self.refuse(bad, "role", chat=CHAT(messages=[MESSAGE(role="tool", content="x")]))
        self.refuse(bad, "request_id", request_id="x" * 1000)
        self.refuse(bad, "cache_salt", cache_salt="x" * 5000)
        self.refuse(Code.NOT_FOUND, "model", model="other")
        self.refuse(Code.RESOURCE_EXHAUSTED, "text", text="x" * (64 << 20))
        code, text = rpc.status_of(
            lambda: list(self.inference.Generate(REQUEST(max_tokens=1), timeout=PATIENCE_S))
        )
        self.assertEqual(code, bad)
        self.assertIn("input", text)
        floats = ("temperature", "top_p", "min_p", "repetition_penalty")
        for field in (*floats, "presence_penalty", "frequency_penalty"):
            for value in (math.nan, math.inf, -math.inf, 1e30, -1000.0):
                self.refuse(bad, f"sampling.{field}", sampling=SAMPLING(**{field: value}))
        self.refuse(bad, "sampling.top_k", sampling=SAMPLING(top_k=(1 << 32) - 1))
        call = self.channel.unary_stream(
            f"/{cluster.INFERENCE}/Generate",
            request_serializer=rpc.raw,
            response_deserializer=rpc.raw,
        )
        code, text = rpc.status_of(lambda: list(call(b"\x1a\x02\xff\xfe", timeout=PATIENCE_S)))
        self.assertEqual(code, bad)
        self.assertIn("text", text)
        self.generate()

    def test_generate_same_id_twice(self) -> None:
        """A request_id that runs is refused, and may be used again afterwards."""
        self.one.delay_s = 0.05
        first = self.start(request_id="same", max_tokens=40)
        next(first)
        self.refuse(Code.INVALID_ARGUMENT, "request_id", request_id="same")
        first.cancel()
        rpc.eventually(lambda: not self.running(), "the first one is gone")
        self.one.delay_s = 0
        self.generate(request_id="same")

    def test_generate_cancel_and_deadline(self) -> None:
        """Client's cancel, client's deadline, operator's cancel: the worker's run ends."""
        self.one.delay_s = 0.02
        call = self.start(max_tokens=3000)
        next(call)
        rpc.eventually(lambda: self.one.active == 1, "it runs")
        call.cancel()
        rpc.eventually(lambda: self.one.active == 0, "it ended")
        request = REQUEST(text="hello", max_tokens=3000)
        code, _ = rpc.status_of(lambda: list(self.inference.Generate(request, timeout=0.4)))
        self.assertEqual(code, Code.DEADLINE_EXCEEDED)
        rpc.eventually(lambda: self.one.active == 0, "it ended")
        call = self.start(max_tokens=3000, request_id="victim", priority=4)
        next(call)
        next(call)
        info = self.running()[0]
        self.assertEqual((info.request_id, info.worker_id), ("victim", "w0"))
        self.assertEqual((info.model, info.priority, info.max_tokens), ("demo", 4, 3000))
        self.assertGreaterEqual(info.tokens, 1)
        cancel = rpc.message("nosa.v1.CancelRequest")
        self.admin.Cancel(cancel(request_id="victim"), timeout=PATIENCE_S)
        code, text = rpc.status_of(lambda: list(call))
        self.assertEqual(code, Code.CANCELLED)
        rpc.eventually(lambda: self.one.active == 0, "it ended")
        code, text = rpc.status_of(
            lambda: self.admin.Cancel(cancel(request_id="victim"), timeout=PATIENCE_S)
        )
        self.assertEqual(code, Code.NOT_FOUND)

    def test_generate_many_streams(self) -> None:
        """32 streams at once, each as it is alone."""
        self.one.batch = 4
        results: dict[int, Answer] = {}

        def run(number: int) -> None:
            results[number] = self.generate(text=f"prompt {number}", max_tokens=50)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number, answer in results.items():
            expected = output_of(list(f"prompt {number}".encode()), 50)
            self.assertEqual(answer.ids, expected)
            self.assertEqual(answer.text, text_of(expected))
        self.assertEqual(len(results), 32)
        rpc.eventually(lambda: not self.running(), "nothing is left")

    def test_generate_slow_reader(self) -> None:
        """A reader that does not read pauses its worker's stream and loses nothing."""
        self.one.delay_s = 0
        call = self.start(max_tokens=4000, token_ids=IDS(ids=[4]), request_id="slow")
        first = next(call)
        rpc.eventually(lambda: self.running()[0].tokens > 0, "it runs")
        self.generate()
        answer = Answer([first, *call])
        self.assertEqual(answer.ids, output_of([4], 4000))

    def test_text_whole_characters(self) -> None:
        """Characters of several tokens come whole; a part at the end is U+FFFD."""
        self.one.options["script"] = list("aé漢😀".encode()) + [0xE6]
        answer = self.generate(max_tokens=11)
        self.assertEqual(answer.text, "aé漢😀\ufffd")
        self.assertNotIn("\ufffd", "".join(answer.texts[:-1]))

    def test_tokenize_and_detokenize(self) -> None:
        """There and back, and what is refused."""
        tokenize = rpc.message("nosa.v1.TokenizeRequest")
        detokenize = rpc.message("nosa.v1.DetokenizeRequest")
        for text in ("grüße", "x" * 100000):
            ids = self.inference.Tokenize(tokenize(text=text), timeout=PATIENCE_S).token_ids
            self.assertEqual(bytes(ids).decode(), text)
            back = self.inference.Detokenize(detokenize(token_ids=ids), timeout=PATIENCE_S)
            self.assertEqual(back.text, text)
        back = self.inference.Detokenize(detokenize(token_ids=[0xE6]), timeout=PATIENCE_S)
        self.assertEqual(back.text, "\ufffd")
        for request, call, word in (
            (detokenize(token_ids=[256]), self.inference.Detokenize, "token_ids[0]"),
            (tokenize(), self.inference.Tokenize, "input"),
        ):
            code, details = rpc.status_of(lambda: call(request, timeout=PATIENCE_S))
            self.assertEqual(code, Code.INVALID_ARGUMENT)
            self.assertIn(word, details)

    def test_models_status_health(self) -> None:
        """What there is to see."""
        models = self.inference.ListModels(
            rpc.message("nosa.v1.ListModelsRequest")(), timeout=PATIENCE_S
        ).models
        self.assertEqual([(m.id, m.workers_ready) for m in models], [("demo", 1)])
        self.assertEqual((models[0].vocab_size, models[0].attention), (256, "full"))
        self.generate()
        status = self.admin.Status(rpc.message("nosa.v1.StatusRequest")(), timeout=PATIENCE_S)
        self.assertTrue(status.ready)
        self.assertEqual([(c.code, c.count) for c in status.requests], [("OK", 1)])
        self.assertEqual((status.generation_tokens, status.membership), (10, "memory"))
        self.assertGreater(status.ttft_p50_ms, 0)
        worker = self.admin.Workers(
            rpc.message("nosa.v1.WorkersRequest")(), timeout=PATIENCE_S
        ).workers[0]
        self.assertEqual((worker.batch_max, worker.queue_max), (32, 64))
        self.assertEqual([(t.tier, t.total_bytes) for t in worker.tiers], [("gpu", 1 << 20)])
        health = health_pb2_grpc.HealthStub(self.channel)
        answer = health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        self.assertEqual(answer.status, health_pb2.HealthCheckResponse.SERVING)
        services = ProtoReflectionDescriptorDatabase(self.channel).get_services()
        self.assertIn(cluster.INFERENCE, services)
        self.assertIn(cluster.ADMIN, services)
        for path in ("healthz", "readyz"):
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.coordinator.http}/{path}"
            ) as page:
                self.assertEqual(page.status, 200)


class Workers(Case):
    """Several workers, and none."""

    arguments = ("--worker-timeout", "1", "--drain-timeout", "1", "--max-queue", "4")

    def test_no_worker(self) -> None:
        """UNAVAILABLE at once, and not ready."""
        start = time.monotonic()
        self.refuse(Code.UNAVAILABLE, "worker")
        self.assertLess(time.monotonic() - start, 2)
        with self.assertRaises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"http://127.0.0.1:{self.coordinator.http}/readyz")
        self.assertEqual(caught.exception.code, 503)
        caught.exception.close()

    def check_replay(self, end: Any, exact: str, **second: Any) -> None:
        """A stream goes on when its worker ends so."""
        workers = {"w0": self.worker("w0", delay_s=0.01)}
        call = self.start(max_tokens=150)
        events = [next(call) for _ in range(20)]
        workers["w1"] = self.worker("w1", delay_s=0.001, **second)
        end(workers["w0"])
        answer = Answer([*events, *call])
        self.assertEqual(answer.ids, output_of(list(b"hello"), 150))
        self.assertEqual(answer.text, text_of(answer.ids))
        self.assertEqual(self.metric(f'nosa_request_replays_total{{exact="{exact}"}}'), 1)
        self.assertEqual(workers["w1"].requests[0].attempt, 1)

    def test_replay_after_death(self) -> None:
        """A killed worker."""
        self.check_replay(lambda worker: worker.kill(), "true")

    def test_replay_other_fingerprint(self) -> None:
        """The next worker computes otherwise: counted as inexact."""
        self.check_replay(lambda worker: worker.kill(), "false", fingerprint="cpu/2")

    def test_replay_after_silence(self) -> None:
        """A frozen worker; what it says later is dropped."""

        def freeze(worker: Worker) -> None:
            worker.silent = True

        self.check_replay(freeze, "true")

    def test_replay_limit(self) -> None:
        """The third death ends the request with INTERNAL; it waits for the next until then."""
        call = None
        for number in range(3):
            worker = self.worker(f"w{number}", delay_s=0.02)
            if call is None:
                call = self.start(max_tokens=2000)
                next(call)
            rpc.eventually(lambda: worker.active == 1, "it runs there")
            worker.kill()
        code, text = rpc.status_of(lambda: list(call))
        self.assertEqual(code, Code.INTERNAL)
        self.assertIn("--replay-limit", text)
        self.assertTrue(any("--replay-limit" in line for line in self.coordinator.log))

    def test_replay_nobody_left(self) -> None:
        """No other worker within --worker-timeout: UNAVAILABLE."""
        worker = self.worker(delay_s=0.02)
        call = self.start(max_tokens=2000)
        next(call)
        worker.kill()
        code, _ = rpc.status_of(lambda: list(call))
        self.assertEqual(code, Code.UNAVAILABLE)
        rpc.eventually(lambda: self.states()["w0"] == 5, "it is LOST")

    def test_drain_and_resume(self) -> None:
        """A drain hands streams on when its time is over; no replay is counted."""
        one = self.worker("w0", delay_s=0.02)
        call = self.start(max_tokens=400)
        events = [next(call)]
        self.worker("w1", delay_s=0)
        drain = rpc.message("nosa.v1.DrainRequest")
        answer = self.admin.Drain(drain(worker_id="w0"), timeout=PATIENCE_S)
        self.assertEqual(answer.state, 3)
        rpc.eventually(lambda: one.drains == [1000], "it was told")
        self.assertEqual(self.generate().accepted.worker_id, "w1")
        answer = Answer([*events, *call])
        self.assertEqual(answer.ids, output_of(list(b"hello"), 400))
        self.assertEqual(self.metric('nosa_request_replays_total{exact="true"}'), 0)
        self.assertEqual(self.metric("nosa_request_moves_total"), 1)
        rpc.eventually(lambda: self.states()["w0"] in (3, 4), "it drains")
        resume = rpc.message("nosa.v1.ResumeRequest")
        self.admin.Resume(resume(worker_id="w0"), timeout=PATIENCE_S)
        rpc.eventually(lambda: self.states()["w0"] == 2, "it is READY")
        for call in (
            lambda: self.admin.Drain(drain(worker_id="none"), timeout=PATIENCE_S),
            lambda: self.admin.Resume(resume(worker_id="none"), timeout=PATIENCE_S),
        ):
            self.assertEqual(rpc.status_of(call)[0], Code.NOT_FOUND)
        one.kill()
        rpc.eventually(lambda: self.states()["w0"] == 5, "it is LOST")
        code, _ = rpc.status_of(
            lambda: self.admin.Resume(resume(worker_id="w0"), timeout=PATIENCE_S)
        )
        self.assertEqual(code, Code.FAILED_PRECONDITION)

    def test_worker_lets_go(self) -> None:
        """A worker that ends a stream with ABORTED hands it on."""
        one = self.worker("w0", delay_s=0.01)
        call = self.start(max_tokens=100)
        events = [next(call)]
        self.worker("w1")
        one.aborting = True
        self.assertEqual(Answer([*events, *call]).ids, output_of(list(b"hello"), 100))

    def test_worker_cancels(self) -> None:
        """A run that another coordinator's operator ended is CANCELLED, and not replayed."""
        one = self.worker("w0", delay_s=0.01)
        call = self.start(max_tokens=1000)
        next(call)
        self.worker("w1")
        one.cancelling = True
        self.assertEqual(rpc.status_of(lambda: list(call))[0], Code.CANCELLED)

    def test_queues_full(self) -> None:
        """A worker's queue is full: the next worker, or RESOURCE_EXHAUSTED."""
        self.worker("w0", queue_full=True)
        self.refuse(Code.RESOURCE_EXHAUSTED, "queue")
        self.worker("w1")
        for _ in range(5):
            self.assertEqual(self.generate().accepted.worker_id, "w1")

    def test_max_queue(self) -> None:
        """Beyond --max-queue requests that have not started are refused at once."""
        worker = self.worker()
        worker.silent = True
        worker.events = lambda request, context: self.hold(worker, context)
        calls = [self.start(max_tokens=5) for _ in range(4)]
        rpc.eventually(lambda: len(self.running()) == 4, "four wait")
        self.refuse(Code.RESOURCE_EXHAUSTED, "--max-queue")
        for call in calls:
            call.cancel()
        rpc.eventually(lambda: not self.running(), "none is left")

    @staticmethod
    def hold(worker: Worker, context: Any) -> Any:
        """A run that never starts."""
        while context.is_active() and not worker.stopping.is_set():
            time.sleep(0.01)
        yield from ()

    def test_join_refuses(self) -> None:
        """Another protocol, another hash under a name, an id that is alive, bad fields."""
        one = self.worker("w0")
        for options, change, code, word in (
            ({"protocol": 9}, {}, Code.FAILED_PRECONDITION, "protocol"),
            ({"hash": "other"}, {"worker_id": "w1"}, Code.FAILED_PRECONDITION, "model_hash"),
            ({}, {}, Code.ALREADY_EXISTS, "worker_id"),
            ({}, {"worker_id": ""}, Code.INVALID_ARGUMENT, "worker_id"),
            ({}, {"address": "nowhere"}, Code.INVALID_ARGUMENT, "address"),
            ({}, {"incarnation": 0}, Code.INVALID_ARGUMENT, "incarnation"),
        ):
            with Worker(self.coordinator.address, "w0", join=False, **options) as other:
                request = other.join_request()
                for name, value in change.items():
                    setattr(request, name, value)
                got, text = rpc.status_of(lambda: other.registry.Join(request, timeout=10))
                self.assertEqual(got, code, text)
                self.assertIn(word, text)
        self.assertTrue(one.heartbeat().prefixes_known)
        one.incarnation += 1
        self.assertEqual(rpc.status_of(one.heartbeat)[0], Code.ABORTED)
        one.incarnation -= 1
        one.epoch += 1
        self.assertEqual(rpc.status_of(one.heartbeat)[0], Code.NOT_FOUND)

    def test_leave(self) -> None:
        """A worker that says goodbye."""
        one = self.worker()
        one.stopping.set()
        request = cluster.message("LeaveRequest")(worker_id="w0", incarnation=one.incarnation)
        one.registry.Leave(request, timeout=10)
        self.assertEqual(self.states()["w0"], 4)
        self.refuse(Code.UNAVAILABLE, "ready")

    def test_several_models(self) -> None:
        """Side by side, by name; one without a tokenizer takes ids alone."""
        self.worker("w0", model="a")
        self.worker("w1", model="b", files=False)
        self.assertEqual(self.generate(model="a").accepted.worker_id, "w0")
        answer = self.generate(model="b", token_ids=IDS(ids=[7]))
        self.assertEqual((answer.accepted.worker_id, answer.text), ("w1", ""))
        self.assertEqual(answer.ids, output_of([7], 10))
        self.refuse(Code.INVALID_ARGUMENT, "model")
        self.refuse(Code.INVALID_ARGUMENT, "text", model="b")
        self.refuse(Code.NOT_FOUND, "model", model="c")


class Routing(Case):
    """By what was sent to a worker, before its heartbeats tell."""

    arguments = ("--worker-timeout", "30")

    def test_route_by_prefix(self) -> None:
        """A prompt goes where its prefix is; others spread."""
        self.worker("w0", delay_s=0)
        self.worker("w1", delay_s=0)
        prompt = list(range(64)) * 16
        first = self.generate(token_ids=IDS(ids=prompt), max_tokens=1).accepted.worker_id
        for extra in range(5):
            answer = self.generate(token_ids=IDS(ids=[*prompt, extra]), max_tokens=1)
            self.assertEqual(answer.accepted.worker_id, first)
        seen = set()
        for number in range(20):
            answer = self.generate(token_ids=IDS(ids=[number] * 40), max_tokens=1)
            seen.add(answer.accepted.worker_id)
        self.assertEqual(seen, {"w0", "w1"})


class Chaos(Case):
    """Workers die and fall silent under load."""

    arguments = ("--worker-timeout", "1", "--replay-limit", "64")
    KILLS = 12

    def restart(self, worker_id: str) -> Worker:
        """Another life of a worker, as soon as the coordinator lets it join."""
        worker = Worker(self.coordinator.address, worker_id, join=False)

        def joined() -> bool:
            return rpc.status_of(worker.join)[0] == Code.OK

        rpc.eventually(joined, f"{worker_id} joins again", PATIENCE_S)
        worker.beat.start()
        return worker

    def test_kills_under_load(self) -> None:
        """Every stream is whole and has the tokens that it would have had."""
        workers = {f"w{n}": self.worker(f"w{n}") for n in range(3)}
        self.addCleanup(lambda: [worker.__exit__() for worker in workers.values()])
        stopping = threading.Event()
        failures: list[str] = []
        done: list[int] = []

        def load(number: int) -> None:
            count = 0
            while not stopping.is_set():
                count += 1
                prompt = f"{number} {count}"
                try:
                    answer = self.generate(text=prompt, max_tokens=80, timeout_s=60)
                except (grpc.RpcError, AssertionError) as error:
                    failures.append(f"{prompt}: {error}")
                    return
                expected = output_of(list(prompt.encode()), 80)
                if answer.ids != expected or answer.text != text_of(expected):
                    failures.append(f"{prompt}: {answer.ids}")
                done.append(1)

        threads = [threading.Thread(target=load, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        draw = random.Random(5)
        for kill in range(self.KILLS):
            time.sleep(draw.uniform(0.05, 0.3))
            victim = draw.choice(sorted(workers))
            if kill % 4 == 3:
                workers[victim].silent = True
                rpc.eventually(lambda: self.states()[victim] == 5, "it is LOST", PATIENCE_S)
                workers[victim].silent = False
            else:
                workers[victim].kill()
                workers[victim] = self.restart(victim)
        stopping.set()
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])
        self.assertGreater(len(done), 12)
        rpc.eventually(lambda: not self.running(), "nothing is left")
        self.assertGreater(self.metric('nosa_request_replays_total{exact="true"}'), 0)
        self.assertEqual(self.metric("nosa_requests_waiting"), 0)


class Program(unittest.TestCase):
    """Flags, tokens, TLS, the end."""

    def test_bad_flags(self) -> None:
        """One line that names the thing, and exit code 2."""
        with Coordinator() as other, tempfile.TemporaryDirectory() as folder:
            empty = Path(folder) / "tokens"
            empty.write_text("justatoken\n")
            for arguments, word in (
                (("--listen", other.address), other.address),
                (("--listen", "nowhere"), "--listen"),
                (("--max-queue", "0"), "--max-queue"),
                (("--worker-timeout", "nan"), "--worker-timeout"),
                (("--auth-tokens", "/does/not/exist"), "/does/not/exist"),
                (("--auth-tokens", str(empty)), "line 1"),
                (("--tls-cert", "/no/cert", "--tls-key", "/no/key"), "/no/"),
                (("--max-prompt-bytes", "auto"), "--max-prompt-bytes"),
            ):
                done = subprocess.run(
                    [cluster.PROGRAM, "--listen", "127.0.0.1:0", *arguments]
                    if "--listen" not in arguments
                    else [cluster.PROGRAM, *arguments],
                    capture_output=True, text=True, timeout=60, check=False,
                    env=cluster.environment(),
                )  # fmt: skip
                self.assertEqual(done.returncode, 2, done.stderr)
                self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
                self.assertIn(word, done.stderr)

    def test_auth_tokens(self) -> None:
        """Without a token, with a wrong one, with one that may not steer."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "tokens"
            file.write_text("# names\ns3cret alice\nweak bob inference\n")
            with Coordinator("--auth-tokens", str(file)) as server, server.channel() as channel:
                inference = rpc.Service(channel, cluster.INFERENCE)
                admin = rpc.Service(channel, cluster.ADMIN)
                models = rpc.message("nosa.v1.ListModelsRequest")()
                status = rpc.message("nosa.v1.StatusRequest")()
                for call, request, token, code in (
                    (inference.ListModels, models, None, Code.UNAUTHENTICATED),
                    (inference.ListModels, models, "wrong", Code.UNAUTHENTICATED),
                    (inference.ListModels, models, "s3cret", Code.OK),
                    (inference.ListModels, models, "weak", Code.OK),
                    (admin.Status, status, "s3cret", Code.OK),
                    (admin.Status, status, "weak", Code.PERMISSION_DENIED),
                ):
                    metadata = [("authorization", f"Bearer {token}")] if token else []
                    got = rpc.status_of(lambda: call(request, metadata=metadata, timeout=10))
                    self.assertEqual(got[0], code, f"{token}: {got}")

    def test_tls(self) -> None:
        """With a CA a client's certificate is compulsory, and its name is known."""
        with tempfile.TemporaryDirectory() as folder:
            authority = rpc.Authority(Path(folder), "authority")
            cert, key = authority.issue("server")
            own = authority.issue("carol")
            flags = ("--tls-cert", str(cert), "--tls-key", str(key), "--tls-ca")
            with Coordinator(*flags, str(authority.cert), tls=True) as server:
                root = authority.cert.read_bytes()
                models = rpc.message("nosa.v1.ListModelsRequest")()
                for pair, code in ((own, Code.OK), (None, Code.UNAVAILABLE)):
                    chain, private = (pair[0], pair[1]) if pair else (None, None)
                    credentials = grpc.ssl_channel_credentials(
                        root,
                        private.read_bytes() if private else None,
                        chain.read_bytes() if chain else None,
                    )
                    with grpc.secure_channel(server.address, credentials) as channel:
                        call = rpc.Service(channel, cluster.INFERENCE).ListModels
                        got = rpc.status_of(lambda: call(models, timeout=10))
                        self.assertEqual(got[0], code, got)
                url = f"http://127.0.0.1:{server.http}/healthz"
                with urllib.request.urlopen(url) as page:
                    self.assertEqual(page.status, 200)

    def test_second_coordinator(self) -> None:
        """A coordinator dies; its stream goes on through another one, to the token."""
        with Coordinator() as first, Coordinator() as second:
            with Worker(first.address, "w0", delay_s=0.01) as one:
                with Worker(second.address, "w0") as other:
                    self.check_resume(first, second)
                    one.stopping.set()
                    other.stopping.set()

    def check_resume(self, first: Coordinator, second: Coordinator) -> None:
        """Kills the first in the middle of a stream."""
        request = REQUEST(text="hello", max_tokens=100, sampling=SAMPLING(temperature=1))
        ask = rpc.message("nosa.v1.StatusRequest")
        with first.channel() as channel, second.channel() as next_channel:
            for each in (channel, next_channel):
                admin = rpc.Service(each, cluster.ADMIN)
                rpc.eventually(lambda: admin.Status(ask(), timeout=10).ready, "it is ready")
            ids, text = [], ""
            code = None
            try:
                for event in rpc.Service(channel, cluster.INFERENCE).Generate(request, timeout=30):
                    if event.WhichOneof("event") == "accepted":
                        request.sampling.seed = event.accepted.seed
                    ids += event.delta.token_ids
                    text += event.delta.text
                    if len(ids) == 10:
                        first.process.kill()
            except grpc.RpcError as error:
                code = error.code()
            self.assertEqual(code, Code.UNAVAILABLE)
            first.process.wait()
            first.process.returncode = 0
            request.resume_token_ids.extend(ids)
            rest = Answer(
                rpc.Service(next_channel, cluster.INFERENCE).Generate(request, timeout=30)
            )
            self.assertEqual(ids + rest.ids, output_of(list(b"hello"), 100))
            self.assertEqual(text + rest.text, text_of(ids + rest.ids))
            self.assertEqual(rest.accepted.seed, request.sampling.seed)

    def test_coordinator_restart(self) -> None:
        """Workers join a coordinator that comes back at its port by themselves."""
        first = Coordinator()
        with Worker(first.address, "w0"):
            first.stop()
            second = Coordinator("--listen", first.address)
            with second, second.channel() as channel:
                admin = rpc.Service(channel, cluster.ADMIN)
                ask = rpc.message("nosa.v1.StatusRequest")
                rpc.eventually(lambda: admin.Status(ask(), timeout=10).ready, "it is ready", 20)

    def test_sigterm(self) -> None:
        """What runs finishes; new requests are UNAVAILABLE; then it ends with 0."""
        with Coordinator() as server, server.channel() as channel:
            with Worker(server.address, "w0", delay_s=0.02) as worker:
                admin = rpc.Service(channel, cluster.ADMIN)
                ask = rpc.message("nosa.v1.StatusRequest")
                rpc.eventually(lambda: admin.Status(ask(), timeout=10).ready, "it is ready")
                inference = rpc.Service(channel, cluster.INFERENCE)
                call = inference.Generate(REQUEST(text="hello", max_tokens=60), timeout=30)
                first = next(call)
                server.terminate()
                rpc.eventually(lambda: admin.Status(ask(), timeout=10).draining, "it drains")
                late = REQUEST(text="late", max_tokens=1)
                code, _ = rpc.status_of(lambda: list(inference.Generate(late, timeout=10)))
                self.assertEqual(code, Code.UNAVAILABLE)
                self.assertEqual(len(Answer([first, *call]).ids), 60)
                server.stop()
                worker.stopping.set()


if __name__ == "__main__":
    tap.main()
