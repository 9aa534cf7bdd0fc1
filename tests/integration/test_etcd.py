"""Coordinators that share an etcd: membership, drains, leases, and an etcd that fails or is none."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.request
from concurrent import futures
from pathlib import Path
from typing import Any

import cluster as workers
import coordinator as cluster
import etcd
import grpc
import rpc
import tap
from coordinator import Coordinator, Worker, output_of
from coordinator_case import (
    DRAIN,
    DRAINED,
    DRAINING,
    LOST,
    PATIENCE_S,
    READY,
    REQUEST,
    RESUME,
    STATUS,
    Answer,
    Code,
)
from program import Checkpoint

TTL_S = 2


class Member:
    """A coordinator with its operators' calls."""

    def __init__(self, case: unittest.TestCase, endpoints: str, *arguments: str) -> None:
        """Starts it."""
        self.server = Coordinator(
            "--etcd", endpoints, "--etcd-ttl", str(TTL_S), "--worker-timeout", "2",
            "--drain-timeout", "1", *arguments,
        )  # fmt: skip
        self.address, self.log = self.server.address, self.server.log
        self.process = self.server.process
        case.addCleanup(self.end)
        self.channel = self.server.channel()
        case.addCleanup(self.channel.close)
        self.admin = rpc.Service(self.channel, cluster.ADMIN)
        self.inference = rpc.Service(self.channel, cluster.INFERENCE)

    def end(self) -> None:
        """However the test has left it."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.server.stop()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def states(self) -> dict[str, int]:
        """Of the workers."""
        answer = self.admin.Workers(rpc.message("nosa.v1.WorkersRequest")(), timeout=PATIENCE_S)
        return {worker.id: worker.state for worker in answer.workers}

    def wait_state(self, worker_id: str, *states: int) -> float:
        """Until a worker is in one of the states; how long it took."""
        return rpc.eventually(
            lambda: self.states().get(worker_id) in states,
            f"{worker_id} is {states} at {self.address}", PATIENCE_S,
        )  # fmt: skip

    def drain(self, worker_id: str) -> int:
        """Drains a worker; its state after that."""
        return self.admin.Drain(DRAIN(worker_id=worker_id), timeout=PATIENCE_S).state

    def resume(self, worker_id: str) -> int:
        """Resumes it, likewise."""
        return self.admin.Resume(RESUME(worker_id=worker_id), timeout=PATIENCE_S).state

    def status(self) -> Any:
        """Its own account."""
        return self.admin.Status(STATUS(), timeout=PATIENCE_S)

    def others(self) -> list[str]:
        """The other coordinators that it knows."""
        return list(self.status().coordinators)

    def is_up(self) -> bool:
        """Whether it is in step with etcd."""
        return self.status().membership == "etcd"

    def wait_up(self, up: bool = True) -> float:
        """Until it is, or is not."""
        return rpc.eventually(lambda: self.is_up() == up, f"etcd is up: {up}", PATIENCE_S)

    def metric(self, name: str) -> float:
        """A value of /metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.server.http}/metrics") as page:
            for line in page.read().decode().splitlines():
                if line.startswith(name + " "):
                    return float(line.split()[-1])
        raise AssertionError(f"no metric {name}")

    def lines(self, word: str) -> list[str]:
        """The lines of its log that have a word."""
        return [line for line in list(self.log) if word in line]

    def wait_line(self, word: str, count: int = 1) -> None:
        """Until its log has this many lines with a word, and no more."""
        rpc.eventually(lambda: len(self.lines(word)) >= count, f"a line: {word}", PATIENCE_S)
        assert len(self.lines(word)) == count, "".join(self.log)

    def start(self, **fields: Any) -> Any:
        """Begins a generation."""
        fields.setdefault("text", "hello")
        fields.setdefault("max_tokens", 10)
        return self.inference.Generate(REQUEST(**fields), timeout=2 * PATIENCE_S)


class Shared:
    """The side of a Python worker that speaks to one more coordinator."""

    def __init__(self, worker: Worker, address: str) -> None:
        """Joins."""
        self.worker = worker
        self.link = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self.registry = rpc.Service(self.link, "nosa.cluster.v1.Registry")
        self.told_to_drain = self.join().drain
        self.beat = threading.Thread(target=Worker.heartbeats, args=(self,), daemon=True)
        self.beat.start()

    def __getattr__(self, name: str) -> Any:
        """Everything else is the worker's."""
        return getattr(self.worker, name)

    @property
    def state(self) -> int:
        """The worker's, both ways."""
        return self.worker.state

    @state.setter
    def state(self, state: int) -> None:
        """Changes it."""
        self.worker.state = state

    def join(self) -> Any:
        """As the worker does."""
        return Worker.join(self)

    def heartbeat(self) -> Any:
        """As the worker does."""
        return Worker.heartbeat(self)


class Case(unittest.TestCase):
    """A test with an etcd of its own."""

    def setUp(self) -> None:
        """Starts it."""
        self.etcd = etcd.Etcd()
        self.addCleanup(self.etcd.__exit__)

    def member(self, *arguments: str, endpoints: str = "") -> Member:
        """A coordinator."""
        return Member(self, endpoints or self.etcd.address, *arguments)

    def worker(self, worker_id: str, *members: Member, **options: Any) -> Worker:
        """A worker that is READY at each of the coordinators."""
        worker = Worker(members[0].address, worker_id, **options)
        self.addCleanup(worker.__exit__)
        for member in members[1:]:
            self.addCleanup(Shared(worker, member.address).link.close)
        for member in members:
            member.wait_state(worker_id, READY)
        return worker

    def wait_key(self, key: str, there: bool = True) -> None:
        """Until etcd has a key, or has it no more."""
        rpc.eventually(
            lambda: (key in self.etcd.keys()) == there, f"{key} there: {there}", PATIENCE_S
        )

    def check_streams(self, calls: list[Any], count: int) -> None:
        """Each stream has every token once."""
        for call in calls:
            self.assertEqual(Answer(call).ids, output_of(list(b"hello"), count))


class Drains(Case):
    """Drains of a worker id are every coordinator's."""

    def test_drain_through_one_is_obeyed_by_both(self) -> None:
        """And resume through the other ends it for both."""
        a, b = self.member(), self.member()
        w0, w1 = self.worker("w0", a, b), self.worker("w1", a, b)
        self.assertIn(a.drain("w0"), (DRAINING, DRAINED))
        b.wait_state("w0", DRAINING, DRAINED)
        self.wait_key("drains/w0")
        self.assertIn("by an operator", self.etcd.control("get", "/nosa/drains/w0"))
        for _ in range(8):
            self.assertEqual(len(Answer(b.start()).ids), 10)
        self.assertEqual((len(w0.requests), len(w1.requests)), (0, 8))
        a.wait_state("w0", DRAINED)
        b.wait_state("w0", DRAINED)
        self.assertEqual(b.resume("w0"), READY)
        a.wait_state("w0", READY)
        self.wait_key("drains/w0", False)
        time.sleep(2.5)
        self.assertEqual((a.states()["w0"], b.states()["w0"], w0.state), (READY,) * 3)

    def test_drain_of_a_worker_that_only_another_has(self) -> None:
        """It is told by the one that has it, to drain and to resume; an unknown id is none."""
        a, b = self.member(), self.member()
        w0 = self.worker("w0", a)
        rpc.eventually(lambda: any(k.endswith("/w0") for k in self.etcd.keys()), "w0", PATIENCE_S)
        rpc.eventually(
            lambda: rpc.status_of(lambda: b.drain("w0"))[0] == Code.OK, "b knows w0", PATIENCE_S
        )
        a.wait_state("w0", DRAINING, DRAINED)
        rpc.eventually(lambda: len(w0.drains) > 0, "w0 is told", PATIENCE_S)
        a.wait_state("w0", DRAINED)
        self.assertEqual(b.resume("w0"), DRAINING)
        a.wait_state("w0", READY)
        self.assertEqual(w0.state, READY)
        for call in (lambda: b.drain("none"), lambda: b.resume("none"), lambda: b.drain("x" * 999)):
            self.assertEqual(rpc.status_of(call)[0], Code.NOT_FOUND)

    def test_drain_outlives_every_process(self) -> None:
        """Both coordinators and the worker start anew: it is still drained, until it is resumed."""
        first, second = self.member(), self.member()
        worker = self.worker("w0", first, second)
        first.drain("w0")
        self.wait_key("drains/w0")
        worker.__exit__()
        first.kill()
        second.end()
        a, b = self.member(), self.member()
        again = Worker(a.address, "w0", join=False)
        self.addCleanup(again.__exit__)
        self.assertTrue(again.join().drain)
        side = Shared(again, b.address)
        self.addCleanup(side.link.close)
        self.assertTrue(side.told_to_drain)
        self.assertIn(a.states()["w0"], (DRAINING, DRAINED))
        self.assertIn(b.states()["w0"], (DRAINING, DRAINED))
        a.wait_line("1 worker drained")

    def test_resume_of_an_id_whose_worker_is_gone(self) -> None:
        """Its next worker gets work at once."""
        a, b = self.member(), self.member()
        worker = self.worker("w0", a)
        a.drain("w0")
        self.wait_key("drains/w0")
        worker.__exit__()
        a.wait_state("w0", LOST)
        rpc.eventually(
            lambda: not any(k.endswith("/w0") and k != "drains/w0" for k in self.etcd.keys()),
            "nobody has w0", PATIENCE_S,
        )  # fmt: skip
        time.sleep(0.5)
        self.assertEqual(b.resume("w0"), LOST)
        self.wait_key("drains/w0", False)
        self.assertEqual(rpc.status_of(lambda: b.resume("w0"))[0], Code.NOT_FOUND)
        again = Worker(a.address, "w0", join=False)
        self.addCleanup(again.__exit__)
        self.assertFalse(again.join().drain)

    def test_many_drains_in_pages(self) -> None:
        """A list of several pages; what is none of ours is ignored and said once."""
        keys = [(f"/nosa/drains/w{i}", "test") for i in range(3000)]
        self.etcd.put_many([*keys, ("/nosa/other", "x"), ("/nosa2/drains/v", "x")])
        a = self.member()
        a.wait_line("3000 workers drained")
        a.wait_line("1 keys below the prefix are ignored")
        for worker_id, drained in (("w0", True), ("w2999", True), ("w3000", False), ("v", False)):
            worker = Worker(a.address, worker_id, join=False)
            self.addCleanup(worker.__exit__)
            self.assertEqual(worker.join().drain, drained, worker_id)

    def test_prefixes_are_apart(self) -> None:
        """Two clusters in one etcd."""
        a, b = self.member(), self.member("--etcd-prefix", "/other/one")
        self.worker("w0", a)
        self.worker("w0", b)
        a.drain("w0")
        self.wait_key("drains/w0")
        time.sleep(0.5)
        self.assertEqual(b.states()["w0"], READY)
        self.assertEqual((a.others(), b.others()), ([], []))


class Members(Case):
    """Who is there."""

    def test_coordinators_come_and_go(self) -> None:
        """One that stops is gone at once, one that is killed when its lease has run out."""
        a, b, c = self.member(), self.member(), self.member()
        rpc.eventually(lambda: len(a.others()) == 2, "a knows both", PATIENCE_S)
        self.assertEqual(sorted(a.others()), sorted([b.address, c.address]))
        self.assertEqual(a.metric("nosa_coordinators"), 3)
        b.server.stop()
        took = rpc.eventually(lambda: a.others() == [c.address], "b is gone", PATIENCE_S)
        self.assertLess(took, 1 if not rpc.SANITIZED else 5)
        c.kill()
        took = rpc.eventually(lambda: a.others() == [], "c is gone", PATIENCE_S)
        print(f"# a killed coordinator was gone after {took:.1f} s (lease {TTL_S} s)")
        self.assertGreater(took, 0.5)
        self.assertEqual([key for key in self.etcd.keys() if key.startswith("workers/")], [])

    def test_frozen_coordinator_comes_back(self) -> None:
        """Its lease runs out, others see it go; it takes a new one and writes all again."""
        a, b = self.member(), self.member()
        self.worker("w0", a)
        rpc.eventually(lambda: b.others() == [a.address], "b knows a", PATIENCE_S)
        rpc.eventually(lambda: any(k.endswith("/w0") for k in self.etcd.keys()), "w0", PATIENCE_S)
        a.process.send_signal(signal.SIGSTOP)
        rpc.eventually(lambda: b.others() == [], "a is gone", PATIENCE_S)
        a.process.send_signal(signal.SIGCONT)
        rpc.eventually(lambda: b.others() == [a.address], "a is back", PATIENCE_S)
        rpc.eventually(lambda: any(k.endswith("/w0") for k in self.etcd.keys()), "w0", PATIENCE_S)
        self.assertEqual(a.metric("nosa_etcd_lease_losses_total"), 1)
        a.wait_line("taking a new lease")

    def test_advertised_address(self) -> None:
        """As given, or this machine's name where it listens everywhere."""
        a = self.member("--advertise", "one.example:50051")
        b = self.member("--listen", "0.0.0.0:0")
        port = b.server.port
        rpc.eventually(lambda: len(a.others()) == 1, "a knows b", PATIENCE_S)
        self.assertEqual(a.others(), [f"{socket.gethostname()}:{port}"])
        rpc.eventually(lambda: b.others() == ["one.example:50051"], "b knows a", PATIENCE_S)

    def test_deleted_keys_are_written_again(self) -> None:
        """By whoever they are about; a store that was emptied is no reason to resume."""
        a, b = self.member(), self.member()
        self.worker("w0", a, b)
        a.drain("w0")
        self.wait_key("drains/w0")
        b.wait_state("w0", DRAINING, DRAINED)
        before = sorted(key for key in self.etcd.keys() if not key.startswith("marker"))
        self.etcd.control("del", "--prefix", "/nosa/")
        rpc.eventually(
            lambda: sorted(k for k in self.etcd.keys() if k != "marker") == before,
            "all is back", PATIENCE_S,
        )  # fmt: skip
        self.assertIn(b.states()["w0"], (DRAINING, DRAINED))

    @unittest.skipUnless(Path(workers.WORKER).exists(), "nosa-worker is not built")
    def test_two_addresses_of_one_coordinator(self) -> None:
        """A worker joins by one of them; the other has its turn when that one fails."""
        a, b = self.member("--listen", "0.0.0.0:0"), self.member()
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        model = Checkpoint(folder, "kv1_group4_d16_r4").path
        port = a.server.port
        names = f"127.0.0.1:{port},127.0.0.2:{port}"
        with workers.Worker(model, "--coordinator", names, "--id", "w0") as worker:
            a.wait_state("w0", READY)
            b.wait_state("w0", READY)
            rpc.eventually(
                lambda: any(f":{port} is the one at" in line for line in worker.lines),
                "one address is enough", PATIENCE_S,
            )  # fmt: skip
            joined = sum("joined coordinator" in line for line in worker.lines)
            time.sleep(2)
            self.assertEqual(sum("joined coordinator" in x for x in worker.lines), joined)
            self.assertEqual((a.states()["w0"], b.states()["w0"]), (READY, READY))
            a.kill()
            before = len(worker.lines)
            self.member("--listen", f"127.0.0.2:{port}")
            rpc.eventually(
                lambda: any(f"joined coordinator 127.0.0.2:{port}" in line
                            for line in worker.lines[before:]),
                "joined by the other address", PATIENCE_S,
            )  # fmt: skip
            self.assertEqual(worker.stop(), 0)

    @unittest.skipUnless(Path(workers.WORKER).exists(), "nosa-worker is not built")
    def test_worker_of_one_joins_the_other(self) -> None:
        """A worker that was told of one coordinator learns of the others, also of later ones."""
        a, b = self.member(), self.member()
        rpc.eventually(lambda: a.others() == [b.address], "a knows b", PATIENCE_S)
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        model = Checkpoint(folder, "kv1_group4_d16_r4").path
        with workers.Worker(model, "--coordinator", a.address, "--id", "w0") as worker:
            a.wait_state("w0", READY)
            took = b.wait_state("w0", READY)
            c = self.member()
            later = c.wait_state("w0", READY)
            print(f"# joined the second after {took:.2f} s, a later one after {later:.2f} s")
            b.drain("w0")
            a.wait_state("w0", DRAINED)
            c.wait_state("w0", DRAINED)
            a.kill()
            self.assertEqual(c.resume("w0"), READY)
            b.wait_state("w0", READY)
            self.assertEqual(len(Answer(b.start(token_ids={"ids": [1, 2, 3]}, text=None)).ids), 10)
            self.assertEqual(worker.stop(), 0)


class Failures(Case):
    """An etcd that is frozen, dies, comes back with or without its data."""

    def streams(self, member: Member, count: int = 8) -> list[Any]:
        """Streams that run for seconds."""
        return [member.start(max_tokens=150) for _ in range(count)]

    def test_frozen_under_streams(self) -> None:
        """Streams go on, new ones begin, a drain is obeyed here at once and there afterwards."""
        a, b = self.member(), self.member()
        self.worker("w0", a, b, delay_s=0.03)
        self.worker("w1", a, b, delay_s=0.03)
        calls = self.streams(a) + self.streams(b)
        self.etcd.signal(signal.SIGSTOP)
        a.wait_up(False)
        b.wait_up(False)
        self.assertEqual(a.metric("nosa_etcd_up"), 0)
        calls += self.streams(a, 2)
        start = time.monotonic()
        self.assertIn(a.drain("w0"), (DRAINING, DRAINED))
        self.assertLess(time.monotonic() - start, 1 if not rpc.SANITIZED else 5)
        self.assertGreater(a.metric("nosa_etcd_pending_writes"), 0)
        self.check_streams(calls, 150)
        self.etcd.signal(signal.SIGCONT)
        a.wait_up()
        b.wait_up()
        self.wait_key("drains/w0")
        b.wait_state("w0", DRAINING, DRAINED)
        self.assertEqual(a.metric("nosa_etcd_up"), 1)
        rpc.eventually(lambda: a.metric("nosa_etcd_pending_writes") == 0, "all written", 10)
        a.wait_line("unreachable")
        a.wait_line("in step", 2)
        rpc.eventually(lambda: a.others() == [b.address], "a knows b", PATIENCE_S)

    def test_killed_under_streams_and_back_with_its_data(self) -> None:
        """What was drained stays so, and what was resumed meanwhile is resumed."""
        a, b = self.member(), self.member()
        w1 = [self.worker(i, a, b, delay_s=0.02) for i in ("w0", "w1", "w2")][1]
        a.drain("w0")
        a.drain("w1")
        rpc.eventually(lambda: len(w1.drains) == 2, "both have told w1", PATIENCE_S)
        b.wait_state("w1", DRAINED)
        a.wait_state("w1", DRAINED)
        calls = self.streams(a) + self.streams(b)
        self.etcd.kill()
        a.wait_up(False)
        b.wait_up(False)
        a.wait_state("w1", DRAINED)
        self.assertEqual(a.resume("w1"), READY)
        b.wait_state("w1", READY)
        calls += self.streams(b, 2)
        self.check_streams(calls, 150)
        self.etcd.start()
        a.wait_up()
        b.wait_up()
        self.wait_key("drains/w1", False)
        self.assertIn("drains/w0", self.etcd.keys())
        time.sleep(1.5)
        for member in (a, b):
            states = member.states()
            self.assertEqual((states["w0"], states["w1"]), (DRAINED, READY))
            self.assertEqual(member.lines("another store"), [])

    def test_back_without_its_data(self) -> None:
        """The coordinators put into it what they know."""
        a, b = self.member(), self.member()
        self.worker("w0", a, b)
        self.worker("w1", a, b)
        a.drain("w0")
        b.wait_state("w0", DRAINED)
        self.wait_key("drains/w0")
        calls = self.streams(a)
        self.etcd.kill()
        self.etcd.wipe()
        self.etcd.start()
        self.wait_key("drains/w0")
        self.check_streams(calls, 150)
        rpc.eventually(lambda: a.others() == [b.address], "a knows b", PATIENCE_S)
        rpc.eventually(lambda: b.others() == [a.address], "b knows a", PATIENCE_S)
        rpc.eventually(
            lambda: sum(k.startswith("workers/") for k in self.etcd.keys()) == 4, "workers", 20
        )
        for member in (a, b):
            self.assertEqual(member.states()["w0"], DRAINED)
            member.wait_line("lost its data")
        self.assertEqual(b.resume("w0"), READY)
        self.wait_key("drains/w0", False)
        a.wait_state("w0", READY)

    def test_started_without_it(self) -> None:
        """Serves within seconds, and is in step once it is there."""
        self.etcd.kill()
        start = time.monotonic()
        a = self.member()
        self.assertLess(time.monotonic() - start, 8 if not rpc.SANITIZED else 30)
        self.worker("w0", a)
        self.check_streams(self.streams(a), 150)
        a.drain("w0")
        self.assertFalse(a.is_up())
        self.etcd.start()
        a.wait_up()
        self.wait_key("drains/w0")

    def test_next_endpoint(self) -> None:
        """The first is dead, the second answers; both spellings."""
        a = self.member(endpoints=f"http://127.0.0.1:{etcd.free_port()},{self.etcd.url}/")
        a.wait_up()
        a.wait_line("; trying ")
        self.assertEqual(a.lines("unreachable"), [])

    def test_endpoints_of_two_clusters(self) -> None:
        """The first that answered is kept to while it lives, and left when it does not."""
        with etcd.Etcd("second") as second:
            a = self.member(endpoints=f"{self.etcd.address},{second.address}")
            self.worker("w0", a)
            a.drain("w0")
            self.wait_key("drains/w0")
            self.etcd.kill()
            rpc.eventually(lambda: "drains/w0" in second.keys(), "went over", PATIENCE_S)
            a.wait_line("belongs to another etcd cluster")
            a.wait_line("going over to etcd cluster")
            self.assertIn(a.states()["w0"], (DRAINING, DRAINED))

    def test_cluster_of_three(self) -> None:
        """One member dies, then the majority; then one comes back."""
        with contextlib.ExitStack() as stack:
            three = [stack.enter_context(member) for member in etcd.cluster(3)]
            endpoints = ",".join(member.address for member in three)
            a, b = self.member(endpoints=endpoints), self.member(endpoints=endpoints)
            self.worker("w0", a, b)
            calls = self.streams(a)
            three[0].kill()
            a.drain("w0")
            b.wait_state("w0", DRAINED)
            rpc.eventually(lambda: "drains/w0" in three[1].keys(), "written", PATIENCE_S)
            self.assertTrue(a.is_up() and b.is_up())
            three[1].kill()
            a.wait_up(False)
            self.assertEqual(a.resume("w0"), READY)
            b.wait_state("w0", READY)
            self.check_streams(calls, 150)
            three[0].start()
            a.wait_up()
            b.wait_up()
            rpc.eventually(lambda: "drains/w0" not in three[2].keys(), "resumed", PATIENCE_S)
            self.assertEqual(a.lines("another"), [])

    def test_tls(self) -> None:
        """With certificates on both ends, and what is said when they do not fit."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            ours, other = rpc.Authority(folder, "ours"), rpc.Authority(folder, "other")
            cert, key = ours.issue("etcd")
            with etcd.Etcd("tls", (cert, key, ours.cert)) as secure:
                a = self.member(
                    "--etcd-ca", str(ours.cert), "--etcd-cert", str(cert), "--etcd-key", str(key),
                    endpoints=secure.url,
                )  # fmt: skip
                self.assertTrue(a.is_up())
                for bad in (
                    ("--etcd-ca", str(other.cert)),
                    ("--etcd-ca", str(ours.cert)),
                    (),
                ):
                    b = self.member(*bad, endpoints=secure.address)
                    self.assertFalse(b.is_up())
                    b.wait_line("unreachable")


class Impostors(unittest.TestCase):
    """What is no etcd in an etcd's place: a clear line, and everything else goes on."""

    def check(self, address: str, *words: str) -> None:
        """A coordinator with this endpoint serves, says what is wrong, and ends well."""
        member = Member(self, address)
        worker = Worker(member.address, "w0")
        self.addCleanup(worker.__exit__)
        member.wait_state("w0", READY)
        self.assertEqual(Answer(member.start()).ids, output_of(list(b"hello"), 10))
        self.assertIn(member.drain("w0"), (DRAINING, DRAINED))
        member.wait_line("unreachable")
        line = member.lines("unreachable")[0]
        print(f"# {line.strip()}")
        for word in (address.split("//")[-1], *words):
            self.assertIn(word, line)
        time.sleep(0.5)
        self.assertEqual(len([x for x in member.log if " etcd: " in x]), 1, "".join(member.log))
        self.assertEqual(member.status().membership, "etcd: unreachable")
        member.end()

    def test_nobody_there(self) -> None:
        """A port without a listener, a name without an address."""
        self.check(f"127.0.0.1:{etcd.free_port()}", "UNAVAILABLE")
        self.check("no-such-host.invalid:2379", "UNAVAILABLE")

    def serve_bytes(self, answer: bytes) -> str:
        """A TCP server that sends these bytes to everyone; its address."""
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        held: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                held.append(connection)
                try:
                    connection.sendall(answer)
                    if answer:
                        connection.close()
                except OSError:
                    pass

        threading.Thread(target=serve, daemon=True).start()
        self.addCleanup(lambda: [connection.close() for connection in held])
        return f"127.0.0.1:{listener.getsockname()[1]}"

    def test_garbage(self) -> None:
        """Bytes, a web server, and silence."""
        self.check(self.serve_bytes(bytes(range(256)) * 64))
        self.check("http://" + self.serve_bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
        self.check(self.serve_bytes(b""))

    def test_another_grpc_server(self) -> None:
        """Which has no such methods."""
        with Coordinator() as other:
            self.check(other.address, "UNIMPLEMENTED", "is this an etcd?")

    def serve_answers(self, answer: Any) -> str:
        """A gRPC server that gives this answer to every method; its address."""

        class Handler(grpc.GenericRpcHandler):
            """Answers everything."""

            def service(self, details: Any) -> Any:
                """One answer and the end, whatever was asked."""

                def respond(requests: Any, context: Any) -> Any:
                    del context
                    next(requests)
                    yield answer(details.method)

                return grpc.stream_stream_rpc_method_handler(respond, rpc.raw, rpc.raw)

        server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((Handler(),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        self.addCleanup(server.stop, None)
        return f"127.0.0.1:{port}"

    def test_wrong_answers(self) -> None:
        """Empty messages, unreadable ones, leases of no time, lists of other keys."""
        header = bytes([10, 2, 8, 1])  # cluster_id 1
        lease = header + bytes([16, 7, 24, 10])  # ID 7, TTL 10
        key = b"\x12\x0a\x0a\x08/foo/bar"

        def lists(method: str) -> bytes:
            return lease if "Lease" in method else header + key

        def forgets(method: str) -> bytes:
            """A store that takes everything and keeps nothing."""
            if "Lease" in method:
                return lease
            return header + (b"\x10\x01" if "Txn" in method else b"")

        self.check(self.serve_answers(lambda method: b""), "not as an etcd does")
        self.check(self.serve_answers(lambda method: b"\xff" * 40), "cannot be read")
        self.check(self.serve_answers(lambda method: header), "no lease")
        self.check(self.serve_answers(lists), "was not asked for")
        self.check(self.serve_answers(forgets), "does not keep what is written")


class Flags(unittest.TestCase):
    """Flags that are wrong: one line that names them, exit 2."""

    def refuse(self, *arguments: str, word: str) -> None:
        """The program ends so."""
        done = subprocess.run(
            [cluster.PROGRAM, "--listen", "127.0.0.1:0", *arguments],
            env=cluster.environment(), capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        self.assertEqual(done.returncode, 2, f"{arguments}: {done.stderr}")
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        self.assertIn(word, done.stderr)

    def test_flags(self) -> None:
        """Each of them."""
        for bad in ("", ",", "host", "host:0", "host:99999", ":2379", "ftp://h:1", "h:1,,h:2"):
            self.refuse("--etcd", bad, word="--etcd")
        self.refuse("--etcd", ",".join(["h:1"] * 17), word="more than 16 endpoints")
        self.refuse("--etcd", "h" * 300 + ":1", word="--etcd")
        self.refuse("--etcd", "https://h:1", word="--etcd-ca")
        for prefix in ("", "/", "nosa", "/nosa/", "/a b", "/" + "x" * 200):
            self.refuse("--etcd", "h:1", "--etcd-prefix", prefix, word="--etcd-prefix")
        self.refuse("--etcd", "h:1", "--etcd-ttl", "1", word="--etcd-ttl")
        self.refuse("--etcd", "h:1", "--advertise", "nowhere", word="--advertise")
        self.refuse("--etcd", "h:1", "--etcd-ca", "/does/not/exist", word="/does/not/exist")
        self.refuse("--etcd", "http://h:1", "--etcd-ca", __file__, word="without TLS")
        self.refuse("--etcd", "h:1", "--etcd-ca", __file__, word="PEM")
        for flag in ("--etcd-ca", "--etcd-cert", "--etcd-key", "--advertise"):
            self.refuse(flag, "x:1", word=f"{flag}: means nothing without --etcd")

    def test_memory_alone(self) -> None:
        """Without --etcd: memory, and drains that outlive their worker all the same."""
        with Coordinator("--worker-timeout", "1") as server:
            with server.channel() as channel:
                admin = rpc.Service(channel, cluster.ADMIN)
                status = admin.Status(STATUS(), timeout=PATIENCE_S)
                self.assertEqual((status.membership, list(status.coordinators)), ("memory", []))
                page = urllib.request.urlopen(f"http://127.0.0.1:{server.http}/metrics").read()
                self.assertIsNone(re.search(rb"^nosa_etcd", page, re.M))
                first = Worker(server.address, "w0")
                admin.Drain(DRAIN(worker_id="w0"), timeout=PATIENCE_S)
                first.__exit__()
                second = Worker(server.address, "w0", join=False)
                self.addCleanup(second.__exit__)
                rpc.eventually(
                    lambda: rpc.status_of(second.join)[0] == Code.OK, "joins", PATIENCE_S
                )
                self.assertTrue(second.join().drain)


if __name__ == "__main__":
    tap.main()
