#!/usr/bin/env python3
"""The tool that fits and scores eviction heads, on tiny models on the CPU. Needs PyTorch
(tools/eviction_head/requirements.txt). Prints TAP."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

TREE = Path(__file__).resolve().parents[2]
TOOL = TREE / "tools" / "eviction_head"
RANDOM = TREE / "tests" / "vectors" / "random"
sys.path[:0] = [str(TREE / "tests" / "integration"), str(TREE / "tools"), str(TOOL)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402

import evaluate  # noqa: E402
import fit as fitting  # noqa: E402
import headfile  # noqa: E402
import probes  # noqa: E402
import selection  # noqa: E402
import tap  # noqa: E402
import texts  # noqa: E402
from heads import KINDS, Head  # noqa: E402
from llama import Llama, Plan, Record  # noqa: E402
from reference.nosa_reference import MODES, forward, load_model  # noqa: E402
from safetensors_writer import write_safetensors  # noqa: E402

CPU = torch.device("cpu")
BOUND = 1e-4
"""Largest error of a logit in a float32 checkpoint, as a share of the logits' spread."""
BOUND_16_BIT = 2e-2
"""The same where K and V are rounded: a few elements fall to the other neighbour."""
LENGTH = 1024
WORDS = "river stone winter letter market engine garden history number window".split()


def tiny_model(folder: Path) -> Path:
    """The plain random checkpoint with a tokenizer of single bytes."""
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(RANDOM / "kv2_group1_d16_r4_plain" / name, folder / name)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def tiny_texts(folder: Path, documents: int = 8, words: int = 900) -> Path:
    """Documents of drawn words, of two kinds."""
    draw = random.Random(3)
    for number in range(documents):
        kind = folder / ("prose" if number % 2 else "reference")
        kind.mkdir(parents=True, exist_ok=True)
        text = " ".join(draw.choice(WORDS) for _ in range(words))
        (kind / f"{number}.txt").write_text(text, encoding="utf-8")
    return folder


def tool(*arguments: Any) -> subprocess.CompletedProcess[str]:
    """Runs the program."""
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


class TestAgainstReference(unittest.TestCase):
    """The forward pass and its selections are those of the float64 reference."""

    def test_hidden_every_checkpoint_and_mode_agrees(self) -> None:
        """Logits of all positions, in chunks that divide nothing."""
        for directory in sorted(path for path in RANDOM.iterdir() if path.is_dir()):
            reference, model = load_model(directory), Llama.load(directory, CPU)
            ids = np.load(directory / "tokens.npy").reshape(-1)[:700].astype(np.int64)
            head = model.own_head()
            for mode in MODES if head else ("full", "infllmv2"):
                with self.subTest(f"{directory.name} {mode}"):
                    self.check(reference, model, ids, mode, head)

    def check(self, reference: Any, model: Llama, ids: np.ndarray, mode: str, head: Any) -> None:
        """One mode of a checkpoint."""
        expected = forward(reference, ids.tolist(), mode)
        plan = Plan(
            model.sizes,
            full=mode == "full",
            head=head,
            chunk=100,
            order="query" if mode == "infllmv2" else "bias",
        )
        record = Record()
        with torch.no_grad():
            got = model.logits(model.hidden(torch.tensor(ids), plan, record)).double().numpy()
        error = np.abs(got - expected.logits).max(axis=1) / expected.logits.std()
        if model.is_16_bit:
            self.assertLess(np.quantile(error, 0.8), BOUND_16_BIT)
        else:
            self.assertLess(error.max(), BOUND)
        for chosen, selected in zip(record.selected, expected.selections):
            different = (chosen.numpy() != selected.selected).any(axis=-1)
            self.assertLess(different.mean(), 0.02 if model.is_16_bit else 1e-3)


class TestGradients(unittest.TestCase):
    """What a fit follows."""

    def test_advance_gradient_of_head_equals_differences(self) -> None:
        """d loss / d weight through attention, against a difference of losses."""
        model = Llama.load(RANDOM / "kv2_group1_d16_r4_plain", CPU)
        ids = torch.tensor(
            np.load(RANDOM / "kv2_group1_d16_r4_plain" / "tokens.npy")[:900].astype(np.int64)
        )
        torch.manual_seed(1)
        head = Head("released", model.kv_heads, model.head_dim, [1.0, 1.0], 1024)
        plan = Plan(model.sizes, order="index", head=head)
        weights = torch.full((900,), 1 / 900)
        teacher = model.hidden(ids, Plan(model.sizes, full=True)).detach()

        def loss() -> torch.Tensor:
            return fitting.Divergence.apply(model.hidden(ids, plan), teacher, model.output, weights)

        loss().backward()
        parameter = head.layers[1].weight
        place = np.unravel_index(int(parameter.grad.abs().argmax()), parameter.shape)
        step = 0.05
        with torch.no_grad():
            parameter[place] += step
            above = float(loss())
            parameter[place] -= 2 * step
            below = float(loss())
        slope = (above - below) / (2 * step)
        self.assertAlmostEqual(float(parameter.grad[place]) / slope, 1.0, delta=0.05)

    def test_hidden_gradient_through_e_changes_no_output(self) -> None:
        """The share of the gradient that flows into E leaves the forward pass alone."""
        model = Llama.load(RANDOM / "kv2_group1_d16_r4_plain", CPU)
        ids = torch.arange(900) % 251
        head = Head("released", model.kv_heads, model.head_dim, [1.0, 1.0], 1024)
        rows = [
            model.hidden(ids, Plan(model.sizes, head=head, through=share)) for share in (0.0, 1.0)
        ]
        self.assertLess(float((rows[0] - rows[1]).detach().abs().max()), 1e-5)


class TestSelections(unittest.TestCase):
    """The selections that NOSA is compared with."""

    def test_select_other_scores_keep_their_count(self) -> None:
        """As many blocks as topk, the forced ones among them, none in the future."""
        sizes = selection.Sizes(8, 4, 1, 64, 128, 6, 2)
        draw = torch.Generator().manual_seed(4)
        queries = torch.randn(2, 3, 640, 16, generator=draw)
        keys = torch.randn(2, 640, 16, generator=draw)
        biases = torch.rand(2, 640, generator=draw)
        for score in selection.SCORES:
            layer = selection.describe_layer(keys, biases, sizes, False, "bias", score)
            for start in (0, 400):
                picked = selection.select(
                    queries[:, :, start:], layer, start, sizes, score, "query", biases
                )
                own = torch.arange(start, 640) // 64
                expected = torch.minimum(own + 1, torch.tensor(sizes.topk)).expand(2, -1)
                self.assertTrue(torch.equal(picked.sum(-1), expected), score)
                self.assertTrue(bool(picked[..., 0].all()))
                later = torch.arange(picked.shape[-1])[None, :] > own[:, None]
                self.assertFalse(bool((picked & later).any()))

    def test_block_mass_is_what_attention_gives(self) -> None:
        """Shares of all blocks sum to the group, and future blocks get none."""
        sizes = selection.Sizes(8, 4, 1, 64, 128, 6, 2)
        queries, keys = torch.randn(1, 2, 300, 16), torch.randn(1, 300, 16)
        mass = selection.block_mass(queries, keys, torch.zeros(1, 300), 0, sizes)
        self.assertTrue(torch.allclose(mass.sum(-1), torch.full((1, 300), 2.0), atol=1e-4))
        self.assertEqual(float(mass[:, :64, 1:].abs().max()), 0.0)

    def test_hit_rates_of_constructed_selections(self) -> None:
        """A block that comes every other step misses at one set, and hits in a larger tier."""
        chosen = torch.zeros(1, 40, 8, dtype=torch.bool)
        chosen[:, :, 0] = True
        chosen[:, 0::2, 2] = True
        chosen[:, 1::2, 3] = True
        self.assertAlmostEqual(evaluate.hit_rate([chosen], 0, 64), 0.5)
        tiers = evaluate.tier_hits([chosen], 0, 64, 2)
        self.assertGreater(tiers["lru_1.5"], 0.97)


class TestProbes(unittest.TestCase):
    """Planted facts."""

    def test_plant_answers_stand_where_probes_say(self) -> None:
        """The ids of a probe's span are its answer, and the fact lies at its depth."""

        def encode(text: str) -> list[int]:
            return list(text.encode())

        ids = np.full(4000, ord("x"))
        made = probes.haystacks([ids], encode, 9, 4000, 7)
        counts: dict[float, int] = {}
        for haystack in made:
            self.assertEqual(len(haystack.ids), 4000)
            text = bytes(haystack.ids.tolist()).decode()
            for probe in haystack.probes:
                answer, begin = text[probe.begin : probe.end], text[: probe.begin]
                sentence = begin[begin.rindex("\n") + 1 :] + answer
                at, tail = text.index(sentence), text.index("As was said above")
                self.assertLess(at, tail)
                self.assertAlmostEqual(at / tail, probe.depth, delta=0.12)
                counts[probe.depth] = counts.get(probe.depth, 0) + 1
        self.assertEqual(set(counts.values()), {6})

    def test_answers_plain_copying_text(self) -> None:
        """One verdict for each token of each answer."""
        model = Llama.load(RANDOM / "kv2_group1_d16_r4_plain", CPU)
        made = probes.haystacks([np.full(2000, 7)], lambda t: list(t.encode()), 1, 1500, 7)
        right = evaluate.answers(model, None, made[0])
        self.assertEqual([len(r) for r in right], [p.end - p.begin for p in made[0].probes])


class TestFit(unittest.TestCase):
    """The verbs `fit` and `eval`, as a user runs them."""

    @classmethod
    def setUpClass(cls) -> None:
        """A model and texts."""
        cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.model = tiny_model(cls.folder / "model")
        cls.texts = tiny_texts(cls.folder / "texts")

    def fit(self, output: str, *more: Any) -> subprocess.CompletedProcess[str]:
        """Runs a short fit."""
        return tool(
            "fit",
            "--model",
            self.model,
            "--texts",
            self.texts,
            "--length",
            LENGTH,
            "--device",
            "cpu",
            "--output",
            self.folder / output,
            *more,
        )

    def test_fit_is_reproduced_merged_and_scored(self) -> None:
        """A seed gives the same head; the head fits the checkpoint; `eval` scores it."""
        first, second = self.fit("a.safetensors", "--steps", 3), self.fit(
            "b.safetensors", "--steps", 3
        )
        self.assertEqual((first.returncode, second.returncode), (0, 0), first.stderr)
        a, b = (headfile.read_head(self.folder / f"{n}.safetensors") for n in "ab")
        self.assertTrue(all(np.array_equal(a.tensors[n], b.tensors[n]) for n in a.tensors))
        self.assertIn("<svg", (self.folder / "a.svg").read_text(encoding="utf-8"))
        self.assertRegex(first.stderr, r"step 3 of 3, loss \S+, \S+ s a step")
        merged = self.folder / "merged"
        done = tool(
            "merge",
            "--model",
            self.model,
            "--head",
            self.folder / "a.safetensors",
            "--output",
            merged,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        results = [
            json.loads(
                tool(
                    "eval",
                    "--model",
                    directory,
                    "--texts",
                    self.texts,
                    "--length",
                    LENGTH,
                    "--device",
                    "cpu",
                    *head,
                ).stdout
            )
            for directory, head in (
                (merged, ()),
                (self.model, ("--head", self.folder / "a.safetensors")),
            )
        ]
        self.assertEqual(results[0], results[1])
        cases = results[0]["cases"]
        self.assertEqual(set(cases), {"plain full", "full", "infllmv2", "nosa"})
        self.assertNotEqual(cases["nosa"]["perplexity_1024"], cases["full"]["perplexity_1024"])
        refused = tool("fit", "--model", merged, "--texts", self.texts, "--device", "cpu")
        self.assertEqual(refused.returncode, 2)
        self.assertRegex(refused.stderr, "has an eviction head already")

    def test_fit_interrupted_by_signal_goes_on_to_the_same_head(self) -> None:
        """SIGINT after a step: exit code 130, the state is kept, and the same command ends with the
        head of a run that was not interrupted."""
        more = ("--steps", 30)
        whole = self.fit("whole.safetensors", *more)
        self.assertEqual(whole.returncode, 0, whole.stderr)
        output = self.folder / "cut.safetensors"
        command = [sys.executable, str(TOOL), "fit", "--model", self.model, "--texts", self.texts]
        command += ["--length", LENGTH, "--device", "cpu", "--output", output, *more]
        with subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            first = process.stderr.readline()
            process.send_signal(signal.SIGINT)
            rest = process.stderr.read()
            process.wait(timeout=300)
        self.assertRegex(first, r"^fit: step \d+ of 30")
        self.assertEqual(process.returncode, 130, first + rest)
        self.assertRegex(rest, r"eviction_head: interrupted; the same command goes on\n$")
        self.assertFalse(output.exists())
        self.assertTrue(fitting.partial_path(output).is_file())
        again = self.fit("cut.safetensors", *more)
        self.assertEqual(again.returncode, 0, again.stderr)
        self.assertRegex(again.stderr, r"^fit: going on from step [1-9]\d? of 30\n")
        self.assertFalse(fitting.partial_path(output).exists())
        a, b = (headfile.read_head(self.folder / f"{n}.safetensors") for n in ("whole", "cut"))
        self.assertTrue(all(np.array_equal(a.tensors[n], b.tensors[n]) for n in a.tensors))

    def test_run_interrupted_goes_on_to_the_same_head(self) -> None:
        """Stopped after some steps, a fit ends with the bits of one that was not."""
        corpus = texts.read_corpus(self.texts, self.model)
        options = fitting.Options(steps=4, length=LENGTH, planted=0.5, answers=0.1)
        heads = []
        for stop in (None, 2):
            model = Llama.load(self.model, CPU)
            output = self.folder / f"state-{stop}"
            for attempt in range(2 if stop else 1):
                fit = fitting.Fit(model, corpus, options, lambda t: list(t.encode()))
                if stop and attempt == 0:
                    for _ in range(stop):
                        fit.advance()
                    fitting.save_state(fit, fitting.partial_path(output), "base")
                else:
                    self.assertTrue(fitting.run(fit, output, "base"))
            self.assertFalse(fitting.partial_path(output).exists())
            heads.append(fit.head.tensors())
        for name, tensor in heads[0].items():
            self.assertTrue(torch.equal(tensor, heads[1][name]), name)

    def test_load_state_of_another_fit_is_refused(self) -> None:
        """Other options, or a file that is none."""
        corpus = texts.read_corpus(self.texts, self.model)
        model = Llama.load(self.model, CPU)
        fits = [
            fitting.Fit(
                model,
                corpus,
                fitting.Options(steps=2, length=LENGTH, seed=seed),
                lambda t: list(t.encode()),
            )
            for seed in (1, 2)
        ]
        path = self.folder / "other.partial"
        fitting.save_state(fits[0], path, "base")
        for wrong in ((fits[1], "base"), (fits[0], "another base")):
            with self.assertRaisesRegex(fitting.ToolError, "state of another fit"):
                fitting.load_state(wrong[0], path, wrong[1])
        path.write_bytes(b"nothing")
        with self.assertRaisesRegex(fitting.ToolError, "not the state of a fit"):
            fitting.load_state(fits[0], path, "base")

    def test_advance_lowers_the_loss_of_every_kind(self) -> None:
        """Each kind of head learns one window; the base stays as it is."""
        corpus = texts.read_corpus(self.texts, self.model)
        model = Llama.load(self.model, CPU)
        before = {name: tensor.clone() for name, tensor in model.tensors.items()}
        for kind in KINDS:
            options = fitting.Options(kind=kind, steps=20, length=LENGTH, planted=0, rate=0.03)
            fit = fitting.Fit(model, corpus, options, lambda t: list(t.encode()))
            window = fit.window(np.random.default_rng(1))
            fit.window = lambda draw, window=window: window
            losses = [fit.advance() for _ in range(14)]
            self.assertLess(min(losses[-3:]), losses[0], kind)
        self.assertTrue(all(torch.equal(before[n], t) for n, t in model.tensors.items()))

    def test_advance_low_rank_starts_unchanged_and_learns(self) -> None:
        """A low-rank update is nothing at first, and is folded into whole matrices."""
        corpus = texts.read_corpus(self.texts, self.model)
        model = Llama.load(self.model, CPU)
        fit = fitting.Fit(
            model,
            corpus,
            fitting.Options(steps=4, length=LENGTH, rank=2, full=0.5),
            lambda t: list(t.encode()),
        )
        start = fit.folded_weights()
        self.assertTrue(all(torch.equal(t, model.tensors[n]) for n, t in start.items()))
        for _ in range(4):
            fit.advance()
        changed = fit.folded_weights()
        self.assertTrue(any(not torch.equal(t, start[n]) for n, t in changed.items()))

    def test_fit_bad_input_is_one_line(self) -> None:
        """Texts too short, empty or not UTF-8; no folder; windows that leave E nothing."""
        short = tiny_texts(self.folder / "short", words=20)
        bad = tiny_texts(self.folder / "bad")
        (bad / "prose" / "1.txt").write_bytes(b"\xff\xfe")
        empty = tiny_texts(self.folder / "empty")
        (empty / "reference" / "2.txt").write_bytes(b" \n")
        for folder, more, reason in (
            (short, (), "no document of the train part has the 1024 tokens"),
            (bad, (), "1.txt: not UTF-8"),
            (empty, (), "2.txt: empty"),
            (self.folder / "absent", (), "absent"),
            (self.texts, ("--window", 1000), "not a multiple of 64"),
            (self.texts, ("--window", 640), "leave E no place"),
            (self.texts, ("--select", 99), "leave E no place"),
            (self.texts, ("--select", -1), "not a number of blocks"),
            (self.texts, ("--steps", 0), "--steps must be at least 1"),
        ):
            done = tool(
                "fit",
                "--model",
                self.model,
                "--texts",
                folder,
                "--length",
                LENGTH,
                "--device",
                "cpu",
                "--output",
                self.folder / "bad.safetensors",
                *more,
            )
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertRegex(done.stderr, rf"^eviction_head: .*{reason}.*\n$")

    def test_eval_head_of_other_weights_is_refused(self) -> None:
        """One weight differs in its last bit from those that the head was fitted to."""
        shapes = headfile.head_shapes(headfile.read_config(self.model))
        tensors = {name: np.ones(shape, "<f4") for name, shape in shapes.items()}
        head = self.folder / "foreign.safetensors"
        metadata = {"base_sha256": headfile.weights_sha256(self.model)}
        headfile.write_head(head, headfile.HeadFile(tensors, metadata))
        other = tiny_model(self.folder / "other")
        data = bytearray((other / "model.safetensors").read_bytes())
        data[-4] ^= 1
        (other / "model.safetensors").write_bytes(data)
        done = tool("eval", "--model", other, "--texts", self.texts, "--head", head)
        self.assertEqual(done.returncode, 2)
        self.assertRegex(done.stderr, r"^eviction_head: .*fitted to another model.*\n$")

    def test_pack_serves_its_tokenizer_alone(self) -> None:
        """Packed texts give the windows of their folder; a model with another tokenizer refuses
        them, and so does every model what is no packed file."""
        packed = self.folder / "packed.npz"
        done = tool("pack", "--model", self.model, "--texts", self.texts, "--output", packed)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r": 8 documents, \d+ tokens\n$")
        chosen = [
            texts.windows_of(texts.read_corpus(source, self.model), "test", LENGTH, 18, 3)
            for source in (packed, self.texts)
        ]
        for ours, theirs in zip(*chosen, strict=True):
            self.assertEqual(ours[:2], theirs[:2])
            self.assertTrue(np.array_equal(ours[2], theirs[2]))
        other = tiny_model(self.folder / "tokenizer")
        text = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
        vocabulary = text["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
        (other / "tokenizer.json").write_text(json.dumps(text), encoding="utf-8")
        cut = self.folder / "cut.npz"
        cut.write_bytes(packed.read_bytes()[:-100])
        for model, source, reason in (
            (other, packed, "tokenised for another model than"),
            (self.model, cut, "not a packed corpus"),
            (self.model, self.model / "tokenizer.json", "not a packed corpus"),
            (self.model, self.folder / "nowhere.npz", "No such file"),
        ):
            for verb in (("fit", "--output", self.folder / "no.safetensors"), ("eval",)):
                done = tool(*verb, "--model", model, "--texts", source, "--device", "cpu")
                self.assertEqual(done.returncode, 2, done.stderr)
                self.assertRegex(done.stderr, rf"^eviction_head: .*{reason}.*\n$")

    def test_model_with_something_missing_is_one_line(self) -> None:
        """No tokenizer or a broken one, a tensor or a size that is not there."""
        whole = tiny_model(self.folder / "whole")
        tensors = {
            name: headfile.read_tensor(info)
            for name, info in headfile.checkpoint_tensors(whole).items()
        }
        config = json.loads((whole / "config.json").read_text(encoding="utf-8"))
        less = {n: t for n, t in tensors.items() if n != "model.layers.1.mlp.up_proj.weight"}
        narrow = {**tensors, "model.norm.weight": tensors["model.norm.weight"][:-1]}
        for number, (name, content, reason) in enumerate(
            (
                ("tokenizer.json", None, r"tokenizer.json: No such file"),
                ("tokenizer.json", b"{}", r"tokenizer.json: not a tokenizer \("),
                ("tokenizer.json", b"\xff\xfe", r"tokenizer.json: not a tokenizer \("),
                ("model.safetensors", less, r"tensor model.layers.1.mlp.up_proj.weight is missing"),
                ("model.safetensors", narrow, r"tensor model.norm.weight has shape \["),
                ("config.json", "intermediate_size", r"intermediate_size is missing"),
            )
        ):
            broken = tiny_model(self.folder / f"broken-{number}")
            path = broken / name
            if content is None:
                path.unlink()
            elif isinstance(content, bytes):
                path.write_bytes(content)
            elif isinstance(content, str):
                kept = {key: value for key, value in config.items() if key != content}
                path.write_text(json.dumps(kept), encoding="utf-8")
            else:
                write_safetensors(path, content)
            for verb in (("fit", "--output", self.folder / "no.safetensors"), ("eval",)):
                done = tool(
                    *verb, "--model", broken, "--texts", self.texts, "--device", "cpu",
                    "--length", LENGTH,
                )  # fmt: skip
                self.assertEqual(done.returncode, 2, done.stderr)
                self.assertRegex(done.stderr, rf"^eviction_head: .*{reason}.*\n$")

    def test_sizes_of_fit_make_it_harder(self) -> None:
        """Half the local window and half of the query's blocks, unless they are named."""
        sizes = selection.Sizes(8, 4, 1, 64, 384, 32, 9)
        halved = fitting.sizes_of_fit(fitting.Options(), sizes)
        self.assertEqual((halved.window_size, halved.select_blocks, halved.topk), (192, 4, 32))
        named = fitting.sizes_of_fit(fitting.Options(window=384, select=9), sizes)
        self.assertEqual(named, sizes)
        least = fitting.sizes_of_fit(fitting.Options(), selection.Sizes(8, 4, 1, 64, 64, 4, 1))
        self.assertEqual((least.window_size, least.select_blocks), (64, 1))

    @unittest.skipIf(torch.cuda.is_available(), "there is a GPU")
    def test_fit_without_gpu_says_how_long(self) -> None:
        """No GPU: an estimate, and how to go on."""
        done = tool("fit", "--model", self.model, "--texts", self.texts, "--length", LENGTH)
        self.assertEqual(done.returncode, 2)
        self.assertRegex(
            done.stderr, r"no GPU: on this CPU the fit would take about \d+.*" r"--device cpu"
        )

    @unittest.skipIf(torch.cuda.is_available(), "there is a GPU")
    def test_eval_and_study_without_gpu_say_how_long(self) -> None:
        """The same of what scores."""
        program, results = self.folder / "few.json", self.folder / "nothing"
        jobs = [{"kind": "fit", "name": "one", "options": {"steps": 2}}]
        program.write_text(json.dumps({"length": LENGTH, "jobs": jobs}), encoding="utf-8")
        common = ("--model", self.model, "--texts", self.texts)
        for arguments, what in (
            (("eval", *common, "--length", LENGTH), r"4 cases on \d+ windows would take about \d+"),
            (
                ("study", *common, "--program", program, "--output", results),
                r"the fits \(1\) would take about \d+ s, and every case of every window about \d+",
            ),
        ):
            done = tool(*arguments)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertRegex(done.stderr, rf"^eviction_head: no GPU: on this CPU {what}.*\n$")
        self.assertFalse(results.exists())


if __name__ == "__main__":
    torch.set_num_threads(2)
    tap.main()
