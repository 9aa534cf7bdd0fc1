#!/usr/bin/env python3
"""Writes a Hugging Face Llama directory as a GGUF file, the same weights bit for bit.

Used by the benchmark alone, to give llama.cpp the model that it is measured with. Matrices keep
their type (bfloat16, float16 or float32), vectors become float32, and the rotary rows of q and k
are put next to each other (2i, 2i + 1) as llama.cpp's Llama architecture turns them. A byte-level
BPE vocabulary that splits every digit is written too; of other tokenizers only the size is, which
is enough for timing.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_ALIGNMENT = 32
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_TYPES = {"F32": (0, "<f4", 0), "F16": (1, "<f2", 1), "BF16": (30, "<u2", 32)}
"""Of each safetensors type: GGUF's tensor type, the bits as NumPy sees them, GGUF's file type."""


class ToolError(Exception):
    """Something the user can be told in one line."""


class Checkpoint:
    """The tensors of all safetensors files of a directory, mapped."""

    def __init__(self, directory: Path) -> None:
        """Reads the headers."""
        self._entries: dict[str, tuple[Path, int, dict[str, Any]]] = {}
        files = sorted(directory.glob("*.safetensors"))
        if not files:
            raise ToolError(f"{directory} has no .safetensors file")
        for path in files:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                self._entries[name] = (path, 8 + length, entry)

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._entries)

    def kind(self, name: str) -> str:
        """The tensor's type as safetensors calls it."""
        return self._entry(name)[2]["dtype"]

    def bits(self, name: str) -> np.ndarray:
        """The tensor; bfloat16 as uint16."""
        path, base, entry = self._entry(name)
        if entry["dtype"] not in _TYPES:
            raise ToolError(f"{name} has type {entry['dtype']}, which is not supported")
        start, end = entry["data_offsets"]
        data = np.memmap(path, dtype=np.uint8, mode="r", offset=base + start, shape=(end - start,))
        return np.frombuffer(data, dtype=_TYPES[entry["dtype"]][1]).reshape(entry["shape"])

    def floats(self, name: str) -> np.ndarray:
        """The tensor as float32."""
        bits = self.bits(name)
        if self.kind(name) == "BF16":
            return (bits.astype("<u4") << 16).view("<f4")
        return bits.astype("<f4")

    def _entry(self, name: str) -> tuple[Path, int, dict[str, Any]]:
        if name not in self._entries:
            raise ToolError(f"there is no tensor {name}")
        return self._entries[name]


def paired_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """Puts rows half a head apart, which one angle turns, next to each other."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1)
    return halves.swapaxes(1, 2).reshape(weight.shape)


def tensor_plan(config: dict[str, Any], names: set[str]) -> list[tuple[str, str, int]]:
    """Of each tensor: GGUF name, Hugging Face name, heads whose rows are paired or 0."""
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    plan = [("token_embd.weight", "model.embed_tokens.weight", 0)]
    for layer in range(config["num_hidden_layers"]):
        parts = [
            ("attn_norm", "input_layernorm", 0),
            ("attn_q", "self_attn.q_proj", heads),
            ("attn_k", "self_attn.k_proj", kv_heads),
            ("attn_v", "self_attn.v_proj", 0),
            ("attn_output", "self_attn.o_proj", 0),
            ("ffn_norm", "post_attention_layernorm", 0),
            ("ffn_gate", "mlp.gate_proj", 0),
            ("ffn_up", "mlp.up_proj", 0),
            ("ffn_down", "mlp.down_proj", 0),
        ]
        for theirs, ours, turned in parts:
            for kind in ("weight", "bias"):
                name = f"model.layers.{layer}.{ours}.{kind}"
                if kind == "weight" or name in names:
                    plan.append((f"blk.{layer}.{theirs}.{kind}", name, turned))
    plan.append(("output_norm.weight", "model.norm.weight", 0))
    if not config.get("tie_word_embeddings", False):
        plan.append(("output.weight", "lm_head.weight", 0))
    extra = names - {name for _, name, _ in plan} - {"lm_head.weight"}
    if extra:
        raise ToolError(f"llama.cpp knows no tensor {min(extra)}")
    return plan


def text_of(value: str) -> bytes:
    """A GGUF string."""
    data = value.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


def pair_of(key: str, kind: int, value: Any) -> bytes:
    """A key of the metadata with its value; arrays are of strings or of int32."""
    head = text_of(key) + struct.pack("<I", kind)
    if kind == _STRING:
        return head + text_of(value)
    if kind == _ARRAY:
        strings = bool(value) and isinstance(value[0], str)
        head += struct.pack("<IQ", _STRING if strings else _INT32, len(value))
        return head + b"".join(text_of(v) if strings else struct.pack("<i", v) for v in value)
    return head + struct.pack({_UINT32: "<I", _FLOAT32: "<f", _BOOL: "<?"}[kind], value)


def splits_digits(tokenizer: dict[str, Any]) -> bool:
    """Whether the tokenizer is a byte-level BPE that takes every digit alone and nothing else."""
    before = tokenizer.get("pre_tokenizer") or {}
    kinds = [step.get("type") for step in before.get("pretokenizers", [before])]
    return (
        tokenizer.get("model", {}).get("type") == "BPE"
        and kinds == ["Digits", "ByteLevel"]
        and before["pretokenizers"][0].get("individual_digits", False)
        and not tokenizer.get("normalizer")
    )


def vocabulary(directory: Path, config: dict[str, Any]) -> list[bytes]:
    """The metadata of the tokenizer."""
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not splits_digits(tokenizer):
        return [pair_of("tokenizer.ggml.model", _STRING, "no_vocab")]
    size = config["vocab_size"]
    tokens = [f"[unused {i}]" for i in range(size)]
    kinds = [_UNUSED] * size
    for text, token in tokenizer["model"]["vocab"].items():
        tokens[token], kinds[token] = text, _NORMAL
    for added in tokenizer.get("added_tokens", []):
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = _CONTROL if added["special"] else _USER_DEFINED
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    ends = config.get("eos_token_id", 0)
    return [
        pair_of("tokenizer.ggml.model", _STRING, "gpt2"),
        pair_of("tokenizer.ggml.pre", _STRING, "smollm"),
        pair_of("tokenizer.ggml.tokens", _ARRAY, tokens),
        pair_of("tokenizer.ggml.token_type", _ARRAY, kinds),
        pair_of("tokenizer.ggml.merges", _ARRAY, merges),
        pair_of("tokenizer.ggml.bos_token_id", _UINT32, config.get("bos_token_id") or 0),
        pair_of(
            "tokenizer.ggml.eos_token_id", _UINT32, ends[0] if isinstance(ends, list) else ends
        ),
        pair_of("tokenizer.ggml.add_bos_token", _BOOL, False),
    ]


def metadata(directory: Path, config: dict[str, Any], file_type: int) -> list[bytes]:
    """All keys of the file."""
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim") or hidden // heads
    numbers = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": hidden,
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": config.get("num_key_value_heads", heads),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": head_dim,
        "vocab_size": config["vocab_size"],
    }
    return [
        pair_of("general.architecture", _STRING, "llama"),
        pair_of("general.name", _STRING, directory.name),
        pair_of("general.file_type", _UINT32, file_type),
        *(pair_of(f"llama.{key}", _UINT32, value) for key, value in numbers.items()),
        pair_of("llama.attention.layer_norm_rms_epsilon", _FLOAT32, config["rms_norm_eps"]),
        pair_of("llama.rope.freq_base", _FLOAT32, float(config.get("rope_theta", 10000.0))),
        *vocabulary(directory, config),
    ]


def padding(position: int) -> bytes:
    """Zeros up to the next aligned position."""
    return b"\0" * (-position % _ALIGNMENT)


def write_file(
    file: BinaryIO, keys: list[bytes], tensors: list[tuple[str, int, Callable[[], np.ndarray]]]
) -> None:
    """Writes header, keys, the list of tensors and their bytes; each is loaded twice, when due."""
    infos, offset = [], 0
    for name, kind, load in tensors:
        array = load()
        dims = struct.pack(f"<I{array.ndim}Q", array.ndim, *reversed(array.shape))
        infos.append(text_of(name) + dims + struct.pack("<IQ", kind, offset))
        offset += array.nbytes + len(padding(array.nbytes))
    file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)))
    file.write(b"".join(keys) + b"".join(infos))
    file.write(padding(file.tell()))
    for _, _, load in tensors:
        file.write(np.ascontiguousarray(load()).tobytes())
        file.write(padding(file.tell()))


def convert(directory: Path, target: Path) -> None:
    """Writes `target` beside its place and moves it there when it is whole."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    if config.get("rope_scaling"):
        raise ToolError(f"{directory}: rope_scaling is not supported")
    checkpoint = Checkpoint(directory)

    def loader(name: str, heads: int) -> tuple[int, Callable[[], np.ndarray]]:
        if name.endswith(("norm.weight", ".bias")):
            kind, load = 0, checkpoint.floats
        else:
            kind, load = _TYPES[checkpoint.kind(name)][0], checkpoint.bits
        return kind, lambda: paired_rows(load(name), heads) if heads else load(name)

    plan = tensor_plan(config, checkpoint.names())
    file_type = _TYPES[checkpoint.kind("model.layers.0.self_attn.q_proj.weight")][2]
    partial = target.with_name(target.name + ".part")
    try:
        with partial.open("wb") as file:
            write_file(
                file,
                metadata(directory, config, file_type),
                [(theirs, *loader(name, heads)) for theirs, name, heads in plan],
            )
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def main() -> int:
    """Runs the tool; 0, or 2 after an error that was told in one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="Hugging Face directory")
    parser.add_argument("output", type=Path, help="GGUF file to write")
    arguments = parser.parse_args()
    try:
        convert(arguments.model, arguments.output)
    except ToolError as error:
        print(f"write_gguf: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"write_gguf: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except (ValueError, KeyError, struct.error) as error:
        print(f"write_gguf: {arguments.model}: not understood ({error})", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
