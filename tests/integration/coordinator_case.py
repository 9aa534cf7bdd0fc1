"""What the tests of nosa-coordinator share: a case with a coordinator of its own, and answers."""

from __future__ import annotations

import json
import unittest
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import coordinator as cluster
import grpc
import rpc
from coordinator import Coordinator, Worker

Code = grpc.StatusCode
REQUEST = rpc.message("nosa.v1.GenerateRequest")
SAMPLING = rpc.message("nosa.v1.Sampling")
IDS = rpc.message("nosa.v1.TokenIds")
CHAT = rpc.message("nosa.v1.Chat")
MESSAGE = rpc.message("nosa.v1.Message")
STATUS = rpc.message("nosa.v1.StatusRequest")
DRAIN = rpc.message("nosa.v1.DrainRequest")
RESUME = rpc.message("nosa.v1.ResumeRequest")
CANCEL = rpc.message("nosa.v1.CancelRequest")
STOP, LENGTH = 1, 2  # Finished.Reason
STARTING, READY, DRAINING, DRAINED, LOST = 1, 2, 3, 4, 5  # WorkerState
QUEUED, PREFILL, DECODE, SUSPENDED, PAUSED, REPLAYING = 1, 2, 3, 4, 5, 6  # RequestState
PATIENCE_S = 60 if rpc.SANITIZED else 20


def text_of(ids: list[int]) -> str:
    """The text of byte tokens."""
    return bytes(ids).decode()


class Answer:
    """A whole stream, with its order checked."""

    def __init__(self, events: Any, begun: bool = False) -> None:
        """Reads it to its end; `begun`: its Accepted was read already."""
        self.ids: list[int] = []
        self.text = ""
        self.texts: list[str] = []
        self.logprobs: list[Any] = []
        self.accepted, self.finished = begun or None, None
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
        self.wait_state(worker_id, READY)
        return worker

    def wait_state(self, worker_id: str, *states: int) -> None:
        """Until a worker is in one of the states."""
        rpc.eventually(
            lambda: self.states().get(worker_id) in states, f"{worker_id} is {states}", PATIENCE_S
        )

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

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of an HTTP page."""
        try:
            url = f"http://127.0.0.1:{self.coordinator.http}/{path}"
            with urllib.request.urlopen(url, timeout=PATIENCE_S) as page:
                return page.status, page.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def check_ends(self, stage: Callable[[float], Any]) -> None:
        """A call at some stage ends at once: by its client, by its deadline, by an operator."""
        for end, code in (
            ("cancel", Code.CANCELLED),
            ("deadline", Code.DEADLINE_EXCEEDED),
            ("operator", Code.CANCELLED),
        ):
            call = stage(2.0 if end == "deadline" else PATIENCE_S)
            if end == "cancel":
                call.cancel()
            elif end == "operator":
                ask = CANCEL(request_id=self.running()[0].request_id)
                self.admin.Cancel(ask, timeout=PATIENCE_S)
            self.assertEqual(rpc.status_of(lambda stream=call: list(stream))[0], code, end)
            self.wait_quiet()

    def metric(self, name: str) -> float:
        """A value of /metrics, by its name with labels."""
        for line in self.get("metrics")[1].splitlines():
            if line.startswith(name + " "):
                return float(line.split()[-1])
        raise AssertionError(f"no metric {name}")

    def status(self) -> Any:
        """The coordinator's own account."""
        return self.admin.Status(STATUS(), timeout=PATIENCE_S)

    def drain(self, worker_id: str) -> int:
        """Drains a worker; its state after that."""
        return self.admin.Drain(DRAIN(worker_id=worker_id), timeout=PATIENCE_S).state

    def resume(self, worker_id: str) -> int:
        """Lets a worker work again; its state after that."""
        return self.admin.Resume(RESUME(worker_id=worker_id), timeout=PATIENCE_S).state

    def log_lines(self, word: str) -> list[str]:
        """The lines of its log that have a word."""
        return [line for line in self.coordinator.log if word in line]

    def json_lines(self) -> list[dict[str, Any]]:
        """Its log, when it is in JSON."""
        return [json.loads(line) for line in list(self.coordinator.log)]

    def wait_quiet(self) -> None:
        """Until nothing runs and nothing is held."""
        rpc.eventually(lambda: not self.running(), "nothing runs", PATIENCE_S)
        for name in ("nosa_requests_running", "nosa_requests_waiting"):
            self.assertEqual(self.metric(name), 0, name)
