"""A cluster for tests: coordinators and workers as processes, and links between them that break.

Every part dials the others through a link of chaos_proxy.py, so that a part which starts again on
another port is found where it was, and each connection can be cut, half-closed, held or delayed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cluster
import coordinator
import grpc
import rpc
from program import Checkpoint

MODEL = "kv4_group4_d16_r1_yarn"
READY, DRAINING, DRAINED, LOST = 2, 3, 4, 5
PATIENCE_S = 180 if rpc.SANITIZED else 60
SLOWER = 4 if rpc.SANITIZED else 1
STREAM_S = 120 * SLOWER
"""A stream that takes longer is lost."""
AFTERMATH_S = 15 * SLOWER
"""After a fault is over, how long its consequences may be seen."""
Code = grpc.StatusCode
KEEPALIVE = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 1000 * SLOWER),
    ("grpc.keepalive_timeout_ms", 1500 * SLOWER),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)


def make_model(folder: Path, **config: Any) -> Path:
    """A checkpoint of two small layers over bytes."""
    checkpoint = Checkpoint(folder, MODEL)
    checkpoint.config(**{"max_position_embeddings": 65536, **config})
    return checkpoint.path


# ---- processes -------------------------------------------------------------------------------


def memory_kib(pid: int) -> int:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


def descriptors(pid: int) -> int:
    """Open descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def metrics(port: int) -> dict[str, float]:
    """The page of a program, by name with labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S) as page:
        lines = page.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


class Proxies:
    """The links, in a process of their own."""

    def __init__(self) -> None:
        """Starts it."""
        path = Path(__file__).with_name("chaos_proxy.py")
        self.process = subprocess.Popen(
            [sys.executable, "-B", str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        self.lock = threading.Lock()

    def ask(self, **command: Any) -> dict[str, Any]:
        """A command and its answer."""
        with self.lock:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())

    def open(self, link: str) -> str:
        """A new link's address."""
        return f"127.0.0.1:{self.ask(open=link)['port']}"

    def lead(self, link: str, port: int) -> None:
        """Where it leads from now on."""
        self.ask(link=link, target=port)

    def fault(self, link: str, kind: str, **options: Any) -> None:
        """Breaks it, or with "none" heals it."""
        self.ask(link=link, fault=kind, **options)

    def stop(self) -> None:
        """Ends it."""
        self.process.stdin.close()
        self.process.wait(PATIENCE_S)
        self.process.stdout.close()


class LinkedWorker(cluster.Worker):
    """A worker whose link is led to its port as soon as it has one."""

    def __init__(self, lead: Callable[[int], None], model: Path, *arguments: Any) -> None:
        """Starts it."""
        self.lead = lead
        super().__init__(model, *arguments)

    def find(self, pattern: str) -> str:
        """As its parent; the first line that is waited for has the port."""
        found = super().find(pattern)
        if pattern.startswith("listens on port"):
            self.lead(int(found))
        return found


@dataclass
class Trouble:
    """Whether a part is disturbed now, and when it was last."""

    active: int = 0
    over: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self) -> None:
        """A fault begins."""
        with self.lock:
            self.active += 1

    def end(self) -> None:
        """It is over; its consequences are not."""
        with self.lock:
            self.active -= 1
            self.over = time.monotonic()

    def since(self, moment: float) -> bool:
        """Whether what began at a moment may have been hit."""
        with self.lock:
            return self.active > 0 or self.over + AFTERMATH_S > moment


class WorkerSlot:
    """A worker and those that take its place."""

    def __init__(self, home: Cluster, number: int) -> None:
        """Not started yet."""
        self.home, self.name = home, f"w{number}"
        self.link = f"run-{self.name}"
        self.address = home.proxies.open(self.link)
        self.registry_links = [f"registry-{self.name}-{c.name}" for c in home.coordinators]
        self.registries = [home.proxies.open(link) for link in self.registry_links]
        self.trouble = Trouble()
        self.worker: cluster.Worker | None = None
        self.logs: list[list[str]] = []
        self.starts = 0

    @property
    def pid(self) -> int:
        """Of the process."""
        return self.worker.process.pid

    def start(self) -> None:
        """Starts the next one; returns when it could work."""
        self.starts += 1
        nvme = Path(self.home.folder.name) / self.name
        nvme.mkdir(exist_ok=True)
        self.home.proxies.lead(self.link, 0)  # it joins before its port is known here
        self.worker = LinkedWorker(
            lambda port: self.home.proxies.lead(self.link, port),
            self.home.model, "--advertise", self.address, "--id", self.name,
            "--coordinator", ",".join(self.registries), *self.home.worker_flags,
            *(("--nvme-dir", nvme) if self.home.nvme else ()),
        )  # fmt: skip
        self.logs.append(self.worker.lines)

    def end(self, number: int) -> int:
        """Sends a signal that ends it, and waits; its exit status."""
        self.worker.process.send_signal(number)
        status = self.worker.process.wait(PATIENCE_S)
        self.worker.__exit__()
        return status


class CoordinatorSlot:
    """A coordinator and those that take its place."""

    def __init__(self, home: Cluster, number: int) -> None:
        """Not started yet."""
        self.home, self.name, self.number = home, f"c{number}", number
        self.link = f"client-{self.name}"
        self.address = home.proxies.open(self.link)
        self.trouble = Trouble()
        self.is_new = False
        """It has taken another one's place, and workers have not joined it yet."""
        self.server: coordinator.Coordinator | None = None
        self.logs: list[list[str]] = []
        self.channel: grpc.Channel | None = None
        self.admin: Any = None

    @property
    def pid(self) -> int:
        """Of the process."""
        return self.server.process.pid

    def start(self) -> None:
        """Starts the next one."""
        self.server = coordinator.Coordinator(*map(str, self.home.coordinator_flags))
        self.logs.append(self.server.log)
        self.home.proxies.lead(self.link, self.server.port)
        for slot in self.home.workers:
            self.home.proxies.lead(slot.registry_links[self.number], self.server.port)
        self.channel = self.server.channel()
        self.admin = rpc.Service(self.channel, coordinator.ADMIN)

    def restart(self, end: Callable[[], None], pause_s: float = 0) -> None:
        """It ends so, another one takes its place, and the workers that are well join that."""
        self.is_new = True
        end()
        time.sleep(pause_s)
        self.start()
        rpc.eventually(
            lambda: all(self.states().get(w.name) == READY for w in self.home.workers
                        if not w.trouble.active),
            f"workers join {self.name}", PATIENCE_S,
        )  # fmt: skip
        self.is_new = False

    def kill(self) -> None:
        """SIGKILL."""
        self.channel.close()
        self.server.process.kill()
        self.server.process.wait()
        self.server.reader.join(5)
        self.server.process.stdout.close()
        self.server.process.stderr.close()

    def retire(self) -> None:
        """SIGTERM; complains unless it ends well."""
        self.channel.close()
        self.server.stop()

    def states(self) -> dict[str, int]:
        """Of the workers, as it sees them."""
        answer = self.admin.Workers(rpc.message("nosa.v1.WorkersRequest")(), timeout=PATIENCE_S)
        return {worker.id: worker.state for worker in answer.workers}

    def requests(self) -> list[Any]:
        """In flight."""
        ask = rpc.message("nosa.v1.RequestsRequest")()
        return list(self.admin.Requests(ask, timeout=PATIENCE_S).requests)

    def metrics(self) -> dict[str, float]:
        """Of the present one."""
        return metrics(self.server.http)


class Cluster:
    """The whole; use as a context."""

    def __init__(
        self,
        workers: int = 3,
        coordinators: int = 1,
        worker_flags: tuple[Any, ...] = (),
        coordinator_flags: tuple[Any, ...] = (),
        nvme: bool = False,
        worker_timeout_s: float = 30,
    ) -> None:
        """Starts it and waits until every worker is READY everywhere. With `nvme` each worker has
        a folder for its KV, which its next life finds. A machine that is busy with other things
        makes no worker silent for as long as `worker_timeout_s` is by itself."""
        self.folder = tempfile.TemporaryDirectory()
        self.nvme = nvme
        self.model = make_model(Path(self.folder.name))
        self.worker_flags = worker_flags
        self.coordinator_flags = ("--worker-timeout", worker_timeout_s, *coordinator_flags)
        self.proxies = Proxies()
        self.workers: list[WorkerSlot] = []
        self.coordinators = [CoordinatorSlot(self, n) for n in range(coordinators)]
        self.workers = [WorkerSlot(self, n) for n in range(workers)]
        try:
            for slot in (*self.coordinators, *self.workers):
                slot.start()
            self.await_ready()
        except BaseException:
            self.__exit__()
            raise

    def is_ready(self, name: str | None = None) -> bool:
        """Whether a worker, or each of them, is READY with each coordinator."""
        wanted = [name] if name else [slot.name for slot in self.workers]
        for slot in self.coordinators:
            if slot.trouble.active:
                continue
            try:
                states = slot.states()
            except (grpc.RpcError, ValueError):  # it was killed just now
                return False
            if any(states.get(each) != READY for each in wanted):
                return False
        return True

    def await_ready(self, name: str | None = None) -> None:
        """Waits for that."""
        rpc.eventually(lambda: self.is_ready(name), f"{name or 'all'} READY", PATIENCE_S)

    def leftovers(self) -> list[str]:
        """What is not zero though nothing runs."""
        left = []
        for slot in self.coordinators:
            page = slot.metrics()
            for name in ("nosa_requests_running", "nosa_requests_waiting"):
                if page[name] != 0:
                    left.append(f"{slot.name} {name} {page[name]}")
            left += [f"{slot.name} request {info.request_id}" for info in slot.requests()]
        for worker in self.workers:
            page = metrics(worker.worker.http)
            for name in ("nosa_requests_running", "nosa_requests_waiting",
                         "nosa_requests_suspended", "nosa_kv_blocks_used",
                         "nosa_sessions_open"):  # fmt: skip
                if page[name] != 0:
                    left.append(f"{worker.name} {name} {page[name]}")
        return left

    def await_quiet(self) -> None:
        """Waits until nothing runs and nothing is held."""
        end = time.monotonic() + PATIENCE_S
        while left := self.leftovers():
            if time.monotonic() > end:
                raise AssertionError(f"not given back: {left}")
            time.sleep(0.05)

    def log(self, name: str, word: str) -> list[str]:
        """Lines of a part's log, of all its lives, that have a word."""
        slots = {slot.name: slot for slot in (*self.coordinators, *self.workers)}
        return [line for log in slots[name].logs for line in log if word in line]

    def reports(self) -> list[str]:
        """Lines by which a sanitizer or an assertion complained."""
        signs = ("Sanitizer", "runtime error", "assertion failed", "Assertion")
        names = [slot.name for slot in (*self.coordinators, *self.workers)]
        return [f"{name}: {line}" for name in names for sign in signs
                for line in self.log(name, sign)]  # fmt: skip

    def stop(self) -> None:
        """SIGTERM to all; complains unless each ends well."""
        for slot in self.workers:
            status = slot.end(signal.SIGTERM)
            if status != 0:
                raise AssertionError(f"{slot.name}: exit {status}: {slot.logs[-1][-20:]}")
        for slot in self.coordinators:
            slot.retire()
        if found := self.reports():
            raise AssertionError("\n".join(found))

    def __enter__(self) -> Cluster:
        """Itself."""
        return self

    def __exit__(self, *unused: object) -> None:
        """Kills what is left."""
        for slot in self.workers:
            if slot.worker is not None and slot.worker.process.poll() is None:
                slot.worker.process.send_signal(signal.SIGCONT)
                slot.worker.__exit__()
        for slot in self.coordinators:
            if slot.server is not None and slot.server.process.poll() is None:
                slot.kill()
        self.proxies.stop()
        self.folder.cleanup()
