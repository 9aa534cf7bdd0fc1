#!/usr/bin/env python3
"""nosa-bench quality against the float64 reference, on a small checkpoint. Prints TAP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

import numpy as np

import tap
from program import TREE, Checkpoint, environment, log_softmax, run_json

sys.path.insert(0, str(TREE / "tools" / "reference"))
import nosa_reference as reference  # noqa: E402

BENCH = os.environ.get("NOSA_BENCH") or str(TREE / "build" / "bin" / "nosa-bench")
MODEL = "kv2_group3_d32_r16_llama3"
WINDOW = 1024
SPARSE = {"topk": 7, "window_size": 128, "select_blocks": 2}
EVERY = 5


def bench(*arguments: Any) -> subprocess.CompletedProcess[bytes]:
    """Runs nosa-bench quality to its end."""
    return subprocess.run(
        [BENCH, "quality", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment(),
        timeout=240,
        check=False,
    )


class TestQuality(unittest.TestCase):
    """Two texts of one window each, and one that is too short."""

    @classmethod
    def setUpClass(cls) -> None:
        """Texts, a checkpoint of bytes, and one run over them."""
        cls.holder = tempfile.TemporaryDirectory()
        cls.folder = Path(cls.holder.name)
        cls.checkpoint = Checkpoint(cls.folder, MODEL)
        cls.checkpoint.sparse(**SPARSE)
        cls.texts = cls.folder / "texts"
        (cls.texts / "more").mkdir(parents=True)
        generator = np.random.default_rng(5)
        letters = np.arange(97, 123)
        cls.ids = {name: generator.choice(letters, WINDOW) for name in ("a.txt", "b.txt")}
        (cls.texts / "a.txt").write_bytes(bytes(cls.ids["a.txt"].tolist()))
        (cls.texts / "more" / "b.txt").write_bytes(bytes(cls.ids["b.txt"].tolist()))
        (cls.texts / "short.txt").write_bytes(b"too short")
        (cls.texts / "other.bin").write_bytes(b"\xff\xff")
        cls.flags = ["--model", cls.checkpoint.path, "--texts", cls.texts, "--window", WINDOW]
        done = bench(*cls.flags, "--tasks", "none", "--agree-every", EVERY, "--json")
        if done.returncode != 0:
            raise AssertionError(done.stderr.decode())
        cls.result = json.loads(done.stdout)
        names = ["plain" if c["plain"] else c["attention"] for c in cls.result["configurations"]]
        cls.configs = dict(zip(names, cls.result["configurations"]))
        loaded = reference.load_model(cls.checkpoint.path)
        plain = reference.load_model(cls.checkpoint.path)
        plain.tensors = {
            name: tensor
            for name, tensor in plain.tensors.items()
            if not name.endswith(("self_attn.A", "delta.weight"))
        }
        cls.expected = {
            (mode, name): reference.forward(
                plain if mode == "plain" else loaded, ids, "full" if mode == "plain" else mode
            )
            for mode in ("plain", "full", "infllmv2", "nosa")
            for name, ids in cls.ids.items()
        }

    @classmethod
    def tearDownClass(cls) -> None:
        """Removes the folder."""
        cls.holder.cleanup()

    def losses(self, mode: str, name: str) -> np.ndarray:
        """Negative log probabilities of all tokens but the first."""
        rows = log_softmax(self.expected[mode, name].logits[:-1])
        return -rows[np.arange(WINDOW - 1), self.ids[name][1:]]

    def test_perplexity_is_the_references(self) -> None:
        """Of all tokens but the first; by document, by bucket, and beside full."""
        self.assertEqual(self.result["documents"], 2)
        self.assertEqual(self.result["windows"], 2)
        self.assertTrue(self.result["eviction_head"])
        for mode, config in self.configs.items():
            losses = {name: self.losses(mode, name) for name in self.ids}
            for name, each in losses.items():
                self.assertAlmostEqual(config["log_likelihood"][name] / -each.sum(), 1, delta=1e-4)
            joined = np.array(list(losses.values()))
            (whole,) = config["lengths"]
            self.assertEqual(whole["tokens"], WINDOW)
            self.assertAlmostEqual(whole["perplexity"] / np.exp(joined.mean()), 1, delta=1e-4)
            buckets = [np.exp(joined[:, :511].mean()), np.exp(joined[:, 511:].mean())]
            np.testing.assert_allclose(config["perplexity_by_bucket"], buckets, rtol=1e-4)
            plain = np.array([self.losses("plain", name) for name in self.ids])
            by_document = (joined - plain).mean(axis=1)
            percent = 100 * np.expm1(by_document.mean())
            error = 100 * by_document.std(ddof=1) / np.sqrt(2)
            self.assertAlmostEqual(whole["percent_above_plain"], percent, delta=0.01)
            self.assertAlmostEqual(whole["error"], error, delta=0.01)
        self.assertEqual(self.configs["plain"]["lengths"][0]["percent_above_plain"], 0)
        self.assertNotEqual(self.configs["nosa"]["lengths"][0]["percent_above_plain"], 0)

    def test_perplexity_is_that_of_nosa_run(self) -> None:
        """--score on the same text, to the last bit of what is printed."""
        for mode, config in self.configs.items():
            if mode == "plain":
                continue
            scored = run_json(
                "--model", self.checkpoint.path, "--score", self.texts / "a.txt",
                "--attention", mode,
            )  # fmt: skip
            self.assertAlmostEqual(
                config["log_likelihood"]["a.txt"], scored["log_likelihood"], places=3
            )

    def test_agreement_is_the_references(self) -> None:
        """Top-1 and KL at every fifth position from a quarter of the window on."""
        rows = np.arange(WINDOW // 4, WINDOW - 1, EVERY)
        for mode in ("full", "infllmv2", "nosa"):
            agreed, divergence = [], []
            for name in self.ids:
                plain = log_softmax(self.expected["plain", name].logits[rows])
                ours = log_softmax(self.expected[mode, name].logits[rows])
                agreed.append((plain.argmax(-1) == ours.argmax(-1)).mean())
                divergence.append((np.exp(plain) * (plain - ours)).sum(-1).mean())
            config = self.configs[mode]
            self.assertAlmostEqual(config["agreement"], np.mean(agreed), delta=0.01)
            self.assertAlmostEqual(config["divergence"] / np.mean(divergence), 1, delta=0.01)
        self.assertIsNone(self.configs["plain"]["agreement"])

    def test_hit_rate_is_the_references(self) -> None:
        """What the row before selected, and the row's own block."""
        first = SPARSE["topk"] * 64
        for mode in ("infllmv2", "nosa"):
            hits = total = 0
            for name in self.ids:
                for selection in self.expected[mode, name].selections:
                    now = selection.selected[:, first + 1 :]
                    before = selection.selected[:, first:-1].copy()
                    own = np.arange(first + 1, WINDOW) // 64
                    before[:, np.arange(len(own)), own] = True
                    hits += int((now & before).sum())
                    total += int(now.sum())
            config = self.configs[mode]
            self.assertAlmostEqual(config["hit_rate"], hits / total, delta=0.003)
            self.assertGreater(config["hit_rate_1_5"], config["hit_rate"])
            self.assertLessEqual(config["hit_rate_1_5"], 1)
        self.assertIsNone(self.configs["full"]["hit_rate"])

    def test_sizes_replace_the_checkpoints(self) -> None:
        """One configuration for each mode and size; all blocks are as good as full."""
        done = bench(
            *self.flags, "--tasks", "none", "--modes", "nosa,infllmv2", "--documents", 1,
            "--sizes", "7/128/2,16/128/8", "--prefill-chunk", 300, "--json",
        )  # fmt: skip
        self.assertEqual(done.returncode, 0, done.stderr)
        configs = json.loads(done.stdout)["configurations"]
        named = [(c["attention"], c["topk"], c["window_size"], c["select_blocks"]) for c in configs]
        self.assertEqual(named[2:], [
            ("nosa", 7, 128, 2), ("infllmv2", 7, 128, 2),
            ("nosa", 16, 128, 8), ("infllmv2", 16, 128, 8),
        ])  # fmt: skip
        a = [config["log_likelihood"]["a.txt"] for config in configs]
        self.assertEqual(a[4:], [a[1], a[1]])
        self.assertEqual(a[0], self.configs["plain"]["log_likelihood"]["a.txt"])
        self.assertEqual(a[1], self.configs["full"]["log_likelihood"]["a.txt"])
        self.assertEqual(a[2], self.configs["nosa"]["log_likelihood"]["a.txt"])
        self.assertEqual(configs[4]["agreement"], configs[1]["agreement"])
        self.assertEqual(configs[4]["divergence"], configs[1]["divergence"])
        self.assertIsNone(configs[4]["lengths"][0]["error"])  # of one document

    def test_tasks_ask_their_questions(self) -> None:
        """A random model knows none of the answers, but is asked for each, at any depth."""
        long = self.folder / "long.txt"
        long.write_bytes(bytes(self.ids["a.txt"].tolist()) * 3)
        flags = [
            "--model", self.checkpoint.path, "--texts", long, "--window", 2500,
            "--tasks", "retrieval,multikey,variables", "--haystacks", 1,
        ]  # fmt: skip
        done = bench(*flags, "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        for config in json.loads(done.stdout)["configurations"]:
            tasks = config["tasks"]
            self.assertEqual(
                {name: task["asked"] for name, task in tasks.items()},
                {"retrieval": 6, "multikey": 6, "variables": 4},
            )
            for task in tasks.values():
                self.assertLessEqual(task["right"], task["asked"])
                self.assertEqual(len(task["share_by_depth"]), 9)
        again = bench(*flags, "--json")
        self.assertEqual(again.stdout, done.stdout)
        table = bench(*flags[:6], "--modes", "nosa", "--haystacks", 1)
        self.assertEqual(table.returncode, 0, table.stderr)
        for word in (b"perplexity", b"by position", b"same top-1", b"retrieval", b"nosa 7/128/2"):
            self.assertIn(word, table.stdout)
        self.assertNotIn(b"infllmv2", table.stdout)

    def test_nosa_without_a_head_is_told(self) -> None:
        """Ties go to the lowest index."""
        checkpoint = Checkpoint(self.folder, "kv2_group1_d16_r4_plain")
        done = bench(
            "--model", checkpoint.path, "--texts", self.texts, "--window", 512, "--tasks", "none"
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(b"no eviction head: in nosa mode every E ties", done.stdout)
        self.assertIn(b"no eviction head", done.stderr)

    def test_bad_input_is_refused(self) -> None:
        """One clear line, exit 2."""
        empty, noise = self.folder / "empty", self.folder / "noise.txt"
        empty.mkdir()
        noise.write_bytes(b"a" * 2000 + b"\xff")
        blank = self.folder / "blank.txt"
        blank.write_bytes(b"")
        model = ["--model", self.checkpoint.path]
        for flags, needle in (
            (["--texts", self.texts], "--model"),
            (model, "--texts"),
            ([*model, "--texts", "/nonexistent/texts"], "/nonexistent/texts"),
            ([*model, "--texts", empty], "holds no .txt"),
            ([*model, "--texts", noise], "not UTF-8 at byte 2000"),
            ([*model, "--texts", blank], "the text is empty"),
            ([*model, "--texts", self.texts, "--window", 4096], "no text has the 4096 tokens"),
            (["--model", "/nonexistent/model", "--texts", self.texts], "/nonexistent/model"),
            ([*self.flags, "--modes", "nosa,fast"], "'fast' is not"),
            ([*self.flags, "--sizes", "32/512"], "'32/512' is not topk"),
            ([*self.flags, "--sizes", "4/128/2"], "topk 4"),
            ([*self.flags, "--sizes", "7/100/2"], "window_size 100"),
            ([*self.flags, "--tasks", "retrieval,chess"], "'chess' is not"),
            (
                [*model, "--texts", self.texts, "--window", 512, "--tasks", "retrieval"],
                "too short for planted facts",
            ),
            ([*self.flags, "--tasks", "counting"], "counting: the tokenizer"),
            ([*self.flags, "--windows", 0], "--windows"),
            ([*self.flags, "--rounds", 2], "--rounds"),
            ([*self.flags, "--modes", "nosa," * 9 + "nosa", "--sizes", "7/128/2,8/128/2"],
             "more than 16"),
        ):  # fmt: skip
            with self.subTest(needle=needle):
                done = bench(*flags, "--json")
                stderr = done.stderr.decode(errors="replace")
                self.assertEqual(done.returncode, 2, stderr)
                self.assertEqual(stderr.count("\n"), 1, stderr)
                self.assertIn(needle, stderr)
                self.assertEqual(done.stdout, b"")


if __name__ == "__main__":
    tap.main()
