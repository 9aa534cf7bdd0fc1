"""nosa-bench batch: the engine alone on a batch, as serving is compared with it.

NOSA_BENCH names the program (ctest sets it).
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

import tap
from program import TREE, Checkpoint, environment

BENCH = os.environ.get("NOSA_BENCH") or str(TREE / "build" / "bin" / "nosa-bench")


class BatchTest(unittest.TestCase):
    """A small checkpoint."""

    def run_bench(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs it to its end."""
        return subprocess.run(
            [BENCH, "batch", "--threads", "1", "--rounds", "2", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=environment(),
            timeout=240,
        )

    def test_batch_rates(self) -> None:
        """Prompts longer and shorter than a step's chunk; rates of whole runs and of decoding."""
        with tempfile.TemporaryDirectory() as folder:
            model = str(Checkpoint(Path(folder), "kv1_group4_d16_r4").path)
            for prompt, chunk in ((5, 64), (200, 64)):
                done = self.run_bench(
                    "--json", "--model", model, "--sequences", "6", "--prompt-tokens", str(prompt),
                    "--output-tokens", "9", "--prefill-chunk", str(chunk),
                )  # fmt: skip
                self.assertEqual(done.returncode, 0, done.stderr)
                result = json.loads(done.stdout)
                self.assertEqual(result["sequences"], 6)
                self.assertEqual(result["output_tokens"], 9)
                self.assertGreater(result["lowest"], 0)
                self.assertLessEqual(result["lowest"], result["output_tokens_per_s"])
                self.assertLessEqual(result["output_tokens_per_s"], result["highest"])
                self.assertGreater(result["decode_tokens_per_s"], 0)
            done = self.run_bench("--model", model, "--output-tokens", "1")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("32 sequences", done.stdout)

    def test_bad_flags(self) -> None:
        """One line that names the flag, exit 2."""
        for flag, *arguments in (
            ("--model",),
            ("--model", "/nowhere"),
            ("--sequences", "0"),
            ("--prompt-tokens", "0"),
            ("--context", "9000"),
        ):
            with self.subTest(flag=flag):
                done = self.run_bench(*((flag, *arguments) if arguments else ()))
                self.assertEqual((done.returncode, done.stdout), (2, ""))
                self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
                self.assertIn(arguments[0] if "/" in "".join(arguments) else flag, done.stderr)


if __name__ == "__main__":
    tap.main()
