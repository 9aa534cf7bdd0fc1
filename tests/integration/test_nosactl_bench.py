"""nosactl bench against a real coordinator and a real worker.

NOSACTL, NOSA_COORDINATOR and NOSA_WORKER name the programs (ctest sets them).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
import unittest
from pathlib import Path
from typing import Any

import cluster
import rpc
import tap
from coordinator import Coordinator, environment
from program import Checkpoint

NOSACTL = os.environ.get("NOSACTL") or str(rpc.BUILD / "bin" / "nosactl")
TIMES = ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms", "sent_late_ms")


class BenchTest(unittest.TestCase):
    """One coordinator and one worker for all cases."""

    @classmethod
    def setUpClass(cls) -> None:
        """Starts them."""
        cls.folder = tempfile.TemporaryDirectory()
        cls.coordinator = Coordinator()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.addClassCleanup(cls.coordinator.stop)
        model = Checkpoint(Path(cls.folder.name), "kv1_group4_d16_r4").path
        cls.worker = cluster.Worker(
            model, "--attention", "full", "--max-context", "2048", "--max-batch", "8",
            "--coordinator", cls.coordinator.address, "--id", "w1",
        )  # fmt: skip
        cls.addClassCleanup(cls.worker.__exit__)
        rpc.eventually(
            lambda: cls.run_bench("--requests", "1")[0] == 0, "ready", cluster.PATIENCE_S
        )

    @classmethod
    def start(cls, *arguments: str, server: str = "") -> subprocess.Popen[str]:
        """Starts the benchmark."""
        return subprocess.Popen(
            [NOSACTL, "--server", server or cls.coordinator.address, "bench", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    @classmethod
    def run_bench(cls, *arguments: str, server: str = "") -> tuple[int, str, str]:
        """Runs it to its end: exit status, standard output and error."""
        running = cls.start(*arguments, server=server)
        out, text = running.communicate(timeout=240)
        return running.returncode, out, text

    def measure(self, *arguments: str, expected: int = 0) -> dict[str, Any]:
        """Runs it with --json; the object."""
        code, out, text = self.run_bench("--json", *arguments)
        self.assertEqual(code, expected, text)
        self.assertEqual(out.count("\n"), 1)
        result = json.loads(out)
        for name in TIMES:
            times = result[name]
            order = [times[key] for key in ("min", "p50", "p95", "p99", "max")]
            self.assertEqual(order, sorted(order), name)
        return result

    def test_closed_loop_keeps_requests_in_flight(self) -> None:
        """Counts and rates of a load that is known."""
        begin = time.monotonic()
        result = self.measure(
            "--concurrency", "4", "--requests", "20", "--prompt-tokens", "30", "--output-tokens",
            "12", "--warm-up", "2",
        )  # fmt: skip
        elapsed = time.monotonic() - begin
        self.assertEqual((result["completed"], result["failed"]), (20, 0))
        self.assertEqual(result["prompt_tokens"], 600)
        self.assertEqual(result["output_tokens"], 240)
        self.assertEqual(result["load"]["mode"], "closed")
        self.assertEqual(result["load"]["concurrency"], 4)
        self.assertEqual(result["workers"], [{"id": "w1", "requests": 20}])
        self.assertEqual(result["failures"], [])
        self.assertIsNone(result["goodput"])
        self.assertEqual(result["ttft_ms"]["count"], 20)
        self.assertEqual(result["tpot_ms"]["count"], 20)
        self.assertLess(result["duration_s"], elapsed)
        self.assertAlmostEqual(
            result["output_tokens_per_s"], 240 / result["duration_s"], delta=1e-3 * 240
        )
        self.assertGreater(result["full_load"]["output_tokens_per_s"], 0)
        self.assertLessEqual(result["ttft_ms"]["max"], result["e2e_ms"]["max"])

    def test_open_loop_counts_from_the_planned_arrival(self) -> None:
        """With one place and a flood of arrivals the wait for the place is part of the latency."""
        result = self.measure(
            "--rate", "50000", "--arrivals", "even", "--concurrency", "1", "--requests", "40",
            "--prompt-tokens", "16", "--output-tokens", "8", "--details",
        )  # fmt: skip
        self.assertEqual(result["completed"], 40)
        self.assertEqual(result["load"]["mode"], "open")
        self.assertGreater(result["sent_late_ms"]["max"], 0.5 * 1000 * result["duration_s"])
        for request in result["per_request"]:
            planned, sent = request["planned_s"], request["sent_s"]
            first, end = request["first_token_s"], request["end_s"]
            self.assertLessEqual(planned, sent + 1e-9)
            self.assertLess(sent, first)
            self.assertLessEqual(first, end)
            self.assertAlmostEqual(request["ttft_ms"], 1000 * (first - planned), delta=0.01)
            self.assertAlmostEqual(request["e2e_ms"], 1000 * (end - planned), delta=0.01)
        planned = sorted(request["planned_s"] for request in result["per_request"])
        for earlier, later in zip(planned, planned[1:]):
            self.assertAlmostEqual(later - earlier, 1 / 50000, delta=1e-6)

    def test_open_loop_arrives_at_its_rate(self) -> None:
        """A Poisson process of 150 a second for a second; --duration bounds it alone."""
        result = self.measure(
            "--rate", "150", "--duration", "1", "--prompt-tokens", "8", "--output-tokens", "1",
            "--seed", "3",
        )  # fmt: skip
        self.assertEqual(result["failed"], 0)
        self.assertTrue(105 <= result["completed"] <= 195, result["completed"])
        self.assertEqual(result["tpot_ms"]["count"], 0)

    def test_seed_repeats_the_load(self) -> None:
        """Lengths of two runs with one seed are the same, with another one they are not."""
        arguments = ("--requests", "8", "--prompt-tokens", "10-90", "--output-tokens", "1-20")
        lengths = []
        for seed in ("5", "5", "6"):
            result = self.measure(*arguments, "--details", "--seed", seed)
            requests = sorted(result["per_request"], key=lambda request: request["index"])
            lengths.append([(r["prompt_tokens"], r["output_tokens"]) for r in requests])
        self.assertEqual(lengths[0], lengths[1])
        self.assertNotEqual(lengths[0], lengths[2])

    def test_prefix_groups_share_and_runs_do_not(self) -> None:
        """A group's second prompt finds the first one's prefix; another run finds nothing."""
        arguments = (
            "--concurrency", "1", "--requests", "8", "--prefix-groups", "2", "--prefix-tokens",
            "256", "--prefix-order", "in-turn", "--prompt-tokens", "20", "--output-tokens", "2",
            "--details",
        )  # fmt: skip
        for _ in range(2):
            result = self.measure(*arguments)
            requests = sorted(result["per_request"], key=lambda request: request["index"])
            self.assertEqual([r["prefix_group"] for r in requests], [0, 1] * 4)
            self.assertEqual([r["cached_prompt_tokens"] for r in requests], [0] * 2 + [256] * 6)
        salted = [self.measure(*arguments, "--cache-salt", "both") for _ in range(2)]
        self.assertEqual(salted[0]["cached_prompt_tokens"], 6 * 256)
        self.assertEqual(salted[1]["cached_prompt_tokens"], 8 * 256)

    def test_goodput_counts_within_limits(self) -> None:
        """Limits that all keep, and one that none can."""
        wide = self.measure("--requests", "6", "--ttft-limit-ms", "1e6", "--e2e-limit-ms", "1e6")
        self.assertEqual(wide["goodput"]["share"], 1)
        self.assertAlmostEqual(wide["goodput"]["requests_per_s"], wide["requests_per_s"])
        narrow = self.measure("--requests", "6", "--ttft-limit-ms", "1e-5")
        self.assertEqual(narrow["goodput"]["share"], 0)
        self.assertEqual(narrow["completed"], 6)

    def test_failures_are_told_by_status(self) -> None:
        """Deadlines that cannot be kept, and prompts that fit no context."""
        late = self.measure(
            "--requests", "5", "--timeout", "0.02", "--output-tokens", "1500", expected=6
        )
        self.assertEqual((late["completed"], late["failed"]), (0, 5))
        self.assertEqual(
            [(f["code"], f["count"]) for f in late["failures"]], [("DEADLINE_EXCEEDED", 5)]
        )
        mixed = self.measure(
            "--requests", "60", "--prompt-tokens", "exponential:1500", "--output-tokens", "2"
        )
        self.assertGreater(mixed["completed"], 0)
        self.assertEqual(mixed["completed"] + mixed["failed"], 60)
        self.assertEqual([f["code"] for f in mixed["failures"]], ["INVALID_ARGUMENT"])
        self.assertTrue(mixed["failures"][0]["text"])

    def test_several_connections_and_threads(self) -> None:
        """Requests take them in turn."""
        result = self.measure(
            "--connections", "3", "--threads", "2", "--concurrency", "24", "--requests", "48"
        )
        self.assertEqual(result["completed"], 48)

    def test_prompts_come_from_a_file(self) -> None:
        """In order, again from the first; the server counts their tokens (here bytes)."""
        path = Path(self.folder.name) / "prompts.jsonl"
        lines = [{"prompt": "hello"}, {"prompt": "two\nlines", "output_tokens": 3}]
        path.write_text("\n".join(map(json.dumps, lines)))
        result = self.measure(
            "--prompts", str(path), "--requests", "5", "--output-tokens", "6", "--details"
        )
        requests = sorted(result["per_request"], key=lambda request: request["index"])
        self.assertEqual(
            [(r["prompt_tokens"], r["output_tokens"]) for r in requests],
            [(5, 6), (9, 3)] * 2 + [(5, 6)],
        )
        chat = self.run_bench("--prompts", str(path), "--chat", "--requests", "1")
        self.assertEqual(chat[0], 2, "the model has no chat format")
        self.assertIn("INVALID_ARGUMENT", chat[2])

    def test_report_fits_eighty_columns(self) -> None:
        """The tables for people."""
        code, out, text = self.run_bench(
            "--rate", "50", "--requests", "10", "--ttft-limit-ms", "1000", "--prefix-groups", "2",
            "--prefix-tokens", "64",
        )  # fmt: skip
        self.assertEqual((code, text), (0, ""))
        self.assertTrue(all(len(line) <= 80 for line in out.splitlines()), out)
        for word in ("10 completed, 0 failed", "Poisson", "goodput", "TTFT", "TPOT", "ITL", "E2E",
                     "sent late", "2 groups of 64"):  # fmt: skip
            self.assertIn(word, out)

    def test_interrupt_reports_what_was_measured(self) -> None:
        """Ctrl-C ends what is in flight, and the report says so."""
        before = self.worker.metric("nosa_generation_tokens_total")
        running = self.start("--json", "--requests", "1000000", "--output-tokens", "50")
        rpc.eventually(
            lambda: self.worker.metric("nosa_generation_tokens_total") > before + 2000,
            "requests end", cluster.PATIENCE_S,
        )  # fmt: skip
        running.send_signal(signal.SIGINT)
        out, text = running.communicate(timeout=60)
        self.assertEqual(running.returncode, 130, text)
        result = json.loads(out)
        self.assertTrue(result["interrupted"])
        self.assertGreater(result["completed"], 0)
        rpc.eventually(self.worker.is_quiet, "nothing runs on")

    def test_bad_flags_are_refused_in_one_line(self) -> None:
        """Each names the flag, with exit 2."""
        for flag, *values in (
            ("--rate", "0"),
            ("--rate", "nan"),
            ("--concurrency", "0"),
            ("--requests", "0"),
            ("--prompt-tokens", "0"),
            ("--prompt-tokens", "9-5"),
            ("--output-tokens", "some"),
            ("--prefix-tokens", "64"),
            ("--details",),
            ("--prefix-order", "backwards"),
            ("--output-tokens", "5000"),
            ("--connections", "1000"),
            ("--prompts", "/nowhere"),
            ("--prompts", "/dev/null"),
            ("--chat",),
        ):
            with self.subTest(flag=flag, values=values):
                code, out, text = self.run_bench(flag, *values)
                self.assertEqual((code, out), (2, ""), text)
                self.assertEqual(text.count("\n"), 1, text)
                self.assertIn(flag, text)

    def test_unknown_model_and_server_away(self) -> None:
        """Exit 4 and 3, in one line that names what is missing."""
        code, out, text = self.run_bench("--model", "other")
        self.assertEqual((code, out, text.count("\n")), (4, "", 1))
        self.assertIn("other", text)
        code, out, text = self.run_bench(server="127.0.0.1:1")
        self.assertEqual((code, out, text.count("\n")), (3, "", 1))
        self.assertIn("127.0.0.1:1", text)


if __name__ == "__main__":
    tap.main()
