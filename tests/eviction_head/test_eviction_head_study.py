#!/usr/bin/env python3
"""Programs of the tool that fits and scores eviction heads: what `study` does and `report` tells.
Needs PyTorch. Prints TAP."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import tempfile
import unittest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from test_eviction_head import LENGTH, tiny_model, tiny_texts, tool

import headfile  # noqa: E402
import study  # noqa: E402
import tap  # noqa: E402


class TestStudy(unittest.TestCase):
    """The verb `study`, as a user runs it, on a tiny model on the CPU."""

    @classmethod
    def setUpClass(cls) -> None:
        """A model and texts."""
        cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.model = tiny_model(cls.folder / "model")
        cls.texts = tiny_texts(cls.folder / "texts")

    def study(self, jobs: list[Any], results: Path) -> subprocess.CompletedProcess[str]:
        """Runs a program of these jobs."""
        program = self.folder / "jobs.json"
        program.write_text(json.dumps({"length": LENGTH, "jobs": jobs}), encoding="utf-8")
        flags = ["--model", self.model, "--texts", self.texts, "--program", program]
        return tool("study", *flags, "--output", results, "--device", "cpu")

    def test_study_fits_scores_and_reports(self) -> None:
        """A program of one fit: what it scores stands in the tables and pictures."""
        plain = {"name": "plain full", "full": True}
        cases = [plain, {"name": "nosa", "head": "one"}]
        jobs = [
            {"kind": "fit", "name": "one", "options": {"steps": 2}},
            {"kind": "score", "name": "main", "shares": 2, "part": "test", "cases": cases},
            {"kind": "probe", "name": "probe", "part": "test", "haystacks": 2, "cases": cases},
        ]
        program, results = self.folder / "program.json", self.folder / "results"
        program.write_text(json.dumps({"length": LENGTH, "jobs": jobs}), encoding="utf-8")
        flags = ["--model", self.model, "--texts", self.texts, "--program", program]
        flags += ["--device", "cpu"]
        done = tool("study", *flags, "--output", results)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertTrue((results / "one.head").is_file(), done.stderr)
        self.assertEqual(len(list(results.glob("main?.json"))), 2, done.stderr)
        told = tool("report", "--results", results, "--pictures", self.folder / "pictures")
        self.assertEqual(told.returncode, 0, told.stderr)
        self.assertRegex(told.stdout, r"(?m)^\| nosa \| -?\d+\.\d\d ± ")
        self.assertRegex(told.stdout, r"(?m)^12 probes in 2 haystacks$")
        for name in ("loss-by-position", "retrieval-by-depth"):
            self.assertIn("<svg", (self.folder / "pictures" / f"{name}.svg").read_text())
        jobs[1]["name"] = "one"
        jobs[1]["shares"] = 1
        program.write_text(json.dumps({"jobs": jobs}), encoding="utf-8")
        refused = tool("study", *flags, "--output", results)
        self.assertEqual(refused.returncode, 2)
        self.assertRegex(refused.stderr, r"^eviction_head: .*two jobs have one name\n$")

    def test_study_failed_fit_ends_as_failed(self) -> None:
        """What needs the fit is left out, the rest is done; mended, the same command goes on."""
        results = self.folder / "failing"
        plain = {"name": "plain full", "full": True}
        score = {"kind": "score", "part": "test", "of_a_kind": 1, "of_a_document": 1}
        jobs = [
            {"kind": "fit", "name": "bad", "options": {"steps": 1, "window": 1000}},
            {**score, "name": "needing", "cases": [plain, {"name": "nosa", "head": "bad"}]},
            {**score, "name": "alone", "cases": [plain]},
        ]
        done = self.study(jobs, results)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertRegex(done.stderr, r"bad: failed: --window 1000 is not a multiple of 64\n")
        self.assertRegex(done.stderr, r"needing: left out, since there is no bad\n")
        self.assertRegex(done.stderr, r"\neviction_head: failed: bad; the messages are above\n$")
        self.assertTrue((results / "alone.json").is_file())
        self.assertFalse((results / "needing.json").exists())
        jobs[0]["options"] = {"steps": 1}
        done = self.study(jobs, results)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertNotIn("alone", done.stderr)
        self.assertTrue((results / "needing.json").is_file())

    def test_wait_for_dead_process_fails_what_it_had(self) -> None:
        """So that no other process waits for it; what was done stays done."""
        folder = self.folder / "claims"
        folder.mkdir()
        process = multiprocessing.get_context("fork").Process(target=os._exit, args=(9,))
        process.start()
        for name in ("had", "done"):
            (folder / f"{name}.claim").write_text(str(process.pid), encoding="utf-8")
        (folder / "other.claim").write_text(str(os.getpid()), encoding="utf-8")
        (folder / "done.json").write_text("{}", encoding="utf-8")
        study.wait_for([process], folder)
        self.assertEqual([n for n in ("had", "done", "other") if study.marked(folder, n)], ["had"])

    def test_study_bad_program_is_one_line(self) -> None:
        """A case of no fit, a head of other weights, jobs that are none: refused before anything
        runs."""
        shapes = headfile.head_shapes(headfile.read_config(self.model))
        tensors = {name: np.ones(shape, "<f4") for name, shape in shapes.items()}
        head = self.folder / "strange.safetensors"
        headfile.write_head(head, headfile.HeadFile(tensors, {"base_sha256": "0" * 64}))
        score = {"kind": "score", "name": "main", "part": "test"}
        for jobs, reason in (
            ([{**score, "cases": [{"name": "a", "head": "absent"}]}], "no fit is named absent"),
            ([{**score, "cases": [{"name": "a", "head": str(head)}]}], "fitted to another model"),
            ([score], "job main has no cases"),
            ([{**score, "cases": [{}]}], "a case has no name"),
            ([{**score, "cases": [{"name": "a", "head": 3}]}], "the head of a is no name"),
            ([{"kind": "bake", "name": "x"}], "its kind is not fit, score or probe"),
            ([{"kind": "fit", "name": "x", "options": {"pace": 1}}], "no option is named pace"),
            ("none", "no list of jobs"),
        ):
            results = self.folder / "never"
            done = self.study(jobs, results)
            self.assertEqual(done.returncode, 2, reason)
            self.assertRegex(done.stderr, rf"^eviction_head: .*{reason}.*\n$")
            self.assertFalse(results.exists())


if __name__ == "__main__":
    torch.set_num_threads(2)
    tap.main()
