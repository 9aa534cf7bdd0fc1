"""A worker as a process and a coordinator in Python, for tests of nosa-worker.

NOSA_WORKER names the program (ctest sets it).
"""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import rpc

WORKER = os.environ.get("NOSA_WORKER") or str(rpc.BUILD / "bin" / "nosa-worker")
SERVICE = "nosa.cluster.v1.Worker"
PATIENCE_S = 120 if rpc.SANITIZED else 30

PRELOAD = os.environ.get("NOSA_TEST_PRELOAD") or str(rpc.BUILD / "lib" / "libnosa_test_preload.so")
"""For LD_PRELOAD: see tests/support/preload.c."""

WITHOUT_IO_URING = (
    sys.executable, "-B", "-c",
    "import os, sys; sys.path.insert(0, sys.argv[1]);"
    "from test_nosa_run_tiers import refuse_io_uring; refuse_io_uring();"
    "os.execv(sys.argv[2], sys.argv[2:])",
    os.path.dirname(__file__),
)  # fmt: skip
"""Runs what follows behind a filter; in a process of its own, since gRPC does not bear a fork."""

RUN = rpc.message("nosa.cluster.v1.RunRequest")
SAMPLING = rpc.message("nosa.v1.Sampling")
JOINED = rpc.message("nosa.cluster.v1.JoinResponse")
HEARD = rpc.message("nosa.cluster.v1.HeartbeatResponse")
LEFT = rpc.message("nosa.cluster.v1.LeaveResponse")


class Coordinator:
    """The Registry service of a coordinator; keeps what it was told."""

    def __init__(
        self,
        port: int = 0,
        heartbeat_ms: int = 50,
        drain: bool = False,
        host: str = "127.0.0.1",
        garbage: bytes | None = None,
    ) -> None:
        """Serves on a port of the loopback; `garbage` is answered to a Join instead."""
        self.garbage = garbage
        self.asked = 0
        self.starts: list[Any] = []
        self.joins: list[Any] = []
        self.heartbeats: list[Any] = []
        self.leaves: list[Any] = []
        self.known: set[tuple[str, int]] = set()
        self.prefixes: set[tuple[int, int]] = set()
        self.abort: grpc.StatusCode | None = None
        self.refusal: tuple[grpc.StatusCode, str] | None = None
        self.heartbeat_ms = heartbeat_ms
        self.drain = drain
        self.epoch = time.time_ns()
        self.server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        handlers = {}
        for name, handler in (
            ("Join", self.join),
            ("Heartbeat", self.heartbeat),
            ("Leave", self.leave),
        ):
            request = rpc.message(f"nosa.cluster.v1.{name}Request")
            handlers[name] = grpc.unary_unary_rpc_method_handler(
                handler,
                request.FromString,
                lambda answer: answer if isinstance(answer, bytes) else answer.SerializeToString(),
            )
        generic = grpc.method_handlers_generic_handler("nosa.cluster.v1.Registry", handlers)
        self.server.add_generic_rpc_handlers((generic,))
        self.port = self.server.add_insecure_port(f"{host}:{port}")
        self.address = f"{host}:{self.port}"
        self.server.start()

    def join(self, request: Any, context: Any) -> Any:
        """A worker makes itself known."""
        self.asked += 1
        if self.garbage is not None:
            return self.garbage
        if self.refusal is not None:
            context.abort(*self.refusal)
        (self.joins if request.model.model_hash else self.starts).append(request)
        self.known.add((request.worker_id, request.incarnation))
        return JOINED(
            coordinator_epoch=self.epoch,
            heartbeat_ms=self.heartbeat_ms,
            prefix_hashes_max=16,
            drain=self.drain,
        )

    def heartbeat(self, request: Any, context: Any) -> Any:
        """A worker is alive."""
        if self.abort is not None:
            context.abort(self.abort, "as the test wants")
        if (request.worker_id, request.incarnation) not in self.known:
            context.abort(grpc.StatusCode.NOT_FOUND, "not joined")
        self.heartbeats.append(request)
        if request.prefixes.reset:
            self.prefixes.clear()
        for tier in request.prefixes.tiers:
            self.prefixes -= {(tier.tier, block) for block in tier.removed}
            self.prefixes |= {(tier.tier, block) for block in tier.added}
        return HEARD(prefixes_known=True)

    def leave(self, request: Any, context: Any) -> Any:
        """A worker says goodbye."""
        self.leaves.append(request)
        return LEFT()

    def stop(self) -> None:
        """Dies."""
        self.server.stop(0).wait()


class Worker:
    """nosa-worker as a process; use as a context."""

    def __init__(
        self,
        model: Path,
        *arguments: Any,
        env: dict[str, str] | None = None,
        refuse_io_uring: bool = False,
        wait: bool = True,
    ) -> None:
        """Starts it, without io_uring if it is to, and waits until it is ready."""
        self.lines: list[str] = []
        command = [*(WITHOUT_IO_URING if refuse_io_uring else ()), WORKER, "--model", str(model)]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("NOSA_")}
        self.process = subprocess.Popen(
            [*command, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--threads", "1",
             "--log-level", "debug", *map(str, arguments)],
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=kept | (env or {}),
        )  # fmt: skip
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        self.port = int(self.find(r"listens on port (\d+)"))
        self.http = int(self.find(r"HTTP on port (\d+)"))
        if wait:
            rpc.eventually(lambda: self.get("readyz")[0] == 200, "ready", PATIENCE_S)
        self.incarnation = 0
        self.model_hash = b""

    def read(self) -> None:
        """Collects its log."""
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    def find(self, pattern: str) -> str:
        """Waits for a line of its log; the first group."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            ended = self.process.poll() is not None
            for line in list(self.lines):
                if match := re.search(pattern, line):
                    return match.group(1)
            if ended:
                break
            time.sleep(0.01)
        raise AssertionError(f"no line '{pattern}' in {self.lines}")

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of an HTTP page."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/{path}", timeout=10) as page:
                return page.status, page.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str) -> float:
        """The value of a metric, by its name with labels."""
        for line in self.get("metrics")[1].splitlines():
            if line.startswith(name + " "):
                return float(line.split()[1])
        raise AssertionError(f"no metric {name}")

    def identify(self, join: Any) -> None:
        """Remembers whom requests are for."""
        self.incarnation = join.incarnation
        self.model_hash = join.model.model_hash

    def channel(self, *options: tuple[str, Any]) -> grpc.Channel:
        """A new connection."""
        return grpc.insecure_channel(
            f"127.0.0.1:{self.port}", options=[("grpc.use_local_subchannel_pool", 1), *options]
        )

    def request(self, prompt: list[int], count: int, **fields: Any) -> Any:
        """A RunRequest for this worker; greedy unless told otherwise."""
        fields.setdefault("sampling", SAMPLING())
        fields.setdefault("request_id", f"r{id(fields)}-{time.monotonic_ns()}")
        return RUN(
            incarnation=self.incarnation,
            model_hash=self.model_hash,
            prompt_token_ids=prompt,
            max_tokens=count,
            **fields,
        )

    def is_quiet(self) -> bool:
        """Whether nothing runs and no KV is held."""
        names = ("nosa_requests_running", "nosa_requests_waiting", "nosa_kv_blocks_used",
                 "nosa_sessions_open")  # fmt: skip
        return all(self.metric(name) == 0 for name in names)

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    def __enter__(self) -> Worker:
        """The worker itself."""
        return self

    def __exit__(self, *unused: object) -> None:
        """Kills what is left."""
        if self.process.stderr.closed:
            return
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.reader.join(5)
        self.process.stderr.close()


class Stream:
    """One Run, read in a thread of its own."""

    def __init__(self, call: Any) -> None:
        """Begins to read."""
        self.call = call
        self.tokens: list[int] = []
        self.logprobs: list[Any] = []
        self.started: Any = None
        self.done: Any = None
        self.code: grpc.StatusCode | None = None
        self.details = ""
        self.arrived: queue.Queue[int] = queue.Queue()
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self) -> None:
        """Until its end."""
        try:
            for event in self.call:
                kind = event.WhichOneof("event")
                if kind == "started":
                    self.started = event.started
                elif kind == "done":
                    self.done = event.done
                else:
                    self.tokens += event.tokens.token_ids
                    self.logprobs += event.tokens.logprobs
                    self.arrived.put(len(self.tokens))
            self.code = grpc.StatusCode.OK
        except grpc.RpcError as error:
            self.code, self.details = error.code(), error.details()

    def wait(self) -> Stream:
        """Until it has ended."""
        self.thread.join(PATIENCE_S)
        if self.thread.is_alive():
            raise AssertionError("the stream does not end")
        return self
