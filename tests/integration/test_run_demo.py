#!/usr/bin/env python3
"""What `make run` and `make serve` do, on a small model: answers come, and nothing stays behind.
Prints TAP."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from typing import Any

import chaos
import coordinator
import nosactl
import rpc
import tap

SCRIPT = rpc.TREE / "scripts" / "run_demo.sh"
PATIENCE_S = chaos.PATIENCE_S


def alive_of(build: Path) -> list[int]:
    """The processes that were started with this build folder and live: the script and its own."""
    mark = f"BUILD={build}".encode()
    alive = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                alive.append(int(entry.name))
        except OSError:
            continue
    return alive


class Demo(unittest.TestCase):
    """The script as a process."""

    @classmethod
    def setUpClass(cls) -> None:
        """Makes a model, and a build folder of its own for the logs."""
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.model = chaos.make_model(Path(cls.folder.name))
        cls.build = Path(cls.folder.name) / "build"
        cls.build.mkdir()
        (cls.build / "bin").symlink_to(Path(nosactl.PROGRAM).parent)

    def start(self, *arguments: str, **variables: Any) -> subprocess.Popen[str]:
        """Starts it, in a process group of its own."""
        variables.setdefault("MODEL", self.model)
        process = subprocess.Popen(
            ["bash", str(SCRIPT), *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", start_new_session=True,
            env=nosactl.environment(
                BUILD=str(self.build), WORKER_FLAGS="--threads 1",
                **{name: str(value) for name, value in variables.items()},
            ),
        )  # fmt: skip
        self.addCleanup(self.end, process)
        return process

    def end(self, process: subprocess.Popen[str]) -> None:
        """Kills what is left of it."""
        for pid in alive_of(self.build):
            os.kill(pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()

    def serve(self) -> tuple[subprocess.Popen[str], str]:
        """Starts the server; once it is ready, its process and its address."""
        process = self.start("--serve")
        text = ""
        for line in process.stdout:
            text += line
            if "Ctrl-C stops it" in line:
                break
        self.assertIn("Ctrl-C stops it", text)
        found = re.search(r"coordinator at (\S+),", text)
        self.assertIsNotNone(found, text)
        return process, found[1]

    def finish(self, process: subprocess.Popen[str], code: int) -> str:
        """Waits for its end; what it said, and that nothing of it lives."""
        text, _ = process.communicate(timeout=PATIENCE_S)
        self.assertEqual(process.returncode, code, text)
        self.assertEqual(alive_of(self.build), [])
        return text

    @unittest.skipIf(rpc.SANITIZED, "18,000 tokens take too long in this build")
    def test_run(self) -> None:
        """Three answers with their times, and how to go on."""
        text = self.finish(self.start(), 0)
        self.assertEqual(len(re.findall(r"(?m)^\d+ prompt tokens.*the first token after", text)), 3)
        self.assertRegex(text, r"(?m)^18001 prompt tokens \(17\d+ of them cached\)")
        self.assertRegex(text, r"(?m)^demo +READY")
        for words in ("nosactl generate", "examples/generate.py", "grpcurl", "nosa-run --model"):
            self.assertIn(words, text)

    def test_run_interrupted(self) -> None:
        """Ctrl-C in the middle stops both."""
        process = self.start()
        for line in process.stdout:
            if line.startswith("coordinator at"):
                break
        os.killpg(process.pid, signal.SIGINT)
        self.finish(process, 130)

    def test_serve(self) -> None:
        """Serves until Ctrl-C."""
        process, address = self.serve()
        ask = ("generate", "--server", address, "--prompt", "a", "--max-tokens", 5)
        self.assertEqual(nosactl.run(*ask).returncode, 0)
        example = rpc.TREE / "examples" / "generate.py"
        done = subprocess.run(
            [sys.executable, "-B", example, "--server", address, "--plain", "a"],
            capture_output=True, check=False, timeout=PATIENCE_S,
        )  # fmt: skip
        self.assertEqual(done.returncode, 0, done.stderr)
        os.killpg(process.pid, signal.SIGINT)
        self.finish(process, 0)
        self.assertEqual(nosactl.run(*ask).returncode, nosactl.UNAVAILABLE)

    def test_serve_interrupted_drains(self) -> None:
        """A stream that runs at Ctrl-C ends whole: the script alone hears of it, and drains."""
        process, address = self.serve()
        ask = ("generate", "--server", address, "--prompt", "a", "--max-tokens", 400,
               "--ignore-eos", "--json")  # fmt: skip
        stream = subprocess.Popen(
            [nosactl.PROGRAM, *map(str, ask)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=nosactl.environment(),
        )  # fmt: skip
        time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        output, problems = stream.communicate(timeout=PATIENCE_S)
        self.finish(process, 0)
        self.assertEqual(stream.returncode, 0, problems)
        self.assertIn(b'"finish_reason":"length"', output.replace(b" ", b""))

    def test_serve_terminated(self) -> None:
        """SIGTERM to the script alone stops both."""
        process, _ = self.serve()
        process.terminate()
        self.finish(process, 143)

    def test_serve_without_worker(self) -> None:
        """A worker that dies is said, and the rest is stopped."""
        process, _ = self.serve()
        (pid,) = [p for p in alive_of(self.build)
                  if b"nosa-worker" in Path(f"/proc/{p}/cmdline").read_bytes()]  # fmt: skip
        os.kill(pid, signal.SIGKILL)
        self.assertIn("nosa-worker has ended", self.finish(process, 1))

    def test_bad_input(self) -> None:
        """A model that is none, a port that is taken: the reason, and nothing stays behind."""
        text = self.finish(self.start(MODEL="/nonexistent"), 1)
        self.assertIn("/nonexistent/config.json", text)
        with coordinator.Coordinator() as other:
            text = self.finish(self.start(LISTEN=other.address), 1)
        self.assertIn("Address already in use", text)


if __name__ == "__main__":
    tap.main()
