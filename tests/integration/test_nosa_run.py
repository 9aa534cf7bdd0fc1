#!/usr/bin/env python3
"""nosa-run as users have it: every flag of its contract, on small checkpoints. Prints TAP."""

from __future__ import annotations

import itertools
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import tempfile
import time
import unittest
from pathlib import Path
from typing import Any

import numpy as np

import tap
from program import (
    PROGRAM,
    RANDOM,
    Checkpoint,
    dump_logits,
    environment,
    golden_tokens,
    log_softmax,
    run,
    run_json,
    start,
)

JSON_KEYS = {
    "model", "attention", "device", "prompt_tokens", "cached_prompt_tokens", "tokens", "text",
    "logprobs", "finish_reason", "timing", "kv",
}  # fmt: skip
JSON_KEYS_ADDED = {"seed"}
TIMING_KEYS = {"load_s", "prefill_s", "ttft_s", "decode_s"}
KV_KEYS = {
    "gpu_hits", "host_hits", "nvme_hits", "prefetched_blocks", "recomputed_blocks",
    "corrupt_blocks", "h2d_bytes", "nvme_read_bytes", "nvme_written_bytes", "stall_s",
}  # fmt: skip
FLAGS = (
    "model prompt prompt-file prompt-tokens chat max-tokens temperature top-p top-k min-p seed "
    "ignore-eos attention device tp deterministic max-context version gpu-kv-bytes host-kv-bytes "
    "nvme-dir nvme-kv-bytes prefill-chunk threads json dump-logits score help"
).split()
NOSA = "kv1_group4_d16_r4"
"""float32, eviction head, 256 tokens of vocabulary, two layers, one KV head, 8192 positions."""
LONG = "kv2_group16_d16_r4_released_bf16"
"""32768 positions."""


def model(name: str) -> list[str]:
    """The flag that names a golden checkpoint."""
    return ["--model", str(RANDOM / name)]


class NosaRun(unittest.TestCase):
    """A folder for checkpoints and files, removed at the end."""

    @classmethod
    def setUpClass(cls) -> None:
        """Makes the folder, and one checkpoint whose tokens are bytes."""
        cls.holder = tempfile.TemporaryDirectory()
        cls.folder = Path(cls.holder.name)
        cls.bytes_model = ["--model", str(Checkpoint(cls.folder, NOSA).path)]

    @classmethod
    def tearDownClass(cls) -> None:
        """Removes the folder."""
        cls.holder.cleanup()

    def text_file(self, text: str) -> str:
        """Path of a new file that holds the text."""
        handle, path = tempfile.mkstemp(dir=self.folder)
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        return path


class TestJson(NosaRun):
    """The object that --json prints."""

    def test_json_has_the_keys_of_the_contract(self) -> None:
        """No key more than stated, none less, each of its type."""
        done = run(*model(NOSA), "--prompt-tokens", "5,6,7", "--max-tokens", 4, "--json")
        self.assertEqual(done.returncode, 0)
        self.assertEqual(done.stdout.count(b"\n"), 1)
        result = json.loads(done.stdout)
        self.assertEqual(set(result), JSON_KEYS | JSON_KEYS_ADDED)
        self.assertEqual(set(result["timing"]), TIMING_KEYS)
        self.assertEqual(set(result["kv"]), KV_KEYS)
        self.assertEqual(result["model"], NOSA)
        self.assertEqual(result["attention"], "nosa")
        self.assertIsInstance(result["device"], str)
        self.assertEqual(result["prompt_tokens"], [5, 6, 7])
        self.assertEqual(result["cached_prompt_tokens"], 0)
        self.assertEqual(result["finish_reason"], "length")
        self.assertEqual(len(result["tokens"]), 4)
        self.assertEqual(len(result["logprobs"]), 4)
        self.assertTrue(all(0 <= token < 256 for token in result["tokens"]))
        self.assertTrue(all(value <= 0 for value in result["logprobs"]))
        for value in result["timing"].values():
            self.assertGreater(value, 0)
        self.assertLessEqual(result["timing"]["prefill_s"], result["timing"]["ttft_s"])
        tiers = {key: value for key, value in result["kv"].items() if key != "gpu_hits"}
        self.assertEqual(set(tiers.values()), {0})

    def test_json_gpu_hits_count_the_records_read(self) -> None:
        """101 positions are computed; each reads its visible blocks in both layers."""
        prompt = golden_tokens(NOSA, 100)
        result = run_json(
            *model(NOSA), "--prompt-tokens", prompt, "--max-tokens", 2, "--ignore-eos"
        )
        blocks = sum(position // 64 + 1 for position in range(101))
        self.assertEqual(result["kv"]["gpu_hits"], 2 * blocks)

    def test_json_model_is_the_last_component_of_the_path(self) -> None:
        """With slashes behind it, too."""
        path = f"{RANDOM / NOSA}//"
        result = run_json("--model", path, "--prompt-tokens", "1", "--max-tokens", 1)
        self.assertEqual(result["model"], NOSA)

    def test_json_text_and_plain_text_are_the_same(self) -> None:
        """Plain output is the text and a newline; figures go to stderr."""
        flags = [*self.bytes_model, "--prompt", "Hello", "--max-tokens", 40, "--ignore-eos"]
        result = run_json(*flags)
        self.assertEqual(result["prompt_tokens"], list(b"Hello"))
        self.assertEqual(result["text"], bytes(result["tokens"]).decode(errors="replace"))
        done = run(*flags)
        self.assertEqual(done.returncode, 0)
        self.assertEqual(done.stdout.decode("utf-8"), result["text"] + "\n")
        self.assertIn(b"tokens/s", done.stderr)

    def test_json_without_tokenizer_has_no_text(self) -> None:
        """A prompt of ids needs none; stderr says why there is no text."""
        done = run(*model(NOSA), "--prompt-tokens", "1", "--max-tokens", 2, "--json")
        self.assertEqual(json.loads(done.stdout)["text"], "")
        self.assertIn(b"tokenizer.json", done.stderr)


class TestLogits(NosaRun):
    """--dump-logits against the goldens, and what must not change a bit of it."""

    def test_dump_logits_equal_the_goldens(self) -> None:
        """Every checkpoint and mode, at a few lengths around the edges."""
        manifest = json.loads((RANDOM / "manifest.json").read_text())
        dtypes = {entry["directory"]: entry["dtype"] for entry in manifest["checkpoints"]}
        checked = 0
        for case in manifest["cases"]:
            if case["length"] not in (1, 65, 1000):
                continue
            checked += 1
            with self.subTest(**{key: case[key] for key in ("directory", "mode", "length")}):
                logits, _ = dump_logits(
                    *model(case["directory"]),
                    "--attention", case["mode"],
                    "--prompt-tokens", golden_tokens(case["directory"], case["length"]),
                    "--max-tokens", 1,
                )  # fmt: skip
                self.assertEqual(logits.dtype, np.dtype("<f4"))
                self.assertEqual(logits.shape, (1, 256))
                golden = np.load(RANDOM / case["logits"])[case["row"]]
                error = np.abs(logits[0] - golden).max() / case["std"]
                self.assertLess(error, 1e-4 if dtypes[case["directory"]] == "f32" else 5e-3)
        self.assertGreaterEqual(checked, 40)

    def test_dump_logits_has_a_row_for_each_token(self) -> None:
        """The row of the last prompt position, then those of generated tokens but the last."""
        prompt = golden_tokens(NOSA, 90)
        flags = [*model(NOSA), "--ignore-eos"]
        logits, result = dump_logits(*flags, "--prompt-tokens", prompt, "--max-tokens", 6)
        self.assertEqual(logits.shape, (6, 256))
        self.assertEqual(result["tokens"], logits.argmax(axis=1).tolist())
        chosen = log_softmax(logits)[np.arange(6), result["tokens"]]
        np.testing.assert_allclose(result["logprobs"], chosen, atol=1e-5)
        longer = ",".join([prompt, *map(str, result["tokens"][:3])])
        after, _ = dump_logits(*flags, "--prompt-tokens", longer, "--max-tokens", 1)
        self.assertEqual(after[0].tobytes(), logits[3].tobytes())

    def test_chunks_and_threads_change_no_bit(self) -> None:
        """700 tokens: more blocks than topk, in pieces of any size."""
        for mode in ("nosa", "infllmv2", "full"):
            seen = set()
            for flags in (
                ["--prefill-chunk", 1],
                ["--prefill-chunk", 7],
                ["--prefill-chunk", 64, "--threads", 1],
                ["--prefill-chunk", 512, "--threads", 1],
                ["--prefill-chunk", 512, "--threads", 2],
                ["--prefill-chunk", 65536, "--threads", 3, "--deterministic"],
            ):
                logits, result = dump_logits(
                    *model(NOSA), "--attention", mode, "--ignore-eos", *flags,
                    "--prompt-tokens", golden_tokens(NOSA, 700), "--max-tokens", 5,
                )  # fmt: skip
                seen.add((logits.tobytes(), tuple(result["tokens"]), tuple(result["logprobs"])))
            self.assertEqual(len(seen), 1, mode)

    def test_tp_agrees_within_rounding(self) -> None:
        """By KV head, and with more ranks than KV heads."""
        for name, ranks in (
            ("kv3_group1_d64_r2_linear_bias", 3),
            ("kv4_group4_d16_r1_yarn", 2),
            ("kv4_group4_d16_r1_yarn", 4),
            (NOSA, 2),
        ):
            with self.subTest(name=name, ranks=ranks):
                flags = [*model(name), "--ignore-eos", "--max-tokens", 4]
                flags += ["--prompt-tokens", golden_tokens(name, 130)]
                one, alone = dump_logits(*flags)
                split, result = dump_logits(*flags, "--tp", ranks)
                self.assertLess(np.abs(one - split).max(), 1e-4 * one.std())
                self.assertEqual(result["tokens"], alone["tokens"])


class TestBrokenWeights(NosaRun):
    """Values that are no numbers, as a damaged or diverged checkpoint has them."""

    def test_weights_that_are_not_numbers_are_one_line(self) -> None:
        """Every mode, greedy and drawn, with blocks left out: exit 2, and no crash on the way."""
        prompt = ["--prompt-tokens", golden_tokens(NOSA, 700), "--max-tokens", 2, "--json"]
        tensors = ("layers.0.self_attn.q_proj.weight", "layers.1.self_attn.A")
        for value, name in itertools.product((np.nan, np.inf, 3e38), tensors):
            checkpoint = Checkpoint(self.folder, NOSA)
            checkpoint.fill(f"model.{name}", value)
            drawn = ["--temperature", 1, "--top-p", 0.9]
            for mode, flags in itertools.product(("nosa", "infllmv2", "full"), ([], drawn)):
                with self.subTest(value=value, name=name, mode=mode, flags=flags):
                    where = ["--model", checkpoint.path, "--attention", mode]
                    done = run(*where, *prompt, *flags)
                    self.assertEqual((done.returncode, done.stdout), (2, b""))
                    line = rf"\Anosa-run: [^\n]*{NOSA}[^\n]*finite[^\n]*\n\Z"
                    self.assertRegex(done.stderr.decode(), line)


class TestSampling(NosaRun):
    """Seeds, filters, penalties and the model's own settings."""

    def tokens(self, *flags: Any, path: str | None = None) -> list[int]:
        """32 tokens after a short prompt."""
        where = ["--model", path] if path else model(NOSA)
        prompt = ["--prompt-tokens", "9,8,7,6", "--max-tokens", 32, "--ignore-eos"]
        return run_json(*where, *prompt, *flags)["tokens"]

    def test_seed_decides_the_tokens(self) -> None:
        """Equal seeds draw equal tokens on any thread count, others do not."""
        first = self.tokens("--temperature", 1, "--seed", 5)
        self.assertEqual(self.tokens("--temperature", 1, "--seed", 5, "--threads", 1), first)
        self.assertNotEqual(self.tokens("--temperature", 1, "--seed", 6), first)
        self.assertNotEqual(self.tokens("--temperature", 0), first)

    def test_seed_drawn_is_printed_and_repeats_the_run(self) -> None:
        """Without --seed every run draws its own."""
        flags = [*model(NOSA), "--prompt-tokens", "9,8,7,6", "--max-tokens", 32, "--ignore-eos"]
        flags += ["--temperature", 1]
        one, two = run_json(*flags), run_json(*flags)
        self.assertNotEqual(one["seed"], two["seed"])
        self.assertNotEqual(one["tokens"], two["tokens"])
        self.assertEqual(run_json(*flags, "--seed", one["seed"])["tokens"], one["tokens"])

    def test_seed_of_64_bits_comes_back(self) -> None:
        """The largest seed is printed so that it can be given again."""
        largest = 2**64 - 1
        flags = [*model(NOSA), "--prompt-tokens", "1", "--max-tokens", 1]
        self.assertEqual(int(run_json(*flags, "--seed", largest)["seed"]), largest)
        self.assertEqual(run_json(*flags, "--seed", 2**63 - 1)["seed"], 2**63 - 1)

    def test_filters_that_leave_one_token_are_greedy(self) -> None:
        """top-k 1, min-p 1 and a tiny top-p keep the best token only."""
        greedy = self.tokens("--temperature", 0)
        self.assertEqual(self.tokens(), greedy)
        for flags in (["--top-k", 1], ["--min-p", 1], ["--top-p", 1e-6]):
            with self.subTest(flags=flags):
                self.assertEqual(self.tokens(*flags), greedy)
                self.assertEqual(self.tokens(*flags, "--temperature", 3), greedy)

    def test_top_k_keeps_the_best(self) -> None:
        """Each token drawn is among the three best of its row."""
        logits, result = dump_logits(
            *model(NOSA), "--prompt-tokens", "9,8,7,6", "--max-tokens", 64, "--ignore-eos",
            "--temperature", 2, "--top-k", 3, "--seed", 11,
        )  # fmt: skip
        ranks = [int((row > row[token]).sum()) for row, token in zip(logits, result["tokens"])]
        self.assertEqual(set(ranks), {0, 1, 2})

    def test_penalties_forbid_repetition(self) -> None:
        """Presence, frequency and repetition at their largest."""
        for flags in (["--presence-penalty", 100], ["--frequency-penalty", 100]):
            with self.subTest(flags=flags):
                tokens = self.tokens("--temperature", 0, *flags)
                self.assertEqual(len(set(tokens)), 32)
        tokens = self.tokens("--temperature", 0, "--repetition-penalty", 100)
        self.assertEqual(len(set(tokens) | {9, 8, 7, 6}), 36)

    def test_generation_config_decides_without_flags(self) -> None:
        """do_sample with its values, overruled by any sampling flag."""
        checkpoint = Checkpoint(self.folder, NOSA)
        own = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9}
        checkpoint.write("generation_config.json", own)
        path = str(checkpoint.path)
        stated = ["--temperature", 0.7, "--top-k", 20, "--top-p", 0.9, "--seed", 3]
        self.assertEqual(self.tokens("--seed", 3, path=path), self.tokens(*stated))
        self.assertEqual(self.tokens("--temperature", 0, path=path), self.tokens())


class TestEnds(NosaRun):
    """Why a generation ends."""

    def test_finish_reason_stop_at_an_end_token(self) -> None:
        """The end token is the last id and never text; --ignore-eos goes on past it."""
        flags = ["--prompt-tokens", "9,8,7,6", "--max-tokens", 12]
        tokens = run_json(*model(NOSA), *flags, "--ignore-eos")["tokens"]
        ends = [250, tokens[5]]
        expected = tokens[: tokens.index(tokens[5]) + 1]
        checkpoint = Checkpoint(self.folder, NOSA)
        checkpoint.config(eos_token_id=ends)
        stopped = run_json("--model", checkpoint.path, *flags)
        self.assertEqual(stopped["tokens"], expected)
        self.assertEqual(stopped["text"], bytes(expected[:-1]).decode(errors="replace"))
        self.assertEqual(stopped["finish_reason"], "stop")
        ignored = run_json("--model", checkpoint.path, *flags, "--ignore-eos")
        self.assertEqual(ignored["tokens"], tokens)
        self.assertEqual(ignored["finish_reason"], "length")

    def test_finish_reason_length_at_the_end_of_the_context(self) -> None:
        """Prompt and answer fill --max-context, or the model's positions, and no more."""
        checkpoint = Checkpoint(self.folder, NOSA, tokenizer=False)
        checkpoint.config(max_position_embeddings=40)
        prompt = golden_tokens(NOSA, 30)
        for flags in (
            [*model(NOSA), "--max-context", 40],
            ["--model", checkpoint.path],
            ["--model", checkpoint.path, "--max-context", 40],
        ):
            for asked in (9, 10, 11, 2147483647):
                with self.subTest(flags=flags, asked=asked):
                    result = run_json(
                        *flags, "--prompt-tokens", prompt, "--max-tokens", asked, "--ignore-eos"
                    )
                    self.assertEqual(len(result["tokens"]), min(asked, 10))
                    self.assertEqual(result["finish_reason"], "length")

    def test_prompt_that_fills_the_context_gets_no_answer(self) -> None:
        """It is not refused: there is just no room."""
        flags = [*model(NOSA), "--max-context", 30, "--prompt-tokens", golden_tokens(NOSA, 30)]
        logits, result = dump_logits(*flags)
        self.assertEqual(result["tokens"], [])
        self.assertEqual(result["finish_reason"], "length")
        self.assertEqual(logits.shape, (0, 256))

    def test_interrupt_ends_with_what_there_is(self) -> None:
        """SIGINT while decoding: exit 130, the object whole, its tokens those of a full run."""
        path = self.folder / "interrupted.npy"
        flags = [*model(LONG), "--prompt-tokens", "9,8,7", "--ignore-eos", "--json"]
        process = start(*flags, "--max-tokens", 32000, "--dump-logits", path)
        deadline = time.monotonic() + 60
        while (not path.exists() or path.stat().st_size < 8192) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130)
        result = json.loads(stdout)
        count = len(result["tokens"])
        self.assertTrue(0 < count < 32000)
        self.assertEqual(result["finish_reason"], "cancelled")
        self.assertEqual(len(result["logprobs"]), count)
        self.assertEqual(np.load(path).shape, (count, 256))
        few = min(count, 50)
        again = run_json(*flags[:-1], "--max-tokens", few)
        self.assertEqual(again["tokens"], result["tokens"][:few])

    def test_terminate_within_the_prompt_says_how_far_it_came(self) -> None:
        """SIGTERM while prefilling: exit 0, no token, the seconds and tokens that were computed."""
        flags = [*model(LONG), "--prompt-tokens", "9," * 20000 + "9", "--prefill-chunk", 1]
        process = start(*flags)
        process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0)
        self.assertEqual(stdout, b"\n")
        self.assertRegex(
            stderr.decode(), r"(\A|\n)stopped after \d+ of 20001 prompt tokens, \d+\.\d\d s\n\Z"
        )

    def test_interrupt_of_a_score_says_so(self) -> None:
        """Nothing is printed for half a text."""
        checkpoint = Checkpoint(self.folder, LONG)
        text = self.text_file("All of it is read. " * 1600)
        process = start("--model", checkpoint.path, "--score", text, "--prefill-chunk", 1)
        process.stderr.readline()
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130)
        self.assertEqual(stdout, b"")
        self.assertRegex(stderr.decode(), r"\Anosa-run: interrupted with \d+ tokens left\n\Z")


class TestStreaming(NosaRun):
    """Text arrives while it is made."""

    def stream(self, count: int, interrupt_after: int | None = None) -> tuple[list[bytes], int]:
        """The pieces read from stdout, and the exit code."""
        checkpoint = Checkpoint(self.folder, LONG)
        flags = ["--prompt", "Once", "--ignore-eos", "--max-tokens", count]
        process = start("--model", checkpoint.path, *flags)
        pieces = []
        while piece := os.read(process.stdout.fileno(), 1 << 16):
            pieces.append(piece)
            if interrupt_after is not None and len(pieces) == interrupt_after:
                process.send_signal(signal.SIGINT)
        process.stdout.close()
        process.stderr.read()
        process.stderr.close()
        return pieces, process.wait(timeout=60)

    def test_text_arrives_in_pieces(self) -> None:
        """Many reads, the first long before the end, and no character is torn."""
        pieces, code = self.stream(1500)
        self.assertEqual(code, 0)
        whole = b"".join(pieces)
        self.assertGreater(len(pieces), 10)
        self.assertLess(len(pieces[0]), len(whole) / 4)
        for piece in pieces:
            piece.decode("utf-8")

    def test_interrupt_keeps_what_was_shown(self) -> None:
        """What was printed by then is the beginning of the whole text."""
        pieces, code = self.stream(20000, interrupt_after=5)
        self.assertEqual(code, 130)
        shown = b"".join(pieces)
        self.assertTrue(shown.endswith(b"\n"))
        reference, _ = self.stream(300)
        begin = b"".join(reference)[:-1]
        few = min(len(begin), len(shown) - 1) - 4
        self.assertGreater(few, 0)
        self.assertEqual(shown[:few], begin[:few])

    def test_reader_that_went_away_is_one_line(self) -> None:
        """A closed pipe ends the run instead of killing it."""
        process = start(*self.bytes_model, "--prompt", "a", "--max-tokens", 4000, "--ignore-eos")
        process.stdout.close()
        stderr = process.stderr.read().decode()
        process.stderr.close()
        self.assertEqual(process.wait(timeout=60), 2)
        self.assertIn("nosa-run: standard output: cannot write\n", stderr)

    @unittest.skipUnless(os.path.exists("/dev/full"), "no /dev/full")
    def test_full_disk_is_one_line(self) -> None:
        """Text and JSON alike."""
        for flags in ([], ["--json"]):
            with open("/dev/full", "wb") as full:
                done = run(
                    *self.bytes_model, "--prompt", "a", "--max-tokens", 2, *flags, stdout=full
                )
            self.assertEqual(done.returncode, 2)
            self.assertIn(b"nosa-run: standard output: cannot write\n", done.stderr)


class TestScore(NosaRun):
    """--score against softmax over dumped logits."""

    def test_score_equals_log_softmax_of_logits(self) -> None:
        """Each token given those before it."""
        text = "So it goes.\n"
        ids = list(text.encode())
        rows = []
        for length in range(1, len(ids)):
            prompt = ",".join(map(str, ids[:length]))
            logits, _ = dump_logits(*self.bytes_model, "--prompt-tokens", prompt, "--max-tokens", 1)
            rows.append(logits[0])
        expected = log_softmax(np.array(rows))[np.arange(len(ids) - 1), ids[1:]]
        for flags in ([], ["--prefill-chunk", 1], ["--prefill-chunk", 5]):
            result = run_json(*self.bytes_model, "--score", self.text_file(text), *flags)
            self.assertEqual(set(result), {"tokens", "log_likelihood", "per_token"})
            self.assertEqual(result["tokens"], len(ids))
            np.testing.assert_allclose(result["per_token"], expected, atol=1e-5)
            self.assertAlmostEqual(result["log_likelihood"], sum(result["per_token"]), places=5)

    def test_score_as_a_line(self) -> None:
        """The same numbers for people."""
        path = self.text_file("Some text, rather short.")
        result = run_json(*self.bytes_model, "--score", path)
        done = run(*self.bytes_model, "--score", path)
        self.assertEqual(done.returncode, 0)
        match = re.fullmatch(
            r"(\d+) tokens, log-likelihood (\S+), perplexity (\S+)\n", done.stdout.decode()
        )
        self.assertIsNotNone(match)
        self.assertEqual(int(match[1]), result["tokens"])
        self.assertAlmostEqual(float(match[2]), result["log_likelihood"], places=4)
        mean = result["log_likelihood"] / (result["tokens"] - 1)
        self.assertAlmostEqual(float(match[3]) / np.exp(-mean), 1, places=5)

    def test_score_of_one_token_is_zero(self) -> None:
        """Nothing comes before it."""
        result = run_json(*self.bytes_model, "--score", self.text_file("a"))
        self.assertEqual(result, {"tokens": 1, "log_likelihood": 0, "per_token": []})

    def test_score_does_not_depend_on_the_chunk(self) -> None:
        """To the last bit, over blocks that are left out."""
        text = "".join(chr(33 + i * 7 % 90) for i in range(900))
        path = self.text_file(text)
        results = [
            run_json(*self.bytes_model, "--score", path, "--prefill-chunk", chunk)
            for chunk in (1024, 77)
        ]
        self.assertEqual(results[0], results[1])
        full = run_json(*self.bytes_model, "--score", path, "--attention", "full")
        self.assertNotEqual(full["log_likelihood"], results[0]["log_likelihood"])


class TestFlags(NosaRun):
    """Flags, environment, help."""

    def test_help_names_every_flag(self) -> None:
        """On stdout, exit 0, without a model."""
        done = run("--help")
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        words = set(re.findall(r"--([a-z-]+)", done.stdout.decode()))
        self.assertEqual(set(FLAGS) - words, set())
        self.assertEqual(run("-h").stdout, done.stdout)
        self.assertTrue(all(len(line) <= 100 for line in done.stdout.decode().splitlines()))

    def test_version_is_one_line(self) -> None:
        """Name and number."""
        done = run("--version")
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertRegex(done.stdout.decode(), r"\Anosa-run \d+\.\d+\.\d+[^\n]*\n\Z")

    def values_of_flags(self) -> dict[str, tuple[str, str, str]]:
        """For each flag a good value, a bad one, and what the refusal names; {} is its variable."""
        text = self.text_file("some text")
        new, none = str(self.folder / "new"), "/nonexistent/file"
        paths = {"model": self.bytes_model[1], "prompt-file": text, "score": text,
                 "dump-logits": new, "trace-selection": new}  # fmt: skip
        checked = {
            "max-tokens": "7", "temperature": "1.5", "top-p": "0.5", "top-k": "3", "min-p": "0.1",
            "repetition-penalty": "9", "presence-penalty": "50", "frequency-penalty": "50",
            "seed": "77", "attention": "full", "tp": "2", "threads": "1", "prefill-chunk": "2",
            "max-context": "50", "gpu-kv-bytes": "1M", "host-kv-bytes": "1M", "kv-policy": "lru",
            "nvme-kv-bytes": "2M", "nvme-write-bytes-per-day": "1G", "trace-from": "1",
            "chat": "true", "ignore-eos": "true", "json": "true", "deterministic": "true",
        }  # fmt: skip
        return {
            **{flag: (value, none, none) for flag, value in paths.items()},
            **{flag: (value, "bad", "{}") for flag, value in checked.items()},
            "prompt": ("some text", "", "--prompt"),
            "prompt-tokens": ("9,8,7", "9,bad", "--prompt-tokens"),
            "device": ("cpu", "gpu", "--device 'gpu'"),
            "nvme-dir": (new, "/dev/null", "'/dev/null'"),
        }

    def outcome(self, *arguments: Any, env: dict[str, str] | None = None) -> tuple[Any, ...]:
        """What a run prints and writes, without times; removes what it wrote."""
        done = run(*arguments, env=env)
        output = done.stdout
        if output.startswith(b"{") and b'"timing"' in output:
            result = json.loads(output)
            result["timing"] = result["kv"]["stall_s"] = None
            output = json.dumps(result).encode()
        new, content = self.folder / "new", None
        if new.is_dir():
            content = sorted(path.name for path in new.iterdir())
            shutil.rmtree(new)
        elif new.exists():
            content = new.read_bytes()
            new.unlink()
        errors = re.sub(rb"[\d.]+ s|\([\d.]+ tokens/s\)|\d\S+Z", b"", done.stderr)
        return done.returncode, output, errors, content

    def test_environment_sets_every_flag(self) -> None:
        """Of those that --help names: a bad value is refused by name, a good one does the same."""
        named = re.findall(r"^  --([a-z-]+)", run("--help").stdout.decode(), re.MULTILINE)
        values = self.values_of_flags()
        self.assertEqual(set(named) - {"help", "version"}, set(values))
        inputs = ("prompt", "prompt-file", "prompt-tokens", "score")
        for flag, (good, bad, needle) in values.items():
            variable = "NOSA_" + flag.upper().replace("-", "_")
            others = [] if flag == "model" else list(self.bytes_model)
            if flag == "chat":
                others += ["--prompt", "some text"]
            elif flag not in inputs:
                others += ["--prompt-tokens", "4,5,6"]
            others += ["--json"] if flag != "json" else []
            others += ["--seed", 5] if flag not in ("seed", "score") else []
            others += ["--max-tokens", 5] if flag != "max-tokens" else []
            if flag == "trace-from":
                others += ["--trace-selection", self.folder / "new"]
            elif flag.startswith("nvme-") and flag != "nvme-dir":
                others += ["--nvme-dir", self.folder / "new"]
            with self.subTest(flag=flag):
                done = run(*others, env={variable: bad})
                self.assertEqual((done.returncode, done.stdout), (2, b""))
                self.assertIn(needle.format(variable), done.stderr.decode())
                expected = self.outcome(*others, f"--{flag}={good}")
                if flag != "chat":
                    self.assertEqual(expected[0], 0, expected)
                self.assertEqual(self.outcome(*others, env={variable: good}), expected)

    def test_environment_gives_way_to_the_command_line(self) -> None:
        """NOSA_<FLAG> of several flags at once; the command line wins."""
        flags = ["--prompt-tokens", "4,5,6", "--max-tokens", 7, "--temperature", 1, "--seed", 2]
        expected = run_json(*model(NOSA), *flags, "--attention", "full", "--ignore-eos")
        env = {
            "NOSA_MODEL": str(RANDOM / NOSA),
            "NOSA_PROMPT_TOKENS": "4,5,6",
            "NOSA_MAX_TOKENS": "7",
            "NOSA_TEMPERATURE": "1",
            "NOSA_SEED": "2",
            "NOSA_ATTENTION": "full",
            "NOSA_IGNORE_EOS": "true",
            "NOSA_JSON": "true",
        }
        done = run(env=env)
        self.assertEqual(done.returncode, 0, done.stderr)
        result = json.loads(done.stdout)
        self.assertEqual(result["tokens"], expected["tokens"])
        self.assertEqual(result["attention"], "full")
        self.assertEqual(result["seed"], 2)
        fewer = json.loads(run("--max-tokens", 3, "--attention", "nosa", env=env).stdout)
        self.assertEqual(fewer["attention"], "nosa")
        self.assertEqual(len(fewer["tokens"]), 3)

    def test_attention_defaults_to_what_the_model_has(self) -> None:
        """nosa with an eviction head, else full."""
        for name, mode in ((NOSA, "nosa"), ("kv2_group1_d16_r4_plain", "full")):
            flags = [*model(name), "--prompt-tokens", "1", "--max-tokens", 1]
            self.assertEqual(run_json(*flags)["attention"], mode)
            for chosen in ("nosa", "infllmv2", "full"):
                result = run_json(*flags, "--attention", chosen)
                self.assertEqual(result["attention"], chosen)

    def test_what_is_not_there_yet_is_said_and_changes_nothing(self) -> None:
        """CUDA: a line on stderr, the CPU instead."""
        flags = [*model(NOSA), "--prompt-tokens", "4,5,6", "--max-tokens", 5, "--json"]
        plain = run(*flags, "--device", "cpu")
        self.assertNotIn(b"--device", plain.stderr)
        expected = json.loads(plain.stdout)["tokens"]
        for extra in (
            ["--device", "cuda"],
            ["--device", "cuda:0,1"],
        ):
            with self.subTest(extra=extra):
                done = run(*flags, *extra)
                self.assertEqual(done.returncode, 0)
                self.assertEqual(done.stderr.count(extra[0].encode()), 1)
                result = json.loads(done.stdout)
                self.assertEqual(result["tokens"], expected)
                self.assertNotIn("cuda", result["device"].lower())

    def test_nosa_without_an_eviction_head_is_said(self) -> None:
        """It runs, but its second cut has nothing to rank by."""
        for name, warns in (("kv2_group1_d16_r4_plain", True), (NOSA, False)):
            flags = [
                *model(name),
                "--prompt-tokens",
                "4,5",
                "--max-tokens",
                1,
                "--attention",
                "nosa",
            ]
            done = run(*flags)
            self.assertEqual(done.returncode, 0)
            self.assertEqual(b"has no eviction head" in done.stderr, warns)

    def test_gpu_kv_bytes_sets_the_arena(self) -> None:
        """Enough for the run, or `auto`."""
        flags = [*model(NOSA), "--prompt-tokens", "4,5,6", "--max-tokens", 5]
        expected = run_json(*flags)["tokens"]
        for size in ("auto", "1M", "64K", "33554432"):
            self.assertEqual(run_json(*flags, "--gpu-kv-bytes", size)["tokens"], expected)

    def test_auto_sizes_are_printed(self) -> None:
        """Without --json the program says what it took."""
        done = run(*model(NOSA), "--prompt-tokens", "4,5,6", "--max-tokens", 100)
        self.assertRegex(done.stderr.decode(), r"weights \S+ \S+, KV cache \S+ \S+ for 128 tokens")

    def test_prompt_and_prompt_file_are_the_same(self) -> None:
        """Bytes become the same ids, whatever the script."""
        text = "Grüße, 世界! 🙂\n\ttab"
        flags = [*self.bytes_model, "--max-tokens", 3]
        given = run_json(*flags, "--prompt", text)
        self.assertEqual(given["prompt_tokens"], list(text.encode()))
        for source in (self.text_file(text), "-", "/dev/stdin"):
            read = run_json(*flags, "--prompt-file", source, text=text.encode())
            self.assertEqual(read["prompt_tokens"], given["prompt_tokens"])
            self.assertEqual(read["tokens"], given["tokens"])
        scored = run_json(*self.bytes_model, "--score", "-", text=text.encode())
        self.assertEqual(scored["tokens"], len(text.encode()))

    def test_interrupt_while_the_prompt_is_read(self) -> None:
        """Nobody writes to the pipe: Ctrl-C ends the wait."""
        path = self.folder / "pipe"
        os.mkfifo(path)
        process = start(*self.bytes_model, "--prompt-file", path)
        with open(path, "wb"):
            process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate(timeout=60)
        self.assertEqual(process.returncode, -signal.SIGINT)
        self.assertEqual(stdout + stderr, b"")

    def test_prompt_tokens_may_have_blanks(self) -> None:
        """Around commas."""
        result = run_json(*model(NOSA), "--prompt-tokens", " 1, 2 ,255 ", "--max-tokens", 1)
        self.assertEqual(result["prompt_tokens"], [1, 2, 255])

    def test_chat_wraps_the_prompt(self) -> None:
        """ChatML, with its control tokens added behind the bytes."""
        checkpoint = Checkpoint(self.folder, "kv1_group4_d16_r4")

        def add_control_tokens(tokenizer: dict[str, Any]) -> None:
            for byte, content in ((1, "<|im_start|>"), (2, "<|im_end|>")):
                symbol = next(s for s, i in tokenizer["model"]["vocab"].items() if i == byte)
                del tokenizer["model"]["vocab"][symbol]
                entry = {"id": byte, "content": content, "special": True, "normalized": False}
                entry.update(single_word=False, lstrip=False, rstrip=False)
                tokenizer["added_tokens"].append(entry)

        checkpoint.edit("tokenizer.json", add_control_tokens)
        template = (
            "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
            "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
        )
        checkpoint.write("tokenizer_config.json", {"chat_template": template})
        flags = ["--model", checkpoint.path, "--chat", "--max-tokens", 2]
        result = run_json(*flags, "--prompt", "Hi")
        expected = [1, *b"user\nHi", 2, *b"\n", 1, *b"assistant\n"]
        self.assertEqual(result["prompt_tokens"], expected)
        forged = run_json(*flags, "--prompt", "<|im_end|>")["prompt_tokens"]
        self.assertEqual(forged.count(2), 1)

    def test_loading_shows_progress_on_a_terminal_only(self) -> None:
        """On one line that is wiped at the end; with --json and on a pipe there is none."""
        flags = [*model(NOSA), "--prompt-tokens", "1", "--max-tokens", "1"]
        for extra, shown in (([], True), (["--json"], False)):
            controller, terminal = pty.openpty()
            done = subprocess.run(
                [PROGRAM, *flags, *extra],
                env=environment(), stdout=subprocess.DEVNULL, stderr=terminal, check=False,
            )  # fmt: skip
            os.close(terminal)
            text = os.read(controller, 1 << 16).decode()
            os.close(controller)
            self.assertEqual(done.returncode, 0)
            percents = [int(value) for value in re.findall(r"\rloading +(\d+) %", text)]
            self.assertEqual(bool(percents), shown)
            if shown:
                self.assertEqual(percents, sorted(set(percents)))
                self.assertEqual(percents[-1], 100)
                self.assertIn("\r             \r", text)
        self.assertNotIn(b"loading", run(*flags).stderr)

    def test_flags_take_equals_signs(self) -> None:
        """--name=value is --name value."""
        done = run(f"--model={RANDOM / NOSA}", "--prompt-tokens=1", "--max-tokens=1", "--json=true")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(json.loads(done.stdout)["prompt_tokens"], [1])

    def test_program_needs_no_writable_folder(self) -> None:
        """It runs from any working folder and writes nothing there."""
        empty = self.folder / "empty"
        empty.mkdir()
        flags = [*model(NOSA), "--prompt-tokens", "1", "--max-tokens", "1", "--json"]
        done = subprocess.run(
            [PROGRAM, *flags], cwd=empty, env=environment(), capture_output=True, check=False
        )
        self.assertEqual(done.returncode, 0)
        self.assertEqual(list(empty.iterdir()), [])


if __name__ == "__main__":
    tap.main()
