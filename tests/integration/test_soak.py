#!/usr/bin/env python3
"""Mixed load for a long time, with cancels, deadlines, slow readers, wrong requests and kills:
memory, descriptors and KV blocks of those that live through it stay flat.

NOSA_SOAK_S is its length, NOSA_CHAOS_SEED its seed. Prints TAP.
"""

from __future__ import annotations

import os
import random
import threading
import time
import unittest
from typing import Any

import chaos
import coordinator
import grpc
import rpc
import tap
from chaos import Cluster, Code
from chaos_load import IDS, REQUEST, Ask, Load, draw_asks
from chaos_storm import Storm, draw_strikes

SOAK_S = float(os.environ.get("NOSA_SOAK_S", 600))
SEED = int(os.environ.get("NOSA_CHAOS_SEED", 1))
SAMPLE_S = min(5.0, SOAK_S / 40)
GROWTH = 1.03
GROWTH_KIB = 6 << 10


class Nuisance:
    """Clients that give up, come too late, read slowly or ask for nonsense."""

    def __init__(self, home: Cluster, seed: int, number: int) -> None:
        """Starts them."""
        self.home, self.stopping = home, threading.Event()
        self.counts: dict[str, int] = {}
        self.failures: list[str] = []
        self.threads = [
            threading.Thread(target=self.run, args=(random.Random(seed + n),))
            for n in range(number)
        ]
        for thread in self.threads:
            thread.start()

    def run(self, draw: random.Random) -> None:
        """One of them, through the coordinator that lives."""
        acts = (self.cancel, self.be_late, self.read_slowly, self.ask_nonsense, self.hang_up)
        address = self.home.coordinators[0].server.address
        while not self.stopping.is_set():
            act = draw.choice(acts)
            channel = grpc.insecure_channel(address, options=chaos.KEEPALIVE[:1])
            try:
                act(rpc.Service(channel, coordinator.INFERENCE), draw)
            except (AssertionError, grpc.RpcError) as error:
                self.failures.append(f"{act.__name__}: {error}")
            channel.close()
            name = act.__name__
            self.counts[name] = self.counts.get(name, 0) + 1
            time.sleep(draw.uniform(0, 0.1))

    def request(self, draw: random.Random, count: int) -> Any:
        """Something of this length."""
        ids = tuple(draw.randrange(3, 256) for _ in range(draw.choice((3, 70, 500))))
        return Ask(ids, count).request()

    def cancel(self, service: Any, draw: random.Random) -> None:
        """After some tokens, or none."""
        call = service.Generate(self.request(draw, 3000), timeout=chaos.STREAM_S)
        for _ in range(draw.choice((0, 1, 2, 30))):
            next(call)
        call.cancel()

    def be_late(self, service: Any, draw: random.Random) -> None:
        """A deadline that cannot be kept."""
        timeout_s = draw.choice((0.001, 0.02, 0.1))
        call = service.Generate(self.request(draw, 3000), timeout=timeout_s)
        code, text = rpc.status_of(lambda: list(call))
        if code != Code.DEADLINE_EXCEEDED:
            raise AssertionError(f"{code}: {text}")

    def read_slowly(self, service: Any, draw: random.Random) -> None:
        """A few tokens, a pause, the rest."""
        call = service.Generate(self.request(draw, 300), timeout=chaos.STREAM_S)
        next(call)
        time.sleep(draw.uniform(0, 1))
        if sum(len(event.delta.token_ids) for event in call) != 300:
            raise AssertionError("not all of 300 tokens")

    def ask_nonsense(self, service: Any, draw: random.Random) -> None:
        """It is named."""
        bad = REQUEST(
            token_ids=IDS(ids=[1, 70000]), max_tokens=3, logprobs=draw.choice((0, 1000))
        )
        code, text = rpc.status_of(lambda: list(service.Generate(bad, timeout=chaos.STREAM_S)))
        if code != Code.INVALID_ARGUMENT:
            raise AssertionError(f"{code}: {text}")

    def hang_up(self, service: Any, draw: random.Random) -> None:
        """The connection goes away under the stream."""
        call = service.Generate(self.request(draw, 3000), timeout=chaos.STREAM_S)
        next(call)
        del call

    def stop(self) -> None:
        """Ends them."""
        self.stopping.set()
        for thread in self.threads:
            thread.join()


class Soak(unittest.TestCase):
    """Two coordinators, four workers; the first of each lives through it all."""

    def sample(self, home: Cluster, pids: dict[str, int]) -> dict[str, tuple[float, ...]]:
        """Memory and descriptors of the survivors, and the worker's KV blocks."""
        blocks = chaos.metrics(home.workers[0].worker.http)["nosa_kv_blocks_used"]
        return {
            "c0": (chaos.memory_kib(pids["c0"]), chaos.descriptors(pids["c0"])),
            "w0": (chaos.memory_kib(pids["w0"]), chaos.descriptors(pids["w0"]), blocks),
        }

    def test_soak(self) -> None:
        """Everything at once."""
        home = Cluster(
            workers=4, coordinators=2, worker_timeout_s=8 if rpc.SANITIZED else 3,
            coordinator_flags=("--replay-limit", 64, "--drain-timeout", 0.5),
            worker_flags=("--gpu-kv-bytes", "16M", "--host-kv-bytes", "16M",
                          "--max-context", 4096, "--max-batch", 8),
        )  # fmt: skip
        self.addCleanup(home.__exit__)
        load = Load(home, draw_asks(SEED + 9, 16, 60, 700), SEED, 6)
        self.addCleanup(load.stop)
        nuisance = Nuisance(home, SEED, 4)
        self.addCleanup(nuisance.stop)
        pids = {"c0": home.coordinators[0].pid, "w0": home.workers[0].pid}
        samples: list[dict[str, tuple[float, ...]]] = []
        failures: list[BaseException] = []
        end = time.monotonic() + SOAK_S
        storms = threading.Thread(target=self.storms, args=(home, end, failures))
        storms.start()
        while time.monotonic() < end:
            time.sleep(SAMPLE_S)
            samples.append(self.sample(home, pids))
        storms.join()
        nuisance.stop()
        load.stop()
        print(f"# {load.done} answers, {load.resumed} resumed, {nuisance.counts}", flush=True)
        for line in (*load.failures, *nuisance.failures):
            print(f"# {line}", flush=True)
        self.assertEqual([*load.failures, *nuisance.failures, *failures], [])
        home.await_quiet()
        self.check_flat(samples)
        home.stop()

    def storms(self, home: Cluster, end: float, failures: list[BaseException]) -> None:
        """A small storm after the other."""
        number = 0
        while time.monotonic() < end and not failures:
            number += 1
            strikes = draw_strikes(SEED * 10000 + number, 4, len(home.workers))
            try:
                Storm(home, strikes, spared=1).rage()
            except BaseException as error:  # pylint: disable=broad-exception-caught
                failures.append(error)

    def check_flat(self, samples: list[Any]) -> None:
        """The last quarter is not above the second one."""
        quarter = len(samples) // 4
        for name, index, unit, slack in (
            ("c0", 0, "KiB", GROWTH_KIB), ("c0", 1, "descriptors", 12),
            ("w0", 0, "KiB", GROWTH_KIB), ("w0", 1, "descriptors", 12), ("w0", 2, "blocks", 100),
        ):  # fmt: skip
            values = [sample[name][index] for sample in samples]
            second = sum(values[quarter : 2 * quarter]) / quarter
            last = sum(values[-quarter:]) / quarter
            print(f"# {name}: {second:.0f} {unit}, at the end {last:.0f}", flush=True)
            if not rpc.SANITIZED or unit != "KiB":
                self.assertLess(last, GROWTH * second + slack, f"{name}: {unit} {values}")


if __name__ == "__main__":
    tap.main()
