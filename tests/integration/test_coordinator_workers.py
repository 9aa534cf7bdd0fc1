"""Several workers of nosa-coordinator, and none: replay, drain, bounds, joining, routing."""

from __future__ import annotations

import time
from typing import Any

import coordinator as cluster
import rpc
import tap
from coordinator import Worker, output_of
from coordinator_case import (
    DRAINED,
    DRAINING,
    IDS,
    LOST,
    PATIENCE_S,
    READY,
    REPLAYING,
    Answer,
    Case,
    Code,
    text_of,
)


class Workers(Case):
    """Several workers, and none."""

    arguments = ("--worker-timeout", "1", "--drain-timeout", "1", "--max-queue", "4")

    def test_no_worker(self) -> None:
        """UNAVAILABLE at once, and not ready."""
        start = time.monotonic()
        self.refuse(Code.UNAVAILABLE, "worker")
        self.assertLess(time.monotonic() - start, 2)
        ask = rpc.message("nosa.v1.TokenizeRequest")(text="hello")
        code, _ = rpc.status_of(lambda: self.inference.Tokenize(ask, timeout=PATIENCE_S))
        self.assertEqual(code, Code.UNAVAILABLE)
        ask = rpc.message("nosa.v1.ListModelsRequest")()
        self.assertEqual(len(self.inference.ListModels(ask, timeout=PATIENCE_S).models), 0)
        self.assertEqual(self.get("readyz"), (503, "no worker is ready\n"))
        self.assertEqual(self.get("healthz")[0], 200)

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
        self.assertGreaterEqual(workers["w1"].requests[0].attempt, 1)

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
        self.assertEqual(self.get("readyz"), (503, "the queue is full (--max-queue)\n"))
        for call in calls:
            call.cancel()
        rpc.eventually(lambda: not self.running(), "none is left")

    @staticmethod
    def hold(worker: Worker, context: Any) -> Any:
        """A run that never starts."""
        while context.is_active() and not worker.stopping.is_set():
            time.sleep(0.01)
        yield from ()

    def test_drained_worker_gets_no_work(self) -> None:
        """DRAINING while streams run, DRAINED without any; work again after a resume."""
        one = self.worker("w0", delay_s=0.01)
        call = self.start(max_tokens=25)
        next(call)
        self.assertEqual(self.drain("w0"), DRAINING)
        self.refuse(Code.UNAVAILABLE, "ready")
        self.assertEqual(self.get("readyz")[0], 503)
        self.assertEqual(len(Answer(call, begun=True).ids), 25)
        self.wait_state("w0", DRAINED)
        self.assertEqual(self.drain("w0"), DRAINED)
        self.assertEqual(self.resume("w0"), READY)
        self.wait_state("w0", READY)
        self.assertEqual(self.generate().accepted.worker_id, "w0")
        self.assertEqual(one.drains, [1000])

    def test_drain_outlives_a_restart(self) -> None:
        """A worker that was drained and starts again is told to drain when it joins."""
        one = self.worker("w0")
        self.drain("w0")
        one.kill()
        rpc.eventually(lambda: self.states()["w0"] == LOST, "it is LOST", PATIENCE_S)
        two = Worker(self.coordinator.address, "w0", join=False)
        self.addCleanup(two.__exit__)
        self.assertTrue(two.join().drain)
        two.beat.start()
        self.wait_state("w0", DRAINING, DRAINED)

    def test_move_without_other_worker(self) -> None:
        """A drain's end with nobody to go to: UNAVAILABLE after --worker-timeout, no replay."""
        self.worker("w0", delay_s=0.02)
        call = self.start(max_tokens=2000)
        next(call)
        self.drain("w0")
        code, text = rpc.status_of(lambda: list(call))
        self.assertEqual(code, Code.UNAVAILABLE)
        self.assertIn("--worker-timeout", text)
        self.assertEqual(self.metric('nosa_request_replays_total{exact="true"}'), 0)

    def test_ends_in_the_workers_queue(self) -> None:
        """Before its start."""
        worker = self.worker()
        worker.events = lambda request, context: self.hold(worker, context)

        def stage(timeout_s: float) -> Any:
            """A call that its worker has and does not start."""
            call = self.start(timeout_s=timeout_s)
            rpc.eventually(lambda: worker.active == 1, "its worker has it", PATIENCE_S)
            return call

        self.check_ends(stage)
        rpc.eventually(lambda: worker.active == 0, "its worker has nothing", PATIENCE_S)
        self.assertEqual(self.metric('nosa_requests_total{code="DEADLINE_EXCEEDED"}'), 1)

    def test_full_queue_holds_a_replay(self) -> None:
        """A stream whose worker died waits for a full one for as long as that takes."""
        one = self.worker("w0", delay_s=0.01)
        call = self.start(max_tokens=100)
        next(call)
        two = self.worker("w1", queue_full=True)
        one.kill()
        time.sleep(2)
        two.options["queue_full"] = False
        self.assertEqual(Answer(call, begun=True).ids, output_of(list(b"hello"), 100))
        self.assertEqual(self.metric('nosa_request_replays_total{exact="true"}'), 1)
        self.assertEqual(self.metric("nosa_request_moves_total"), 0)

    def test_join_refuses(self) -> None:
        """Another protocol, another hash under a name, an id that is alive, bad fields."""
        one = self.worker("w0")
        for options, change, code, word in (
            ({"protocol": 9}, {}, Code.FAILED_PRECONDITION, "protocol"),
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
        one.leave()
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


class Waiting(Case):
    """Streams that wait for a worker."""

    arguments = ("--worker-timeout", "15", "--drain-timeout", "1")

    def test_priorities_while_waiting(self) -> None:
        """Streams that wait for a worker go on in the order of their priorities."""
        one = self.worker("w0", delay_s=0.02)
        calls = {}
        for priority in (0, 2, -1, 1):
            calls[priority] = self.start(
                max_tokens=500, priority=priority, request_id=f"p{priority}"
            )
            next(calls[priority])
        one.kill()
        rpc.eventually(
            lambda: [info.state for info in self.running()] == [REPLAYING] * 4, "all wait", 5
        )
        two = self.worker("w1", delay_s=0, threads=1)  # calls in the order in which they come
        for priority, call in calls.items():
            self.assertEqual(len(Answer(call, begun=True).ids), 500, priority)
        order = [request.request_id for request in two.requests]
        self.assertEqual(order, ["p2", "p1", "p0", "p-1"])
        self.assertGreater(two.requests[0].waited_ms, 0)

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

    def test_ends_while_waiting_for_a_worker(self) -> None:
        """After its worker's death, before the next one."""
        lives = iter(range(10))

        def stage(timeout_s: float) -> Any:
            """A call whose worker is dead."""
            worker = self.worker(f"w{next(lives)}", delay_s=0.02)
            call = self.start(timeout_s=timeout_s, max_tokens=3000)
            next(call)
            worker.kill()
            rpc.eventually(
                lambda: [info.state for info in self.running()] == [REPLAYING], "it waits", 10
            )
            return call

        self.check_ends(stage)


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


if __name__ == "__main__":
    tap.main()
