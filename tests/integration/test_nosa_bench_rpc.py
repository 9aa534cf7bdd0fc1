"""nosa-bench rpc: the transport alone, against its own server and a stranger's.

NOSA_BENCH names the program (ctest sets it).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import unittest

import tap
from program import TREE, environment

BENCH = os.environ.get("NOSA_BENCH") or str(TREE / "build" / "bin" / "nosa-bench")


class RpcTest(unittest.TestCase):
    """Short measurements: that they measure, not how much."""

    def run_bench(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs it to its end."""
        return subprocess.run(
            [BENCH, "rpc", "--seconds", "0.2", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=environment(),
            timeout=120,
        )

    def test_rates(self) -> None:
        """Calls and streams, as JSON and as a line."""
        for kind, at_once in (("unary", 1), ("unary", 16), ("stream", 32)):
            done = self.run_bench("--json", "--kind", kind, "--at-once", str(at_once))
            self.assertEqual(done.returncode, 0, done.stderr)
            result = json.loads(done.stdout)
            self.assertEqual((result["kind"], result["at_once"]), (kind, at_once))
            self.assertGreater(result["per_s"], 0)
            self.assertGreater(result["p50_us"], 0)
            self.assertGreaterEqual(result["p99_us"], result["p50_us"])
        done = self.run_bench("--payload-bytes", "1000")
        self.assertRegex(done.stdout, r"^unary, 1 at once: \d+/s, latency us p50 \d+ p99 \d+\n$")

    def test_pace(self) -> None:
        """Four streams of a message every 50 ms are not faster than that."""
        done = self.run_bench(
            "--json", "--kind", "stream", "--at-once", "4", "--interval-us", "50000"
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        rate = json.loads(done.stdout)["per_s"]
        self.assertGreater(rate, 0)
        self.assertLess(rate, 160)

    def test_bad_input(self) -> None:
        """Nobody listens, or a flag makes no sense: one line, and no success."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            done = self.run_bench("--address", f"127.0.0.1:{taken.getsockname()[1]}")
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("UNAVAILABLE", done.stderr)
        for arguments in (("--at-once", "0"), ("--kind", "smoke"), ("--model", "x")):
            done = self.run_bench(*arguments)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn(arguments[0], done.stderr)
            self.assertEqual(len(done.stderr.splitlines()), 1)


if __name__ == "__main__":
    tap.main()
