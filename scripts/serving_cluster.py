"""A coordinator and workers as processes on free loopback ports, and what they cost, for
measurements of serving."""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

TREE = Path(__file__).resolve().parents[1]
TINY = TREE / "tests" / "vectors" / "random" / "kv1_group4_d16_r4"
PATIENCE_S = 120
STOP_S = 20


class ToolError(Exception):
    """Something the user can be told in one line."""


def environment() -> dict[str, str]:
    """This process's environment without NOSA_ variables."""
    return {name: value for name, value in os.environ.items() if not name.startswith("NOSA_")}


def make_tiny_model(folder: Path) -> Path:
    """A checkpoint too small to matter (two layers, 256 ids that are the bytes)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = {byte: chr(byte) for byte in printable}
    symbols.update({byte: chr(256 + i) for i, byte in enumerate(others)})
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "vocab": {symbols[byte]: byte for byte in range(256)},
        "merges": [],
    }
    path = folder / "tiny"
    shutil.copytree(TINY, path, ignore=shutil.ignore_patterns("*.npy"))
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {**level, "use_regex": True},
        "post_processor": None,
        "decoder": {**level, "use_regex": True},
        "model": model,
    }
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    return path


class Process:
    """A program that runs until it is stopped; its standard error is kept, line by line."""

    def __init__(self, command: list[str], cores: str = "") -> None:
        """Starts it, on the cores of a list such as "0,1" if one is given."""
        pinned = ["taskset", "-c", cores, *command] if cores else command
        self.name = Path(command[0]).name
        self.lines: list[tuple[float, str]] = []
        self.out: queue.Queue[str] = queue.Queue()
        self.process = subprocess.Popen(
            pinned,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        for stream, keep in (
            (self.process.stderr, lambda line: self.lines.append((time.monotonic(), line))),
            (self.process.stdout, self.out.put),
        ):
            threading.Thread(target=self.read, args=(stream, keep), daemon=True).start()

    @staticmethod
    def read(stream: Any, keep: Any) -> None:
        """Until the stream ends."""
        for line in stream:
            keep(line.rstrip("\n"))

    def find(self, pattern: str) -> str:
        """Waits for a line of standard error; its first group."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            ended = self.process.poll() is not None
            for _, line in list(self.lines):
                if match := re.search(pattern, line):
                    return match.group(1)
            if ended:
                break
            time.sleep(0.01)
        raise ToolError(f"{self.name}: {self.lines[-1][1] if self.lines else 'it says nothing'}")

    def cpu_s(self) -> float:
        """Time on a core so far, all threads, to the nanosecond."""
        total = 0
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            try:
                total += int((task / "schedstat").read_text().split()[0])
            except (FileNotFoundError, ProcessLookupError):
                continue
        return total / 1e9

    def memory_mib(self) -> float:
        """Resident memory."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise ToolError(f"{self.name} has ended")

    def signal(self, number: int) -> float:
        """Sends a signal; when, by the monotonic clock."""
        self.process.send_signal(number)
        return time.monotonic()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when that takes long."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()


class Cluster:
    """One coordinator and its workers; use as a context."""

    def __init__(
        self, programs: Path, coordinator: list[str] | None = None, cores: str = ""
    ) -> None:
        """Starts the coordinator."""
        self.programs = programs
        self.workers: dict[str, Process] = {}
        self.arguments: dict[str, tuple[Path, list[str], str]] = {}
        self.coordinator = Process(
            [
                str(programs / "nosa-coordinator"), "--listen", "127.0.0.1:0", "--http",
                "127.0.0.1:0", *(coordinator or []),
            ],
            cores,
        )  # fmt: skip
        try:
            line = self.coordinator.out.get(timeout=PATIENCE_S)
        except queue.Empty:
            self.coordinator.stop()
            raise ToolError("nosa-coordinator does not start") from None
        found = re.search(r"listening on port (\d+), http on port (\d+)", line)
        if not found:
            raise ToolError(f"nosa-coordinator says '{line}'")
        self.address, self.http = f"127.0.0.1:{found[1]}", int(found[2])

    def add_worker(self, name: str, model: Path, *arguments: str, cores: str = "") -> Process:
        """Starts a worker, or starts one again."""
        self.arguments[name] = (model, list(arguments), cores)
        self.workers[name] = Process(
            [
                str(self.programs / "nosa-worker"), "--model", str(model), "--id", name,
                "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--coordinator", self.address,
                *arguments,
            ],
            cores,
        )  # fmt: skip
        return self.workers[name]

    def restart_worker(self, name: str) -> None:
        """Ends a worker by SIGTERM and starts it again."""
        self.workers[name].stop()
        model, arguments, cores = self.arguments[name]
        self.add_worker(name, model, *arguments, cores=cores)

    def wait_ready(self, count: int | None = None) -> None:
        """Until so many workers (all) are READY."""
        wanted = len(self.workers) if count is None else count
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if metric(self.http, 'nosa_workers{state="READY"}') >= wanted:
                return
            for worker in self.workers.values():
                if worker.process.poll() is not None:
                    worker.find("$^")
            time.sleep(0.02)
        raise ToolError(f"{wanted} workers were not ready within {PATIENCE_S} s")

    def command(self, *arguments: str) -> list[str]:
        """A command line of nosactl's benchmark."""
        return [
            str(self.programs / "nosactl"), "--server", self.address, "bench", "--json", *arguments
        ]  # fmt: skip

    def bench(self, *arguments: str, cores: str = "") -> dict[str, Any]:
        """Runs nosactl's benchmark, in which nothing may fail; its JSON object."""
        result = finish(self.start_bench(*arguments, cores=cores))
        for failure in result["failures"]:
            raise ToolError(f"{failure['count']} requests: {failure['code']}: {failure['text']}")
        return result

    def start_bench(self, *arguments: str, cores: str = "") -> subprocess.Popen[str]:
        """The same, without waiting for its end."""
        command = self.command(*arguments)
        return subprocess.Popen(
            ["taskset", "-c", cores, *command] if cores else command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    def __enter__(self) -> Cluster:
        """Itself."""
        return self

    def __exit__(self, *unused: object) -> None:
        """Ends all."""
        for process in (*self.workers.values(), self.coordinator):
            process.stop()


def finish(running: subprocess.Popen[str]) -> dict[str, Any]:
    """Waits for a benchmark; its JSON object."""
    out, text = running.communicate(timeout=600)
    if not out.startswith("{"):
        raise ToolError(f"nosactl: exit {running.returncode}: {text.strip()}")
    return json.loads(out)


def pages(port: int) -> str:
    """The metrics of a program."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        return page.read().decode()


def metric(port: int, name: str) -> float:
    """The value of a metric, by its name with labels."""
    for line in pages(port).splitlines():
        if line.startswith(name + " "):
            return float(line.split()[1])
    raise ToolError(f"no metric {name}")


def worker_http(worker: Process) -> int:
    """The port of a worker's metrics."""
    return int(worker.find(r"HTTP on port (\d+)"))


class Others:
    """What other programs take of the machine while something is measured; use as a context."""

    def __init__(self, *own: Process) -> None:
        """`own`: the processes that are measured."""
        self.own = own
        self.share = 0.0

    @staticmethod
    def busy_s() -> float:
        """Core seconds that the machine worked since its start."""
        fields = [
            int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]
        ]
        return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")

    def __enter__(self) -> Others:
        """Begins."""
        self.before = (time.monotonic(), self.busy_s(), self.own_s(), children_s())
        return self

    def own_s(self) -> float:
        """Of the processes that are measured."""
        return sum(process.cpu_s() for process in self.own if process.process.poll() is None)

    def __exit__(self, *unused: object) -> None:
        """Ends."""
        wall, busy, own, children = self.before
        elapsed = (time.monotonic() - wall) * (os.cpu_count() or 1)
        others = self.busy_s() - busy - (self.own_s() - own) - (children_s() - children)
        self.share = max(0.0, others / elapsed) if elapsed > 0 else 0.0


def children_s() -> float:
    """Core seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])
