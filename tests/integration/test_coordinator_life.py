"""Kills under load, coordinators that die, come back and end."""

from __future__ import annotations

import random
import threading
import time
import unittest

import coordinator as cluster
import grpc
import rpc
import tap
from coordinator import Coordinator, Worker, output_of
from coordinator_case import PATIENCE_S, REQUEST, SAMPLING, STATUS, Answer, Case, Code, text_of


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


class Life(unittest.TestCase):
    """Coordinators that die, come back and end."""

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
