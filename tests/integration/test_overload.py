#!/usr/bin/env python3
"""More than there is room for: thousands of requests at once, thousands of streams that nobody
reads. Each is served whole or refused at once with RESOURCE_EXHAUSTED, memory stays bounded, and
right afterwards everything works as before.

NOSA_OVERLOAD_REQUESTS and NOSA_OVERLOAD_STREAMS are the counts. Prints TAP.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import unittest
from collections import Counter
from typing import Any

import chaos
import coordinator
import grpc
import rpc
import tap
from chaos import Cluster, Code
from chaos_load import Answer, Ask, Client

REQUESTS = int(os.environ.get("NOSA_OVERLOAD_REQUESTS", 1000))
STREAMS = int(os.environ.get("NOSA_OVERLOAD_STREAMS", 200))
FLAGS = ("--gpu-kv-bytes", "48M", "--max-context", 4096, "--max-batch", 16)
CHANNELS = 8
TIMEOUT_S = 1500
LOOP = asyncio.new_event_loop()
"""One for all: gRPC's own thread stays with the first."""
SMALL_WINDOW = (
    *chaos.KEEPALIVE[:1],
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 16384),
)
KIB_PER_STREAM = 160
"""What an unread stream may take in either program: windows of the transport and its queue."""
BASE_KIB = 64 << 10
REFUSED_P99_S = (2 + REQUESTS / 1000) * chaos.SLOWER
"""Of all at once, as their client sees it, which has to send them all before it reads."""
ALONE_P99_S = 1 * chaos.SLOWER
"""Of one after the other; those that are served take many times as long."""


def peak_kib(pid: int) -> int:
    """The most memory that a process has had."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))


class Channels:
    """A few connections, used in turn."""

    def __init__(self, address: str, options: Any) -> None:
        """Inside a loop."""
        self.channels = [
            grpc.aio.insecure_channel(address, options=[*options, ("number", n)])
            for n in range(CHANNELS)
        ]
        self.services = [rpc.Service(channel, coordinator.INFERENCE) for channel in self.channels]

    def start(self, number: int, request: Any) -> Any:
        """A call."""
        return self.services[number % CHANNELS].Generate(request, timeout=TIMEOUT_S)

    async def close(self) -> None:
        """Hangs up."""
        for channel in self.channels:
            await channel.close()


class Overload(unittest.TestCase):
    """One coordinator and two workers."""

    ASKS = [
        Ask(tuple(range(3 + n, 20 + n)), 24, (("temperature", n % 2), ("seed", n + 1)))
        for n in range(16)
    ]

    def start(self, *coordinator_flags: Any, worker_flags: tuple[Any, ...]) -> Cluster:
        """A cluster that has answered each ask alone."""
        home = Cluster(2, worker_flags=worker_flags, coordinator_flags=coordinator_flags)
        self.addCleanup(home.__exit__)
        client = Client(home)
        self.alone = [client.generate(ask).essence for ask in self.ASKS]
        client.close()
        return home

    def serves_normally(self, home: Cluster, limit_s: float) -> None:
        """A request is answered, and soon."""
        client = Client(home)
        for ask, expected in zip(self.ASKS[:4], self.alone):
            start = time.monotonic()
            self.assertEqual(client.generate(ask).essence, expected)
            self.assertLess(time.monotonic() - start, limit_s)
        client.close()

    def check_memory(self, home: Cluster, before: dict[str, int], most_kib: int) -> None:
        """No program has ever had so much more than before."""
        for slot in (*home.coordinators, *home.workers):
            grown = peak_kib(slot.pid) - before[slot.name]
            print(f"# {slot.name}: peak {grown} KiB above its start", flush=True)
            if not rpc.SANITIZED:
                self.assertLess(grown, most_kib, slot.name)

    def test_requests_at_once(self) -> None:
        """Whole and right, or RESOURCE_EXHAUSTED and at once."""
        home = self.start("--max-queue", 64, worker_flags=(*FLAGS, "--max-queue", 32))
        parts = (*home.coordinators, *home.workers)
        before = {slot.name: chaos.memory_kib(slot.pid) for slot in parts}
        idle = chaos.descriptors(home.coordinators[0].pid)
        start = time.monotonic()
        ends, refused_s = LOOP.run_until_complete(
            self.flood(home.coordinators[0].server.address)
        )
        seconds = time.monotonic() - start
        refused_s.sort()
        print(f"# {REQUESTS} requests in {seconds:.1f} s: {dict(ends)}", flush=True)
        self.assertEqual(set(ends) - {"whole", "refused"}, set(), ends)
        self.assertEqual(sum(ends.values()), REQUESTS)
        self.assertGreaterEqual(ends["whole"], 64)
        self.assertGreater(ends["refused"], 0)
        p99_s = refused_s[len(refused_s) * 99 // 100]
        print(
            f"# refused after p50 {refused_s[len(refused_s) // 2]:.3f} s, p99 {p99_s:.3f} s",
            flush=True,
        )
        self.assertLess(p99_s, REFUSED_P99_S)
        self.serves_normally(home, 5 * chaos.SLOWER)
        home.await_quiet()
        self.check_memory(home, before, BASE_KIB + 16 * REQUESTS)
        rpc.eventually(
            lambda: chaos.descriptors(home.coordinators[0].pid) <= idle + 4, "descriptors", 20
        )
        page = home.coordinators[0].metrics()
        self.assertEqual(
            page['nosa_requests_total{code="RESOURCE_EXHAUSTED"}'], ends["refused"]
        )
        home.stop()

    def test_refusals_do_not_wait(self) -> None:
        """Every place is taken by streams that take long: whoever comes then is told at once."""
        home = self.start(
            "--max-queue", 4,
            worker_flags=("--gpu-kv-bytes", "48M", "--max-batch", 1, "--max-queue", 1),
        )  # fmt: skip
        with home.coordinators[0].server.channel() as channel:
            service = rpc.Service(channel, coordinator.INFERENCE)
            endless = Ask(tuple(range(30, 60)), 60000).request()
            calls: list[Any] = []
            readers: list[threading.Thread] = []

            def fill() -> None:
                call = service.Generate(endless, timeout=TIMEOUT_S)
                reader = threading.Thread(target=rpc.status_of, args=(lambda: list(call),))
                reader.start()
                calls.append(call)
                readers.append(reader)

            def refused() -> bool:
                call = service.Generate(endless, timeout=2 * ALONE_P99_S)
                code, text = rpc.status_of(lambda: next(call))
                call.cancel()
                taken = (Code.OK, Code.DEADLINE_EXCEEDED)
                self.assertIn(code, (*taken, Code.RESOURCE_EXHAUSTED), text)
                return code not in taken

            def full() -> bool:
                fill()
                return all(refused() for _ in range(5))

            rpc.eventually(full, "every place is taken", chaos.PATIENCE_S)
            refused_s = []
            for _ in range(200):
                begun = time.monotonic()
                self.assertTrue(refused())
                refused_s.append(time.monotonic() - begun)
            self.assertGreaterEqual(len(home.coordinators[0].requests()), 2 * (1 + 1))
            for call in calls:
                call.cancel()
            for reader in readers:
                reader.join(chaos.PATIENCE_S)
        refused_s.sort()
        print(f"# refused after p50 {refused_s[100]:.4f} s, p99 {refused_s[198]:.4f} s", flush=True)
        self.assertLess(refused_s[198], ALONE_P99_S)
        home.await_quiet()
        self.serves_normally(home, 5 * chaos.SLOWER)
        home.stop()

    async def flood(self, address: str) -> tuple[Counter[str], list[float]]:
        """All at once; how each ended, and how long refusals took."""
        channels = Channels(address, chaos.KEEPALIVE[:1])
        refused_s: list[float] = []

        async def one(number: int) -> str:
            index = number % len(self.ASKS)
            answer, accepted = Answer(), False
            begun = time.monotonic()
            try:
                async for event in channels.start(number, self.ASKS[index].request()):
                    accepted = answer.take(event, accepted)
            except grpc.aio.AioRpcError as error:
                if error.code() == Code.RESOURCE_EXHAUSTED and not accepted:
                    refused_s.append(time.monotonic() - begun)
                    return "refused"
                return f"{error.code()}: {error.details()}"
            return "whole" if answer.essence == self.alone[index] else "other tokens"

        ends = Counter(await asyncio.gather(*(one(number) for number in range(REQUESTS))))
        await channels.close()
        return ends, refused_s

    def test_streams_that_nobody_reads(self) -> None:
        """They wait at a bound and hold nobody up; those that are read again have every token."""
        home = self.start("--max-queue", 4096, worker_flags=(*FLAGS, "--max-queue", 2048))
        parts = (*home.coordinators, *home.workers)
        before = {slot.name: chaos.memory_kib(slot.pid) for slot in parts}
        LOOP.run_until_complete(self.idle(home, STREAMS))
        home.await_quiet()
        self.check_memory(home, before, BASE_KIB + KIB_PER_STREAM * STREAMS)
        self.serves_normally(home, 5 * chaos.SLOWER)
        home.stop()

    def test_streams_that_nobody_reads_in_a_small_first_tier(self) -> None:
        """The last block of a paused stream lies in the first tier alone: those that run get it."""
        home = self.start(worker_flags=("--gpu-kv-bytes", "48M", "--max-batch", 16))
        LOOP.run_until_complete(self.idle(home, 60))
        home.await_quiet()
        home.stop()

    async def idle(self, home: Cluster, number: int) -> None:
        """Streams that are accepted and then left; some are read on later, the rest given up."""
        channels = Channels(home.coordinators[0].server.address, SMALL_WINDOW)
        endless = Ask(tuple(range(30, 60)), 40000)
        request, short = endless.request(logprobs=20), Ask(endless.ids, 200).request(logprobs=20)
        start = time.monotonic()
        calls = [
            channels.start(n, short if n % 4 == 0 else request) for n in range(number)
        ]
        firsts = await asyncio.gather(*(call.read() for call in calls))
        self.assertTrue(all(first.WhichOneof("event") == "accepted" for first in firsts))
        accepted_s = time.monotonic() - start
        await asyncio.to_thread(self.serves_normally, home, 20 * chaos.SLOWER)
        await self.until_still(home)
        still_s = time.monotonic() - start
        infos = await asyncio.to_thread(home.coordinators[0].requests)
        tokens = [info.tokens for info in infos]
        print(
            f"# {number} streams accepted after {accepted_s:.1f} s, still after {still_s:.1f} s, "
            f"{len(infos)} open with {min(tokens)} to {max(tokens)} tokens", flush=True,
        )  # fmt: skip
        self.assertLess(max(tokens), 5000)
        await asyncio.to_thread(self.serves_normally, home, 5 * chaos.SLOWER)
        await self.read_some(calls)
        await channels.close()

    async def until_still(self, home: Cluster) -> None:
        """Waits until no stream moves any more."""
        seen, since = -1, time.monotonic()
        end = time.monotonic() + chaos.STREAM_S * 3
        while time.monotonic() - since < 1:
            infos = await asyncio.to_thread(home.coordinators[0].requests)
            total = sum(info.tokens for info in infos)
            if total != seen:
                seen, since = total, time.monotonic()
            self.assertLess(time.monotonic(), end, "streams that nobody reads go on")
            await asyncio.sleep(0.1)

    async def read_some(self, calls: list[Any]) -> None:
        """Reads the short ones to their end and some of the others a way on; gives up the rest."""
        whole: list[int] | None = None
        for n, call in enumerate(calls):
            if n % 4 == 0:
                ids: list[int] = []
                while (event := await call.read()) is not grpc.aio.EOF:
                    ids += event.delta.token_ids
                whole = whole or ids
                self.assertEqual((len(ids), ids), (200, whole))
            elif n % 16 == 1:
                ids = []
                while len(ids) < 1000:
                    ids += (await call.read()).delta.token_ids
                self.assertEqual(ids[:200], whole)
                call.cancel()
            else:
                call.cancel()


if __name__ == "__main__":
    tap.main()
