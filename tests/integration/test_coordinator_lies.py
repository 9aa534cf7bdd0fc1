"""Workers that contradict themselves, answer garbage or cannot be called: nothing is lost."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import rpc
import tap
from coordinator import Worker, message, output_of
from coordinator_case import (
    LENGTH,
    LOST,
    PATIENCE_S,
    READY,
    STARTING,
    Answer,
    Case,
    Code,
    text_of,
)

EVENT = message("RunEvent")
TOKENS = message("RunTokens")
STARTED = message("RunStarted")
DONE = message("RunDone")
COUNT = 40


class Garbage:
    """A port that answers every connection with bytes that mean nothing."""

    def __init__(self) -> None:
        """Listens."""
        self.draw = random.Random(3)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.socket.getsockname()[1]}"
        self.connections = 0
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        """Until it is closed."""
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.connections += 1
            with connection:
                try:
                    connection.sendall(self.draw.randbytes(200))
                    connection.settimeout(0.2)
                    connection.recv(1000)
                except OSError:
                    pass

    def close(self) -> None:
        """Stops."""
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


class Lies(Case):
    """A worker that says what cannot be; another one that is honest."""

    arguments = ("--worker-timeout", "5")

    def check_lie(self, lie: Callable[[Any], Iterator[Any]], **fields: Any) -> None:
        """A stream whose first worker ends in `lie` is whole, by the next one."""
        liar = self.worker("liar", delay_s=0)
        liar.events = lambda request, context: lie(request)
        call = self.start(max_tokens=COUNT, **fields)
        rpc.eventually(lambda: liar.requests, "it runs there", PATIENCE_S)
        honest = self.worker("honest", delay_s=0)
        answer = Answer(call)
        self.assertEqual(answer.ids, output_of(list(b"hello"), COUNT))
        self.assertEqual(answer.text, text_of(answer.ids))
        self.assertEqual(answer.finished.reason, LENGTH)
        self.assertEqual(len(honest.requests), 1)
        self.assertTrue(self.log_lines("worker liar"), self.coordinator.log)

    @staticmethod
    def tokens(first: int, count: int) -> Any:
        """An event with true tokens."""
        ids = output_of(list(b"hello"), first + count)[first:]
        return EVENT(tokens=TOKENS(first_index=first, token_ids=ids))

    def test_tokens_before_start(self) -> None:
        """Tokens of a run that has not started."""
        self.check_lie(lambda request: iter([self.tokens(0, 5)]))

    def test_gap(self) -> None:
        """Tokens that are missing."""
        self.check_lie(
            lambda request: iter([EVENT(started=STARTED()), self.tokens(0, 5), self.tokens(6, 5)])
        )

    def test_index_beyond_all(self) -> None:
        """An index at the end of its type."""
        far = EVENT(tokens=TOKENS(first_index=(1 << 32) - 1, token_ids=[65]))
        self.check_lie(lambda request: iter([EVENT(started=STARTED()), self.tokens(0, 5), far]))

    def test_ids_past_vocabulary(self) -> None:
        """Ids that the model does not have."""
        bad = EVENT(tokens=TOKENS(first_index=0, token_ids=[65, 256]))
        self.check_lie(lambda request: iter([EVENT(started=STARTED()), bad]))

    def test_no_logprobs(self) -> None:
        """Log probabilities that were asked for and do not come."""
        self.check_lie(
            lambda request: iter([EVENT(started=STARTED()), self.tokens(0, 5)]), logprobs=1
        )

    def test_logprobs_of_others(self) -> None:
        """Log probabilities of other tokens."""
        event = self.tokens(0, 3)
        for _ in range(3):
            event.tokens.logprobs.add(token_id=1, logprob=-1)
        self.check_lie(lambda request: iter([EVENT(started=STARTED()), event]), logprobs=1)

    def test_end_without_reason(self) -> None:
        """An end that gives no reason."""
        self.check_lie(lambda request: iter([EVENT(started=STARTED()), EVENT(done=DONE())]))

    def test_end_too_early(self) -> None:
        """OK without Done."""
        self.check_lie(lambda request: iter([EVENT(started=STARTED()), self.tokens(0, 5)]))

    def test_odd_status(self) -> None:
        """Codes that no worker has a reason to give."""

        def lie(request: Any) -> Iterator[Any]:
            yield EVENT(started=STARTED())
            yield self.tokens(0, 5)
            raise RuntimeError("as the test wants")  # UNKNOWN

        self.check_lie(lie)

    def test_internal_of_the_transport(self) -> None:
        """INTERNAL in words that are not the worker's: the stream goes on elsewhere."""
        liar = self.worker("liar", delay_s=0)

        def broken(request: Any, context: Any) -> Iterator[Any]:
            yield EVENT(started=STARTED())
            yield self.tokens(0, 5)
            context.abort(Code.INTERNAL, "Received RST_STREAM with error code 2")

        liar.events = broken
        call = self.start(max_tokens=COUNT)
        rpc.eventually(lambda: liar.requests, "it runs there", PATIENCE_S)
        honest = self.worker("honest", delay_s=0)
        self.assertEqual(Answer(call).ids, output_of(list(b"hello"), COUNT))
        self.assertEqual(len(honest.requests), 1)

    def test_internal_of_the_worker(self) -> None:
        """INTERNAL in the worker's own words: the generation ends, and another one is not tried."""
        worker, other = self.worker("w0", delay_s=0), self.worker("w1", delay_s=0)

        def failed(request: Any, context: Any) -> Iterator[Any]:
            yield EVENT(started=STARTED())
            context.abort(Code.INTERNAL, "generation failed: no finite numbers")

        worker.events = other.events = failed
        code, text = rpc.status_of(lambda: list(self.start(max_tokens=COUNT)))
        self.assertEqual(code, Code.INTERNAL)
        self.assertIn("no finite numbers", text)
        self.assertEqual(len(worker.requests) + len(other.requests), 1)

    def test_overlap_is_passed_over(self) -> None:
        """Tokens that come twice are delivered once; what is unknown in an event is passed over."""
        liar = self.worker("w0", delay_s=0)

        def repeat(request: Any, context: Any) -> Iterator[Any]:
            yield EVENT()
            yield EVENT(started=STARTED(cached_prompt_tokens=1000000))
            yield EVENT(started=STARTED())
            for first in (0, 0, 3, 5, 4, 8):
                yield self.tokens(first, 5)
            yield EVENT(done=DONE(reason=LENGTH))

        liar.events = repeat
        answer = self.generate(max_tokens=COUNT)
        self.assertEqual(answer.ids, output_of(list(b"hello"), 13))
        self.assertEqual(answer.finished.usage.cached_prompt_tokens, 5)

    def test_tokens_after_the_end(self) -> None:
        """More tokens than were asked for are not delivered."""
        liar = self.worker("w0", delay_s=0)
        liar.events = lambda request, context: iter(
            [EVENT(started=STARTED()), self.tokens(0, COUNT + 9), EVENT(done=DONE(reason=LENGTH))]
        )
        self.assertEqual(self.generate(max_tokens=COUNT).ids, output_of(list(b"hello"), COUNT))

    def test_events_that_do_not_parse(self) -> None:
        """Bytes that are no RunEvent."""
        liar = self.worker("liar", delay_s=0)
        liar.events = lambda request, context: iter([b"\x0a\xff"])
        call = self.start(max_tokens=COUNT)
        rpc.eventually(lambda: liar.requests, "it runs there", PATIENCE_S)
        self.worker("honest", delay_s=0)
        self.assertEqual(Answer(call).ids, output_of(list(b"hello"), COUNT))


class LiesAlone(Case):
    """A worker that says what cannot be, and no other one."""

    arguments = ("--worker-timeout", "1")

    def test_one_that_only_fails(self) -> None:
        """The request ends: it does not go on failing there for ever."""
        liar = self.worker("liar")
        liar.events = lambda request, context: iter([EVENT(started=STARTED()), EVENT(done=DONE())])
        start = time.monotonic()
        code, text = rpc.status_of(lambda: list(self.start(timeout_s=60)))
        self.assertEqual(code, Code.UNAVAILABLE)
        self.assertIn("--worker-timeout", text)
        self.assertLess(time.monotonic() - start, PATIENCE_S)
        self.assertLess(len(liar.requests), 100)
        self.wait_quiet()

    def test_one_death_counts_once(self) -> None:
        """A worker that fails again and again, a few tokens further each time: no replay limit."""
        worker = self.worker("w0", delay_s=0)

        def a_few(request: Any, context: Any) -> Iterator[Any]:
            index = len(request.output_token_ids)
            yield EVENT(started=STARTED())
            yield Lies.tokens(index, 5)
            if index + 5 >= request.max_tokens:
                yield EVENT(done=DONE(reason=LENGTH))

        worker.events = a_few
        self.assertEqual(self.generate(max_tokens=COUNT).ids, output_of(list(b"hello"), COUNT))
        self.assertEqual([run.attempt for run in worker.requests], list(range(COUNT // 5)))


class Unreachable(Case):
    """Workers that can call and cannot be called."""

    arguments = ("--worker-timeout", "2")

    def join(self, worker_id: str, address: str) -> Worker:
        """A worker that gives this address as its own."""
        worker = Worker(self.coordinator.address, worker_id, address=address)
        self.addCleanup(worker.__exit__)
        return worker

    def reason(self, worker_id: str) -> str:
        """Why it is not READY."""
        answer = self.admin.Workers(rpc.message("nosa.v1.WorkersRequest")(), timeout=PATIENCE_S)
        return next(worker.reason for worker in answer.workers if worker.id == worker_id)

    def test_port_of_garbage(self) -> None:
        """It stays STARTING, and the reason is told; a good worker of the model is asked next."""
        garbage = Garbage()
        self.addCleanup(garbage.close)
        self.join("bad", garbage.address)
        rpc.eventually(
            lambda: "cannot be had" in self.reason("bad"), "the reason is known", PATIENCE_S
        )
        self.assertEqual(self.states()["bad"], STARTING)
        self.refuse(Code.UNAVAILABLE, "model 'demo'")
        self.worker("good", delay_s=0)
        for _ in range(20):
            self.assertEqual(self.generate().accepted.worker_id, "good")
        self.assertGreater(garbage.connections, 0)

    def test_nobody_at_the_address(self) -> None:
        """A closed port and a name that does not resolve, beside a good worker: nothing is lost."""
        self.worker("good", delay_s=0)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            closed = f"127.0.0.1:{taken.getsockname()[1]}"
        for worker_id, address in (("closed", closed), ("unknown", "no-such-host.invalid:1")):
            self.join(worker_id, address)
        for number in range(60):
            answer = self.generate(text=f"prompt {number}", max_tokens=5, timeout_s=30)
            self.assertEqual(answer.accepted.worker_id, "good")
            time.sleep(0.02)
        states = self.states()
        self.assertEqual(states["good"], READY)
        self.assertIn(states["closed"], (READY, LOST))
        broken = self.log_lines("to worker closed")
        self.assertGreater(len(broken), 0)
        self.assertLess(len(broken), 20)

    def test_spoilt_files(self) -> None:
        """Files that are not those of the card: the model is not used, and the reason is told."""
        worker = Worker(self.coordinator.address, "w0", spoilt_files=True)
        self.addCleanup(worker.__exit__)
        rpc.eventually(lambda: "files_hash" in self.reason("w0"), "the reason", PATIENCE_S)
        self.assertEqual(self.states()["w0"], STARTING)
        worker.options["spoilt_files"] = False
        self.wait_state("w0", READY)
        self.generate()


class Fencing(Case):
    """Two workers of one id, and a frozen one that comes back."""

    arguments = ("--worker-timeout", "1")

    def test_same_id(self) -> None:
        """The id is its holder's while that is heard of, and the next one's when it is lost."""
        older = self.worker("w0", delay_s=0.01)
        newer = Worker(self.coordinator.address, "w0", join=False, delay_s=0)
        self.addCleanup(newer.__exit__)
        code, text = rpc.status_of(newer.join)
        self.assertEqual(code, Code.ALREADY_EXISTS)
        self.assertIn(older.address, text)
        self.assertEqual(self.generate().ids, output_of(list(b"hello"), 10))

        call = self.start(max_tokens=200)
        events = [next(call) for _ in range(10)]
        older.silent = True
        rpc.eventually(lambda: rpc.status_of(newer.join)[0] == Code.OK, "it takes over", PATIENCE_S)
        newer.beat.start()
        answer = Answer([*events, *call])
        self.assertEqual(answer.ids, output_of(list(b"hello"), 200))
        self.assertEqual(len(newer.requests), 1)
        older.silent = False
        rpc.eventually(lambda: older.fenced, "the older one is told", PATIENCE_S)
        self.assertEqual(rpc.status_of(older.heartbeat)[0], Code.ABORTED)
        self.assertEqual(self.generate().accepted.worker_id, "w0")
        self.assertEqual(len(newer.requests), 2)

    def test_frozen_worker_says_more(self) -> None:
        """What a worker sends after its streams went elsewhere is dropped."""
        frozen = self.worker("w0", delay_s=0.01)
        call = self.start(max_tokens=300)
        events = [next(call) for _ in range(10)]
        self.worker("w1", delay_s=0.005)
        frozen.silent = True
        rpc.eventually(lambda: self.states()["w0"] == LOST, "it is LOST", PATIENCE_S)
        frozen.silent = False
        answer = Answer([*events, *call])
        self.assertEqual(answer.ids, output_of(list(b"hello"), 300))
        self.assertEqual(answer.text, text_of(answer.ids))
        rpc.eventually(lambda: frozen.active == 0, "its run was cancelled", PATIENCE_S)

    def test_same_name_other_model(self) -> None:
        """Each difference by its field; when the first has left, the other may come."""
        first = self.worker("w0")
        for field, options in (
            ("model_hash", {"hash": "other"}),
            ("files_hash", {"files": False}),
            ("attention", {"attention": "nosa"}),
            ("max_context_tokens", {"context": 2048}),
        ):
            other = Worker(self.coordinator.address, "w1", join=False, **options)
            code, text = rpc.status_of(other.join)
            self.assertEqual(code, Code.FAILED_PRECONDITION)
            self.assertTrue(text.startswith(f"model.{field}: worker 'w0' serves"), text)
            other.__exit__()
        first.leave()
        self.worker("w1", context=2048)
        models = self.inference.ListModels(
            rpc.message("nosa.v1.ListModelsRequest")(), timeout=PATIENCE_S
        ).models
        self.assertEqual([model.workers_ready for model in models], [1])
        self.assertEqual(self.generate().accepted.worker_id, "w1")


if __name__ == "__main__":
    tap.main()
