#!/usr/bin/env python3
"""Eviction heads as files: merging one into a checkpoint that nosa-run then runs, what is refused,
and how texts are dealt to parts. Needs no PyTorch. Prints TAP."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np

import tap
from program import RANDOM, TREE, run_json

TOOL = TREE / "tools" / "eviction_head"
sys.path[:0] = [str(TREE / "tools"), str(TOOL)]

import headfile  # noqa: E402
import make_demo_model  # noqa: E402
import texts  # noqa: E402
from errors import ToolError  # noqa: E402
from reference.nosa_reference import forward, load_model  # noqa: E402
from safetensors_writer import write_safetensors  # noqa: E402

PLAIN = RANDOM / "kv2_group1_d16_r4_plain"
SPARSE = {
    "kernel_size": 8,
    "kernel_stride": 4,
    "init_blocks": 1,
    "block_size": 64,
    "window_size": 64,
    "topk": 6,
    "select_blocks": 3,
    "dense_len": 0,
}
TOKENS = 700
DEMO_MODEL = Path(os.environ.get("NOSA_DEMO_MODEL_DIR") or "/nonexistent")


def random_head(seed: int = 1) -> headfile.HeadFile:
    """A head for the plain checkpoint, large enough to matter."""
    draw = np.random.default_rng(seed)
    shapes = headfile.head_shapes(headfile.read_config(PLAIN))
    tensors = {name: draw.standard_normal(shape).astype("<f4") for name, shape in shapes.items()}
    return headfile.HeadFile(
        tensors,
        {"base_sha256": headfile.weights_sha256(PLAIN), "sparse_config": json.dumps(SPARSE)},
    )


def copy_of(source: Path, target: Path) -> Path:
    """A checkpoint's config and weights in another place."""
    target.mkdir()
    for path in source.iterdir():
        if path.suffix == ".safetensors" or path.name in ("config.json", headfile.INDEX):
            shutil.copyfile(path, target / path.name)
    return target


def sharded(target: Path) -> Path:
    """The plain checkpoint in two shards."""
    copy_of(PLAIN, target)
    infos = headfile.checkpoint_tensors(target)
    tensors = {name: headfile.read_tensor(info) for name, info in infos.items()}
    (target / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2])):
        shard = f"model-{number + 1:05d}-of-00002.safetensors"
        write_safetensors(target / shard, {name: tensors[name] for name in part})
        weight_map.update({name: shard for name in part})
    (target / headfile.INDEX).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    return target


class TestMerge(unittest.TestCase):
    """The verb `merge`."""

    def setUp(self) -> None:
        """A folder with a head in it."""
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.head = self.folder / "head.safetensors"
        headfile.write_head(self.head, random_head())

    def refused(self, *parts: str, model: Path = PLAIN, head: Path | None = None) -> None:
        """Merging fails, with all parts in the message, and leaves nothing behind."""
        output = self.folder / "merged"
        with self.assertRaises(ToolError) as caught:
            headfile.merge(model, head or self.head, output)
        for part in parts:
            self.assertIn(part, str(caught.exception))
        self.assertFalse(output.exists())
        self.assertFalse(list(self.folder.glob(".merged*")))

    def check_merged(self, output: Path) -> None:
        """nosa-run takes it for a NOSA model, and computes what the reference does."""
        config = json.loads((output / "config.json").read_text(encoding="utf-8"))
        self.assertEqual(config["sparse_config"], SPARSE)
        self.assertEqual(headfile.weights_sha256(output), headfile.weights_sha256(PLAIN))
        ids = [int(t) for t in np.load(PLAIN / "tokens.npy")[:TOKENS]]
        expected = forward(load_model(output), ids, "nosa", [-1], float32_angles=True).logits[0]
        result = run_json(
            "--model",
            output,
            "--prompt-tokens",
            ",".join(map(str, ids)),
            "--max-tokens",
            1,
            "--temperature",
            0,
        )
        self.assertEqual(result["attention"], "nosa")
        self.assertEqual(result["tokens"], [int(expected.argmax())])

    def test_merge_single_file_runs(self) -> None:
        """The weights of one file are written anew."""
        headfile.merge(PLAIN, self.head, self.folder / "merged")
        self.check_merged(self.folder / "merged")

    def test_merge_shards_runs(self) -> None:
        """Shards stay as they are and get one more."""
        base = sharded(self.folder / "base")
        head = random_head()
        head.metadata["base_sha256"] = headfile.weights_sha256(base)
        headfile.write_head(self.head, head)
        headfile.merge(base, self.head, self.folder / "merged", link=True)
        self.check_merged(self.folder / "merged")
        self.assertTrue((self.folder / "merged" / headfile.SHARD).is_file())

    def test_merge_second_head_is_refused(self) -> None:
        """A checkpoint that has one."""
        headfile.merge(PLAIN, self.head, self.folder / "once")
        self.refused("has an eviction head already", model=self.folder / "once")

    def test_merge_head_of_other_weights_is_refused(self) -> None:
        """One weight differs in its last bit."""
        base = copy_of(PLAIN, self.folder / "base")
        data = bytearray((base / "model.safetensors").read_bytes())
        data[-4] ^= 1
        (base / "model.safetensors").write_bytes(data)
        self.refused("fitted to another model", model=base)

    def test_merge_wrong_shape_is_refused(self) -> None:
        """The tensor and both shapes are named."""
        head = random_head()
        name = "model.layers.1.self_attn.delta.weight"
        head.tensors[name] = head.tensors[name][:1]
        headfile.write_head(self.head, head)
        self.refused(name, "[1, 32]", "[2, 32]")

    def test_merge_missing_and_extra_tensors_are_refused(self) -> None:
        """Every layer has one, and no other has."""
        head = random_head()
        del head.tensors["model.layers.1.self_attn.A"]
        headfile.write_head(self.head, head)
        self.refused("model.layers.1.self_attn.A is missing")
        head = random_head()
        head.tensors["model.layers.2.self_attn.A"] = np.ones(2, "<f4")
        headfile.write_head(self.head, head)
        self.refused("no place for tensor model.layers.2.self_attn.A")

    def test_merge_infinite_number_is_refused(self) -> None:
        """A fit gone wrong."""
        head = random_head()
        head.tensors["model.layers.0.self_attn.A"][1] = np.inf
        headfile.write_head(self.head, head)
        self.refused("model.layers.0.self_attn.A", "not finite")

    def test_merge_other_files_are_refused(self) -> None:
        """Weights, half a file, nothing."""
        self.refused("not a head file", head=PLAIN / "model.safetensors")
        self.head.write_bytes(self.head.read_bytes()[:300])
        self.refused("not a safetensors file")
        self.head.write_bytes(b"")
        self.refused("not a safetensors file")
        self.refused("No such file", head=self.folder / "absent")

    def test_merge_existing_output_is_kept(self) -> None:
        """Nothing is overwritten."""
        output = self.folder / "merged"
        output.mkdir()
        with self.assertRaises(ToolError):
            headfile.merge(PLAIN, self.head, output)
        self.assertEqual(list(output.iterdir()), [])

    def test_merge_command_says_one_line(self) -> None:
        """The program's exit codes and its one line."""
        command = [
            sys.executable,
            str(TOOL),
            "merge",
            "--model",
            str(PLAIN),
            "--head",
            str(self.head),
            "--output",
            str(self.folder / "merged"),
        ]
        self.assertEqual(subprocess.run(command, capture_output=True, check=False).returncode, 0)
        again = subprocess.run(command, capture_output=True, text=True, check=False)
        self.assertEqual(again.returncode, 2)
        self.assertRegex(again.stderr, r"^eviction_head: .* exists\n$")


class TestTexts(unittest.TestCase):
    """Documents and parts."""

    def test_parts_of_are_stable_and_disjoint(self) -> None:
        """Every document has one part, whatever the order of names."""
        names = [f"document {n}" for n in range(60)]
        parts = texts.parts_of(names)
        self.assertEqual(parts, texts.parts_of(names[::-1]))
        counts = {part: list(parts.values()).count(part) for part in texts.PARTS}
        self.assertEqual(counts, {"test": 12, "dev": 6, "train": 42})
        few = texts.parts_of(names[:15])
        self.assertEqual(list(few.values()).count("test"), 5)

    def test_windows_of_spread_over_documents(self) -> None:
        """A second window of a document comes after a first one of all."""
        documents = [
            texts.Document(f"d{n}", "prose", "test", np.arange(1000 * (n + 1)) % 7)
            for n in range(4)
        ]
        corpus = texts.Corpus(documents, "")
        chosen = texts.windows_of(corpus, "test", 1000, 6, 3)
        self.assertEqual([name for _, name, _ in chosen][:4], ["d0", "d1", "d2", "d3"])
        self.assertEqual(len(chosen), 6)
        with self.assertRaisesRegex(ToolError, "test part has the 9000 tokens"):
            texts.windows_of(corpus, "test", 9000, 6, 3)

    def test_read_text_bad_files_are_refused(self) -> None:
        """Empty, not UTF-8, absent: each named."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "text.txt"
            for content, reason in ((b" \n", "empty"), (b"abc\xff", r"not UTF-8 \(byte 3\)")):
                path.write_bytes(content)
                with self.assertRaisesRegex(ToolError, f"text.txt: {reason}"):
                    texts.read_text(path)
            path.unlink()
            with self.assertRaisesRegex(ToolError, "No such file"):
                texts.read_text(path)


class TestShippedHeads(unittest.TestCase):
    """The heads that are committed."""

    def test_heads_are_small_whole_and_described(self) -> None:
        """Size, shapes, finite numbers, the card beside them."""
        paths = sorted((TOOL / "heads").glob("*.safetensors"))
        self.assertTrue(paths)
        for path in paths:
            head = headfile.read_head(path)
            self.assertLess(path.stat().st_size, 300_000)
            self.assertEqual(len(head.tensors), 60)
            self.assertTrue(all(np.isfinite(t).all() for t in head.tensors.values()))
            self.assertEqual(len(head.metadata["base_sha256"]), 64)
            card = (TOOL / "heads" / "README.md").read_text(encoding="utf-8")
            self.assertIn(path.name, card)

    def test_demo_head_has_the_demo_models_sizes(self) -> None:
        """The head was fitted for the sizes that the demo tool writes into config.json."""
        head = headfile.read_head(make_demo_model.HEAD)
        self.assertEqual(json.loads(head.metadata["sparse_config"]), make_demo_model.SPARSE_CONFIG)

    @unittest.skipIf(not (DEMO_MODEL / "config.json").is_file(), "the demo model is not there")
    def test_demo_head_merges_into_the_demo_model(self) -> None:
        """It belongs to the demo model's weights, by their hash; the merged model has its tensors,
        as rounded, all others as before, and its sizes."""
        head = headfile.read_head(make_demo_model.HEAD)
        base = headfile.checkpoint_tensors(DEMO_MODEL)
        self.assertFalse(any(headfile.is_head_tensor(name) for name in base))
        self.assertEqual(head.metadata["base_sha256"], headfile.weights_sha256(DEMO_MODEL))
        with tempfile.TemporaryDirectory() as folder:
            merged = Path(folder) / "merged"
            headfile.merge(DEMO_MODEL, make_demo_model.HEAD, merged)
            config = headfile.read_config(merged)
            self.assertEqual(config["sparse_config"], make_demo_model.SPARSE_CONFIG)
            tensors = headfile.checkpoint_tensors(merged)
            self.assertEqual(set(tensors), set(base) | set(head.tensors))
            for name, values in head.tensors.items():
                stored = headfile.as_stored(values, tensors[name].dtype).tobytes()
                self.assertEqual(headfile.read_bytes(tensors[name]), stored, name)
            for name, info in base.items():
                self.assertEqual(headfile.read_bytes(tensors[name]), headfile.read_bytes(info))


if __name__ == "__main__":
    tap.main()
