"""Clients that check every token of a cluster under faults.

A client goes on through another coordinator when its own dies, with what it has of the stream. It
takes no other excuse: an error without a fault that explains it is a lost request, and so is one by
which a coordinator that lives says that it has lost it.
"""

from __future__ import annotations

import random
import re
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import coordinator
import grpc
import rpc
from chaos import KEEPALIVE, STREAM_S, Cluster, Code

REQUEST = rpc.message("nosa.v1.GenerateRequest")
SAMPLING = rpc.message("nosa.v1.Sampling")
IDS = rpc.message("nosa.v1.TokenIds")


@dataclass(frozen=True)
class Ask:
    """What is asked for; it has one answer, whoever computes it."""

    ids: tuple[int, ...]
    count: int
    fields: tuple[tuple[str, float], ...] = ()
    stop: str = ""
    ignore_eos: bool = True

    def request(self, resume: list[int] | None = None, **more: Any) -> Any:
        """The message."""
        return REQUEST(
            token_ids=IDS(ids=self.ids),
            max_tokens=self.count,
            sampling=SAMPLING(**dict(self.fields)),
            stop=[self.stop] if self.stop else [],
            ignore_eos=self.ignore_eos,
            resume_token_ids=resume or [],
            **more,
        )


def draw_asks(seed: int, number: int, least: int, most: int) -> list[Ask]:
    """Greedy and drawn, with and without penalties, prompts from a few tokens to some blocks."""
    draw = random.Random(seed)
    asks = []
    for index in range(number):
        fields: dict[str, float] = {}
        if index % 2:
            fields = {"temperature": draw.uniform(0.5, 1.2), "seed": draw.getrandbits(63) | 1}
            if index % 4 == 3:
                fields.update(top_k=draw.randrange(5, 60), top_p=draw.uniform(0.7, 0.99))
        if index % 3 == 2:
            fields.update(repetition_penalty=1.2, presence_penalty=0.5, frequency_penalty=0.1)
        ids = tuple(draw.randrange(3, 256) for _ in range(draw.choice((5, 40, 130, 300, 1200))))
        asks.append(Ask(ids, draw.randrange(least, most), tuple(fields.items()),
                        ignore_eos=index % 5 != 4))  # fmt: skip
    return asks


LOSSES = re.compile(r"no worker came within --worker-timeout|--replay-limit")
UNREADY = re.compile(r"no worker (has joined|of model .* is ready)")
"""What only a coordinator may say that workers have yet to join."""


class LostError(AssertionError):
    """A request did not come to its end, or not to the right one."""


@dataclass
class Answer:
    """What a client has of a stream."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    finished: Any = None
    resumed: int = 0
    workers: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def take(self, event: Any, accepted: bool) -> bool:
        """An event; whether the stream is accepted now."""
        kind = event.WhichOneof("event")
        if self.finished is not None or (kind == "accepted") == accepted:
            raise LostError(f"{kind} out of order")
        if kind == "accepted":
            self.workers.append(event.accepted.worker_id)
        elif kind == "delta":
            self.ids += event.delta.token_ids
            self.text += event.delta.text
            self.times.append(time.monotonic())
        else:
            self.finished = event.finished
        return True

    @property
    def essence(self) -> tuple[Any, ...]:
        """What must be the same however it came about."""
        return self.ids, self.text, self.finished.reason, self.finished.usage.completion_tokens


class Client:
    """Generates through one coordinator, and goes on through another when that one dies."""

    def __init__(self, home: Cluster, first: int = 0) -> None:
        """Dials when needed."""
        self.home = home
        self.channels = [
            grpc.insecure_channel(slot.address, options=KEEPALIVE) for slot in home.coordinators
        ]
        self.services = [rpc.Service(channel, coordinator.INFERENCE) for channel in self.channels]
        self.at = first % len(self.services)
        self.excuses: Counter[str] = Counter()

    def close(self) -> None:
        """Hangs up."""
        for channel in self.channels:
            channel.close()

    def attempt(self, ask: Ask, answer: Answer, request_id: str) -> None:
        """One call, from where the answer is; raises when it fails."""
        request = ask.request(answer.ids, request_id=request_id)
        accepted = False
        for event in self.services[self.at].Generate(request, timeout=STREAM_S):
            accepted = answer.take(event, accepted)
        if answer.finished is None:
            raise LostError("OK without Finished")

    def generate(self, ask: Ask, name: str = "") -> Answer:
        """A whole answer."""
        answer = Answer()
        start = time.monotonic()
        self.at = (self.at + 1) % len(self.services)
        for number in range(1000):
            slot = self.home.coordinators[self.at]
            began, was_new = time.monotonic(), slot.is_new
            try:
                self.attempt(ask, answer, f"{name}-{number}" if name else "")
                return answer
            except grpc.RpcError as error:
                said = f"{error.code()}: {error.details()}"
                text = f"{slot.name}: {said} after {len(answer.ids)} tokens"
                if error.code() != Code.UNAVAILABLE or LOSSES.search(said):
                    raise LostError(text) from error
                if UNREADY.search(said) and not (was_new or slot.is_new):
                    raise LostError(f"{text}, and {slot.name} is not new") from error
                if not slot.trouble.since(began):
                    raise LostError(f"{text}, and nothing was wrong with {slot.name}") from error
                self.excuses[re.sub(r"[0-9]+", "N", said)[:60]] += 1
                if time.monotonic() - start > STREAM_S:
                    raise LostError(f"{text}, for too long") from error
            answer.resumed += 1
            self.at = (self.at + 1) % len(self.services)
            time.sleep(0.02)
        raise LostError("refused a thousand times")


class Load:
    """Clients that ask without end and compare every answer with the one given alone."""

    def __init__(self, home: Cluster, asks: list[Ask], seed: int, clients: int) -> None:
        """Asks each alone, then starts."""
        self.asks = asks
        alone = Client(home)
        self.expected = [alone.generate(ask).essence for ask in asks]
        alone.close()
        self.home, self.seed = home, seed
        self.stopping = threading.Event()
        self.failures: list[str] = []
        self.done = 0
        self.resumed = 0
        self.longest_s = 0.0
        self.excuses: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.threads = [
            threading.Thread(target=self.run, args=(number,)) for number in range(clients)
        ]
        for thread in self.threads:
            thread.start()

    def run(self, number: int) -> None:
        """One client."""
        draw = random.Random(self.seed * 1000 + number)
        client = Client(self.home, number)
        count = 0
        while not self.stopping.is_set():
            count += 1
            index = draw.randrange(len(self.asks))
            start = time.monotonic()
            try:
                answer = client.generate(self.asks[index], f"load-{number}-{count}")
                self.note(index, answer, time.monotonic() - start)
            except Exception as error:  # pylint: disable=broad-exception-caught
                text = traceback.format_exception_only(error)[-1].strip()
                with self.lock:
                    self.failures.append(f"client {number}, request {count}, ask {index}: {text}")
        client.close()
        with self.lock:
            self.excuses += client.excuses

    def note(self, index: int, answer: Answer, seconds: float) -> None:
        """Counts and compares an answer."""
        with self.lock:
            self.done += 1
            self.resumed += answer.resumed
            self.longest_s = max(self.longest_s, seconds)
            if answer.essence != self.expected[index]:
                same = next((n for n, (a, b) in enumerate(zip(answer.ids, self.expected[index][0]))
                             if a != b), -1)  # fmt: skip
                self.failures.append(
                    f"ask {index}: {len(answer.ids)} of {len(self.expected[index][0])} tokens, "
                    f"first other one at {same}, {answer.resumed} resumes, {answer.workers}, "
                    f"{answer.essence[2:]} for {self.expected[index][2:]}"
                )

    def stop(self) -> None:
        """Lets what runs finish."""
        self.stopping.set()
        for thread in self.threads:
            thread.join()
