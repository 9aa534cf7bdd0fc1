#!/usr/bin/env python3
"""Real coordinators and workers that are killed, frozen, restarted and cut off under load: no
request is lost, none gets other tokens than it gets alone, and nothing is held afterwards.

NOSA_CHAOS_KILLS and NOSA_CHAOS_SEED choose the storm; a failure names both. Prints TAP.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
import unittest
from concurrent import futures
from typing import Any

import chaos
import coordinator
import rpc
import tap
from chaos import READY, Cluster, Code
from chaos_load import Answer, Ask, Client, Load, LostError, draw_asks
from chaos_storm import ALL_KILLS, WORKER_KILLS, Storm, draw_strikes

KILLS = int(os.environ.get("NOSA_CHAOS_KILLS", 10))
SEED = int(os.environ.get("NOSA_CHAOS_SEED", 1))
WORKER_FLAGS = ("--gpu-kv-bytes", "128M", "--max-batch", 16)
SMALL_WINDOW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 16384))
TIMEOUT_S = 8 if rpc.SANITIZED else 3
STORM_FLAGS = ("--replay-limit", 64, "--drain-timeout", 0.5)
REPLAYS = 'nosa_request_replays_total{exact="true"}'
INEXACT_REPLAYS = 'nosa_request_replays_total{exact="false"}'
MORE_DESCRIPTORS = 8
"""Than before the load: a connection to a worker or from it that is being made anew."""
GROWTH_KIB = 8 << 10
"""Of a coordinator over a storm of some hundred streams, which takes it 1 MiB."""


class Case(unittest.TestCase):
    """A cluster of its own for each test, which ends well."""

    def cluster(self, **options: Any) -> Cluster:
        """Starts one."""
        options.setdefault("worker_flags", WORKER_FLAGS)
        home = Cluster(**options)
        self.addCleanup(home.__exit__)
        return home

    def stream(self, home: Cluster, ask: Ask) -> tuple[Any, list[Any]]:
        """A stream that has begun: the call and what came so far."""
        channel = home.coordinators[0].server.channel()
        self.addCleanup(channel.close)
        call = rpc.Service(channel, coordinator.INFERENCE).Generate(
            ask.request(), timeout=chaos.STREAM_S
        )
        return call, [next(call) for _ in range(3)]

    def whole(self, call: Any, events: list[Any]) -> Answer:
        """Reads a stream to its end."""
        answer, accepted = Answer(), False
        for event in itertools.chain(events, call):
            accepted = answer.take(event, accepted)
        return answer


class Storms(Case):
    """Faults at random moments."""

    def storm(self, seed: int, kills: int, coordinators: int, **options: Any) -> None:
        """A storm over a load, and the state of everything afterwards."""
        home = self.cluster(
            workers=3, coordinators=coordinators, coordinator_flags=STORM_FLAGS,
            worker_timeout_s=TIMEOUT_S, **options,
        )  # fmt: skip
        keeper = home.coordinators[0].pid
        idle = chaos.descriptors(keeper)
        load = Load(home, draw_asks(seed, 12, 100, 900), seed, 10)
        self.addCleanup(load.stop)
        time.sleep(2)
        before_kib = chaos.memory_kib(keeper)
        kinds = ALL_KILLS if coordinators > 1 else WORKER_KILLS
        storm = Storm(home, draw_strikes(seed, kills, len(home.workers), kinds))
        try:
            storm.rage()
        finally:
            load.stop()
        where = f"NOSA_CHAOS_SEED={SEED} NOSA_CHAOS_KILLS={KILLS}"
        for line in load.failures:
            print(f"# {line}", flush=True)
        self.assertEqual(load.failures, [], where)
        self.assertGreater(load.done, kills, where)
        home.await_quiet()
        self.check_keeper(keeper, idle, before_kib, where)
        page = home.coordinators[0].metrics()
        print(
            f"# {kills} kills {storm.counts}: {load.done} answers, {load.resumed} resumed, "
            f"{page[REPLAYS]:.0f} replays, {page['nosa_request_moves_total']:.0f} moves, "
            f"longest {load.longest_s:.1f} s; keeper {before_kib} -> "
            f"{chaos.memory_kib(keeper)} KiB, {idle} -> {chaos.descriptors(keeper)} descriptors; "
            f"excuses {dict(load.excuses)}", flush=True,
        )  # fmt: skip
        if storm.counts.get("kill"):
            self.assertGreater(page[REPLAYS], 0, where)
        self.assertEqual(page[INEXACT_REPLAYS], 0)
        home.stop()

    def check_keeper(self, keeper: int, idle: int, before_kib: int, where: str) -> None:
        """The coordinator that was never killed has given everything back."""
        most = idle + MORE_DESCRIPTORS
        rpc.eventually(
            lambda: chaos.descriptors(keeper) <= most,
            f"{most} descriptors at most, {idle} before the load", chaos.PATIENCE_S,
        )  # fmt: skip
        if not rpc.SANITIZED:
            self.assertLess(chaos.memory_kib(keeper) - before_kib, GROWTH_KIB, where)

    def test_storm_over_workers(self) -> None:
        """One coordinator; workers with three small tiers die, freeze, leave and are cut off."""
        flags = ("--gpu-kv-bytes", "6M", "--host-kv-bytes", "6M", "--nvme-kv-bytes", "64M",
                 "--max-context", 4096, "--max-batch", 16, "--drain-timeout", 0.5)  # fmt: skip
        self.storm(SEED, KILLS // 2, 1, worker_flags=flags, nvme=True)

    def test_storm_over_everything(self) -> None:
        """Two coordinators, one of which dies as well; its streams resume through the other."""
        flags = (*WORKER_FLAGS, "--drain-timeout", 0.5)
        self.storm(SEED + 1, KILLS - KILLS // 2, 2, worker_flags=flags)


class Life(Case):
    """Planned ends under load."""

    def test_rolling_restart_loses_nothing(self) -> None:
        """Every worker in turn is asked to go and comes back: moves, and no replay."""
        home = self.cluster(worker_flags=(*WORKER_FLAGS, "--drain-timeout", 0.1))
        load = Load(home, draw_asks(SEED, 8, 900, 1500), SEED, 12)
        self.addCleanup(load.stop)
        for slot in home.workers:
            time.sleep(0.5)
            self.assertEqual(slot.end(signal.SIGTERM), 0)
            slot.start()
            home.await_ready()
        load.stop()
        self.assertEqual(load.failures, [])
        page = home.coordinators[0].metrics()
        self.assertEqual((page[REPLAYS], page[INEXACT_REPLAYS]), (0, 0))
        self.assertGreater(page["nosa_request_moves_total"], 0)
        home.await_quiet()
        home.stop()

    def test_sigterm_under_a_slow_reader_is_no_death(self) -> None:
        """The worker has computed all and goes before it is read: a move, and no replay."""
        home = self.cluster(workers=2)
        ask = Ask(tuple(range(3, 50)), 420)
        client = Client(home)
        self.addCleanup(client.close)
        alone = client.generate(ask)
        front = home.coordinators[0]
        channel = front.server.channel(*SMALL_WINDOW)
        self.addCleanup(channel.close)
        call = rpc.Service(channel, coordinator.INFERENCE).Generate(
            ask.request(logprobs=20), timeout=chaos.STREAM_S
        )
        events = [next(call)]
        slot = next(s for s in home.workers if s.name == events[0].accepted.worker_id)
        rpc.eventually(
            lambda: chaos.metrics(slot.worker.http)["nosa_sessions_open"] == 0,
            "computed", chaos.PATIENCE_S,
        )  # fmt: skip
        self.assertEqual(len(front.requests()), 1)
        self.assertEqual(slot.end(signal.SIGTERM), 0)
        answer = self.whole(call, events)
        self.assertEqual(answer.essence, alone.essence)
        self.assertEqual((front.metrics()[REPLAYS], front.metrics()[INEXACT_REPLAYS]), (0, 0))
        slot.start()
        home.await_ready()
        home.await_quiet()
        home.stop()

    def test_drain_past_its_time_moves_streams(self) -> None:
        """The stream goes on elsewhere, to the token; resumed, the worker works again."""
        home = self.cluster(workers=2, coordinator_flags=("--drain-timeout", 0.2))
        ask = Ask(tuple(range(3, 100)), 6000, (("temperature", 0.9), ("seed", 5)))
        client = Client(home)
        self.addCleanup(client.close)
        alone = client.generate(ask)
        call, events = self.stream(home, ask)
        front = home.coordinators[0]
        first = events[0].accepted.worker_id
        drain = rpc.message("nosa.v1.DrainRequest")(worker_id=first)
        front.admin.Drain(drain, timeout=chaos.PATIENCE_S)
        rpc.eventually(
            lambda: front.requests()[0].worker_id not in ("", first), "moved", chaos.PATIENCE_S
        )
        answer = self.whole(call, events)
        self.assertEqual(answer.essence, alone.essence)
        page = front.metrics()
        self.assertEqual(page["nosa_request_moves_total"], 1)
        self.assertEqual(page[REPLAYS], 0, home.coordinators[0].server.log[-10:])
        rpc.eventually(
            lambda: front.states()[first] == chaos.DRAINED, "DRAINED", chaos.PATIENCE_S
        )
        self.assertNotEqual(client.generate(ask).workers, [first])
        front.admin.Resume(rpc.message("nosa.v1.ResumeRequest")(worker_id=first), timeout=10)
        rpc.eventually(lambda: front.states()[first] == READY, "READY again", 20)
        home.await_quiet()
        home.stop()

    def test_coordinator_restart_workers_join_again(self) -> None:
        """The only coordinator dies; its streams resume through the next one."""
        home = self.cluster(workers=2)
        load = Load(home, draw_asks(SEED + 3, 6, 300, 1500), SEED, 6)
        self.addCleanup(load.stop)
        front = home.coordinators[0]
        for _ in range(2):
            time.sleep(0.5)
            front.trouble.begin()
            front.restart(front.kill)
            front.trouble.end()
        time.sleep(0.5)
        load.stop()
        self.assertEqual(load.failures, [])
        self.assertGreater(load.resumed, 0)
        self.assertEqual([slot.starts for slot in home.workers], [1, 1])
        home.await_quiet()
        home.stop()


class Deaths(Case):
    """One end at a time."""

    LONG_ASK = Ask(tuple(range(3, 60)), 6000)

    def gap(self, end: Any, limit_s: float, **options: Any) -> None:
        """A stream's worker ends so; the next token comes within a time."""
        home = self.cluster(workers=2, **options)
        client = Client(home)
        self.addCleanup(client.close)
        alone = client.generate(self.LONG_ASK)
        call, events = self.stream(home, self.LONG_ASK)
        slot = next(s for s in home.workers if s.name == events[0].accepted.worker_id)
        events += [next(call) for _ in range(500)]
        moment = time.monotonic()
        end(slot.worker.process)
        answer = self.whole(call, events)
        self.assertEqual(answer.essence, alone.essence)
        pauses = [b - a for a, b in zip([moment, *answer.times], answer.times)]
        page = home.coordinators[0].metrics()
        self.assertGreaterEqual(page[REPLAYS], 1)
        redispatch_s = (
            page["nosa_redispatch_seconds_sum"] / page["nosa_redispatch_seconds_count"]
        )
        print(f"# longest pause {max(pauses):.2f} s, next worker after {redispatch_s:.3f} s")
        if not rpc.SANITIZED:
            self.assertLess(redispatch_s, 1)
            self.assertLess(max(pauses), limit_s)
        slot.worker.process.send_signal(signal.SIGCONT)
        if slot.worker.process.poll() is None:
            home.await_ready()
        else:
            slot.worker.__exit__()
            slot.start()
        home.await_quiet()
        home.stop()

    def test_killed_worker_is_replaced_at_once(self) -> None:
        """SIGKILL."""
        self.gap(lambda process: process.send_signal(signal.SIGKILL), 2)

    def test_frozen_worker_is_noticed(self) -> None:
        """SIGSTOP: within --worker-timeout, and what it sends when it wakes is dropped."""
        self.gap(lambda process: process.send_signal(signal.SIGSTOP), 5, worker_timeout_s=2)

    def test_last_worker_dies_is_no_excuse(self) -> None:
        """Nobody takes its place within --worker-timeout: the stream and those after it are lost,
        in words that no client of a storm excuses, whatever else is wrong with the coordinator."""
        home = self.cluster(workers=1, worker_timeout_s=TIMEOUT_S)
        front, slot = home.coordinators[0], home.workers[0]
        client = Client(home)
        self.addCleanup(client.close)
        front.trouble.begin()
        with futures.ThreadPoolExecutor(1) as pool:
            stream = pool.submit(client.generate, self.LONG_ASK, "last")
            self.assertEqual(self.holder(front, "last-0", []), slot.name)
            slot.end(signal.SIGKILL)
            with self.assertRaisesRegex(LostError, "no worker came within --worker-timeout"):
                stream.result(chaos.PATIENCE_S)
        with self.assertRaisesRegex(LostError, "UNAVAILABLE: no worker .* is not new"):
            client.generate(self.LONG_ASK)
        self.assertEqual(client.excuses.total(), 0)
        slot.start()
        front.trouble.end()
        home.await_ready()
        self.assertEqual(len(client.generate(self.LONG_ASK).ids), self.LONG_ASK.count)
        home.await_quiet()
        home.stop()

    def test_poisoned_request_ends_at_the_limit(self) -> None:
        """It kills every worker that gets it: INTERNAL after three, a log line, and no harm to
        others."""
        home = self.cluster(workers=4, coordinator_flags=("--replay-limit", 3))
        load = Load(home, draw_asks(SEED + 5, 6, 100, 400), SEED, 4)
        self.addCleanup(load.stop)
        front = home.coordinators[0]
        channel = front.server.channel()
        self.addCleanup(channel.close)
        poisoned = Ask(tuple(range(3, 40)), 60000).request(request_id="poisoned")
        outcome: list[Any] = []
        call = rpc.Service(channel, coordinator.INFERENCE).Generate(poisoned, timeout=600)
        reader = threading.Thread(
            target=lambda: outcome.append(rpc.status_of(lambda: list(call)))
        )
        reader.start()
        victims = []
        while len(victims) < 3:
            name = self.holder(front, "poisoned", victims)
            victims.append(name)
            slot = next(s for s in home.workers if s.name == name)
            slot.end(signal.SIGKILL)
            time.sleep(1)  # so that no other request sees three of them
        reader.join(chaos.PATIENCE_S)
        for slot in home.workers:
            if slot.name in victims:
                slot.start()
        home.await_ready()
        load.stop()
        self.assertEqual(outcome[0][0], Code.INTERNAL, outcome)
        self.assertIn("--replay-limit", outcome[0][1])
        self.assertTrue(
            any("poisoned" in line for line in home.log("c0", "--replay-limit")), "a log line"
        )
        self.assertEqual(load.failures, [])
        home.await_quiet()
        home.stop()

    def holder(self, front: chaos.CoordinatorSlot, request_id: str, but: list[str]) -> str:
        """The worker that computes a request, none of those that had it."""
        found: list[str] = []

        def look() -> bool:
            found[:] = [
                info.worker_id
                for info in front.requests()
                if info.request_id == request_id and info.worker_id not in ("", *but)
                and info.state == 3
            ]  # fmt: skip
            return bool(found)

        rpc.eventually(look, f"{request_id} runs elsewhere", chaos.PATIENCE_S)
        return found[0]


if __name__ == "__main__":
    tap.main()
