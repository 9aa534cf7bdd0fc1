"""Storms: faults at random moments, from a seed, over a cluster of chaos.py."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass
from typing import Any

import rpc
from chaos import PATIENCE_S, Cluster, CoordinatorSlot, WorkerSlot


@dataclass(frozen=True)
class Strike:
    """One fault of a storm."""

    pause_s: float
    kind: str
    victims: tuple[int, ...]
    """In the order in which they are wanted."""
    seconds: float
    choice: int


WORKER_KILLS = ("kill", "kill", "stop", "term")
ALL_KILLS = ("kill", "stop", "term", "kill coordinator", "term coordinator")
LINKS = ("cut", "half_close", "stall", "delay")


def draw_strikes(
    seed: int, kills: int, workers: int, kinds: tuple[str, ...] = ALL_KILLS
) -> list[Strike]:
    """So many kills, with broken links between them. Kinds come in turn, in a drawn order."""
    draw = random.Random(seed)
    strikes: list[Strike] = []
    bag: list[str] = []
    while kills > 0:
        if draw.random() < 0.35:
            kind = draw.choice(LINKS)
        else:
            bag = bag or draw.sample(kinds, len(kinds))
            kind = bag.pop()
            kills -= 1
        victims = tuple(draw.sample(range(workers), workers))
        strikes.append(Strike(draw.uniform(0.05, 0.6), kind, victims, draw.uniform(0.2, 4),
                              draw.randrange(1 << 16)))  # fmt: skip
    return strikes


class Storm:
    """Strikes a cluster. One worker at least is well at any time; the first coordinator is never
    killed, and the first `spared` workers are left alone."""

    def __init__(self, home: Cluster, strikes: list[Strike], spared: int = 0) -> None:
        """Not begun."""
        self.home, self.strikes, self.spared = home, strikes, spared
        self.pool = futures.ThreadPoolExecutor(8)
        self.pending: list[futures.Future[None]] = []
        self.counts: dict[str, int] = {}

    def rage(self) -> None:
        """All of them; returns when everything has recovered."""
        for strike in self.strikes:
            time.sleep(strike.pause_s)
            self.strike(strike)
        for future in self.pending:
            future.result(4 * PATIENCE_S)
        self.pool.shutdown()
        self.home.await_ready()

    def free_worker(self, strike: Strike) -> WorkerSlot:
        """The first victim that is well, once one that is well can be spared."""
        end = time.monotonic() + 2 * PATIENCE_S
        while time.monotonic() < end:
            well = [s for s in self.home.workers[self.spared :] if not s.trouble.active]
            if len(well) + self.spared > 1 and well:
                return next(s for v in strike.victims for s in well if s is self.home.workers[v])
            time.sleep(0.02)
        raise AssertionError("workers do not come back")

    def strike(self, strike: Strike) -> None:
        """One fault, carried out in the background."""
        spare = self.home.coordinators[1:]
        self.counts[strike.kind] = self.counts.get(strike.kind, 0) + 1
        if strike.kind.endswith("coordinator"):
            target: Any = spare[strike.choice % len(spare)]
            rpc.eventually(lambda: not target.trouble.active, "is back", 2 * PATIENCE_S)
            act: Callable[[Any, Strike], None] = self.end_coordinator
        elif strike.kind in LINKS and strike.choice % 4 == 0:
            target = self.home.coordinators[strike.choice // 4 % len(self.home.coordinators)]
            rpc.eventually(lambda: not target.trouble.active, "is back", 2 * PATIENCE_S)
            act = self.break_client_link
        else:
            target = self.free_worker(strike)
            act = self.break_worker_link if strike.kind in LINKS else self.end_worker
        target.trouble.begin()
        self.pending.append(self.pool.submit(self.carry_out, act, target, strike))

    def carry_out(self, act: Callable[[Any, Strike], None], target: Any, strike: Strike) -> None:
        """Until the target is well again."""
        try:
            act(target, strike)
        finally:
            target.trouble.end()

    def end_worker(self, slot: WorkerSlot, strike: Strike) -> None:
        """Kills it, freezes it, or asks it to go."""
        if strike.kind == "stop":
            slot.worker.process.send_signal(signal.SIGSTOP)
            time.sleep(strike.seconds)
            slot.worker.process.send_signal(signal.SIGCONT)
        else:
            status = slot.end(signal.SIGKILL if strike.kind == "kill" else signal.SIGTERM)
            if strike.kind == "term" and status != 0:
                raise AssertionError(f"{slot.name}: exit {status}: {slot.logs[-1][-20:]}")
            slot.start()
        self.home.await_ready(slot.name)

    def break_link(self, link: str, strike: Strike) -> None:
        """For a while."""
        towards = "target" if strike.choice & 16 else "caller"
        self.home.proxies.fault(link, strike.kind, towards=towards, seconds=strike.seconds / 40)
        if strike.kind in ("stall", "delay"):
            time.sleep(strike.seconds)
            self.home.proxies.fault(link, "none")

    def break_worker_link(self, slot: WorkerSlot, strike: Strike) -> None:
        """That to it, or one that it has to a coordinator."""
        links = [slot.link, slot.link, *slot.registry_links]
        self.break_link(links[strike.choice // 32 % len(links)], strike)
        self.home.await_ready(slot.name)

    def break_client_link(self, slot: CoordinatorSlot, strike: Strike) -> None:
        """That of all clients to it."""
        self.break_link(slot.link, strike)

    def end_coordinator(self, slot: CoordinatorSlot, strike: Strike) -> None:
        """Another one takes its place, and workers join it."""
        end = slot.kill if strike.kind == "kill coordinator" else slot.retire
        slot.restart(end, strike.seconds / 4)
