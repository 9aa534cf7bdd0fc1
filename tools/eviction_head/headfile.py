"""Checkpoints and head files, with NumPy alone: reading, the weights' hash, merging.

A head file is a small safetensors file: delta.weight and A of each layer in float32, and metadata
that says which base model they belong to (`base_sha256`), with which sparse sizes and how they
were fitted.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from errors import ToolError
from safetensors_writer import BF16, to_bf16

FORMAT = "nosa-eviction-head-1"
INDEX = "model.safetensors.index.json"
SHARD = "model-eviction-head.safetensors"
_TYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": BF16}
_HEADER_MAX = 100 << 20


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass
class HeadFile:
    """A head, and where it belongs."""

    tensors: dict[str, np.ndarray]
    metadata: dict[str, str] = field(default_factory=dict)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ToolError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ToolError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise ToolError(f"{path}: not a JSON object")
    return content


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a Llama-family checkpoint."""
    if not directory.is_dir():
        raise ToolError(f"{directory} is not a directory")
    config = read_json(directory / "config.json")
    if config.get("model_type") != "llama":
        raise ToolError(f"{directory}: model_type is {config.get('model_type')}, not llama")
    for key in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size"):
        if not isinstance(config.get(key), int) or config[key] < 1:
            raise ToolError(f"{directory / 'config.json'}: {key} is missing or not a number")
    return config


def check_weights(directory: Path, config: Mapping[str, Any]) -> None:
    """Refuses a checkpoint whose config or tensors are not those of a whole Llama decoder."""
    for key in ("vocab_size", "intermediate_size", "rms_norm_eps"):
        if isinstance(config.get(key), bool) or not isinstance(config.get(key), (int, float)):
            raise ToolError(f"{directory / 'config.json'}: {key} is missing or not a number")
    found = checkpoint_tensors(directory)
    for name, shape in weight_shapes(config).items():
        if name not in found:
            raise ToolError(f"{directory}: tensor {name} is missing")
        if found[name].shape != shape:
            raise ToolError(
                f"{directory}: tensor {name} has shape {list(found[name].shape)}, config.json "
                f"asks for {list(shape)}"
            )


def weight_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama decoder's weights, without biases and head."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries = config["num_attention_heads"] * head_dim
    keys = config["num_key_value_heads"] * head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes[prefix + "input_layernorm.weight"] = (hidden,)
        shapes[prefix + "post_attention_layernorm.weight"] = (hidden,)
        shapes[prefix + "self_attn.q_proj.weight"] = (queries, hidden)
        shapes[prefix + "self_attn.k_proj.weight"] = (keys, hidden)
        shapes[prefix + "self_attn.v_proj.weight"] = (keys, hidden)
        shapes[prefix + "self_attn.o_proj.weight"] = (hidden, queries)
        shapes[prefix + "mlp.gate_proj.weight"] = (inner, hidden)
        shapes[prefix + "mlp.up_proj.weight"] = (inner, hidden)
        shapes[prefix + "mlp.down_proj.weight"] = (hidden, inner)
    return shapes


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Tensors and metadata of a safetensors file."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else _HEADER_MAX + 1
            text = file.read(length) if length <= _HEADER_MAX else b""
        header = json.loads(text.decode("utf-8"))
        size = path.stat().st_size
        metadata = header.pop("__metadata__", {})
        tensors = {}
        for name, info in header.items():
            begin, end = (8 + length + int(offset) for offset in info["data_offsets"])
            shape = tuple(int(n) for n in info["shape"])
            tensors[name] = TensorInfo(path, str(info["dtype"]), shape, begin, end)
            width = _TYPES[info["dtype"]].itemsize if info["dtype"] in _TYPES else None
            if not 0 <= begin <= end <= size or (
                width is not None and width * math.prod(shape) != end - begin
            ):
                raise ValueError(f"tensor {name} does not fit the file")
        return tensors, {str(key): str(value) for key, value in metadata.items()}
    except OSError as error:
        raise ToolError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ToolError(f"{path}: not a safetensors file ({error})") from error


def checkpoint_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint directory."""
    if (directory / INDEX).is_file():
        shards = read_json(directory / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ToolError(f"{directory / INDEX}: no weight_map")
        return [directory / name for name in sorted(set(shards.values()))]
    paths = sorted(directory.glob("*.safetensors"))
    if len(paths) != 1:
        raise ToolError(f"{directory} holds {len(paths)} .safetensors files and no {INDEX}")
    return paths


def checkpoint_tensors(directory: Path) -> dict[str, TensorInfo]:
    """All tensors of a checkpoint, by name."""
    tensors: dict[str, TensorInfo] = {}
    for path in checkpoint_files(directory):
        tensors.update(read_header(path)[0])
    return tensors


def read_bytes(info: TensorInfo) -> bytes:
    """A tensor's bytes."""
    with info.path.open("rb") as file:
        file.seek(info.begin)
        return file.read(info.end - info.begin)


def read_tensor(info: TensorInfo) -> np.ndarray:
    """A tensor in float32."""
    if info.dtype not in _TYPES:
        raise ToolError(f"{info.path}: type {info.dtype}; F32, F16 and BF16 are supported")
    raw = read_bytes(info)
    if info.dtype == "BF16":
        values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        values = np.frombuffer(raw, _TYPES[info.dtype]).astype(np.float32)
    return values.reshape(info.shape)


def is_head_tensor(name: str) -> bool:
    """Whether a tensor is part of an eviction head."""
    return ".self_attn.delta." in name or name.endswith(".self_attn.A")


def weights_sha256(directory: Path) -> str:
    """SHA-256 over names, types, shapes and bytes of all weights but a head's, sorted by name."""
    digest = hashlib.sha256()
    for name, info in sorted(checkpoint_tensors(directory).items()):
        if not is_head_tensor(name):
            digest.update(json.dumps([name, info.dtype, list(info.shape)]).encode())
            digest.update(read_bytes(info))
    return digest.hexdigest()


def head_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the head that a model of this config would have."""
    kv_heads = config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}.self_attn."
        shapes[prefix + "delta.weight"] = (kv_heads, kv_heads * head_dim)
        shapes[prefix + "A"] = (kv_heads,)
        if config.get("attention_bias"):
            shapes[prefix + "delta.bias"] = (kv_heads,)
    return shapes


def refuse_second_head(directory: Path) -> None:
    """Refuses a checkpoint that has a head."""
    for name in checkpoint_tensors(directory):
        if is_head_tensor(name):
            raise ToolError(f"{directory} has an eviction head already ({name})")


def write_head(path: Path, head: HeadFile) -> None:
    """Writes a head file, beside its place first."""
    metadata = {"format": FORMAT, **head.metadata}
    _write(
        path, {name: np.ascontiguousarray(t, "<f4") for name, t in head.tensors.items()}, metadata
    )


def _write(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file whole or not at all."""
    names = {np.dtype("<f4"): "F32", np.dtype("<f2"): "F16", BF16: "BF16"}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, array in tensors.items():
        header[name] = {
            "dtype": names[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with fresh.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for array in tensors.values():
                file.write(array.tobytes())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def read_head(path: Path) -> HeadFile:
    """Reads a head file; anything else is refused."""
    infos, metadata = read_header(path)
    if metadata.get("format") != FORMAT:
        raise ToolError(f"{path}: not a head file (format is {metadata.get('format')})")
    return HeadFile({name: read_tensor(info) for name, info in infos.items()}, metadata)


def check_head(head: HeadFile, path: Path, directory: Path) -> None:
    """Refuses a head whose shapes do not fit a checkpoint, or that was fitted to another one."""
    shapes = head_shapes(read_config(directory))
    for name, shape in shapes.items():
        found = head.tensors.get(name)
        if found is None:
            raise ToolError(f"{path}: tensor {name} is missing, {directory} asks for it")
        if found.shape != shape:
            raise ToolError(
                f"{path}: tensor {name} has shape {list(found.shape)}, {directory} "
                f"asks for {list(shape)}"
            )
        if not np.isfinite(found).all():
            raise ToolError(f"{path}: tensor {name} holds a number that is not finite")
    extra = sorted(set(head.tensors) - set(shapes))
    if extra:
        raise ToolError(f"{path}: {directory} has no place for tensor {extra[0]}")
    found_hash = weights_sha256(directory)
    if head.metadata.get("base_sha256") != found_hash:
        raise ToolError(
            f"{path}: fitted to another model (weights "
            f"{head.metadata.get('base_sha256', 'unknown')[:16]}, {directory} has "
            f"{found_hash[:16]})"
        )


def as_stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """The values in a checkpoint's type."""
    return to_bf16(values) if dtype == "BF16" else values.astype(_TYPES[dtype])


def matrix_dtype(tensors: Mapping[str, TensorInfo]) -> str:
    """The type of a checkpoint's matrices."""
    info = tensors.get("model.embed_tokens.weight")
    if info is None or info.dtype not in _TYPES:
        raise ToolError("the checkpoint has no model.embed_tokens.weight of type F32, F16 or BF16")
    return info.dtype


def merge(directory: Path, head_path: Path, output: Path, link: bool = False) -> None:
    """Writes a checkpoint directory that is the given one with the head in it.

    A single weights file is written anew with the head's tensors behind the others; of a sharded
    checkpoint the shards are copied (or linked) and the head becomes one more. The head's sparse
    sizes go into config.json. Works beside `output` and moves it there in one step.
    """
    config = read_config(directory)
    refuse_second_head(directory)
    head = read_head(head_path)
    check_head(head, head_path, directory)
    if output.exists():
        raise ToolError(f"{output} exists")
    tensors = checkpoint_tensors(directory)
    dtype = matrix_dtype(tensors)
    parts = {name: as_stored(head.tensors[name], dtype) for name in head_shapes(config)}
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
        fresh = Path(scratch) / "new"
        fresh.mkdir()
        _place_weights(directory, fresh, parts, link)
        sparse = head.metadata.get("sparse_config")
        if sparse:
            config["sparse_config"] = json.loads(sparse)
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (fresh / "config.json").write_text(text, encoding="utf-8")
        for path in sorted(directory.iterdir()):
            if (
                path.is_file()
                and path.suffix in (".json", ".jinja", ".txt", ".model")
                and not (fresh / path.name).exists()
            ):
                shutil.copyfile(path, fresh / path.name)
        fresh.rename(output)


def _place_weights(
    directory: Path, fresh: Path, parts: Mapping[str, np.ndarray], link: bool
) -> None:
    """Writes the weights of a merged checkpoint into an empty directory."""
    sources = checkpoint_files(directory)
    if not (directory / INDEX).is_file():
        _append(sources[0], fresh / sources[0].name, parts)
        return
    index = read_json(directory / INDEX)
    for source in sources:
        if link:
            (fresh / source.name).symlink_to(source.resolve())
        else:
            shutil.copyfile(source, fresh / source.name)
    _write(fresh / SHARD, parts, {"format": "pt"})
    index["weight_map"].update({name: SHARD for name in parts})
    added = sum(array.nbytes for array in parts.values())
    if isinstance(index.get("metadata"), dict) and "total_size" in index["metadata"]:
        index["metadata"]["total_size"] += added
    (fresh / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _append(source: Path, target: Path, parts: Mapping[str, np.ndarray]) -> None:
    """Copies a safetensors file with more tensors behind those that it has."""
    infos, metadata = read_header(source)
    names = {np.dtype("<f4"): "F32", np.dtype("<f2"): "F16", BF16: "BF16"}
    start = min(info.begin for info in infos.values())
    offset = max(info.end for info in infos.values()) - start
    header: dict[str, Any] = {"__metadata__": metadata or {"format": "pt"}}
    for name, info in infos.items():
        header[name] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [info.begin - start, info.end - start],
        }
    for name, array in parts.items():
        header[name] = {
            "dtype": names[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with source.open("rb") as old, target.open("wb") as new:
        new.write(struct.pack("<Q", len(text)) + text)
        old.seek(start)
        shutil.copyfileobj(old, new, 1 << 24)
        for array in parts.values():
            new.write(array.tobytes())
