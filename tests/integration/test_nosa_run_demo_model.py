#!/usr/bin/env python3
"""nosa-run on the demo model: real text, goldens, memory. Prints TAP.

NOSA_DEMO_MODEL_DIR names the model's folder; without it everything is skipped.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

import tap
from program import PROGRAM, SANITIZED, TREE, environment, run, run_json

MODEL = os.environ.get("NOSA_DEMO_MODEL_DIR", "")
GOLDEN = TREE / "tests" / "vectors" / "smollm2" / "golden.json"
MARGIN = 0.2
"""Rounding K and V to bfloat16 moves margins by up to 0.1 (tests/vectors/README.md)."""
ALLOWED_BEYOND_BYTES = 300 << 20


def golden(name: str) -> dict[str, Any]:
    """One prompt of the goldens."""
    prompts = json.loads(GOLDEN.read_text(encoding="utf-8"))["prompts"]
    return next(prompt for prompt in prompts if prompt["name"] == name)


def peak_bytes(*arguments: Any) -> tuple[int, str]:
    """The largest resident size of a run, and its stderr."""
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            [PROGRAM, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=environment(),
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        stderr.seek(0)
        text = stderr.read().decode()
    if process.returncode != 0:
        raise AssertionError(text)
    return usage.ru_maxrss * 1024, text


class TestDemoModel(unittest.TestCase):
    """What a user sees first."""

    def check_greedy(self, name: str, result: dict[str, Any]) -> None:
        """The same tokens as transformers, up to the first one that rounding may change."""
        prompt = golden(name)
        self.assertEqual(result["prompt_tokens"], prompt["prompt_ids"])
        pairs = zip(result["tokens"], prompt["greedy_ids"], prompt["greedy_margins"])
        for position, (token, expected, margin) in enumerate(pairs):
            if token != expected:
                self.assertLess(margin, MARGIN, f"token {position}")
                return

    def test_text_prompt_has_the_golden_ids_and_answer(self) -> None:
        """Tokenizer, model and detokenizer together."""
        prompt = golden("short")
        flags = ["--model", MODEL, "--prompt", prompt["text"], "--max-tokens", 32]
        result = run_json(*flags, "--temperature", 0, "--ignore-eos")
        self.check_greedy("short", result)
        self.assertEqual(result["attention"], "full")
        done = run(*flags, "--temperature", 0, "--ignore-eos")
        self.assertEqual(done.stdout.decode(), result["text"] + "\n")

    def test_chat_prompt_has_the_golden_ids_and_stops(self) -> None:
        """The chat format of the checkpoint; the answer ends by itself and is right."""
        prompt = golden("chat")
        message = prompt["chat"][-1]["content"]
        flags = ["--model", MODEL, "--chat", "--prompt", message, "--temperature", 0]
        self.check_greedy("chat", run_json(*flags, "--max-tokens", 32))
        whole = run_json(*flags, "--max-tokens", 200)
        self.assertIn("Paris", whole["text"])
        self.assertEqual(whole["finish_reason"], "stop")
        self.assertNotIn("<|im_end|>", whole["text"])

    def test_score_has_the_golden_likelihood(self) -> None:
        """Within what rounding K and V may move each token."""
        prompt = golden("short")
        with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
            file.write(prompt["text"])
            file.flush()
            result = run_json("--model", MODEL, "--score", file.name)
        self.assertEqual(result["tokens"], len(prompt["prompt_ids"]))
        per_token = result["log_likelihood"] - prompt["log_likelihood"]
        self.assertLess(abs(per_token) / (result["tokens"] - 1), 0.02)

    @unittest.skipIf(SANITIZED, "thousands of tokens take minutes")
    def test_score_nosa_with_the_models_head_is_near_full(self) -> None:
        """3000 tokens, of which the last thousand read 32 of up to 48 blocks: the head's biases and
        its order are at work, and cost little."""
        text = golden("long")["chat"][-1]["content"] + "\n\n" + golden("medium")["text"]
        results = {}
        with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            for mode in ("full", "infllmv2", "nosa"):
                flags = ["--model", MODEL, "--score", file.name, "--attention", mode]
                results[mode] = run_json(*flags)
        tokens = results["nosa"]["tokens"]
        self.assertGreater(tokens, 2900)
        each = {mode: row["log_likelihood"] / (tokens - 1) for mode, row in results.items()}
        print(f"# log-likelihood per token of {tokens}: {each}")
        self.assertEqual(len(set(each.values())), 3)
        self.assertLess(abs(each["nosa"] - each["full"]), 0.02)
        self.assertLess(abs(each["nosa"] - each["infllmv2"]), 0.02)

    def test_sampled_text_repeats_with_its_seed(self) -> None:
        """The same seed on one thread and two."""
        flags = ["--model", MODEL, "--prompt", "Once upon a time", "--max-tokens", 24]
        flags += ["--temperature", 0.8, "--top-p", 0.95]
        first = run_json(*flags, "--seed", 7)["tokens"]
        self.assertEqual(run_json(*flags, "--seed", 7, "--threads", 1)["tokens"], first)
        self.assertNotEqual(run_json(*flags, "--seed", 8)["tokens"], first)

    def test_tp_of_three_answers_the_same(self) -> None:
        """Three KV heads, three ranks; two do not fit."""
        prompt = golden("short")
        flags = ["--model", MODEL, "--prompt", prompt["text"], "--temperature", 0]
        self.check_greedy("short", run_json(*flags, "--max-tokens", 8, "--tp", 3))
        refused = run(*flags, "--tp", 2)
        self.assertEqual(refused.returncode, 2)
        self.assertRegex(refused.stderr.decode(), r"\Anosa-run: --tp 2 [^\n]*\n\Z")

    @unittest.skipIf(SANITIZED, "a sanitizer's memory says nothing")
    def test_memory_is_weights_and_kv_and_little_more(self) -> None:
        """2000 tokens of prompt in a context of 8192, in every mode that selects or not."""
        ids = ",".join(map(str, golden("long")["prompt_ids"][:2000]))
        config = json.loads((Path(MODEL) / "config.json").read_text())
        weights = sum(file.stat().st_size for file in Path(MODEL).glob("*.safetensors"))
        heads, layers = config["num_key_value_heads"], config["num_hidden_layers"]
        head_dim = config["hidden_size"] // config["num_attention_heads"]
        kv = 2112 * layers * heads * head_dim * 2 * 2
        for mode in ("full", "infllmv2"):
            peak, stderr = peak_bytes(
                "--model", MODEL, "--prompt-tokens", ids, "--max-tokens", 4, "--ignore-eos",
                "--max-context", 8192, "--attention", mode,
            )  # fmt: skip
            self.assertRegex(stderr, r"for 8192 tokens")
            beyond = peak - weights - kv
            print(f"# {mode}: peak {peak >> 20} MiB, {beyond >> 20} MiB beyond weights and KV")
            self.assertLess(beyond, ALLOWED_BEYOND_BYTES)

    def test_timing_line_states_speed(self) -> None:
        """One line with both speeds."""
        done = run("--model", MODEL, "--prompt", "One two three", "--max-tokens", 8)
        match = re.search(
            r"^(\d+) prompt tokens in \S+ s \((\d+) tokens/s\), then the first token and (\d+) more "
            r"in \S+ s \((\S+) tokens/s\); full attention, loaded in \S+ s, finished: \S+$",
            done.stderr.decode(),
            re.MULTILINE,
        )
        self.assertIsNotNone(match, done.stderr)
        self.assertTrue(all(float(value) > 0 for value in match.groups()))


if __name__ == "__main__":
    if not MODEL or not (Path(MODEL) / "config.json").is_file():
        print("the demo model is not there (NOSA_DEMO_MODEL_DIR); skipping")
        sys.exit(tap.SKIPPED)
    tap.main()
