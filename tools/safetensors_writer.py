"""Writes safetensors files, and rounds arrays to the 16-bit types that they hold.

Layout of the format: an unsigned 64-bit little-endian length, a JSON header of that length that
gives each tensor's type, shape and byte range, then the tensors' bytes without gaps.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

BF16 = np.dtype([("bf16", "<u2")])
"""Element type of an array that holds bfloat16 bit patterns."""

_NAMES = {np.dtype("<f4"): "F32", np.dtype("<f2"): "F16", BF16: "BF16"}


def to_bf16(values: np.ndarray) -> np.ndarray:
    """Rounds finite numbers to bfloat16, to nearest even, and returns the bit patterns as BF16."""
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    rounded = bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))
    return (rounded >> 16).astype("<u2").view(BF16)


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes the tensors (float32, float16 or BF16 arrays) in the order of the mapping."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, array in tensors.items():
        end = offset + array.nbytes
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).tobytes())
