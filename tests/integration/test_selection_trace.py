#!/usr/bin/env python3
"""Selection traces and scores against the float64 reference; replay of traces. Prints TAP.

The reader here is written from the table in worker/engine/trace_file.h and checks what the program
wrote as an independent client would.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tempfile
import unittest
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tap
from program import RANDOM, TREE, Checkpoint, environment, log_softmax, run, run_json

sys.path.insert(0, str(TREE / "tools" / "reference"))
import nosa_reference as reference  # noqa: E402

BENCH = os.environ.get("NOSA_BENCH") or str(TREE / "build" / "bin" / "nosa-bench")
MODEL = "kv2_group3_d32_r16_llama3"
TOKENS = 1500
"""Of a text in bytes: 24 blocks, of which the checkpoint below selects 7."""
SPARSE = {"topk": 7, "window_size": 128, "select_blocks": 2}
MARGIN = 1e-4
"""Scores closer than this may be ordered differently in float32."""


@dataclass
class Row:
    """A record: what was selected [layers, heads, blocks], and E of the blocks from e_first on."""

    position: int
    selected: np.ndarray
    e_first: int
    e: np.ndarray


def read_trace(path: Path) -> tuple[dict[str, int], list[Row]]:
    """Header and rows."""
    data = path.read_bytes()
    names = (
        "version attention flags layers kv_heads block topk init window first_cut size stride "
        "prompt cached step_first zero"
    ).split()
    assert data[:8] == b"NOSATRCE"
    header = dict(zip(names, struct.unpack_from("<16I", data, 8)))
    (count,) = struct.unpack_from("<Q", data, 72)
    rows, offset, pools = [], 96, (header["layers"], header["kv_heads"])
    for _ in range(count):
        position, blocks, e_first, size = struct.unpack_from("<4I", data, offset)
        words = (blocks + 31) // 32
        n = pools[0] * pools[1]
        bits = np.frombuffer(data, np.uint8, 4 * n * words, offset + 16)
        selected = np.unpackbits(bits, bitorder="little").reshape(*pools, -1)[..., :blocks]
        e = np.frombuffer(data, "<f4", n * (blocks - e_first), offset + 16 + 4 * n * words)
        rows.append(Row(position, selected.astype(bool), e_first, e.reshape(*pools, -1)))
        offset += size
    assert offset == len(data)
    return header, rows


def bench(*arguments: Any) -> subprocess.CompletedProcess[bytes]:
    """Runs nosa-bench to its end."""
    return subprocess.run(
        [BENCH, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment(),
        timeout=240,
        check=False,
    )


class Traced(unittest.TestCase):
    """A checkpoint and a text, and traces of it."""

    @classmethod
    def setUpClass(cls) -> None:
        """A checkpoint of bytes with small sparse sizes."""
        cls.holder = tempfile.TemporaryDirectory()
        cls.folder = Path(cls.holder.name)
        checkpoint = Checkpoint(cls.folder, MODEL)
        checkpoint.sparse(**SPARSE)
        cls.model = checkpoint.path
        generator = np.random.default_rng(3)
        ids = generator.choice(np.arange(97, 123), TOKENS).tolist()
        cls.ids = ids
        cls.text = cls.folder / "text.txt"
        cls.text.write_bytes(bytes(ids))

    @classmethod
    def tearDownClass(cls) -> None:
        """Removes the folder."""
        cls.holder.cleanup()

    def trace(self, mode: str, *flags: Any) -> tuple[dict[str, int], list[Row]]:
        """Scores the text with a trace; its content."""
        path = self.folder / "trace"
        done = run(
            "--model", self.model, "--score", self.text, "--attention", mode,
            "--trace-selection", path, *flags,
        )  # fmt: skip
        self.assertEqual(done.returncode, 0, done.stderr)
        return read_trace(path)


class TestTrace(Traced):
    """Both sparse modes against the reference, which runs once."""

    @classmethod
    def setUpClass(cls) -> None:
        """The reference's results."""
        super().setUpClass()
        loaded = reference.load_model(cls.model)
        cls.expected = {
            mode: reference.forward(loaded, cls.ids, mode) for mode in ("nosa", "infllmv2")
        }

    def test_score_is_the_references(self) -> None:
        """Each token's log probability, in both modes and cut into chunks."""
        for mode, expected in self.expected.items():
            wanted = log_softmax(expected.logits[:-1])[np.arange(TOKENS - 1), self.ids[1:]]
            results = [
                run_json(
                    "--model", self.model, "--score", self.text, "--attention", mode,
                    "--prefill-chunk", chunk,
                )
                for chunk in (512, 37)
            ]  # fmt: skip
            self.assertEqual(results[0], results[1])
            self.assertEqual(results[0]["tokens"], TOKENS)
            difference = np.abs(np.array(results[0]["per_token"]) - wanted)
            self.assertLess(np.quantile(difference, 0.95), 1e-3)
            self.assertAlmostEqual(results[0]["log_likelihood"] / wanted.sum(), 1, delta=1e-4)

    def test_trace_is_the_references_selection(self) -> None:
        """Every row of every layer and head whose choice rounding cannot turn; and E."""
        for mode, expected in self.expected.items():
            header, rows = self.trace(mode, "--trace-from", 0)
            self.assertEqual(header["attention"], {"infllmv2": 1, "nosa": 2}[mode])
            self.assertEqual([row.position for row in rows], list(range(TOKENS)))
            layers, heads = header["layers"], header["kv_heads"]
            e = np.full((layers, heads, TOKENS // 64 + 1), np.nan)
            sure, all_rows = 0, 0
            for row in rows:
                blocks = row.position // 64 + 1
                e[..., row.e_first : blocks] = row.e
                for layer, selection in enumerate(expected.selections):
                    wanted = selection.selected[:, row.position, :blocks]
                    e_wanted = selection.agnostic_scores[:, row.position, :blocks]
                    finite = np.isfinite(e_wanted)
                    np.testing.assert_array_equal(np.isfinite(e[layer, :, :blocks]), finite)
                    np.testing.assert_allclose(
                        e[layer, :, :blocks][finite], e_wanted[finite], rtol=2e-3, atol=2e-3
                    )
                    for head in range(heads):
                        all_rows += 1
                        if selection.margins[head, row.position] < MARGIN:
                            continue
                        sure += np.array_equal(row.selected[layer, head], wanted[head])
            self.assertGreater(sure, 0.9 * all_rows)

    def test_trace_header_and_rows_by_default(self) -> None:
        """The last row of each block, the prompt's last token, and what was decoded."""
        path = self.folder / "decode"
        ids = ",".join(map(str, self.ids[:700]))
        result = run_json(
            "--model", self.model, "--prompt-tokens", ids, "--max-tokens", 5, "--ignore-eos",
            "--attention", "nosa", "--trace-selection", path, "--prefill-chunk", 100,
        )  # fmt: skip
        header, rows = read_trace(path)
        self.assertEqual(len(result["tokens"]), 5)
        self.assertEqual(header["prompt"], 700)
        self.assertEqual(header["cached"], 0)
        self.assertEqual(header["step_first"], 700)
        self.assertEqual(header["flags"], 1)
        self.assertEqual([header["topk"], header["window"], header["first_cut"]], [7, 2, 5])
        positions = [*range(63, 699, 64), 699, 700, 701, 702, 703]
        self.assertEqual([row.position for row in rows], positions)

    def test_trace_does_not_change_the_tokens(self) -> None:
        """Nor does a trace depend on chunks."""
        ids = ",".join(map(str, self.ids[:700]))
        flags = ["--model", self.model, "--prompt-tokens", ids, "--max-tokens", 8]
        plain = run_json(*flags)
        traces = []
        for chunk in (64, 512):
            path = self.folder / f"chunk{chunk}"
            traced = run_json(*flags, "--trace-selection", path, "--prefill-chunk", chunk)
            self.assertEqual(traced["logprobs"], plain["logprobs"])
            traces.append(path.read_bytes())
        self.assertEqual(traces[0], traces[1])

    def test_policy_counts_what_a_reader_counts(self) -> None:
        """At one selected set every policy hits what the row before had selected."""
        for mode in self.expected:
            path = self.folder / "trace"
            header, rows = self.trace(mode, "--trace-from", 600)
            done = bench("policy", path, "--json")
            self.assertEqual(done.returncode, 0, done.stderr)
            result = json.loads(done.stdout)
            selected, misses = 0, 0
            for before, row in zip(rows, rows[1:]):
                if row.position < header["step_first"]:
                    continue
                had = np.zeros_like(row.selected)
                had[..., : before.selected.shape[-1]] = before.selected
                had[..., before.selected.shape[-1] :] = True  # made by this row
                selected += int(row.selected.sum())
                misses += int((row.selected & ~had).sum())
            decode = {(row["policy"], row["size"]): row for row in result["decode"]}
            for policy in ("eddma", "lru", "lowest-e", "oracle"):
                self.assertEqual(decode[policy, 1]["selected"], selected)
                self.assertEqual(decode[policy, 1]["misses"], misses)
                self.assertGreaterEqual(
                    decode[policy, 1.5]["misses"], decode["oracle", 1.5]["misses"]
                )
            self.assertGreater(misses, 0)
            self.assertEqual(result["attention"], mode)
            self.assertEqual(result["steps"], TOKENS - 600)
            self.assertEqual(len(result["resume"]), 20)
            self.assertEqual(len(result["demotion"]), 16)

    def test_policy_prints_tables(self) -> None:
        """The same numbers for people."""
        self.trace("nosa", "--trace-from", 1000)
        done = bench("policy", self.folder / "trace", "--points", 3, "--horizon", 8)
        self.assertEqual(done.returncode, 0, done.stderr)
        for word in (b"eddma", b"lowest-e", b"oracle", b"recency", b"2.00x", b"500 steps"):
            self.assertIn(word, done.stdout)
        self.assertEqual(done.stderr, b"")


class TestBadInput(Traced):
    """One clear line, exit 2."""

    def refuse(self, done: subprocess.CompletedProcess[bytes], needle: str) -> None:
        """Checks exit code and stderr."""
        stderr = done.stderr.decode(errors="replace")
        self.assertEqual(done.returncode, 2, stderr)
        self.assertEqual(stderr.count("\n"), 1, stderr)
        self.assertIn(needle, stderr)
        self.assertEqual(done.stdout, b"")

    def test_run_refuses(self) -> None:
        """Flags that contradict one another, and files that cannot be written."""
        path = self.folder / "refused"
        score = ["--model", self.model, "--score", self.text]
        for flags, needle in (
            ([*score, "--trace-from", 5], "--trace-from"),
            ([*score, "--trace-selection", path, "--attention", "full"], "full attention"),
            ([*score, "--trace-selection", path, "--trace-from", -1], "--trace-from"),
            ([*score, "--trace-selection", "/nonexistent/trace"], "/nonexistent/trace"),
            ([*score, "--trace-selection", self.folder], str(self.folder)),
            ([*score, "--temperature", 1], "--temperature"),
            ([*score, "--top-k", 5], "--top-k"),
            ([*score, "--repetition-penalty", 1.5], "--repetition-penalty"),
            ([*score, "--prompt", "x"], "--prompt"),
        ):
            with self.subTest(needle=needle):
                self.refuse(run(*flags), needle)
                self.assertFalse(path.exists())

    def test_score_takes_sampling_from_the_environment(self) -> None:
        """It is there for other runs."""
        done = run(
            "--model", self.model, "--score", self.text, env={"NOSA_TEMPERATURE": "1"}
        )  # fmt: skip
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_trace_without_a_head_in_full_mode_is_refused(self) -> None:
        """The default of a model without an eviction head selects nothing."""
        checkpoint = Checkpoint(self.folder, "kv2_group1_d16_r4_plain")
        path = self.folder / "plain"
        done = run("--model", checkpoint.path, "--score", self.text, "--trace-selection", path)
        self.assertEqual(done.returncode, 2)
        self.assertIn(b"full attention", done.stderr)
        self.assertFalse(path.exists())

    def test_policy_refuses(self) -> None:
        """No file, a file that is no trace, a spoilt one, one without steps."""
        self.trace("nosa", "--trace-from", 1400)
        path = self.folder / "trace"
        good = path.read_bytes()
        spoilt = self.folder / "spoilt"
        self.refuse(bench("policy"), "policy FILE")
        self.refuse(bench("policy", "/nonexistent/trace"), "/nonexistent/trace")
        self.refuse(bench("policy", self.folder), str(self.folder))
        self.refuse(bench("policy", path, "--points", 0), "--points")
        self.refuse(bench("policy", path, "--rounds", 3), "--rounds")
        self.refuse(bench("limits", path), "limits takes no file")
        for content, needle in (
            (b"", "not a selection trace"),
            (b"x" * 5000, "not a selection trace"),
            (good[:-1], "cut off"),
            (good + b"\0", "bytes after the last row"),
            (good[:500] + bytes([good[500] ^ 4]) + good[501:], "row"),
            (good[:8] + b"\2" + good[9:], "version 2"),
        ):
            with self.subTest(needle=needle):
                spoilt.write_bytes(content)
                self.refuse(bench("policy", spoilt), f"{spoilt}: ")
                self.refuse(bench("policy", spoilt), needle)
        self.trace("nosa", "--trace-from", TOKENS)
        self.refuse(bench("policy", path), "no row from the first step")


if __name__ == "__main__":
    tap.main()
